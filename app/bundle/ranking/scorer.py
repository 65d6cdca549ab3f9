"""Scores rows: gathers what a graph needs from the row stores and runs it."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from app.bundle.format.layout import ROWS, Array, Info
from app.bundle.format.session import Graph
from app.bundle.ranking.user_vectors import UserVectorCache
from app.bundle.request.encode import EncodedRequest, model_inputs
from app.bundle.retrieval.index import Blocks
from app.bundle.retrieval.overlay import ExtendedRows
from app.errors import ArtifactError
from app.features.context import context_width
from app.tables.rows import Rows

BLOCK = 1 << 11  # candidates of several requests that are scored in one go: they fit the cache
_editions = itertools.count()  # of models with their rows, each of its own


class BatchScorer:
    """The model of a bundle over its rows. Safe to use from several threads.

    Args:
        path: of the bundle.
        info: of the bundle.
        threads: of one call into the model.
        states: keeps user states; None: they are made each time.
    """

    def __init__(self, path: Path, info: Info, threads: int, states: UserVectorCache | None = None) -> None:
        self.info, self._states, self._edition = info, states, next(_editions)
        self.stored = {name: Rows.open(path / "rows", name) for name in ROWS}
        self.rows: dict[str, Rows | ExtendedRows] = {**self.stored}
        self._model = Graph(path / "model.onnx", threads)
        _check_context(self._model, info, path)
        self._user = Graph(path / "user.onnx", threads) if (path / "user.onnx").exists() else None
        self.blocks = Blocks(self.stored["item"])  # of the bundle alone
        self.added: Array = np.zeros((0, self.stored["item"].width), np.float32)

    def with_new_items(self, added: Mapping[str, Array]) -> BatchScorer:
        """The same with the rows "item" (N, R) and "history" (N, Dh) of new items behind the bundle's."""
        other = copy.copy(self)
        other._edition = next(_editions)
        other.added = added["item"]
        with_new_items = {name: ExtendedRows(self.stored[name], values) for name, values in added.items()}
        other.rows = {**self.stored, **with_new_items}
        return other

    @property
    def items(self) -> int:
        """Rows in all, row 0 and new items counted."""
        return self.info.items + len(self.added)

    def candidates(self, asked: Sequence[EncodedRequest]) -> list[Array]:
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

    def _run(self, asked: list[EncodedRequest]) -> Array:
        """Logits (B, widest) of requests of about one size."""
        rows = np.zeros((len(asked), max(len(one.rows) for one in asked)), np.int64)
        for place, one in enumerate(asked):
            rows[place, : len(one.rows)] = one.rows
        return self._model.run(self._feeds(self._model, asked) | {"items": self.rows["item"].gather(rows)})

    def _feeds(self, graph: Graph, asked: Sequence[EncodedRequest]) -> dict[str, Array]:
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

    def states(self, asked: Sequence[EncodedRequest]) -> Array:
        """User states (B, Q); only where the model retrieves."""
        if self._states is None:
            return self._made(asked)
        return self._states.vectors(self._edition, self.info.history, asked, self._made)

    def _made(self, asked: Sequence[EncodedRequest]) -> Array:
        assert self._user is not None
        return self._user.run(self._feeds(self._user, asked))

    def all(self, asked: Sequence[EncodedRequest]) -> Array:
        """Logits (B, items) of every item, a block of items at a time."""
        scores = np.empty((len(asked), self.items), np.float32)
        feeds = self._feeds(self._model, asked)
        for start, block in self._all_blocks():
            for place in range(len(asked)):
                one = {name: value[place : place + 1] for name, value in feeds.items()}
                found = self._model.run(one | {"items": block[None]})[0]
                scores[place, start : start + len(block)] = found
        return scores

    def cosines(self, row: int) -> Array:
        """(items,) cosine of the rows of every item and of one."""
        wanted = self.rows["item"].gather(np.array(row))
        products = np.concatenate([block @ wanted for _, block in self._all_blocks()])
        norms = self.blocks.norms
        if len(self.added):
            norms = np.concatenate([norms, np.linalg.norm(self.added, axis=1)])
        lengths = np.maximum(norms * norms[row], np.finfo(np.float32).tiny)
        return np.asarray(products / lengths)

    def directions(self, rows: Array) -> Array:
        """Item rows (C, R) scaled to length 1."""
        vectors = self.rows["item"].gather(rows)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))

    def _all_blocks(self) -> Iterator[tuple[int, Array]]:
        yield from self.blocks
        if len(self.added):
            yield self.info.items, self.added


def _check_context(model: Graph, info: Info, path: Path) -> None:
    width, expected = model.widths.get("context"), context_width(info.context)
    if width not in (None, expected):
        raise ArtifactError(
            f"the model takes {width} floats of context, this version makes {expected}",
            where=str(path),
            remedy="export the bundle again from a data set that this version prepared",
        )
