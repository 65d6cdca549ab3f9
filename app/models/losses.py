"""Training objectives over logits. In a row, column 0 is the positive unless labels say otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def bce(logits: Tensor, label: Tensor) -> Tensor:
    """Mean binary cross entropy of (B, C) logits and labels."""
    return F.binary_cross_entropy_with_logits(logits, label)


def mse(logits: Tensor, label: Tensor) -> Tensor:
    """Mean squared error of (B, C) outputs and labels."""
    return F.mse_loss(logits, label)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Softmax over the candidates of a row, label-weighted (B, C)."""
    return -(label * logits.log_softmax(1)).sum() / label.sum().clamp(min=1)


def bpr(logits: Tensor, label: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle 2009): the positive above each negative, (B, C)."""
    return -F.logsigmoid(logits[:, :1] - logits[:, 1:]).mean()


def in_batch_softmax(logits: Tensor, items: Tensor, log_popularity: Tensor) -> Tensor:
    """Softmax over the other rows' positives, with logQ correction (Yi 2019).

    Args:
        logits: (B, B), row b's score of row j's positive.
        items: (B,) the positives; equal ones are not each other's negatives.
        log_popularity: (items,) log sampling probability.
    """
    corrected = logits - log_popularity[items]
    same = items[:, None] == items[None, :]
    same.fill_diagonal_(False)
    return F.cross_entropy(
        corrected.masked_fill(same, float("-inf")), torch.arange(len(items), device=items.device)
    )


LISTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce,
    "mse": mse,
    "cross_entropy": cross_entropy,
    "bpr": bpr,
}
