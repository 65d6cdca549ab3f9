"""The model protocol: a ranking model in four pieces.

What depends on the item alone (`item_rows`, `history_rows`) and on the user alone
(`user_rows`) can be evaluated once and stored; per request only `user_state` and `score`
run. Training composes the same pieces, so what is served is what was trained. Adding a
model is adding one file to this folder with a subclass of Model.

Shapes: B rows (requests), C candidates a row, L history events, N items, M users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from app.features.columns import Block
from app.models import objectives
from app.models.resize import LayerSize
from app.tables.base import Tables

Reads = Literal["recent", "all", "events"]
RowKind = Literal["user", "history", "item"]
Loss = Literal["bce", "mse", "cross_entropy", "bpr", "sampled_softmax", "softmax", "gbce", "cosine"]


@dataclass(frozen=True)
class Inputs:
    """Sizes of what a model sees; `users`, `items`, `events` count row 0 (unknown).

    Not `ordered`: a history is a set, whose positions and ages mean nothing. `history` is the length L of
    every history of a model that reads what is recent; another one is given as many as there are.
    """

    users: int
    items: int
    events: int
    history: int
    context: int
    item_dense: int = 0
    user_dense: int = 0
    item_categories: tuple[int, ...] = ()
    user_categories: tuple[int, ...] = ()
    ordered: bool = True
    item_blocks: tuple[Block, ...] = ()  # which floats of item_dense are of which feature; (): not known


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
    age: Tensor  # (B, L) float32: log1p(hours before the last event), 0 without times
    # (B, L) float32: log1p(hours since the event before it), 0 for the first. Models that train on events do
    # not read it: it is (B, 0) in their training.
    gap: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, L) float32: 1 where there is an event, 0 where there is padding."""
        return (self.item > 0).float()

    def part(self, rows: Tensor, length: int) -> History:
        """The last `length` events of some of the users."""
        return History(*(column[rows][:, -length:] for column in vars(self).values()))

    def each(self, change: Callable[[Tensor], Tensor]) -> History:
        """The history with each of its tensors changed."""
        return History(*map(change, (self.item, self.event, self.age, self.gap)))


@dataclass
class Batch:
    """B training rows or requests with C candidates each."""

    user: Tensor  # (B,) int64
    item: Tensor  # (B, C) int64; training: column 0 is the positive, the rest are negatives
    history: History
    context: Tensor  # (B, T) float32
    label: Tensor  # (B, C) float32

    @property
    def samples(self) -> int:
        """Candidates that are learned: what the rate of training counts."""
        return self.item.numel()

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""
        history, others = self.history.each(change), (self.context, self.label)
        return Batch(change(self.user), change(self.item), history, *map(change, others))

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; from pinned memory, its copy does not wait for the device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass
class Sequences:
    """Histories of B users, learned at T of their events at once.

    `owner` names the state that predicts a target. Of a model that learns sequences it is an index into its
    (B, L) states, flattened: the state after the last event before the target's moment; of one that learns
    sets it is the row of the user. The K negatives serve all targets together.
    """

    user: Tensor  # (B,) int64
    history: History  # (B, L), as long as the longest in the batch
    owner: Tensor  # (T,) int64
    target: Tensor  # (T,) int64
    weight: Tensor  # (T,) float32, above 0
    negatives: Tensor  # (K,) int64
    log_q: Tensor  # (K,) float32: log of the probability that a draw is this item

    @property
    def samples(self) -> int:
        """Targets that are learned: what the rate of training counts."""
        return len(self.target)

    def each(self, change: Callable[[Tensor], Tensor]) -> Sequences:
        """The batch with each of its tensors changed."""
        targets = (self.owner, self.target, self.weight, self.negatives, self.log_q)
        return Sequences(change(self.user), self.history.each(change), *map(change, targets))

    def to(self, device: torch.device) -> Sequences:
        """The same batch on another device; from pinned memory, its copy does not wait for the device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


class ModelConfig(BaseModel):
    """Hyperparameters that every model has; subclasses add theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    loss: Loss = Field(
        "cross_entropy",
        description="training objective: cross_entropy (softmax over a positive and its negatives), softmax"
        " (over all items), sampled_softmax (the other rows of the batch are the negatives; of sequences and"
        " sets, half of them), bce, gbce (bce, corrected for the negatives that are not sampled), bpr, cosine"
        " (contrastive, of directions), or mse (of values)",
    )
    gbce_t: float = Field(
        0.75, ge=0, le=1, description="of loss gbce alone: 0 is bce, 1 as if all items were sampled"
    )
    cosine_margin: float = Field(
        0.5, ge=-1, le=1, description="of loss cosine alone: up to this cosine a negative costs nothing"
    )
    cosine_weight: float = Field(
        100.0, ge=0, description="of loss cosine alone: weight of the mean over the negatives"
    )
    table: str = Field("dense", description="kind of the embedding tables, a file of app/tables")
    table_options: dict[str, Any] = Field(default={}, description="options of this kind of table")
    resized: dict[str, LayerSize] = Field(
        default={},
        description="of a compressed model alone: by name, dense layers whose inputs, outputs or rank differ",
    )


