"""What a batch of sequences holds, for models that learn at every event of a sequence at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.dataset import Array, Dataset, Part
from app.errors import DataError, RecipeError
from app.models.base import Loss, Sequences
from app.recipe import Train
from app.training.batches.sequences import SequenceBatches, plan, windows_of
from tests.tiny import tiny_dataset

MINUTE = 60_000_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset", skips=0.3)


def sequences(dataset: Dataset, loss: Loss = "cross_entropy", **options: Any) -> SequenceBatches:
    own = {key: options.pop(key) for key in ("rank", "world") if key in options}
    return SequenceBatches(
        dataset, Train(**{"batch_size": 100, "id_dropout": 0.0, **options}), loss, 7, **own
    )


def made_of(
    folder: Path, users: Sequence[Sequence[tuple[int, int]]], *, history: int = 8, label: Any = None
) -> Dataset:
    """A data set whose training part has these (minute, item) events a user."""
    dataset = tiny_dataset(folder / "dataset", users=len(users), events=5 * len(users), history=history)
    events = [(user, minute, item) for user, own in enumerate(users, 1) for minute, item in own]
    user, minute, item = np.array(events).T
    columns = {"user": user, "item": item, "time": (minute + 1) * MINUTE, "event": np.ones(len(user))}
    columns |= {"value": np.ones(len(user)), "label": np.ones(len(user)) if label is None else label}
    Part.save(dataset.path / "train", columns, dataset.schema.users)
    return Dataset.open(dataset.path, verify=False)


def learned(batch: Sequences) -> list[tuple[int, tuple[int, ...], int]]:
    """(user, the items up to the state that predicts it, target) of every target of a batch."""
    columns = batch.history.item.shape[1]
    rows = []
    for owner, target in zip(batch.owner.tolist(), batch.target.tolist(), strict=True):
        row, column = divmod(owner, columns)
        past = [item for item in batch.history.item[row, : column + 1].tolist() if item]
        rows.append((int(batch.user[row]), tuple(past), target))
    return rows


def test_every_event_is_predicted_from_those_before_it(tmp_path: Path) -> None:
    """Users of 3, 1 and 2 events, worked out by hand: the first event of each from nothing."""
    dataset = made_of(tmp_path, [[(0, 5), (1, 6), (2, 7)], [(0, 8)], [(3, 9), (4, 5)]])
    batch = next(sequences(dataset).epoch(0))
    assert sorted(learned(batch)) == [
        (1, (), 5),
        (1, (5,), 6),
        (1, (5, 6), 7),
        (2, (), 8),
        (3, (), 9),
        (3, (9,), 5),
    ]
    by_user = dict(zip(batch.user.tolist(), batch.history.item.tolist(), strict=True))
    assert by_user == {1: [0, 5, 6], 2: [0, 0, 0], 3: [0, 0, 9]}  # the last event predicts nothing
    assert batch.history.gap[batch.user == 1][0].tolist() == pytest.approx([0, 0, np.log1p(1 / 60)])
    assert batch.weight.tolist() == [1.0] * 6 and batch.samples == 6
    assert batch.history.age.shape == (3, 0)


def test_events_of_one_moment_do_not_see_each_other(tmp_path: Path) -> None:
    """A basket of two, then one of three: each item from what came before its basket; one basket alone."""
    baskets = [(0, 5), (0, 6), (4, 7), (4, 8), (4, 9)]
    dataset = made_of(tmp_path, [baskets, [(1, 3), (1, 4)]])
    batch = next(sequences(dataset).epoch(0))
    assert sorted(learned(batch)) == [
        (1, (), 5),
        (1, (), 6),
        (1, (5, 6), 7),
        (1, (5, 6), 8),
        (1, (5, 6), 9),
        (2, (), 3),
        (2, (), 4),
    ]


def test_only_positive_events_are_targets_and_all_are_history(tmp_path: Path) -> None:
    dataset = made_of(tmp_path, [[(0, 5), (1, 6), (2, 7), (3, 8)]], label=np.array([0.0, 1.0, 0.0, 1.0]))
    assert sorted(learned(next(sequences(dataset).epoch(0)))) == [(1, (5,), 6), (1, (5, 6, 7), 8)]


def test_long_sequences_come_in_windows_that_overlap_by_half(tmp_path: Path) -> None:
    """13 events, histories of 4: each later window has two events of the one before, and predicts from the
    other two."""
    dataset = made_of(tmp_path, [[(minute, minute + 1) for minute in range(13)]], history=4)
    rows = [row for batch in sequences(dataset).epoch(0) for row in learned(batch)]
    pasts = {target: past for _, past, target in rows}
    assert len(rows) == len(pasts) == 13
    assert pasts[5] == (1, 2, 3, 4) and pasts[4] == (1, 2, 3)
    assert pasts[6] == (3, 4, 5) and pasts[7] == (3, 4, 5, 6)
    assert pasts[12] == (9, 10, 11) and pasts[13] == (9, 10, 11, 12)


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=40).map(sorted), min_size=1, max_size=5),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_windows_teach_every_event_once_from_at_least_half_a_history(
    minutes: list[list[int]], length: int
) -> None:
    counts = [len(own) for own in minutes]
    start = np.repeat(np.cumsum([0, *counts[:-1]]), counts)
    before = np.concatenate(
        [
            own_start + np.searchsorted(own, own)
            for own, own_start in zip(minutes, np.unique(start), strict=True)
        ]
    )
    windows = windows_of(start, before, length)
    window = np.repeat(np.arange(len(windows)), np.diff(windows.first))
    assert len(window) == len(start)
    begin, end = windows.start[window], windows.end[window]
    assert (begin >= start).all() and (before <= end).all() and (end - begin <= length).all()
    seen = before - begin
    assert (seen >= np.minimum(before - start, (length + 1) // 2)).all()
    assert (seen == before - start)[before - start <= length].all()


@pytest.mark.parametrize(
    ("users", "typical", "spread", "longest", "history"),
    [(22_363, 5, 0.6, 200, 50), (6_040, 100, 1.0, 2_300, 200), (6_040, 100, 1.0, 2_300, 50)],
)
@pytest.mark.parametrize("positions", [1024, 4096])
def test_padding_is_a_small_part_of_the_positions(
    users: int, typical: float, spread: float, longest: int, history: int, positions: int
) -> None:
    """Lengths like those of reviews, which are short, and of film ratings, which are long."""
    random = np.random.default_rng(0)
    counts = np.clip(random.lognormal(np.log(typical), spread, users), 3, longest).astype(int)
    rows = np.arange(counts.sum(), dtype=np.int32)
    windows = windows_of(np.repeat(np.cumsum(counts) - counts, counts).astype(np.int32), rows, history)
    size, padding = _sizes(windows.length, positions)
    assert padding < 0.1
    assert size.max() <= positions and size.mean() > 0.75 * positions


def _sizes(length: Array, positions: int) -> tuple[Array, float]:
    """Positions of each batch, and the share of padding in all of them."""
    bucket, firsts = plan(length, positions)
    ordered = length[np.argsort(bucket, kind="stable")]
    longest, counts = np.maximum.reduceat(ordered, firsts[:-1]), np.diff(firsts)
    assert (counts > 0).all() and counts.sum() == len(length)
    size = longest * counts
    return size, 1 - length.sum() / size.sum()


@given(st.lists(st.integers(1, 300), min_size=1, max_size=300), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_a_batch_has_no_more_positions_than_stated(lengths: list[int], positions: int) -> None:
    """But for a single sequence that is longer: it is a batch of its own."""
    length = np.array(lengths)
    size, _ = _sizes(length, positions)
    assert (size <= max(positions, length.max())).all()


def test_an_epoch_has_every_positive_once(dataset: Dataset) -> None:
    part = dataset.train
    positive = np.asarray(part.label) > 0
    batches = sequences(dataset)
    rows = Counter(row[::2] for batch in batches.epoch(0) for row in learned(batch))
    users, items = part.user[positive].tolist(), part.item[positive].tolist()
    assert rows == Counter(zip(users, items, strict=True))
    assert len(list(batches.epoch(1))) == batches.steps > 5


def test_equal_seeds_give_equal_batches_and_epochs_differ(dataset: Dataset) -> None:
    once, again, later = (list(sequences(dataset).epoch(epoch)) for epoch in (0, 0, 1))
    assert all(_same(a, b) for a, b in zip(once, again, strict=True))
    assert sum(_same(a, b) for a, b in zip(once, later, strict=True)) == 0


def _same(batch: Sequences, other: Sequences) -> bool:
    names = ("user", "owner", "target", "negatives", "log_q")
    return all(torch.equal(getattr(batch, n), getattr(other, n)) for n in names) and all(
        torch.equal(a, b)
        for a, b in zip(vars(batch.history).values(), vars(other.history).values(), strict=True)
    )


def test_an_epoch_goes_on_from_any_step(dataset: Dataset) -> None:
    batches = sequences(dataset, id_dropout=0.3)
    whole, rest = list(batches.epoch(3)), list(batches.epoch(3, start=5))
    assert len(whole) == batches.steps and len(rest) == batches.steps - 5
    assert all(_same(a, b) for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_an_epoch_in_equal_steps(dataset: Dataset, world: int) -> None:
    shares = [sequences(dataset, rank=rank, world=world) for rank in range(world)]
    epochs = [list(share.epoch(0)) for share in shares]
    assert len({len(epoch) for epoch in epochs}) == 1 and len(epochs[0]) == shares[0].steps
    rows = {row[::2] for epoch in epochs for batch in epoch for row in learned(batch)}
    positive = np.asarray(dataset.train.label) > 0
    users, items = dataset.train.user[positive].tolist(), dataset.train.item[positive].tolist()
    assert rows == set(zip(users, items, strict=True))
    assert not torch.equal(epochs[0][0].negatives, epochs[1][0].negatives)


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_a_batch_has_its_own_negatives_and_their_chances(dataset: Dataset, sampling: str) -> None:
    """log_q is what a count of many draws tends to."""
    batches = list(sequences(dataset, negatives=400, negative_sampling=sampling).epoch(0))
    assert all(batch.negatives.shape == batch.log_q.shape == (400,) for batch in batches)
    drawn = torch.cat([batch.negatives for batch in batches])
    log_q = torch.cat([batch.log_q for batch in batches])
    share = torch.bincount(drawn, minlength=dataset.schema.items) / len(drawn)
    assert drawn.min() >= 1 and drawn.max() < dataset.schema.items
    assert torch.allclose(share[drawn], log_q.exp(), atol=0.01)
    assert log_q.isfinite().all()
    if sampling == "popularity":
        assert log_q.exp().max() > 3 * log_q.exp().min()


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_negatives_are_items_that_training_met(tmp_path: Path, sampling: str) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", untrained=5)
    batches = sequences(dataset, negatives=400, negative_sampling=sampling)
    drawn = {item for batch in batches.epoch(0) for item in batch.negatives.tolist()}
    assert drawn == set(np.flatnonzero(dataset.trained["item"]).tolist())
    assert max(drawn) == dataset.schema.items - 6, "the last five items have no event in training"


def test_a_softmax_over_the_catalogue_has_no_negatives(dataset: Dataset) -> None:
    batch = next(sequences(dataset, "softmax", negatives=0).epoch(0))
    assert batch.negatives.shape == batch.log_q.shape == (0,)


def test_users_are_hidden_and_items_are_not(dataset: Dataset) -> None:
    batches = list(sequences(dataset, id_dropout=0.3).epoch(0))
    users = torch.cat([batch.user for batch in batches])
    assert (users == 0).float().mean().item() == pytest.approx(0.3, abs=0.1)
    plain = list(sequences(dataset).epoch(0))
    for batch, same in zip(batches, plain, strict=True):
        assert torch.equal(batch.history.item, same.history.item) and torch.equal(batch.target, same.target)


def test_events_count_by_their_type(dataset: Dataset) -> None:
    """Purchases count three times; a type of weight 0 is history alone; the others count once."""
    part = dataset.train
    batches = list(sequences(dataset, event_weights={"buy": 3.0}).epoch(0))
    weights = Counter(weight for batch in batches for weight in batch.weight.tolist())
    positive = np.asarray(part.label) > 0
    buys = int((positive & (part.event == dataset.schema.events.index("buy"))).sum())
    assert weights == {3.0: buys, 1.0: int(positive.sum()) - buys}
    views = list(sequences(dataset, event_weights={"buy": 0.0}).epoch(0))
    assert sum(batch.samples for batch in views) == int(positive.sum()) - buys
    events = torch.cat([batch.history.event.flatten() for batch in views])
    assert (events == dataset.schema.events.index("buy")).any()


def test_a_weight_of_an_unknown_type_is_an_error_by_name(dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"train\.event_weights.*no events of type 'share'.*'view', 'buy'"):
        sequences(dataset, event_weights={"share": 2.0})


def test_a_log_without_order_is_refused(dataset: Dataset) -> None:
    unordered = Dataset(dataset.artifact)
    unordered.schema = msgspec.structs.replace(dataset.schema, ordered=False, timed=False)
    with pytest.raises(RecipeError, match=r"no order.*item_knn or mult_vae"):
        sequences(unordered)


def test_a_comparison_needs_negatives(dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"train\.negatives.*gbce"):
        sequences(dataset, "gbce", negatives=0)


def test_nothing_to_learn_from(dataset: Dataset) -> None:
    empty = Dataset(dataset.artifact)
    empty.__dict__["train"] = replace(dataset.train, label=np.zeros(len(dataset.train)))
    with pytest.raises(DataError, match="no event to learn from"):
        sequences(empty)
