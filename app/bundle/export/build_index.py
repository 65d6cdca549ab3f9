"""Export of a faiss index: built from item rows, tuned on user states until it finds enough."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle.format.layout import Array, IndexInfo
from app.bundle.ranking.rows import Blocks
from app.bundle.retrieval.index import Approximate, Exact, Index, import_faiss
from app.bundle.retrieval.pool import EligibleItems, ScoredCandidates
from app.errors import RecipeError
from app.tables.rows import Rows

EXACT_ITEMS = 100_000  # up to which every item is scored
K = 20  # of the recall that is measured
PER_LIST = 40  # vectors that train a list of ivf
LINKS, BUILD = 32, 80  # of a vector in hnsw, and length of the queue while it is built
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
PROPOSE = {"ivf_sq8": 2, "ivf_pq": 4, "hnsw": 2}


def kind_of(setting: str, items: int, *, retrieves: bool, model: str) -> str:
    """Which index a bundle gets: "exact", or a kind of faiss; "" where a model has no user vector.

    Args:
        setting: export.index.
        items: rows, row 0 counted.
        retrieves: whether a score is the inner product of user state and item row.
        model: its name.

    Raises:
        RecipeError: an index is wanted that the model cannot use.
    """
    if not retrieves:
        if setting not in ("auto", "exact"):
            raise RecipeError(f"{model} has no user vector", where="export.index", remedy='leave it "auto"')
        return ""
    if setting != "auto":
        return setting
    return "exact" if items <= EXACT_ITEMS else "ivf_sq8"


def build(
    kind: str,
    rows: Rows,
    states: Array,
    eligible: Sequence[EligibleItems],
    target: float,
    path: Path,
) -> tuple[IndexInfo, float]:
    """Write the index at `path`, tuned to find `target` of the best 20.

    Args:
        kind: of IndexInfo.
        rows: of the items.
        states: (B, Q) user states; every other one tunes, the rest measure.
        eligible: the items that may be found for each state.
        target: share of the exact best 20.
        path: of the file; its folder is made.

    Returns:
        How it was tuned, and the recall@20 of the states that did not tune it.
    """
    faiss = import_faiss("export.index")
    faiss.omp_set_num_threads(1 if len(rows) < EXACT_ITEMS else os.cpu_count() or 1)
    path.parent.mkdir()
    faiss.write_index(_train(faiss, kind, rows), str(path))
    tuning, held_out = (_Trial(states[part::2], rows, eligible[part::2]) for part in (0, 1))
    info = _tune(kind, rows, tuning, target, path)
    return info, held_out.recall(Approximate(path, info, rows, 1))


def _train(faiss: Any, kind: str, rows: Rows) -> Any:
    count, width, metric = len(rows), rows.width, faiss.METRIC_INNER_PRODUCT
    lists = max(1, min(int(4 * math.sqrt(count)), count // PER_LIST))
    code = f"PQ{_pieces(width)}x8" if kind == "ivf_pq" else "SQ8"
    text = f"HNSW{LINKS},{code}" if kind == "hnsw" else f"IVF{lists},{code}"
    index = faiss.index_factory(width, text, metric)
    if kind == "hnsw":
        index.hnsw.efConstruction = BUILD
    sample = np.random.default_rng(0).choice(count, min(count, max(1 << 16, lists * PER_LIST)), replace=False)
    index.train(rows.gather(np.sort(sample)))
    for _, block in Blocks(rows):
        index.add(np.ascontiguousarray(block))
    return index


def _pieces(width: int) -> int:
    """Codes of a vector, two floats each where they divide."""
    return next(size for size in range(max(1, width // 2), 0, -1) if width % size == 0)


def _tune(kind: str, rows: Rows, tuning: _Trial, target: float, path: Path) -> IndexInfo:
    """The least reach that finds a little more than the target, or the widest."""
    size = path.stat().st_size
    for reach in LADDER:
        info = IndexInfo(kind=kind, bytes=size, reach=reach, propose=PROPOSE[kind])  # type: ignore[arg-type]
        if tuning.recall(Approximate(path, info, rows, 1)) >= target + (1 - target) / 4:
            break
    return info


class _Trial:
    """User states and the items that exact search finds for them."""

    def __init__(self, states: Array, rows: Rows, eligible: Sequence[EligibleItems]) -> None:
        self.states, self.eligible = states, eligible
        self.truth = self._search(Exact(Blocks(rows)))

    def recall(self, index: Index) -> float:
        return recall(self._search(index), self.truth)

    def _search(self, index: Index) -> list[Array]:
        step = 256
        return [
            top(pool)
            for start in range(0, len(self.states), step)
            for pool in index.search(
                self.states[start : start + step], K, self.eligible[start : start + step]
            )
        ]


def top(pool: ScoredCandidates) -> Array:
    """The best K rows of a pool."""
    return pool.rows[np.argsort(-pool.scores, kind="stable")[:K]]


def recall(answers: Sequence[Array], truth: Sequence[Array]) -> float:
    """Mean share of the true rows that the answers hold, of those with true rows; 1 without any."""
    shares = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(answers, truth, strict=True) if len(b)]
    return float(np.mean(shares)) if shares else 1.0
