"""Ids, texts, images and attributes of items in one space, so that items without events are ranked, too.

Each modality of an item makes a vector, and the vectors are added up. In training whole modalities are left
out at random, the id above all, so that what is left must do (Neverova 2016, "ModDrop"; Volkovs 2017,
"DropoutNet: Addressing Cold Start in Recommender Systems"). An item whose id is left out has row 0 of the
table, which thus learns to mean "no id": an item that comes after training has it, too.

A user is the mean of what they met, with their attributes. Each step takes some items for new: they have no
id, and nobody has met them. Of the other items of a user some are left out, too. What is left out of a
user's set is what is learned, by a softmax over the items that have training events (the multinomial
likelihood of Liang 2018, "Variational Autoencoders for Collaborative Filtering"). So what a user did not meet
although it was there tells more against it than what is new; and items without training events are no
negatives, whose content would learn that nobody wants them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from app.features.columns import Block
from app.models.base import Batch, Content, History, Inputs, Loss, Model, ModelConfig, Sequences
from app.models.content_parts import VECTORS, PixelConvolutions, TitleConvolutions, VectorProjection
from app.models.parts import Attributes, event_weights
from app.models.softmax import full_softmax
from app.tables.base import Tables


class FusionConfig(ModelConfig):
    """Hyperparameters of the fusion of modalities."""

    loss: Loss = "softmax"
    width: int = Field(64, ge=1, description="floats of the vectors, and of the embeddings")
    drop_id: float = Field(
        0.2, ge=0, lt=1, description="share of the items that a training step takes for new"
    )
    drop_content: float = Field(
        0.2, ge=0, lt=1, description="share of items shown without each other modality"
    )
    drop_history: float = Field(0.3, ge=0, lt=1, description="share of a user's items that a step leaves out")
    words: int = Field(8192, ge=1, description="rows of the table of words, where there are tokens")
    hidden: int = Field(64, ge=1, description="floats of the layer between given vectors and the model's")


class Fusion(Model):
    """`item_rows` and `history_rows` (…, D): the sum of an item's modalities; `user_state` (B, D)."""

    Config = FusionConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128],
        "drop_id": (0.05, 0.5),
        "drop_content": (0.0, 0.5),
        "drop_history": (0.05, 0.8),
    }
    TRAINING: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-3,
        "table_optimizer": "same",
        "batch_size": 16384,
        "epochs": 60,
        "patience": 10,
    }
    retrieves = True
    trains_on = "sets"
    reads = "all"
    config: FusionConfig

    def __init__(self, config: FusionConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width = config.width
        self.items = tables("item", inputs.items, width)
        self.blocks = inputs.item_blocks or (Block("all", "", 0, inputs.item_dense),) * bool(
            inputs.item_dense
        )
        self.encoders = nn.ModuleList(self._encoder(n, b, tables) for n, b in enumerate(self.blocks))
        self.categories = nn.ModuleList(
            tables(f"category_{k}_of_item", rows, width) for k, rows in enumerate(inputs.item_categories)
        )
        self.attributes = Attributes("user", inputs.user_dense, inputs.user_categories, tables)
        self.event = nn.Parameter(torch.zeros(inputs.events))
        self.taste = nn.Linear(width + self.attributes.width, width)

    def _encoder(self, number: int, block: Block, tables: Tables) -> nn.Module:
        width = self.config.width
        if block.kind == "tokens":
            return TitleConvolutions(block.width, width, tables, self.config.words, (1, 2, 3), number)
        if block.kind == "pixels":
            return PixelConvolutions(block.width, width)
        if block.kind in VECTORS:
            return VectorProjection(block.width, width, self.config.hidden)
        linear = nn.Linear(block.width, width, bias=False)
        nn.init.zeros_(linear.weight)  # a word that training never met says nothing
        return linear

    def user_rows(self, users: Tensor) -> Tensor:
        """The attributes of users (…, A); their ids say nothing that their sets do not."""
        rows: Tensor = self.attributes(self.user_dense[users], self.user_category[users])
        return rows

    def history_rows(self, items: Tensor) -> Tensor:
        """Vectors of items, the same as the candidates'."""
        if not self.training:
            return self.item_rows(items)
        # The same items come again and again in the sets of a batch, and encoders cost.
        distinct, row = torch.unique(items, return_inverse=True)
        return self.item_rows(distinct)[row]

    def item_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) of items: the sum of their modalities, in training without some of them."""
        return self._sum(items, items)

    def _sum(self, ids: Tensor, items: Tensor) -> Tensor:
        """The modalities of `items`, with the embeddings of `ids`."""
        vector = self.items.lookup(ids)
        dense, category = self.item_dense[items], self.item_category[items]
        parts = [
            encoder(dense[..., b.start : b.start + b.width])
            for b, encoder in zip(self.blocks, self.encoders, strict=True)
        ]
        parts += [table.lookup(category[..., k]) for k, table in enumerate(self.categories)]  # type: ignore[operator]
        for part in parts:
            if self.training:
                part = part * ~_drawn(items, self.config.drop_content).unsqueeze(-1)
            vector = vector + part
        return vector

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """Vectors (B, D) of users: the mean of what they met, by type of event, and their attributes."""
        types = torch.arange(len(self.event), device=history_rows.device)
        logits = (history.event.unsqueeze(-1) == types).to(history_rows.dtype) @ self.event  # (B, L)
        weights = event_weights(logits, history.mask).unsqueeze(1)
        met = torch.matmul(weights.to(history_rows.dtype), history_rows).squeeze(1)
        state: Tensor = self.taste(torch.cat([met, user_rows], 1))
        return state

    def loss(self, batch: Batch | Sequences) -> Tensor:
        """The objective of `config.loss`; the softmax over sets is that of what a step leaves out of them.

        Packed rows have no ids and content any more that could be left out.
        """
        if self.config.loss != "softmax" or isinstance(batch, Batch) or self.packed:
            return super().loss(batch)
        new, history = _drawn(self.position, self.config.drop_id), batch.history
        dropped = new[history.item] | _drawn(history.item, self.config.drop_history)
        shown = replace(history, item=history.item.masked_fill(dropped, 0))
        rows = self.rows("history", shown.item)
        states = self.user_state(self.rows("user", batch.user), rows, shown, rows.new_zeros(len(rows), 0))
        items = self._sum(self.known.masked_fill(new[self.known], 0), self.known)
        weight = batch.weight * _left_out(history.item, dropped, batch)
        return full_softmax(states, items, batch.owner, self.position[batch.target], weight)


def _drawn(values: Tensor, rate: float) -> Tensor:
    """A bool for each value, True at this rate."""
    return torch.rand(values.shape, device=values.device) < rate


def _left_out(items: Tensor, dropped: Tensor, batch: Sequences) -> Tensor:
    """(T,) bool: whether each target was dropped from the set (B, L) of its user."""
    size = int(items.max()) + 1
    pairs = torch.arange(len(items), device=items.device).unsqueeze(1) * size + items
    shown, order = pairs.flatten().sort()
    row = torch.searchsorted(shown, batch.owner * size + batch.target)
    return dropped.flatten()[order[row]]
