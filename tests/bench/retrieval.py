"""Recommendations from a large catalogue: `python -m tests.bench.retrieval` (`make bench-retrieval`).

Exports a bundle of clustered item vectors (tests.bench.retrieval_model), and measures what
export takes, what share of the exact best 20 comes, and the time of a request: in this
process, alone and in batches, with filters and rules; and over HTTP, from one replica without
caches. Writes runs/bench/retrieval.json and .md; ends with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.bundle.export.build_index import build, recall, top
from app.bundle.ranking.rows import Blocks
from app.bundle.request.requests import Answer, RecommendRequest
from app.bundle.retrieval.index import Exact
from app.bundle.retrieval.pool import EligibleItems
from app.bundle.runtime import Ranker
from app.client import Client
from app.recipe import Serve
from app.serving.service import running
from app.terminal.console import say
from tests.bench.faults import result_of, table_of
from tests.bench.faults_change import bar
from tests.bench.retrieval_model import make_dataset, make_model
from tests.bench.serving_load import Target, wrk
from tests.bench.serving_systems import free_port
from tests.bundles import bundle_of

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench"
K, BATCHES = 20, (1, 16)
RECALL, P95_MS = 0.98, 25.0
CONNECTIONS, SECONDS = (1, 16, 64), 5.0
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


def recall_of(ranker: Ranker, requests: Sequence[RecommendRequest], answered: Sequence[Answer]) -> float:
    """Recall@20 of answers against a search of all items that the filter lets through."""
    scorer, recommender = ranker._scorer, ranker._recommender
    encoded = [ranker.read(request).encoded for request in requests]
    match = recommender._filters.match(requests[0].filter) if requests[0].filter else None
    allowed = [EligibleItems(scorer.info.items, np.zeros(1, np.int64), match)] * len(encoded)
    exact = Exact(Blocks(scorer.rows["item"])).search(scorer.user_vectors(encoded), K, allowed)
    answers = [np.array(ranker.items.rows([one.item for one in answer.items])) for answer in answered]
    return recall(answers, [top(pool) for pool in exact])


def exact_ms(ranker: Ranker) -> float:
    """Milliseconds in which a request's 20 best come by scoring every item."""
    scorer, taken = ranker._scorer, []
    encoded = [ranker.read(request).encoded for request in requests_of(ranker, 8, {})]
    allowed, exact = (
        [EligibleItems(scorer.info.items, np.zeros(1, np.int64))],
        Exact(Blocks(scorer.rows["item"])),
    )
    for one in encoded:
        start = time.perf_counter()
        exact.search(scorer.user_vectors([one]), K, allowed)
        taken.append((time.perf_counter() - start) * 1e3)
    return round(statistics.median(taken), 1)


def timed(ranker: Ranker, requests: Sequence[RecommendRequest], batch: int, calls: int) -> Figures:
    """Milliseconds of a call that answers `batch` requests, and of each of them."""
    taken = []
    for call in range(calls + 5):
        some = [requests[(call * batch + i) % len(requests)] for i in range(batch)]
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
    results: Figures = {}
    for name, changes in ASKED.items():
        requests = requests_of(ranker, 500, changes)
        exactly = set(changes) <= {"filter"}
        results[name] = {str(batch): timed(ranker, requests, batch, calls) for batch in BATCHES}
        some = requests[:200]
        share = round(recall_of(ranker, some, ranker.recommend(some)), 4) if exactly else None
        results[name]["recall@20"] = share
        say(f"{name}: {results[name]}")
    return results


def other_kinds(ranker: Ranker, kinds: Sequence[str], folder: Path) -> Figures:
    """What kinds of index take to be built and tuned, and what they find and hold."""
    results: Figures = {}
    encoded = [ranker.read(request).encoded for request in requests_of(ranker, 1000, {})]
    states, rows = ranker._scorer.user_vectors(encoded), ranker._scorer.rows["item"]
    eligible = [EligibleItems(len(rows), np.zeros(1, np.int64))] * len(states)
    for kind in kinds:
        start = time.perf_counter()
        info, share = build(kind, rows, states, eligible, RECALL, folder / kind / "faiss.index")
        seconds = round(time.perf_counter() - start, 1)
        tuned = {"recall@20": round(share, 4), "reach": info.reach, "bytes": info.bytes}
        results[kind] = {"build_s": seconds, **tuned}
        say(f"{kind}: {results[kind]}")
    return results


