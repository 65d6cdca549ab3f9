"""The bundle on disk: what export writes and the runtime reads. No pickle, no archive.

bundle/
  manifest.json       kind "bundle"; figures: quality beside baselines, bytes
  bundle.json         Info below
  model.onnx          gathered rows, history and context -> logits (B, C); or, where a score is the
                      inner product of user state and item row,
  user.onnx           the same inputs without candidates -> user state (B, Q)
  item.onnx           content features of a new item -> its rows "item" and "history" side by
                      side (1, R + Dh); only where they depend on the content
  rows/               Rows named user, history, item: what can be evaluated in advance
  users/ items/       Ids: strings, row 0 is "" (unknown), and their sorted hashes; trained.npy
                      bool: whether the weights were trained on an event of the id
  history/            Histories: the last events of known users
  retrieval.json      Retrieval below: how candidates are found
  columns/            Columns of the items, for filters and caps; ShownColumns, for answers
  candidates/         CandidateGenerators: popular, fresh and, for larger catalogues, co-consumed items
  index/faiss.index   only where a faiss index finds the nearest items
  popularity.npy      (items,) events of each item that are to be predicted
  features/           what was fitted of the recipe's [features]
  card.md             what data, what figures, what limits
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from app.errors import ArtifactError
from app.features.context import Context

Array = npt.NDArray[Any]
ROWS = ("user", "history", "item")
MODEL_GRAPH, USER_GRAPH, ITEM_GRAPH = "model.onnx", "user.onnx", "item.onnx"
TRAINED = "trained.npy"
# The inputs of model.onnx, without the last one of user.onnx; those that a model does not use are left out.
INPUTS = (
    "user",
    "history",
    "history_mask",
    "history_event",
    "history_age",
    "history_gap",
    "context",
    "items",
)


MOST, MOST_EVENTS = 1 << 40, 1 << 20  # of ids, and of events or their types: what a bundle can mean


class Info(msgspec.Struct, frozen=True, dict=True):
    """What the runtime must know beside the arrays; `users` and `items` count row 0."""

    name: str
    version: str  # empty: from the digest of the bundle
    model: str
    users: Annotated[int, msgspec.Meta(ge=1, le=MOST)]
    items: Annotated[int, msgspec.Meta(ge=1, le=MOST)]
    history: Annotated[int, msgspec.Meta(ge=0, le=MOST_EVENTS)]  # most recent events that the model looks at
    events: list[str]  # event types by row, row 0 is "" (padding)
    default_event: Annotated[
        int, msgspec.Meta(ge=0, le=MOST_EVENTS)
    ]  # row of events for one without a type: the most frequent
    context: list[str]  # names of the context features
    context_bounds: list[list[float]]  # [low, high] of each of their floats
    session_gap: int  # microseconds, the pause that ends a session; 0: none does
    timed: bool  # False: the model knows no times, so that there is no context and all ages are 0
    opset: int
    # "recent": histories are padded to `history` events; "all": a history has each item of these events once,
    # where it came last; "events": it has each of these events. The last two are padded to the longest of
    # their batch.
    reads: Literal["recent", "all", "events"] = "recent"

    @cached_property
    def moments(self) -> Context:
        """The context features of a request."""
        return Context(self.context, self.context_bounds, self.session_gap)


class IndexInfo(msgspec.Struct, frozen=True):
    """A faiss index as it was tuned at export."""

    kind: Literal["ivf_sq8", "ivf_pq", "hnsw"]
    bytes: int  # of the file
    reach: int  # lists that a search probes (ivf), or the length of its queue (hnsw)
    propose: int  # times as many proposals as items wanted


class Retrieval(msgspec.Struct, frozen=True):
    """The first stage of recommendations. A bundle without one has every item scored."""

    candidates: int = 0  # that are ranked where no index finds the best; 0: every item
    vectors: bool = True  # whether the cosine of item rows says how alike items are
    segment: str = ""  # the column whose most met value is a user's segment
    index: IndexInfo | None = None


def read_retrieval(path: Path) -> Retrieval:
    """Read retrieval.json; older bundles have none.

    Raises:
        ArtifactError: not what it should be.
    """
    if not path.exists():
        return Retrieval()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Retrieval)
    except (OSError, msgspec.MsgspecError) as error:
        raise damaged(path, str(error)) from None


def read_info(path: Path) -> Info:
    """Read bundle.json.

    Raises:
        ArtifactError: missing or not what it should be.
    """
    try:
        content = path.read_bytes()
        return msgspec.json.decode(content, type=Info)
    except (OSError, msgspec.MsgspecError) as error:
        if isinstance(error, msgspec.ValidationError) and "context_bounds" in str(error):
            raise ArtifactError(
                "exported by an earlier version, whose models count ages from the request",
                where=str(path),
                remedy="train and export it again with this version",
            ) from None
        raise damaged(path, str(error)) from None


def load_array(path: Path) -> Array:
    """Map a .npy file as a plain array.

    Raises:
        ArtifactError: missing, truncated or not an array.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, str(error)) from None


def load_trained(folder: Path, count: int) -> Array:
    """(count,) bool: which ids of `users` or `items` the weights were trained on.

    A bundle of an older version does not say so; all but row 0 count as trained then.

    Raises:
        ArtifactError: damaged, or not of these ids.
    """
    path = folder / TRAINED
    trained = load_array(path) if path.exists() else np.arange(count) > 0
    if len(trained) != count or trained.dtype != bool:
        raise damaged(path, f"{len(trained)} values of type {trained.dtype} for {count} ids")
    return trained


def damaged(path: Path, why: str) -> ArtifactError:
    """The error for a file of a bundle that cannot be read."""
    return ArtifactError(
        f"cannot be read ({why})", where=str(path), remedy="copy the bundle again or export it again"
    )


def compact(column: Array) -> Array:
    """The same non-negative integers in the smallest unsigned type that holds them."""
    return column.astype(np.min_scalar_type(int(column.max(initial=0))))
