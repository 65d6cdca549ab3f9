"""Magnitude pruning of dense layers (Han et al. 2015, "Learning both weights and connections")."""

from __future__ import annotations

import torch
from torch import nn

from app.models.base import Model


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
