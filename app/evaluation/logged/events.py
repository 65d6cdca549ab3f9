"""The held-out events with their labels, and how each is scored at its moment.

Protocol: an event is scored for its user and item with what was known before its moment: the user's events
of the earlier parts that came before it, as in training. So no later event tells of it, however the log was
split, nor one of the same moment, unless data.ties = "order"; without times, all events of the earlier parts
are known.
An item that training dropped (row 0) is scored as an unknown one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from app.data.dataset import Array, Dataset, Part
from app.evaluation.requests import past_of
from app.evaluation.scorer import Scorer
from app.models.base import Batch, Reads
from app.models.batch import batch_of, recent_of
from app.terminal.console import Progress

BLOCK = 1 << 12  # events scored at a time
LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LoggedEvents:
    """N events of a part, in its order: by user, then time.

    `row` (N,) are their rows in `part`; `past` are the parts whose events may be known.
    """

    part: Part
    past: tuple[Part, ...]
    row: Array

    def __len__(self) -> int:
        return len(self.row)

    @property
    def user(self) -> Array:
        """(N,) rows of users, 0 where training does not know them."""
        return np.asarray(self.part.user)[self.row].astype(np.int64)

    @property
    def item(self) -> Array:
        """(N,) rows of items, 0 where training does not know them."""
        return np.asarray(self.part.item)[self.row].astype(np.int64)

    @property
    def label(self) -> Array:
        """(N,) float32, 1 or 0."""
        return np.asarray(self.part.label)[self.row]

    def of_users(self, count: int, seed: int) -> LoggedEvents:
        """The events of at most `count` users, drawn with `seed`; 0 keeps all."""
        users = np.unique(self.user)
        if not 0 < count < len(users):
            return self
        chosen = np.random.default_rng(seed).choice(users, count, replace=False)
        return replace(self, row=self.row[np.isin(self.user, chosen)])

    def batch(self, dataset: Dataset, chosen: slice, reads: Reads) -> Batch:
        """Model input of some events, a row each, whose only candidate is the event's item."""
        rows = self.row[chosen]
        users, now = (np.asarray(c)[rows].astype(np.int64) for c in (self.part.user, self.part.time))
        until = now + (not dataset.schema.tied) if dataset.schema.timed else None
        recent = recent_of(dataset, users, self.past, reads, until)
        return batch_of(dataset, users, recent, now, self.item[chosen, None])


def logged_events(dataset: Dataset, part: str) -> LoggedEvents:
    """The events of "valid" or "test" whose label the split does not hide."""
    events = getattr(dataset, part)
    shown = np.flatnonzero(np.asarray(events.label) == dataset.labels(events))
    return LoggedEvents(events, past_of(dataset, part), shown)


def scores_of(
    dataset: Dataset, events: LoggedEvents, scorer: Scorer, bar: Progress | None = None
) -> tuple[Array, int]:
    """The scores (N,) float32 of events, finite, and how many were NaN and so became the lowest."""
    parts = []
    for start in range(0, len(events), BLOCK):
        batch = events.batch(dataset, slice(start, start + BLOCK), scorer.reads)
        parts.append(scorer.candidates(batch).numpy()[:, 0])
        if bar:
            bar.advance(len(batch.user))
    scores = np.concatenate(parts)
    nan = int(np.isnan(scores).sum())
    return np.nan_to_num(scores, nan=LOWEST, posinf=HIGHEST, neginf=LOWEST), nan
