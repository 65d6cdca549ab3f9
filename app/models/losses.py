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
    return pairwise(logits[:, 0], logits[:, 1:]).mean()


def pairwise(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking, a loss (T,) of scores (T,) beside those of negatives (T, K)."""
    return F.softplus(negative - positive.unsqueeze(1)).mean(1)


def gbce(positive: Tensor, negative: Tensor, sampled: float, calibration: float) -> Tensor:
    """Generalised binary cross entropy (Petrov and Macdonald 2023, "gSASRec").

    The positive's probability is raised to beta = 1 - calibration * (1 - sampled), because so few of the
    negatives are seen beside it that it would grow too large.

    Args:
        positive: (T,) scores.
        negative: (T, K) scores; -inf counts for none.
        sampled: K over the number of all negatives.
        calibration: from 0 (binary cross entropy) to 1 (as if all negatives were seen).

    Returns:
        (T,) means over a positive and its negatives.
    """
    beta = 1 - calibration * (1 - sampled)
    return (beta * F.softplus(-positive) + F.softplus(negative).sum(1)) / (1 + negative.shape[1])


def cosine_contrastive(positive: Tensor, negative: Tensor, margin: float, weight: float) -> Tensor:
    """Cosine contrastive loss (Mao et al. 2021, "SimpleX").

    Args:
        positive: (T,) cosines.
        negative: (T, K) cosines; -inf counts for none.
        margin: cosine up to which a negative costs nothing.
        weight: of the mean over the negatives.

    Returns:
        (T,) losses.
    """
    return 1 - positive + weight * F.relu(negative - margin).mean(1)


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
