"""`rayrec demo`: from log to served ranking on a generated shop, on one machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from app import pipeline
from app.bundle.request.requests import RankRequest, RecommendRequest
from app.client import Client
from app.data.dataset import Dataset
from app.data.demo_shop.generate import generate
from app.data.demo_shop.truth import attainable
from app.events import Event
from app.ray.session import shared_session
from app.recipe import Recipe
from app.recipe_toml import load
from app.serving.service import running
from app.terminal import console, summary
from app.terminal.console import say
from tuning.tune import search

TRIALS = 6
REQUESTS = 200


def demo(out: Path, *, users: int, items: int, events: int, quiet: bool = False) -> dict[str, Any]:
    """Generate a shop, run every stage, serve the bundle, send requests and search.

    Prints a table unless `quiet`; returns its figures.
    """
    start = time.monotonic()
    shop = out / "shop"
    say(f"A shop with {users:,} users, {items:,} items and {events:,} events, planted dirt included")
    generate(shop, users=users, items=items, events=events)
    recipe = load(shop / "recipe.toml")
    with shared_session():
        done = pipeline.run(recipe, out)
        served = _serve(out / "bundle", recipe, start)
        best = attainable(shop, Dataset.open(out / "dataset", verify=False))
        say(f"Searching: {TRIALS} trials over hyperparameters and compression together")
        front = search(recipe, out, trials=TRIALS, budget="p95_ms<=20")
    result = {**done.summary(), "attainable": {"ndcg@10": best}, **served, "tune": front.summary()}
    result["seconds"]["whole demo"] = round(time.monotonic() - start, 1)
    if not quiet:
        _show(result, out)
    return result


def _serve(bundle: Path, recipe: Recipe, start: float) -> dict[str, Any]:
    dataset = Dataset.open(bundle.parent / "dataset", verify=False)
    rng = np.random.default_rng(recipe.seed)
    names = [dataset.users[int(u)] for u in rng.integers(1, len(dataset.users), REQUESTS)]
    candidates = [dataset.items[int(i)] for i in rng.integers(1, len(dataset.items), 100)]
    with running(bundle, recipe.serve) as url, Client(url) as client:
        recommended = client.recommend(RecommendRequest(user=names[0], k=5))
        first = time.monotonic() - start
        best = ", ".join(scored.item for scored in recommended.items)
        say(f"First recommendation, {first:.0f} s after the start, for {names[0]}: {best}")
        elapsed = []
        for name in names:
            sent = time.perf_counter()
            client.rank(RankRequest(user=name, items=candidates, k=10))
            elapsed.append((time.perf_counter() - sent) * 1e3)
        changed = _feedback(client, names[0], recommended.items[0].item, recipe)
    return {
        "first_recommendation_s": round(first, 1),
        "rank_ms": {"p50": float(np.percentile(elapsed, 50)), "p95": float(np.percentile(elapsed, 95))},
        "feedback_changes_answer": changed,
    }


def _feedback(client: Client, user: str, item: str, recipe: Recipe) -> bool:
    before = client.recommend(RecommendRequest(user=user, k=10))
    event = (recipe.data.positive or recipe.data.event_types or [""])[0]
    client.feedback([Event(user=user, item=item, event=event)])
    after = client.recommend(RecommendRequest(user=user, k=10))
    return [s.item for s in before.items] != [s.item for s in after.items]


def _show(result: dict[str, Any], out: Path) -> None:
    console.table(_rows(result), title="From log to served ranking")
    say(f"Report: {out / 'report' / 'report.md'}; the search: {out / 'front.png'}")
    say("Next: point a recipe at your own log")
    say("  .venv/bin/rayrec init shop && $EDITOR shop/recipe.toml")
    say("  .venv/bin/rayrec check shop/recipe.toml && .venv/bin/rayrec run shop/recipe.toml")
    say(f"  .venv/bin/rayrec serve {result['bundle']}")


def _rows(result: dict[str, Any]) -> summary.Rows:
    ndcg = result["figures"]["ndcg@10"]
    best, popular = result["attainable"]["ndcg@10"], result["baselines"]["popularity"]["ndcg@10"]
    latency, found = result["rank_ms"], result["tune"]
    seconds = result["seconds"]["whole demo"]
    return [
        *summary.of_run(result),
        ("ndcg@10 beside", f"{ndcg / popular:.1f} x popularity; {ndcg / best:.0%} of {best:.4f}, the best"),
        ("rank 100 over HTTP", f"p50 {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms"),
        ("feedback", "changed the next answer" if result["feedback_changes_answer"] else "left the answer"),
        ("search", f"{found['trials']} trials, {len(found['front'])} on the front"),
        ("first recommendation", f"{result['first_recommendation_s']:.0f} s after the start"),
        ("whole demo", f"{seconds:.0f} s"),
    ]
