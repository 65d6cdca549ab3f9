"""Softmax over the whole catalogue or over sampled items, without the whole matrix of logits.

The logits of a few states at a time are made in one block of memory, and from them the loss and its
gradients, before the next states take their place. So the backward pass has nothing left to compute, and a
logit is written and read in the cache alone.

Shapes: S states, T targets, K negatives, N items, R floats of a state and of an item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Logits of a block. On a CPU 6 MiB, which stay in the cache; on a GPU 128 MiB, which occupy it.
BLOCK = {"cpu": 3 << 19, "cuda": 1 << 25}
FEWEST_STATES = 16  # of a block, however many items there are: products of fewer rows are slow


@dataclass(frozen=True)
class Sample:
    """Negatives that all targets of a batch share."""

    target: Tensor  # (T,) int64
    negatives: Tensor  # (K,) int64
    log_q: Tensor  # (K,) float32: log of the probability that a draw is this item

    def adjust(self, logits: Tensor, first: int) -> None:
        """Correct logits (n, K) of the targets from `first` on, in place.

        A draw stands for 1 / (K q) items, and one that is the target itself for none.
        """
        logits -= self.log_q + math.log(max(1, len(self.negatives)))
        target = self.target[first : first + len(logits)]
        logits.masked_fill_(target.unsqueeze(1) == self.negatives, float("-inf"))


@dataclass(frozen=True)
class Positives:
    """Targets among all items, each with its own logit to subtract."""

    owner: Tensor  # (T,) int64: the state that predicts it
    target: Tensor  # (T,) int64
    share: Tensor  # (T,) float32: weight in the mean

    def subtract(self, states: Tensor, rows: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """The sum of share * logit, whose gradient is taken off those of states and rows."""
        own_states, own_rows, less = states[self.owner], rows[self.target], -self.share.unsqueeze(1)
        gradients[0].index_add_(0, self.owner, own_rows * less)
        gradients[1].index_add_(0, self.target, own_states * less)
        return torch.dot((own_states * own_rows).sum(1), self.share)


def full_softmax(
    states: Tensor, item_rows: Tensor, owner: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Weighted mean of the cross entropies of targets among all items but row 0, the unknown one.

    Memory beyond the arguments: a few copies of the gradients, and a block of 1.5 million logits (16 N where
    there are over 98,000 items; on a GPU 34 million). For 4,096 targets, 12,000 items and 64 floats these are
    16 MiB, where the logits, their softmax and its gradient take 560 MiB.

    Args:
        states: (S, R), whose inner products with items are the logits; those without a target cost nothing.
        item_rows: (N, R) of the items 0 to N - 1.
        owner: (T,) int64, the state that predicts each target; a state may own several targets.
        target: (T,) int64, items from 1 on.
        weight: (T,) float32, at least 0; None: all alike. The loss of weights that are all 0 is 0.

    Raises:
        NotImplementedError: where a second backward pass, or a gradient of the gradient, is asked for.
    """
    if states.device.type == "cpu":
        owners, owner = torch.unique(owner, return_inverse=True)
        states = states[owners]
    elif len(states) > len(owner):  # the distinct owners would have to be waited for
        states, owner = states[owner], torch.arange(len(owner), device=owner.device)
    share, precision = shares(target, weight), _precision(states)
    with torch.autocast(states.device.type, enabled=False):
        # A state is in the softmax once, with the shares of all its targets.
        total = share.new_zeros(len(states)).index_add_(0, owner, share)
        nothing = torch.full_like(total, float("-inf"))
        inputs = states.float(), item_rows.float(), nothing, total, precision
        loss: Tensor = _LogSum.apply(*inputs, Positives(owner, target, share))  # type: ignore[no-untyped-call]
        return loss


