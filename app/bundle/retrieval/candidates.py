"""Where candidates come from when a model cannot search by a vector.

Items that the same people met as those of the user's history, items popular overall and in
the category that the user met most, and fresh ones: merged without duplicates, then ranked.

candidates/
  popular.npy      (items - 1,) rows by popularity, the most popular first
  fresh.npy        (F,) rows for exploration: those first met last, then those met least
  latest.npy       (N,) rows first met last, the latest first; latest_time.npy (N,) int64 microseconds of
                   their first event; both only where events have a time
  neighbour.npy    (items, K) rows that the same people met, the most similar first, 0 beyond;
  similarity.npy   (items, K) float16; both only where candidates are needed
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app.bundle.format.item_columns import Texts
from app.bundle.format.layout import Array, load_array
from app.bundle.retrieval.pool import EligibleItems
from app.errors import ArtifactError

NEAR, SEGMENT, FRESH = 0.6, 0.15, 0.05  # shares of the candidates; the rest is popular
EVENTS = 50  # last events whose neighbours count
HALF_LIFE = 10.0  # events back at which one counts half
NONE = np.zeros(0, np.int64)


class CandidateGenerators:
    """Candidates of several kinds, each by preference.

    Args:
        arrays: by the names of the files; without "neighbour" nothing is co-consumed.
        segment: the column whose most met value is a user's segment; None: there are no segments.
    """

    def __init__(self, arrays: Mapping[str, Array], segment: Texts | None = None) -> None:
        self._arrays, self._segment = arrays, segment

    @classmethod
    def open(cls, folder: Path, items: int, segment: Texts | None) -> CandidateGenerators:
        """Map the files of a folder.

        Raises:
            ArtifactError: a file is missing, truncated or does not fit the others.
        """
        names = ["popular", "fresh"]
        if (folder / "neighbour.npy").exists() or (folder / "similarity.npy").exists():
            names += ["neighbour", "similarity"]
        if (folder / "latest.npy").exists():
            names += ["latest", "latest_time"]
        arrays = {name: load_array(folder / f"{name}.npy") for name in names}
        near, similarity = arrays.get("neighbour"), arrays.get("similarity")
        fits = near is None or similarity is None or (near.shape == similarity.shape and len(near) == items)
        fits &= len(arrays.get("latest", NONE)) == len(arrays.get("latest_time", NONE))
        if len(arrays["popular"]) != items - 1 or not fits:
            raise ArtifactError(
                "the arrays do not fit together", where=str(folder), remedy="export the bundle again"
            )
        return cls(arrays, segment)

    def mixed(self, history: Array, user: str, allowed: EligibleItems, count: int) -> Array:
        """About `count` allowed items, ascending; all of them where there are no more.

        Args:
            history: (L,) items of the user, the most recent last.
            user: decides which of the fresh items have their turn.
            allowed: what may come.
            count: of items.
        """
        chosen = np.unique(
            np.concatenate(
                [
                    self.co_consumed(history, allowed, round(count * NEAR)),
                    self.segment(history, allowed, round(count * SEGMENT)),
                    self.fresh(user, allowed, round(count * FRESH)),
                ]
            )
        )
        popular = first_allowed(self._arrays["popular"], allowed, count - len(chosen), without=chosen)
        return np.sort(np.concatenate([chosen, popular]))

    def co_consumed(self, history: Array, allowed: EligibleItems, count: int) -> Array:
        """Items that the same people met as the last events, recent ones weighing more."""
        if "neighbour" not in self._arrays or not len(history):
            return NONE
        last = history[-EVENTS:]
        last = last[last < len(self._arrays["neighbour"])]  # what came after training has none
        weight = 0.5 ** (np.arange(len(last) - 1, -1, -1) / HALF_LIFE)
        rows = self._arrays["neighbour"].take(last, 0).ravel()
        similarity = self._arrays["similarity"].take(last, 0).astype(np.float32) * weight[:, None]
        items, inverse = np.unique(rows, return_inverse=True)
        worth = np.bincount(inverse, similarity.ravel())
        kept = allowed.keeps(items) & (worth > 0)
        items, worth = items[kept], worth[kept]
        return items[np.argsort(-worth, kind="stable")[:count]].astype(np.int64)

    def segment(self, history: Array, allowed: EligibleItems, count: int) -> Array:
        """Popular items of the category that the history met most."""
        if self._segment is None:
            return NONE
        codes = self._segment.codes[history[history < len(self._segment.codes)]]
        codes = codes[codes > 0]
        if not len(codes):
            return NONE
        start, stop = self._segment.span(int(np.bincount(codes).argmax()))
        return first_allowed(self._segment.rows[start:stop], allowed, count)

    def popular(self, allowed: EligibleItems, count: int) -> Array:
        """The most popular items that are allowed."""
        return first_allowed(self._arrays["popular"], allowed, count)

    def fresh(self, user: str, allowed: EligibleItems, count: int) -> Array:
        """Fresh or rarely met items; users get different ones."""
        rows = self._arrays["fresh"]
        if not len(rows):
            return NONE
        digest = hashlib.blake2b(user.encode(), digest_size=8).digest()
        turned = np.roll(rows, int.from_bytes(digest, "little") % len(rows))
        return first_allowed(turned, allowed, count)

    def with_new_items(self, popular: Array, added: Array) -> CandidateGenerators:
        """The same with items that came after training: the freshest, and the least popular.

        Args:
            popular: all rows by popularity.
            added: their rows, the latest first.
        """
        fresh = np.concatenate([added, self._arrays["fresh"]])
        return CandidateGenerators({**self._arrays, "popular": popular, "fresh": fresh}, self._segment)

    @property
    def all_fresh(self) -> Array:
        """All rows that count as fresh or rarely met."""
        return self._arrays["fresh"]

    @property
    def latest(self) -> tuple[Array, Array]:
        """Rows (N,) of the bundle's items first met last, the latest first, and when, in microseconds.

        Empty where events have no time, and in older bundles.
        """
        return self._arrays.get("latest", NONE), self._arrays.get("latest_time", NONE)

    @property
    def by_popularity(self) -> Array:
        """All rows, the most popular first."""
        return self._arrays["popular"]


def first_allowed(order: Array, allowed: EligibleItems, count: int, *, without: Array = NONE) -> Array:
    """The first `count` of `order` that are allowed and not in `without` (ascending)."""
    chosen, total, start, step = [NONE], 0, 0, max(64, 2 * count)
    while total < count and start < len(order):
        rows = allowed.among(order[start : start + step].astype(np.int64))
        rows = rows[~np.isin(rows, without)] if len(without) else rows
        chosen.append(rows[: count - total])
        total += len(chosen[-1])
        start, step = start + step, 2 * step
    return np.concatenate(chosen)
