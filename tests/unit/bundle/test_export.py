"""What export writes: the graph it checks, histories, sizes, the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from app.bundle.export.from_dataset import write_features, write_histories
from app.bundle.format.histories import Events, Histories
from app.data.dataset import Dataset, Part
from app.errors import DataError, RayRecError, UserError
from app.models.base import Content, History, Inputs, Model, ModelConfig
from app.models.build import content_of, inputs_of, tables_of
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset


class Dot(Model):
    """The smallest model with embeddings: user times item."""

    def __init__(self, config: ModelConfig, inputs: Inputs, content: Content, tables: Any) -> None:
        super().__init__(config, inputs, content, tables)
        self.users, self.items = tables("user", inputs.users, 4), tables("item", inputs.items, 4)

    def user_rows(self, users: Tensor) -> Tensor:
        rows: Tensor = self.users.lookup(users)
        return rows

    def item_rows(self, items: Tensor) -> Tensor:
        rows: Tensor = self.items.lookup(items)
        return rows

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        return user_rows

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        return (user_state.unsqueeze(1) * item_rows).sum(-1)


class OneRequest(Dot):
    """Takes the number of requests for a constant, so a traced graph fits one batch size only."""

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        return (user_state.unsqueeze(1) * item_rows).sum(-1).reshape(len(item_rows), -1)


def built(kind: type[Model], dataset: Dataset) -> Model:
    torch.manual_seed(0)
    config = ModelConfig()
    return kind(config, inputs_of(dataset), content_of(dataset), tables_of(config)).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("export") / "dataset", users=30, items=40, events=600)


def test_the_graph_is_small_and_states_its_shapes(dataset: Dataset, tmp_path: Path) -> None:
    bundle_of(built(Dot, dataset), dataset, tmp_path / "bundle", name="dot")
    graph = onnx.load(tmp_path / "bundle/model.onnx")
    onnx.checker.check_model(graph)
    inputs = {
        node.name: [d.dim_param or d.dim_value for d in node.type.tensor_type.shape.dim]
        for node in graph.graph.input
    }
    assert inputs == {"user": ["B", 4], "items": ["B", "C", 4]}, "what is not used is no input"
    assert [o.version for o in graph.opset_import] == [18]
    assert not graph.graph.initializer, "embeddings are rows, not weights"
    assert (tmp_path / "bundle/model.onnx").stat().st_size < 1000
    assert not list((tmp_path / "bundle").glob("*.data"))


def test_a_graph_that_computes_something_else_is_our_fault(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RayRecError, match="OneRequest must take sizes from") as error:
        bundle_of(built(OneRequest, dataset), dataset, tmp_path / "bundle")
    assert not isinstance(error.value, UserError)
    assert not any(tmp_path.iterdir()), "nothing half-written"


def test_a_model_whose_scores_are_not_finite_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    model = random_model("mlp", dataset)
    with torch.no_grad():
        model.get_submodule("user_half").bias[0] = float("nan")  # type: ignore[index]
    with pytest.raises(DataError, match="not finite"):
        bundle_of(model, dataset, tmp_path / "bundle")


def test_every_history_is_the_last_events_of_all_parts(dataset: Dataset, tmp_path: Path) -> None:
    write_histories(dataset, tmp_path / "history", dataset.schema.history)
    histories = Histories.open(tmp_path / "history")
    users = np.arange(1, dataset.schema.users)
    item, event, time = dataset.recent(users, *dataset.parts)
    for i, user in enumerate(users):
        events, present = histories.events(user), item[i] > 0
        assert events.item.tolist() == item[i][present].tolist()
        assert events.event.tolist() == event[i][present].tolist()
        assert events.time.tolist() == time[i][present].tolist()
    assert len(histories.events(0)) == 0


def test_recent_and_older_items_are_all_that_a_user_met(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bundle.export.from_dataset.BLOCK", 7)
    write_histories(dataset, tmp_path / "history", dataset.schema.history)
    histories = Histories.open(tmp_path / "history")
    long = 0
    for user in range(1, dataset.schema.users):
        parts = dataset.parts
        met = {int(i) for p in parts for i in p.item[p.indptr[user] : p.indptr[user + 1]]}
        older, recent = set(histories.older_items(user).tolist()), set(histories.recent_items(user).tolist())
        assert older | recent == met and not older & recent
        long += bool(older)
    assert long > 5, "some users must have more events than a history holds"


@pytest.mark.parametrize(("step", "kind"), [(1_000_000, np.uint32), (999_999, np.int64)])
def test_times_are_narrow_where_nothing_is_lost(tmp_path: Path, step: int, kind: type) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=5, items=10, events=40)
    for name in ("train", "valid", "test"):
        part = getattr(dataset, name)
        columns = {c: np.array(getattr(part, c)) for c in ("user", "item", "time", "event", "value", "label")}
        columns["time"] = 1_704_067_200_000_000 // step * step + np.arange(len(part)) * step
        Part.save(dataset.path / name, columns, dataset.schema.users)
    changed = Dataset.open(dataset.path, verify=False)
    write_histories(changed, tmp_path / "history", changed.schema.history)
    assert np.load(tmp_path / "history/time.npy").dtype == kind
    rows = slice(int(changed.train.indptr[2]), int(changed.train.indptr[3]))
    events = Histories.open(tmp_path / "history").events(2)
    assert set(changed.train.time[rows][-3:].tolist()) <= set(events.time.tolist())


def test_merging_keeps_time_order_and_drops_repeats() -> None:
    def events(*rows: tuple[int, int]) -> Events:
        item, time = (np.array(c, np.int64) for c in zip(*rows, strict=True))
        return Events(item, np.ones(len(rows), np.int64), time)

    merged = events((1, 10), (2, 20)).merge(events((2, 20), (3, 15), (2, 30)))
    assert list(zip(merged.item, merged.time, strict=True)) == [(1, 10), (3, 15), (2, 20), (2, 30)]


def test_merging_keeps_an_event_of_another_type_in_the_same_moment() -> None:
    """A view and a purchase of an item within one second are two events."""
    known = Events(*(np.array([value]) for value in (5, 1, 10)))
    feedback = Events(*(np.array(values) for values in ([5, 5], [2, 1], [10, 10])))
    merged = known.merge(feedback)
    assert list(zip(merged.item, merged.event, merged.time, strict=True)) == [(5, 1, 10), (5, 2, 10)]


def test_compressed_size_stands_beside_the_float32_size(dataset: Dataset, tmp_path: Path) -> None:
    model = random_model("mlp", dataset)
    full = bundle_of(model, dataset, tmp_path / "full").figures["bytes"]
    small = bundle_of(model, dataset, tmp_path / "small", precision="int8", dense="int8").figures["bytes"]
    assert full["bundle"] == full["float32"]
    assert small["bundle"] < full["bundle"]
    assert small["float32"] == pytest.approx(full["float32"], abs=100), "but for names of precisions"


def test_the_card_has_figures_beside_the_baselines(dataset: Dataset, tmp_path: Path) -> None:
    figures = {
        "figures": {"ndcg@10": 0.31234, "auc": 0.8},
        "baselines": {"popularity": {"ndcg@10": 0.1}},
        "notes": ["x"],
    }
    ranker = bundle_of(built(Dot, dataset), dataset, tmp_path / "bundle", name="dot", figures=figures)
    card = (tmp_path / "bundle/card.md").read_text()
    assert "| ndcg@10 | 0.3123 | 0.1000 |" in card and "| auc | 0.8000 |  |" in card
    assert "40 items for 30 known users" in card and "`dot`" in card
    assert ranker.figures["figures"] == figures["figures"]


def test_fitted_features_go_along_without_their_values(dataset: Dataset, tmp_path: Path) -> None:
    fitted = dataset.path / "features/item"
    fitted.mkdir(exist_ok=True)
    (fitted / "state.json").write_text("[]")
    np.save(fitted / "0.edges.npy", np.arange(3))
    write_features(dataset, tmp_path)
    copied = {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "features").rglob("*") if p.is_file()}
    assert copied == {"features/item/state.json", "features/item/0.edges.npy"}


def test_the_default_event_type_is_the_most_frequent(dataset: Dataset, tmp_path: Path) -> None:
    ranker = bundle_of(built(Dot, dataset), dataset, tmp_path / "bundle", name="dot")
    assert ranker.info.events[ranker.info.default_event] == "view"
