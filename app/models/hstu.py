"""Pointwise attention over a user's sequence (Zhai et al. 2024, "Actions speak louder than words", HSTU).

Each layer weighs events by silu(query · key + bias of how many events and how much time lie between) without
a softmax, so that the intensity of an interest counts and not only its share, and gates the normalised sum
by u, which the event itself gives. A state is the last layer's output at an event; an item's score is its
inner product with the item's embedding.

Shapes: B users, L events, D = width, H heads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.attention_parts import elapsed, lags, split_heads, visible
from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.dropout import Dropout
from app.models.sequence_parts import SEQUENCE_TRAINING, EventInput, Heads, ItemVectors
from app.tables.base import Tables

KNOTS = 9  # of the time bias, at whole values of log1p(hours): the last is 124 days and more


class HSTUConfig(ModelConfig):
    """Hyperparameters of pointwise attention over a sequence."""

    loss: Loss = "softmax"
    width: int = Field(64, ge=1, description="floats of an event and of an item")
    layers: int = Field(2, ge=1, description="layers of pointwise attention")
    heads: Heads = Field(1, description="attention heads of a layer, each of width / heads floats")
    positions: bool = Field(True, description="add a vector of each event's number in the window")
    attributes: bool = Field(True, description="add the content features of items to their embeddings")
    dropout: float = Field(0.3, ge=0, lt=1, description="of the input and of each layer's output")


class HSTU(Model):
    """Layers of pointwise attention with relative position and time over the items of a history."""

    Config = HSTUConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128],
        "layers": [1, 2, 4],
        "heads": [1, 2, 4],
        "dropout": (0.1, 0.6),
    }
    TRAINING = SEQUENCE_TRAINING
    retrieves = True
    trains_on = "sequences"
    config: HSTUConfig

    def __init__(self, config: HSTUConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.items = ItemVectors(config.width, inputs, tables, attributes=config.attributes)
        self.input = EventInput(config.width, inputs, positions=config.positions)
        self.layers = nn.ModuleList(_Layer(config, inputs.history) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def history_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) of items, the same as the candidates'."""
        return self.item_rows(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) of items."""
        vectors: Tensor = self.items(self, items)
        return vectors

    def states(self, user_rows: Tensor, history_rows: Tensor, history: History) -> Tensor:
        """States (B, L, D) after every event."""
        return self._states(history_rows, history)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The last state (B, D); the last layer is computed for it alone."""
        return self._states(history_rows, history, last=True)[:, -1]

    def _states(self, rows: Tensor, history: History, *, last: bool = False) -> Tensor:
        seen, hours = visible(history.mask).float(), elapsed(history)
        # Hat functions of the logarithm of the time between two events, one a knot: (B, L, L, KNOTS).
        knots = torch.arange(KNOTS, device=hours.device)
        logarithm = torch.log1p(hours).clamp(max=KNOTS - 1)
        time = (1 - (logarithm.unsqueeze(-1) - knots).abs()).clamp(min=0)
        events = self.dropout(self.input(rows, history))
        for number, layer in enumerate(self.layers, 1):
            tail = slice(-1, None) if last and number == len(self.layers) else slice(None)
            events = layer(events, seen, time, tail)
        states: Tensor = self.norm(events)
        return states


class _Layer(nn.Module):
    """silu attention, normalised, gated by the event itself, added to what entered."""

    def __init__(self, config: HSTUConfig, length: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate_query, self.key_value = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.lag = nn.Parameter(torch.zeros(config.heads, length))
        self.time = nn.Parameter(torch.zeros(KNOTS, config.heads))
        self.dropout = Dropout(config.dropout)

    def forward(self, events: Tensor, seen: Tensor, time: Tensor, tail: slice) -> Tensor:
        """(B, l, D) of the events `tail`, from (B, L, D), what sees what (B, 1, L, L) and the time between
        events (B, L, L, KNOTS)."""
        before = self.before(events)
        gate, query = F.silu(self.gate_query(before[:, tail])).chunk(2, -1)
        key_value = F.silu(self.key_value(before)).chunk(2, -1)
        key, value = (split_heads(part, self.heads) for part in key_value)
        logits = torch.matmul(split_heads(query, self.heads), key.transpose(-1, -2))
        seen, lag = seen[:, :, tail], lags(events)[tail].clamp(0, self.lag.shape[1] - 1)
        between = torch.matmul(time[:, tail], self.time).permute(0, 3, 1, 2)  # (B, H, l, L)
        weights = F.silu(logits + self.lag[:, lag] + between) * seen
        # The mean over the events seen: a sum over the window would grow with the events before.
        mixed = torch.matmul(weights / seen.sum(-1, keepdim=True), value).transpose(1, 2).flatten(2)
        output: Tensor = self.dropout(self.out(gate * self.after(mixed)))
        return events[:, tail] + output
