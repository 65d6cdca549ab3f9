"""Ray Serve as it comes, with its batching: `python -m tests.bench.serving_peers.with_ray_serve PORT`.

Its proxy and its settings are the defaults, but for two that favour it: no access log, as with
the other systems, and enough requests at a time to fill a batch (the default is 5).
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import JSONResponse

from tests.bench.serving_peers.scorer import Ask, Scorer

LARGEST_BATCH = 64
LOG = {"enable_access_log": False}


@serve.deployment(max_ongoing_requests=2 * LARGEST_BATCH, logging_config=LOG)
class Ranking:
    def __init__(self) -> None:
        self.scorer = Scorer()

    async def __call__(self, request: Request) -> JSONResponse:
        asked = await request.json()
        return JSONResponse(await self.rank((asked["user"], asked["items"])))

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=0)
    async def rank(self, asked: list[Ask]) -> list[dict[str, Any]]:
        return self.scorer.rank(asked)


def main() -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])), logging_config=LOG)
    serve.run(Ranking.bind(), route_prefix="/rank")
    ended.wait()
    serve.shutdown()


if __name__ == "__main__":
    from tests.bench.serving_peers import with_ray_serve  # a class of __main__ would be sent by value

    with_ray_serve.main()
