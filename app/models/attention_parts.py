"""Pieces of layers over sequences: what sees what, how far apart events are, heads, and a causal filter.

Shapes: B users, L events, D floats an event.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.models.base import History


def visible(mask: Tensor) -> Tensor:
    """(B, 1, L, L) bool: whether an event (second last axis) sees another (last): itself, and those before.

    Args:
        mask: (B, L), 1 where there is an event; padding sees itself alone.
    """
    lag = lags(mask)
    return ((lag > 0) & (mask > 0)[:, None, None]) | (lag == 0)


def lags(mask: Tensor) -> Tensor:
    """(L, L) int64: how many events the second lies behind the first; negative where it follows."""
    number = torch.arange(mask.shape[1], device=mask.device)
    return number[:, None] - number


def elapsed(history: History) -> Tensor:
    """(B, L, L) float32: hours from the second event (last axis) to the first, 0 where it follows.

    Each gap between neighbours counts as 90 days at most, as `History.gap` has it.
    """
    hours = ((history.gap.float() * history.mask).exp() - 1).cumsum(1)  # ONNX has no expm1
    return (hours.unsqueeze(2) - hours.unsqueeze(1)).clamp(min=0)


def split_heads(events: Tensor, heads: int) -> Tensor:
    """(B, heads, L, D / heads) of (B, L, D)."""
    return events.reshape(*events.shape[:2], heads, -1).transpose(1, 2)


class CausalFilter(nn.Module):
    """Low frequencies of a sequence, and the rest with a learned weight (Shin et al. 2024, "BSARec").

    The published filter transforms the whole padded window, so that an event is smoothed with those that
    follow. This one is the same filter as an average over lags, of which those into the future are left out:
    at the last event of a window both are equal.

    Args:
        length: events of the window, whose frequencies are meant.
        frequencies: the lowest ones, that are kept.
    """

    kernel: Tensor

    def __init__(self, width: int, length: int, frequencies: int) -> None:
        super().__init__()
        kept = torch.arange(min(frequencies, length // 2 + 1))
        waves = torch.cos(2 * math.pi * kept[:, None] * torch.arange(length + 1) / length)
        # Each frequency stands for itself and its mirror image, but for the lowest and the highest.
        twice = torch.where((kept == 0) | (2 * kept == length), 1.0, 2.0)
        self.register_buffer("kernel", twice @ waves / length, persistent=False)
        # Its square weighs the high frequencies: at first some floats are smooth and some are sharpened.
        self.rest = nn.Parameter(torch.randn(width))

    def forward(self, events: Tensor, mask: Tensor, tail: slice) -> Tensor:
        """(B, l, D) of the events `tail` among (B, L, D); `mask` (B, L)."""
        lag = lags(mask)
        weights = self.kernel[lag.clamp(0, len(self.kernel) - 1)] * (lag >= 0)
        low = torch.matmul(weights[tail].to(events.dtype), events * mask.unsqueeze(-1).to(events.dtype))
        return low + self.rest.square() * (events[:, tail] - low)
