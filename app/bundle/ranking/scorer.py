"""Scores rows: gathers what a graph needs from the row stores and runs it."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from app.bundle.format.layout import MODEL_GRAPH, ROWS, USER_GRAPH, Array, Info
from app.bundle.format.session import Graph
from app.bundle.ranking.rows import Blocks, ExtendedRows
from app.bundle.ranking.user_vectors import UserVectorCache
from app.bundle.request.encode import EncodedRequest, model_inputs
from app.errors import ArtifactError
from app.features.context import context_width
from app.tables.rows import Rows

BLOCK = 1 << 11  # candidates of several requests that are scored in one go: they fit the cache
SHORT = 64  # events: whole histories are rarely longer
FLOATS = 1 << 20  # of rows of histories that are gathered for one run, where a history may be long
_versions = itertools.count()  # of models with their rows, each its own


class BatchScorer:
    """The model of a bundle over its rows. Safe to use from several threads.

    Args:
        path: of the bundle.
        info: of the bundle.
        threads: of one call into the model.
        user_vectors: a cache; None: user vectors are computed each time.

    Attributes:
        retrieves: whether a score is the inner product of a user vector and an item row.
    """

    def __init__(
        self, path: Path, info: Info, threads: int, user_vectors: UserVectorCache | None = None
    ) -> None:
        self.info, self._user_vectors, self._version = info, user_vectors, next(_versions)
        self.stored = {name: Rows.open(path / "rows", name) for name in ROWS}
        self.rows: dict[str, Rows | ExtendedRows] = {**self.stored}
        self.retrieves = (path / USER_GRAPH).exists()
        self._graph = Graph(path / (USER_GRAPH if self.retrieves else MODEL_GRAPH), threads)
        _check_context(self._graph, info, path)
        self.blocks = Blocks(self.stored["item"])  # of the bundle alone
        self.added: Array = np.zeros((0, self.stored["item"].width), np.float32)

    def with_new_items(self, added: Mapping[str, Array]) -> BatchScorer:
        """The same with the rows "item" (N, R) and "history" (N, Dh) of new items behind the bundle's."""
        other = copy.copy(self)
        other._version = next(_versions)
        other.added = added["item"]
        extended = {name: ExtendedRows(self.stored[name], values) for name, values in added.items()}
        other.rows = {**self.stored, **extended}
        return other

    @property
    def items(self) -> int:
        """Rows in all, row 0 and new items counted."""
        return self.info.items + len(self.added)

    def score(self, requests: Sequence[EncodedRequest]) -> list[Array]:
        """Logits (C,) of the candidates of each request."""
        scores: list[Array] = [np.zeros(0, np.float32)] * len(requests)
        for chunk in self._alike(requests, [len(request.rows) for request in requests]):
            for i, row in zip(chunk, self._run([requests[i] for i in chunk]), strict=True):
                scores[i] = row[: len(requests[i].rows)]
        return scores

    def _run(self, requests: list[EncodedRequest]) -> Iterable[Array]:
        """Logits of requests of about one size, at least as many as each has candidates."""
        feeds = self._feeds(requests)
        if self.retrieves:
            vectors = self._graph.run(feeds)
            pairs = zip(requests, vectors, strict=True)
            return [self.rows["item"].gather(request.rows) @ vector for request, vector in pairs]
        rows = np.zeros((len(requests), max(len(request.rows) for request in requests)), np.int64)
        for i, request in enumerate(requests):
            rows[i, : len(request.rows)] = request.rows
        return self._graph.run(feeds | {"items": self.rows["item"].gather(rows)})

    def _alike(self, requests: Sequence[EncodedRequest], candidates: Sequence[int]) -> Iterator[list[int]]:
        """Positions of requests of about one size, some at a time.

        They run together, so that little is padded, ONNX Runtime meets few shapes, and the gathered rows are
        bounded. Histories of up to SHORT events count as one size.
        """
        sizes = defaultdict(list)
        varies, width = self.info.reads != "recent", max(1, self.rows["history"].width)
        for i, request in enumerate(requests):
            events = max(SHORT, len(request.history)) if varies else 1
            sizes[(candidates[i] - 1).bit_length(), (events - 1).bit_length()].append(i)
        for (exponent, events), positions in sizes.items():
            step = max(1, min(BLOCK >> exponent, FLOATS // width >> events))
            for start in range(0, len(positions), step):
                yield positions[start : start + step]

    def _feeds(self, requests: Sequence[EncodedRequest]) -> dict[str, Array]:
        inputs = model_inputs(requests, self.info, self._graph.inputs)
        for name in inputs.keys() & self.rows.keys():
            inputs[name] = self.rows[name].gather(inputs[name])
        return inputs

    @property
    def takes_history(self) -> bool:
        """Whether a score depends on what a user did, or on when that was."""
        return any(name == "context" or name.startswith("history") for name in self._graph.inputs)

    def user_vectors(self, requests: Sequence[EncodedRequest]) -> Array:
        """User vectors (B, Q); only where the model retrieves."""
        if self._user_vectors is None:
            return self._compute_user_vectors(requests)
        length = self.info.history
        return self._user_vectors.vectors(self._version, length, requests, self._compute_user_vectors)

    def _compute_user_vectors(self, requests: Sequence[EncodedRequest]) -> Array:
        if self.info.reads == "recent":
            return self._graph.run(self._feeds(requests))
        chunks = list(self._alike(requests, [1] * len(requests)))
        parts = [self._graph.run(self._feeds([requests[i] for i in chunk])) for chunk in chunks]
        back = np.argsort(np.concatenate(chunks))
        return np.asarray(np.concatenate(parts)[back])

    def score_all(self, requests: Sequence[EncodedRequest]) -> Array:
        """Logits (B, items) of every item, a block of items at a time."""
        if self.retrieves:
            vectors = self._compute_user_vectors(requests)
            return np.concatenate([vectors @ block.T for _, block in self._all_blocks()], 1)
        scores = np.empty((len(requests), self.items), np.float32)
        feeds = [self._feeds([request]) for request in requests]
        for start, block in self._all_blocks():
            part = slice(start, start + len(block))
            for i, request in enumerate(feeds):
                scores[i, part] = self._graph.run(request | {"items": block[None]})[0]
        return scores

    def cosines(self, row: int) -> Array:
        """(items,) cosine of the row of every item and that of one item."""
        vector = self.rows["item"].gather(np.array(row))
        products = np.concatenate([block @ vector for _, block in self._all_blocks()])
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
