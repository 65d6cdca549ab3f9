"""The tables of the feedback log in SQLite, their version, and what brings an older file up to it."""

from __future__ import annotations

import sqlite3

from app.stores.base import newer

FILE = "feedback.sqlite"
VERSION = 1  # of the tables, in the file's own header (PRAGMA user_version); 0: before there were versions
BUSY_S = 5.0  # that a connection waits for another one's lock
_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS events (
        id INTEGER PRIMARY KEY,  -- in the order of storing
        user TEXT NOT NULL,
        item TEXT NOT NULL,
        event TEXT NOT NULL,
        time INTEGER NOT NULL,  -- microseconds since the epoch
        value REAL,
        variant TEXT NOT NULL DEFAULT ''  -- the version of the model that the user met
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS items (
        id TEXT PRIMARY KEY,
        content BLOB NOT NULL,
        place INTEGER NOT NULL  -- in the order of arrival
    )
    """,
    "CREATE INDEX IF NOT EXISTS items_by_place ON items (place)",
    # Holds all that a history or a user's seen items need, so that neither reads the rows themselves.
    "CREATE INDEX IF NOT EXISTS events_by_user ON events (user, time, id, item, event)",
    "DROP INDEX IF EXISTS events_of_user",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID",
)


def version_of(connection: sqlite3.Connection) -> int:
    """The version of the tables in a file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables, or bring those of an older version up to this one, all in one transaction.

    Args:
        connection: in autocommit mode.
        path: named by errors.

    Raises:
        MachineError: a newer version wrote the file; nothing was changed.
    """
    if version_of(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")  # one process migrates, the others wait and find it done
    try:
        if (version := version_of(connection)) > VERSION:
            raise newer(version, path, VERSION)
        for statement in _TABLES[:2]:
            connection.execute(statement)
        columns = {row[1] for row in connection.execute("PRAGMA table_info(events)")}
        if "variant" not in columns:  # files of before there were variants
            connection.execute("ALTER TABLE events ADD COLUMN variant TEXT NOT NULL DEFAULT ''")
        for statement in _TABLES[2:]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
