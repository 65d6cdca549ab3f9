"""Export of the first stage: columns, candidates, an index, and what they miss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.bundle.export.build_index import K, build, kind_of, recall, top
from app.bundle.export.item_columns import write_candidates, write_columns
from app.bundle.format.histories import Histories
from app.bundle.format.item_columns import Columns
from app.bundle.format.layout import Array, Info, Retrieval
from app.bundle.ranking.scorer import BatchScorer
from app.bundle.request.encode import EncodedRequest
from app.bundle.request.requests import RecommendRequest
from app.bundle.retrieval.candidates import CandidateGenerators
from app.bundle.retrieval.latency_budget import FULL
from app.bundle.retrieval.pool import EligibleItems
from app.bundle.retrieval.rules import Rules
from app.bundle.retrieval.two_stage import Plan, TwoStageRanker
from app.data.dataset import Dataset
from app.models.base import Model
from app.recipe import Recipe
from app.terminal.console import say

USERS = 1000  # whose states tune an index and measure it
SCORED, FEWEST = 1 << 22, 20  # scores that measuring the candidates takes, but so many users at least


def write_retrieval(
    recipe: Recipe, dataset: Dataset, model: Model, info: Info, folder: Path
) -> dict[str, Any]:
    """Write all that the first stage of a bundle needs, beside the files that `folder` has.

    Returns:
        kind: "exact", "all" or "sources", or of the faiss index; and where items can be missed
        recall@20, the share of the exact best 20 found, of users' states at the end of training.
    """
    export, scores = recipe.export, BatchScorer(folder, info, os.cpu_count() or 1)
    kind = kind_of(export.index, info.items, retrieves=scores.retrieves, model=info.model)
    bounded = not kind and info.items - 1 > export.candidates
    retrieval = Retrieval(
        candidates=export.candidates,
        vectors=model.quantisable,
        segment=write_columns(recipe, dataset, folder / "columns"),
    )
    write_candidates(dataset, folder / "candidates", consumed=bounded)
    figures: dict[str, Any] = {"kind": kind or ("sources" if bounded else "all")}
    asked = _asked(dataset, Histories.open(folder / "history"), recipe.seed)
    if kind not in ("", "exact"):
        chunks = [asked[start : start + 256] for start in range(0, len(asked), 256)]
        states = np.concatenate([scores.states(chunk) for chunk in chunks])
        path = folder / "index" / "faiss.index"
        index, found = build(kind, scores.stored["item"], states, export.recall, path)
        retrieval = msgspec.structs.replace(retrieval, index=index)
        figures |= {"recall@20": found, "reach": index.reach, "bytes": index.bytes}
    elif bounded:
        figures |= {"recall@20": _recall(asked, scores, retrieval, folder), "candidates": export.candidates}
    _tell(figures, export.recall)
    (folder / "retrieval.json").write_bytes(msgspec.json.encode(retrieval))
    return figures


def _asked(dataset: Dataset, histories: Histories, seed: int) -> list[EncodedRequest]:
    """Requests of some known users just after training."""
    known = np.arange(1, dataset.schema.users)
    drawn = np.random.default_rng(seed).choice(known, min(USERS, len(known)), replace=False)
    now = dataset.schema.end_time
    return [
        EncodedRequest(int(user), now, histories.of(int(user)), np.zeros(1, np.int64))
        for user in np.sort(drawn)
    ]


def _recall(asked: list[EncodedRequest], scores: BatchScorer, retrieval: Retrieval, folder: Path) -> float:
    """Of the best 20 of all items, the share that the candidates of each request hold."""
    asked = asked[: max(FEWEST, min(200, SCORED // scores.info.items))]
    columns = Columns.open(folder / "columns", scores.info.items)
    segment = columns.texts(retrieval.segment, "segment") if retrieval.segment else None
    sources = CandidateGenerators.open(folder / "candidates", scores.info.items, segment)
    popularity = np.load(folder / "popularity.npy", mmap_mode="r")
    allowed, request = EligibleItems(scores.info.items, np.zeros(1, np.int64)), RecommendRequest("", k=K)
    plans = [Plan(request, one, allowed, Rules()) for one in asked]
    tops: list[list[Array]] = [
        [
            top(pool)
            for pool in TwoStageRanker(scores, popularity, None, sources, candidates).pools(plans, FULL)
        ]
        for candidates in (retrieval.candidates, 0)
    ]
    return recall(*tops)


def _tell(figures: dict[str, Any], target: float) -> None:
    found = figures.get("recall@20", 1.0)
    if found < target:
        more = "export.candidates" if figures["kind"] == "sources" else "export.index"
        say(f"Recommendations find {found:.0%} of the best 20 items; a larger {more} finds more")
