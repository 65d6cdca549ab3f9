"""Dense layers of other sizes than a model's hyperparameters say: what compression has made of them.

A checkpoint holds these sizes among the hyperparameters (`model.resized`), so that the same model is built
wherever it is loaded or trained further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from app.errors import RecipeError
from app.models.dropout import Dropout

ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.Dropout, Dropout)


class LayerSize(BaseModel):
    """The size of a dense layer, as far as it differs; 0: as the other hyperparameters say."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    inputs: int = Field(0, ge=0)
    outputs: int = Field(0, ge=0)
    rank: int = Field(0, ge=0)  # above 0: two layers, with so many numbers between them


@dataclass(frozen=True)
class Hidden:
    """Hidden neurons: sums of outputs of the layers `sources`, which the layer `reader` alone reads.

    Between them is nothing but functions of each neuron by itself. Of a gated neuron `parts` outputs are its
    own: with n neurons the outputs j, n + j and so on are of neuron j.
    """

    sources: tuple[str, ...]
    reader: str
    parts: int = 1


@runtime_checkable
class HasHidden(Protocol):
    """A module that has hidden neurons other than those between the layers of an nn.Sequential."""

    def removable_neurons(self) -> list[Hidden]:
        """By the names of its own layers; a reader may be an nn.Sequential, of which it is the first one."""
        ...


def resize(model: nn.Module, sizes: Mapping[str, LayerSize]) -> None:
    """Give dense layers, by their names, new weights of other sizes, in place.

    Raises:
        RecipeError: there is no such dense layer.
    """
    layers = linear_layers(model)
    for name, size in sizes.items():
        if name not in layers:
            raise RecipeError(
                f"the model has no dense layer {name!r}",
                where="model.resized",
                remedy=f"it has {', '.join(layers) or 'none'}; leave the key to compression",
            )
        replace_layer(model, name, _layer(layers[name], size))


def _layer(old: nn.Linear, size: LayerSize) -> nn.Module:
    inputs, outputs = size.inputs or old.in_features, size.outputs or old.out_features
    bias = old.bias is not None
    if not size.rank:
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Sequential(nn.Linear(inputs, size.rank, bias=False), nn.Linear(size.rank, outputs, bias=bias))


@torch.no_grad()
def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A dense layer with copies of a weight (outputs, inputs) and a bias (outputs,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer of a name by another."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The dense layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def hidden_of(model: nn.Module) -> list[Hidden]:
    """All hidden neurons that can be removed without a change elsewhere, by full names of layers."""
    found: list[Hidden] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, HasHidden):
            found += [_named(model, prefix, hidden) for hidden in module.removable_neurons()]
        elif isinstance(module, nn.Sequential):
            found += _within(prefix, module)
    return list(dict.fromkeys(found))


def _named(model: nn.Module, prefix: str, hidden: Hidden) -> Hidden:
    reader = prefix + hidden.reader
    if isinstance(layers := model.get_submodule(reader), nn.Sequential):
        first = next(own for own, layer in _flat(layers) if isinstance(layer, nn.Linear))
        reader = f"{reader}.{first}"
    return Hidden(tuple(prefix + source for source in hidden.sources), reader, hidden.parts)


def _within(prefix: str, layers: nn.Sequential) -> list[Hidden]:
    found, source = [], ""
    for own, layer in _flat(layers):
        if isinstance(layer, nn.Linear):
            found += [Hidden((prefix + source,), prefix + own)] if source else []
            source = own
        elif not isinstance(layer, ELEMENTWISE):
            source = ""
    return found


def _flat(layers: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a sequence and of the sequences within it, in their order."""
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            yield from ((f"{name}.{inner}", module) for inner, module in _flat(layer))
        else:
            yield name, layer
