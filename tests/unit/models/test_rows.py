"""Rows of ids that training did not meet: the same in torch, in the graph for new items, and on average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.bundle.export.item_graph import write_item_graph
from app.bundle.export.static_rows import static_rows
from app.bundle.format.layout import ITEM_GRAPH
from app.bundle.format.session import Graph
from app.data.dataset import Dataset
from app.models.build import build_model
from app.models.rows import average_unknown, rows_of
from app.tables.projected import leading_basis
from tests.bundles import random_model
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("rows") / "dataset", untrained=5)


@pytest.mark.parametrize("name", ["bilinear", "mlp", "neumf", "two_tower"])
def test_a_new_item_with_the_content_of_an_untrained_one_gets_its_rows(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    model = random_model(name, dataset)
    rows = static_rows(model)
    assert write_item_graph(model, tmp_path) > 0
    graph = Graph(tmp_path / ITEM_GRAPH, 1)
    untrained = np.flatnonzero(~dataset.trained["item"])[1:]
    assert len(untrained) == 5
    for row in untrained:
        content = {key: dataset.feature(key)[row : row + 1] for key in ("item_dense", "item_category")}
        content["item_category"] = content["item_category"].astype(np.int64)
        computed = graph.run({key: values for key, values in content.items() if key in graph.inputs})
        expected = np.concatenate([rows["item"][row], rows["history"][row]])
        np.testing.assert_allclose(computed[0], expected, atol=1e-5)


def test_where_rows_are_stored_by_coefficients_a_new_item_gets_these(
    dataset: Dataset, tmp_path: Path
) -> None:
    model = random_model("two_tower", dataset)
    bases = {"item": leading_basis(static_rows(model)["item"], 5, seed=0)}
    plain, narrow = tmp_path / "plain", tmp_path / "narrow"
    rows = []
    for folder, given in ((plain, {}), (narrow, bases)):
        folder.mkdir()
        assert write_item_graph(model, folder, given) > 0
        graph = Graph(folder / ITEM_GRAPH, 1)
        content = {key: dataset.feature(key)[7:8] for key in ("item_dense", "item_category")}
        content["item_category"] = content["item_category"].astype(np.int64)
        rows.append(graph.run({key: content[key] for key in graph.inputs})[0])
    width = bases["item"].shape[1]
    np.testing.assert_allclose(rows[1][:5], bases["item"] @ rows[0][:width], atol=1e-5)
    np.testing.assert_allclose(rows[1][5:], rows[0][width:], atol=1e-5)


def test_untrained_ids_of_equal_content_have_equal_rows(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", untrained=5, content=False)
    rows = static_rows(random_model("mlp", dataset))
    for kind, side in (("user", "user"), ("item", "item"), ("history", "item")):
        unknown = rows[kind][~dataset.trained[side]]
        np.testing.assert_array_equal(unknown, np.broadcast_to(rows[kind][0], unknown.shape))


def test_a_model_that_cannot_be_vectorised_gets_the_same_rows(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("mlp", dataset)
    ids = torch.arange(dataset.schema.items)
    expected, original = rows_of(model, "item", ids), model.item_rows

    def with_a_branch(items: Tensor) -> Tensor:
        rows = original(items)
        return rows if float(rows.abs().sum()) > 0 else rows + 1  # vmap cannot ask for a number

    monkeypatch.setattr(model, "item_rows", with_a_branch)
    torch.testing.assert_close(rows_of(model, "item", ids), expected)


@pytest.mark.parametrize(
    ("table", "options"), [("dense", {}), ("hashed", {"buckets": 16})], ids=["dense", "hashed"]
)
def test_an_unknown_id_that_training_never_met_is_the_mean_of_the_trained_ones(
    table: str, options: dict[str, Any], dataset: Dataset
) -> None:
    model = build_model("neumf", {"table": table, "table_options": options}, dataset)
    tables = {name: model.get_submodule(name) for name in ("users", "items", "past")}
    with torch.no_grad():
        tables["users"].set_unknown(torch.ones(48))  # as if ids of users had been hidden
        average_unknown(model)
        zero = torch.zeros(1, dtype=torch.int64)
        assert tables["users"].lookup(zero).tolist() == [[1.0] * 48]
        for name in ("items", "past"):
            trained = torch.from_numpy(np.flatnonzero(dataset.trained["item"]))
            mean = tables[name].lookup(trained).mean(0, keepdim=True)
            torch.testing.assert_close(tables[name].lookup(zero), mean, atol=1e-6, rtol=1e-4)
        category = model.get_submodule("item_content.tables.0")
        assert not category.lookup(zero).any(), "what is no id keeps its row"
