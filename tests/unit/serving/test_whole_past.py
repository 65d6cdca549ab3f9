"""A service whose model reads the whole past: the log, and the feedback of a user by HTTP, however much."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.data.dataset import Dataset
from app.evaluation.scorer import ModelScorer
from app.models.base import Model, Reads
from app.models.batch import batch_of, distinct
from app.models.item_knn import ItemKnn
from app.recipe import Serve
from tests.bundles import NOW, bundle_of, random_model
from tests.fakes import replica_of, transport

USER = 5
ITEMS = np.arange(1, 38)  # those that training met


@pytest.mark.parametrize("reads", ["all", "events"])
def test_more_feedback_than_a_recent_history_holds_counts_as_the_evaluation_counts_it(
    described: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reads: Reads
) -> None:
    monkeypatch.setattr(ItemKnn, "reads", reads)
    model = random_model("item_knn", described, half_life=100)
    bundle = bundle_of(model, described, tmp_path / "bundle").artifact.path
    replica = replica_of(monkeypatch, bundle, tmp_path / "store", Serve())
    more = np.random.default_rng(0).choice(ITEMS, 500)
    scores = asyncio.run(_ranked_after(replica, more.tolist()))
    np.testing.assert_allclose(scores, _evaluated(model, described, more), atol=1e-5, rtol=1e-5)


async def _ranked_after(replica: object, feedback: list[int]) -> list[float]:
    """Scores of ITEMS once the user met these items, a second apart."""
    async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:  # type: ignore[arg-type]
        for start in range(0, len(feedback), 100):
            events = [
                {"user": f"u{USER}", "item": f"i{feedback[n]}", "event": "view", "timestamp": NOW + n}
                for n in range(start, start + 100)
            ]
            stored = await client.post("/v1/feedback", json={"events": events})
            assert stored.status_code == 202, stored.text
        asked = {"user": f"u{USER}", "items": [f"i{item}" for item in ITEMS]}
        moment = {"timestamp": NOW + len(feedback)}
        answer = (await client.post("/v1/rank", json={**asked, "context": moment})).json()
    score = {scored["item"]: scored["score"] for scored in answer["items"]}
    return [score[f"i{item}"] for item in ITEMS]


def _evaluated(model: Model, dataset: Dataset, feedback: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    logged = [(part, slice(*part.indptr[USER : USER + 2])) for part in dataset.parts]
    item, event, time = (
        np.concatenate([getattr(part, name)[rows] for part, rows in logged]).astype(np.int64)
        for name in ("item", "event", "time")
    )
    item = np.concatenate([item, feedback])[None]
    event = np.concatenate([event, np.ones(len(feedback), np.int64)])[None]
    time = np.concatenate([time, (NOW + np.arange(len(feedback))) * 1_000_000])[None]
    past = distinct((item, event, time)) if model.reads == "all" else (item, event, time)
    now = np.array([NOW + len(feedback)]) * 1_000_000
    scores = ModelScorer(model).candidates(batch_of(dataset, np.array([USER]), past, now, ITEMS[None]))
    return scores[0].numpy()  # type: ignore[no-any-return]
