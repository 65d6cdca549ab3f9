"""Reading a SQLite log back: nothing in its folder changes, and what is wrong with it is said."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import DataError
from app.events import Event
from app.stores import sqlite_log
from app.stores.read import StoredLog
from app.stores.schema import FILE
from app.stores.sqlite_store import SqliteStore

EVENTS = [Event("u", f"i{n}", "view", float(n), None, "v1") for n in range(5)]
KILLED = """
import os, signal, sys
from pathlib import Path
from app.events import Event
from app.stores.sqlite_store import SqliteStore
SqliteStore(Path(sys.argv[1])).append([Event("u", f"i{n}", "view", float(n), None, "v1") for n in range(5)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def stored(folder: Path | str) -> list[Event]:
    with StoredLog.open(str(folder)) as log:
        return [event for chunk in log.events(2) for event in chunk]


def content(folder: Path) -> dict[str, bytes]:
    """Of all files but the index in shared memory, in which SQLite notes who reads."""
    return {file.name: b"" if "shm" in file.name else file.read_bytes() for file in folder.iterdir()}


def written(folder: Path) -> Path:
    store = SqliteStore(folder)
    store.append(EVENTS)
    store.close()
    return folder


@pytest.mark.parametrize("prefix", ["", "store:"])
def test_a_log_of_a_service_that_has_ended(tmp_path: Path, prefix: str) -> None:
    folder = written(tmp_path / "bundle.store")
    before = content(folder)
    assert list(before) == [FILE]
    assert stored(f"{prefix}{folder}") == EVENTS
    assert content(folder) == before


def test_a_log_that_a_service_writes(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.append(EVENTS)
    before = content(tmp_path)
    assert len(before) == 3
    assert stored(tmp_path) == EVENTS
    assert content(tmp_path) == before
    store.close()


def test_a_log_of_a_service_that_was_killed_and_a_copy_of_parts_of_it(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    assert subprocess.run([sys.executable, "-c", KILLED, killed]).returncode == -signal.SIGKILL
    copy = Path(shutil.copytree(killed, tmp_path / "copy"))
    (copy / f"{FILE}-shm").unlink()
    assert (copy / f"{FILE}-wal").stat().st_size > 0  # without it the events were lost
    for folder in (killed, copy):
        before = content(folder)
        assert stored(folder) == EVENTS
        assert content(folder) == before


def test_a_service_that_starts_while_an_idle_log_is_read_is_noticed(tmp_path: Path) -> None:
    written(tmp_path)
    with StoredLog.open(str(tmp_path)) as log:
        chunks = log.events(2)
        next(chunks)
        written(tmp_path)  # and ends: what it wrote goes into the file
        with pytest.raises(DataError, match="began to write"):
            list(chunks)
    assert stored(tmp_path) == EVENTS * 2


def old_log(folder: Path, variant: bool) -> None:
    """As it was before tables had a version."""
    connection = sqlite3.connect(folder / FILE)
    connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, user TEXT, item TEXT, event TEXT,"
                       f" time INTEGER, value REAL{', variant TEXT' if variant else ''})")  # fmt: skip
    connection.execute("CREATE INDEX events_of_user ON events (user, time, id)")
    connection.execute("INSERT INTO events (user, item, event, time) VALUES ('u', 'a', 'view', 5000000)")
    if variant:
        connection.execute("UPDATE events SET variant = ''")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("variant", [False, True])
def test_a_log_of_an_older_version_is_read_as_it_is_and_migrated_by_a_service(
    tmp_path: Path, variant: bool
) -> None:
    old_log(tmp_path, variant)
    before = content(tmp_path)
    assert stored(tmp_path) == [Event("u", "a", "view", 5.0)]
    with StoredLog.open(str(tmp_path)) as log:
        assert list(log.items()) == []
        assert len(log.digest()) == 64
    assert content(tmp_path) == before
    store = SqliteStore(tmp_path)
    assert store._reader.execute("PRAGMA user_version").fetchone() == (1,)
    assert list(store.seen("u")) == [["a"]]
    store.append([Event("u", "b", "view", 6.0, None, "v2")])
    store.close()
    assert stored(tmp_path) == [Event("u", "a", "view", 5.0), Event("u", "b", "view", 6.0, None, "v2")]


def test_what_is_no_log_is_refused_with_its_place_and_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no feedback log.*name a folder"):
        StoredLog.open(f"store:{tmp_path / 'nowhere'}")
    assert not (tmp_path / "nowhere").exists()
    file = tmp_path / FILE
    for damage in (b"user,item\n" * 1000, b"", b"SQLite format 3\0" + b"x" * 5000):
        file.write_bytes(damage)
        with pytest.raises(DataError, match=FILE):
            StoredLog.open(str(tmp_path))
        assert file.read_bytes() == damage
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    with pytest.raises(DataError, match="not a feedback log"):
        StoredLog.open(str(tmp_path))


def test_a_damaged_page_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.append([Event("u", "i" * 200, "view", float(n)) for n in range(500)])
    store.close()
    with (tmp_path / FILE).open("r+b") as file:
        for page in range(3, os.path.getsize(tmp_path / FILE) // 4096):  # noqa: PTH202
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with pytest.raises(DataError, match="cannot be read"):
        stored(tmp_path)


def test_a_copy_that_was_read_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "live")
    store.append(EVENTS)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (FILE, f"{FILE}-wal"):
        shutil.copy(tmp_path / "live" / name, copy)
    store.close()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(sqlite_log.tempfile, "tempdir", str(temporary))
    with StoredLog.open(str(copy)) as log:
        assert len(list(temporary.iterdir())) == 1
        assert sum(len(chunk) for chunk in log.events()) == 5
    assert list(temporary.iterdir()) == []
