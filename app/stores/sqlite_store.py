"""The event log in SQLite: WAL mode, one file that all replicas of a machine share.

`append` returns once the events are on disk, so an event that was acknowledged survives the
death of the process and of the machine.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from sys import intern  # the same ids and types come again and again, and are kept

from app.errors import MachineError
from app.events import Event, HistoryEvent, microseconds
from app.files import private_folder
from app.stores.base import PAGE, Change, newer
from app.stores.schema import BUSY_S, FILE, VERSION, migrate, version_of

CACHE_KIB = 256  # of pages in each connection, instead of 2 MiB that fill as the log grows
REMOVAL_ROWS = 2_000  # rows looked at in one transaction of a removal, which writers wait for


class SqliteStore:
    """A Store in one SQLite file.

    Args:
        folder: of the file; created where it is absent.

    Raises:
        MachineError: the folder is not writable, the file is not a database, or of a newer version.
    """

    local = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            private_folder(folder)
        except OSError as error:
            raise self._translate(error) from error
        # Readers and writers of WAL do not block each other, so each has a connection.
        self._writer, self._reader = self._connect(), self._connect()
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._version = -1  # of the database, as the reader last saw it
        self._items_seen = (-2, -2)  # the version when it last looked for items, and the mark then

    def append(self, events: Sequence[Event]) -> None:
        """Store events, all or none; see Store.append."""
        now = round(time.time() * 1e6)
        rows = [
            (
                e.user,
                e.item,
                e.event,
                now if e.timestamp is None else microseconds(e.timestamp),
                e.value,
                e.variant,
            )
            for e in events
        ]
        with self._write() as connection:
            connection.executemany(
                "INSERT INTO events (user, item, event, time, value, variant) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        """The user's last events by time; see Store.recent."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT item, event, time FROM events WHERE user = ? ORDER BY time DESC, id DESC LIMIT ?",
                (user, limit),
            ).fetchall()
        return [HistoryEvent(intern(item), intern(event), when / 1e6) for item, event, when in reversed(rows)]

    def seen(self, user: str) -> Iterator[list[str]]:
        """Pages of the items that a user met; see Store.seen."""
        last = (1 << 62, 1 << 62)  # time and id of the last event read; later than any
        while True:
            with self._read() as connection:
                rows = connection.execute(
                    "SELECT item, time, id FROM events WHERE user = ? AND (time, id) < (?, ?) "
                    f"ORDER BY time DESC, id DESC LIMIT {PAGE}",
                    (user, *last),
                ).fetchall()
            if rows:
                yield [row[0] for row in rows]
                last = rows[-1][1:]
            if len(rows) < PAGE:
                return

    def unchanged(self) -> bool:
        """Whether nothing was stored since `changes` was last called; see Store.unchanged."""
        try:  # before every batch, so without the detour of `_read`
            with self._reading:
                version: int = self._reader.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            raise self._translate(error) from error
        return version == self._version

    def changes(self, mark: int | None) -> tuple[int, list[Change] | None]:
        """Users and items of events since a mark; see Store.changes."""
        with self._read() as connection:
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version and mark is not None:
                return mark, []
            self._version = version
            if mark is not None:
                rows = connection.execute(
                    f"SELECT id, user, item FROM events WHERE id > ? ORDER BY id LIMIT {PAGE + 1}", (mark,)
                ).fetchall()
                if len(rows) <= PAGE:
                    return (rows[-1][0] if rows else mark), [row[1:] for row in rows]
            newest: int = connection.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0]
            return newest, None

    def put_item(self, item: str, content: bytes) -> None:
        """Store the content of an item; see Store.put_item."""
        with self._write() as connection:
            connection.execute(
                "INSERT INTO items SELECT ?, ?, 1 + COALESCE(MAX(place), 0) FROM items WHERE true "
                "ON CONFLICT (id) DO UPDATE SET content = excluded.content, place = excluded.place",
                (item, content),
            )

    def items(self, mark: int | None) -> tuple[int, list[tuple[str, bytes]]]:
        """The items put since a mark; see Store.items."""
        if mark is not None and (self._version, mark) == self._items_seen:
            return mark, []
        with self._read() as connection:
            version = self._version
            rows = connection.execute(
                "SELECT place, id, content FROM items WHERE place > ? ORDER BY place", (mark or 0,)
            ).fetchall()
        last: int = rows[-1][0] if rows else mark or 0
        self._items_seen = (version, last)
        return last, [(item, content) for _, item, content in rows]

    def remove_before(self, time: int) -> Iterator[int]:
        """Remove old events in portions; see Store.remove_before."""
        with self._read() as connection:
            # The newest row stays, because SQLite gives its id to the next row where it goes.
            start, end = connection.execute("SELECT MIN(id), MAX(id) FROM events").fetchone()
        while start is not None and start < end:
            stop = min(start + REMOVAL_ROWS, end)
            with self._write() as connection:
                removed = connection.execute(
                    "DELETE FROM events WHERE id >= ? AND id < ? AND time < ?", (start, stop, time)
                ).rowcount
                if removed:
                    connection.execute(
                        "INSERT INTO meta VALUES ('removed', ?) "
                        "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                        (removed,),
                    )
            yield removed
            start = stop

    def claim_removal(self, seconds: float) -> bool:
        """Whether the caller is to remove events now; see Store.claim_removal."""
        now = time.time()
        with self._write() as connection:
            claimed = connection.execute(
                "INSERT INTO meta VALUES ('claimed', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value "
                "WHERE value NOT BETWEEN ? AND excluded.value",  # later than now: the clock was set back
                (now, now - seconds),
            )
            return claimed.rowcount > 0

    def close(self) -> None:
        """Close the connections to the store."""
        self._reader.close()
        self._writer.close()

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._reading:
                yield self._reader
        except sqlite3.Error as error:
            raise self._translate(error) from error

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, undone where the block raises."""
        try:
            with self._writing, self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _connect(self) -> sqlite3.Connection:
        connection = None
        try:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            if (version := version_of(connection)) > VERSION:
                raise newer(version, str(self.path), VERSION)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a commit waits for the disk
            connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")  # beside the system's own, of the file
            migrate(connection, str(self.path))
        except (sqlite3.Error, MachineError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, MachineError):
                raise
            raise self._translate(error) from error
        return connection

    def _translate(self, error: sqlite3.Error | OSError) -> MachineError:
        return MachineError(
            f"the feedback log cannot be used ({error})",
            where=str(self.path),
            remedy="free some space, or point serve.store at a folder you may write to",
        )
