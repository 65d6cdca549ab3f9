"""What is served is what was evaluated: replayed over the runtime and over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import pipeline
from app.parity import compare_bundle
from app.recipe import Recipe, parse
from tests.tiny import tiny_dataset

RECIPE = {
    "name": "tiny",
    "model": {"name": "mlp"},
    "train": {"workers": 0, "epochs": 1, "batch_size": 256},
    "evaluate": {"bootstrap": 0, "baselines": []},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    out = tmp_path_factory.mktemp("parity")
    tiny_dataset(out / "dataset", users=60, events=900)
    recipe: Recipe = parse(RECIPE, "test")
    for stage in (pipeline.train, pipeline.compress, pipeline.evaluate, pipeline.export):
        stage(recipe, out)
    return recipe, out


def test_a_bundle_answers_as_the_evaluation_ranks_over_the_runtime_and_over_http(
    run: tuple[Recipe, Path],
) -> None:
    recipe, out = run
    compared = compare_bundle(recipe, out, out / "bundle")
    assert compared["requests"] == 60
    for way in ("runtime", "service"):
        assert (compared[way]["ids"], compared[way]["order"], compared[way]["differ"]) == (1, 1, [])
        assert compared[way]["score"] < 1e-3


def test_a_bundle_of_other_weights_is_seen_to_differ(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, out = run
    other = recipe.override({"seed": 7, "train.learning_rate": 0.05})
    (tmp_path / "dataset").symlink_to(out / "dataset")
    for stage in (pipeline.train, pipeline.compress):
        stage(other, tmp_path)
    compared = compare_bundle(other, tmp_path, out / "bundle", serve=False)
    assert compared["runtime"]["ids"] == 1
    assert compared["runtime"]["different"] > 30 and compared["runtime"]["score"] > 1e-3
