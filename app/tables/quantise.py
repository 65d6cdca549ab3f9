"""Rows of floats as small integers, with a scale for each group of columns. numpy alone.

A value is its level times the scale of its group. Levels are -127 to 127 (int8), -7 to 7 (int4), or -1.5,
-.5, .5 and 1.5 (int2), which has no 0. The scale of int8 is the largest magnitude over 127, so that an error
is at most half a scale. With fewer levels it pays to cut the largest magnitudes off: of several ranges the
one whose squared error is the least is taken, with the scale that is the least-squares fit of its levels
(two steps of Lloyd 1982, "Least squares quantization in PCM").

Shapes: n rows, D columns, G groups of g columns, the last one perhaps narrower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Integers = Literal["int8", "int4", "int2"]
SCALE = np.dtype("<f2")


@dataclass(frozen=True)
class Levels:
    """The levels of a precision.

    Attributes:
        largest: the highest one; they lie 1 apart and are symmetric.
        values: of a byte: how many it holds, the first one in its lowest bits, as level - zero.
        ranges: shares of the largest magnitude to try as the highest level.
    """

    largest: float
    values: int
    zero: float
    ranges: tuple[float, ...] = (1.0,)

    def bytes(self, width: int) -> int:
        """Bytes of a row, without its scales."""
        return -(-width // self.values)


LEVELS: dict[str, Levels] = {
    "int8": Levels(127, 1, 0),
    "int4": Levels(7, 2, -8, (1.0, 0.9, 0.8, 0.7, 0.6)),
    "int2": Levels(1.5, 4, -1.5, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
}


def groups(width: int, group: int) -> int:
    """How many groups of `group` columns (0: all) a row has."""
    return -(-width // (group or max(1, width)))


def unit_of(rows: Array, precision: Integers, block: int) -> float:
    """The power of two in which scales are given: of the largest one, so that half precision holds all.

    NaN and infinities are passed over; so many rows are looked at at a time.
    """
    peak = 0.0
    for start in range(0, len(rows), block):
        magnitudes = np.abs(rows[start : start + block])
        peak = max(peak, float(magnitudes.max(initial=0.0, where=np.isfinite(magnitudes))))
    scale = max(peak / LEVELS[precision].largest, float(np.finfo(np.float32).tiny))
    return float(2.0 ** np.floor(np.log2(scale)))


def quantise(rows: Floats, precision: Integers, group: int, unit: float) -> tuple[Array, Array]:
    """Codes (n, bytes) of finite rows (n, D), and scales (n, G) in half precision, in `unit`s."""
    levels, count, width = LEVELS[precision], len(rows), rows.shape[1]
    parts, size = groups(width, group), min(group or width, width)
    padded = np.zeros((count, parts * size), np.float32)
    padded[:, :width] = rows / np.float32(unit)  # so that squares do not vanish
    values = padded.reshape(count, parts, size)
    counts = (np.arange(parts * size) < width).reshape(parts, size)  # not the padding
    level, scale = _fitted(values, counts, levels) if len(levels.ranges) > 1 else _plain(values, levels)
    with np.errstate(invalid="ignore"):
        codes = (level - np.float32(levels.zero)).astype(np.int8 if levels.values == 1 else np.uint8)
    return _packed(codes.reshape(count, -1)[:, :width], levels), scale.astype(SCALE)


def _plain(values: Floats, levels: Levels) -> tuple[Floats, Floats]:
    """Levels and scales of whole ranges; the levels are the nearest ones by the scales as they are stored."""
    scale = np.abs(values).max(-1, initial=0.0) / np.float32(levels.largest)
    return _nearest(values, scale.astype(SCALE).astype(np.float32), levels), scale


def _fitted(values: Floats, counts: Array, levels: Levels) -> tuple[Floats, Floats]:
    """Levels and scales of the range with the least squared error, group by group."""
    peak = np.abs(values).max(-1, initial=0.0) / np.float32(levels.largest)
    best, scale, kept = np.full_like(values, levels.largest), np.zeros_like(peak), np.zeros_like(peak)
    for share in levels.ranges:
        level = _nearest(values, peak * np.float32(share), levels)
        along = np.where(counts, level * values, 0).sum(-1)
        fit = along / np.maximum(np.where(counts, level * level, 0).sum(-1), np.float32(0.25))
        explained = along * fit  # of the sum of squares: the more, the smaller the error
        better = explained > kept * np.float32(1 + 1e-6)
        best = np.where(better[..., None], level, best)
        scale, kept = np.where(better, fit, scale), np.where(better, explained, kept)
    return best, scale


def _nearest(values: Floats, scale: Floats, levels: Levels) -> Floats:
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]
    shift = np.float32(levels.largest % 1)  # levels of an even number lie at halves
    with np.errstate(invalid="ignore", over="ignore"):
        level = np.rint(values / divisor - shift) + shift
    nearest: Floats = np.clip(level, -levels.largest, levels.largest)
    return nearest


def _packed(codes: Array, levels: Levels) -> Array:
    if levels.values == 1:
        return codes
    padded = np.zeros((len(codes), levels.bytes(codes.shape[1]) * levels.values), np.uint8)
    padded[:, : codes.shape[1]] = codes
    bits = 8 // levels.values
    packed = np.zeros((len(codes), padded.shape[1] // levels.values), np.uint8)
    for place in range(levels.values):
        packed |= padded[:, place :: levels.values] << (place * bits)
    return packed


def _table(levels: Levels) -> Array:
    """The values of every byte side by side, as one number of as many bytes."""
    bits = 8 // levels.values
    codes = np.arange(256)[:, None] >> (bits * np.arange(levels.values)) & (2**bits - 1)
    values = (codes + levels.zero).astype(np.float32)
    table: Array = values.view(np.uint64 if levels.values == 2 else np.complex128).ravel()
    return table


_TABLES = {name: _table(levels) for name, levels in LEVELS.items() if levels.values > 1}


def restore(codes: Array, scales: Array, precision: Integers, width: int, group: int, unit: float) -> Floats:
    """Rows (…, D) float32 of codes (…, bytes) and scales (…, G)."""
    scale = scales.astype(np.float32) * np.float32(unit)
    if scale.shape[-1] > 1:
        scale = np.repeat(scale, group, -1)[..., :width]
    levels = codes if precision == "int8" else _TABLES[precision].take(codes).view(np.float32)
    rows: Floats = np.multiply(levels[..., :width], scale, dtype=np.float32)
    return rows
