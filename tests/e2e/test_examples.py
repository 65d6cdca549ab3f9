"""The examples: recipes that fit their data, and a quickstart that runs."""

from __future__ import annotations

import importlib.util
import re
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from app.data.demo_shop.generate import generate
from app.models.discovery import model_config
from app.recipe import Recipe
from app.recipe_check import check_recipe
from app.recipe_toml import load, to_toml
from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
RECIPES = sorted(path.name for path in EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_names_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_DATA", "/data")
    recipe = load(EXAMPLES / name)
    model_config(recipe.model.name, recipe.model.hyperparameters)
    assert all(file.startswith("/data/") for file in files_of(recipe))
    verb = "tune" if "minutes" in recipe.tune.model_fields_set else "run"
    assert f"rayrec {verb} examples/{name}" in (EXAMPLES / name).read_text()
    check_recipe(recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_data(name: str, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_DATA", str(real_data))
    recipe = load(EXAMPLES / name)
    for file in files_of(recipe):
        assert Path(file).is_file()
    events = [file for file in recipe.data.events if file.endswith(".parquet")]
    for file in events:
        columns = {recipe.data.user, recipe.data.item, *recipe.data.time_columns}
        assert columns <= set(pq.read_schema(file).names)
    for source in filter(None, [recipe.data.items, recipe.data.users]):
        for file in source.files:
            assert {source.id, *source.columns} <= set(pq.read_schema(file).names)


def files_of(recipe: Recipe) -> list[str]:
    """Every input file of a recipe."""
    aside = [source.files for source in (recipe.data.items, recipe.data.users) if source]
    return [*recipe.data.events, *recipe.split.test_events, *(file for files in aside for file in files)]


def test_an_unset_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYREC_DATA", raising=False)
    with pytest.raises(Exception, match=re.escape("RAYREC_DATA")):
        load(EXAMPLES / "beauty.toml")


def test_the_quickstart_runs(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / "quickstart.py").read_text()
    assert len(text.splitlines()) < 30
    generate(tmp_path / "shop", users=120, items=60, events=4000, seed=3)
    recipe = tmp_path / "shop" / "recipe.toml"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = {"train.epochs": 1, "train.workers": 0, "serve.port": port, "serve.max_replicas": 1}
    recipe.write_text(to_toml(load(recipe).override(small)))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(recipe))
    here, there = capsys.readouterr().out.splitlines()
    assert here.startswith("here: [Scored(")
    assert there.startswith("over HTTP: [Scored(")
