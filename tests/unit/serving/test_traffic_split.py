"""What a replica does with several versions: assigning users, answering, comparing."""

from __future__ import annotations

import asyncio
import json
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.request.requests import RankRequest, RecommendRequest
from app.events import HistoryEvent
from app.recipe import Serve
from app.serving.replica import Replica
from app.serving.versions import shadow
from app.serving.versions.shadow import Shadow, compare
from app.serving.versions.stats import Comparison
from app.serving.versions.traffic_split import TrafficSplit, Variant, position_of
from tests.fakes import FakeRanker, fake_replica

ITEMS = ["a", "bb", "ccc"]


class Named(FakeRanker):
    """A version of the fake model; `turned` ranks the other way round, `broken` not at all."""

    def __init__(self, version: str, *, turned: bool = False, broken: bool = False) -> None:
        super().__init__()
        self.version, self.turned, self.broken = version, turned, broken

    def answer(self, questions: Any) -> Any:
        if self.broken:
            raise ZeroDivisionError
        answers = super().answer(questions)
        if self.turned:
            for answer in answers:
                answer.items[:] = [type(s)(s.item, -s.score) for s in reversed(answer.items)]
        return answers


def variant(version: str, **how: bool) -> Variant:
    return Variant(Named(version, **how), f"digest of {version}")  # type: ignore[arg-type]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT, TEXT)
def test_a_position_is_from_0_to_1_and_always_the_same(user: str, salt: str) -> None:
    assert 0 <= position_of(salt, user) < 1
    assert position_of(salt, user) == position_of(salt, user)


def test_shares_hold_users_stay_when_a_share_grows_and_another_salt_draws_anew() -> None:
    old, new = variant("old"), variant("new")
    split = TrafficSplit(old, Shadow(20))
    users = [f"u{n}" for n in range(20_000)]
    assert {split.assign(user) for user in users[:9]} == {old}

    def users_of_new(weight: float, salt: str) -> set[str]:
        split.set_weights(old, [(weight, new)], salt)
        assert split.weight_of(new.digest) == pytest.approx(weight)
        assert split.weight_of(old.digest) == pytest.approx(1 - weight)
        return {user for user in users if split.assign(user) is new}

    few, many, others = users_of_new(0.05, "s"), users_of_new(0.5, "s"), users_of_new(0.05, "t")
    assert 900 < len(few) < 1100  # 1,000, standard deviation 31
    assert 9_700 < len(many) < 10_300
    assert few < many
    assert len(few & others) < 120  # by chance 50
    split.set_weights(new, [], "s")
    assert {split.assign(user) for user in users[:9]} == {new}


def ask(replica: Replica, *bodies: dict[str, Any], path: str = "/v1/rank") -> list[tuple[int, Any]]:
    """Status and content of the answers in order, all sent in one tick."""
    answers: dict[int, tuple[int, Any]] = {}

    async def send() -> None:
        ended = asyncio.Event()
        for index, body in enumerate(bodies):

            def reply(status: int, content: bytes, headers: Any, index: int = index) -> None:
                answers[index] = status, json.loads(content)
                if len(answers) == len(bodies):
                    ended.set()

            replica.handle(path, json.dumps(body).encode(), f"r{index}", reply)
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(send())
    return [answers[index] for index in range(len(bodies))]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Replica:
    return fake_replica(monkeypatch, tmp_path, Serve())


def test_a_batch_is_scored_by_the_version_of_each_user(replica: Replica) -> None:
    old, new = variant("old"), variant("new")
    replica.traffic_split.set_weights(old, [(0.5, new)], "s")
    answers = ask(replica, *({"user": f"u{n}", "items": ITEMS} for n in range(20)))
    versions = [answer["version"] for _, answer in answers]
    assert versions == [replica.traffic_split.assign(f"u{n}").label for n in range(20)]
    assert set(versions) == {"old", "new"}
    assert (old.stats.requests, new.stats.requests) == (versions.count("old"), versions.count("new"))
    assert old.stats.scores.mean == 3.0  # the length of "ccc"


