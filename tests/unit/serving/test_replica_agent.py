"""A replica that follows the desired state: versions loaded, refused, shifted to; and faults on the way."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.bundle.request.requests import RankRequest
from app.bundle.runtime import Ranker
from app.errors import MachineError
from app.serving.rollout import replica_agent
from app.serving.rollout.replica_agent import ReplicaAgent, warm
from app.serving.rollout.start import version_of
from app.serving.rollout.state import DesiredState, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.versions.shadow import Shadow
from app.serving.versions.traffic_split import TrafficSplit, Variant
from tests.bundles import bundle_of, random_model
from tests.fakes import FakeRanker
from tests.tiny import tiny_dataset


class Broken(FakeRanker):
    """Answers nothing."""

    def answer(self, questions: Any) -> Any:
        raise ZeroDivisionError


def variant(ranker: FakeRanker) -> Variant:
    return Variant(ranker, "d2")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    dataset = tiny_dataset(folder / "dataset", users=30, items=40, events=600)
    for seed, name in enumerate("ab"):
        bundle_of(random_model("mlp", dataset, seed), dataset, folder / name)
    return {name: folder / name for name in "ab"}


def agent_of(state_dir: StateDir, bundles: dict[str, Path]) -> tuple[ReplicaAgent, Version, Version]:
    first, second = (version_of(bundles[name]) for name in "ab")
    state_dir.publish(DesiredState([Version(first.label, first.bundle, first.digest, 1.0)]))
    return ReplicaAgent(state_dir, "r1", "unused", Ranker.open, 20), first, second


async def until(agent: ReplicaAgent, digest: str, state: str) -> None:
    async with asyncio.timeout(10):
        while True:
            agent.follow()
            version = agent.snapshot(0, "").versions.get(digest)
            if version is not None and version.state == state:
                return
            await asyncio.sleep(0.01)


def test_a_version_is_loaded_beside_the_running_one_shifted_to_and_dropped(
    tmp_path: Path, bundles: dict[str, Path]
) -> None:
    state_dir = StateDir(tmp_path)
    agent, first, second = agent_of(state_dir, bundles)

    async def follow() -> None:
        main = agent.traffic_split.main
        main_half = Version(first.label, first.bundle, first.digest, 0.5)
        other_half = Version(second.label, second.bundle, second.digest, 0.5)
        state_dir.publish(DesiredState([main_half, other_half], "canary", "s"))
        agent.follow()
        assert not agent.traffic_split.splits  # it is not loaded: all stays as it was
        await until(agent, second.digest, "ready")
        agent.follow()
        assert agent.traffic_split.splits
        assert agent.traffic_split.main is main
        assert agent.traffic_split.trial is not None
        compared = agent.traffic_split.trial.compared
        assert (compared.count, compared.errors) == (24, 0)  # made-up requests, for want of live ones
        assert abs(compared.agreement / compared.judged) < 0.5  # another model altogether
        state_dir.publish(DesiredState([Version(second.label, second.bundle, second.digest, 1.0)]))
        agent.follow()
        assert agent.traffic_split.main.digest == second.digest
        assert set(agent.snapshot(0, "").versions) == {second.digest}

    asyncio.run(follow())


def test_a_damaged_version_is_refused_and_the_running_one_goes_on(
    tmp_path: Path, bundles: dict[str, Path]
) -> None:
    state_dir = StateDir(tmp_path)
    agent, first, second = agent_of(state_dir, bundles)
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles["b"], damaged)
    model = damaged / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)

    async def follow() -> None:
        running = Version(first.label, first.bundle, first.digest, 1.0)
        state_dir.publish(
            DesiredState([running, Version(second.label, str(damaged), second.digest)], "loading")
        )
        await until(agent, second.digest, "refused")
        assert "model.onnx" in agent.snapshot(0, "").versions[second.digest].error
        request = RankRequest("u1", ["i1", "i2"])
        assert len(agent.traffic_split.main.ranker.rank([request])[0].items) == 2
        assert agent.traffic_split.main.digest == first.digest

    asyncio.run(follow())


def test_another_bundle_than_the_announced_one_is_refused(tmp_path: Path, bundles: dict[str, Path]) -> None:
    state_dir = StateDir(tmp_path)
    agent, first, second = agent_of(state_dir, bundles)

    async def follow() -> None:
        running = Version(first.label, first.bundle, first.digest, 1.0)
        state_dir.publish(
            DesiredState([running, Version(second.label, first.bundle, second.digest)], "loading")
        )
        await until(agent, second.digest, "refused")

    asyncio.run(follow())


def test_a_version_that_fails_when_warmed_is_refused() -> None:
    split = TrafficSplit(variant(FakeRanker()), Shadow(20))
    with pytest.raises(ZeroDivisionError):
        warm(split, variant(Broken()))
    live = RankRequest("u1", ["a", "bb"], history=[])
    split.recent.append(live)
    new = variant(FakeRanker())
    warm(split, new)
    assert new.compared.count == 4  # the live one, and one for each known user
    assert np.isclose(new.compared.agreement, new.compared.judged)


RUNNING, TRIAL = Version("v1", "/data/a", "d1", 1.0), Version("v2", "/data/b", "d2")


def faked(tmp_path: Path) -> tuple[ReplicaAgent, StateDir]:
    state_dir = StateDir(tmp_path)
    state_dir.publish(DesiredState([RUNNING]))
    return ReplicaAgent(state_dir, "r1", "unused", lambda _: FakeRanker(), 20), state_dir  # type: ignore


def run_until(agent: ReplicaAgent, holds: Callable[[], bool], describe: Callable[[], Any]) -> None:
    async def follow() -> None:
        task = asyncio.create_task(agent.run(describe))
        async with asyncio.timeout(10):
            while not holds() and not task.done():
                await asyncio.sleep(0.005)
        assert not task.done(), task.exception()
        task.cancel()

    asyncio.run(follow())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_agent, "LOOK_S", 0.002)
    monkeypatch.setattr(replica_agent, "REPORT_S", 0.002)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [ZeroDivisionError("none"), MachineError("the disk is full")])
@pytest.mark.parametrize("part", ["follow", "describe", "report", "flush"])
def test_whatever_fails_a_replica_goes_on_to_follow_and_to_report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
    error: Exception,
) -> None:
    agent, state_dir = faked(tmp_path)
    faults, calls = iter([error, error]), {"describe": 0}

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if (fault := next(faults, None)) is not None:
                raise fault
            return real(*arguments)

        return call

    def describe() -> tuple[float, str]:
        calls["describe"] += 1
        return 3.0, "metrics"

    owners = {"follow": agent, "report": state_dir, "flush": agent._exposures}
    if part == "describe":
        describe = failing(describe)
    else:
        monkeypatch.setattr(owners[part], part, failing(getattr(owners[part], part)))
    state_dir.publish(DesiredState([RUNNING], note="newer"))

    def is_well() -> bool:
        reported = any(snapshot.ongoing == 3.0 for snapshot in state_dir.snapshots())
        followed = agent._desired is not None and agent._desired.note == "newer"
        return reported and followed and next(faults, None) is None

    run_until(agent, is_well, describe)
    logged = [record.getMessage() for record in caplog.records if "tries again" in record.getMessage()]
    assert len(logged) == 1 and str(error.args[0]) in logged[0]  # twice the same fault is logged once


def test_only_an_experiment_notes_who_was_served(tmp_path: Path) -> None:
    agent, state_dir = faked(tmp_path)
    trial = variant(FakeRanker())
    agent._loaded["d2"] = trial
    split = [Version("v1", "/data/a", "d1", 0.5), Version("v2", "/data/b", "d2", 0.5)]
    rows: dict[str, int] = {}
    for phase in ("canary", "experiment", "canary"):
        state_dir.publish(DesiredState(split, phase, f"salt of {phase}"))  # type: ignore[arg-type]
        agent.follow()
        assert agent.traffic_split.splits  # else nothing would be noted whatever the phase
        for user in range(100):
            agent.traffic_split.record_exposure(f"u{user}", trial)
        assert agent._exposures is not None
        agent._exposures.flush()
    with closing(sqlite3.connect(tmp_path / "served.sqlite")) as database:
        rows = dict(database.execute("SELECT salt, COUNT(*) FROM served GROUP BY salt").fetchall())
    assert rows == {"salt of experiment": 100}
