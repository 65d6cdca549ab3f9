"""Variational autoencoder of a user's set of items with a multinomial likelihood.

Liang et al. 2018, "Variational autoencoders for collaborative filtering" (Mult-VAE): the set, some of it left
out at random, is encoded as a normal distribution, a draw of which is decoded to a softmax over all items.
As in Shenbin et al. 2020, "RecVAE", the divergence from the prior weighs in proportion to the size of the
set, instead of being annealed.

The first layer of the encoder is a sum of embeddings, those of the items in the set, divided by the root of
their number; the last one of the decoder is the inner product with an item's row. So nothing is as wide as
the catalogue but the softmax in training. A user is scored with the mean of their distribution.

Shapes: B users, L items of a set, W = width, Z = latent.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from app.models.base import Batch, Content, History, Inputs, Model, ModelConfig, Sequences
from app.models.dropout import dropout
from app.models.softmax import full_softmax
from app.tables.base import Tables

BIAS = 8.0  # what a bias is multiplied by: stored smaller, it leaves the other floats of its row their bits


class MultVaeConfig(ModelConfig):
    """Hyperparameters of the autoencoder."""

    loss: Literal["softmax"] = "softmax"
    width: int = Field(128, ge=1, description="floats of an item as input and as output")
    latent: int = Field(64, ge=1, description="floats of the distribution's mean")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of a user's items left out in training")
    divergence: float = Field(0.005, ge=0, description="weight of the divergence from the prior, an item")


class MultVae(Model):
    """Decoded mean of the distribution that a user's items are encoded as."""

    Config = MultVaeConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [64, 128, 256, 512],
        "latent": [32, 64, 128, 256],
        "dropout": (0.2, 0.8),
        "divergence": (0.0005, 0.05, "log"),
    }
    TRAINING: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-3,
        "table_optimizer": "same",
        "epochs": 100,
        "batch_size": 4096,
    }
    retrieves = True
    trains_on = "sets"
    reads = "all"
    config: MultVaeConfig

    def __init__(self, config: MultVaeConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        self.inputs_of_items = tables("item_input", inputs.items, config.width)
        self.outputs_of_items = tables("item_output", inputs.items, config.width)
        self.bias = tables("item_bias", inputs.items, 1)
        self.encoder = nn.Linear(config.width, 2 * config.latent)
        self.decoder = nn.Linear(config.latent, config.width)
        self.begin = nn.Parameter(torch.zeros(config.width))

    def history_rows(self, items: Tensor) -> Tensor:
        """Weights (…, W) of the encoder's first layer."""
        return self.inputs_of_items.lookup(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """Weights of the decoder's last layer and a bias, (…, W + 1)."""
        bias = self.bias.lookup(items) + self.log_popularity[items].unsqueeze(-1) / BIAS
        return torch.cat([self.outputs_of_items.lookup(items), bias], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The decoded means (B, W) of sets, and BIAS: (B, W + 1)."""
        return self._decode(self._encode(history_rows, history.mask)[0])

    def loss(self, batch: Batch | Sequences) -> Tensor:
        """The mean over targets of -log softmax and of their share of the divergence."""
        assert isinstance(batch, Sequences), "it trains on sets"
        mean, spread = self._encode(self.rows("history", batch.history.item), batch.history.mask)
        drawn = mean + torch.randn_like(mean) * spread.exp() if self.training else mean
        target, rows = self.position[batch.target], self.rows("item", self.known)
        likelihood = full_softmax(self._decode(drawn), rows, batch.owner, target, batch.weight)
        divergence = 0.5 * (mean.square() + (2 * spread).exp() - 1 - 2 * spread).sum(1)
        share = batch.weight / batch.weight.sum()
        return likelihood + self.config.divergence * (share * divergence[batch.owner]).sum()

    def _encode(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of standard deviations, (B, Z) each, of sets with rows (B, L, W)."""
        size = mask.sum(1, keepdim=True).clamp(min=1)
        kept = dropout(mask, self.config.dropout, self.training) / size.sqrt()
        hidden = torch.tanh(torch.matmul(kept.unsqueeze(1), rows).squeeze(1) + self.begin)
        mean, spread = self.encoder(hidden).chunk(2, 1)
        return mean, spread

    def _decode(self, latent: Tensor) -> Tensor:
        hidden = torch.tanh(self.decoder(latent))
        return torch.cat([hidden, torch.full_like(hidden[:, :1], BIAS)], 1)
