"""The board, the conductor over it, and where services are found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from app.errors import ArtifactError, MachineError, RecipeError
from app.ray import processes
from app.recipe import Serve
from app.serving.rollout import admin, controller, discovery
from app.serving.rollout.controller import RolloutController, begin, version_of
from app.serving.rollout.state import Command, DesiredState, Service, Snapshot, Version, VersionState
from app.serving.rollout.state_dir import FRESH_S, StateDir
from app.serving.versions.stats import VersionStats
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("board")
    dataset = tiny_dataset(folder / "dataset", users=20, items=20, events=300)
    for seed, name in enumerate("abc"):
        bundle_of(random_model("bilinear", dataset, seed), dataset, folder / name)
    return {name: folder / name for name in "abc"}


@pytest.fixture
def board(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


class Run:
    """A service of one replica, without Ray: the replica does at once what the board says."""

    def __init__(self, board: StateDir, bundle: Path, **serve: Any) -> None:
        self.board, self.now = board, 1000.0
        self.controller = RolloutController(board, Serve(**serve), begin(board, version_of(bundle)))
        self.tallies: dict[str, VersionStats] = {}

    def wish(self, kind: Any, bundle: Path | None = None, **options: Any) -> str:
        return self.board.wish(Command(kind, str(bundle or ""), **options)).id

    def step(self, seconds: float = 1.0, state: Any = "ready") -> DesiredState:
        self.now += seconds
        versions = {v.digest: VersionState(state, "why" if state == "refused" else "") for v in self.named()}
        versions[self.named()[0].digest].state = "ready"
        self.board.report(Snapshot("r1", self.now, os.getpid(), 0, 1.0, versions))
        self.controller.step(self.now)
        found = self.board.release()
        assert found is not None
        return found

    def named(self) -> list[Version]:
        release = self.board.release()
        assert release is not None
        return release.versions


def shares(release: DesiredState) -> list[tuple[str, float]]:
    return [(Path(one.bundle).name, round(one.share, 3)) for one in release.versions]


def test_what_is_written_is_read_and_a_change_shows(board: StateDir) -> None:
    assert board.release() is None
    before = board.changed()
    release = DesiredState([Version("v1", "/b", "d1", 1.0)])
    board.publish(release)
    assert board.release() == release
    assert board.changed() != before


def test_wishes_are_taken_once_in_order(board: StateDir) -> None:
    made = [board.wish(Command("scale", replicas=n)) for n in (1, 2, 3)]
    assert board.take_wishes() == made
    assert board.take_wishes() == []


def test_a_replica_that_is_silent_is_dropped(board: StateDir) -> None:
    for name, time in (("old", 100.0), ("new", 100.0 + FRESH_S)):
        board.report(Snapshot(name, time, 1, 0, 1.0, {}))
    assert [one.replica for one in board.snapshots(101 + FRESH_S)] == ["new"]
    board.snapshots(100 + 6 * FRESH_S)
    assert list((board.folder / "replicas").iterdir()) == []


def test_a_damaged_board_names_the_file(board: StateDir) -> None:
    board.publish(DesiredState([]))
    (board.folder / "release.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"release\.json"):
        board.release()


def test_a_version_that_does_not_fit_into_memory_is_refused_before_it_is_loaded(
    board: StateDir, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "free_bytes", lambda: 1 << 20)
    run = Run(board, bundles["a"])
    wish = run.wish("deploy", bundles["b"])
    release = run.step()
    outcome = release.outcome(wish)
    assert outcome is not None and outcome.state == "refused"
    assert "1 MiB are free" in outcome.reason
    assert release.phase == "steady" and len(release.versions) == 1


def test_a_version_may_not_have_the_name_of_a_further_model(
    board: StateDir, bundles: dict[str, Path]
) -> None:
    run = Run(board, bundles["a"], models={"tiny": "/data/other"})
    wish = run.wish("deploy", bundles["b"])
    outcome = run.step().outcome(wish)
    assert outcome is not None and outcome.state == "refused" and "'tiny'" in outcome.reason


def test_a_version_is_deployed_from_an_address(
    board: StateDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = Run(board, bundles["a"], cache_dir=str(tmp_path / "cache"))
    board.wish(Command("deploy", bundles["b"].as_uri()))
    release = run.step()
    assert [one.digest for one in release.versions] == [version_of(bundles[name]).digest for name in "ab"]
    assert all(Path(one.bundle).parent == board.folder / "bundles" for one in release.versions)
    wish = run.wish("rollback")
    board.wish(Command("deploy", (tmp_path / "nothing").as_uri()))
    refusal = run.step().outcomes[-1]
    assert run.step().outcome(wish) is not None
    assert "no whole bundle" in refusal.reason


def test_a_bundle_on_the_board_outlives_its_folder(
    board: StateDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    version = version_of(bundles["a"])
    kept = board.keep(bundles["a"], version.digest)
    assert version_of(kept).digest == version.digest
    assert (kept / "manifest.json").samefile(bundles["a"] / "manifest.json")  # no second copy
    board.forget({str(kept)})
    assert kept.exists()
    board.forget(set())
    assert not kept.exists()


def test_a_deployment_passes_its_phases_and_is_promoted(board: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(board, bundles["a"])
    a, b = (version_of(bundles[name]).digest[:16] for name in "ab")
    wish = run.wish("deploy", bundles["b"], percent=20)
    assert (run.step(state="loading").phase, shares(run.step(state="loading"))) == (
        "loading",
        [(a, 1.0), (b, 0.0)],
    )
    assert run.step().phase == "shadow"
    release = run.step(10)
    assert (release.phase, shares(release)) == ("canary", [(a, 0.8), (b, 0.2)])
    assert release.salt == wish
    release = run.step(45)
    assert (release.phase, shares(release)) == ("steady", [(b, 1.0)])
    assert release.previous is not None and release.previous.digest[:16] == a
    outcome = release.outcome(wish)
    assert outcome is not None and outcome.state == "done"
    back = run.wish("rollback")
    release = run.step()
    assert shares(release) == [(a, 1.0)]
    assert release.outcome(back) is not None
    again = run.wish("rollback")  # and forth
    assert (shares(run.step()), bool(run.board.release().outcome(again))) == ([(b, 1.0)], True)  # type: ignore[union-attr]


def test_a_version_that_a_replica_refuses_leaves_no_trace(board: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(board, bundles["a"])
    wish = run.wish("deploy", bundles["b"])
    run.step(state="loading")
    release = run.step(state="refused")
    assert [one.digest for one in release.versions] == [version_of(bundles["a"]).digest]
    outcome = release.outcome(wish)
    assert outcome is not None and (outcome.state, outcome.reason) == ("rolled back", "why")


def test_rollback_ends_a_trial_and_keeps_the_version_before(
    board: StateDir, bundles: dict[str, Path]
) -> None:
    run = Run(board, bundles["a"])
    run.wish("deploy", bundles["b"], now=True)
    run.step()
    assert shares(run.step())[0][1] == 1.0
    third = run.wish("deploy", bundles["c"])
    run.step()
    run.wish("rollback")
    release = run.step()
    outcome = release.outcome(third)
    assert outcome is not None and outcome.state == "rolled back"
    assert release.main.digest == version_of(bundles["b"]).digest
    assert release.previous is not None and release.previous.digest == version_of(bundles["a"]).digest
    assert Path(release.previous.bundle).exists()


def test_an_experiment_keeps_both_until_one_is_chosen(board: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(board, bundles["a"])
    wish = run.wish("deploy", bundles["b"], percent=50, keep=True)
    run.step()
    run.step()
    release = run.step(10)
    assert (release.phase, [one.share for one in release.versions]) == ("experiment", [0.5, 0.5])
    assert release.outcome(wish) is not None
    assert release.experiment is not None and len(release.experiment.labels) == 2
    run.wish("promote")
    release = run.step()
    assert (release.phase, release.main.digest) == ("steady", version_of(bundles["b"]).digest)
    assert release.experiment is not None  # its report can be read afterwards


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
    board: StateDir, bundles: dict[str, Path], kind: str, options: dict[str, Any], text: str
) -> None:
    run = Run(board, bundles["a"])
    name = options.pop("name", None)
    wish = run.wish(kind, bundles["a"].with_name(name) if name else None, **options)
    outcome = run.step().outcome(wish)
    assert outcome is not None and outcome.state == "refused"
    assert text in outcome.reason


def test_one_deployment_at_a_time(board: StateDir, bundles: dict[str, Path]) -> None:
    run = Run(board, bundles["a"])
    run.wish("deploy", bundles["b"])
    second = run.wish("deploy", bundles["c"])
    outcome = run.step().outcome(second)
    assert outcome is not None and "on trial" in outcome.reason


def test_a_start_serves_the_bundle_named_but_after_a_crash_what_was_deployed(
    board: StateDir, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (version_of(bundles[name]) for name in "ab")
    run = Run(board, bundles["a"])
    run.wish("deploy", bundles["b"], now=True)
    run.step()
    run.step()
    assert begin(board, a).main.digest == b.digest  # the driver was killed
    assert "crash" in capsys.readouterr().err
    run.controller.end()
    assert begin(board, a).main.digest == a.digest  # it was stopped, and a person named a
    assert b.label in capsys.readouterr().err
    assert begin(board, version_of(bundles["c"])).main.digest == version_of(bundles["c"]).digest


def service(store: Path, port: int = 8000) -> Service:
    pid = os.getpid()
    return Service(f"http://127.0.0.1:{port}", str(store), pid, processes.run_mark(pid), 2)


def test_a_service_is_found_by_store_port_or_because_it_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(RecipeError, match="no service runs"):
        discovery.find()
    here = service(tmp_path / "store")
    with discovery.announced(here):
        assert discovery.find() == discovery.find(here.store) == discovery.find(port=8000) == here
        with pytest.raises(RecipeError, match="8001"):
            discovery.find(port=8001)
    with pytest.raises(RecipeError, match="no service runs"):
        discovery.find(here.store)


def test_a_store_has_one_service(tmp_path: Path) -> None:
    board = StateDir(tmp_path)
    parent = os.getppid()
    mark = processes.run_mark(parent)
    board.announce(Service("http://127.0.0.1:8000", str(tmp_path), parent, mark, 2))
    with pytest.raises(MachineError, match="uses this store"):
        discovery.check_free(board)
    board.announce(Service("http://127.0.0.1:8000", str(tmp_path), parent, "1-1", 2))  # it is dead
    discovery.check_free(board)


def test_limits_of_one_deployment() -> None:
    assert admin.limits(["serve.rollout.min_agreement=-1"]) == {"min_agreement": -1.0}
    with pytest.raises(RecipeError, match=r"serve\.port"):
        admin.limits(["serve.port=1"])
    with pytest.raises(RecipeError, match="min_agreement"):
        admin.limits(["serve.rollout.min_agreement=7"])
