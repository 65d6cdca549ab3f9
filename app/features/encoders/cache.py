"""Vectors that a network made, kept by what they were made of: it runs once for each content."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from app.features.base import Array

BLOCK = 1024  # vectors that are looked up and written at a time
MOST = 1 << 30  # bytes of a store: beyond it the oldest vectors go


def folder() -> Path:
    """The folder of the stores: $XDG_CACHE_HOME/rayrec, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayrec"


def cached(
    name: str, digests: Sequence[bytes], make: Callable[[list[int]], Array], path: Path | None = None
) -> Iterator[Array]:
    """A vector (width,) float32 for each digest, in order, BLOCK at a time.

    Args:
        name: of the network and its version, the name of the store.
        digests: of the contents.
        make: positions of contents -> (count, width), for those that the store does not have.
        path: of the folder of stores; None: `folder()`.
    """
    target = path or folder()
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    with closing(sqlite3.connect(target / f"{name}.sqlite", timeout=60)) as store:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        for start in range(0, len(digests), BLOCK):
            positions = range(start, min(start + BLOCK, len(digests)))
            yield from _block(store, digests, positions, make)
        _trim(store)


def _block(
    store: sqlite3.Connection, digests: Sequence[bytes], positions: range, make: Callable[[list[int]], Array]
) -> list[Array]:
    query = "SELECT vector FROM vectors WHERE digest = ?"
    rows = {position: store.execute(query, (digests[position],)).fetchone() for position in positions}
    vectors = {position: np.frombuffer(row[0], np.float32) for position, row in rows.items() if row}
    if absent := [position for position in positions if position not in vectors]:
        new = make(absent).astype(np.float32)
        vectors |= dict(zip(absent, new, strict=True))
        with store:  # one transaction
            store.executemany(
                "INSERT OR IGNORE INTO vectors VALUES (?, ?)",
                [(digests[position], vectors[position].tobytes()) for position in absent],
            )
    return [vectors[position] for position in positions]


def _trim(store: sqlite3.Connection) -> None:
    count, width = store.execute("SELECT count(*), max(length(vector)) FROM vectors").fetchone()
    if count and count * width > MOST:
        with store:
            store.execute(
                "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors ORDER BY rowid LIMIT ?)",
                (count - MOST // width,),
            )
