"""What every format of an export promises: what is read back scores as the checkpoint does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app import pipeline
from app.artifact import open_artifact
from app.bundle.export import formats
from app.bundle.export.export import export
from app.bundle.export.formats import export_format, format_names
from app.bundle.request.requests import Context, RankRequest
from app.cli import app
from app.comparison.requests import random_requests
from app.data.dataset import Dataset
from app.errors import RecipeError
from app.evaluation.scorer import ModelScorer
from app.models.discovery import model_names
from app.recipe import Recipe, parse
from tests.bundles import NOW, checkpoint_of, random_model
from tests.exports import FIXED, HISTORY, ITEMS, exported, format_of
from tests.tiny import Datasets

LOWERED = ("dcn", "neumf", "sasrec", "two_tower")
# What a format cannot hold, and the operator for which it is refused.
REFUSED = {("litert", source): "scatter" for source in ("ease", "item_knn", "item_sequence")}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    return Datasets(tmp_path_factory.mktemp("formats"), users=40, items=40, events=500)


@pytest.fixture
def dataset(datasets: Datasets) -> Dataset:
    return datasets["mlp"]


def formats_and_models() -> list[tuple[str, str]]:
    """Every format and model, but of the formats that take long to lower a model only some."""
    return [
        (name, source) for name in format_names() for source in (LOWERED if name in FIXED else model_names())
    ]


@pytest.mark.parametrize(("name", "source"), formats_and_models())
def test_what_is_read_back_scores_as_the_checkpoint(
    name: str, source: str, datasets: Datasets, tmp_path: Path
) -> None:
    dataset, format = datasets[source], format_of(name)
    model = random_model(source, dataset)
    path = exported(checkpoint_of(model, dataset), dataset, tmp_path / "out", name)
    assert open_artifact(path).kind == name
    score = format.read(path)
    requests, batch = random_requests(dataset, model.reads, 1000 if source in LOWERED else 100, 10)
    expected = ModelScorer(model).candidates(batch).numpy()
    scores = [[scored[item] for item in r.items] for r in requests for scored in [score(r)]]
    np.testing.assert_allclose(scores, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "source"), REFUSED)
def test_a_model_that_a_format_cannot_hold_is_refused(
    name: str, source: str, datasets: Datasets, tmp_path: Path
) -> None:
    format_of(name)
    checkpoint = checkpoint_of(random_model(source, datasets[source]), datasets[source])
    reason = rf"{name} cannot hold the model {source} \(.*{REFUSED[name, source]}.*\) - use the format bundle"
    with pytest.raises(RecipeError, match=reason):
        exported(checkpoint, datasets[source], tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", format_names())
def test_a_compressed_checkpoint_keeps_its_rows(name: str, dataset: Dataset, tmp_path: Path) -> None:
    model = random_model("two_tower", dataset)
    request = RankRequest("u7", ITEMS, history=HISTORY, context=Context(float(NOW)))
    scores, format = {}, format_of(name)
    for precision in (None, "int8"):
        checkpoint = checkpoint_of(model, dataset, tmp_path / "rows", precision)  # type: ignore[arg-type]
        out = exported(checkpoint, dataset, tmp_path / str(precision), name)
        scores[precision] = format.read(out)(request)
    bundle = exported(checkpoint, dataset, tmp_path / "bundle", "bundle")
    served = export_format("bundle").read(bundle)(request)
    assert [scores["int8"][item] for item in ITEMS] == pytest.approx([served[i] for i in ITEMS], abs=1e-4)
    assert scores["int8"] != scores[None]


@pytest.mark.parametrize("name", format_names())
def test_unknown_items_and_unordered_histories(name: str, dataset: Dataset, tmp_path: Path) -> None:
    format = format_of(name)
    path = exported(checkpoint_of(random_model("mlp", dataset), dataset), dataset, tmp_path / "out", name)
    score = format.read(path)
    request = RankRequest("u7", ["i1", "new", "newer"], history=HISTORY, context=Context(float(NOW)))
    scores = score(request)
    assert scores["new"] == pytest.approx(scores["newer"]) and scores["new"] != scores["i1"]
    reordered = RankRequest("u7", ["i1"], history=HISTORY[::-1], context=Context(float(NOW)))
    assert score(reordered)["i1"] == pytest.approx(scores["i1"], abs=1e-5)


def test_a_format_that_unpickles_is_allowed_first(dataset: Dataset, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(random_model("two_tower", dataset), dataset)
    with pytest.raises(RecipeError, match=r"export.unpickle: .* unpickled when it is loaded"):
        export(parse({}, "test"), dataset, checkpoint, tmp_path / "out", {}, {}, {}, format="torch_export")
    with pytest.raises(RecipeError, match=r"set it to true .* only files of your own"):
        pipeline.run(Recipe(), tmp_path, format="torch_export")
    assert not any(tmp_path.iterdir()), "refused before any work"


OWN = '''
"""One text file with the score of every item, the same for every user."""
import json
from app.bundle.export.static_rows import static_rows

def write(source, draft):
    rows = static_rows(source.checkpoint.model)["item"][:, 0]
    ids = list(source.dataset.items)
    (draft.path / "scores.json").write_text(json.dumps(dict(zip(ids, rows.tolist()))))

def read(path):
    scores = json.loads((path / "scores.json").read_text())
    return lambda request: {item: scores.get(item, scores[""]) for item in request.items}
'''


def test_a_single_file_adds_a_format(
    datasets: Datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = format_names()
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "score_list.py").write_text(OWN)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "formats")])
    assert format_names() == sorted([*names, "score_list"])
    test_what_is_read_back_scores_as_the_checkpoint("score_list", "popularity", datasets, tmp_path)


def test_the_command_line_lists_the_formats_and_refuses_others(tmp_path: Path) -> None:
    runner = CliRunner()
    names = ", ".join(format_names())
    assert names in " ".join(runner.invoke(app, ["export", "--help"]).output.split())
    with pytest.raises(RecipeError, match=f"choose one of {names}"):
        pipeline.run(Recipe(), tmp_path, format="pickle")
    assert not any(tmp_path.iterdir())