def test_a_version_that_fails_fails_for_its_users_alone_and_is_counted(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    old, bad = variant("old"), variant("bad", broken=True)
    replica.traffic_split.set_weights(old, [(0.5, bad)], "s")
    users = [f"u{n}" for n in range(20)]
    answers = ask(replica, *({"user": user, "items": ITEMS} for user in users))
    for user, (status, _) in zip(users, answers, strict=True):
        assert status == (500 if replica.traffic_split.assign(user) is bad else 200)
    assert (old.stats.errors, bad.stats.errors) == (0, bad.stats.requests)
    assert bad.stats.requests > 0
    assert "failed" in caplog.text


def test_feedback_is_stored_with_the_version_of_its_user(replica: Replica) -> None:
    replica.traffic_split.set_weights(variant("old"), [(0.5, variant("new"))], "s")
    events = [{"user": f"u{n}", "item": "a"} for n in range(9)] + [{"user": "u", "item": "a", "variant": "x"}]
    [(status, _)] = ask(replica, {"events": events}, path="/v1/feedback")
    assert status == 202
    rows = replica.store._reader.execute("SELECT user, variant FROM events").fetchall()  # type: ignore[attr-defined]
    expected = {(f"u{n}", replica.traffic_split.assign(f"u{n}").label) for n in range(9)}
    assert set(rows) == expected | {("u", "x")}
    assert {label for _, label in expected} == {"old", "new"}


def test_a_trial_version_scores_a_sample_of_what_the_main_one_answered(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "GAP_S", float("inf"))  # however slow the machine is
    dice = cycle([0.049, *[0.05] * 19])
    monkeypatch.setattr(shadow, "random", SimpleNamespace(random=lambda: next(dice)))
    new = variant("new")
    replica.traffic_split.trial = new
    ask(replica, *({"user": f"u{n}", "items": ITEMS} for n in range(60)))
    replica.traffic_split.shadow._thread.shutdown()
    assert new.compared.count == 3  # whose dice are below 1/20
    assert new.compared.agreement == pytest.approx(new.compared.judged)
    assert new.stats.requests == 0


@pytest.mark.parametrize(
    ("new", "judged", "agreement", "errors"),
    [
        (Named("same"), 1, 1.0, 0),
        (Named("turned", turned=True), 1, -1.0, 0),
        (Named("broken", broken=True), 0, 0.0, 1),
    ],
)
def test_a_comparison_by_hand(new: FakeRanker, judged: int, agreement: float, errors: int) -> None:
    into = Comparison()
    request = RankRequest("u", ITEMS, k=1)  # all are compared, whatever k
    compare(FakeRanker(), new, into, request, [HistoryEvent("a")])  # type: ignore[arg-type]
    assert (into.count, into.judged, into.errors) == (1, judged, errors)
    assert into.agreement == pytest.approx(agreement)
    recommended = Comparison()
    compare(FakeRanker(), new, recommended, RecommendRequest("u", k=3))  # type: ignore[arg-type]
    assert recommended.agreement == float(not errors)  # the best ten are the same items


class Remembering(Named):
    """Knows whom it was asked for."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.users: list[str] = []

    def read(self, request: Any, *stored: Any) -> Any:
        self.users.append(request.user)
        return super().read(request, *stored)


def test_users_who_return_with_the_rhythm_of_the_sample_are_not_all_it_knows() -> None:
    new, comparison = Remembering("new"), Comparison()
    sampler = Shadow(20)
    for turn in range(3000):  # 60 users take turns: each twentieth request is one of three users'
        request = RankRequest(f"u{turn % 60}", ITEMS)
        sampler.offer(Named("old"), new, comparison, request, [])  # type: ignore[arg-type]
        sampler._thread.submit(int).result()  # else it compares no more than it has room for
    assert 75 < len(new.users) < 250  # 150, standard deviation 12
    assert len(set(new.users)) > 40  # 55 are expected


def test_a_score_that_is_no_number_is_a_fault() -> None:
    class Nan(FakeRanker):
        def answer(self, questions: Any) -> Any:
            answers = super().answer(questions)
            answers[0].items[0] = type(answers[0].items[0])("a", float("nan"))
            return answers

    into = Comparison()
    compare(FakeRanker(), Nan(), into, RankRequest("u", ITEMS))  # type: ignore[arg-type]
    assert (into.count, into.errors, into.judged) == (1, 1, 0)


def test_where_the_main_version_tells_nothing_apart_nothing_is_judged() -> None:
    into = Comparison()
    compare(FakeRanker(), FakeRanker(), into, RankRequest("u", ["a", "b"]))  # type: ignore[arg-type]
    assert (into.count, into.judged) == (1, 0)
