"""Features of a moment, and ages of a history. The same code offline and per request.

A history looks alike from whatever moment it is seen: ages count from the user's last event. How long ago
that was, and the hour and day of the request, are the context. A log is served long after it ends, so each
float of the context is kept within what training saw: a model answers as it would have at the nearest
moment that it learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
HOUR = 3_600_000_000  # microseconds
DAY = 24 * HOUR
OLDEST = np.float32(90 * 24)  # hours: beyond this all ages look alike
QUANTILES = (0.001, 0.999)  # of the training rows, between which a float of the context stays
ROWS, BLOCK = 1 << 18, 1 << 14  # training rows that the bounds are taken from, and rows at a time


def ages(time: Array) -> Array:
    """log1p of the hours from each event of a history to its last one, capped at 90 days; float32.

    Args:
        time: (B, L) microseconds, the most recent last; 0 where there is no event, whose age is 0.
    """
    return _age(time[:, -1:], time)


def gaps(time: Array) -> Array:
    """log1p of the hours from each event of a history to the one before it, capped at 90 days; float32.

    Unlike ages they are the same from whatever event a history is seen.

    Args:
        time: (B, L) microseconds, the most recent last; 0 where there is no event. The gap of the first event
            is 0.
    """
    gap = np.zeros(time.shape, np.float32)
    gap[:, 1:] = _age(time[:, 1:], time[:, :-1])
    return gap


def _age(now: Array, time: Array) -> Array:
    # In float32, where numpy vectorises log: a quarter of the time, and exact to milliseconds.
    hours = ((now - time) * (1 / HOUR)).astype(np.float32)
    hours = np.minimum(np.maximum(hours, 0), OLDEST)  # np.clip takes ten times as long for one request
    aged: Array = np.log(hours + np.float32(1)) * (time != 0)
    return aged


def _cycle(position: Array) -> list[Array]:
    angle = (2 * np.pi * position).astype(np.float32)
    return [np.sin(angle), np.cos(angle)]


def _hour(now: Array, time: Array, gap: int) -> list[Array]:
    return _cycle(now % DAY / DAY)


def _weekday(now: Array, time: Array, gap: int) -> list[Array]:
    return _cycle((now // DAY + 3) % 7 / 7)  # the epoch was a Thursday


def _recency(now: Array, time: Array, gap: int) -> list[Array]:
    last = time[:, -1]
    return [_age(now, last), last == 0]  # an event of this moment and none at all both have age 0


def _session(now: Array, time: Array, gap: int) -> list[Array]:
    pause = (np.diff(time, append=now[:, None]) > gap) | (time == 0)
    # The last pause ends the search for the events after it; where there is none, all events are counted.
    count = np.where(pause.any(1), pause[:, ::-1].argmax(1), time.shape[1])
    return [np.log1p(count.astype(np.float32)), count == 0]


@dataclass(frozen=True)
class _Kind:
    """One context feature: its floats, and which of them say yes or no."""

    floats: Callable[[Array, Array, int], list[Array]]
    flags: tuple[bool, ...]


_KINDS: Mapping[str, _Kind] = {
    "hour": _Kind(_hour, (False, False)),
    "weekday": _Kind(_weekday, (False, False)),
    "recency": _Kind(_recency, (False, True)),
    "session": _Kind(_session, (False, True)),
}


def context_width(names: Sequence[str]) -> int:
    """Number of floats that the named context features have together."""
    return sum(len(_KINDS[name].flags) for name in names)


class Context:
    """The context features of a data set or a bundle; safe to use from several threads.

    Args:
        names: hour and weekday (both cyclic: sine and cosine), recency (the age of the last event, and 1
            where there is none) and session (log1p of the events since the last pause, and 1 where the
            request begins a session).
        bounds: [low, high] of each float, as `fit_bounds` gives them; none: floats stay as they are.
        gap: microseconds, the pause after which a session is over.
    """

    def __init__(self, names: Sequence[str], bounds: Sequence[Sequence[float]] = (), gap: int = 0) -> None:
        self.width, self._gap = context_width(names), gap
        self._kinds = [_KINDS[name] for name in names]
        columns = np.array(bounds, np.float32).reshape(-1, 2)
        self._bounds = np.ascontiguousarray(columns.T) if len(columns) else None

    @property
    def flags(self) -> list[bool]:
        """Which floats say yes or no."""
        return [flag for kind in self._kinds for flag in kind.flags]

    def __call__(self, now: Array, time: Array) -> Array:
        """The features (B, T) float32 of B moments.

        Args:
            now: (B,) microseconds, the moment of each request.
            time: (B, L) microseconds, the user's events before it, the most recent last; 0: none.
        """
        floats = np.empty((len(now), self.width), np.float32)
        columns = (column for kind in self._kinds for column in kind.floats(now, time, self._gap))
        for index, column in enumerate(columns):
            floats[:, index] = column
        if self._bounds is not None:
            low, high = self._bounds
            floats = np.minimum(np.maximum(floats, low), high)
        return floats


class Events(Protocol):
    """The training events as columns of N rows sorted by user and time, and where each user's rows begin."""

    @property
    def user(self) -> Array:
        """(N,) rows of users."""
        ...

    @property
    def time(self) -> Array:
        """(N,) microseconds."""
        ...

    @property
    def label(self) -> Array:
        """(N,) above 0 where the event is to be predicted."""
        ...

    @property
    def indptr(self) -> Array:
        """The first row of each user."""
        ...


