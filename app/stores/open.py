"""The store of feedback at a location."""

from __future__ import annotations

from pathlib import Path

from app.errors import MachineError
from app.stores.base import Store
from app.stores.sqlite_store import SqliteStore


def open_store(location: str) -> Store:
    """The store at a folder (SQLite, for one machine) or at redis://… (for many).

    Raises:
        MachineError: it cannot be used.
    """
    if is_redis(location):
        try:
            from app.stores.redis_store import RedisStore
        except ModuleNotFoundError as error:
            raise MachineError(
                "the client of Redis is not installed",
                where="serve.store",
                remedy="pip install rayrec[redis]",
            ) from error
        return RedisStore(location)
    return SqliteStore(Path(location))


def is_redis(location: str) -> bool:
    """Whether a location is a Redis, and not a folder."""
    return location.startswith(("redis://", "rediss://"))
