"""Indexes: the nearest items of a user state, exactly or by faiss.

Where a model's score is the inner product of user state and item row, the best items are
found without scoring all: exactly up to about 100,000 items, by faiss beyond. faiss proposes
from coarse codes, and the bundle's own rows decide; its file is mapped, so that replicas
share it.

index/
  faiss.index        what faiss wrote
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from app.bundle.format.layout import Array, IndexInfo, damaged
from app.bundle.ranking.rows import Blocks
from app.bundle.retrieval.item_filter import Match
from app.bundle.retrieval.pool import EligibleItems, ScoredCandidates
from app.errors import MachineError
from app.tables.rows import Rows

GATHERED = 1 << 16  # rows that are gathered in one go
WIDEST = 16  # times that a search reaches further behind a filter
LEFT_OUT = 1000  # items that a user has met which a search looks beyond


class Index(Protocol):
    """The nearest items of user states. Safe to use from several threads."""

    def search(
        self, states: Array, count: int, allowed: Sequence[EligibleItems], effort: float = 1.0
    ) -> list[ScoredCandidates]:
        """At least the `count` best allowed items of each state, where the search meets so many.

        Args:
            states: (B, Q) float32.
            count: of each; items as good as the last come on top of it.
            allowed: of each.
            effort: share of the usual reach, for an index that is not exact.
        """
        ...


class Exact:
    """Scores every item, a block at a time; only what beats the best so far is kept."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def search(
        self, states: Array, count: int, allowed: Sequence[EligibleItems], effort: float = 1.0
    ) -> list[ScoredCandidates]:
        """The nearest items by this index; see Index.search."""
        collectors = [_Best(count, eligible) for eligible in allowed]
        for start, block in self._blocks:
            for collector, scores in zip(collectors, states @ block.T, strict=True):
                collector.add(start, scores)
        return [collector.pool() for collector in collectors]


class _Best:
    """The best allowed items of the blocks so far, for one user vector."""

    def __init__(self, count: int, allowed: EligibleItems) -> None:
        self.count, self.allowed, self.least = count, allowed, -np.inf
        self.rows, self.scores = np.zeros(0, np.int64), np.zeros(0, np.float32)

    def add(self, start: int, scores: Array) -> None:
        """Take in the scores of the items from row `start` on."""
        passing, match = scores >= self.least, self.allowed.match
        if match is not None:
            passing &= match.mask[start : start + len(scores)]
        positions = np.flatnonzero(passing)
        enough = self.count + len(self.allowed.left_out)  # whichever of them are left out
        positions = positions[_highest(scores[positions], enough)]
        positions = positions[self.allowed.keeps(positions + start)]
        rows = np.concatenate([self.rows, positions + start])
        values = np.concatenate([self.scores, scores[positions]])
        kept = _highest(values, self.count)
        self.rows, self.scores = rows[kept], values[kept]
        if len(rows) > self.count:
            self.least = self.scores.min()

    def pool(self) -> ScoredCandidates:
        """The items, ascending by row."""
        return ScoredCandidates(self.rows, self.scores)


def _highest(scores: Array, count: int) -> Array:
    """(N,) bool: the `count` highest, and those as good as the last."""
    if len(scores) <= count:
        return np.ones(len(scores), bool)
    kept: Array = scores >= np.partition(scores, -count)[-count]
    return kept


class Approximate:
    """faiss proposes, the rows decide.

    Args:
        path: of the faiss file.
        info: how it was tuned.
        rows: of the items.
        threads: of one search.

    Raises:
        ArtifactError: the file is missing, damaged or of other rows.
        MachineError: faiss is not installed.
    """

    def __init__(self, path: Path, info: IndexInfo, rows: Rows, threads: int) -> None:
        self.info, self.rows, self._threads = info, rows, threads
        self._faiss = import_faiss(str(path))
        if not path.is_file() or path.stat().st_size != info.bytes:
            raise damaged(path, f"expected {info.bytes} bytes")
        flags = self._faiss.IO_FLAG_MMAP_IFC if info.kind == "hnsw" else self._faiss.IO_FLAG_MMAP
        try:
            self._index = self._faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise damaged(path, str(error).splitlines()[0][:200]) from None
        if self._index.ntotal != len(rows) or self._index.d != rows.width:
            raise damaged(path, f"{self._index.ntotal} rows of {self._index.d}")
        if info.kind != "hnsw":
            # It starts that many threads a search to read ahead, which costs more than the search.
            self._faiss.downcast_InvertedLists(self._index.invlists).prefetch_nthread = 0

    def search(
        self, states: Array, count: int, allowed: Sequence[EligibleItems], effort: float = 1.0
    ) -> list[ScoredCandidates]:
        """The nearest items by this index; see Index.search."""
        alike = defaultdict(list)  # one call for those that differ little
        for i, eligible in enumerate(allowed):
            proposals = count * self.info.propose + min(len(eligible.left_out), LEFT_OUT)
            alike[id(eligible.match), (proposals - 1).bit_length()].append(i)
        pools: list[ScoredCandidates | None] = [None] * len(allowed)
        for (_, exponent), positions in alike.items():
            step = max(1, GATHERED >> exponent)
            for start in range(0, len(positions), step):
                chunk = positions[start : start + step]
                some = [allowed[i] for i in chunk]
                reach = self._reach(some, effort)
                for i, pool in zip(
                    chunk, self._search(states[chunk], 1 << exponent, some, reach), strict=True
                ):
                    pools[i] = pool
        return pools  # type: ignore[return-value]

    def _reach(self, allowed: Sequence[EligibleItems], effort: float) -> float:
        """How far a search goes: further behind a narrow filter, and where the nearest items are left out."""
        match, left_out = allowed[0].match, min(LEFT_OUT, max(len(a.left_out) for a in allowed))
        share = 1.0 if match is None else max(match.count / len(self.rows), 1 / WIDEST)
        lists = 0 if self.info.kind == "hnsw" else 2 * left_out * self._index.nlist // len(self.rows)
        return (self.info.reach * effort + lists) / share

    def _search(
        self, states: Array, proposals: int, allowed: Sequence[EligibleItems], reach: float
    ) -> list[ScoredCandidates]:
        """Pools of states that share a filter."""
        self._faiss.omp_set_num_threads(self._threads)  # a setting of the calling thread
        options = self._options(allowed[0].match, proposals, max(1, math.ceil(reach)))
        _, rows = self._index.search(
            np.ascontiguousarray(states), min(proposals, len(self.rows)), params=options
        )
        rows.sort(1)
        vectors = self.rows.gather(np.maximum(rows, 0))
        scores = np.matmul(vectors, states[:, :, None])[..., 0]
        pools = []
        for eligible, items, values in zip(allowed, rows, scores, strict=True):
            kept = (items >= 0) & eligible.keeps(items)
            pools.append(ScoredCandidates(items[kept], values[kept]))
        return pools

    def _options(self, match: Match | None, proposals: int, reach: int) -> Any:
        """faiss's own parameters of a search."""
        faiss, selected = self._faiss, {}
        if match is not None:
            bits = np.packbits(match.mask, bitorder="little")
            selected["sel"] = faiss.IDSelectorBitmap(bits)
        if self.info.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(reach, proposals), **selected)
        return faiss.SearchParametersIVF(nprobe=min(reach, self._index.nlist), **selected)


def import_faiss(where: str) -> Any:
    """The faiss package, needed only where an index is.

    Raises:
        MachineError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MachineError(
            "the index needs the package faiss", where=where, remedy="pip install faiss-cpu"
        ) from None
    return faiss
