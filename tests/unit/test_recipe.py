"""A recipe is checked key by key, and says which key is wrong."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.errors import RecipeError
from app.features.kinds import feature_class, kind_names, kind_of
from app.recipe import AttributeFile, Outlier, Recipe, parse
from app.recipe_toml import load, parse_override, to_toml


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults_need_nothing_and_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, to_toml(Recipe()))
    assert load(path) == Recipe()


def test_tables_in_comments_are_valid_once_uncommented() -> None:
    text = re.sub(r"^# (\[|\w+ = \S)", r"\1", to_toml(Recipe()), flags=re.MULTILINE)
    recipe = parse(tomllib.loads(text), "test")
    assert [kind_of(feature) for feature in recipe.features.item] == kind_names()
    assert recipe.data.outliers == [Outlier(column="")]
    assert (recipe.data.items, recipe.data.users) == (AttributeFile(files=[], id=""),) * 2


def keys_of(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{path}{name}.")
        else:
            yield path + name, field


def test_every_key_says_what_it_means() -> None:
    keys = [*keys_of(Recipe), *keys_of(Outlier, "data.outliers."), *keys_of(AttributeFile, "data.items.")]
    assert [name for name, field in keys if not field.description] == []
    for kind in kind_names():
        keys_of_kind = dataclasses.fields(feature_class(kind))
        assert [field.name for field in keys_of_kind if not field.metadata.get("description")] == []


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
    assert recipe.override({"train.epochs": 3}).features == recipe.features


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3", r"unknown key 'train\.epoch'.*did you mean 'epochs'"),
        ("[trian]\nepochs = 3", r"unknown key 'trian'.*did you mean 'train'"),
        ("[train]\nepochs = 'three'", r"train\.epochs = 'three'"),
        ("[train]\nepochs = 0", r"train\.epochs = 0"),
        ("[train]\nlearning_rate = nan", r"train\.learning_rate"),
        ("[data.items]\nfiles = ['a.csv']\nidd = 'i'", r"unknown key 'data\.items\.idd'.*did you mean 'id'"),
        ("[[data.outliers]]\ncolum = 'x'", r"outliers\.0\.colum'.*did you mean 'column'"),
        ("[[data.outliers]]\ncolumn = 'x'\ntreshold = 2", r"0\.treshold'.*did you mean 'threshold'"),
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
    events = ["log/*.csv", "$SHOP/e.csv", "s3://bucket/x", "/abs.csv", "store:runs/x.store", "store:/x.store"]
    path = write(tmp_path, f"[data]\nevents = {events}")
    assert load(path).data.events == [
        str(tmp_path / "log/*.csv"),
        "/data/shop/e.csv",
        "s3://bucket/x",
        "/abs.csv",
        f"store:{tmp_path}/runs/x.store",
        "store:/x.store",
    ]
    monkeypatch.delenv("SHOP")
    with pytest.raises(RecipeError, match=r"\$SHOP.*not set"):
        load(path)


@settings(deadline=None)  # the first call imports the kinds of features
@given(st.text(max_size=50))
def test_any_text_survives_toml(text: str) -> None:
    recipe = Recipe(name=text)
    assert parse(tomllib.loads(to_toml(recipe)), "test").name == text


def test_override_values_are_typed() -> None:
    assert parse_override("a.b=3") == ("a.b", 3)
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("a.b=true") == ("a.b", True)
    assert parse_override("a.b=plain words") == ("a.b", "plain words")
