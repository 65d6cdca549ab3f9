"""The whole path as a user walks it: a dirty log, one command, a bundle; and what goes wrong on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.data.demo_shop.generate import Truth, generate
from tests.unit.test_cli import rayrec


@dataclass
class Done:
    """A shop and what `rayrec run` printed for it."""

    shop: Path
    out: Path
    truth: Truth
    printed: dict[str, Any]


@pytest.fixture(scope="module")
def done(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """`rayrec run --json` over a small shop, through Ray Train."""
    folder = tmp_path_factory.mktemp("path")
    truth = generate(folder / "shop", users=400, items=120, events=16_000, seed=5)
    out = folder / "out"
    capture = folder / "stdout.json"
    code = _in_process(
        [
            "run",
            folder / "shop/recipe.toml",
            "--out",
            out,
            "--set",
            "train.epochs=3",
            "--set",
            "model.name=mlp",
        ],
        capture,
    )
    assert code == 0
    return Done(folder / "shop", out, truth, json.loads(capture.read_text()))


def _in_process(arguments: list[object], capture: Path) -> int:
    """Run a verb with --json in this process, which holds the Ray session; stdout goes to a file."""
    import contextlib
    import sys

    import app.cli

    before, sys.argv = sys.argv, ["rayrec", *map(str, arguments), "--json"]
    try:
        with capture.open("w") as stream, contextlib.redirect_stdout(stream):
            app.cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def test_counts_add_up_and_match_what_was_planted(done: Done) -> None:
    data = done.printed["data"]
    assert data["rows_kept"] + sum(data["rejected"].values()) == data["rows_in"]
    planted = {reason: n for reason, n in done.truth.rejected.items() if n}
    assert {reason: n for reason, n in data["rejected"].items() if n} == planted


def test_the_figures_of_the_contract_are_there(done: Done) -> None:
    printed = done.printed
    for name in ("ndcg@10", "hit_rate@10", "recall@20"):
        assert 0 < printed["figures"][name] <= 1
        assert 0 < printed["baselines"]["popularity"][name] <= 1
    assert 0 < printed["bytes"]["bundle"] < printed["bytes"]["float32"]
    assert set(printed["seconds"]) == {"prepare", "train", "compress", "evaluate", "export"}
    assert Path(printed["bundle"]).is_dir()


def test_the_report_can_be_read_and_looked_at(done: Done) -> None:
    report = done.out / "report"
    assert "popularity" in (report / "report.md").read_text()
    assert [p.read_bytes()[:4] for p in report.glob("*.png")].count(b"\x89PNG") >= 2


def test_again_runs_nothing(done: Done, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.out.rglob("*") if p.is_file()}
    arguments = [
        "run",
        done.shop / "recipe.toml",
        "--out",
        done.out,
        "--set",
        "train.epochs=3",
        "--set",
        "model.name=mlp",
    ]
    assert _in_process(arguments, tmp_path / "again.json") == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["figures"] == done.printed["figures"]
    assert {p: p.stat().st_mtime_ns for p in done.out.rglob("*") if p.is_file()} == before


def test_a_changed_setting_runs_what_depends_on_it(done: Done, tmp_path: Path) -> None:
    kept = (done.out / "checkpoint" / "manifest.json").stat().st_mtime_ns
    arguments = [
        "run",
        done.shop / "recipe.toml",
        "--out",
        done.out,
        "--set",
        "train.epochs=3",
        "--set",
        "model.name=mlp",
    ]
    assert _in_process([*arguments, "--set", "compress.rows=float16"], tmp_path / "f16.json") == 0
    changed = json.loads((tmp_path / "f16.json").read_text())
    assert changed["bytes"]["bundle"] > done.printed["bytes"]["bundle"]
    assert (done.out / "checkpoint" / "manifest.json").stat().st_mtime_ns == kept
    assert _in_process(arguments, tmp_path / "back.json") == 0


def test_rank_without_a_server(done: Done, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = done.printed["bundle"]
    code, out, _ = rayrec(capsys, "rank", bundle, "--user", "nobody", "--k", "3", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["cold_start"] is True
    best = [scored["item"] for scored in answer["items"]]
    assert len(best) == 3
    lines = tmp_path / "requests.jsonl"
    lines.write_text(json.dumps({"user": "nobody", "items": best}) + "\n" + json.dumps({"user": "x", "k": 2}))
    code, out, _ = rayrec(capsys, "rank", bundle, "--requests", lines)
    ranked, recommended = map(json.loads, out.splitlines())
    assert [scored["item"] for scored in ranked["items"]] == best
    assert len(recommended["items"]) == 2
    lines.write_text('{"user": 3.5, "items": []}')
    code, _, err = rayrec(capsys, "rank", bundle, "--requests", lines)
    assert code == 1
    assert "line 1" in err


def test_bench_measures_the_bundle(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rayrec(capsys, "bench", done.printed["bundle"], "--candidates", "20", "--json")
    assert code == 0
    assert json.loads(out)["batch_1"]["p50_ms"] > 0


def test_check_tells_what_would_be_rejected(done: Done, tmp_path: Path) -> None:
    assert _in_process(["check", done.shop / "recipe.toml"], tmp_path / "check.json") == 0
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["rows_in"] == done.printed["data"]["rows_in"]


BAD_RECIPES = {
    "unknown key": ("train.epoch=3", "did you mean 'epochs'"),
    "wrong type": ("train.epochs=many", "train.epochs"),
    "missing column": ("data.user=customer", "customer"),
    "absent file": ('data.events=["absent.csv"]', "absent.csv"),
    "unknown model": ("model.name=magic", "choose among"),
    "unknown hyperparameter": ("model.magic=3", "magic"),
    "nothing left": ("data.where=\"user_id = 'nobody'\"", "filtered"),
    "bad filter": ("data.where=user_id ==== 3", "where"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_bad_recipe_is_one_message(
    case: str, done: Done, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    change, message = BAD_RECIPES[case]
    recipe = done.shop / "recipe.toml"
    code, out, err = rayrec(capsys, "run", recipe, "--out", tmp_path / "out", "--set", change, "--json")
    assert code == 1
    assert message in err
    assert "error" in json.loads(out)
    whole = [p.parent.name for p in (tmp_path / "out").rglob("manifest.json")]
    assert whole in ([], ["dataset"])