def sampled_softmax(
    states: Tensor, target_rows: Tensor, sample_rows: Tensor, sample: Sample, weight: Tensor | None = None
) -> Tensor:
    """Weighted mean of the cross entropies of targets among themselves and the items of a sample.

    The sum over the catalogue in the softmax is estimated from the sample, without bias, by its importance
    weights (Bengio and Senécal 2008, "Adaptive importance sampling to accelerate training of a neural
    probabilistic language model").

    Args:
        states: (T, R) that predict the targets.
        target_rows: (T, R) rows of the targets.
        sample_rows: (K, R) rows of the negatives.
        weight: (T,) float32, at least 0; None: all alike.

    Raises:
        NotImplementedError: where a second backward pass, or a gradient of the gradient, is asked for.
    """
    share, precision = shares(sample.target, weight), _precision(states)
    with torch.autocast(states.device.type, enabled=False):
        states = states.float()
        logit = (states * target_rows.float()).sum(1)
        inputs = states, sample_rows.float(), logit, share, precision
        log_sum: Tensor = _LogSum.apply(*inputs, sample)  # type: ignore[no-untyped-call]
        return log_sum - torch.dot(logit, share)


def shares(target: Tensor, weight: Tensor | None) -> Tensor:
    """(T,) float32: weights that sum to 1, or to 0 where all are 0; None: all alike."""
    weight = torch.ones_like(target, dtype=torch.float32) if weight is None else weight
    return weight / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def _precision(states: Tensor) -> torch.dtype:
    """Of the products: bfloat16 under autocast. Exponentials, and what is summed over items, are float32."""
    return torch.bfloat16 if torch.is_autocast_enabled(states.device.type) else torch.float32


class _LogSum(torch.autograd.Function):
    """The sum over S of share (S,) * log(exp(extra) + sum over M of exp(logits)).

    The logits are those of states (S, R) and rows (M, R), made in `precision`; `extra` (S,) is a further one
    of each state. Rows of a sample have their logits adjusted by it; where there are positives instead, the
    rows are those of all items, without the first, and the positives' logits are subtracted.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        rows: Tensor,
        extra: Tensor,
        share: Tensor,
        precision: torch.dtype,
        items: Sample | Positives,
    ) -> Tensor:
        """The sum, and where they are wanted its gradients, which the backward pass scales."""
        sample, first = (items, 0) if isinstance(items, Sample) else (None, 1)
        low, loss = rows[first:].to(precision), states.new_zeros(())
        gradients = [torch.zeros_like(tensor) for tensor in (states, rows, extra)]
        for chosen, logits in _blocks(states, low, sample):
            largest = torch.maximum(logits.amax(1), extra[chosen])
            exponentials = logits.sub_(largest.unsqueeze(1)).exp_()
            rest = torch.exp(extra[chosen] - largest)
            total = exponentials.sum(1) + rest
            loss += torch.dot(total.log() + largest, share[chosen])
            if any(ctx.needs_input_grad):
                scale = (share[chosen] / total).unsqueeze(1)
                exponentials = exponentials.to(precision)
                gradients[0][chosen] = (exponentials @ low) * scale
                _add_product(gradients[1][first:], exponentials.T, (states[chosen] * scale).to(precision))
                gradients[2][chosen] = rest * scale.squeeze(1)
        if isinstance(items, Positives):
            loss -= items.subtract(states, rows, gradients)
        ctx.gradients = gradients
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of states, rows and extra logits, which are given away."""
        gradients, ctx.gradients = ctx.gradients, None
        if torch.is_grad_enabled() or gradients is None:
            raise NotImplementedError(
                "this softmax makes its gradient together with the loss, for one backward pass, and none of"
                " that gradient; take the cross entropy of the whole logits where more is needed"
            )
        return *(gradient.mul_(upstream[0]) for gradient in gradients), None, None, None


def _blocks(states: Tensor, rows: Tensor, sample: Sample | None) -> Iterator[tuple[slice, Tensor]]:
    """The logits (n, M) float32 of n states at a time, in memory that the next ones overwrite."""
    count = max(FEWEST_STATES, BLOCK.get(states.device.type, BLOCK["cuda"]) // max(1, len(rows)))
    block = states.new_empty((min(count, len(states)), len(rows)))
    for first in range(0, len(states), count):
        chosen = slice(first, first + count)
        part = states[chosen]
        logits = block[: len(part)]
        if rows.dtype == logits.dtype:
            torch.mm(part, rows.T, out=logits)
        else:
            logits.copy_(part.to(rows.dtype) @ rows.T)
        if sample is not None:
            sample.adjust(logits, first)
        yield chosen, logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right, computed in their precision, to the float32 `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
