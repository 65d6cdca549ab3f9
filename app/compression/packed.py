"""Rows that training learns in the form they are stored in: product codes, or numbers.

They stand in `Model.packed`, instead of what a piece of the model says. What a batch sees is what will be
served, to the last bit but for a scale that half precision rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.compression.rows import CodedRows, Packed, ProjectedRows, values_of
from app.data.dataset import Array
from app.models.base import Model
from app.tables.codes import Codes, runs
from app.tables.form import Precision
from app.tables.quantise import LEVELS, Integers, quantise, restore, unit_of
from app.tables.write import BLOCK

MOVED_ROWS = 1 << 20  # of a larger table codes stay as they are: its floats and their moments are too many


class CodeRows(nn.Module):
    """Rows of product codes: the codewords are learned, and which of them a row has.

    Behind the codes are the rows as floats. They feel the gradient that the codes cannot (van den Oord et al.
    2017, "Neural discrete representation learning"), and `choose` gives each run of columns its nearest
    codeword. Of a large table the codewords alone are learned.
    """

    codes: Tensor

    def __init__(self, coded: CodedRows) -> None:
        super().__init__()
        codes = coded.codes
        self.width, self.values = codes.width, coded.values
        self.runs = runs(codes.width, codes.codes.shape[1])
        self.register_buffer("codes", torch.from_numpy(np.array(codes.codes)))
        self.words = nn.Parameter(torch.from_numpy(codes.words.copy()))
        moves = len(coded.values) <= MOVED_ROWS
        self.rows = nn.Parameter(torch.from_numpy(np.array(coded.values))) if moves else None
        self.register_buffer("first", torch.from_numpy(codes.first), persistent=False)
        self.register_buffer("columns", torch.from_numpy(codes.columns), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…, D) of ids (…)."""
        chosen = self.codes[ids].to(torch.int64) + self.get_buffer("first")
        rows = F.embedding(chosen, self.words.flatten(0, 1)).flatten(-2)
        if rows.shape[-1] != self.width:  # short runs are padded
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
        return CodedRows(codes, self.values if self.rows is None else _array(self.rows))


class NumberRows(nn.Module):
    """Rows of numbers: learned as floats, and felt as integers where they will be stored as such.

    The gradient passes as if nothing had been rounded (Bengio et al. 2013, "Estimating or propagating
    gradients through stochastic neurons", the straight-through estimator). A step takes that of the whole
    table.
    """

    def __init__(self, rows: Array, precision: Precision, group: int) -> None:
        super().__init__()
        self.group, self.integers = group, cast(Integers, precision) if precision in LEVELS else None
        self.unit = unit_of(rows, self.integers, BLOCK) if self.integers else 1.0
        self.rows = nn.Parameter(torch.from_numpy(np.array(rows, np.float32)))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…, D) of ids (…)."""
        if self.integers is None:
            return F.embedding(ids, self.rows)
        distinct, position = torch.unique(ids, return_inverse=True)  # each is rounded once
        rows, width = F.embedding(distinct, self.rows), self.rows.shape[1]
        plain = rows.detach().float().cpu().numpy()
        codes, scales = quantise(plain, self.integers, self.group, self.unit)
        felt = torch.from_numpy(restore(codes, scales, self.integers, width, self.group, self.unit))
        return F.embedding(position, rows + (felt.to(rows.device) - rows).detach())

    def stored(self) -> Packed:
        """The rows as floats, which are rounded when they are stored."""
        return _array(self.rows)


class CoefficientRows(nn.Module):
    """Rows by their coefficients, which are learned as they are stored; the basis stays as it is."""

    def __init__(self, rows: ProjectedRows, precision: Precision, group: int) -> None:
        super().__init__()
        self.coefficients = _module(rows.coefficients, precision, group)
        self.register_buffer("basis", torch.from_numpy(np.array(rows.basis)))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…, D) of ids (…)."""
        rows: Tensor = self.coefficients(ids)
        return rows @ self.get_buffer("basis").to(rows.dtype)

    def stored(self) -> Packed:
        """The coefficients as they are now, and the rows that they stand for."""
        inner = cast(Array | CodedRows, self.coefficients.stored())
        basis = self.get_buffer("basis").cpu().numpy()
        return ProjectedRows(inner, basis, values_of(inner) @ basis)


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
    made: dict[int, nn.Module] = {}
    for kind, values in rows.items():
        if not values_of(values).size:
            continue
        if id(values) in made:
            model.packed[kind] = SameRows(made[id(values)])
            continue
        made[id(values)] = model.packed[kind] = _module(values, precision, group)


def coded_rows(model: Model) -> list[CodeRows]:
    """The product codes among the rows that were put into a model."""
    return [module for module in model.packed.modules() if isinstance(module, CodeRows)]


def _module(rows: Packed, precision: Precision, group: int) -> CodeRows | NumberRows | CoefficientRows:
    if isinstance(rows, ProjectedRows):
        return CoefficientRows(rows, precision, group)
    return CodeRows(rows) if isinstance(rows, CodedRows) else NumberRows(rows, precision, group)


def unpack(model: Model, rows: Mapping[str, Packed]) -> dict[str, Packed]:
    """Take out of a model what `pack` put into it, as it has become; other kinds stay as `rows` has them."""
    result, stored = dict(rows), {}
    for kind in rows:
        if kind in model.packed and not isinstance(module := model.packed[kind], SameRows):
            stored[id(rows[kind])] = cast(CodeRows | NumberRows | CoefficientRows, module).stored()
    for kind, values in rows.items():
        result[kind] = stored.get(id(values), values)
    model.packed.clear()
    return result


def _array(rows: Tensor) -> Array:
    array: Array = rows.detach().cpu().numpy().copy()
    return array
