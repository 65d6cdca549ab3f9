"""The state folder, and how services are found."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.artifact import open_artifact, publish
from app.errors import ArtifactError, MachineError, RecipeError
from app.ray import processes
from app.serving.rollout import discovery
from app.serving.rollout.state import Command, DesiredState, Service, Snapshot, Version
from app.serving.rollout.state_dir import GONE_S, StateDir


@pytest.fixture
def state_dir(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def test_what_is_written_is_read_and_a_change_shows(state_dir: StateDir) -> None:
    assert state_dir.desired_state() is None
    before = state_dir.fingerprint()
    desired = DesiredState([Version("v1", "/b", "d1", 1.0)])
    state_dir.publish(desired)
    assert state_dir.desired_state() == desired
    assert state_dir.fingerprint() != before


def test_commands_are_taken_once_in_order(state_dir: StateDir) -> None:
    submitted = [state_dir.submit(Command("scale", replicas=count)) for count in (1, 2, 3)]
    assert state_dir.withdraw(submitted[1])
    assert state_dir.waiting_commands() == 2
    assert state_dir.take_commands() == ([submitted[0], submitted[2]], [])
    assert state_dir.take_commands() == ([], [])
    assert not state_dir.withdraw(submitted[0])


def test_a_silent_replica_lives_as_long_as_its_process(state_dir: StateDir) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        host, mark = socket.gethostname(), processes.run_mark(process.pid)
        state_dir.report(Snapshot("stalled", 100.0, process.pid, 0, 1.0, {}, host=host, mark=mark))
        [snapshot] = state_dir.snapshots(10_000.0)
        assert snapshot.is_silent(10_000.0) and not snapshot.is_silent(105.0)
    finally:
        process.kill()
        process.wait()
    assert state_dir.snapshots(101.0) == []
    assert list((state_dir.folder / "replicas").iterdir()) == []


def test_a_silent_replica_of_another_machine_is_gone_after_a_longer_time(state_dir: StateDir) -> None:
    for name, moment in (("old", 100.0), ("new", 110.0)):
        state_dir.report(Snapshot(name, moment, os.getpid(), 0, 1.0, {}, host="elsewhere", mark="1-1"))
    assert [s.replica for s in state_dir.snapshots(100 + GONE_S)] == ["new", "old"]
    assert [s.replica for s in state_dir.snapshots(101 + GONE_S)] == ["new"]


def test_an_unreadable_report_does_not_hide_the_others(state_dir: StateDir) -> None:
    state_dir.report(Snapshot("good", 100.0, 1, 0, 1.0, {}))
    (state_dir.folder / "replicas" / "bad.json").write_text("{")
    assert [snapshot.replica for snapshot in state_dir.snapshots(100.0)] == ["good"]


def test_a_damaged_state_names_the_file(state_dir: StateDir) -> None:
    state_dir.publish(DesiredState([]))
    (state_dir.folder / "desired.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"desired\.json"):
        state_dir.desired_state()


def test_a_bundle_that_is_kept_outlives_its_folder(state_dir: StateDir, tmp_path: Path) -> None:
    with publish(tmp_path / "bundle", "bundle", {}, {}) as draft:
        (draft.path / "rows").write_bytes(bytes(100))
    kept = state_dir.keep_bundle(tmp_path / "bundle", "0123456789abcdef-further")
    assert (kept.name, open_artifact(kept).bytes) == ("0123456789abcdef", 100)
    for name in ("rows", "manifest.json"):  # written into where they are, as `cp -r other/. bundle/` does
        with (tmp_path / "bundle" / name).open("r+b") as file:
            file.write(b"!!!!")
    assert open_artifact(kept).bytes == 100
    state_dir.remove_other_bundles({str(kept)})
    assert kept.exists()
    state_dir.remove_other_bundles(set())
    assert not kept.exists()


def test_a_bundle_of_links_is_kept_as_files(state_dir: StateDir, tmp_path: Path) -> None:
    with publish(tmp_path / "bundle", "bundle", {}, {}) as draft:
        (draft.path / "rows").write_bytes(bytes(100))
    (tmp_path / "bundle" / "rows").rename(tmp_path / "elsewhere")
    (tmp_path / "bundle" / "rows").symlink_to(tmp_path / "elsewhere")
    kept = state_dir.keep_bundle(tmp_path / "bundle", "0123456789abcdef")
    (tmp_path / "elsewhere").unlink()
    assert not (kept / "rows").is_symlink() and open_artifact(kept).bytes == 100


def test_a_whole_copy_is_not_made_again_and_a_damaged_one_is(state_dir: StateDir, tmp_path: Path) -> None:
    with publish(tmp_path / "bundle", "bundle", {}, {}) as draft:
        (draft.path / "rows").write_bytes(bytes(100))
    digest = open_artifact(tmp_path / "bundle").digest
    kept = state_dir.keep_bundle(tmp_path / "bundle", digest)
    made = (kept / "rows").stat().st_ino
    assert state_dir.keep_bundle(tmp_path / "bundle", digest) == kept
    assert (kept / "rows").stat().st_ino == made
    (kept / "rows").write_bytes(bytes(3))
    assert open_artifact(state_dir.keep_bundle(tmp_path / "bundle", digest)).bytes == 100


def test_a_copy_that_is_not_what_the_manifest_says_is_refused(state_dir: StateDir, tmp_path: Path) -> None:
    with publish(tmp_path / "bundle", "bundle", {}, {}) as draft:
        (draft.path / "rows").write_bytes(bytes(100))
    (tmp_path / "bundle" / "rows").write_bytes(bytes(50))
    with pytest.raises(ArtifactError, match="rows"):
        state_dir.keep_bundle(tmp_path / "bundle", "0123456789abcdef")
    assert not (state_dir.folder / "bundles" / "0123456789abcdef").exists()


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
    state_dir = StateDir(tmp_path)
    parent = os.getppid()
    mark = processes.run_mark(parent)
    state_dir.announce(Service("http://127.0.0.1:8000", str(tmp_path), parent, mark, 2))
    with pytest.raises(MachineError, match="uses this store"):
        discovery.check_unused(state_dir)
    state_dir.announce(
        Service("http://127.0.0.1:8000", str(tmp_path), parent, "1-1", 2)
    )  # its driver is dead
    discovery.check_unused(state_dir)


def test_a_store_is_held_from_before_anything_is_written_there(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path / "store")
    with discovery.holding_store(state_dir):
        assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
        with (
            pytest.raises(MachineError, match="another service is starting"),
            discovery.holding_store(state_dir),
        ):
            pass
    with discovery.holding_store(state_dir):
        pass


def test_what_is_to_be_served_is_on_disk_before_it_is_named(
    state_dir: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr("app.files.sync", lambda path: synced.append(path.name))
    state_dir.publish(DesiredState([Version("a", "/bundles/a", "d")]))
    assert len(synced) == 2 and synced[0].startswith(".desired.json.") and synced[1] == "state"