def over_http(ranker: Ranker, bundle: Path, folder: Path) -> Figures:
    """Recall@20 of a service's answers, and what it does with so many connections."""
    requests = requests_of(ranker, 200, {})
    (folder / "users").write_text("\n".join(ranker.users[row] for row in range(1, len(ranker.users))))
    (folder / "numbers").write_text(str(K))
    port = free_port()
    target = Target(port, "/v1/recommend", folder / "users", folder / "numbers", field="k")
    settings = Serve(port=port, max_replicas=1, cache_mb=0, states_mb=0)
    with running(bundle, settings) as url, Client(url) as client:
        share = recall_of(ranker, requests, [client.recommend(request) for request in requests])
        wrk(target, max(CONNECTIONS), SECONDS)  # the first are slow
        loads = {str(connections): wrk(target, connections, SECONDS) for connections in CONNECTIONS}
    results = {"recall@20": round(share, 4), "connections": loads}
    say(f"over HTTP: {results}")
    return results


def report(figures: Figures) -> Figures:
    plain, http = figures["requests"]["plain"], figures["http"]
    bars = [
        bar("recall@20", http["recall@20"], at_least=RECALL),
        bar("p95_ms_at_16_connections", round(http["connections"]["16"]["p95_ms"], 2), at_most=P95_MS),
    ]
    result = result_of("retrieval", bars, figures)
    result["versions"] = {n: importlib.metadata.version(n) for n in ("faiss-cpu", "numpy", "onnxruntime")}
    result["ratios"] = {"exact": round(figures["exact_ms"] / plain["1"]["p50_ms"], 1)}
    return result


def write(result: Figures) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "retrieval.json").write_text(json.dumps(result, indent=1) + "\n")
    figures = result["figures"]
    lines = [
        "# Retrieval",
        "",
        f"{figures['items']:,} items x 64 in clusters, int8 rows, k = {K}; without caches.",
        f"Export {figures['export_s']} s; exact search {figures['exact_ms']} ms; {figures['retrieval']}.",
        "",
        *table_of(result["bars"]),
        "",
        "| connections | requests/s | p50 / p95 / p99 ms |",
        "|---|---|---|",
        *(
            f"| {c} | {f['requests_per_s']:.0f} | {f['p50_ms']:.1f} / {f['p95_ms']:.1f} / {f['p99_ms']:.1f} |"
            for c, f in figures["http"]["connections"].items()
        ),
        "",
        "In this process, without HTTP:",
        "",
        "| request | recall@20 | alone p50 / p95 ms | 16 together p50 / p95 ms | ms a request |",
        "|---|---|---|---|---|",
    ]
    for name, results in figures["requests"].items():
        one, many = results["1"], results["16"]
        lines.append(
            f"| {name} | {results['recall@20'] or ''} | {one['p50_ms']} / {one['p95_ms']} "
            f"| {many['p50_ms']} / {many['p95_ms']} | {many['ms_a_request']} |"
        )
    for kind, results in figures["kinds"].items():
        lines += ["", f"{kind}: {results}"]
    (OUT / "retrieval.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=200, help="timed of each kind of request")
    parser.add_argument("--kinds", nargs="*", default=[], help="indexes to build beside: ivf_pq, hnsw")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-retrieval-", dir=arguments.folder) as name:
        start = time.perf_counter()
        ranker = make_bundle(Path(name), arguments.items)
        export_s = round(time.perf_counter() - start, 1)
        say(f"a bundle of {arguments.items:,} items after {export_s} s: {ranker.figures['retrieval']}")
        figures: Figures = {
            "items": arguments.items,
            "export_s": export_s,
            "retrieval": ranker.figures["retrieval"],
            "bundle_bytes": ranker.artifact.bytes,
            "exact_ms": exact_ms(ranker),
            "requests": measure(ranker, arguments.calls),
            "http": over_http(ranker, Path(name) / "bundle", Path(name)),
            "kinds": other_kinds(ranker, arguments.kinds, Path(name)),
        }
    result = report(figures)
    write(result)
    raise SystemExit(0 if all(bar["holds"] for bar in result["bars"]) else 1)


if __name__ == "__main__":
    main()
