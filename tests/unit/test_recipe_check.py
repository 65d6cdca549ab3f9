"""A recipe's mistakes are listed all at once, before data are read or Ray starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import RecipeError
from app.models.discovery import model_class, model_names
from app.recipe import Recipe, parse
from app.recipe_check import check_recipe, closed_forms, load_checked, model_sources

MISTAKES = """
epochs = 3
[data]
events = ["e.csv"]
evnet = "action"
[train]
metric = "ndgc@10"
learning_rate = "fast"
[evaluate]
baselines = ["item_knm", "popularity"]
candidates = "listed"
[export]
columns = ["pice"]
[serve]
port = 99999
min_replicas = 3
[[features.item]]
column = "price"
normalize = "log"
"""


def test_every_mistake_is_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(MISTAKES)
    with pytest.raises(RecipeError) as caught:
        load_checked(path)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"{path}: 10 mistakes"
    for text in (
        "unknown key 'epochs' - epochs belongs to [train]",
        "unknown key 'data.evnet' - did you mean 'event'?",
        "train.metric: no figure 'ndgc@10' - did you mean 'ndcg@10'?",
        "train.learning_rate = 'fast': ",
        "evaluate.baselines: no model 'item_knm' - did you mean 'item_knn'?",
        'evaluate.candidates: candidates = "listed", and no test file lists any',
        "export.columns: no column of items 'pice' - did you mean 'price'?",
        "serve.port = 99999: ",
        "min_replicas 3 exceeds max_replicas 2",
        "unknown key 'features.item.0.normalize' - did you mean 'normalise'?",
    ):
        assert len([line for line in lines if text in line]) == 1, text


def test_a_mistake_is_shown_without_the_heavy_imports(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(MISTAKES)
    program = (
        "import sys, app.cli\n"
        f"sys.argv = ['rayrec', 'check', {str(path)!r}]\n"
        "try: app.cli.main()\n"
        "except SystemExit as end:\n"
        "    print(end.code, [m for m in ('ray', 'torch', 'polars') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"name": "mlq"}}, "model.name: no model 'mlq' - did you mean 'mlp'?"),
        (
            {"model": {"name": "mlp", "epochs": 3}},
            r"\[model\] unknown key 'epochs' - epochs belongs to \[train\]",
        ),
        ({"model": {"name": "mlp", "widht": 3}}, r"\[model\] unknown key 'widht' - did you mean 'width'?"),
        ({"model": {"name": "mlp", "heads": -1}}, r"\[model\] heads = -1"),
        ({"model": {"name": "auto", "width": 3}}, "model.width = 3, and auto has no keys of its own"),
        ({"evaluate": {"baselines": ["mlp"]}}, "'mlp' is trained.*choose among .*item_knn"),
        ({"train": {"metric": "ndcg"}}, "train.metric: no figure 'ndcg'"),
        ({"train": {"metric": "ndcg@0"}}, "train.metric: no figure 'ndcg@0'"),
        ({"export": {"columns": ["title"]}}, "export.columns: no column of items 'title' - .*there are none"),
        ({"data": {"positive": ["buy"]}}, "data.positive: 'buy' is a type of events.*data.event"),
        (
            {"data": {"event": "e", "event_types": ["view", "buy"], "positive": ["buyy"]}},
            "data.positive: no type of events 'buyy' - did you mean 'buy'?",
        ),
        (
            {"data": {"timestamp": ""}, "split": {"method": "time"}},
            "split.method: 'time', and the events have",
        ),
        ({"data": {"timestamp": ""}, "split": {"method": "leave_last"}}, 'split.method:.*"leave_random"'),
        ({"data": {"positive_above": 3}}, "data.positive_above: 3, and events have no value"),
        (
            {"data": {"positive_above": 3, "value": "stars", "missing": {"stars": "median"}}},
            "data.missing.stars: 'median'.*drop or constant",
        ),
        ({"data": {"row_order": True}}, "data.row_order: true, and events are ordered by .*'timestamp'"),
        ({"data": {"duplicate_key": ["user"]}}, "data.duplicate_key: has no effect"),
    ],
)
def test_each_mistake_names_key_value_and_remedy(content: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        check_recipe(parse(content, "test"))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [
        {"train": {"metric": "recall@7"}},
        {"train": {"metric": "auc"}},
        {"export": {"columns": ["any"]}, "data": {"items": {"files": ["i.csv"], "id": "id"}}},
        {"export": {"columns": ["a"]}, "data": {"items": {"files": ["i"], "id": "id", "columns": ["a"]}}},
        {"export": {"columns": ["a"]}, "data": {"item_columns": ["a"]}},
        {"evaluate": {"candidates": "listed"}, "split": {"method": "given", "negatives": "n"}},
        {"data": {"sources": [{"files": ["buy.csv"], "event": "buy"}], "positive": ["buy"]}},
        {"data": {"layout": "impressions"}, "split": {"method": "leave_random"}},
        {"data": {"timestamp": "", "row_order": True}, "split": {"method": "leave_last"}},
        {"model": {"name": "mlp", "hidden": [8]}},
    ],
)
def test_what_can_be_right_is_not_refused(content: dict[str, object]) -> None:
    check_recipe(parse(content, "test"))


def test_defaults_have_no_mistake() -> None:
    check_recipe(Recipe())


def test_models_are_known_without_their_import() -> None:
    assert list(model_sources()) == model_names()
    assert closed_forms() == [name for name in model_names() if not model_class(name).learns]


def test_a_session_feature_without_the_pause_that_ends_a_session_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"features.context.+data.session_gap"):
        check_recipe(parse({"features": {"context": ["session"]}}, "test"))
    check_recipe(parse({"data": {"session_gap": "30m"}, "features": {"context": ["session"]}}, "test"))


@pytest.mark.parametrize(("kind", "package"), [("text_vector", "minilm"), ("image_vector", "pillow")])
def test_a_package_that_is_not_installed_is_named(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {"features": {"item": [{"column": "title", "kind": kind}]}}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"features.item.title.+{package}.+pip install"):
        check_recipe(parse(features, "test"))


def test_patterns_filters_moments_and_pauses_that_cannot_be() -> None:
    wrong = {"time_format": "%H:%M %p", "where": "unit price > 1", "latest": "soon", "timestamp": ""}
    with pytest.raises(RecipeError) as caught:
        check_recipe(parse({"data": {"events": ["log.csv"], **wrong, "session_gap": "30m"}}, "test"))
    for key in ("time_format", "where", "latest", "session_gap"):
        assert f"data.{key}: " in caught.value.what


def compressing(model: str, **compress: object) -> Recipe:
    return parse(
        {"model": {"name": model, "width": 8} if model == "sasrec" else {"name": model}}
        | {"compress": compress},
        "test",
    )


@pytest.mark.parametrize(
    ("model", "compress", "message"),
    [
        ("mlp", {"steps": ["prune", "prune"]}, "compress.steps: 'prune' is listed twice"),
        (
            "mlp",
            {"steps": ["product", "svd"]},
            "'svd' cannot make product codes narrower - name 'svd' before 'product'",
        ),
        (
            "mlp",
            {"steps": ["low_rank", "product", "neurons"]},
            "cannot follow - name 'neurons' before 'low_rank', 'product'",
        ),
        ("mlp", {"steps": ["prune", "low_rank"]}, "are lost - name 'low_rank' before 'prune'"),
        ("ease", {"steps": ["finetune"]}, "'finetune' trains, and ease is fitted in closed form"),
        ("mlp", {"steps": ["distill"]}, "compress.distill.student: the student is as large as its teacher"),
        (
            "mlp",
            {"steps": ["prune", "distill"], "distill": {"student": {"width": 4}}},
            "'distill' begins a new model, and what was done before it is lost - name it first",
        ),
        (
            "mlp",
            {"steps": ["distill"], "distill": {"student": {"width": 4}, "teachers": ["nowhere"]}},
            "compress.distill.teachers: 'nowhere' is no checkpoint",
        ),
        (
            "sasrec",
            {"steps": ["distill"], "distill": {"student": {"heads": 3}}},
            "compress.distill.student: heads = 3: Value error, width is 8, which is not a multiple of it",
        ),
        ("sasrec", {"steps": ["distill"], "distill": {"student": {"depth": 3}}}, "depth"),
    ],
)
def test_steps_of_compression_are_checked_before_the_training(
    model: str, compress: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe(compressing(model, **compress))
    assert message in str(caught.value)
    assert "mistakes" not in str(caught.value), "there is one"


def test_steps_that_a_model_can_take_are_no_mistakes() -> None:
    check_recipe(compressing("ease", steps=["product"]))
    check_recipe(compressing("sasrec", steps=["distill", "product"], distill={"student": {"width": 4}}))
