"""Ranks the targets of requests among their candidates: counts, not sorted lists.

A target's rank follows from how many candidates score higher and how many score the same,
so one sort of each request's scores and a binary search serve any number of targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from app.data.dataset import Array, Dataset
from app.evaluation.candidates import ROUNDS, excluded_of, listed_of, sampled_of
from app.evaluation.requests import Requests
from app.evaluation.scorer import Scorer
from app.terminal.console import Progress

SCORES = 1 << 20  # of a block: few enough to stay in the cache while they are sorted
LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Protocol:
    """Which candidates the targets of a request are ranked among.

    "all": every item (but not the unknown one), without what the user has seen where
    `exclude_seen`; "listed": the negatives listed with the events; "sampled": `negatives`
    items that the user has not met, drawn uniformly with `seed`.
    """

    candidates: Literal["all", "listed", "sampled"] = "all"
    exclude_seen: bool = True
    negatives: int = 99
    seed: int = 0


@dataclass(frozen=True)
class Ranked:
    """How T targets of U requests rank.

    `higher` and `equal` count the candidates that score higher and those that score the same,
    itself included; `equal` is 0 for a target that is never ranked (an unknown item).
    """

    owner: Array  # (T,) its request
    item: Array  # (T,)
    higher: Array  # (T,)
    equal: Array  # (T,)
    candidates: Array  # (U,) how many were ranked, targets included
    top: Array  # (U, K) best items, 0 where there are fewer
    positive: Array  # (T,) scores of the targets, NaN where never ranked
    negative: Array  # (T, n) scores of candidates drawn uniformly beside each target, or NaN
    nan: int  # scores that were NaN, and so ranked last


def rank(
    dataset: Dataset,
    requests: Requests,
    scorer: Scorer,
    protocol: Protocol,
    *,
    top: int = 0,
    negatives: int = 0,
    bar: Progress | None = None,
) -> Ranked:
    """Rank all requests.

    Args:
        top: K, best items kept of each request.
        negatives: n, scores of non-targets drawn beside each target.
    """
    parts = []
    for start, block in _blocks(dataset, requests, protocol):
        chosen = slice(start, start + block)
        rng = np.random.default_rng([protocol.seed, start])
        parts.append(_Block(dataset, requests, chosen, scorer, protocol, rng).ranked(top, negatives))
        if bar:
            bar.advance(block)
    columns = {name: np.concatenate([vars(p)[name] for p in parts]) for name in _COLUMNS}
    return Ranked(owner=requests.owner, item=requests.target, nan=sum(p.nan for p in parts), **columns)


_COLUMNS = ("higher", "equal", "candidates", "top", "positive", "negative")


def _blocks(dataset: Dataset, requests: Requests, protocol: Protocol) -> Iterator[tuple[int, int]]:
    size = 256 if protocol.candidates != "all" else min(512, max(16, SCORES // dataset.schema.items))
    for start in range(0, len(requests), size):
        yield start, min(size, len(requests) - start)


@dataclass(frozen=True)
class _Part:
    higher: Array
    equal: Array
    candidates: Array
    top: Array
    positive: Array
    negative: Array
    nan: int


class _Block:
    """B requests with their scores (B, C): -inf where a column is no candidate of the row."""

    def __init__(
        self,
        dataset: Dataset,
        requests: Requests,
        chosen: slice,
        scorer: Scorer,
        protocol: Protocol,
        rng: np.random.Generator,
    ) -> None:
        self.rng = rng
        self.targets = requests.padded(chosen, requests.target)
        self.present, self.known = self.targets >= 0, self.targets > 0
        count = dataset.schema.items
        if protocol.candidates == "all":
            self.items = np.arange(count)[None, :]
            self.columns = np.maximum(self.targets, 0)
            nothing = np.zeros((len(self.targets), 0), np.int64)
            scores = scorer.all(requests.batch(dataset, chosen, nothing, scorer.reads))
        else:
            others = (
                listed_of(requests, chosen, self.targets)
                if protocol.candidates == "listed"
                else sampled_of(requests, chosen, self.targets, count, protocol.negatives, rng)
            )
            self.items = np.concatenate([np.maximum(self.targets, 0), others], 1)
            self.columns = np.broadcast_to(np.arange(self.targets.shape[1]), self.targets.shape)
            scores = scorer.candidates(requests.batch(dataset, chosen, self.items, scorer.reads))
        self._clean(scores.numpy().copy())
        if protocol.candidates == "all" and protocol.exclude_seen:
            self.scores[excluded_of(requests, chosen, self.targets)] = -np.inf

    def _clean(self, scores: Array) -> None:
        self.nan = 0
        if not np.isfinite(scores).all():
            self.nan = int(np.isnan(scores).sum())
            np.nan_to_num(scores, copy=False, nan=LOWEST, posinf=HIGHEST, neginf=LOWEST)
        scores[np.broadcast_to(self.items == 0, scores.shape)] = -np.inf
        self.scores = scores

    def ranked(self, top: int, negatives: int) -> _Part:
        own = np.take_along_axis(self.scores, self.columns, 1)
        higher, equal, candidates = self._counts(own)
        best = self._top(top)
        drawn = self._negatives(negatives)
        keep = self.present
        return _Part(
            higher=higher[keep],
            equal=np.where(self.known, equal, 0)[keep],
            candidates=candidates,
            top=best,
            positive=np.where(self.known, own, np.nan)[keep],
            negative=drawn[keep],
            nan=self.nan,
        )

    def _counts(self, own: Array) -> tuple[Array, Array, Array]:
        ordered = torch.from_numpy(np.sort(self.scores, 1))
        sought = torch.from_numpy(np.ascontiguousarray(own))
        below = torch.searchsorted(ordered, sought).numpy()
        up_to = torch.searchsorted(ordered, sought, right=True).numpy()
        candidates = (self.scores > -np.inf).sum(1)
        return self.scores.shape[1] - up_to, up_to - below, candidates

    def _top(self, count: int) -> Array:
        count = min(count, self.scores.shape[1])
        if not count:
            return np.zeros((len(self.scores), 0), np.int64)
        values, columns = torch.from_numpy(self.scores).topk(count, 1)
        items = np.take_along_axis(np.broadcast_to(self.items, self.scores.shape), columns.numpy(), 1)
        return np.where(values.numpy() > -np.inf, items, 0)

    def _negatives(self, count: int) -> Array:
        """(B, T, count) scores of columns that are candidates and no targets, drawn uniformly."""
        shape = (*self.targets.shape, count)
        drawn = np.full(shape, np.nan, np.float32)
        if not count:
            return drawn
        allowed = self.scores.copy()
        rows, slots = np.nonzero(self.known)
        allowed[rows, self.columns[rows, slots]] = -np.inf
        open_ = np.broadcast_to(self.present[:, :, None], shape).copy()
        for _ in range(ROUNDS):
            rows, slots, draws = np.nonzero(open_)
            scores = allowed[rows, self.rng.integers(0, allowed.shape[1], len(rows))]
            good = scores > -np.inf
            drawn[rows[good], slots[good], draws[good]] = scores[good]
            open_[rows[good], slots[good], draws[good]] = False
            if good.all():
                break
        return drawn
