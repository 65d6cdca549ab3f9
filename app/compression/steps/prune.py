"""Magnitude pruning of dense layers (Han et al. 2015, "Learning both weights and connections")."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from app.compression.work import Work
from app.models.base import Model


def apply(work: Work) -> dict[str, Any]:
    """Prune the dense part; zeros stay zeros in the steps that follow.

    Returns:
        pruned: the share of all dense weights that are zero.
    """
    pruned = prune(work.model, work.recipe.compress.prune.share)
    work.weights_changed()
    return {"pruned": pruned}


@torch.no_grad()
def prune(model: Model, share: float) -> float:
    """Set the smallest `share` of the weights of each dense layer to zero, in place.

    Tables, biases and what models hold in bare parameters are left alone.

    Returns:
        The share of all dense weights that are zero afterwards; 0 where there are none.
    """
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    for weight in weights:
        count = int(share * weight.numel())
        if count:
            smallest = weight.abs().flatten().topk(count, largest=False, sorted=False).indices
            weight.view(-1)[smallest] = 0.0
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0
