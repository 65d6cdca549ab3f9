"""Dense layers as two narrower ones, whose product is of low rank.

Of a layer W that is given x the outputs W x are what counts. With the second moments of its inputs L L^T the
truncated singular value decomposition of W L leaves the least squared error of outputs among all factors of a
rank (Chen et al. 2021, "DRONE: Data-aware low-rank compression for large NLP models").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from app.compression.observe import Inputs, observe
from app.compression.work import Work
from app.errors import RecipeError
from app.models.resize import linear_layers, linear_of, replace_layer

DAMPING = 1e-6  # of the mean second moment, added to each: inputs may lie in a subspace


@torch.no_grad()
def apply(work: Work) -> dict[str, Any]:
    """Replace the layers that run per request, where two factors hold fewer weights.

    Each rank is the lowest that keeps compress.low_rank.energy of the squared outputs of its layer.

    Returns:
        low_rank: parameters of these layers before and after, and the rank of each that was replaced.

    Raises:
        RecipeError: no layer is smaller as two factors.
    """
    observed, layers = observe(work), linear_layers(work.model)
    before = sum(layers[name].weight.numel() for name in observed)
    ranks: dict[str, int] = {}
    after = before
    for name, inputs in observed.items():
        factors = _factors(layers[name], inputs, work.recipe.compress.low_rank.energy)
        saved = layers[name].weight.numel() - sum(factor.weight.numel() for factor in factors)
        if saved > 0:
            replace_layer(work.model, name, nn.Sequential(*factors))
            ranks[name], after = factors[0].out_features, after - saved
    if not ranks:
        raise RecipeError(
            f"no dense layer of {work.source.name} is smaller as two factors",
            where="compress.low_rank.energy",
            remedy="lower it, or leave 'low_rank' out of compress.steps",
        )
    work.resize({name: {"rank": rank} for name, rank in ranks.items()})
    return {"low_rank": {"before": before, "after": after, "ranks": ranks}}


def _factors(layer: nn.Linear, inputs: Inputs, energy: float) -> tuple[nn.Linear, nn.Linear]:
    weight, moments = layer.weight.double(), inputs.moments
    damping = DAMPING * float(moments.diagonal().mean()) + torch.finfo(torch.float32).tiny
    root = torch.linalg.cholesky(moments + damping * torch.eye(len(moments), dtype=moments.dtype))
    left, values, right = torch.linalg.svd(weight @ root, full_matrices=False)
    kept = values.square().cumsum(0) / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    rank = min(len(values), int((kept < energy).sum()) + 1)
    scale = values[:rank].sqrt()
    narrow = torch.linalg.solve_triangular(root, scale[:, None] * right[:rank], upper=False, left=False)
    return linear_of(narrow, None), linear_of(left[:, :rank] * scale, layer.bias)
