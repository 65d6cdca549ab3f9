"""Why these items: exact leave-one-out of the history.

For each item of the history the request is scored again as if the user had not met it; the
change of the score is its effect. Of a long history the items met last are looked at, so that an
explanation takes a bounded time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from app.bundle.format.layout import Array
from app.bundle.ranking.scorer import BatchScorer
from app.bundle.request.encode import EncodedRequest

REASONS = 3
LOOKED_AT = 100  # items of a history at most, those met last
NOTHING = 1e-6  # smaller changes are rounding


def explain(scorer: BatchScorer, request: EncodedRequest, rows: Array) -> list[dict[int, float]]:
    """The strongest effects of history items on candidates.

    Args:
        scorer: the model.
        request: with its history.
        rows: (C,) candidates to explain.

    Returns:
        For each candidate, history item (row) -> score with it minus score without it; the
        three largest by magnitude among the last LOOKED_AT items, strongest first.
    """
    history = request.history
    met, back = np.unique(history.item[-scorer.info.history :][::-1], return_index=True)
    if len(met) > LOOKED_AT:
        met = np.sort(met[np.argsort(back)[:LOOKED_AT]])
    whole = replace(request, rows=rows)
    without = [replace(whole, history=history.where(history.item != item)) for item in met]
    scores = np.stack(scorer.score([whole, *without]))
    return [_strongest(met, effect) for effect in (scores[0] - scores[1:]).T]


def _strongest(met: Array, effect: Array) -> dict[int, float]:
    order = np.argsort(-np.abs(effect), kind="stable")[:REASONS]
    return {int(met[i]): float(effect[i]) for i in order if abs(effect[i]) > NOTHING}
