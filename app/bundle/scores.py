"""Scores rows: gathers what a graph needs from the row stores and runs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from app.bundle.asked import Asked, model_inputs
from app.bundle.graph import Graph
from app.bundle.index import Blocks
from app.bundle.layout import ROWS, Array, Info
from app.tables.rows import Rows

BLOCK = 1 << 11  # candidates of several requests that are scored in one go: they fit the cache


class Scores:
    """The model of a bundle over its rows. Safe to use from several threads."""

    def __init__(self, path: Path, info: Info, threads: int) -> None:
        self.info = info
        self.rows = {name: Rows.open(path / "rows", name) for name in ROWS}
        self._model = Graph(path / "model.onnx", threads)
        self._user = Graph(path / "user.onnx", threads) if (path / "user.onnx").exists() else None
        self.blocks = Blocks(self.rows["item"])

    def candidates(self, asked: Sequence[Asked]) -> list[Array]:
        """Logits (C,) of the candidates of each request.

        Requests of about one size run together, so that little is padded and ONNX Runtime
        meets few shapes.
        """
        sizes = defaultdict(list)
        for place, one in enumerate(asked):
            sizes[(len(one.rows) - 1).bit_length()].append(place)
        scores: list[Array] = [np.zeros(0, np.float32)] * len(asked)
        for exponent, places in sizes.items():
            step = max(1, BLOCK >> exponent)
            for start in range(0, len(places), step):
                chunk = places[start : start + step]
                for place, row in zip(chunk, self._run([asked[p] for p in chunk]), strict=True):
                    scores[place] = row[: len(asked[place].rows)]
        return scores

    def _run(self, asked: list[Asked]) -> Array:
        """Logits (B, widest) of requests of about one size."""
        rows = np.zeros((len(asked), max(len(one.rows) for one in asked)), np.int64)
        for place, one in enumerate(asked):
            rows[place, : len(one.rows)] = one.rows
        return self._model.run(self._feeds(self._model, asked) | {"items": self.rows["item"].gather(rows)})

    def _feeds(self, graph: Graph, asked: Sequence[Asked]) -> dict[str, Array]:
        inputs = model_inputs(asked, self.info, graph.inputs)
        for name in inputs.keys() & self.rows.keys():
            inputs[name] = self.rows[name].gather(inputs[name])
        return inputs

    @property
    def take_history(self) -> bool:
        """Whether a score depends on what a user did, or on when that was."""
        return any(name == "context" or name.startswith("history") for name in self._model.inputs)

    @property
    def retrieves(self) -> bool:
        """Whether a score is the inner product of a user state and an item row."""
        return self._user is not None

    def states(self, asked: Sequence[Asked]) -> Array:
        """User states (B, Q); only where the model retrieves."""
        assert self._user is not None
        return self._user.run(self._feeds(self._user, asked))

    def all(self, asked: Sequence[Asked]) -> Array:
        """Logits (B, items) of every item, a block of items at a time."""
        scores = np.empty((len(asked), self.info.items), np.float32)
        feeds = self._feeds(self._model, asked)
        for start, block in self.blocks:
            for place in range(len(asked)):
                one = {name: value[place : place + 1] for name, value in feeds.items()}
                found = self._model.run(one | {"items": block[None]})[0]
                scores[place, start : start + len(block)] = found
        return scores

    def cosines(self, row: int) -> Array:
        """(items,) cosine of the rows of every item and of one."""
        wanted = self.rows["item"].gather(np.array(row))
        products = np.concatenate([block @ wanted for _, block in self.blocks])
        lengths = np.maximum(self._norms * self._norms[row], np.finfo(np.float32).tiny)
        return np.asarray(products / lengths)

    def directions(self, rows: Array) -> Array:
        """Item rows (C, R) scaled to length 1."""
        vectors = self.rows["item"].gather(rows)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))

    @cached_property
    def _norms(self) -> Array:
        return np.concatenate([np.linalg.norm(block, axis=1) for _, block in self.blocks])
