"""What fusion learns from: the items that a step leaves out of a set, and no item that training never met."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.models.base import History, Sequences
from app.models.build import build_model
from app.models.fusion import Fusion, _left_out
from tests.tiny import tiny_dataset

KINDS = ("tokens", "pixels", "vector", "text_vector")


def sets(items: list[list[int]], owner: list[int], target: list[int]) -> Sequences:
    history = torch.tensor(items)
    nothing = torch.zeros(history.shape)
    return Sequences(
        user=torch.arange(1, len(items) + 1),
        history=History(history, (history > 0).long(), nothing, nothing),
        owner=torch.tensor(owner),
        target=torch.tensor(target),
        weight=torch.ones(len(owner)),
        negatives=torch.zeros(0, dtype=torch.int64),
        log_q=torch.zeros(0),
    )


def test_targets_are_those_that_were_left_out() -> None:
    batch = sets([[0, 7, 3], [5, 3, 9]], owner=[0, 0, 1, 1, 1], target=[3, 7, 3, 5, 9])
    dropped = torch.tensor([[True, False, True], [True, False, False]])
    assert _left_out(batch.history.item, dropped, batch).tolist() == [True, False, False, True, False]


@pytest.fixture
def model(tmp_path: Path) -> Fusion:
    dataset = tiny_dataset(tmp_path / "dataset", kinds=KINDS, untrained=5)
    torch.manual_seed(0)
    model = build_model("fusion", {}, dataset)
    assert isinstance(model, Fusion)
    return model.train()


def gradient(model: Fusion, batch: Sequences) -> Tensor:
    model.zero_grad()
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    (table,) = model.items.parameters()
    assert table.grad is not None
    return table.grad.to_dense()


def test_an_item_without_training_is_no_negative(model: Fusion) -> None:
    batch = sets([[1, 2, 3, 4]], owner=[0, 0, 0, 0], target=[1, 2, 3, 4])
    torch.manual_seed(1)
    table = gradient(model, batch)
    untrained = ~model.item_trained
    untrained[0] = False
    assert untrained.sum() == 5 and not table[untrained].any()
    assert table[0].any()  # which stands for an item without an id
    assert table[model.item_trained].any(1).float().mean() > 0.5


def test_a_new_item_differs_from_a_known_one_by_its_id_alone(model: Fusion) -> None:
    model.eval()
    items = torch.tensor([3, 4])
    known, new = model.item_rows(items), model._sum(torch.zeros(2, dtype=torch.int64), items)
    expected = model.items.lookup(items) - model.items.lookup(torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(known - new, expected)
    assert not torch.equal(new[0], new[1])


def test_every_modality_makes_a_difference(model: Fusion) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    items = torch.arange(1, 9)
    row = model.item_rows(items)
    for block in model.blocks:
        kept = model.item_dense.clone()
        model.item_dense[:, block.start : block.start + block.width] = 0
        assert not torch.allclose(model.item_rows(items), row), block
        model.item_dense.copy_(kept)
