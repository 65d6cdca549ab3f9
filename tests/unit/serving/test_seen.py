"""Seen is seen: what a user met by acknowledged feedback is not recommended, however much that was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bundle.runtime import Ranker
from app.recipe import Serve
from app.serving.replica import Replica
from app.serving.versions.traffic_split import Variant
from tests.bundles import bundle_of, random_model
from tests.fakes import fake_replica, transport
from tests.tiny import tiny_dataset

ITEMS, MET = 400, 250
USER = "u3"


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    folder = tmp_path_factory.mktemp("seen")
    dataset = tiny_dataset(folder / "dataset", users=30, items=ITEMS, events=1500)
    return bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle")


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranker: Ranker) -> Replica:
    replica = fake_replica(monkeypatch, tmp_path, Serve())
    monkeypatch.setattr(replica.traffic_split, "main", Variant(ranker, ranker.artifact.digest))
    return replica


def test_after_250_acknowledged_events_none_of_their_items_is_recommended(replica: Replica) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:

            async def recommend(**options: Any) -> list[str]:
                answer = await client.post("/v1/recommend", json={"user": USER, "k": 100, **options})
                return [scored["item"] for scored in answer.json()["items"]]

            async def bulk() -> list[str]:
                headers = {"Content-Type": "application/x-ndjson"}
                line = f'{{"user": "{USER}", "k": 100}}\n'
                answer = await client.post("/v1/batch_rank", content=line, headers=headers)
                return [scored["item"] for scored in answer.json()["items"]]

            met: list[str] = []
            while len(met) < MET:
                best = await recommend()
                assert best and not set(met) & set(best)
                assert best == await recommend()  # from the cache
                events = [{"user": USER, "item": item} for item in best[:50]]
                stored = await client.post("/v1/feedback", json={"events": events})
                assert stored.status_code == 202
                met += best[:50]
            assert len(set(met)) == MET
            history = [{"item": met[0], "event": "view"}]
            for best in (await recommend(), await recommend(history=history), await bulk()):
                assert best and not set(met) & set(best)
            assert set(met) & set(await recommend(exclude_seen=False))

    asyncio.run(run())