class Model(nn.Module):
    """A ranking model. Subclasses set Config and SPACE and write the pieces they use.

    Row widths are those of the tensors returned; a piece of width 0 is unused and costs
    nothing when served.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    SPACE: ClassVar[dict[str, Any]] = {}  # hyperparameter -> list of choices or (low, high[, "log"])
    retrieves: ClassVar[bool] = False  # score is the inner product of user state and item row
    unit_rows: ClassVar[bool] = False  # item rows have length 1, or all the same one
    quantisable: ClassVar[bool] = True  # rows survive float16 and small integers
    learns: ClassVar[bool] = True  # False: `fit` instead of gradient descent
    # What a training row is: an event with the history before it (a Batch), a user's sequence that is learned
    # at every position, or a user's set of items (both Sequences).
    trains_on: ClassVar[Literal["events", "sequences", "sets"]] = "events"
    # What of a user's past a model is shown, in evaluation and when served: "recent", the last
    # `features.history` events, padded to that length; "all", each item of the last WHOLE_PAST events once,
    # where it came last; or "events", each of these events, so that repetitions count. Both of these are
    # padded to the longest history of the batch: the pieces of such a model depend neither on the length L
    # nor on the padding. They are for models of sets, and for those that do not learn.
    reads: ClassVar[Reads] = "recent"
    # Kinds of item features that the model cannot do without: one of each group.
    NEEDS: ClassVar[tuple[tuple[str, ...], ...]] = ()
    # Keys of [train] that suit the model, where the recipe does not set them.
    TRAINING: ClassVar[dict[str, Any]] = {}

    item_dense: Tensor  # the fields of Content, as buffers
    item_category: Tensor
    user_dense: Tensor
    user_category: Tensor
    log_popularity: Tensor
    user_trained: Tensor
    item_trained: Tensor
    known: Tensor  # (K,) int64: row 0, then the items with a training event
    position: Tensor  # (items,) int64: of each item in `known`, 0 for one that is not there

    def __init__(self, config: ModelConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        if self.learns:
            objectives.refuse_unfit(self)
        for name, value in vars(content).items():
            self.register_buffer(name, value, persistent=False)
        known = F.pad(content.item_trained.nonzero().squeeze(1), (1, 0))
        self.register_buffer("known", known, persistent=False)
        position = torch.zeros_like(content.item_trained, dtype=torch.int64)
        position[known] = torch.arange(len(known))
        self.register_buffer("position", position, persistent=False)
        self.packed = nn.ModuleDict()  # by RowKind: what gives rows instead of a piece; see `rows`

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

        Exported: use history.mask, .event, .age and .gap, never history.item as an index.
        """
        if self.trains_on != "sequences":
            raise NotImplementedError
        return self.states(user_rows, history_rows, history)[:, -1]

    def states(self, user_rows: Tensor, history_rows: Tensor, history: History) -> Tensor:
        """The states (B, L, Q) after every event; only of a model that trains on sequences. Exported.

        The state after an event depends on what came up to it, never on what follows, on the length L or
        on how much padding there is: it is `user_state` of the history cut there. So it may use
        history.mask, .event and .gap, not .age, which counts from the end. Padding stands at the front, and
        its state is that of an empty history.
        """
        raise NotImplementedError

    def score(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits (B, C) from states (B, Q) and candidates' rows (B, C, R): their inner product. Exported."""
        return torch.matmul(item_rows, user_state.unsqueeze(-1)).squeeze(-1)

    # --- composed -----------------------------------------------------------------------
    def rows(self, kind: RowKind, ids: Tensor) -> Tensor:
        """Rows (…, width) of ids (…) as training and ranking use them: those of the piece `KIND_rows`.

        Where compression has put rows into `packed`, which are no longer what the piece says, those.
        """
        piece = self.packed[kind] if kind in self.packed else getattr(self, f"{kind}_rows")
        rows: Tensor = piece(ids)
        return rows

    def state(self, batch: Batch) -> Tensor:
        """The user states (B, Q) of a batch."""
        return self.user_state(
            self.rows("user", batch.user),
            self.rows("history", batch.history.item),
            batch.history,
            batch.context,
        )

    def states_of(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """States (S, Q), and which predicts each target (T,): (B * L, Q) of sequences, (B, Q) of sets.

        A model of sets whose state must not know the target overrides it.
        """
        user_rows, history = self.rows("user", batch.user), batch.history
        rows = self.rows("history", history.item)
        if self.trains_on == "sequences":
            return self.states(user_rows, rows, history).flatten(0, 1), batch.owner
        context = rows.new_zeros((len(batch.user), self.inputs.context))
        return self.user_state(user_rows, rows, history, context), batch.owner

    def states_of_targets(self, batch: Sequences) -> Tensor:
        """The states (T, Q) that predict the targets of a batch."""
        states, owner = self.states_of(batch)
        return states[owner]

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C) of the candidates of a batch."""
        return self.score(self.state(batch), self.rows("item", batch.item))

    def score_all(self, user_state: Tensor, item_rows: Tensor) -> Tensor:
        """Logits (B, N) of every item for every state (B, Q), from rows (N, R), in bounded memory."""
        if type(self).score is Model.score:
            return user_state @ item_rows.T
        # Blocks that stay in the cache take a third of the time of large ones.
        block = max(1, (1 << 17) // max(1, len(user_state) * max(1, item_rows.shape[1])))
        parts = [
            self.score(user_state, rows.unsqueeze(0).expand(len(user_state), -1, -1))
            for rows in torch.split(item_rows, block)
        ]
        return torch.cat(parts, 1)

    def loss(self, batch: Batch | Sequences) -> Tensor:
        """The scalar loss of a training batch, by the objective of `config.loss`."""
        if isinstance(batch, Sequences):
            return objectives.loss_of_targets(self, batch)
        return objectives.loss_of_events(self, batch)

    def fit(self, dataset: Any) -> None:
        """Fit in closed form to the training part of a Dataset; only where not `learns`."""
        raise NotImplementedError
