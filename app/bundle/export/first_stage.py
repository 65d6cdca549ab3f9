"""Export of the first stage: columns, candidates, an index, and what they miss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.bundle.export.build_index import K, build, kind_of, recall, top
from app.bundle.export.from_dataset import last_time
from app.bundle.export.item_columns import write_candidates, write_columns
from app.bundle.format.histories import Histories
from app.bundle.format.item_columns import Columns
from app.bundle.format.layout import Array, Info, Retrieval
from app.bundle.ranking.scorer import BatchScorer
from app.bundle.request.encode import EncodedRequest, shown
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
    recipe: Recipe, dataset: Dataset, model: Model, info: Info, popularity: Array, folder: Path
) -> dict[str, Any]:
    """Write all that the first stage of a bundle needs, beside the files that `folder` has.

    Args:
        recipe: its [export].
        dataset: of the model.
        model: that is exported.
        info: of the bundle.
        popularity: (items,) events of each item.
        folder: of the bundle, with rows, graphs and histories.

    Returns:
        kind: "exact", "all" or "sources", or of the faiss index; and where items can be missed
        recall@20: the share of the exact best 20 found, of items that users have not met yet.
    """
    export, scorer = recipe.export, BatchScorer(folder, info, os.cpu_count() or 1)
    kind = kind_of(export.index, info.items, retrieves=scorer.retrieves, model=info.model)
    bounded = not kind and info.items - 1 > export.candidates
    retrieval = Retrieval(
        candidates=export.candidates,
        vectors=model.quantisable,
        segment=write_columns(recipe, dataset, popularity, folder / "columns"),
    )
    write_candidates(dataset, popularity, folder / "candidates", consumed=bounded)
    figures: dict[str, Any] = {"kind": kind or ("sources" if bounded else "all")}
    requests = sample_requests(dataset, Histories.open(folder / "history"), info, recipe.seed)
    if kind not in ("", "exact"):
        chunks = [requests[start : start + 256] for start in range(0, len(requests), 256)]
        vectors = np.concatenate([scorer.user_vectors(chunk) for chunk in chunks])
        eligible = [EligibleItems(info.items, request.rows) for request in requests]
        path = folder / "index" / "faiss.index"
        index, share = build(kind, scorer.stored["item"], vectors, eligible, export.recall, path)
        retrieval = msgspec.structs.replace(retrieval, index=index)
        figures |= {"recall@20": share, "reach": index.reach, "bytes": index.bytes}
    elif bounded:
        share = _recall(requests, scorer, retrieval, popularity, folder)
        figures |= {"recall@20": share, "candidates": export.candidates}
    _warn(figures, export.recall)
    (folder / "retrieval.json").write_bytes(msgspec.json.encode(retrieval))
    return figures


def sample_requests(dataset: Dataset, histories: Histories, info: Info, seed: int) -> list[EncodedRequest]:
    """Recommendations for some known users after the last event, without what they have met.

    As `exclude_seen` asks for by default. Items that a user met would also flatter what is measured,
    because candidates that the same people met are found by these very events.
    """
    known = np.arange(1, dataset.schema.users)
    drawn = np.random.default_rng(seed).choice(known, min(USERS, len(known)), replace=False)
    now = last_time(dataset)
    requests = []
    for user in np.sort(drawn).tolist():
        history = histories.events(user)
        met = np.unique(np.concatenate([[0], history.item, histories.older_items(user)])).astype(np.int64)
        requests.append(EncodedRequest(user, now, shown(history, info), met))
    return requests


def _recall(
    requests: list[EncodedRequest], scorer: BatchScorer, retrieval: Retrieval, popularity: Array, folder: Path
) -> float:
    """Of the best 20 of all items, the share that the candidates of each request hold."""
    requests = requests[: max(FEWEST, min(200, SCORED // scorer.info.items))]
    columns = Columns.open(folder / "columns", scorer.info.items)
    segment = columns.texts(retrieval.segment, "segment") if retrieval.segment else None
    generators = CandidateGenerators.open(folder / "candidates", scorer.info.items, segment)
    plans = [
        Plan(RecommendRequest("", k=K), request, EligibleItems(scorer.info.items, request.rows), Rules())
        for request in requests
    ]
    best: list[list[Array]] = []
    for candidates in (retrieval.candidates, 0):
        stages = TwoStageRanker(scorer, popularity, None, generators, candidates)
        best.append([top(pool) for pool in stages.pools(plans, FULL)])
    return recall(*best)


def _warn(figures: dict[str, Any], target: float) -> None:
    share = figures.get("recall@20", 1.0)
    if share < target:
        larger = "export.candidates" if figures["kind"] == "sources" else "export.index"
        say(f"Recommendations find {share:.0%} of the best 20 items; a larger {larger} finds more")
