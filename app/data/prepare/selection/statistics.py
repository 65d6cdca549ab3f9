"""Exact statistics of a column over the buckets, in bounded memory.

An order statistic is found by counting: values map to 64-bit keys in their order, a pass
counts the keys in equal bins of the range that holds the wanted rank, and the range shrinks
to one bin, until a bin is one key. Four passes are enough for any column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from app.data.ray_map import cores, run_all

Array = npt.NDArray[Any]
_BINS = 1 << 16
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class Column:
    """A column, float64 or int64, of Arrow files in `scratch`; NaN does not count.

    Attributes:
        scratch: folder of the files.
        files: their names, NAME.SUFFIX.
        name: of the column.
        mask: rows count where the array NAME.MASK.npy is 0; empty: all rows do.
    """

    scratch: str
    files: tuple[str, ...]
    name: str
    mask: str = ""

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Each linear between the two nearest values, as numpy's; NaN of an empty column."""
        count = sum(self._each(_count))
        if count == 0:
            return [math.nan] * len(shares)
        ranks = [share * (count - 1) for share in shares]
        values = self.ranked([nearest(rank) for rank in ranks for nearest in (math.floor, math.ceil)])
        return [
            float(low + (high - low) * (rank - math.floor(rank)))
            for rank, low, high in zip(ranks, values[::2], values[1::2], strict=True)
        ]

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation (of the population); NaN of an empty column."""
        count = sum(self._each(_count))
        if count == 0:
            return math.nan, math.nan
        mean = math.fsum(self._each(_total)) / count
        return mean, math.sqrt(math.fsum(self._each(_squares, mean)) / count)

    def count_from(self, least: float) -> int:
        """Number of values of at least `least`."""
        return int(sum(self._each(_count_from, least)))

    def ranked(self, ranks: Sequence[int]) -> list[Any]:
        """The values at these positions of the sorted column, exactly."""
        low = [0] * len(ranks)
        width = [1 << 48] * len(ranks)  # 2**16 bins of 2**48 keys are all of them
        below = [0] * len(ranks)
        kind = ""
        while True:
            counts = np.zeros((len(ranks), _BINS), np.int64)
            for histogram, kind in self._parts(_histogram, low, width):  # noqa: B007
                counts += histogram
            for i, rank in enumerate(ranks):
                sums = np.cumsum(counts[i])
                chosen = int(np.searchsorted(sums, rank - below[i], side="right"))
                below[i] += int(sums[chosen] - counts[i][chosen])
                low[i] += chosen * width[i]
            if width[0] == 1:
                return [_value(key, kind) for key in low]
            width = [w >> 16 for w in width]

    def _each(self, work: Any, *more: Any) -> list[Any]:
        """One figure a file, in their order, so that sums do not depend on the cores."""
        figures = dict(pair for part in self._parts(_by_file, work, more) for pair in part)
        return [figures[name] for name in self.files]

    def _parts(self, work: Any, *more: Any) -> Iterator[Any]:
        shares = [s for s in (self.files[i :: cores()] for i in range(cores())) if s]
        calls = [(Column(self.scratch, share, self.name, self.mask), *more) for share in shares]
        yield from (result for _, result in run_all(work, calls, "", self.scratch))

    def read(self, file: str) -> Iterator[Array]:
        """The values of one file that count, a record batch at a time."""
        path = Path(self.scratch) / file
        counts = np.load(path.with_suffix(f".{self.mask}.npy"), mmap_mode="r") == 0 if self.mask else None
        start = 0
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                values = reader.get_batch(i).column(self.name).to_numpy(zero_copy_only=False)
                start, rows = start + len(values), slice(start, start + len(values))
                values = values if counts is None else values[counts[rows]]
                yield values if values.dtype == np.int64 else values[~np.isnan(values)]


def _by_file(column: Column, work: Any, more: Any) -> list[tuple[str, Any]]:
    return [(file, math.fsum(work(values, *more) for values in column.read(file))) for file in column.files]


def _count(values: Array) -> int:
    return len(values)


def _count_from(values: Array, least: float) -> int:
    return int(np.count_nonzero(values >= least))


def _total(values: Array) -> float:
    return float(values.sum())


def _squares(values: Array, mean: float) -> float:
    return float(((values - mean) ** 2).sum())


def _keys(values: Array) -> npt.NDArray[np.uint64]:
    bits = values.view(np.uint64)
    if values.dtype == np.int64:
        return bits ^ _SIGN
    # Doubles in the order of their bits: negative ones count down.
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _value(key: int, kind: str) -> Any:
    bits = np.uint64(key)
    if kind == "i":
        return int((bits ^ _SIGN).view(np.int64))
    return float((bits ^ _SIGN if bits & _SIGN else ~bits).view(np.float64))


def _histogram(column: Column, low: list[int], width: list[int]) -> tuple[Array, str]:
    # Ranks near each other look into the same range, which is counted once.
    ranges = {pair: np.zeros(_BINS, np.int64) for pair in zip(low, width, strict=True)}
    kind = ""
    for file in column.files:
        for values in column.read(file):
            kind, keys = values.dtype.kind, _keys(values)
            for (start, step), counts in ranges.items():
                bins = (keys - np.uint64(start)) >> np.uint64(step.bit_length() - 1)
                inside = bins[(keys >= np.uint64(start)) & (bins < _BINS)]
                counts += np.bincount(inside.astype(np.int64), minlength=_BINS)
    return np.stack([ranges[pair] for pair in zip(low, width, strict=True)]), kind
