"""What a replica does with several versions: who meets which, loading, refusing, comparing."""

from __future__ import annotations

import asyncio
import json
import shutil
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.request.requests import RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.events import HistoryEvent
from app.recipe import Serve
from app.serving.replica import Replica
from app.serving.rollout.controller import version_of
from app.serving.rollout.replica_agent import ReplicaAgent, warm
from app.serving.rollout.state import DesiredState, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.versions import shadow
from app.serving.versions.shadow import Shadow, compare
from app.serving.versions.stats import Comparison
from app.serving.versions.traffic_split import TrafficSplit, Variant, place_of
from tests.bundles import bundle_of, random_model
from tests.fakes import FakeRanker, fake_ingress
from tests.tiny import tiny_dataset

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
def test_a_place_is_from_0_to_1_and_always_the_same(user: str, salt: str) -> None:
    assert 0 <= place_of(salt, user) < 1
    assert place_of(salt, user) == place_of(salt, user)


def test_shares_hold_users_stay_when_a_share_grows_and_another_salt_draws_anew() -> None:
    old, new = variant("old"), variant("new")
    variants = TrafficSplit(old, Shadow(20))
    users = [f"u{n}" for n in range(20_000)]
    assert {variants.of(user) for user in users[:9]} == {old}

    def record_exposure(share: float, salt: str) -> set[str]:
        variants.share(old, [(share, new)], salt)
        assert variants.share_of(new.digest) == pytest.approx(share)
        assert variants.share_of(old.digest) == pytest.approx(1 - share)
        return {user for user in users if variants.of(user) is new}

    few, many, others = record_exposure(0.05, "s"), record_exposure(0.5, "s"), record_exposure(0.05, "t")
    assert 900 < len(few) < 1100  # 1,000, standard deviation 31
    assert 9_700 < len(many) < 10_300
    assert few < many
    assert len(few & others) < 120  # by chance 50
    variants.share(new, [], "s")
    assert {variants.of(user) for user in users[:9]} == {new}


def asked(replica: Replica, *bodies: dict[str, Any], path: str = "/v1/rank") -> list[tuple[int, Any]]:
    """Answers in order, all sent in one tick."""
    found: dict[int, tuple[int, Any]] = {}

    async def send() -> None:
        ended = asyncio.Event()
        for place, body in enumerate(bodies):

            def reply(status: int, content: bytes, headers: Any, place: int = place) -> None:
                found[place] = status, json.loads(content)
                if len(found) == len(bodies):
                    ended.set()

            replica.take(path, json.dumps(body).encode(), f"r{place}", reply)
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(send())
    return [found[place] for place in range(len(bodies))]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Replica:
    return fake_ingress(monkeypatch, tmp_path, Serve())


def test_a_batch_is_scored_by_the_version_that_each_user_meets(replica: Replica) -> None:
    old, new = variant("old"), variant("new")
    replica.variants.share(old, [(0.5, new)], "s")
    answers = asked(replica, *({"user": f"u{n}", "items": ITEMS} for n in range(20)))
    versions = [answer["version"] for _, answer in answers]
    assert versions == [replica.variants.of(f"u{n}").label for n in range(20)]
    assert set(versions) == {"old", "new"}
    assert (old.stats.requests, new.stats.requests) == (versions.count("old"), versions.count("new"))
    assert old.stats.scores.mean == 3.0  # the length of "ccc"


