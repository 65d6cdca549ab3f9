"""Exact statistics of a column over many Arrow files, in bounded memory.

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

from app.data.prepare.partition import within_bounds
from app.data.prepare.plan import Plan
from app.data.ray_map import cores, run_all
from app.recipe import Outlier

Array = npt.NDArray[Any]
_BINS = 1 << 16
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class OutlierBounds:
    """Values of a column beyond `low` and `high` are outliers."""

    column: str
    low: float
    high: float
    clip: bool


def find_outlier_bounds(plan: Plan, files: Sequence[str]) -> list[OutlierBounds]:
    """The fences of the recipe's outlier rules over the rows in `files`."""
    return [_bounds_of(rule, plan, files) for rule in plan.data.outliers]


def _bounds_of(rule: Outlier, plan: Plan, files: Sequence[str]) -> OutlierBounds:
    column = Column(plan.scratch, tuple(files), within_bounds(rule.column))
    if rule.method == "iqr":
        low, high = (column.quantile(q) for q in (0.25, 0.75))
        reach = rule.threshold * (high - low)
    else:
        mean, deviation = column.moments()
        low = high = mean
        reach = rule.threshold * deviation
    return OutlierBounds(rule.column, low - reach, high + reach, rule.action == "clip")


@dataclass(frozen=True)
class Column:
    """A column, float64 or int64, of Arrow files in `scratch`; NaN does not count."""

    scratch: str
    files: tuple[str, ...]
    name: str

    def quantile(self, share: float) -> float:
        """Linear between the two nearest values, as numpy's; NaN of an empty column."""
        count = sum(self._each(_count))
        if count == 0:
            return math.nan
        place = share * (count - 1)
        low, high = self.ranked([math.floor(place), math.ceil(place)])
        return float(low + (high - low) * (place - math.floor(place)))

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation (of the population); NaN of an empty column."""
        count = sum(self._each(_count))
        if count == 0:
            return math.nan, math.nan
        mean = math.fsum(self._each(_total)) / count
        return mean, math.sqrt(math.fsum(self._each(_squares, mean)) / count)

    def ranked(self, ranks: Sequence[int]) -> list[Any]:
        """The values at these positions of the sorted column, exactly."""
        low = [0] * len(ranks)
        width = [1 << 48] * len(ranks)  # 2**16 bins of 2**48 keys are all of them
        below = [0] * len(ranks)
        kind = ""
        while True:
            counts = np.zeros((len(ranks), _BINS), np.int64)
            for made, kind in self._parts(_histogram, low, width):  # noqa: B007
                counts += made
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
        found = dict(pair for part in self._parts(_by_file, work, more) for pair in part)
        return [found[name] for name in self.files]

    def _parts(self, work: Any, *more: Any) -> Iterator[Any]:
        shares = [s for s in (self.files[i :: cores()] for i in range(cores())) if s]
        calls = [(self.scratch, share, self.name, *more) for share in shares]
        yield from (result for _, result in run_all(work, calls, "", self.scratch))


def _read(scratch: str, file: str, name: str) -> Iterator[Array]:
    with pa.OSFile(str(Path(scratch) / file)) as source:
        field = pa.ipc.open_file(source).schema.get_field_index(name)
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[field]))
        for i in range(reader.num_record_batches):
            values = reader.get_batch(i).column(0).to_numpy(zero_copy_only=False)
            yield values if values.dtype == np.int64 else values[~np.isnan(values)]


def _by_file(scratch: str, files: Sequence[str], name: str, work: Any, more: Any) -> list[tuple[str, Any]]:
    return [(f, math.fsum(work(v, *more) for v in _read(scratch, f, name))) for f in files]


def _count(values: Array) -> int:
    return len(values)


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


def _histogram(
    scratch: str, files: Sequence[str], name: str, low: list[int], width: list[int]
) -> tuple[Array, str]:
    counts, kind = np.zeros((len(low), _BINS), np.int64), ""
    for file in files:
        for values in _read(scratch, file, name):
            kind, keys = values.dtype.kind, _keys(values)
            for i, (start, step) in enumerate(zip(low, width, strict=True)):
                bins = (keys - np.uint64(start)) >> np.uint64(step.bit_length() - 1)
                inside = bins[(keys >= np.uint64(start)) & (bins < _BINS)]
                counts[i] += np.bincount(inside.astype(np.int64), minlength=_BINS)
    return counts, kind
