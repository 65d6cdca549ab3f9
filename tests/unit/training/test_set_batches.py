"""What a batch of sets holds, for models that learn from all that a user met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.data.dataset import Dataset, Part
from app.errors import DataError, RecipeError
from app.events import WHOLE_PAST
from app.models.base import Loss, Sequences
from app.recipe import Train
from app.training.batches.sets import SetBatches
from tests.tiny import tiny_dataset

BOUGHT, SKIPPED = 2, 3


def sets(dataset: Dataset, loss: Loss = "softmax", **options: Any) -> SetBatches:
    own = {key: options.pop(key) for key in ("rank", "world") if key in options}
    return SetBatches(dataset, Train(**{"batch_size": 100, "id_dropout": 0.0, **options}), loss, 7, **own)


def made_of(folder: Path, users: Sequence[Sequence[tuple[int, int]]], items: int = 60) -> Dataset:
    """A data set whose training part has these (item, event type) events a user, one a second."""
    dataset = tiny_dataset(folder / "dataset", users=len(users), items=items, events=5 * len(users))
    rows = [(user, item, kind) for user, own in enumerate(users, 1) for item, kind in own]
    user, item, kind = np.array(rows).T
    columns = {"user": user, "item": item, "time": 1_000_000 * np.arange(1, len(rows) + 1), "event": kind}
    columns |= {"value": np.ones(len(rows)), "label": (kind != SKIPPED).astype(np.float32)}
    Part.save(dataset.path / "train", columns, dataset.schema.users)
    return Dataset.open(dataset.path, verify=False)


def content(batch: Sequences) -> dict[int, tuple[list[int], list[int]]]:
    """The set, in order, and the targets of every user of a batch."""
    targets: dict[int, list[int]] = {row: [] for row in range(len(batch.user))}
    for owner, target in zip(batch.owner.tolist(), batch.target.tolist(), strict=True):
        targets[owner].append(target)
    return {
        user: ([item for item in row if item], targets[number])
        for number, (user, row) in enumerate(
            zip(batch.user.tolist(), batch.history.item.tolist(), strict=True)
        )
    }


def test_a_user_is_a_set_and_what_they_liked_of_it(tmp_path: Path) -> None:
    """Repeats count once, where they came last; a skip belongs to the set and is no target."""
    one = [(5, BOUGHT), (6, SKIPPED), (7, BOUGHT), (5, BOUGHT)]
    dataset = made_of(tmp_path, [one, [(9, SKIPPED)], [(8, BOUGHT), (8, SKIPPED)]])
    batches = list(sets(dataset).epoch(0))
    assert len(batches) == 1
    assert content(batches[0]) == {1: ([6, 7, 5], [5, 7]), 3: ([8], [8])}
    assert batches[0].history.item.shape == (2, 3)
    assert batches[0].weight.tolist() == [1.0] * 3


def test_the_last_events_of_a_long_past_count(tmp_path: Path) -> None:
    events = [(1, BOUGHT)] + [(2 + number % 300, BOUGHT) for number in range(WHOLE_PAST)]
    dataset = made_of(tmp_path, [events], items=400)
    met, targets = content(next(sets(dataset).epoch(0)))[1]
    assert sorted(met) == targets == list(range(2, 302))


def test_every_user_is_learned_once_an_epoch_in_batches_of_so_many_positions(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=300, events=6000)
    batches = list(sets(dataset, batch_size=400).epoch(3))
    users = torch.cat([batch.user for batch in batches])
    assert sorted(users.tolist()) == list(range(1, 301))
    positions = [batch.history.item.numel() for batch in batches]
    filled = sum(int(batch.history.mask.sum()) for batch in batches)
    assert max(positions) <= 400 and filled > 0.9 * sum(positions)


def test_an_epoch_resumes_exactly_and_workers_share_it(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=300, events=6000)
    options: dict[str, Any] = {"batch_size": 300, "negatives": 4, "id_dropout": 0.3}
    whole = [sets(dataset, "cosine", rank=rank, world=2, **options) for rank in (0, 1)]
    epochs = [list(batches.epoch(1)) for batches in whole]
    assert len(epochs[0]) == len(epochs[1]) == whole[0].steps
    for expected, batch in zip(epochs[1][3:], whole[1].epoch(1, 3), strict=True):
        columns = zip(vars(expected).values(), vars(batch).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in columns if isinstance(a, torch.Tensor))
        assert torch.equal(expected.history.item, batch.history.item)
    owners = [{tuple(sorted(row.tolist())) for b in epoch for row in b.history.item} for epoch in epochs]
    assert len(owners[0] | owners[1]) > 290  # sets of two users are rarely alike
    hidden = torch.cat([batch.user == 0 for epoch in epochs for batch in epoch]).float().mean()
    assert 0.2 < hidden < 0.4


def test_negatives_serve_a_whole_batch_unless_the_objective_needs_none(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    batch = next(sets(dataset, "cosine", negatives=9).epoch(0))
    assert batch.negatives.shape == batch.log_q.shape == (9,)
    assert batch.log_q.tolist() == pytest.approx([-np.log(60)] * 9)
    assert len(next(sets(dataset, "softmax", negatives=9).epoch(0)).negatives) == 0
    with pytest.raises(RecipeError, match=r"train\.negatives"):
        sets(dataset, "cosine", negatives=0)


def test_an_item_counts_as_the_weightiest_of_its_events(tmp_path: Path) -> None:
    viewed, types = 1, {"buy": 3.0, "view": 0.5}
    dataset = made_of(tmp_path, [[(5, viewed), (6, BOUGHT), (6, viewed), (7, SKIPPED)]])
    batch = next(sets(dataset, event_weights=types).epoch(0))
    assert (batch.target.tolist(), batch.weight.tolist()) == ([5, 6], [0.5, 3.0])
    assert next(sets(dataset, event_weights={"view": 0.0}).epoch(0)).target.tolist() == [6]


def test_a_log_without_anything_to_predict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no event to learn from"):
        sets(made_of(tmp_path, [[(5, SKIPPED)]]))
