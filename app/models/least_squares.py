"""Regularised least squares for many rows at once: what alternating least squares solve, over and over.

A row that has the vectors Y (n, D) of one side for its targets 1 solves

    (Y'Y + share * F'F + penalty * (n + share * N) * I) x = sum of Y

where F (N, D) are the vectors of the whole other side. In the basis of `Basis` what all rows share is the
identity, and the penalty's n is diagonal: conjugate gradients then need two small products a step, and few
steps, because n vectors add at most n directions to the identity.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from app.data.dataset import Array

STEPS = 3  # of conjugate gradients, from the vectors of the sweep before
POSITIONS = 1 << 13  # vectors that are gathered at a time: more leave the cache


def conjugate_gradients(rows: Tensor, diagonal: Tensor, target: Tensor, start: Tensor, steps: int) -> Tensor:
    """Solve (diag(diagonal) + rows' rows) x = target for each of B systems, by `steps` steps from `start`.

    Args:
        rows: (B, L, D). diagonal, target, start: (B, D).
    """

    def product(x: Tensor) -> Tensor:
        inner = torch.matmul(rows, x.unsqueeze(2))
        return diagonal * x + torch.matmul(rows.transpose(1, 2), inner).squeeze(2)

    x, residual = start, target - product(start)
    scaled = residual / diagonal
    direction, size = scaled, (residual * scaled).sum(1, keepdim=True)
    for _ in range(steps):
        image = product(direction)
        step = size / (direction * image).sum(1, keepdim=True).clamp(min=1e-20)
        x, residual = x + step * direction, residual - step * image
        scaled = residual / diagonal
        before, size = size, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + direction * (size / before.clamp(min=1e-20))
    return x


class Basis:
    """The basis in which what every row of the other side sees of these vectors (N, D) is the identity."""

    def __init__(self, vectors: Tensor, share: float, penalty: float) -> None:
        self.vectors = vectors
        gram = share * (vectors.T @ vectors)
        gram.diagonal().add_(penalty * share * len(vectors))
        value, vector = torch.linalg.eigh(gram)
        value = value.clamp(min=1e-12)
        self.into, self.back = vector * value.rsqrt(), vector * value.sqrt()
        self.shrink = penalty / value


class Rows:
    """The pairs met of one side (M, N), in blocks of rows of similar length."""

    def __init__(self, met: sparse.csr_array) -> None:
        self.indptr, self.indices = met.indptr.astype(np.int64), met.indices
        self.length = np.diff(self.indptr)
        self.blocks = list(self._blocks())

    def _blocks(self) -> Iterator[Array]:
        order = np.argsort(self.length, kind="stable")
        order = order[np.searchsorted(self.length[order], 1) :]
        while len(order):
            count = max(1, POSITIONS // int(self.length[order[-1]]))
            yield order[-count:]
            order = order[:-count]

    def solve(self, basis: Basis, vectors: Tensor) -> None:
        """Improve the vectors (M, D) of these rows in place, those of the other side being fixed."""
        other = basis.vectors @ basis.into
        for block in self.blocks:
            length = self.length[block]
            diagonal = 1 + torch.from_numpy(length)[:, None] * basis.shrink
            if length.max() > POSITIONS:
                x = self._direct(other, diagonal, int(block[0]))
            else:
                rows = other[self._padded(block, length)]
                x = conjugate_gradients(rows, diagonal, rows.sum(1), vectors[block] @ basis.back, STEPS)
            vectors[block] = x @ basis.into.T

    def _padded(self, block: Array, length: Array) -> Tensor:
        """(B, longest) of the indices of rows; 0, whose vector is 0, where there is none."""
        slot = np.arange(length.max())
        index = self.indices.take(self.indptr[block][:, None] + slot, mode="clip")
        return torch.from_numpy(np.where(slot < length[:, None], index, 0))

    def _direct(self, other: Tensor, diagonal: Tensor, row: int) -> Tensor:
        """The solution (1, D) for a row too long to gather at once, from the sums of its parts."""
        index = torch.from_numpy(self.indices[self.indptr[row] : self.indptr[row + 1]])
        matrix, target = diagonal[0].diag(), torch.zeros_like(diagonal[0])
        for part in torch.split(index, POSITIONS):
            rows = other[part]
            matrix += rows.T @ rows
            target += rows.sum(0)
        solution: Tensor = torch.linalg.solve(matrix, target)
        return solution[None]
