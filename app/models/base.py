"""The model protocol: a ranking model in four pieces.

What depends on the item alone (`item_rows`, `history_rows`) and on the user alone
(`user_rows`) can be evaluated once and stored; per request only `user_state` and `score`
run. Training composes the same pieces, so what is served is what was trained. Adding a
model is adding one file to this folder with a subclass of Model.

Shapes: B rows (requests), C candidates a row, L history events, N items, M users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from app.models import losses
from app.tables.base import Tables

Loss = Literal["bce", "mse", "cross_entropy", "bpr", "sampled_softmax"]


@dataclass(frozen=True)
class Inputs:
    """Sizes of what a model sees; `users`, `items`, `events` count row 0 (unknown)."""

    users: int
    items: int
    events: int
    history: int
    context: int
    item_dense: int = 0
    user_dense: int = 0
    item_categories: tuple[int, ...] = ()
    user_categories: tuple[int, ...] = ()


@dataclass(frozen=True)
class Content:
    """Content features by row, and what the training events say of the ids. Never trained.

    `log_popularity` is the log share of positive training events of each item; `user_trained` and
    `item_trained` say which ids have a training event, of any label.
    """

    item_dense: Tensor  # (items, F) float32
    item_category: Tensor  # (items, K) int64
    user_dense: Tensor  # (users, F)
    user_category: Tensor  # (users, K)
    log_popularity: Tensor  # (items,)
    user_trained: Tensor  # (users,) bool, row 0 False
    item_trained: Tensor  # (items,) bool, row 0 False


@dataclass
class History:
    """Recent events of B users, most recent last; `mask` is 1 where there is an event."""

    item: Tensor  # (B, L) int64
    event: Tensor  # (B, L) int64
    age: Tensor  # (B, L) float32: log1p(hours before the request)

    @property
    def mask(self) -> Tensor:
        """(B, L) float32: 1 where there is an event, 0 where there is padding."""
        return (self.item > 0).float()


@dataclass
class Batch:
    """B training rows or requests with C candidates each."""

    user: Tensor  # (B,) int64
    item: Tensor  # (B, C) int64; training: column 0 is the positive, the rest are negatives
    history: History
    context: Tensor  # (B, T) float32
    label: Tensor  # (B, C) float32

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        h = self.history
        history = History(move(h.item), move(h.event), move(h.age))
        return Batch(move(self.user), move(self.item), history, move(self.context), move(self.label))


class ModelConfig(BaseModel):
    """Hyperparameters that every model has; subclasses add theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    loss: Loss = "bce"
    table: str = Field("dense", description="kind of the embedding tables, a file of app/tables")
    table_options: dict[str, Any] = Field(default={}, description="options of this kind of table")


class Model(nn.Module):
    """A ranking model. Subclasses set Config and SPACE and write the pieces they use.

    Row widths are those of the tensors returned; a piece of width 0 is unused and costs
    nothing when served.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    SPACE: ClassVar[dict[str, Any]] = {}  # hyperparameter -> list of choices or (low, high[, "log"])
    retrieves: ClassVar[bool] = False  # score is the inner product of user state and item row
    quantisable: ClassVar[bool] = True  # rows survive float16, int8 and int4
    learns: ClassVar[bool] = True  # False: `fit` instead of gradient descent

    item_dense: Tensor  # the fields of Content, as buffers
    item_category: Tensor
    user_dense: Tensor
    user_category: Tensor
    log_popularity: Tensor
    user_trained: Tensor
    item_trained: Tensor

    def __init__(self, config: ModelConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        for name, value in vars(content).items():
            self.register_buffer(name, value, persistent=False)

    # --- static rows, computed in advance for export --------------------------------------
    def user_rows(self, users: Tensor) -> Tensor:
        """Rows (…, Du) of user ids (…): all that depends on a user's id and attributes alone."""
        return users.new_zeros((*users.shape, 0), dtype=torch.float32)

    def history_rows(self, items: Tensor) -> Tensor:
        """Rows (…, Dh) of item ids (…): an item as an event of a history."""
        return items.new_zeros((*items.shape, 0), dtype=torch.float32)

    def item_rows(self, items: Tensor) -> Tensor:
        """Rows (…, R) of item ids (…): an item as a candidate."""
        raise NotImplementedError

    # --- per request, exported to ONNX --------------------------------------------------
    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The state (B, Q) of B requests, from rows (B, Du) and (B, L, Dh) and the context (B, T).

        Exported: use history.mask, .event and .age, never history.item as an index.
        """
        raise NotImplementedError

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits (B, C) from states (B, Q) and rows of candidates (B, C, R). Exported."""
        raise NotImplementedError

    # --- composed -----------------------------------------------------------------------
    def state(self, batch: Batch) -> Tensor:
        """The user states (B, Q) of a batch."""
        return self.user_state(
            self.user_rows(batch.user), self.history_rows(batch.history.item), batch.history, batch.context
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C) of the candidates of a batch."""
        return self.score(self.state(batch), self.item_rows(batch.item))

    def score_all(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits (B, N) of every item for every state (B, Q), from rows (N, R), in bounded memory."""
        # Blocks that stay in the cache take a third of the time of large ones.
        block = max(1, (1 << 17) // max(1, len(user_state) * max(1, item_rows.shape[1])))
        parts = [
            self.score(user_state, rows.unsqueeze(0).expand(len(user_state), -1, -1))
            for rows in torch.split(item_rows, block)
        ]
        return torch.cat(parts, 1)

    def loss(self, batch: Batch) -> Tensor:
        """The scalar loss of a training batch, by the objective of `config.loss`."""
        if self.config.loss == "sampled_softmax":
            return losses.in_batch_softmax(
                self.score_all(self.state(batch), self.item_rows(batch.item[:, 0])),
                batch.item[:, 0],
                self.log_popularity,
            )
        return losses.LISTWISE[self.config.loss](self(batch), batch.label)

    def fit(self, dataset: Any) -> None:
        """Fit in closed form to the training part of a Dataset; only where not `learns`."""
        raise NotImplementedError
