"""The feedback log of a service's folder, read as it is at one moment and left as it is."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import DataError
from app.events import Event
from app.stores.base import newer
from app.stores.schema import BUSY_S, FILE, VERSION, version_of

CHECK = "name a folder that a service keeps as BUNDLE.store, or restore the file from a copy"


class SqliteLog:
    """Reads one SQLite file in one read transaction; see app.stores.read.

    Args:
        folder: with the file.

    Raises:
        DataError: there is no such file, or it is no feedback log.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._unchanged: tuple[int, int] | None = None  # of a file that SQLite does not lock while we read
        if not self.path.is_file():
            raise DataError(
                f"there is no feedback log ({FILE}) in this folder", where=str(folder), remedy=CHECK
            )
        with self._errors():
            self._connection = sqlite3.connect(self._uri(), uri=True, timeout=BUSY_S, isolation_level=None)
            try:
                self._begin()
            except BaseException:
                self.close()
                raise

    def events(self, chunk: int) -> Iterator[list[Event]]:
        """All events in the order of storing; see StoredLog.events."""
        variant = "variant" if "variant" in self._columns else "''"
        fields = f"id, user, item, event, time, value, {variant}"
        query = f"SELECT {fields} FROM events WHERE id > ? ORDER BY id LIMIT ?"
        last = -(1 << 62)
        while True:
            with self._errors():
                rows = self._connection.execute(query, (last, chunk)).fetchall()
                self._check_unchanged()
            if rows:
                yield [
                    Event(user, item, event, time / 1e6, value, variant)
                    for _, user, item, event, time, value, variant in rows
                ]
                last = rows[-1][0]
            if len(rows) < chunk:
                return

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Ids and contents of items, in the order of arrival."""
        if "items" not in self._tables:
            return
        query = "SELECT place, id, content FROM items WHERE place > ? ORDER BY place LIMIT 1000"
        last = 0
        while True:
            with self._errors():
                rows = self._connection.execute(query, (last,)).fetchall()
                self._check_unchanged()
            for last, item, content in rows:  # noqa: B007
                yield item, content
            if not rows:
                return

    def digest(self) -> str:
        """A text that differs once the content does; see StoredLog.digest."""
        queries = [
            "SELECT * FROM events ORDER BY id LIMIT 1",
            "SELECT * FROM events ORDER BY id DESC LIMIT 1",
        ]
        if "items" in self._tables:
            queries.append("SELECT MAX(place), COUNT(*) FROM items")
        if "meta" in self._tables:
            queries.append("SELECT value FROM meta WHERE name = 'removed'")
        with self._errors():
            content = [self._connection.execute(query).fetchone() for query in queries]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def close(self) -> None:
        """Close the connection to the log."""
        self._connection.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _begin(self) -> None:
        """Fix what is read from now on, and refuse what is no feedback log."""
        self._connection.execute("BEGIN")
        if (version := version_of(self._connection)) > VERSION:
            error = newer(version, str(self.path), VERSION)
            raise DataError(error.what, where=error.where, remedy=error.remedy)
        tables = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        self._tables = {row[0] for row in tables}
        self._columns = {row[1] for row in self._connection.execute("PRAGMA table_info(events)")}
        missing = {"id", "user", "item", "event", "time", "value"} - self._columns
        if missing:
            raise DataError("an SQLite file, but not a feedback log", where=str(self.path), remedy=CHECK)

    def _uri(self) -> str:
        """How to open the file so that nothing is changed in its folder.

        While a service writes, and after it was killed, the file has two companions: the log of what
        is not in it yet (-wal) and its index in shared memory (-shm), which SQLite creates where it is
        absent. With both of them, or neither, it creates nothing; else a copy is read.
        """
        path = self.path.resolve()
        log, index = Path(f"{path}-wal"), Path(f"{path}-shm")
        if not log.exists():
            self._unchanged = _state(path)
            return path.as_uri() + "?mode=ro&immutable=1"
        if not index.exists():
            self._temporary = tempfile.TemporaryDirectory(prefix="rayrec-log-")
            for file in (path, log):
                shutil.copy(file, self._temporary.name)
            path = Path(self._temporary.name) / path.name
        return path.as_uri() + "?mode=ro"

    def _check_unchanged(self) -> None:
        if self._unchanged is not None and _state(self.path) != self._unchanged:
            raise DataError(
                "a service began to write to the feedback log while it was read",
                where=str(self.path),
                remedy="start again: it is read safely from now on",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise DataError(
                f"the feedback log cannot be read ({error})", where=str(self.path), remedy=CHECK
            ) from error


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns
