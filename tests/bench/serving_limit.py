"""How fast the runtime ranks in one thread, without HTTP: decode, read, score, encode.

`python -m tests.bench.serving_limit BUNDLE USERS LISTS SECONDS` prints requests a second by
the number that is scored together, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import msgspec

from app.bundle.request.requests import RankRequest
from app.bundle.runtime import Ranker
from tests.bench.serving_load import Target

BATCHES = (1, 16)
DISTINCT = 1 << 14


def limit(ranker: Ranker, bodies: list[bytes], batch: int, seconds: float) -> float:
    """Requests a second of batches."""
    decode, encode = msgspec.json.Decoder(RankRequest).decode, msgspec.json.Encoder().encode
    chunks = [bodies[first : first + batch] for first in range(0, len(bodies), batch)]
    done, start = 0, time.perf_counter()
    for chunk in cycle(chunks):
        questions = [ranker.read(decode(body)) for body in chunk]
        for answer in ranker.answer(questions):
            encode(answer)
        done += len(chunk)
        if (passed := time.perf_counter() - start) > seconds:
            break
    return done / passed


def main() -> None:
    bundle, users, lists, seconds = sys.argv[1:]
    ranker = Ranker.open(bundle, verify=False)
    bodies = list(islice(Target(0, "", Path(users), Path(lists)).bodies(), DISTINCT))
    limit(ranker, bodies, max(BATCHES), 0.5)  # the first requests are slow
    print(json.dumps({str(batch): limit(ranker, bodies, batch, float(seconds)) for batch in BATCHES}))


if __name__ == "__main__":
    main()
