"""BentoML with adaptive batching: `bentoml serve tests.bench.serving_peers.with_bentoml:Ranking`."""

from __future__ import annotations

from typing import Any

import bentoml

from tests.bench.serving_peers.scorer import Scorer

LARGEST_BATCH = 64


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Ranking:
    def __init__(self) -> None:
        self.scorer = Scorer()

    @bentoml.api(batchable=True, max_batch_size=LARGEST_BATCH, route="/rank")
    def rank(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.scorer.rank([(one["user"], one["items"]) for one in requests])
