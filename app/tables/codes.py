"""Rows as product codes: each run of columns is the nearest of a few codewords. numpy and faiss alone.

A row of D floats is cut into M runs of columns, and of each run the number of one of W codewords is kept
(Jégou et al. 2011, "Product quantization for nearest neighbor search"): M bytes a row, and M x W codewords
for all rows together. Rows are put together where they are needed, for a moment: in numpy that and a product
take less time than the sum of M numbers of a table of the codewords' products (docs/log.md).

Shapes: N rows, D columns, M codes a row, W codewords a code, w columns of the widest run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import RecipeError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
WORD = np.dtype("<f2")
MOST_WORDS = 256  # a code is a byte
ITERATIONS = 25  # of k-means
SAMPLED = 256  # rows a codeword that k-means looks at, at most


def runs(width: int, codes: int) -> list[slice]:
    """The columns of each code: runs of about one length, the longer ones first."""
    edges = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(width), codes))])
    return [slice(int(low), int(high)) for low, high in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Codes:
    """N rows as codes.

    Attributes:
        width: D.
        codes: (N, M) uint8.
        words: (M, W, w) float32; a run of fewer than w columns is followed by zeros.
    """

    width: int
    codes: Array
    words: Floats

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def bytes(self) -> int:
        """Bytes of the codes and the codewords as they are stored."""
        return int(self.codes.nbytes + self.words.size * WORD.itemsize)

    def gather(self, ids: Array) -> Floats:
        """Rows (…, D) float32 of ids (…)."""
        return self.decode(self.codes.take(ids, 0))

    def decode(self, codes: Array) -> Floats:
        """Rows (…, D) float32 of codes (…, M)."""
        flat = self.words.reshape(-1, self.words.shape[2])
        rows: Floats = flat.take(codes + self.first, 0).reshape(*codes.shape[:-1], -1)
        return rows if rows.shape[-1] == self.width else rows.take(self.columns, -1)

    @cached_property
    def first(self) -> Array:
        """(M,) int32: the first codeword of each code among all of them."""
        return np.arange(self.words.shape[0], dtype=np.int32) * np.int32(self.words.shape[1])

    @cached_property
    def columns(self) -> Array:
        """(D,) int64: places of the columns in rows of M * w floats, where short runs are padded."""
        widest, cut = self.words.shape[2], runs(self.width, self.codes.shape[1])
        return np.concatenate([m * widest + np.arange(run.stop - run.start) for m, run in enumerate(cut)])


def learn_codes(rows: Array, codes: int, words: int, seed: int, weight: Array | None = None) -> Codes:
    """Codes of rows (N, D), with the codewords that k-means finds for each run of columns.

    Args:
        codes: M, at most D.
        words: W, at most 256 and N.
        seed: of the first codewords.
        weight: (N,) above 0, how much the error of each row counts; None: all alike.

    Raises:
        RecipeError: more codes than columns, or fewer rows than codewords.
    """
    count, width = rows.shape
    _refuse(count, width, codes, words)
    parts = runs(width, codes)
    found = np.zeros((codes, words, parts[0].stop), np.float32)
    nearest = np.empty((count, codes), np.uint8)
    for m, run in enumerate(parts):
        part = np.ascontiguousarray(rows[:, run], np.float32)
        found[m, :, : part.shape[1]], nearest[:, m] = _k_means(part, words, seed, weight)
    return Codes(width, nearest, found.astype(WORD).astype(np.float32))


def _k_means(part: Floats, words: int, seed: int, weight: Array | None) -> tuple[Floats, Array]:
    import faiss

    means = faiss.Kmeans(
        part.shape[1],
        words,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLED,
    )
    means.train(part, weights=None if weight is None else np.ascontiguousarray(weight, np.float32))
    found, nearest = np.asarray(means.centroids, np.float32), means.index.search(part, 1)[1]
    return found, np.asarray(nearest).ravel()


def _refuse(count: int, width: int, codes: int, words: int) -> None:
    if codes > width:
        raise RecipeError(
            f"{codes} codes for rows of {width} columns",
            where="compress.product.codes",
            remedy=f"set at most {width}",
        )
    if words > count:
        raise RecipeError(
            f"{words} codewords for {count} rows",
            where="compress.product.words",
            remedy=f"set at most {count}, or leave the step 'product' out of compress.steps",
        )
