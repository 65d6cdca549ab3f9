"""A model in a file of the user's: checked, trained, carried along, and served without its code."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import app.models as models
import app.tables as tables
from app import pipeline
from app.bundle.request.requests import RankRequest
from app.bundle.runtime import Ranker
from app.cli import app as cli
from app.errors import RecipeError
from app.evaluation.contract import PROMISES, check_model
from app.models.build import build_model
from app.models.discovery import model_class, model_names
from app.recipe import ModelSection, Recipe, parse
from app.recipe_toml import load
from app.tables.discovery import table_names
from app.training.checkpoint import load_checkpoint
from tests.tiny import tiny_dataset

MODEL = '''
"""A matrix factorisation of a user's own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.tables.base import Tables


class MyConfig(ModelConfig):
    width: int = Field(8, ge=1)


class MyModel(Model):
    Config = MyConfig
    SPACE: ClassVar[dict[str, Any]] = {"width": [4, 8]}
    reads = "all"

    def __init__(self, config: MyConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.users = tables("user", inputs.users, config.width)
        self.items = tables("item", inputs.items, config.width + 1)

    def user_rows(self, users: Tensor) -> Tensor:
        return self.users.lookup(users)

    def item_rows(self, items: Tensor) -> Tensor:
        return self.items.lookup(items)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        return torch.cat([user_rows, torch.ones_like(user_rows[:, :1])], 1)

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        return (user_state.unsqueeze(1) * item_rows).sum(-1)
'''
RECIPE = """
name = "mine"

[data]
events = ["log.csv"]

[model]
file = "my_model.py"
width = 4

[train]
epochs = 2
workers = 0
"""
# What is changed in the model above, and the promise that this breaks.
BREAKS = {
    "scores_every_candidate": (".sum(-1)", ".sum(-1).double()"),
    "makes_rows_in_advance": (
        "return self.items.lookup(items)",
        "return self.items.lookup(items) * items.float().mean()",
    ),
    "scores_a_request_as_if_alone": (".sum(-1)", ".sum(-1) + user_state.sum()"),
    "reads_a_past_of_any_length": (
        "torch.ones_like(user_rows[:, :1])",
        "history.mask.mean(1, keepdim=True)",
    ),
    "scores_candidates_in_any_order": (".sum(-1)", ".sum(-1) + torch.arange(item_rows.shape[1])"),
    "follows_the_past_alone": (
        'reads = "all"\n',
        """trains_on = "sequences"

    def states(self, user_rows: Tensor, history_rows: Tensor, history: History) -> Tensor:
        state = self.user_state(user_rows, history_rows, history, user_rows)
        return (state * history.mask.sum()).unsqueeze(1).expand(-1, history.mask.shape[1], -1)
""",
    ),
    "learns_rows_by_heart": (
        "    def score(",
        "    def loss(self, batch: Any) -> Tensor:\n        return -super().loss(batch)\n\n    def score(",
    ),
    "learns_alike_under_a_seed": (".sum(-1)", ".sum(-1) * __import__('random').random()"),
    "asks_for_training_that_there_is": ('reads = "all"', 'reads = "all"\n    TRAINING = {"epoch": 3}'),
    "learns_with_every_weight": (
        "self.users = ",
        "self.spare = torch.nn.Parameter(torch.ones(1))\n        self.users = ",
    ),
    "scores_unknown_ids": (
        "return self.users.lookup(users)",
        "return self.users.lookup(users) / users.unsqueeze(-1)",
    ),
    "treats_untrained_ids_as_unknown": (
        "return self.users.lookup(users)",
        "return self.users.lookup(users) + torch.rand(1)",
    ),
    "exports": (".sum(-1)", ".sum(-1).reshape(len(item_rows), int(item_rows.shape[1]))"),
    "restores_from_its_state": (".sum(-1)", ".sum(-1) + vars(self).setdefault('shift', torch.rand(1))"),
    "searches_what_it_can_be": ('{"width": [4, 8]}', '{"width": [4, 0]}'),
    "takes_every_kind_of_table": (
        'tables("user", inputs.users, config.width)',
        "torch.nn.Embedding(inputs.users, config.width)\n        self.users.lookup = self.users.forward",
    ),
}


@pytest.fixture(autouse=True)
def loaded_modules() -> Iterator[None]:
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("rayrec_model_"):
            del sys.modules[name]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "my_model.py").write_text(MODEL)
    (folder / "recipe.toml").write_text(RECIPE)
    return load(folder / "recipe.toml")


def own(tmp_path: Path, text: str) -> ModelSection:
    (tmp_path / "own.py").write_text(text)
    return ModelSection.model_validate({"file": str(tmp_path / "own.py")})


class TestThroughThePipeline:
    def test_from_the_file_to_a_bundle_that_has_none_of_its_code(
        self, recipe: Recipe, tmp_path: Path
    ) -> None:
        assert (recipe.model.name, recipe.model.hyperparameters) == ("my_model", {"width": 4})
        dataset = tiny_dataset(tmp_path / "out" / "dataset")
        for stage in ("train", "compress", "evaluate", "export"):
            pipeline.STAGES[stage](recipe, tmp_path / "out")
        for name in ("checkpoint", "compressed"):
            assert (tmp_path / "out" / name / "model.py").read_text() == MODEL
        bundle = tmp_path / "out" / "bundle"
        assert not list(bundle.rglob("*.py"))
        assert "`my_model`" in (bundle / "card.md").read_text()
        shutil.rmtree(tmp_path / "recipes")
        checkpoint = load_checkpoint(tmp_path / "out" / "compressed", dataset)
        assert (checkpoint.name, type(checkpoint.model).__name__) == ("my_model", "MyModel")
        [answer] = Ranker.open(bundle).rank([RankRequest("u1", ["i1", "i2", "i3"])])
        assert len(answer.items) == 3

    def test_its_content_is_part_of_the_cache_key_and_its_path_is_not(
        self, recipe: Recipe, tmp_path: Path
    ) -> None:
        (tmp_path / "moved.py").write_text(MODEL)
        moved = recipe.override({"model.file": str(tmp_path / "moved.py")})
        assert moved.part("model") == recipe.part("model")
        (tmp_path / "moved.py").write_text(MODEL + "\n# another content\n")
        assert moved.part("model") != recipe.part("model")

    def test_a_worker_of_ray_train_has_it(self, recipe: Recipe, tmp_path: Path, ray_local: None) -> None:
        tiny_dataset(tmp_path / "out" / "dataset", users=30, items=20, events=200)
        settings = recipe.override({"train.workers": 1, "train.epochs": 1})
        artifact = pipeline.train(settings, tmp_path / "out")
        assert artifact.figures["epochs"] == 1
        assert (artifact.path / "model.py").read_text() == MODEL


class TestCheck:
    def test_a_good_model_keeps_every_promise(self, recipe: Recipe) -> None:
        assert check_model(recipe.model) == {"model": "my_model", "promises": len(PROMISES)}

    @pytest.mark.parametrize("promise", [promise.__name__ for promise in PROMISES])
    def test_a_broken_promise_is_named(self, promise: str, tmp_path: Path) -> None:
        before, after = BREAKS[promise]
        assert before in MODEL
        with pytest.raises(RecipeError, match=rf"\n  {promise}: .+ But .+") as caught:
            check_model(own(tmp_path, MODEL.replace(before, after)))
        assert "own.py" in caught.value.where
        assert "Traceback" not in str(caught.value)

    def test_an_exception_in_the_model_comes_with_its_line(self, tmp_path: Path) -> None:
        text = MODEL.replace("return self.items.lookup(items)", "return self.items.lookup(items.missing)")
        line = next(n for n, code in enumerate(text.splitlines(), 1) if "missing" in code)
        with pytest.raises(RecipeError, match=f"line {line} raised AttributeError: "):
            check_model(own(tmp_path, text))

    def test_the_verb_checks_the_model(self, recipe: Recipe, tmp_path: Path) -> None:
        from typer.testing import CliRunner

        result = CliRunner().invoke(
            cli, ["check", str(tmp_path / "recipes" / "recipe.toml"), "--model", "--json"]
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == {"model": "my_model", "promises": len(PROMISES)}


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x = 1\n", "the file defines no subclass of Model"),
            (MODEL + "\n\nclass Other(MyModel):\n    pass\n", "the file defines MyModel, Other"),
            ("a = 1\nb = (\n", "line 2: SyntaxError: "),
            ("import no_such_package\n", "line 1: ModuleNotFoundError: "),
            ("def f():\n    return 1 / 0\n\n\nf()\n", "line 2: ZeroDivisionError: "),
        ],
    )
    def test_a_file_that_is_no_model_is_refused(self, text: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=re.escape(message)) as caught:
            model_class(own(tmp_path, text).source)
        assert caught.value.where.endswith("own.py")

    def test_a_helper_class_is_no_second_model(self, tmp_path: Path) -> None:
        section = own(tmp_path, MODEL + "\n\nclass _Helper(MyModel):\n    pass\n")
        assert model_class(section.source).__name__ == "MyModel"

    def test_an_absent_file_is_named(self, tmp_path: Path) -> None:
        recipe = parse({"model": {"file": str(tmp_path / "absent.py")}}, "test")
        for action in (lambda: model_class(recipe.model.source), lambda: recipe.part("model")):
            with pytest.raises(RecipeError, match=r"absent\.py: the file cannot be read"):
                action()

    def test_nothing_is_written_beside_it(self, recipe: Recipe, tmp_path: Path) -> None:
        model_class(recipe.model.source)
        assert sorted(p.name for p in (tmp_path / "recipes").iterdir()) == ["my_model.py", "recipe.toml"]


class TestOneFileIsEnough:
    def test_a_model_of_rayrec(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "own.py").write_text(MODEL)
        (tmp_path / "helper.py").write_text("from app.models.base import Model\n")
        before = model_names()
        monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
        assert model_names() == sorted([*before, "own"])
        dataset = tiny_dataset(tmp_path / "dataset")
        assert type(build_model("own", {"width": 4}, dataset)).__name__ == "MyModel"
        for name in ("own", "helper"):
            sys.modules.pop(f"app.models.{name}")

    def test_a_kind_of_table(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "constant.py").write_text(TABLE)
        before = table_names()
        assert before == ["dense", "hashed"]
        monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
        assert table_names() == sorted([*before, "constant"])
        section: dict[str, Any] = {"table": "constant", "table_options": {"value": 2.0}}
        model = build_model("mlp", section, tiny_dataset(tmp_path / "dataset"))
        assert type(model.get_submodule("users")).__name__ == "ConstantTable"
        with pytest.raises(RecipeError, match=r"model\.table_options: value: "):
            build_model("mlp", {"table": "constant"}, tiny_dataset(tmp_path / "dataset"))
        sys.modules.pop("app.tables.constant")


TABLE = '''
"""A table whose rows are all alike."""

from __future__ import annotations

import torch
from torch import Tensor

from app.tables.base import Table, TableOptions


class ConstantOptions(TableOptions):
    value: float


class ConstantTable(Table):
    Options = ConstantOptions

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.width, self.value = width, value

    @classmethod
    def create(cls, rows: int, width: int, options: ConstantOptions) -> Table:
        return cls(width, options.value)

    def lookup(self, ids: Tensor) -> Tensor:
        return torch.full((*ids.shape, self.width), self.value)

    def set_unknown(self, row: Tensor) -> None:
        pass
'''


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(RecipeError, match="unknown model 'base'"):
        model_class("base")
    with pytest.raises(RecipeError, match=r"choose one of bilinear, .+ or name a file of your own"):
        model_class("no_such")
