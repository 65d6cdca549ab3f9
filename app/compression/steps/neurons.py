"""Structured pruning: hidden neurons are removed, so that layers, graphs and latency shrink.

A neuron counts by what is lost in the layer that reads it: the standard deviation of its activation over
training batches times the length of its weights there; its mean stays, in that layer's bias (after Molchanov
et al. 2019, "Importance estimation for neural network pruning", who too rank by what removing a neuron
changes). `finetune` wins back what that costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from app.compression.observe import Inputs, observe
from app.compression.work import Work
from app.errors import RecipeError
from app.models.base import Model
from app.models.resize import Hidden, hidden_of, linear_layers, linear_of, replace_layer


@torch.no_grad()
def apply(work: Work) -> dict[str, Any]:
    """Remove compress.neurons.share of the neurons of each hidden layer that runs per request.

    Returns:
        neurons: parameters of all dense layers before and after, and of each hidden layer, by the layer that
        reads it, the neurons before and after.

    Raises:
        RecipeError: the model has no hidden neurons, or its rows are no longer what its layers say.
    """
    if work.rows_are_put or any("rank" in size for size in work.hyperparameters.get("resized", {}).values()):
        raise RecipeError(
            "rows that are stored, or layers of two factors, cannot follow layers that become narrower",
            where="compress.steps",
            remedy="name 'neurons' before 'low_rank', 'svd', 'product' and 'finetune'",
        )
    observed, before = observe(work), _parameters(work.model)
    pruned: dict[str, list[int]] = {}
    for hidden in hidden_of(work.model):
        if hidden.reader in observed:
            kept = _kept(work, hidden, observed[hidden.reader])
            pruned[hidden.reader] = [len(observed[hidden.reader].total), len(kept)]
            _narrow(work, hidden, kept, observed[hidden.reader].mean)
    if not pruned:
        raise RecipeError(
            f"{work.source.name} has no hidden neurons that could be removed",
            where="compress.steps",
            remedy="leave out 'neurons'",
        )
    work.weights_changed()
    return {"neurons": {"before": before, "after": _parameters(work.model), "layers": pruned}}


def _kept(work: Work, hidden: Hidden, inputs: Inputs) -> Tensor:
    """The numbers of the neurons that stay, ascending."""
    reader = linear_layers(work.model)[hidden.reader]
    lost = inputs.moments.diagonal()
    if reader.bias is not None:
        lost = (lost - inputs.mean.square()).clamp(min=0)
    importance = lost.sqrt() * reader.weight.double().norm(dim=0)
    count = max(1, round((1 - work.recipe.compress.neurons.share) * len(importance)))
    kept: Tensor = importance.topk(count).indices.sort().values
    return kept


def _narrow(work: Work, hidden: Hidden, kept: Tensor, mean: Tensor) -> None:
    layers = linear_layers(work.model)
    reader, neurons = layers[hidden.reader], len(mean)
    gone = torch.ones(neurons, dtype=torch.bool).index_fill(0, kept, False)
    weight, lost = reader.weight, mean[gone].to(reader.weight.dtype)
    bias = None if reader.bias is None else reader.bias + weight[:, gone] @ lost
    replace_layer(work.model, hidden.reader, linear_of(weight[:, kept], bias))
    outputs = torch.cat([kept + part * neurons for part in range(hidden.parts)])
    sizes = {hidden.reader: {"inputs": len(kept)}}
    for name in hidden.sources:
        source = layers[name]
        own = None if source.bias is None else source.bias[outputs]
        replace_layer(work.model, name, linear_of(source.weight[outputs], own))
        sizes[name] = {"outputs": len(outputs)}
    work.resize(sizes)


def _parameters(model: Model) -> int:
    return sum(layer.weight.numel() for layer in linear_layers(model).values())
