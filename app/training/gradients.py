"""Averages gradients over workers, dense and sparse alike, on gloo and NCCL.

DistributedDataParallel hooks `forward`, while a model here is trained through `loss` and its
pieces; and NCCL reduces no sparse tensor. So after the backward pass the dense gradients go
as one flat buffer, and of each sparse one the rows are exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from app.training.optimizers import touched


def average(parameters: Sequence[nn.Parameter], world: int) -> None:
    """Replace each gradient by its mean over the workers; all have the same parameters.

    A weight that some worker's batch did not touch counts there as a gradient of 0.
    """
    if world == 1:
        return
    sparse = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
    rest = [p for p in parameters if p.grad is None or not p.grad.is_sparse]
    _average_dense(rest, world)
    for parameter in sparse:
        assert parameter.grad is not None
        parameter.grad = _average_sparse(parameter.grad, world)


def _average_dense(parameters: Sequence[nn.Parameter], world: int) -> None:
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= world
    pieces = torch.split(flat, [g.numel() for g in gradients])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


def _average_sparse(gradient: Tensor, world: int) -> Tensor:
    rows, values = touched(gradient)
    values = values / world
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    distributed.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    all_rows = torch.cat(_gather(rows, sizes))
    all_values = torch.cat(_gather(values, sizes))
    return torch.sparse_coo_tensor(all_rows.unsqueeze(0), all_values, gradient.shape, check_invariants=False)


def _gather(mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Every worker's rows; padded on the way, because a gather wants equal shapes."""
    padded = mine.new_zeros((max(sizes), *mine.shape[1:]))
    padded[: len(mine)] = mine
    gathered = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(gathered, padded)
    return [rows[:size] for rows, size in zip(gathered, sizes, strict=True)]
