"""Recommendations from a large catalogue, without HTTP: `python -m tests.bench.retrieval`.

Exports a bundle of clustered item vectors (tests.bench.retrieval_model), and measures what
export takes, what share of the exact best 20 is found, and the time of a request in this
process, alone and in batches, with filters and rules. Writes runs/bench/retrieval.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from app.bundle.build_index import build, recall, top
from app.bundle.index import Blocks, Exact
from app.bundle.pool import Allowed
from app.bundle.requests import RecommendRequest
from app.bundle.runtime import Ranker
from app.console import say
from tests.bench.retrieval_model import make_dataset, make_model
from tests.bundles import bundle_of

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench"
K, BATCHES = 20, (1, 16)
NEED = {"recall@20": 0.98, "p95_ms_of_16_together": 25.0}
ASKED: dict[str, dict[str, Any]] = {  # what a request asks for beside its user
    "plain": {},
    "filter, half": {"filter": "price < 20.09"},
    "filter, 1 in 20": {"filter": "price > 104"},
    "filter, 1 in 200": {"filter": "department = 'd7'"},
    "caps": {"caps": {"department": 3}},
    "diversity": {"diversity": 0.3},
    "all rules": {
        "filter": "price < 20.09",
        "caps": {"department": 5},
        "diversity": 0.3,
        "explore": 0.1,
        "boost": [{"filter": "department in ['d1', 'd2']", "add": 1.0}],
    },
}
Figures = dict[str, Any]


def make_bundle(folder: Path, items: int) -> Ranker:
    """The bundle at `folder`/bundle; the data set lies beside it."""
    dataset, vectors = make_dataset(folder / "dataset", items)
    model = make_model(dataset, vectors)
    return bundle_of(model, dataset, folder / "bundle", name="two_tower", precision="int8")


def requests_of(ranker: Ranker, count: int, changes: dict[str, Any]) -> list[RecommendRequest]:
    """Of users drawn at random."""
    rows = np.random.default_rng(1).integers(1, len(ranker.users), count)
    plain = [{"user": ranker.users[int(row)], "k": K, "exclude_seen": False, **changes} for row in rows]
    return msgspec.convert(plain, list[RecommendRequest])


def found_share(ranker: Ranker, requests: Sequence[RecommendRequest]) -> float:
    """Recall@20 of the answers against a search of all items that the filter lets through."""
    scores, recommender = ranker._scores, ranker._recommender
    asked = [ranker.read(request).asked for request in requests]
    match = recommender._filters.match(requests[0].filter) if requests[0].filter else None
    allowed = [Allowed(scores.info.items, np.zeros(1, np.int64), match)] * len(asked)
    exact = Exact(Blocks(scores.rows["item"])).search(scores.states(asked), K, allowed)
    answers = [
        np.array(ranker.items.find_all([one.item for one in answer.items]))
        for answer in ranker.recommend(requests)
    ]
    return recall(answers, [top(pool) for pool in exact])


def exact_ms(ranker: Ranker) -> float:
    """Milliseconds in which a request's 20 best are found by scoring every item."""
    scores, taken = ranker._scores, []
    asked = [ranker.read(request).asked for request in requests_of(ranker, 8, {})]
    allowed, exact = [Allowed(scores.info.items, np.zeros(1, np.int64))], Exact(Blocks(scores.rows["item"]))
    for one in asked:
        start = time.perf_counter()
        exact.search(scores.states([one]), K, allowed)
        taken.append((time.perf_counter() - start) * 1e3)
    return round(statistics.median(taken), 1)


def timed(ranker: Ranker, requests: Sequence[RecommendRequest], batch: int, calls: int) -> Figures:
    """Milliseconds of a call that answers `batch` requests, and of each of them."""
    taken = []
    for call in range(calls + 5):
        some = [requests[(call * batch + place) % len(requests)] for place in range(batch)]
        start = time.perf_counter()
        ranker.recommend(some)
        taken.append((time.perf_counter() - start) * 1e3)
    taken = taken[5:]
    return {
        "p50_ms": round(statistics.median(taken), 3),
        "p95_ms": round(float(np.percentile(taken, 95)), 3),
        "ms_a_request": round(statistics.median(taken) / batch, 3),
    }


