"""Whether what is served is what was evaluated: test requests answered by the evaluation, a bundle and HTTP.

Each request is a user of the test part with the history that the evaluation knows and its moment, and
candidates drawn among all items; all three score the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle.request.requests import Answer, Context, RankRequest
from app.bundle.runtime import Ranker
from app.client import Client
from app.data.dataset import Array, Dataset
from app.errors import DataError
from app.evaluation.requests import Requests, requests_of
from app.evaluation.scorer import ModelScorer
from app.events import HistoryEvent
from app.models.base import Reads
from app.recipe import Recipe
from app.serving.service import running
from app.training.checkpoint import load_checkpoint

REQUESTS, CANDIDATES = 200, 100
TOLERANCE = 1e-3  # of a score, relative where it exceeds 1
SHOWN = 3  # requests that differ and are named


def compare_bundle(recipe: Recipe, out: Path, bundle: Path, *, serve: bool = True) -> dict[str, Any]:
    """Replay test requests over the runtime and over a service on loopback.

    Args:
        recipe: of the run.
        out: folder of the run, with `dataset` and `compressed` (the model that the report is about).
        bundle: what is checked.
        serve: whether a service is started, too.

    Returns:
        requests, candidates, and for "runtime" and "service" {ids, order: shares that agree, score: the
        largest difference, differ: users whose answer differs}.

    Raises:
        DataError: the data set has no test request.
    """
    dataset = Dataset.open(out / "dataset", verify=False)
    requests = requests_of(dataset, "test").sample(REQUESTS, recipe.seed)
    if not len(requests):
        raise DataError("no test request to replay", where=str(dataset.path), remedy="see [split] test")
    checkpoint = load_checkpoint(out / "compressed", dataset)
    rng = np.random.default_rng(recipe.seed)
    count = min(CANDIDATES, dataset.schema.items - 1)
    items = np.stack([1 + rng.permutation(dataset.schema.items - 1)[:count] for _ in range(len(requests))])
    scorer = ModelScorer(checkpoint.model, checkpoint.rows)
    scores = scorer.candidates(requests.batch(dataset, slice(None), items, scorer.reads))
    asked = _rank_requests(dataset, requests, items, scorer.reads)
    expected = [
        dict(zip(request.items, row, strict=True))
        for request, row in zip(asked, scores.tolist(), strict=True)
    ]
    ranker = Ranker.open(bundle)
    ways: dict[str, Any] = {"runtime": _agreement(asked, expected, lambda r: ranker.rank([r])[0])}
    if serve:
        with running(bundle, recipe.serve) as url, Client(url) as client:
            ways["service"] = _agreement(asked, expected, client.rank)
    return {"requests": len(asked), "candidates": count, **ways}


def _rank_requests(dataset: Dataset, requests: Requests, items: Array, reads: Reads) -> list[RankRequest]:
    """The requests as a client sends them, the history and the moment included."""
    item, event, time = requests.recent(dataset, slice(None), reads)
    now = np.maximum(requests.now, time.max(1, initial=0))
    asked = []
    for i in range(len(requests)):
        history = [
            HistoryEvent(dataset.items[int(row)], dataset.schema.events[int(kind)], int(when) / 1e6)
            for row, kind, when in zip(item[i], event[i], time[i], strict=True)
            if row
        ]
        names = [dataset.items[int(row)] for row in items[i]]
        user, moment = dataset.users[int(requests.user[i])] or "unknown user", Context(int(now[i]) / 1e6)
        asked.append(RankRequest(user=user, items=names, history=history, context=moment))
    return asked


def _agreement(
    asked: Sequence[RankRequest],
    expected: Sequence[dict[str, float]],
    answer: Callable[[RankRequest], Answer],
) -> dict[str, Any]:
    ids = order = 0
    worst, differ = 0.0, []
    for request, scores in zip(asked, expected, strict=True):
        served = {scored.item: scored.score for scored in answer(request).items}
        same_ids = served.keys() == scores.keys()
        # Items whose scores differ by rounding alone may stand either way round.
        ranked = [scores[name] for name in served if name in scores]
        same_order = all(b - a <= _allowed(a) for a, b in pairwise(ranked))
        errors = [abs(served[n] - s) / max(1.0, abs(s)) for n, s in scores.items() if n in served]
        ids, order, worst = ids + same_ids, order + same_order, max([worst, *errors])
        if not (same_ids and same_order and max(errors, default=0.0) <= TOLERANCE):
            differ.append(request.user)
    return {
        "ids": ids / len(asked),
        "order": order / len(asked),
        "score": worst,
        "different": len(differ),
        "differ": differ[:SHOWN],
    }


def _allowed(score: float) -> float:
    return TOLERANCE * max(1.0, abs(score))
