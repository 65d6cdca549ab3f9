"""The arithmetic of DCN-V2, DLRM and DeepFM, against their papers' formulas written out."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.data.dataset import Dataset
from app.evaluation.contract import PROMISES, Subject, broken_by
from app.models.dcn import Cross, Dcn
from app.models.deepfm import Deepfm
from app.models.dlrm import Dlrm
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset", untrained=5)


def parts(subject: Subject) -> tuple[Any, Tensor, Tensor, Tensor]:
    """The model, its logits, and rows of 3 requests (3, Q) and their 4 candidates each (3, 4, R)."""
    model, batch = subject.model, subject.batch(3, 4)
    with torch.no_grad():
        return model, model(batch), model.state(batch), model.item_rows(batch.item)


def deep(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.layers(first).squeeze(-1)
    return logits


@torch.no_grad()
@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_two_cross_layers_are_those_of_the_paper(structure: str, dataset: Dataset) -> None:
    model, logits, state, item = parts(Subject("dcn", dataset, {"structure": structure, "crosses": 2}))
    assert isinstance(model, Dcn)
    user = state[:, None, : model.about_user].expand(-1, 4, -1)
    x0 = torch.cat([user, item], -1)
    width = x0.shape[-1]
    whole = torch.cat([model.user_half.weight, model.item_half.weight], 1)  # W of the first layers
    first = x0 @ whole.T + model.user_half.bias
    x1 = x0 * first[..., :width] + x0
    x2 = x0 * (x1 @ model.projections[0].weight.T + model.projections[0].bias) + x1
    if structure == "parallel":
        assert model.output is not None
        expected = deep(model, first[..., width:]) + (x2 @ model.output.weight.T).squeeze(-1)
    else:
        assert model.stacked is not None
        expected = deep(model, model.stacked(x2))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_mixture_of_experts_is_weighed_by_its_gate() -> None:
    torch.manual_seed(0)
    cross, x0, x = Cross(5, 2, 3), torch.randn(4, 5), torch.randn(4, 5)
    cross.bias.normal_()
    down, gates = torch.randn(3, 2, 5), torch.randn(3, 5)
    projected = torch.cat([*(x @ v.T for v in down), x @ gates.T], 1)
    weight = (x @ gates.T).softmax(1)
    expected = x.clone()
    for e in range(3):
        low = torch.tanh(torch.tanh(x @ down[e].T) @ cross.inner[e])
        expected += weight[:, e : e + 1] * x0 * (low @ cross.expand[e] + cross.bias)
    torch.testing.assert_close(cross(x0, x, projected), expected)


@torch.no_grad()
def test_a_low_rank_is_a_product_of_two_matrices() -> None:
    torch.manual_seed(0)
    cross, x0, x, down = Cross(5, 2, 1), torch.randn(4, 5), torch.randn(4, 5), torch.randn(2, 5)
    expected = x0 * (x @ (down.T @ cross.expand[0])) + x
    torch.testing.assert_close(cross(x0, x, x @ down.T), expected)


@torch.no_grad()
def test_the_machine_adds_the_products_of_all_pairs_of_fields(dataset: Dataset) -> None:
    subject = Subject("deepfm", dataset)
    model, logits, _, item = parts(subject)
    assert isinstance(model, Deepfm)
    batch, width = subject.batch(3, 4), model.config.width
    history = model.history_rows(batch.history.item)
    assert model.pool is not None and model.context_field is not None
    user_fields = [model.user_rows(batch.user), model.pool(history, batch.history)]
    user = torch.cat([*user_fields, model.context_field(batch.context)], 1)
    fields = torch.cat([user[:, None].expand(-1, 4, -1), item], -1).reshape(3, 4, -1, width + 1)
    vectors, weights = fields[..., :width], fields[..., width]
    pairs = [
        (vectors[:, :, i] * vectors[:, :, j]).sum(-1) for i, j in combinations(range(fields.shape[2]), 2)
    ]
    # Of the user id, group, age, two heads and the context; of the item id, hint and the dense features.
    assert len(pairs) == 9 * 8 / 2
    halves = torch.cat([model.user_half.weight, model.item_half.weight], 1)
    first = vectors.flatten(2) @ halves.T + model.user_half.bias
    expected = weights.sum(-1) + torch.stack(pairs).sum(0) + deep(model, first)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_top_layers_see_the_products_of_all_pairs_of_vectors(dataset: Dataset) -> None:
    model, logits, state, item = parts(Subject("dlrm", dataset))
    assert isinstance(model, Dlrm)
    width, first = model.config.width, model.config.hidden[0]
    user = state[:, :-first].reshape(3, -1, width)
    items = item.reshape(3, 4, -1, width)

    def products(vectors: Tensor) -> list[Tensor]:
        return [
            (vectors[..., i, :] * vectors[..., j, :]).sum(-1)
            for i, j in combinations(range(vectors.shape[-2]), 2)
        ]

    among_users = torch.cat([user[:, -1], torch.stack(products(user), -1)], -1)
    mixed = [
        (items[:, :, i] * user[:, None, j]).sum(-1)
        for i in range(items.shape[2])
        for j in range(user.shape[1])
    ]
    among_items = torch.cat([items[:, :, -1], torch.stack([*products(items), *mixed], -1)], -1)
    expected = deep(model, model.user_half(among_users)[:, None] + model.item_half(among_items))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(state[:, -first:], model.user_half(among_users), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("dcn", {"structure": "stacked", "rank": 4, "experts": 2, "heads": 0}),
        ("dcn", {"rank": 4}),
        ("dlrm", {"heads": 0}),
        ("deepfm", {"heads": 0}),
    ],
    ids=str,
)
def test_every_form_keeps_the_promises_of_models(
    name: str, hyperparameters: dict[str, Any], dataset: Dataset
) -> None:
    subject = Subject(name, dataset, hyperparameters)
    assert [broken for promise in PROMISES if (broken := broken_by(subject, promise))] == []


@pytest.mark.parametrize("name", ["dcn", "dlrm", "deepfm"])
def test_ids_alone_are_enough(name: str, tmp_path: Path) -> None:
    """Without attributes, history and context there still are two embeddings to multiply."""
    bare = tiny_dataset(tmp_path / "dataset", content=False)
    subject = Subject(name, bare, {"heads": 0})
    assert broken_by(subject, PROMISES[0]) == "" and broken_by(subject, PROMISES[3]) == ""
