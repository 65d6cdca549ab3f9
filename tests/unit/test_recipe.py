"""A recipe is checked key by key, and says which key is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RecipeError
from app.recipe import Recipe, load, parse, parse_override, to_toml


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults_need_nothing_and_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, to_toml(Recipe()))
    assert load(path) == Recipe()


def test_a_recipe_with_everything_round_trips() -> None:
    recipe = parse(
        {
            "name": 'a "quoted" name',
            "data": {"events": ["e.csv"], "outliers": [{"column": "price"}], "missing": {"price": "median"}},
            "features": {"item": [{"column": "price"}, {"column": "title", "kind": "text"}]},
            "model": {"name": "mlp", "hidden": [64, 32]},
        },
        "test",
    )
    assert parse(tomllib.loads(to_toml(recipe)), "test") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3", r"unknown key 'train\.epoch'.*did you mean 'epochs'"),
        ("[trian]\nepochs = 3", r"unknown key 'trian'.*did you mean 'train'"),
        ("[train]\nepochs = 'three'", r"train\.epochs = 'three'"),
        ("[train]\nepochs = 0", r"train\.epochs = 0"),
        ("[train]\nlearning_rate = nan", r"train\.learning_rate"),
        ("[split]\nmethod = 'magic'", r"split\.method = 'magic'.*leave_last"),
        ("[serve]\nport = 99999", r"serve\.port = 99999"),
        ("[serve]\nmin_replicas = 3\nmax_replicas = 2", r"min_replicas 3 exceeds max_replicas 2"),
        ("[features]\nitem = [{column = 'x', kind = 'sound'}]", r"features\.item\.0"),
        ("train = 3", r"train = 3"),
        ("[train\nepochs = 3", r"not valid TOML"),
    ],
)
def test_mistakes_name_key_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(write(tmp_path, text))
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value)


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="is a folder"):
        load(tmp_path)


def test_overrides_take_precedence(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nepochs = 3\nbatch_size = 7")
    recipe = load(path, ["train.epochs=5", "split.method=time", "model.hidden=[8, 4]"])
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.split.method) == (5, 7, "time")
    assert recipe.model.hyperparameters == {"hidden": [8, 4]}
    assert recipe.override({"train.epochs": 9}).train.epochs == 9
    with pytest.raises(RecipeError, match="no override"):
        load(path, ["train.epochs"])
    with pytest.raises(RecipeError, match="seed"):
        load(path, ["seed.x=1"])


def test_paths_count_from_the_recipe_and_take_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP", "/data/shop")
    path = write(tmp_path, '[data]\nevents = ["log/*.csv", "$SHOP/e.csv", "s3://bucket/x", "/abs.csv"]')
    assert load(path).data.events == [
        str(tmp_path / "log/*.csv"),
        "/data/shop/e.csv",
        "s3://bucket/x",
        "/abs.csv",
    ]
    monkeypatch.delenv("SHOP")
    with pytest.raises(RecipeError, match=r"\$SHOP.*not set"):
        load(path)


@given(st.text(max_size=50))
def test_any_text_survives_toml(text: str) -> None:
    recipe = Recipe(name=text)
    assert parse(tomllib.loads(to_toml(recipe)), "test").name == text


def test_override_values_are_typed() -> None:
    assert parse_override("a.b=3") == ("a.b", 3)
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("a.b=true") == ("a.b", True)
    assert parse_override("a.b=plain words") == ("a.b", "plain words")
