"""LitServe with batching: `python -m tests.bench.serving_peers.with_litserve PORT`.

The worker encodes its answers: a returned dict would be walked value by value in the HTTP
process, which costs more than the rest of the request.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litserve
from fastapi import Response

from tests.bench.serving_peers.scorer import Ask, Scorer

LARGEST_BATCH = 64
WAIT_S = 0.001


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.scorer = Scorer()

    # LitServe would check a request against the type that is written here.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return request["user"], request["items"]

    def batch(self, inputs: list[Ask]) -> list[Ask]:
        return inputs

    def predict(self, batch: list[Ask]) -> list[dict[str, Any]]:
        return self.scorer.rank(batch)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return Response(json.dumps(output), media_type="application/json")


if __name__ == "__main__":
    api = Api(max_batch_size=LARGEST_BATCH, batch_timeout=WAIT_S, api_path="/rank")
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
        num_api_servers=2,  # a tenth faster than one beside the worker
    )
