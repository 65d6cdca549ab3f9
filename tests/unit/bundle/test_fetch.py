"""Copies of bundles from storage: whole, verified, fetched once, within a limit; faults are explained."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.artifact import Artifact, open_artifact, publish
from app.bundle import fetch as fetching
from app.bundle.fetch import fetch, lock_of, shown
from app.errors import ArtifactError, MachineError
from app.recipe import Serve
from app.serving.bundle_cache import cache_folder, is_remote, local_copy, open_copy

LIMIT = 1 << 30


def bundle(folder: Path, size: int = 1000) -> str:
    """Write a bundle of one file in a subfolder; returns its URI."""
    with publish(folder, "bundle", {"of": folder.name}, {}) as draft:
        (draft.path / "rows").mkdir()
        (draft.path / "rows" / "item").write_bytes(os.urandom(size))
    return folder.as_uri()


def copies(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.startswith(".")]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_copy_is_whole_and_made_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = bundle(tmp_path / "a")
    first = fetch(uri, cache, LIMIT)
    assert open_artifact(first.path).digest == open_artifact(tmp_path / "a").digest
    monkeypatch.setattr(fetching, "_fill", lambda *_: pytest.fail("fetched again"))
    assert fetch(uri + "/", cache, LIMIT).path == first.path
    assert copies(cache) == [first.path]


@pytest.mark.parametrize("fault", ["cut short", "longer", "another byte", "missing"])
def test_a_damaged_bundle_leaves_nothing(tmp_path: Path, cache: Path, fault: str) -> None:
    uri, path = bundle(tmp_path / "a"), tmp_path / "a" / "rows" / "item"
    content = path.read_bytes()
    last = bytes([content[-1] ^ 1])
    changed = {"cut short": content[:-1], "longer": content * 100, "another byte": content[:-1] + last}
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[fault])
    with pytest.raises(ArtifactError, match="/a/rows/item"):
        fetch(uri, cache, LIMIT)
    assert [p.name for p in cache.iterdir()] == [".lock"]


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, cache: Path) -> None:
    uri = bundle(tmp_path / "a")
    copy = fetch(uri, cache, LIMIT).path
    (copy / "rows" / "item").write_bytes(b"x")
    assert open_artifact(fetch(uri, cache, LIMIT).path).path == copy


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, cache: Path) -> None:
    uri = bundle(tmp_path / "a")
    path = tmp_path / "a" / "rows" / "item"
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)  # storage that never answers
    command = [sys.executable, "-m", "app.bundle.fetch", uri, str(cache), str(LIMIT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (cache / ".draft" / "rows").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (cache / ".draft" / "manifest.json").exists()  # the fault happened
    assert copies(cache) == []
    path.unlink()
    path.write_bytes(content)
    assert open_artifact(fetch(uri, cache, LIMIT).path)
    assert not (cache / ".draft").exists()


def test_the_least_used_copies_go_but_none_in_use(tmp_path: Path, cache: Path) -> None:
    uris = [bundle(tmp_path / name, 1 << 20) for name in "abc"]
    limit = 5 << 19  # two and a half
    a, b = (fetch(uri, cache, limit) for uri in uris[:2])
    os.utime(a.path, (1, 1))
    with lock_of(a.path).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        c = fetch(uris[2], cache, limit)
        assert sorted(copies(cache)) == sorted([a.path, c.path])
        with lock_of(c.path).open("a") as other:
            fcntl.flock(other, fcntl.LOCK_SH)
            with pytest.raises(MachineError, match=r"copies in use 2\.0 MiB.*serve.cache_gb"):
                fetch(uris[1], cache, limit)
    os.utime(a.path, (1, 1))
    assert fetch(uris[1], cache, limit).path == b.path
    assert sorted(copies(cache)) == sorted([b.path, c.path])


def test_a_full_disk_is_told_of_before_anything_comes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = bundle(tmp_path / "a")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: Free())
    with pytest.raises(MachineError, match="disk is full"):
        fetch(uri, cache, LIMIT)


class Free:
    free = 10


def test_a_manifest_may_not_name_files_elsewhere(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, artifact = bundle(tmp_path / "a"), open_artifact(tmp_path / "a")
    for name in ("../outside", "/etc/outside", "rows/../../outside"):
        entry = dict(artifact.files["rows/item"])
        wrong = Artifact(**{**vars(artifact), "files": {name: entry}})
        monkeypatch.setattr(fetching, "open_artifact", lambda *_, wrong=wrong, **__: wrong)
        with pytest.raises(ArtifactError, match="do not trust it"):
            fetch(uri, cache, LIMIT)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "When getting information for bucket 'x': AWS Error NO_SUCH_BUCKET during HeadBucket",
            "no such bucket",
        ),
        ("When reading information: AWS Error ACCESS_DENIED during GetObject operation", "no rights"),
        ("AWS Error NETWORK_CONNECTION during ListObjects: curlCode: 6, Couldn't resolve host", "not answer"),
        ("something new", "something new"),
    ],
)
def test_what_storage_says_is_put_in_our_words(message: str, words: str) -> None:
    error = fetching._translated(OSError(message), "s3://key:secret@bucket/a?region=x")
    assert words in str(error)
    assert "secret" not in str(error)
    assert shown("s3://key:secret@bucket/a?region=x") == "s3://bucket/a"


def test_a_bundle_that_is_not_there(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ArtifactError, match="no whole bundle"):
        fetch((tmp_path / "nothing").as_uri(), cache, LIMIT)
    with pytest.raises(MachineError, match="bogus://x/y"):
        fetch("bogus://x/y", cache, LIMIT)


def test_serving_holds_a_copy_while_it_is_used(tmp_path: Path, cache: Path) -> None:
    settings = Serve(cache_dir=str(cache), cache_gb=1.5 * 2**-10)
    uris = [bundle(tmp_path / name, 1 << 20) for name in "ab"]
    with local_copy(uris[0], settings) as folder:
        assert open_artifact(folder).bytes == 1 << 20
        with pytest.raises(MachineError, match="in use"):
            open_copy(uris[1], settings)
    copy = open_copy(uris[1], settings)
    assert copies(cache) == [copy.path]
    user = Free()
    copy.keep_while(user)
    with pytest.raises(MachineError, match="in use"):
        open_copy(uris[0], settings)
    del user
    assert open_copy(uris[0], settings).path.is_dir()


def test_a_fetch_that_fails_raises_here_what_it_said(tmp_path: Path, cache: Path) -> None:
    uri = bundle(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="manifest is damaged") as refusal:
        open_copy(uri, Serve(cache_dir=str(cache)))
    assert refusal.value.where == uri


def test_a_fetch_that_dies_is_told_of(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = subprocess.CompletedProcess([], -6, "", "terminate called\n  what():  Failed to get token\n")
    monkeypatch.setattr("app.serving.bundle_cache.subprocess.run", lambda *_, **__: died)
    with pytest.raises(MachineError, match="Failed to get token"):
        open_copy("abfs://container@account/x", Serve(cache_dir=str(cache)))


def test_a_plain_folder_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_remote("/data/a:b") and is_remote("s3://bucket/a")
    with local_copy(str(tmp_path), Serve()) as folder:
        assert folder == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder(Serve()) == Path("/cache/rayrec/bundles")


def test_the_process_prints_one_json_line(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = bundle(tmp_path / "a")
    assert fetching.main([uri, str(cache), str(LIMIT)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert open_artifact(Path(printed["path"])).digest == open_artifact(tmp_path / "a").digest
    assert Path(printed["lock"]) == lock_of(Path(printed["path"]))
    assert fetching.main([uri + "x", str(cache), str(LIMIT)]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "ArtifactError"
