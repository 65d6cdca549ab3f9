"""Self-attention over a user's sequence (Kang and McAuley 2018, "Self-attentive sequential recommendation").

A state is the last output of a stack of causal attention blocks; an item's score is its inner product with
the item's embedding, the one that the history is read with. Three keys change the blocks: `norm` (before or
after each branch), `gated` (branches multiplied by sigmoid(Linear(x)) and SwiGLU, the LiGR blocks of
"eSASRec", Tikhonovich et al. 2025) and `mixer` (a share for a low-pass filter beside attention, as in Shin
et al. 2024, "BSARec"). Learned at every position with the softmax over all items.

Shapes: B users, L events, D = width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.attention_parts import CausalFilter, split_heads, visible
from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.dropout import Dropout
from app.models.resize import Hidden
from app.models.sequence_parts import SEQUENCE_TRAINING, EventInput, Heads, ItemVectors
from app.tables.base import Tables


class SASRecConfig(ModelConfig):
    """Hyperparameters of self-attention over a sequence."""

    loss: Loss = "softmax"
    width: int = Field(64, ge=1, description="floats of an event and of an item; a multiple of the heads")
    layers: int = Field(2, ge=1, description="blocks of attention and feed-forward layers")
    heads: Heads = Field(2, description="attention heads of a block, each of width / heads floats")
    norm: Literal["pre", "post"] = Field("pre", description="normalise before each branch or after its sum")
    gated: bool = Field(True, description="gated residuals and SwiGLU, as in eSASRec")
    mixer: float = Field(0.0, ge=0, lt=1, description="share of a low-pass filter beside attention; 0: none")
    frequencies: int = Field(3, ge=1, description="lowest frequencies of the window that the filter keeps")
    gaps: bool = Field(False, description="read the time between events")
    attributes: bool = Field(True, description="add the content features of items to their embeddings")
    dropout: float = Field(0.3, ge=0, lt=1, description="of the input, the attention and each branch")


class SASRec(Model):
    """Causal attention blocks over the items of a history."""

    Config = SASRecConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128],
        "layers": [1, 2, 3],
        "heads": [1, 2, 4],
        "norm": ["pre", "post"],
        "gated": [False, True],
        "mixer": [0.0, 0.3, 0.7],
        "dropout": (0.1, 0.6),
    }
    TRAINING = SEQUENCE_TRAINING
    retrieves = True
    trains_on = "sequences"
    config: SASRecConfig

    def __init__(self, config: SASRecConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.items = ItemVectors(config.width, inputs, tables, attributes=config.attributes)
        self.input = EventInput(config.width, inputs, positions=True, gaps=config.gaps)
        self.blocks = nn.ModuleList(_Block(config, inputs.history) for _ in range(config.layers))
        # One norm is that of the input where the blocks end with theirs, or that of the output.
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
        """The last state (B, D); the last block is computed for it alone."""
        return self._states(history_rows, history, last=True)[:, -1]

    def _states(self, rows: Tensor, history: History, *, last: bool = False) -> Tensor:
        post, mask = self.config.norm == "post", history.mask
        seen, events = visible(mask), self.input(rows, history)
        events = self.dropout(self.norm(events) if post else events)
        for number, block in enumerate(self.blocks, 1):
            tail = slice(-1, None) if last and number == len(self.blocks) else slice(None)
            events = block(events, seen, mask, tail)
        states: Tensor = events if post else self.norm(events)
        return states


class _Block(nn.Module):
    """Attention, perhaps with a filter beside it, then a feed-forward layer; each added to what entered."""

    def __init__(self, config: SASRecConfig, length: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.attended = nn.Linear(width, width)
        self.filter = CausalFilter(width, length, config.frequencies) if config.mixer else None
        self.wide = nn.Linear(width, 4 * width * (2 if config.gated else 1))
        self.narrow = nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(2 * config.gated))
        self.dropout = Dropout(config.dropout)

    def removable_neurons(self) -> list[Hidden]:
        """The neurons of the feed-forward layer; gated ones have two outputs each."""
        return [Hidden(("wide",), "narrow", parts=2 if self.config.gated else 1)]

    def forward(self, events: Tensor, seen: Tensor, mask: Tensor, tail: slice) -> Tensor:
        """(B, l, D) of the events `tail`, from (B, L, D), what sees what (B, 1, L, L) and the mask (B, L)."""
        before = self.norms[0](events) if self.config.norm == "pre" else events
        mixed = self._attention(before, seen, tail)
        if self.filter is not None:
            share = self.config.mixer
            mixed = share * self.filter(before, mask, tail) + (1 - share) * mixed
        events = self._add(0, events[:, tail], mixed)
        before = self.norms[1](events) if self.config.norm == "pre" else events
        return self._add(1, events, self._feed_forward(before))

    def _attention(self, events: Tensor, seen: Tensor, tail: slice) -> Tensor:
        heads = self.config.heads
        query = split_heads(self.query(events[:, tail]) * (heads / self.config.width) ** 0.5, heads)
        key, value = (split_heads(part, heads) for part in self.key_value(events).chunk(2, -1))
        logits = torch.matmul(query, key.transpose(-1, -2))
        weights = logits.masked_fill(~seen[:, :, tail], float("-inf")).softmax(-1)
        mixed = torch.matmul(self.dropout(weights), value)
        attended: Tensor = self.attended(mixed.transpose(1, 2).flatten(2))
        return attended

    def _feed_forward(self, events: Tensor) -> Tensor:
        wide = self.wide(events)
        if self.config.gated:
            gate, wide = wide.chunk(2, -1)
            wide = F.silu(gate) * wide
        else:
            wide = F.gelu(wide)
        narrow: Tensor = self.narrow(wide)
        return narrow

    def _add(self, number: int, events: Tensor, branch: Tensor) -> Tensor:
        branch = self.dropout(branch)
        if self.config.gated:
            branch = branch * torch.sigmoid(self.gates[number](events))
        total = events + branch
        return self.norms[number](total) if self.config.norm == "post" else total