def fit_bounds(names: Sequence[str], gap: int, length: int, events: Events) -> list[list[float]]:
    """The bounds [low, high] of each float of the context, from requests as they occurred in training.

    A float stays between the .1 % and the 99.9 % quantile of the requests that had a history (of all, where
    none had), a float that says yes or no between its extremes. Memory is bounded by ROWS requests.

    Args:
        names, gap: of Context.
        length: of a history.
        events: of the training part; a request is one with a label above 0.
    """
    context = Context(names, (), gap)
    if not context.width:
        return []
    blocks = [(context(now, time), time[:, -1] > 0) for now, time in training_requests(events, length)]
    if not blocks:
        return []
    floats, known = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    ranked = floats[known] if known.any() else floats
    quantiles = np.quantile(ranked, QUANTILES, axis=0).astype(np.float32)
    extremes = np.stack([floats.min(0), floats.max(0)])
    bounds = np.where(context.flags, extremes, quantiles)
    return [[float(low), float(high)] for low, high in bounds.T]


def median_gap(events: Events) -> int:
    """Microseconds: the median time from a user's last event to the next one to predict; 0 where none is."""
    gaps = [(now - time[:, 0])[time[:, 0] > 0] for now, time in training_requests(events, 1)]
    known = np.concatenate(gaps) if gaps else np.zeros(0)
    return int(np.median(known)) if len(known) else 0


def training_requests(events: Events, length: int) -> Iterator[tuple[Array, Array]]:
    """Moments (B,) and times of the events before them (B, L) of training, some requests at a time.

    They are spread evenly over the rows, ROWS at most. Events of one moment, such as the lines of an
    invoice, do not come before each other.
    """
    rows = np.arange(0, len(events.user), max(1, -(-len(events.user) // ROWS)))
    rows = rows[events.label[rows] > 0]
    for start in range(0, len(rows), BLOCK):
        chosen = rows[start : start + BLOCK]
        now, first = events.time[chosen], events.indptr[events.user[chosen]]
        before = _first_at(events.time, first, chosen, now)
        history = before[:, None] - np.arange(length, 0, -1)
        yield now, np.where(history < first[:, None], 0, events.time.take(history, mode="clip"))


def _first_at(time: Array, low: Array, high: Array, now: Array) -> Array:
    """The first rows from `low` to `high` whose time is `now` or later; times ascend in between."""
    low, high = low.copy(), high.copy()
    while (low < high).any():
        middle = (low + high) // 2
        earlier = (time[middle] < now) & (low < high)
        low, high = np.where(earlier, middle + 1, low), np.where(earlier, high, np.minimum(high, middle))
    return low
