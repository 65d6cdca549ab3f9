"""Nothing that a user met is recommended again: two replicas, up to 2,000 events a user, feedback all along.

Each recommendation is held against the user's items in the log, and those of all feedback that was
acknowledged before the request was sent, by whichever replica.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.bundle.request.requests import RecommendRequest
from app.client import Client
from app.data.dataset import Dataset
from app.events import Event, HistoryEvent
from app.recipe import Serve
from app.serving.rollout.state_dir import StateDir
from app.serving.service import running, store_folder
from app.terminal.console import say
from tests.bench.faults_change import Bars, bar
from tests.bench.serving_systems import free_port
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

USERS, ITEMS, LOGGED, MOST = 100, 4000, 1000, 2000  # of the log; events of a user there, and in all
NEW_USERS = 20  # whom only feedback knows
WORKERS, K, HISTORY, REPORTED_S = 8, 40, 5, 10.0
FEEDBACK, WITH_HISTORY, HURRIED = 0.25, 0.2, 0.1  # shares of the requests
BUSY = 600  # requests for each user who asks so often that they reach MOST events


class MetItems:
    """The items that users have met, by the log and by acknowledged feedback; for any thread."""

    def __init__(self, by_user: dict[str, set[str]]) -> None:
        self._by_user, self._lock = by_user, threading.Lock()
        self.events = {user: len(items) for user, items in by_user.items()}

    def of(self, user: str) -> set[str]:
        """A copy of the items met so far."""
        with self._lock:
            return set(self._by_user[user])

    def reserve(self, user: str, count: int) -> int:
        """How many of `count` further events the user may have; they count from now on."""
        with self._lock:
            allowed = min(count, MOST - self.events[user])
            self.events[user] += allowed
            return allowed

    def add(self, user: str, items: list[str]) -> None:
        """Note items of events that were acknowledged."""
        with self._lock:
            self._by_user[user].update(items)


class Checks:
    """Sends recommendations and feedback, and counts what was recommended although it was met.

    Args:
        url: of the service.
        met: of all users.
        requests: recommendations to check.
    """

    def __init__(self, url: str, met: MetItems, requests: int) -> None:
        self.url, self.met, self.requests = url, met, requests
        self.wrong: list[str] = []
        self.items = self.short = self.fed = 0
        self._lock = threading.Lock()
        users = list(met.events)
        known, new = users[:USERS], users[USERS:]
        count = max(1, requests // BUSY // 2)
        self._users, self._busy = users, [*known[:count], *new[:count]]

    def run(self) -> None:
        """Check all of them, from several threads."""
        with ThreadPoolExecutor(WORKERS) as workers:
            shares = [len(range(worker, self.requests, WORKERS)) for worker in range(WORKERS)]
            list(workers.map(self._work, range(WORKERS), shares))

    def control(self) -> int:
        """How many met items come where they may, so that the checks could have found some."""
        user = self._busy[0]
        with Client(self.url) as client:
            answer = client.recommend(RecommendRequest(user, 100, exclude_seen=False))
        return len(self.met.of(user).intersection(scored.item for scored in answer.items))

    def _work(self, worker: int, requests: int) -> None:
        draw = random.Random(worker)
        with Client(self.url) as client:
            for _ in range(requests):
                user = draw.choice(self._busy if draw.random() < 0.5 else self._users)
                recommended = self._check(client, draw, user)
                if draw.random() < FEEDBACK:
                    self._feed(client, user, recommended)

    def _check(self, client: Client, draw: random.Random, user: str) -> list[str]:
        met, history, budget_ms = self.met.of(user), None, None
        if draw.random() < WITH_HISTORY:
            seen = draw.sample([f"i{row}" for row in range(1, ITEMS + 1)], HISTORY)
            history = [HistoryEvent(item, "view") for item in seen]
            met.update(seen)
        if draw.random() < HURRIED:
            budget_ms = 0.5
        answer = client.recommend(RecommendRequest(user, K, history=history, budget_ms=budget_ms))
        items = [scored.item for scored in answer.items]
        wrong = sorted(met.intersection(items))
        with self._lock:
            self.items += len(items)
            self.short += len(items) < K
            if wrong:
                how = f"{len(met)} items met, history {history is not None}, budget {budget_ms}"
                self.wrong.append(f"{user} ({how}): {', '.join(wrong)}")
        return items

    def _feed(self, client: Client, user: str, items: list[str]) -> None:
        """What was recommended is what the user meets next, so that nothing but feedback excludes it."""
        items = items[: self.met.reserve(user, len(items))]
        if items:
            client.feedback([Event(user, item, "view") for item in items])
            self.met.add(user, items)
            with self._lock:
                self.fed += len(items)


def seen(folder: Path, requests: int) -> tuple[Bars, dict[str, Any]]:
    """So many recommendations by a service of its own, under feedback."""
    dataset = tiny_dataset(folder / "dataset", users=USERS, items=ITEMS, events=USERS * LOGGED)
    bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle", precision="int8")
    settings = Serve(port=free_port(), min_replicas=2, max_replicas=2)
    with running(folder / "bundle", settings) as url:
        checks = Checks(url, MetItems(_met_in_log(dataset)), requests)
        checks.run()
        control = checks.control()
        answered = _requests_by_replica(store_folder(folder / "bundle", settings), requests)
    most = max(checks.met.events.values())
    say(f"{len(checks.wrong)} of {requests} recommendations held a met item, {checks.fed} events fed")
    return [
        bar("seen_recommended_again", len(checks.wrong), at_most=0),
        bar("seen_events_of_a_user", most, at_least=MOST),
        bar("seen_replicas_that_answered", sum(count > 0 for count in answered), at_least=2),
        bar("seen_items_of_an_answer", checks.items / requests, at_least=0.9 * K),
        bar("seen_where_it_may_be", control, at_least=1),
    ], {
        "requests": requests,
        "items": checks.items,
        "shorter_answers": checks.short,
        "feedback_events": checks.fed,
        "users_with_most_events": sum(count == MOST for count in checks.met.events.values()),
        "requests_by_replica": answered,
        "wrong": checks.wrong[:20],
    }


def _met_in_log(dataset: Dataset) -> dict[str, set[str]]:
    """The items of all parts of the log by user; new users have met none."""
    met: dict[str, set[str]] = {f"u{row}": set() for row in range(1, USERS + 1)}
    for part in (dataset.train, dataset.valid, dataset.test):
        for user, item in zip(part.user.tolist(), part.item.tolist(), strict=True):
            met[f"u{user}"].add(f"i{item}")
    return met | {f"new{number}": set() for number in range(NEW_USERS)}


def _requests_by_replica(store: Path, requests: int) -> list[int]:
    """As the replicas report them, once a second: waits until the reports hold all, or for REPORTED_S."""
    deadline = time.monotonic() + REPORTED_S
    while True:
        counts = [
            sum(version.stats.requests for version in snapshot.versions.values())
            for snapshot in StateDir(store).snapshots()
        ]
        if sum(counts) >= requests or time.monotonic() > deadline:
            return counts
        time.sleep(0.1)
