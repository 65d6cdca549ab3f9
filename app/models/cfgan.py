"""CFGAN: a generator of the items that a user likes, and a discriminator that tells them from the real ones.

Chae et al. 2018, "CFGAN: a generic collaborative filtering framework based on generative adversarial
networks", with its two remedies: some items that the user has not met are generated, too (partial masking),
and pulled to 0 (zero reconstruction). The generator encodes a set as a sum of embeddings and decodes it by
inner products; the discriminator sees a set, real or weighed by the generator, as a sum of embeddings
beside that of the real one, its condition. Both learn in each step, each from its own part of the loss.
Alone that does not train stably; the generator therefore also learns to reconstruct what was left out of
its input, and the adversarial part weighs little.

Shapes: B users, T targets, K negatives that all users share, W = width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from app.models.base import Batch, Content, History, Inputs, Model, ModelConfig, Sequences
from app.models.dropout import dropout
from app.tables.base import Tables

BIAS = 8.0  # what a bias is multiplied by: stored smaller, it leaves the other floats of its row their bits


class CfganConfig(ModelConfig):
    """Hyperparameters of generator and discriminator."""

    loss: Literal["bce"] = "bce"
    width: int = Field(64, ge=1, description="floats of an item, as input, as output and as judged")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of a user's items left out in training")
    zero: float = Field(5.0, ge=0, description="weight of pulling what the user has not met to 0")
    adversarial: float = Field(0.03, ge=0, description="weight of what discriminator and generator cost")


class Cfgan(Model):
    """Inner product of an item with what the generator makes of a user's items."""

    Config = CfganConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128],
        "dropout": (0.2, 0.8),
        "zero": (0.1, 10.0, "log"),
    }
    TRAINING: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-3,
        "table_optimizer": "same",
        "epochs": 100,
        "batch_size": 4096,
        "negatives": 200,
    }
    retrieves = True
    trains_on = "sets"
    reads = "all"
    config: CfganConfig

    def __init__(self, config: CfganConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width = config.width
        self.inputs_of_items = tables("item_input", inputs.items, width)
        self.outputs_of_items = tables("item_output", inputs.items, width)
        self.bias = tables("item_bias", inputs.items, 1)
        self.hidden = nn.Linear(width, width)
        self.judged_items = tables("item_judged", inputs.items, width)
        self.judge = nn.Sequential(nn.Linear(2 * width, width), nn.LeakyReLU(), nn.Linear(width, 1))

    def history_rows(self, items: Tensor) -> Tensor:
        """Embeddings (…, W) of items as input of the generator."""
        return self.inputs_of_items.lookup(items)

    def item_rows(self, items: Tensor) -> Tensor:
        """Embeddings of items as output of the generator and a bias, (…, W + 1)."""
        bias = self.bias.lookup(items) + self.log_popularity[items].unsqueeze(-1) / BIAS
        return torch.cat([self.outputs_of_items.lookup(items), bias], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """What the generator makes of sets (B, W), and BIAS: (B, W + 1)."""
        mask = history.mask
        kept = dropout(mask, self.config.dropout, self.training)
        kept = kept / mask.sum(1, keepdim=True).clamp(min=1).sqrt()
        state = torch.tanh(self.hidden(torch.matmul(kept.unsqueeze(1), history_rows).squeeze(1)))
        return torch.cat([state, torch.full_like(state[:, :1], BIAS)], 1)

    def loss(self, batch: Batch | Sequences) -> Tensor:
        """The mean over users of what telling the real from the generated set costs, and of the zeros'."""
        assert isinstance(batch, Sequences), "it trains on sets"
        states, owner = self.states_of(batch)
        liked = torch.sigmoid((states[owner] * self.rows("item", batch.target)).sum(1))
        others = torch.sigmoid(states @ self.rows("item", batch.negatives).T) * self._unmet(batch)
        size = torch.zeros_like(states[:, 0]).index_add(0, owner, batch.weight).clamp(min=1).sqrt()
        targets, negatives = map(self.judged_items.lookup, (batch.target, batch.negatives))

        def shown(weight: Tensor, unmet: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
            """Sets (B, W), whose items weigh (T,) and (B, K), as sums of embeddings."""
            empty = torch.zeros_like(states[:, 1:])
            total = empty.index_add(0, owner, targets * weight.unsqueeze(1)) + unmet @ negatives
            return total / size.unsqueeze(1)

        real = shown(batch.weight, torch.zeros_like(others), targets, negatives)
        fake = shown(liked.detach() * batch.weight, others.detach(), targets, negatives)
        learned = F.softplus(-self._judged(real, real)) + F.softplus(self._judged(fake, real))
        # The generator is led by the discriminator as it is.
        made = shown(liked * batch.weight, others, targets.detach(), negatives.detach())
        deceived = F.softplus(-self._judged(made, real.detach(), frozen=True))
        missed = torch.dot((1 - liked).square(), batch.weight) / batch.weight.sum()
        apart = self.config.adversarial * (learned + deceived).mean()
        return apart + missed + self.config.zero * others.square().mean()

    def _judged(self, shown: Tensor, condition: Tensor, *, frozen: bool = False) -> Tensor:
        """Logits (B, 1) of a set, shown as a sum of embeddings, being the real one."""
        weights = {name: p.detach() if frozen else p for name, p in self.judge.named_parameters()}
        logits: Tensor = functional_call(self.judge, weights, torch.cat([shown, condition], 1))
        return logits

    def _unmet(self, batch: Sequences) -> Tensor:
        """(B, K) 1 where a negative is no target of the user."""
        same = (batch.target.unsqueeze(1) == batch.negatives).float()
        met = torch.zeros((len(batch.user), same.shape[1]), device=same.device)
        return (met.index_add(0, batch.owner, same) == 0).float()
