"""The report folder: what is in it, and that it can be read."""

from __future__ import annotations

import json
import struct

import pytest

from app.artifact import open_artifact
from app.evaluation.evaluate import Report
from app.evaluation.page import markdown
from app.evaluation.report import write_report

FIGURES = {"ndcg@10": 0.42, "hit_rate@10": 0.7, "recall@10": 0.7, "mrr@10": 0.3, "map@10": 0.3}
REPORT = Report(
    name="shop",
    model="mlp",
    part="test",
    protocol={"candidates": "all", "exclude_seen": True, "requests": 1200, "targets": 3000, "items": 500},
    figures=FIGURES | {"auc": 0.9, "log_loss": 0.3, "calibration_error": float("nan")},
    intervals={name: [value - 0.02, value + 0.02] for name, value in FIGURES.items()},
    baselines={"popularity": {name: value / 2 for name, value in FIGURES.items()}},
    ratios={"popularity": dict.fromkeys(FIGURES, 2.0)},
    segments={"new users": FIGURES | {"requests": 10, "targets": 20}},
    calibration=[{"predicted": 0.2, "observed": 0.25, "count": 100}],
    notes=["3 scores were NaN"],
)
CURVE = [
    {"epoch": 1, "loss": 0.6, "ndcg@10": 0.3, "seconds": 1.5},
    {"epoch": 2, "loss": 0.5, "ndcg@10": 0.4, "seconds": 1.5},
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "report"
    return write_report(REPORT, folder, {"k": 10}, {"checkpoint": "abc"}, curve=CURVE)


def test_it_is_an_artefact_with_its_figures(written):
    assert open_artifact(written.path, "report") == written
    assert written.parents == {"checkpoint": "abc"}
    assert written.figures["figures"]["ndcg@10"] == 0.42
    assert written.figures["baselines"]["popularity"]["ndcg@10"] == 0.21


def test_json_has_everything_and_no_nan(written):
    text = (written.path / "report.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["figures"]["calibration_error"] is None
    assert content["curve"] == CURVE
    assert content["segments"]["new users"]["targets"] == 20


def test_the_page_puts_the_baseline_beside_the_model(written):
    page = (written.path / "report.md").read_text()
    assert "1,200 users, 3,000 items to find, ranked among all 500 items, without those already seen." in page
    row = next(line for line in page.splitlines() if line.startswith("| ndcg@10"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "ndcg@10",
        "**0.4200**",
        "0.4000 – 0.4400",
        "0.2100",
        "2.00 ×",
    ]
    assert "* 3 scores were NaN" in page
    assert "n/a" in page
    assert page.count("![") == 4


def test_tables_are_aligned(written):
    tables = [line for line in markdown(REPORT).splitlines() if line.startswith("|")]
    widths = {len(line) for line in tables[: len(REPORT.figures) + 2]}
    assert len(widths) == 1


@pytest.mark.parametrize("name", ["figures", "segments", "calibration", "curve"])
def test_plots_are_pictures_of_a_readable_size(written, name):
    content = (written.path / f"{name}.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 900
    assert height >= 500


def test_the_curve_may_be_a_file_or_absent(written, tmp_path):
    (tmp_path / "curve.json").write_text(json.dumps(CURVE))
    with_file = write_report(REPORT, tmp_path / "a", curve=tmp_path / "curve.json")
    assert "curve.png" in with_file.files
    without = write_report(REPORT, tmp_path / "b", curve=tmp_path / "none.json")
    assert "curve.png" not in without.files
