"""The SQLite store's own promises: it survives kill -9 and says what is wrong with its file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import MachineError
from app.events import Event, HistoryEvent
from app.stores.schema import FILE
from app.stores.sqlite_store import SqliteStore

WRITER = """
import sys
from pathlib import Path
from app.events import Event
from app.stores.sqlite_store import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
for count in range(100_000):
    store.append([Event("u", f"{count}-{part}", timestamp=count) for part in range(3)])
    print(count, flush=True)
"""


def test_no_acknowledged_event_is_lost_to_kill_9(tmp_path: Path) -> None:
    for _ in range(3):
        (tmp_path / FILE).unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(50):
            acknowledged = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = int((writer.stdout.read().splitlines() or [acknowledged])[-1])
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        stored = {event.item for event in _recent(tmp_path)}
        assert {f"{count}-{part}" for count in range(acknowledged + 1) for part in range(3)} <= stored
        assert len(stored) % 3 == 0  # a batch is stored whole or not at all


def _recent(folder: Path) -> list[HistoryEvent]:
    store = SqliteStore(folder)
    events: list[HistoryEvent] = list(store.recent("u", 1_000_000))
    store.close()
    return events


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.append([Event("u", "a", timestamp=1)])
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert len(store.recent("u", 10)) == 1
    other.close()
    store.close()


def test_nothing_is_stored_when_an_event_of_many_cannot_be(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    with pytest.raises(MachineError, match="feedback log"):
        store.append([Event("u", "a", timestamp=1), Event("u", None)])  # type: ignore[arg-type]
    assert store.recent("u", 10) == []
    store.append([Event("u", "b", timestamp=1)])
    assert len(store.recent("u", 10)) == 1
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"event,log\n" * 1000)
    with pytest.raises(MachineError, match=r"serve\.store"):
        SqliteStore(tmp_path)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="file"):
        SqliteStore(tmp_path / "file" / "store")
