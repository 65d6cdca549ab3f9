"""Once around the circle: log, model, service, feedback over HTTP, and the next model, which is better."""

from __future__ import annotations

import csv
import math
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from app import pipeline
from app.bundle.request.requests import Context, RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.client import Client
from app.data.demo_shop.generate import generate
from app.events import Event
from app.recipe import Recipe, Serve
from app.recipe_toml import load
from app.serving.rollout import admin, discovery
from app.serving.rollout.state import Command
from app.serving.service import running, store_folder

NEW_USER, NEW_ITEM = "new-user", "new-item"
FEEDBACK, FOLLOWING = "2024-02-10", "2024-06-01"  # where the log ends, and where the feedback ends
OVERRIDES = ("train.workers=0", "evaluate.bootstrap=0", "evaluate.baselines=[]")
TARGETS = 4  # of the events to come, of each user
Gains = npt.NDArray[np.float64]


@dataclass
class Circle:
    """NDCG@10 of both models by user on the events that follow, and the service of the second one."""

    first: Gains
    second: Gains
    bundle: Path
    client: Client


def clean_events(path: Path) -> list[Event]:
    """The rows of a shop's log without a defect, in order of time."""
    events = []
    with path.open(newline="", errors="replace") as stream:
        for row in csv.DictReader(stream):
            known = row["user_id"] and row["item_id"] and row["event"] in ("view", "cart", "purchase")
            time = row["timestamp"] or ""
            if known and "2024-01-01" <= time < "2024-13" and int(row["quantity"] or 0) > 0:
                events.append(
                    Event(row["user_id"], row["item_id"], row["event"], f"{time}Z", float(row["quantity"]))
                )
    return sorted(events, key=lambda event: str(event.timestamp))


def cut_off(path: Path, moment: str) -> None:
    """Remove the rows of a log from a moment on; rows without a proper time stay."""
    head, *lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    early = [line for line in lines if not moment <= [*line.split(","), "", ""][2] < "2024-13"]
    path.write_text("".join([head, *early]), errors="surrogateescape")


def recipe_of(shop: Path, *overrides: str) -> Recipe:
    return load(shop / "recipe.toml", [*OVERRIDES, *overrides])


def news(users: list[str], favourites: list[str]) -> list[Event]:
    """A new user's purchases, and many users' purchases of a new item."""
    time = f"{FOLLOWING}T00:00:00Z"
    bought = [Event(NEW_USER, item, "purchase", time, 1.0) for item in [*favourites, NEW_ITEM]]
    return bought + [Event(user, NEW_ITEM, "purchase", time, 1.0) for user in users]


def gains(client: Client, following: list[Event], known: set[str]) -> Gains:
    """NDCG@10 over all items of each user's next few events, each alone relevant; a mean a user."""
    next_events: dict[str, list[Event]] = {}
    for event in following:
        if event.user in known:
            next_events.setdefault(event.user, []).append(event)
    users = {user: events[:TARGETS] for user, events in next_events.items()}
    requests = [
        RecommendRequest(user, k=10, context=Context(events[0].timestamp)) for user, events in users.items()
    ]
    means = []
    for answer, events in zip(client.batch_rank(requests), users.values(), strict=True):
        assert not isinstance(answer, Exception)
        ranks = {scored.item: rank for rank, scored in enumerate(answer.items)}
        means.append(np.mean([1 / math.log2(2 + ranks[e.item]) if e.item in ranks else 0.0 for e in events]))
    return np.array(means)


@pytest.fixture(scope="module")
def circle(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Circle]:
    folder = tmp_path_factory.mktemp("circle")
    shop = folder / "shop"
    generate(shop, users=800, items=200, events=40_000, seed=5)
    events = clean_events(shop / "events.csv")
    cut_off(shop / "events.csv", FEEDBACK)
    told = [event for event in events if FEEDBACK <= str(event.timestamp) < FOLLOWING]
    following = [event for event in events if str(event.timestamp) >= FOLLOWING]
    known = {event.user for event in events if str(event.timestamp) < FEEDBACK}
    bundle = pipeline.run(recipe_of(shop), folder / "first").artifacts["export"].path
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = Serve(port=int(probe.getsockname()[1]))
    store = store_folder(bundle, settings)
    with running(bundle, settings) as url, Client(url) as client:
        client.put_item(NEW_ITEM, category="lantern", price=19.5, title="Family lamp, green")
        told += news(sorted(known)[:40], [event.item for event in told[:5]])
        for start in range(0, len(told), 500):
            assert client.feedback(told[start : start + 500]) == len(told[start : start + 500])
        before = gains(client, following, known)
        sources = f'data.events=["{shop}/events.csv", "store:{store}"]'
        again = pipeline.run(recipe_of(shop, sources, "train.refit=true"), folder / "second")
        bundle = again.artifacts["export"].path
        # The second model has learned five times as much: it may rank quite another way than the first.
        command = Command("deploy", str(bundle), now=True, limits={"min_agreement": -1.0})
        admin.deploy(discovery.find(str(store)), command)
        yield Circle(before, gains(client, following, known), bundle, client)


def test_the_next_model_ranks_the_events_that_follow_better(circle: Circle) -> None:
    """Over the same users, by more than chance: the interval of the difference leaves out zero."""
    difference = circle.second - circle.first
    draws = np.random.default_rng(0).integers(0, len(difference), (2000, len(difference)))
    low, high = np.quantile(difference[draws].mean(1), [0.025, 0.975])
    print(f"NDCG@10 {circle.first.mean():.4f} then {circle.second.mean():.4f}, +{low:.4f} to +{high:.4f}")
    assert len(difference) > 300
    assert low > 0


def test_a_user_who_came_by_feedback_is_known(circle: Circle) -> None:
    answer = circle.client.recommend(RecommendRequest(NEW_USER, k=5))
    assert answer.version == Ranker.open(circle.bundle).version
    assert answer.cold_start is False
    nobody = circle.client.recommend(RecommendRequest("nobody", k=5))
    assert nobody.cold_start is True


def test_an_item_that_came_by_put_is_ranked_by_its_training(circle: Circle) -> None:
    ranker = Ranker.open(circle.bundle)
    assert ranker.trained_on(NEW_ITEM)
    assert ranker.basis_of(NEW_ITEM) == "training"
    user = ranker.users[1]
    answer = circle.client.rank(RankRequest(user, [NEW_ITEM, *(ranker.items[row] for row in range(1, 6))]))
    assert answer.cold_start is False
    filtered = circle.client.recommend(RecommendRequest("nobody", k=50, filter="category = 'lantern'"))
    assert [scored.item for scored in filtered.items] == [NEW_ITEM]  # its columns came with it
