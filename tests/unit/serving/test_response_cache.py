"""Answers that are given again: never stale, bounded, scored once; and what serves without time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.request.requests import Answer, RankRequest, RecommendRequest
from app.bundle.retrieval.latency_budget import FEWER, FULL, POPULAR
from app.bundle.runtime import Ranker
from app.errors import MachineError
from app.events import HistoryEvent
from app.recipe import Serve
from app.serving.feedback.user_events import UserEventCache
from app.serving.metrics import Metrics
from app.serving.scoring.call import Call
from app.serving.scoring.response_cache import OVERHEAD, ResponseCache
from app.serving.scoring.scoring import CACHED, UNINFORMED, Scoring
from app.serving.versions.shadow import Shadow
from app.serving.versions.traffic_split import TrafficSplit, Variant
from tests.bundles import NOW, bundle_of, random_model
from tests.fakes import FakeRanker, fake_replica, sample, transport
from tests.tiny import tiny_dataset

PATH = "/v1/recommend"
ROOM = 1 << 20


class MemoryStore:
    """Users' events in memory, and which users have new ones."""

    local = True

    def __init__(self) -> None:
        self.events: defaultdict[str, list[HistoryEvent]] = defaultdict(list)
        self.changed: list[tuple[str, str]] = []
        self.broken = False

    def add(self, user: str, item: str) -> None:
        self.events[user].append(HistoryEvent(item, "view", float(NOW)))
        self.changed.append((user, item))

    def seen(self, user: str) -> Iterator[list[str]]:
        yield [event.item for event in self.events[user]]

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        return self.events[user][-limit:]

    def unchanged(self) -> bool:
        return False

    def changes(self, mark: int | None) -> tuple[int, list[tuple[str, str]]]:
        if self.broken:
            raise MachineError("gone", where="store", remedy="bring it back")
        return len(self.changed), self.changed[mark or 0 :]


class Recommendations:
    """A replica's scoring of recommendations, in this process, over a store in memory."""

    def __init__(self, ranker: Any, *, limit: int = ROOM, executor: ThreadPoolExecutor | None = None) -> None:
        self.store, self.clock, self.metrics = MemoryStore(), 0.0, Metrics("r1")
        self.traffic_split = TrafficSplit(Variant(ranker, "d1"), Shadow(1000))
        self.cache = ResponseCache(limit, 10.0, lambda: self.clock)
        self.user_events = UserEventCache(self.store)  # type: ignore[arg-type]
        self.scoring = Scoring(
            self.traffic_split, self.user_events, self.metrics, PATH, 10_000, executor, cache=self.cache
        )

    def call(self, body: bytes, name: str, answers: dict[str, tuple[int, bytes]]) -> None:
        def reply(status: int, content: bytes, headers: Any) -> None:
            answers[name] = status, content

        content = msgspec.json.decode(body, type=RecommendRequest)
        self.scoring.add(Call(PATH, name, reply, lambda *_: None, body), content)

    def ask(self, *bodies: dict[str, Any] | bytes) -> list[tuple[int, bytes]]:
        """The answers to calls that come in one tick; their ids are 0, 1, .."""
        answers: dict[str, tuple[int, bytes]] = {}

        async def run() -> None:
            for index, body in enumerate(bodies):
                self.call(body if isinstance(body, bytes) else msgspec.json.encode(body), str(index), answers)
            while len(answers) < len(bodies):
                await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(run(), 10))
        return [answers[str(index)] for index in range(len(bodies))]

    def answers(self, *bodies: dict[str, Any]) -> list[Answer]:
        return [msgspec.json.decode(content, type=Answer) for _, content in self.ask(*bodies)]


# --- the cache ---------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 900), st.integers(0, 3)), max_size=40))
def test_the_limit_in_bytes_holds_and_what_is_cached_is_counted(
    steps: list[tuple[int, int, int]],
) -> None:
    cache = ResponseCache(3000, 10.0)
    for name, size, events in steps:
        cache.put(b"%d" % name, "d", 0, [HistoryEvent("a")] * events, b"x" * size)
        contents = [cache.stale(b"%d" % other, "d") for other in range(9)]
        least = sum(OVERHEAD + len(content) for content in contents if content is not None)
        assert least <= cache.entries.bytes <= 3000


