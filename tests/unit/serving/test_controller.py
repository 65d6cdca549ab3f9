"""The controller: commands carried out and refused, phases of a deployment, and what faults leave behind."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.errors import MachineError
from app.ray import processes
from app.recipe import Serve
from app.serving.rollout import controller
from app.serving.rollout.controller import RolloutController, controlling
from app.serving.rollout.start import publish_first, version_of
from app.serving.rollout.state import Command, CommandResult, DesiredState, Snapshot, Version, VersionState
from app.serving.rollout.state_dir import StateDir
from app.serving.versions.experiment import Exposures
from app.serving.versions.stats import VersionStats
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

VERSION = Version("v1", "/data/bundle", "digest", 1.0)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    dataset = tiny_dataset(folder / "dataset", users=20, items=20, events=300)
    for seed, name in enumerate("abc"):
        bundle_of(random_model("bilinear", dataset, seed), dataset, folder / name)
    return {name: folder / name for name in "abc"}


@pytest.fixture
def state_dir(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


class Run:
    """A service of one replica, without Ray: the replica does at once what the desired state says."""

    def __init__(self, state_dir: StateDir, bundle: Path, **serve: Any) -> None:
        self.state_dir, self.now = state_dir, 1000.0
        desired = publish_first(state_dir, version_of(bundle))
        self.controller = RolloutController(state_dir, Serve(**serve), desired)

    def submit(self, kind: Any, bundle: Path | None = None, **options: Any) -> str:
        return self.state_dir.submit(Command(kind, str(bundle or ""), **options)).id

    def step(self, seconds: float = 1.0, state: Any = "ready", answered: int = 0) -> DesiredState:
        """Later the replica reports that state of the version on trial, and requests answered in all."""
        self.now += seconds
        main, *trial = self.desired().versions
        versions = {main.digest: VersionState("ready")}
        for version in trial:
            stats = VersionStats(requests=answered)
            versions[version.digest] = VersionState(state, "why" if state == "refused" else "", stats=stats)
        self.state_dir.report(Snapshot("r1", self.now, os.getpid(), 0, 1.0, versions))
        self.controller.step(self.now)
        return self.desired()

    def desired(self) -> DesiredState:
        desired = self.state_dir.desired_state()
        assert desired is not None
        return desired


def in_experiment(state_dir: StateDir, bundles: dict[str, Path]) -> Run:
    """A service of bundle a whose users are split: 30 % get b."""
    run = Run(state_dir, bundles["a"])
    run.submit("deploy", bundles["b"], percent=30, keep=True)
    run.step()
    run.step()
    assert run.step(10).phase == "experiment"
    return run


def shares(desired: DesiredState) -> list[tuple[str, float]]:
    return [(Path(version.bundle).name, round(version.share, 3)) for version in desired.versions]


def wait_for_result(state_dir: StateDir, command: str) -> CommandResult:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        desired = state_dir.desired_state()
        result = desired.result(command) if desired else None
        if result is not None:
            return result
        time.sleep(0.01)
    raise AssertionError("there is no result after 10 s")


def test_a_version_that_does_not_fit_into_memory_is_refused_before_it_is_loaded(
    state_dir: StateDir, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "free_bytes", lambda: 1 << 20)
    run = Run(state_dir, bundles["a"])
    command = run.submit("deploy", bundles["b"])
    desired = run.step()
    result = desired.result(command)
    assert result is not None and result.state == "refused"
    assert "1 MiB are free" in result.reason
    assert desired.phase == "steady" and len(desired.versions) == 1


def test_a_version_may_not_have_the_name_of_a_further_model(
    state_dir: StateDir, bundles: dict[str, Path]
) -> None:
    run = Run(state_dir, bundles["a"], models={"tiny": "/data/other"})
    command = run.submit("deploy", bundles["b"])
    result = run.step().result(command)
    assert result is not None and result.state == "refused" and "'tiny'" in result.reason


def test_a_version_is_deployed_from_an_address(
    state_dir: StateDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = Run(state_dir, bundles["a"], cache_dir=str(tmp_path / "cache"))
    state_dir.submit(Command("deploy", bundles["b"].as_uri()))
    desired = run.step()
    assert [version.digest for version in desired.versions] == [
        version_of(bundles[name]).digest for name in "ab"
    ]
    assert all(Path(version.bundle).parent == state_dir.folder / "bundles" for version in desired.versions)
    command = run.submit("rollback")
    state_dir.submit(Command("deploy", (tmp_path / "nothing").as_uri()))
    refusal = run.step().results[-1]
    assert run.step().result(command) is not None
    assert "no whole bundle" in refusal.reason


def test_a_deployment_passes_its_phases_and_is_promoted(
    state_dir: StateDir, bundles: dict[str, Path]
) -> None:
    run = Run(state_dir, bundles["a"])
    a, b = (version_of(bundles[name]).digest[:16] for name in "ab")
    command = run.submit("deploy", bundles["b"], percent=20)
    assert (run.step(state="loading").phase, shares(run.step(state="loading"))) == (
        "loading",
        [(a, 1.0), (b, 0.0)],
    )
    assert run.step().phase == "shadow"
    desired = run.step(10)
    assert (desired.phase, shares(desired)) == ("canary", [(a, 0.8), (b, 0.2)])
    assert desired.salt == command
    desired = run.step(45, answered=20)
    assert (desired.phase, shares(desired)) == ("steady", [(b, 1.0)])
    assert desired.previous is not None and desired.previous.digest[:16] == a
    result = desired.result(command)
    assert result is not None and result.state == "done"
    back = run.submit("rollback")
    desired = run.step()
    assert shares(desired) == [(a, 1.0)]
    assert desired.result(back) is not None
    again = run.submit("rollback")  # and forth
    assert (shares(run.step()), run.desired().result(again) is not None) == ([(b, 1.0)], True)


def test_a_version_that_a_replica_refuses_leaves_no_trace(
    state_dir: StateDir, bundles: dict[str, Path]
) -> None:
    run = Run(state_dir, bundles["a"])
    command = run.submit("deploy", bundles["b"])
    run.step(state="loading")
    desired = run.step(state="refused")
    assert [version.digest for version in desired.versions] == [version_of(bundles["a"]).digest]
    result = desired.result(command)
    assert result is not None and (result.state, result.reason) == ("rolled back", "why")


def test_rollback_ends_a_trial_and_keeps_the_version_before(
    state_dir: StateDir, bundles: dict[str, Path]
) -> None:
    run = Run(state_dir, bundles["a"])
    run.submit("deploy", bundles["b"], now=True)
    run.step()
    assert shares(run.step())[0][1] == 1.0
    third = run.submit("deploy", bundles["c"])
    run.step()
    run.submit("rollback")
    desired = run.step()
    result = desired.result(third)
    assert result is not None and result.state == "rolled back"
    assert desired.main.digest == version_of(bundles["b"]).digest
    assert desired.previous is not None and desired.previous.digest == version_of(bundles["a"]).digest
    assert Path(desired.previous.bundle).exists()


def test_an_experiment_keeps_both_until_one_is_chosen(state_dir: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(state_dir, bundles["a"])
    command = run.submit("deploy", bundles["b"], percent=50, keep=True)
    run.step()
    run.step()
    desired = run.step(10)
    assert (desired.phase, [version.share for version in desired.versions]) == ("experiment", [0.5, 0.5])
    assert desired.result(command) is not None
    assert desired.experiment is not None and len(desired.experiment.labels) == 2
    run.submit("promote")
    desired = run.step()
    assert (desired.phase, desired.main.digest) == ("steady", version_of(bundles["b"]).digest)
    assert desired.experiment is not None  # its report can be read afterwards


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("rollback", {}, "no version before"),
        ("promote", {}, "no version is on trial"),
        ("scale", {"replicas": 3}, "max_replicas"),
        ("deploy", {"name": "a"}, "served already"),
        ("deploy", {"name": "nothing"}, "no such folder"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    state_dir: StateDir, bundles: dict[str, Path], kind: str, options: dict[str, Any], text: str
) -> None:
    run = Run(state_dir, bundles["a"])
    name = options.pop("name", None)
    command = run.submit(kind, bundles["a"].with_name(name) if name else None, **options)
    result = run.step().result(command)
    assert result is not None and result.state == "refused"
    assert text in result.reason


def test_one_deployment_at_a_time(state_dir: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(state_dir, bundles["a"])
    run.submit("deploy", bundles["b"])
    second = run.submit("deploy", bundles["c"])
    result = run.step().result(second)
    assert result is not None and "on trial" in result.reason


def test_a_start_serves_the_bundle_named_but_after_a_crash_what_was_deployed(
    state_dir: StateDir, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (version_of(bundles[name]) for name in "ab")
    run = Run(state_dir, bundles["a"])
    run.submit("deploy", bundles["b"], now=True)
    run.step()
    run.step()
    assert publish_first(state_dir, a).main.digest == b.digest  # the driver was killed
    assert "crash" in capsys.readouterr().err
    run.controller.stop()
    assert publish_first(state_dir, a).main.digest == a.digest  # it was stopped, and a person named a
    assert b.label in capsys.readouterr().err
    assert publish_first(state_dir, version_of(bundles["c"])).main.digest == version_of(bundles["c"]).digest


@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped"])
def test_an_experiment_goes_on_after_a_restart_with_each_user_at_the_same_version(
    state_dir: StateDir, bundles: dict[str, Path], stopped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = in_experiment(state_dir, bundles)
    before = run.desired()
    if stopped:
        run.controller.stop()
    again = Run(state_dir, bundles["a"])
    after = again.step()
    assert "experiment of" in capsys.readouterr().err
    kept = ("phase", "salt", "versions", "experiment", "started_with")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert all(Path(version.bundle).exists() for version in after.versions)
    again.submit("promote")
    assert again.step().main.digest == version_of(bundles["b"]).digest


def test_an_experiment_ends_in_the_open_where_another_bundle_is_named_or_one_is_gone(
    state_dir: StateDir, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    desired = in_experiment(state_dir, bundles).desired()
    assert desired.trial is not None
    (Path(desired.trial.bundle) / "manifest.json").unlink()
    after = publish_first(state_dir, version_of(bundles["a"]))
    assert (after.phase, len(after.versions)) == ("steady", 1)
    assert after.experiment == desired.experiment, "its report can be read afterwards"
    assert "ends with this start" in capsys.readouterr().err


def test_a_fault_within_a_command_becomes_its_result_and_the_thread_goes_on(
    state_dir: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir.publish(DesiredState([VERSION]))
    monkeypatch.setattr(RolloutController, "_roll_back", lambda *_: {}["nothing"])
    with controlling(state_dir, Serve()):
        broken = state_dir.submit(Command("rollback"))
        good = state_dir.submit(Command("scale", replicas=2))
        results = {command.id: wait_for_result(state_dir, command.id) for command in (broken, good)}
    assert results[broken.id] == CommandResult(broken.id, "refused", "KeyError: 'nothing'")
    assert results[good.id].state == "done"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("no step"), SystemExit(3), MachineError("the disk is full")]
)
def test_whatever_a_step_raises_the_thread_goes_on_and_says_so_once(
    state_dir: StateDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    state_dir.publish(DesiredState([VERSION]))
    monkeypatch.setattr(controller, "EVERY_S", 0.001)
    step, raised = RolloutController.step, threading.Event()
    faults = iter(range(3))

    def fail_three_times(self: RolloutController, now: float) -> None:
        if next(faults, None) is not None:
            raise error
        raised.set()
        step(self, now)

    monkeypatch.setattr(RolloutController, "step", fail_three_times)
    with controlling(state_dir, Serve()):
        assert raised.wait(5)
        wait_for_result(state_dir, state_dir.submit(Command("scale", replicas=1)).id)
    lines = [line for line in capsys.readouterr().err.splitlines() if "deployments cannot go on" in line]
    assert len(lines) == 1 and str(error) in lines[0]


def test_a_broken_command_file_is_refused_by_name_and_the_others_are_carried_out(state_dir: StateDir) -> None:
    state_dir.publish(DesiredState([VERSION]))
    steps = RolloutController(state_dir, Serve(), DesiredState([VERSION]))
    before = state_dir.submit(Command("scale", replicas=1))
    commands = state_dir.folder / "commands"
    contents = {"a": b"{", "b": b'{"kind": "dance"}', "c": b'{"kind": "scale", "replicas": -1}', "d": b"\xff"}
    for name, content in contents.items():
        (commands / f"{before.id}-{name}.json").write_bytes(content)
    after = state_dir.submit(Command("scale", replicas=2))
    steps.step(1.0)
    desired = state_dir.desired_state()
    assert desired is not None and desired.replicas == 2
    assert [r.state for r in map(desired.result, (before.id, after.id)) if r] == ["done", "done"]
    for name in contents:
        refusal = desired.result(f"{before.id}-{name}")
        assert refusal is not None and refusal.state == "refused"
        assert f"{before.id}-{name}.json holds no command" in refusal.reason
    assert list(commands.iterdir()) == []


def test_a_command_file_that_cannot_be_removed_is_refused_once(state_dir: StateDir) -> None:
    steps = RolloutController(state_dir, Serve(), DesiredState([VERSION]))
    (state_dir.folder / "commands" / "stays.json").mkdir(parents=True)
    done = state_dir.submit(Command("scale", replicas=1))
    for now in (1.0, 2.0):
        steps.step(now)
    assert [result.command for result in steps.desired.results] == ["stays", done.id]


def full_disk(*_: Any) -> None:
    raise MachineError("the disk is full")


def test_a_command_on_a_full_disk_gets_its_result_once_there_is_room(
    state_dir: StateDir, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(state_dir, bundles["a"])
    command = run.submit("deploy", bundles["b"])
    with monkeypatch.context() as patch:
        patch.setattr(StateDir, "publish", full_disk)
        with pytest.raises(MachineError):
            run.step()
    desired = run.step()
    assert desired.result(command) == CommandResult(command, "refused", "the disk is full")
    assert (desired.phase, run.controller.rollout) == ("steady", None)
    run.submit("deploy", bundles["b"])
    assert run.step().phase == "loading"


def test_a_state_that_could_not_be_written_is_written_by_the_next_step(
    state_dir: StateDir, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(state_dir, bundles["a"])
    command = run.submit("deploy", bundles["b"], percent=50)
    assert [run.step().phase for _ in range(2)] == ["loading", "shadow"]
    for phase, seconds, answered in (("canary", 10, 0), ("steady", 45, 20)):
        with monkeypatch.context() as patch:
            patch.setattr(StateDir, "publish", full_disk)
            with pytest.raises(MachineError):
                run.step(seconds, answered=answered)
        assert run.step(answered=answered).phase == phase
    result = run.desired().result(command)
    assert result is not None and result.state == "done"
    assert run.desired().main.digest == version_of(bundles["b"]).digest


def test_a_trial_that_cannot_be_judged_is_rolled_back(state_dir: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(state_dir, bundles["a"])
    command = run.submit("deploy", bundles["b"])
    [run.step() for _ in range(2)]
    trial = run.desired().versions[1].digest
    odd = VersionState("ready", stats=VersionStats(times=[1, 2]))  # buckets of another release
    state_dir.report(Snapshot("r2", run.now + 1, os.getpid(), 0, 1.0, {trial: odd}))
    run.step(10)
    run.step()
    result = run.desired().result(command)
    assert result is not None and result.state == "rolled back"
    assert "could not be judged (ValueError" in result.reason


def test_a_deployment_waits_for_a_stalled_replica_until_its_process_is_gone(
    state_dir: StateDir, bundles: dict[str, Path]
) -> None:
    run = Run(state_dir, bundles["a"])
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        old = {run.desired().main.digest: VersionState("ready")}
        host, mark = socket.gethostname(), processes.run_mark(process.pid)
        state_dir.report(Snapshot("r2", run.now, process.pid, 0, 1.0, old, host=host, mark=mark))
        command = run.submit("deploy", bundles["b"])
        assert [run.step(seconds).phase for seconds in (1, 10, 100)] == ["loading"] * 3
    finally:
        process.kill()
        process.wait()
    assert run.step().phase == "shadow"
    assert run.desired().result(command) is None


def test_a_canary_without_requests_waits_and_says_so(state_dir: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(state_dir, bundles["a"])
    command = run.submit("deploy", bundles["b"])
    for seconds in (1, 1, 10, 45, 3600):
        desired = run.step(seconds)
    assert (desired.phase, desired.result(command)) == ("canary", None)
    assert desired.note == "waiting for requests, at least 20: 0 requests answered"
    promotion = run.submit("promote")
    desired = run.step()
    results = [desired.result(submitted) for submitted in (command, promotion)]
    assert [result.state for result in results if result] == ["done", "done"]


def test_only_the_rows_of_the_last_experiment_are_kept(state_dir: StateDir, bundles: dict[str, Path]) -> None:
    run, folder = Run(state_dir, bundles["a"]), state_dir.folder.parent
    salts = []
    for name in "bc":
        salts.append(run.submit("deploy", bundles[name], keep=True))
        for seconds in (1, 1, 10):
            desired = run.step(seconds)
        assert desired.phase == "experiment"
        exposures = Exposures(folder)
        for user in range(50):
            exposures.note(salts[-1], f"u{user}", "v")
        exposures.flush()
        run.submit("rollback")
        run.step()
    assert stored_salts(folder) == {salts[1]: 50}
    publish_first(state_dir, version_of(bundles["a"]))  # its report can be asked for after a new start
    assert stored_salts(folder) == {salts[1]: 50}


def stored_salts(folder: Path) -> dict[str, int]:
    with closing(sqlite3.connect(folder / "served.sqlite")) as database:
        return dict(database.execute("SELECT salt, COUNT(*) FROM served GROUP BY salt").fetchall())


def test_a_damaged_file_of_exposures_does_not_keep_a_service_from_starting(
    state_dir: StateDir, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (state_dir.folder.parent / "served.sqlite").write_bytes(b"no database at all" * 100)
    publish_first(state_dir, version_of(bundles["a"]))
    assert "served.sqlite" in capsys.readouterr().err


def test_the_folder_of_an_older_version_changes_nothing(
    state_dir: StateDir, bundles: dict[str, Path]
) -> None:
    old = state_dir.folder.with_name("board")
    (old / "wishes").mkdir(parents=True)
    (old / "release.json").write_text('{"versions": [], "wishes": 1}')
    run = Run(state_dir, bundles["a"])
    command = run.submit("scale", replicas=2)
    assert run.step().result(command) is not None
    assert (old / "release.json").exists()
