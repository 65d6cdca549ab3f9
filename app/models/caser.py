"""Convolutions over a user's last events (Tang and Wang 2018, "Personalized top-N sequential
recommendation").

Horizontal filters span a few events and all floats, and the largest response within the window counts, so
that they find a short sequence wherever it is; vertical filters are weighted sums over the window, one weight
an event. Beside what both give stands the user's own embedding: an item's score is the inner product of both
with the vectors that the item has for them. The window ends at each event in turn, as the loss is taken
there.

Shapes: B users, L events, D = width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.base import Content, History, Inputs, Loss, Model, ModelConfig
from app.models.dropout import Dropout
from app.models.sequence_parts import SEQUENCE_TRAINING, EventInput, ItemVectors
from app.tables.base import Tables


class CaserConfig(ModelConfig):
    """Hyperparameters of convolutions over a sequence."""

    loss: Loss = "softmax"
    width: int = Field(64, ge=1, description="floats of an event and of an item")
    window: int = Field(5, ge=1, description="last events that a state is made of")
    horizontal: int = Field(16, ge=1, description="filters of each height, 1 to `window` events")
    vertical: int = Field(4, ge=1, description="weighted sums over the window")
    users: bool = Field(True, description="a user's own embedding beside what the window gives")
    attributes: bool = Field(True, description="add the content features of items to their embeddings")
    dropout: float = Field(0.5, ge=0, lt=1, description="of what the filters give")


class Caser(Model):
    """Horizontal and vertical convolutions over the last events of a history."""

    Config = CaserConfig
    SPACE: ClassVar[dict[str, Any]] = {
        "width": [32, 64, 128],
        "window": [3, 5, 8],
        "horizontal": [8, 16, 32],
        "vertical": [2, 4, 8],
        "users": [False, True],
        "dropout": (0.2, 0.6),
    }
    TRAINING = SEQUENCE_TRAINING
    retrieves = True
    trains_on = "sequences"
    config: CaserConfig

    def __init__(self, config: CaserConfig, inputs: Inputs, content: Content, tables: Tables) -> None:
        super().__init__(config, inputs, content, tables)
        width, heights = config.width, range(1, config.window + 1)
        self.items = ItemVectors(width, inputs, tables, attributes=config.attributes)
        self.users = tables("user", inputs.users, width) if config.users else None
        self.tastes = tables("item_taste", inputs.items, width) if config.users else None
        self.input = EventInput(width, inputs, start=False)
        self.horizontal = nn.ModuleList(nn.Conv1d(width, config.horizontal, height) for height in heights)
        self.vertical = nn.Parameter(torch.randn(config.vertical, config.window) / config.window)
        self.out = nn.Linear(config.window * config.horizontal + config.vertical * width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)

    def user_rows(self, users: Tensor) -> Tensor:
        """Embeddings (…, D) of users, (…, 0) without."""
        return super().user_rows(users) if self.users is None else self.users.lookup(users)

    def history_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) of items, the same as the candidates'."""
        vectors: Tensor = self.items(self, items)
        return vectors

    def item_rows(self, items: Tensor) -> Tensor:
        """Vectors (…, D) or, with users, (…, 2 D) of items."""
        vectors = self.history_rows(items)
        return vectors if self.tastes is None else torch.cat([vectors, self.tastes.lookup(items)], -1)

    def states(self, user_rows: Tensor, history_rows: Tensor, history: History) -> Tensor:
        """States (B, L, D) or, with users, (B, L, 2 D) after every event."""
        # Zeros before the first event, where a window is not yet full.
        events = F.pad(self.input(history_rows, history), (0, 0, self.config.window - 1, 0))
        filtered = self.dropout(torch.cat([*self._horizontal(events), self._vertical(events)], -1))
        states = self.norm(self.out(filtered))
        users = user_rows.unsqueeze(1).expand(-1, states.shape[1], -1)
        return torch.cat([states, users], -1)

    def user_state(
        self, user_rows: Tensor, history_rows: Tensor, history: History, context: Tensor
    ) -> Tensor:
        """The state (B, Q) of the last window alone."""
        window = slice(-self.config.window, None)
        columns = (column[:, window] for column in vars(history).values())
        return self.states(user_rows, history_rows[:, window], History(*columns))[:, -1]

    def _horizontal(self, events: Tensor) -> list[Tensor]:
        """(B, L, horizontal) a height: the largest response within the window that ends at each event."""
        channels = events.transpose(1, 2)
        responses = (F.relu(filters(channels)) for filters in self.horizontal)
        largest = (
            F.max_pool1d(response, self.config.window - height, stride=1)
            for height, response in enumerate(responses)
        )
        return [values.transpose(1, 2) for values in largest]

    def _vertical(self, events: Tensor) -> Tensor:
        """(B, L, vertical * D): weighted sums over the window that ends at each event."""
        window = self.config.window
        length = events.shape[1] - window + 1
        windows = torch.stack([events[:, first : first + length] for first in range(window)], 2)
        return torch.matmul(self.vertical, windows).flatten(2)