def measure(ranker: Ranker, calls: int) -> Figures:
    """Of each kind of request: recall@20 where it is defined, and times by batch."""
    found: Figures = {}
    for name, changes in ASKED.items():
        requests = requests_of(ranker, 500, changes)
        exactly = set(changes) <= {"filter"}
        found[name] = {str(batch): timed(ranker, requests, batch, calls) for batch in BATCHES}
        found[name]["recall@20"] = round(found_share(ranker, requests[:200]), 4) if exactly else None
        say(f"{name}: {found[name]}")
    return found


def other_kinds(ranker: Ranker, kinds: Sequence[str], folder: Path) -> Figures:
    """What kinds of index take to be built and tuned, and what they find and hold."""
    found: Figures = {}
    asked = [ranker.read(request).asked for request in requests_of(ranker, 1000, {})]
    states, rows = ranker._scores.states(asked), ranker._scores.rows["item"]
    for kind in kinds:
        start = time.perf_counter()
        info, share = build(kind, rows, states, NEED["recall@20"], folder / kind / "faiss.index")
        seconds = round(time.perf_counter() - start, 1)
        tuned = {"recall@20": round(share, 4), "reach": info.reach, "bytes": info.bytes}
        found[kind] = {"build_s": seconds, **tuned}
        say(f"{kind}: {found[kind]}")
    return found


def report(figures: Figures) -> Figures:
    plain = figures["requests"]["plain"]
    values = {"recall@20": plain["recall@20"], "p95_ms_of_16_together": plain["16"]["p95_ms"]}
    bars = [
        {"name": n, "value": v, "need": NEED[n], "holds": v >= NEED[n] if n == "recall@20" else v <= NEED[n]}
        for n, v in values.items()
    ]
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "name": "retrieval",
        "machine": {"cores": os.cpu_count(), "memory_gib": memory, "python": platform.python_version()},
        "versions": {n: importlib.metadata.version(n) for n in ("faiss-cpu", "numpy", "onnxruntime")},
        "ratios": {"exact": round(figures["exact_ms"] / plain["1"]["p50_ms"], 1)},
        "bars": bars,
        "figures": figures,
    }


def write(result: Figures) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "retrieval.json").write_text(json.dumps(result, indent=1) + "\n")
    figures = result["figures"]
    lines = [
        "# Retrieval",
        "",
        f"{figures['items']:,} items x 64 in clusters, int8 rows, k = {K}; in this process, without HTTP.",
        f"Export {figures['export_s']} s; exact search {figures['exact_ms']} ms; {figures['retrieval']}.",
        "",
        "| bar | value | need | holds |",
        "|---|---|---|---|",
        *(
            f"| {b['name']} | {b['value']} | {b['need']} | {'yes' if b['holds'] else 'no'} |"
            for b in result["bars"]
        ),
        "",
        "| request | recall@20 | alone p50 / p95 ms | 16 together p50 / p95 ms | ms a request |",
        "|---|---|---|---|---|",
    ]
    for name, found in figures["requests"].items():
        one, many = found["1"], found["16"]
        lines.append(
            f"| {name} | {found['recall@20'] or ''} | {one['p50_ms']} / {one['p95_ms']} "
            f"| {many['p50_ms']} / {many['p95_ms']} | {many['ms_a_request']} |"
        )
    for kind, found in figures["kinds"].items():
        lines += ["", f"{kind}: {found}"]
    (OUT / "retrieval.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=200, help="timed of each kind of request")
    parser.add_argument("--kinds", nargs="*", default=[], help="indexes to build beside: ivf_pq, hnsw")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-retrieval-", dir=given.folder) as name:
        start = time.perf_counter()
        ranker = make_bundle(Path(name), given.items)
        export_s = round(time.perf_counter() - start, 1)
        say(f"a bundle of {given.items:,} items after {export_s} s: {ranker.figures['retrieval']}")
        figures: Figures = {
            "items": given.items,
            "export_s": export_s,
            "retrieval": ranker.figures["retrieval"],
            "bundle_bytes": ranker.artifact.bytes,
            "exact_ms": exact_ms(ranker),
            "requests": measure(ranker, given.calls),
            "kinds": other_kinds(ranker, given.kinds, Path(name)),
        }
    write(report(figures))


if __name__ == "__main__":
    main()
