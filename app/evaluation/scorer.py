"""Scores of requests, by which an evaluation ranks, whatever computes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from app.models.base import Batch, History, Model, Reads, RowKind
from app.models.rows import rows_of
from app.tables.rows import Rows

FLOATS = 1 << 22  # of gathered rows at a time
# Of the rows of whole pasts: a model that solves for its state reads them again and again, from the cache.
PAST_FLOATS = 1 << 20


class Scorer(Protocol):
    """Scores requests; higher is better. NaN ranks last."""

    @property
    def reads(self) -> Reads:
        """How much of a user's past the requests must show it; see `Model.reads`."""
        ...

    def all(self, batch: Batch) -> Tensor:
        """(B, items) float32 on the CPU: every item, column 0 the unknown one."""
        ...

    def candidates(self, batch: Batch) -> Tensor:
        """(B, C) float32 on the CPU: the candidates `batch.item`."""
        ...


class ModelScorer:
    """Scores with a model's pieces, as serving does: static rows once, the rest per batch.

    Args:
        model: put into evaluation mode; scored on the device it is on.
        rows: stored rows "user", "history" and "item", as a compressed checkpoint has them;
            what is not among them, or None, is computed by the model.
    """

    def __init__(self, model: Model, rows: Mapping[str, Rows] | None = None) -> None:
        self.model = model.eval()
        self.device = next(iter([*model.parameters(), *model.buffers()])).device
        self._rows = rows or {}
        self._item, self._history = self._every("item"), self._every("history")

    @property
    def reads(self) -> Reads:
        """How much of a user's past the model reads."""
        return self.model.reads

    @torch.no_grad()
    def all(self, batch: Batch) -> Tensor:
        """Scores (B, items) of every item."""
        return self.model.score_all(self._state(batch), self._item).float().cpu()

    @torch.no_grad()
    def candidates(self, batch: Batch) -> Tensor:
        """Scores (B, C), some requests at a time, so that the gathered item rows stay small."""
        state, items = self._state(batch), batch.item.to(self.device)
        size = max(1, FLOATS // max(1, items.shape[1] * self._item.shape[1]))
        parts = [
            self.model.score(s, self._item[i])
            for s, i in zip(torch.split(state, size), torch.split(items, size), strict=True)
        ]
        return torch.cat(parts).float().cpu() if parts else torch.zeros(items.shape)

    def _state(self, batch: Batch) -> Tensor:
        batch = batch.to(self.device)
        if "user" in self._rows:
            user = torch.from_numpy(self._rows["user"].gather(batch.user.cpu().numpy())).to(self.device)
        else:
            user = rows_of(self.model, "user", batch.user)
        if self.reads == "recent":
            return self._states(user, batch.history, batch.context)
        chosen = list(self._by_length(batch.history.item))
        parts = [
            self._states(user[rows], batch.history.part(rows, length), batch.context[rows])
            for rows, length in chosen
        ]
        back = torch.cat([rows for rows, _ in chosen]).argsort()
        return torch.cat(parts)[back]

    def _states(self, user: Tensor, history: History, context: Tensor) -> Tensor:
        return self.model.user_state(user, self._history[history.item], history, context)

    def _by_length(self, items: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Rows of histories (B, L) of about one length and that length, so that little is padded.

        Of one that is as long as the whole past few are looked at together.
        """
        present = items > 0
        lengths = torch.where(present.any(1), items.shape[1] - present.int().argmax(1), 1)
        order, start = lengths.argsort(descending=True), 0
        while start < len(order):
            length = int(lengths[order[start]])
            stop = start + max(1, PAST_FLOATS // (length * max(1, self._history.shape[1])))
            yield order[start:stop], length
            start = stop

    def _every(self, kind: RowKind) -> Tensor:
        if kind in self._rows:
            return torch.from_numpy(np.array(self._rows[kind].all())).to(self.device)
        return rows_of(self.model, kind, torch.arange(self.model.inputs.items, device=self.device))
