"""Dropout whose masks cost little on a CPU.

There torch draws a float for each number, which in attention takes longer than the products do. Here a random
64-bit integer decides for four numbers, by 16 bits each (an attention of 3.2 million weights, forth and back
on one core: 18 ms instead of 44). Other devices have dropout of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 1 << 16  # a rate is met to 1 / STEPS
NUMBERS = 4  # that a draw decides for


class Dropout(nn.Module):
    """In training numbers become 0 at a rate, and the others grow so that the mean stays.

    Args:
        rate: in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Values of the same shape; in evaluation the same ones."""
        return dropout(values, self.rate, self.training)


def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
    """See Dropout; the draws are those of torch's default generator."""
    keep = STEPS - round(rate * STEPS)
    if not training or keep == STEPS:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, rate)
    draws = torch.empty(-(-values.numel() // NUMBERS), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: values.numel()] < keep - STEPS // 2
    return values * kept.view(values.shape).to(values.dtype).mul_(STEPS / keep)
