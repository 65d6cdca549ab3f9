"""What a batch of events holds, for models that learn from events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.dataset import COLUMNS, Dataset, Part
from app.errors import DataError, RecipeError
from app.models.base import Batch, Loss
from app.recipe import Train
from app.training.batches.events import EventBatches
from app.training.batches.moments import first_of_moment, row_type
from app.training.batches.negatives import SeenPairs
from app.training.batches.prefetch import prefetch
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset", skips=0.3)


def batches_of(dataset: Dataset, loss: Loss = "bce", **options: Any) -> EventBatches:
    own = {key: options.pop(key) for key in ("rank", "world", "history") if key in options}
    return EventBatches(dataset, Train(**{"batch_size": 100, "id_dropout": 0.0, **options}), loss, 7, **own)


def everything(batches: EventBatches, epoch: int = 0) -> Batch:
    """A whole epoch as one batch."""
    parts = list(batches.epoch(epoch))
    user, item, label = (torch.cat([getattr(p, name) for p in parts]) for name in ("user", "item", "label"))
    return Batch(user, item, parts[0].history, parts[0].context, label)


def pairs(users: Any, items: Any) -> set[tuple[int, int]]:
    return set(zip(np.asarray(users).tolist(), np.asarray(items).tolist(), strict=True))


def test_an_epoch_has_every_positive_once(dataset: Dataset) -> None:
    epoch = everything(batches_of(dataset))
    positive = dataset.train.label > 0
    assert len(epoch.user) == positive.sum()
    assert pairs(epoch.user, epoch.item[:, 0]) == pairs(
        dataset.train.user[positive], dataset.train.item[positive]
    )
    assert epoch.item.shape[1] == 16  # 15 negatives are the default
    assert (epoch.label[:, 0] == 1).all() and (epoch.label[:, 1:] == 0).all()


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_negatives_are_items_the_user_does_not_have(dataset: Dataset, sampling: str) -> None:
    """Redraws leave little of the chance to draw what the user has, here a third."""
    epoch = everything(batches_of(dataset, negatives=8, negative_sampling=sampling))
    has = pairs(dataset.train.user, dataset.train.item)
    drawn = [
        (u, i) for u, row in zip(epoch.user.tolist(), epoch.item[:, 1:].tolist(), strict=True) for i in row
    ]
    share = np.mean([pair in has for pair in drawn])
    chance = len(has) / (dataset.schema.users * dataset.schema.items)
    assert share < 0.2 * chance
    assert epoch.item.min() >= 1 and epoch.item.max() < dataset.schema.items


def test_popular_items_are_drawn_more_often(dataset: Dataset) -> None:
    def likeness(sampling: str) -> float:
        epoch = everything(batches_of(dataset, negatives=8, negative_sampling=sampling))
        drawn = np.bincount(epoch.item[:, 1:].flatten(), minlength=dataset.schema.items)
        return float(np.corrcoef(drawn[1:], dataset.popularity[1:])[0, 1])

    assert likeness("uniform") < 0 < 0.3 < likeness("popularity")


def test_history_ends_before_the_moment_of_the_event(dataset: Dataset) -> None:
    part = dataset.train
    batches = batches_of(dataset)
    first = next(iter(batches.epoch(0)))
    for b in range(len(first.user)):
        mine = slice(part.indptr[first.user[b]], part.indptr[first.user[b] + 1])
        items = part.item[mine].tolist()
        before = items[: items.index(int(first.item[b, 0]))][-dataset.schema.history :]
        padded = [0] * (dataset.schema.history - len(before)) + before
        assert first.history.item[b].tolist() == padded
    assert first.context.shape == (100, dataset.schema.context_width)


def test_events_of_one_moment_do_not_precede_each_other() -> None:
    user = np.array([1, 1, 1, 1, 2, 2])
    time = np.array([5, 5, 7, 7, 7, 8])
    assert first_of_moment(user, time).tolist() == [0, 0, 2, 2, 4, 5]


@pytest.mark.parametrize(
    ("rows", "kind"), [(1, np.int32), (2**31, np.int32), (2**31 + 1, np.int64), (2**40, np.int64)]
)
def test_row_numbers_hold_the_last_row(rows: int, kind: type) -> None:
    assert row_type(rows) is kind
    assert np.array([rows - 1]).astype(row_type(rows)) == rows - 1


class _Shifted:
    """An array whose first row has the number OFFSET, as rows far back in a long log have."""

    OFFSET = 2**31 + 5

    def __init__(self, values: Any) -> None:
        self.values = values

    def __getitem__(self, rows: Any) -> Any:
        assert rows.dtype == np.int64 and rows.min() >= self.OFFSET
        return self.values[rows - self.OFFSET]

    def take(self, rows: Any, mode: str) -> Any:
        return self.values.take(rows - self.OFFSET, mode=mode)


def test_batches_of_rows_beyond_two_billion(dataset: Dataset) -> None:
    """Shuffle, look-ups and histories give for such rows what they give for the same events in front."""
    expected = list(batches_of(dataset).epoch(1))
    far, part, offset = batches_of(dataset), dataset.train, _Shifted.OFFSET
    far.rows = far.rows.astype(row_type(offset + len(part))) + offset
    far.before = _Shifted(far.before.astype(far.rows.dtype) + offset)  # type: ignore[assignment]
    columns: Any = {name: _Shifted(getattr(part, name)) for name in COLUMNS}
    moved = replace(part, **columns, indptr=part.indptr + offset)
    far.dataset = Dataset(dataset.artifact)
    far.dataset.__dict__["train"] = _WithLength(moved, offset + len(part))
    for batch, same in zip(far.epoch(1), expected, strict=True):
        assert torch.equal(batch.user, same.user) and torch.equal(batch.item, same.item)
        assert torch.equal(batch.history.item, same.history.item)
        assert torch.equal(batch.history.age, same.history.age)
        assert torch.equal(batch.context, same.context)


class _WithLength:
    """A part that says how many rows it has."""

    def __init__(self, part: Part, rows: int) -> None:
        self.part, self.rows = part, rows

    def __len__(self) -> int:
        return self.rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


def test_logged_labels_without_negatives(dataset: Dataset) -> None:
    epoch = everything(batches_of(dataset, negatives=0))
    assert epoch.item.shape == (len(dataset.train), 1)
    assert epoch.label.mean().item() == pytest.approx(float(dataset.train.label.mean()))


def test_mse_is_taught_the_value(dataset: Dataset) -> None:
    epoch = everything(batches_of(dataset, "mse", negatives=0))
    assert set(epoch.label.flatten().tolist()) == set(np.unique(dataset.train.value).tolist())


@pytest.mark.parametrize("loss", ["sampled_softmax", "softmax"])
def test_a_softmax_over_items_takes_positives_alone(dataset: Dataset, loss: Loss) -> None:
    epoch = everything(batches_of(dataset, loss, id_dropout=0.5))
    assert epoch.item.shape == (int((dataset.train.label > 0).sum()), 1)
    assert (epoch.item > 0).all()


def test_hides_the_wanted_share(dataset: Dataset) -> None:
    epoch = everything(batches_of(dataset, id_dropout=0.2))
    assert (epoch.user == 0).float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert (epoch.item == 0).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_equal_seeds_give_equal_batches_and_epochs_differ(dataset: Dataset) -> None:
    once, again, later = (everything(batches_of(dataset), epoch) for epoch in (0, 0, 1))
    assert torch.equal(once.item, again.item)
    assert not torch.equal(once.item, later.item)


def test_an_epoch_goes_on_from_any_step(dataset: Dataset) -> None:
    batches = batches_of(dataset)
    whole, rest = list(batches.epoch(3)), list(batches.epoch(3, start=5))
    assert len(whole) == batches.steps and len(rest) == batches.steps - 5
    assert all(torch.equal(a.item, b.item) for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_an_epoch_in_equal_steps(dataset: Dataset, world: int) -> None:
    shares = [batches_of(dataset, rank=rank, world=world) for rank in range(world)]
    epochs = [everything(share) for share in shares]
    assert len({len(epoch.user) for epoch in epochs}) == 1 and len({s.steps for s in shares}) == 1
    learned = set().union(*(pairs(epoch.user, epoch.item[:, 0]) for epoch in epochs))
    positive = dataset.train.label > 0
    assert learned == pairs(dataset.train.user[positive], dataset.train.item[positive])


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_seen_never_misses(events: list[tuple[int, int]]) -> None:
    user, item = (np.array(column) for column in zip(*events, strict=True))
    assert SeenPairs(user, item)(user, item).all()


def test_seen_is_rarely_wrong() -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 5000, 50_000), rng.integers(0, 4000, 50_000)
    other = rng.integers(4000, 8000, 50_000)
    assert SeenPairs(user, item)(user, other).mean() < 1 / 16


@pytest.mark.parametrize("loss", ["bpr", "cross_entropy", "gbce", "cosine"])
def test_a_comparison_needs_negatives(dataset: Dataset, loss: Loss) -> None:
    with pytest.raises(RecipeError, match=rf"train\.negatives.*{loss}"):
        batches_of(dataset, loss, negatives=0)


def test_weights_of_event_types_are_refused(dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"train\.event_weights.*sasrec"):
        batches_of(dataset, event_weights={"buy": 2.0})


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    label = np.lib.format.open_memmap(dataset.path / "train" / "label.npy", "r+")
    label[:] = 0
    with pytest.raises(DataError, match="no event to learn from"):
        batches_of(Dataset.open(dataset.path, verify=False))


def test_prefetch_keeps_order_and_passes_errors(dataset: Dataset) -> None:
    batches = batches_of(dataset)
    assert [b.user.tolist() for b in prefetch(batches.epoch(0))] == [
        b.user.tolist() for b in batches.epoch(0)
    ]

    def broken() -> Any:
        yield from batches.epoch(0)
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        list(prefetch(broken()))