def test_what_was_not_asked_for_longest_goes_first() -> None:
    cache, events = ResponseCache(1300, 10.0), list[HistoryEvent]()
    for name in (b"a", b"b", b"c"):
        cache.put(name, "d", 0, events, b"")
    assert cache.get(b"a", "d", 0, events)
    cache.put(b"d", "d", 0, events, b"")
    assert [bool(cache.get(name, "d", 0, events)) for name in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
    assert (cache.entries.hits, cache.entries.misses) == (4, 1)


def test_what_is_larger_than_the_limit_is_not_cached_nor_what_it_was_to_replace() -> None:
    cache, events = ResponseCache(1000, 10.0), list[HistoryEvent]()
    cache.put(b"a", "d", 0, events, b"")
    cache.put(b"a", "d", 0, events, b"x" * 1000)
    assert (cache.get(b"a", "d", 0, events), cache.entries.bytes) == (None, 0)
    none = ResponseCache(0, 10.0)
    none.put(b"a", "d", 0, events, b"")
    assert none.entries.bytes == 0


def test_an_answer_is_of_its_version_of_these_events_and_of_its_time() -> None:
    clock, events = [0.0], list[HistoryEvent]()
    cache = ResponseCache(ROOM, 10.0, lambda: clock[0])
    cache.put(b"a", "d1", 0, events, b"answer", cold=True)
    cached = cache.get(b"a", "d1", 0, events)
    assert cached is not None and (cached.content, cached.cold) == (b"answer", True)
    assert cache.get(b"a", "d2", 0, events) is None
    assert cache.get(b"a", "d1", 1, events) is None  # of a changed catalogue
    assert cache.get(b"a", "d1", 0, []) is None  # equal, and yet read from the store anew
    clock[0] = 10.0
    assert cache.get(b"a", "d1", 0, events) is None
    assert (cache.stale(b"a", "d1"), cache.stale(b"a", "d2")) == (b"answer", None)


# --- never stale -------------------------------------------------------------------------

USERS, ITEMS = st.sampled_from("uv"), st.sampled_from(["a", "bb", "ccc"])
STEPS = st.one_of(
    st.tuples(st.just("event"), USERS, ITEMS),
    st.tuples(st.just("ask"), USERS, st.integers(1, 3)),
    st.tuples(st.just("version"), st.sampled_from("xy")),
    st.tuples(st.just("item")),
    st.tuples(st.just("wait"), st.floats(0, 6)),
)


class Named(FakeRanker):
    """A version of the fake model, whose scores rise with each change of the catalogue."""

    def __init__(self, version: str, catalogue_version: int = 0) -> None:
        super().__init__()
        self.version, self.catalogue_version = version, catalogue_version

    def answer(self, questions: Sequence[Any]) -> Any:
        answers = super().answer(questions)
        for answer in answers:
            answer.items[:] = [
                type(scored)(scored.item, scored.score + self.catalogue_version) for scored in answer.items
            ]
        return answers


@given(st.lists(STEPS, max_size=30), st.sampled_from([0, 1500, ROOM]))
def test_a_fresh_event_version_or_item_never_meets_an_older_answer(steps: list[Any], limit: int) -> None:
    versions = {name: Variant(Named(name), f"digest of {name}") for name in "xy"}  # type: ignore[arg-type]
    service = Recommendations(Named("x"), limit=limit)
    service.traffic_split.main = versions["x"]
    for kind, *what in steps:
        if kind == "event":
            service.store.add(*what)
        elif kind == "version":
            service.traffic_split.main = versions[what[0]]
        elif kind == "item":
            service.traffic_split.main.ranker.catalogue_version += 1
        elif kind == "wait":
            service.clock += what[0]
        else:
            request = RecommendRequest(what[0], k=what[1])
            (answer,) = service.answers({"user": what[0], "k": what[1]})
            main = service.traffic_split.main
            oracle = Named(main.label, main.ranker.catalogue_version)
            assert [answer] == oracle.answer([oracle.read(request, service.store.events[what[0]])])


def test_without_change_an_answer_is_given_again_for_so_long() -> None:
    ranker = FakeRanker()
    service = Recommendations(ranker)
    first = service.ask({"user": "new"})
    service.store.add("other", "a")
    assert service.ask({"user": "new"}) == first
    assert len(ranker.batches) == 1
    assert (service.cache.entries.hits, service.metrics.cold_starts) == (1, 2)
    service.clock = 10.0
    assert service.ask({"user": "new"}) == first
    assert len(ranker.batches) == 2


def test_what_is_asked_for_counts_and_not_how_it_is_written() -> None:
    ranker = FakeRanker()
    service = Recommendations(ranker)
    bodies = b'{"user": "u", "k": 2}', b'{"k":2,"user":"u","exclude":[]}', b'{ "user": "\\u0075", "k": 2 }'
    service.ask(*bodies)
    assert (ranker.batches, service.metrics.joined) == ([1], 2)
    service.ask(b'{"k":2,"exclude":[],"user":"u"}', b'{"k":3,"user":"u"}', b'{"k":2,"user":"v"}')
    assert ranker.batches == [1, 2]


def test_what_was_answered_without_the_store_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("app.serving.feedback.user_events.time.monotonic", lambda: clock[0])
    service = Recommendations(FakeRanker())
    service.store.add("u", "a")
    (whole,) = service.answers({"user": "u"})
    service.store.broken = True
    (without,) = service.answers({"user": "u"})
    assert without.degraded == UNINFORMED and without.items != whole.items
    service.store.broken = False
    clock[0] += 10.0
    assert service.answers({"user": "u"}) == [whole]
    assert service.metrics.degraded == {UNINFORMED: 1}


# --- scored once -------------------------------------------------------------------------


class Gated(FakeRanker):
    """Works on a batch only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may = threading.Event(), threading.Event()

    def answer(self, questions: Sequence[Any]) -> Any:
        self.begun.set()
        assert self.may.wait(10)
        return super().answer(questions)


def test_equal_calls_of_a_tick_are_scored_once_and_all_are_answered() -> None:
    ranker = FakeRanker()
    service = Recommendations(ranker)
    answers = service.ask(*[{"user": "u"}, {"user": "v"}, {"user": "u"}] * 3)
    assert ranker.batches == [2]
    assert [status for status, _ in answers] == [200] * 9
    assert answers[:3] * 3 == answers
    assert service.metrics.joined == 7


def asked_while_scored(ranker: Gated, later: Sequence[str], event: str = "") -> dict[str, tuple[int, bytes]]:
    """Answers of equal calls: a first one, and those that come, after an event, while it is scored."""
    answers = dict[str, tuple[int, bytes]]()

    async def run() -> None:
        service.call(b'{"user":"u"}', "first", answers)
        await asyncio.to_thread(ranker.begun.wait, 10)
        if event:
            service.store.add("u", event)
        for name in later:
            service.call(b'{"user":"u"}', name, answers)
        ranker.may.set()
        while len(answers) < 1 + len(later):
            await asyncio.sleep(0)

    with ThreadPoolExecutor(1) as thread:
        service = Recommendations(ranker, executor=thread)
        asyncio.run(asyncio.wait_for(run(), 10))
    return answers


def test_a_call_that_comes_while_its_like_is_scored_is_not_scored_again() -> None:
    ranker = Gated()
    answers = asked_while_scored(ranker, ["second", "third"])
    assert ranker.batches == [1]
    assert len(set(answers.values())) == 1


def test_an_event_that_comes_while_a_call_is_scored_is_seen_by_the_next() -> None:
    answers = asked_while_scored(Gated(), ["second"], event="a")
    assert b'"ccc","score":3' in answers["first"][1]
    assert b'{"items":[{"item":"a","score":101' in answers["second"][1].replace(
        b'"model":"fake",', b""
    ).replace(b'"version":"v1",', b"")


def test_a_failure_is_answered_to_each_call_under_its_own_id_and_not_cached() -> None:
    ranker = FakeRanker()
    service = Recommendations(ranker)
    answers = service.ask({"user": "boom"}, {"user": "boom"})
    assert [status for status, _ in answers] == [500, 500]
    documents = [json.loads(content) for _, content in answers]
    assert [document.pop("request_id") for document in documents] == ["0", "1"]
    assert documents[0] == documents[1]
    assert ranker.batches == [1]
    service.ask({"user": "boom"})
    assert (len(ranker.batches), service.cache.entries.bytes) == (2, 0)


@pytest.mark.parametrize("method", ["get", "stale", "put"])
def test_a_fault_of_the_cache_costs_no_answer_of_another_call(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The call that met the fault may fail; one that is equal to it never gets another's answer."""
    service = Recommendations(Budgeted())
    original = getattr(service.cache, method)
    faults = iter([True])

    def fail_once(*arguments: Any, **named: Any) -> Any:
        if next(faults, False):
            raise ZeroDivisionError("a fault of ours")
        return original(*arguments, **named)

    monkeypatch.setattr(service.cache, method, fail_once)
    first, other, equal = service.ask({"user": "new", "k": 1}, {"user": "u", "k": 3}, {"user": "new", "k": 1})
    assert next(faults, None) is None, "the fault happened"
    assert first[0] == (200 if method == "put" else 500)
    assert len(msgspec.json.decode(other[1], type=Answer).items) == 3
    answer = msgspec.json.decode(equal[1], type=Answer)
    assert (len(answer.items), answer.cold_start) == (1, True)
    assert [status for status, _ in service.ask({"user": "u", "k": 3})] == [200]


class Budgeted(FakeRanker):
    """A fake model whose requests have a deadline, so that older answers are looked for."""

    def read(self, *arguments: Any) -> Any:
        request = super().read(*arguments)
        request.deadline = 1e9
        return request


def test_a_caller_that_goes_away_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replica, ranker = fake_replica(monkeypatch, tmp_path, Serve()), Gated()
    monkeypatch.setattr(replica.traffic_split.main, "ranker", ranker)
    import httpx

    async def run() -> int:
        async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
            calls = [asyncio.ensure_future(client.post(PATH, json={"user": "u"})) for _ in range(3)]
            await asyncio.to_thread(ranker.begun.wait, 10)
            calls[0].cancel()
            ranker.may.set()
            with pytest.raises(asyncio.CancelledError):
                await calls[0]
            return sum(answer.status_code for answer in await asyncio.gather(*calls[1:]))

    assert asyncio.run(asyncio.wait_for(run(), 10)) == 400
    assert ranker.batches == [1]


# --- without time ------------------------------------------------------------------------


class Slow:
    """Stands for a bundle's latency budget: there is time for `step_` alone."""

    step_ = FULL

    def step(self, left: float, requests: int) -> str:
        return self.step_ if left < 1e6 else FULL

    def record(self, step: str, seconds: float) -> None:
        pass


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    folder = tmp_path_factory.mktemp("cached")
    dataset = tiny_dataset(folder / "dataset", users=30, items=40, events=400)
    return bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle")


def test_without_time_the_last_answer_comes_before_the_popular_items(
    ranker: Ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, service = Slow(), Recommendations(ranker)
    monkeypatch.setattr(ranker.recommender, "_latency_budget", budget)
    asked = {"user": "u3", "k": 8, "budget_ms": 50.0, "context": {"timestamp": NOW}}
    (whole,) = service.answers(asked)
    assert not whole.degraded
    seen = whole.items[2].item
    service.store.add("u3", seen)
    for step, label in ((FEWER, FEWER), (POPULAR, CACHED)):
        budget.step_ = step
        (answer,) = service.answers(asked)
        assert answer.degraded == label
        assert seen not in [scored.item for scored in answer.items]
    assert answer.items == [scored for scored in whole.items if scored.item != seen]
    (other,) = service.answers({**asked, "k": 7})  # never answered
    assert other.degraded == POPULAR
    assert service.metrics.degraded == {FEWER: 1, CACHED: 1, POPULAR: 1}
    budget.step_ = FULL
    (again,) = service.answers(asked)  # none of these was kept
    assert not again.degraded and seen not in [scored.item for scored in again.items]


def test_what_was_seen_comes_again_where_the_request_allows_it(
    ranker: Ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, service = Slow(), Recommendations(ranker)
    monkeypatch.setattr(ranker.recommender, "_latency_budget", budget)
    asked = {"user": "u3", "k": 8, "budget_ms": 50.0, "exclude_seen": False, "context": {"timestamp": NOW}}
    (whole,) = service.answers(asked)
    service.store.add("u3", whole.items[0].item)
    budget.step_ = POPULAR
    (answer,) = service.answers(asked)
    assert (answer.degraded, answer.items) == (CACHED, whole.items)


def test_another_versions_answer_does_not_come(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    budget, service = Slow(), Recommendations(ranker)
    monkeypatch.setattr(ranker.recommender, "_latency_budget", budget)
    asked = {"user": "u3", "budget_ms": 50.0}
    service.answers(asked)
    service.traffic_split.main, budget.step_ = Variant(ranker, "d2"), POPULAR
    (answer,) = service.answers(asked)
    assert answer.degraded == POPULAR


# --- metrics -----------------------------------------------------------------------------


def test_one_scrape_tells_of_stages_caches_queues_and_joined_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import httpx

    replica = fake_replica(monkeypatch, tmp_path, Serve())

    async def run() -> str:
        async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
            for _ in range(2):
                await asyncio.gather(*(client.post(PATH, json={"user": "u"}) for _ in range(3)))
            await client.post("/v1/rank", json={"user": "u", "items": ["a"]})
            return (await client.get("/metrics")).text

    text = asyncio.run(asyncio.wait_for(run(), 10))
    for value, name, labels in (
        (2, "rayrec_joined_total", {}),
        (3, "rayrec_cache_hits_total", {"cache": "recommendations"}),
        (1, "rayrec_cache_misses_total", {"cache": "recommendations"}),
        (1, "rayrec_cache_misses_total", {"cache": "events"}),
        (0, "rayrec_queued", {"route": "/v1/recommend"}),
        (1, "rayrec_batch_size_bucket", {"route": "/v1/recommend", "le": "1.0"}),
        (1, "rayrec_stage_seconds_count", {"stage": "retrieval"}),
        (0.25, "rayrec_stage_seconds_sum", {"stage": "retrieval"}),
        (2, "rayrec_stage_seconds_count", {"stage": "score"}),
        (2, "rayrec_stage_seconds_count", {"stage": "encode"}),
        (3, "rayrec_stage_seconds_count", {"stage": "parse"}),
        (3, "rayrec_stage_seconds_count", {"stage": "features"}),
    ):
        assert sample(text, name, replica="r1", **labels) == value, name
    cached = sample(text, "rayrec_cache_bytes", cache="recommendations")
    assert cached == replica.scoring[PATH].cache.entries.bytes > 0  # type: ignore[union-attr]


def test_equal_rankings_of_a_tick_are_scored_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ranker = FakeRanker()
    service = Recommendations(ranker)
    scoring = Scoring(service.traffic_split, service.user_events, service.metrics, "/v1/rank", 1000)
    statuses: list[int] = []

    async def run() -> None:
        for number in range(4):
            body = b'{"user":"u","items":["a"]}'
            call = Call("/v1/rank", str(number), lambda *a: statuses.append(a[0]), lambda *_: None, body)
            scoring.add(call, RankRequest("u", ["a"]))
        while len(statuses) < 4:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 10))
    assert (statuses, ranker.batches) == ([200] * 4, [1])
