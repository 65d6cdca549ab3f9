"""What every embedding table promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from app.models.base import ModelConfig
from app.models.build import tables_of
from app.tables.base import Table
from app.tables.dense import DenseTable
from app.tables.hashed import HashedTable

Make = Callable[[int, int], Table]


@pytest.fixture(params=["dense", "hashed"])
def make(request: pytest.FixtureRequest) -> Make:
    return {"dense": DenseTable, "hashed": lambda rows, width: HashedTable(max(2, rows // 4), width)}[
        request.param
    ]


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 0)])
def test_lookup_adds_a_dimension(make: Make, shape: tuple[int, ...]) -> None:
    ids = torch.randint(0, 40, shape)
    assert make(40, 6).lookup(ids).shape == (*shape, 6)


def test_equal_ids_have_equal_rows(make: Make) -> None:
    rows = make(40, 6).lookup(torch.tensor([3, 17, 3]))
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


def test_row_zero_is_of_the_unknown_alone(make: Make) -> None:
    """A gradient through any other id leaves row 0 as it was."""
    table = make(40, 6)
    before = table.lookup(torch.tensor(0)).detach().clone()
    table.lookup(torch.arange(1, 40)).sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weight in table.parameters():
            weight -= weight.grad.to_dense()  # type: ignore[union-attr]
    assert torch.equal(table.lookup(torch.tensor(0)), before)


def test_gradients_are_sparse(make: Make) -> None:
    table = make(40, 6)
    table.lookup(torch.tensor([1, 2])).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.is_sparse for p in table.parameters())


def test_bytes_are_those_of_the_rows(make: Make) -> None:
    table = make(40, 6)
    assert table.bytes == sum(e.weight.numel() * 4 for e in table.modules() if isinstance(e, nn.Embedding))


def test_the_unknown_begins_with_zeros_and_can_be_given_a_row_of_its_own(make: Make) -> None:
    table = make(40, 6)
    others = table.lookup(torch.arange(1, 40)).detach().clone()
    assert not table.lookup(torch.tensor(0)).any() and others.abs().sum(1).all()
    table.set_unknown(torch.arange(6.0))
    assert table.lookup(torch.tensor(0)).tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(table.lookup(torch.arange(1, 40)), others)


@pytest.mark.parametrize(
    ("ids", "step", "buckets"),
    [(3_000_000, 1, 16_384), (1_000_000, 1, 10_000), (300_000, 4096, 4096), (300_000, 3, 4096)],
)
def test_no_more_ids_share_both_buckets_than_chance_makes_them(ids: int, step: int, buckets: int) -> None:
    """Of n ids and m buckets each id expects 2 n / m^2 others with the same two, in either order."""
    table = HashedTable(buckets, 1)
    low, high = table.buckets_of(torch.arange(1, ids + 1) * step).sort(0).values
    _, counts = torch.unique(low * (buckets + 1) + high, return_counts=True)
    twins = int(counts[counts > 1].sum())
    assert twins == pytest.approx(ids * -math.expm1(-2 * ids / buckets**2), rel=0.05)
    assert low.min() >= 1 and high.max() <= buckets


def test_hashed_is_used_where_it_is_smaller() -> None:
    tables = tables_of(ModelConfig(table="hashed", table_options={"buckets": 50}))
    assert isinstance(tables("user", 1000, 4), HashedTable)
    assert isinstance(tables("item", 20, 4), DenseTable)
