"""A recurrent network over a user's sequence (Hidasi et al. 2016, "Session-based recommendations with RNNs").

A state is the hidden state after an event, carried into the space of the items; an item's score is its inner
product with the item's embedding, the one that the history is read with.

Shapes: B users, L events, D = width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.dropout import Dropout
from app.models.sequence_parts import SEQUENCE_TRAINING, EventInput, ItemVectors
from app.tables.base import Tables

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class GRU4RecConfig(ModelConfig):
    """Hyperparameters of a recurrent network over a sequence."""

    loss: Loss = "softmax"
    width: int = Field(64, ge=1, description="floats of an event and of an item")
    hidden: int = Field(128, ge=1, description="floats of the hidden state")
    layers: int = Field(1, ge=1, description="recurrent layers")
    cell: Literal["gru", "lstm", "rnn"] = Field("gru", description="gated (gru, lstm) or plain (rnn)")
    gaps: bool = Field(False, description="read the time between events")
    attributes: bool = Field(True, description="add the content features of items to their embeddings")
    dropout: float = Field(0.3, ge=0, lt=1, description="of the input, the hidden states and the states")


class GRU4Rec(Model):
    """A recurrent network over the items of a history."""

    Config = GRU4RecConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128],
        "hidden": [64, 128, 256],
        "layers": [1, 2],
        "cell": ["gru", "lstm", "rnn"],
        "dropout": (0.1, 0.6),
    }
    TRAINING = SEQUENCE_TRAINING
    retrieves = True
    trains_on = "sequences"
    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.items = ItemVectors(config.width, inputs, tables, attributes=config.attributes)
        self.input = EventInput(config.width, inputs, start=False, gaps=config.gaps)
        between = config.dropout if config.layers > 1 else 0.0
        self.cells = CELLS[config.cell](
            config.width, config.hidden, config.layers, batch_first=True, dropout=between
        )
        self.initial = nn.Parameter(torch.randn(config.layers, 1, config.hidden) * 0.02)
        self.out = nn.Linear(config.hidden, config.width)
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
        return self._read_out(self._hidden(history_rows, history))

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The last state (B, D)."""
        return self._read_out(self._hidden(history_rows, history)[:, -1])

    def _hidden(self, rows: Tensor, history: History) -> Tensor:
        """Hidden states (B, L, hidden); at padding the initial one."""
        events, mask = self.dropout(self.input(rows, history)), history.mask
        # Recurrence begins at the first event, so the padding goes behind the events, and back in front.
        padding = (mask.shape[1] - mask.sum(1, keepdim=True)).to(torch.int64)
        number = torch.arange(mask.shape[1], device=mask.device)
        forward = (number + padding).clamp(max=mask.shape[1] - 1)
        back = (number - padding).clamp(min=0)
        # Not every CPU has cells in bfloat16, and where there are none it is an error.
        with torch.autocast("cpu", enabled=False):
            events = events.float() if events.device.type == "cpu" else events
            hidden, _ = self.cells(_gather(events, forward), self._start(mask.shape[0]))
        hidden = _gather(hidden, back)
        return torch.where(mask.unsqueeze(-1) > 0, hidden, self.initial[-1:].to(hidden.dtype))

    def _start(self, batch: int) -> Any:
        initial = self.initial.expand(-1, batch, -1).contiguous()
        return (initial, torch.zeros_like(initial)) if self.config.cell == "lstm" else initial

    def _read_out(self, hidden: Tensor) -> Tensor:
        states: Tensor = self.norm(self.out(self.dropout(hidden)))
        return states


def _gather(events: Tensor, index: Tensor) -> Tensor:
    """The events (B, L, D) in the order `index` (B, L)."""
    return events.gather(1, index.unsqueeze(-1).expand(-1, -1, events.shape[-1]))