def test_a_version_that_fails_fails_for_its_users_alone_and_is_counted(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    old, bad = variant("old"), variant("bad", broken=True)
    replica.variants.share(old, [(0.5, bad)], "s")
    users = [f"u{n}" for n in range(20)]
    answers = asked(replica, *({"user": user, "items": ITEMS} for user in users))
    for user, (status, _) in zip(users, answers, strict=True):
        assert status == (500 if replica.variants.of(user) is bad else 200)
    assert (old.stats.errors, bad.stats.errors) == (0, bad.stats.requests)
    assert bad.stats.requests > 0
    assert "failed" in caplog.text


def test_feedback_is_stored_with_the_version_that_the_user_meets(replica: Replica) -> None:
    replica.variants.share(variant("old"), [(0.5, variant("new"))], "s")
    events = [{"user": f"u{n}", "item": "a"} for n in range(9)] + [{"user": "u", "item": "a", "variant": "x"}]
    [(status, _)] = asked(replica, {"events": events}, path="/v1/feedback")
    assert status == 202
    rows = replica.store._reader.execute("SELECT user, variant FROM events").fetchall()  # type: ignore[attr-defined]
    expected = {(f"u{n}", replica.variants.of(f"u{n}").label) for n in range(9)}
    assert set(rows) == expected | {("u", "x")}
    assert {label for _, label in expected} == {"old", "new"}


def test_a_trial_version_scores_a_sample_of_what_the_main_one_answered(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "GAP_S", float("inf"))  # however slow the machine is
    dice = cycle([0.049, *[0.05] * 19])
    monkeypatch.setattr(shadow, "random", SimpleNamespace(random=lambda: next(dice)))
    new = variant("new")
    replica.variants.trial = new
    asked(replica, *({"user": f"u{n}", "items": ITEMS} for n in range(60)))
    replica.variants.shadow._thread.shutdown()
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


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    dataset = tiny_dataset(folder / "dataset", users=30, items=40, events=600)
    for seed, name in enumerate("ab"):
        bundle_of(random_model("mlp", dataset, seed), dataset, folder / name)
    return {name: folder / name for name in "ab"}


def watched(board: StateDir, bundles: dict[str, Path]) -> tuple[ReplicaAgent, Version, Version]:
    first, second = (version_of(bundles[name]) for name in "ab")
    board.publish(DesiredState([Version(first.label, first.bundle, first.digest, 1.0)]))
    return ReplicaAgent(board, "r1", "unused", Ranker.open, 20), first, second


async def until(watch: ReplicaAgent, digest: str, state: str) -> None:
    async with asyncio.timeout(10):
        while True:
            watch.look()
            version = watch.snapshot(0, "").versions.get(digest)
            if version is not None and version.state == state:
                return
            await asyncio.sleep(0.01)


def test_a_version_is_loaded_beside_the_running_one_shifted_to_and_dropped(
    tmp_path: Path, bundles: dict[str, Path]
) -> None:
    board = StateDir(tmp_path)
    watch, first, second = watched(board, bundles)

    async def follow() -> None:
        main = watch.variants.main
        one = Version(first.label, first.bundle, first.digest, 0.5)
        two = Version(second.label, second.bundle, second.digest, 0.5)
        board.publish(DesiredState([one, two], "canary", "s"))
        watch.look()
        assert not watch.variants.shared  # it is not loaded: all stays as it was
        await until(watch, second.digest, "ready")
        watch.look()
        assert watch.variants.shared
        assert watch.variants.main is main
        assert watch.variants.trial is not None
        compared = watch.variants.trial.compared
        assert (compared.count, compared.errors) == (24, 0)  # made-up requests, for want of live ones
        assert abs(compared.agreement / compared.judged) < 0.5  # another model altogether
        board.publish(DesiredState([Version(second.label, second.bundle, second.digest, 1.0)]))
        watch.look()
        assert watch.variants.main.digest == second.digest
        assert set(watch.snapshot(0, "").versions) == {second.digest}

    asyncio.run(follow())


def test_a_damaged_version_is_refused_and_the_running_one_goes_on(
    tmp_path: Path, bundles: dict[str, Path]
) -> None:
    board = StateDir(tmp_path)
    watch, first, second = watched(board, bundles)
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles["b"], damaged)
    model = damaged / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)

    async def follow() -> None:
        running = Version(first.label, first.bundle, first.digest, 1.0)
        board.publish(DesiredState([running, Version(second.label, str(damaged), second.digest)], "loading"))
        await until(watch, second.digest, "refused")
        assert "model.onnx" in watch.snapshot(0, "").versions[second.digest].error
        request = RankRequest("u1", ["i1", "i2"])
        assert len(watch.variants.main.ranker.rank([request])[0].items) == 2
        assert watch.variants.main.digest == first.digest

    asyncio.run(follow())


def test_another_bundle_at_the_announced_place_is_refused(tmp_path: Path, bundles: dict[str, Path]) -> None:
    board = StateDir(tmp_path)
    watch, first, second = watched(board, bundles)

    async def follow() -> None:
        running = Version(first.label, first.bundle, first.digest, 1.0)
        board.publish(DesiredState([running, Version(second.label, first.bundle, second.digest)], "loading"))
        await until(watch, second.digest, "refused")

    asyncio.run(follow())


def test_a_version_that_fails_when_warmed_is_refused() -> None:
    variants = TrafficSplit(variant("old"), Shadow(20))
    with pytest.raises(ZeroDivisionError):
        warm(variants, variant("bad", broken=True))
    live = RankRequest("u1", ["a", "bb"], history=[])
    variants.recent.append(live)
    new = variant("new")
    warm(variants, new)
    assert new.compared.count == 4  # the live one, and one for each known user
    assert np.isclose(new.compared.agreement, new.compared.judged)
