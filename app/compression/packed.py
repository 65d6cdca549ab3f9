"""Rows that training learns in the form they are stored in: product codes, or integers.

They stand in `Model.packed` in the place of a piece. What a batch sees is what will be served, to the last
bit but for a scale that half precision rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.data.dataset import Array
from app.models.base import Model
from app.tables.codes import Codes, runs
from app.tables.form import Precision
from app.tables.quantise import LEVELS, Integers, quantise, restore, unit_of
from app.tables.write import BLOCK

MOVED_ROWS = 1 << 20  # of a larger table codes stay as they are: its floats and their moments are too many


@dataclass(frozen=True)
class CodedRows:
    """Product codes, and the rows (N, D) float32 that they stand for."""

    codes: Codes
    values: Array


Packed = Array | CodedRows


class CodeRows(nn.Module):
    """Rows of product codes: the codewords are learned, and which of them a row has.

    Behind the codes are the rows as floats. They feel the gradient that the codes cannot (van den Oord et al.
    2017, "Neural discrete representation learning"), and `choose` gives each run of columns its nearest
    codeword. Of a large table the codewords alone are learned.
    """

    codes: Tensor

    def __init__(self, coded: CodedRows) -> None:
        super().__init__()
        parts, words, widest = coded.codes.words.shape
        self.width, self.runs = coded.codes.width, runs(coded.codes.width, parts)
        self.register_buffer("codes", torch.from_numpy(np.array(coded.codes.codes)))
        self.words = nn.Parameter(torch.from_numpy(coded.codes.words.copy()))
        moves = len(coded.values) <= MOVED_ROWS
        self.rows = nn.Parameter(torch.from_numpy(np.array(coded.values, np.float32))) if moves else None
        columns = torch.cat(
            [m * widest + torch.arange(run.stop - run.start) for m, run in enumerate(self.runs)]
        )
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("first", torch.arange(parts) * words, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…, D) of ids (…)."""
        chosen = self.codes[ids].to(torch.int64) + self.get_buffer("first")
        rows = F.embedding(chosen, self.words.flatten(0, 1)).flatten(-2)
        if rows.shape[-1] != self.width:
            rows = rows[..., self.get_buffer("columns")]
        if self.rows is None or not torch.is_grad_enabled():
            return rows
        behind = F.embedding(ids, self.rows)
        return rows + (behind - behind.detach())

    @torch.no_grad()
    def choose(self, turn: int) -> None:
        """Give a block of rows the codewords that are nearest to them now; with each turn it is the next one.

        All rows have their turn, whether a step has moved them or not: so all workers choose alike.
        """
        if self.rows is None:
            return
        start = turn % -(-len(self.rows) // BLOCK) * BLOCK
        block = slice(start, start + BLOCK)
        for m, run in enumerate(self.runs):
            words = self.words[m, :, : run.stop - run.start]
            distance = words.square().sum(1) - 2 * self.rows[block, run] @ words.T
            self.codes[block, m] = distance.argmin(1).to(torch.uint8)

    def stored(self) -> Packed:
        """The codes and the codewords as they are now."""
        codes = Codes(self.width, self.codes.cpu().numpy(), self.words.detach().cpu().numpy().copy())
        return CodedRows(
            codes, codes.gather(np.arange(len(codes))) if self.rows is None else _array(self.rows)
        )


class IntegerRows(nn.Module):
    """Rows of integers: learned as floats and felt as integers. A step takes the gradient of the whole table.

    The gradient passes as if nothing had been rounded (Bengio et al. 2013, "Estimating or propagating
    gradients through stochastic neurons", the straight-through estimator).
    """

    def __init__(self, rows: Array, precision: Integers, group: int) -> None:
        super().__init__()
        self.precision, self.group = precision, group
        self.unit = unit_of(rows, precision, BLOCK)
        self.rows = nn.Parameter(torch.from_numpy(np.array(rows, np.float32)))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…, D) of ids (…)."""
        rows = F.embedding(ids, self.rows)
        plain = rows.detach().float().cpu().numpy().reshape(-1, rows.shape[-1])
        codes, scales = quantise(plain, self.precision, self.group, self.unit)
        felt = restore(codes, scales, self.precision, rows.shape[-1], self.group, self.unit)
        return rows + (torch.from_numpy(felt).to(rows.device).view_as(rows) - rows).detach()

    def stored(self) -> Packed:
        """The rows as floats, which are stored as integers afterwards."""
        return _array(self.rows)


class FloatRows(nn.Module):
    """Rows of floats that are learned."""

    def __init__(self, rows: Array) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.from_numpy(np.array(rows, np.float32)))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…, D) of ids (…)."""
        return F.embedding(ids, self.rows)

    def stored(self) -> Packed:
        """The rows."""
        return _array(self.rows)


class SameRows(nn.Module):
    """The rows of another kind: those of candidates, as events of a history."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self._other = [other]  # in a list, so that its weights are counted once

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…, D) of ids (…)."""
        rows: Tensor = self._other[0](ids)
        return rows


def pack(model: Model, rows: Mapping[str, Packed], precision: Precision, group: int) -> None:
    """Put rows into `model.packed`: the same ones for kinds that share them.

    Args:
        rows: of each kind; those of width 0 are left out.
        precision, group: in which those will be stored that are no codes.
    """
    made: list[tuple[Packed, nn.Module]] = []
    for kind, values in rows.items():
        if not width_of(values):
            continue
        same = next((module for other, module in made if other is values), None)
        if same is None:
            made.append((values, module := _module(values, precision, group)))
        else:
            module = SameRows(same)
        model.packed[kind] = module


def unpack(model: Model, rows: Mapping[str, Packed]) -> dict[str, Packed]:
    """Take out of a model what `pack` put into it, as it has become; other kinds stay as `rows` has them."""
    result, stored = dict(rows), {}
    for kind in rows:
        if kind in model.packed and not isinstance(module := model.packed[kind], SameRows):
            stored[id(rows[kind])] = cast(CodeRows | IntegerRows | FloatRows, module).stored()
    for kind, values in rows.items():
        result[kind] = stored.get(id(values), values)
    model.packed.clear()
    return result


def arrays_of(rows: Packed) -> list[Array]:
    """What rows consist of."""
    return [rows.codes.codes, rows.codes.words, rows.values] if isinstance(rows, CodedRows) else [rows]


def as_stored(rows: Packed) -> Array | Codes:
    """What a store is written from."""
    return rows.codes if isinstance(rows, CodedRows) else rows


def width_of(rows: Packed) -> int:
    """D, the columns of rows."""
    return int((rows.values if isinstance(rows, CodedRows) else rows).shape[1])


def _array(rows: Tensor) -> Array:
    array: Array = rows.detach().cpu().numpy().copy()
    return array


def _module(rows: Packed, precision: Precision, group: int) -> nn.Module:
    if isinstance(rows, CodedRows):
        return CodeRows(rows)
    if precision in LEVELS:
        return IntegerRows(rows, cast(Integers, precision), group)
    return FloatRows(rows)
