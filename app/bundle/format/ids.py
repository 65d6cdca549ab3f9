"""From ids to rows and back, over files that all replicas of a machine share.

Beside the strings lie their 64-bit hashes, sorted, and the row of each, so that millions of
ids need no dictionary at start: a binary search gives the row, and its string is compared with the id.
Rows of ids in use are cached in a dictionary of bounded size. Candidates, a hundred a request, are
looked up together in a table of hashes: a dictionary reads memory three times an id, one read
after the other, which for 100 ids out of 100,000 takes longer than to parse the request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from app.bundle.format.layout import Array, compact, load_array
from app.errors import ArtifactError
from app.tables.strings import Strings

REMEMBERED = 1 << 18  # ids whose rows are cached
BUCKET = 8  # entries, 64 bytes


class Ids:
    """N ids by row; row 0 is "" and stands for every id that is not known.

    Args:
        strings: the ids by row.
        hashes: (N - 1,) uint64, ascending, of the rows from 1.
        order: (N - 1,) unsigned, the row of each hash.

    `token` is this object's alone, for a cache that must not keep its files mapped.
    """

    def __init__(self, strings: Strings, hashes: Array, order: Array) -> None:
        self.strings = strings
        self._hashes, self._order = hashes, order
        self._row_cache: dict[str, int] = {}
        self._count = len(strings)
        self._added_rows, self._added_ids = dict[str, int](), list[str]()
        self._added_hashes: Array = np.zeros(0, np.uint64)  # of the first added ids, in their order
        self.token = object()
        self._table = _HashTable(np.zeros(0, np.int64))

    @staticmethod
    def write(folder: Path, ids: Iterable[str]) -> None:
        """Write ids by row, "" first."""
        ids = list(ids)
        Strings.save(folder, ids)
        hashes = np.fromiter((id_hash(i) for i in ids[1:]), np.uint64, len(ids) - 1)
        order = np.argsort(hashes, kind="stable")
        np.save(folder / "hashes.npy", hashes[order])
        np.save(folder / "rows.npy", compact(order + 1))

    @classmethod
    def open(cls, folder: Path) -> Ids:
        """Map the files of a folder.

        Raises:
            ArtifactError: a file is missing, truncated or does not fit the others.
        """
        offsets, data, hashes, rows = (
            load_array(folder / f"{name}.npy") for name in ("offsets", "bytes", "hashes", "rows")
        )
        if not len(hashes) == len(rows) == len(offsets) - 2 or offsets[-1] != len(data):
            raise ArtifactError(
                f"{len(offsets) - 1} ids, {len(hashes)} hashes, {len(rows)} rows do not fit together",
                where=str(folder),
                remedy="export the bundle again",
            )
        return cls(Strings(offsets, data), hashes, rows)

    def __len__(self) -> int:
        return self._count + len(self._added_ids)

    def __getitem__(self, row: int) -> str:
        return self.strings[row] if row < self._count else self._added_ids[row - self._count]

    def add(self, name: str) -> int:
        """Give an unknown id the next row, in memory alone; returns it."""
        self._added_ids.append(name)
        row = self._added_rows[name] = len(self) - 1
        return row

    def build_table(self) -> None:
        """Read the first ids into a table of hashes, so that looking up many at once is quick."""
        names = islice(self.strings, 1, 1 + REMEMBERED)
        self._table = _HashTable(np.fromiter(map(hash, names), np.int64))

    def row(self, name: str) -> int:
        """Row of an id, 0 if it is unknown."""
        return self._row_cache.get(name) or self._search(name)

    def rows(self, names: Iterable[str]) -> list[int]:
        """Rows of ids, 0 for those that are unknown."""
        return [self.row(name) for name in names]

    def table_rows(self, names: Sequence[Hashable]) -> Array:
        """Rows (N,) int64 of ids, 0 for those that are unknown or not in the table.

        Ids differ for the table in some 60 bits of their hash, which has a key of this process: one
        look-up in 10**17 takes an unknown id for another.
        """
        return self._table.rows(np.fromiter(map(hash, names), np.int64, len(names)))

    def rows_of_hashes(self, hashes: Array) -> Array:
        """Rows (R,) of the ids that have one of `hashes` (N,), each once; see `id_hash`.

        Args:
            hashes: uint64, ascending and distinct.
        """
        positions = np.searchsorted(self._hashes, hashes)
        positions = positions[positions < len(self._hashes)]
        known = self._hashes[positions] == hashes[: len(positions)]
        rows: Array = self._order[positions[known]]
        if self._added_ids:
            added = np.flatnonzero(np.isin(self._hashes_added(), hashes))
            rows = np.concatenate([rows, self._count + added])
        return rows

    def rows_where(self, chosen: Callable[[Array], Array]) -> Array:
        """Rows (R,) of the ids whose hashes are at the positions `chosen` of an array of hashes."""
        rows: Array = self._order[chosen(self._hashes)]
        if self._added_ids:
            rows = np.concatenate([rows, self._count + chosen(self._hashes_added())])
        return rows

    def _hashes_added(self) -> Array:
        """(A,) of ids that were added, in the order of their rows."""
        done = self._added_hashes
        if len(done) < len(self._added_ids):
            more = [id_hash(name) for name in self._added_ids[len(done) :]]
            done = self._added_hashes = np.concatenate([done, np.array(more, np.uint64)])
        return done

    def _search(self, name: str) -> int:
        if row := self._added_rows.get(name, 0):
            return row
        key = np.uint64(id_hash(name))
        position = int(np.searchsorted(self._hashes, key))
        while position < len(self._hashes) and self._hashes[position] == key:
            row = int(self._order[position])
            if self.strings[row] == name:
                if len(self._row_cache) >= REMEMBERED:
                    self._row_cache = {}
                self._row_cache[name] = row
                return row
            position += 1
        return 0


class _HashTable:
    """Hashes to rows. A bucket is a line of the cache: one look at memory decides about an id.

    An entry holds the upper bits of a hash and, below, a row. The few whose bucket is full are
    left out.

    Args:
        hashes: (N,) int64 of rows 1 to N.
    """

    def __init__(self, hashes: Array) -> None:
        bits = max(1, (len(hashes) // 3).bit_length())
        self._last = (1 << bits) - 1
        self._low = np.uint64((1 << max(1, len(hashes).bit_length())) - 1)
        self._buckets = np.zeros((1 << bits, BUCKET), np.uint64)
        bucket = hashes & self._last  # bits that an entry does not hold
        order = np.argsort(bucket, kind="stable")
        first = np.searchsorted(bucket[order], bucket[order])
        slot = np.arange(len(order)) - first
        fits = order[slot < BUCKET]
        entries = (hashes[fits].view(np.uint64) & ~self._low) | (fits + 1).astype(np.uint64)
        self._buckets[bucket[fits], slot[slot < BUCKET]] = entries

    def rows(self, hashes: Array) -> Array:
        """Rows (N,) int64 of hashes (N,), 0 where there is none."""
        buckets = self._buckets.take(hashes & self._last, 0)
        alike = (buckets ^ hashes.view(np.uint64)[:, None]) <= self._low
        matches = np.flatnonzero(alike)
        if len(matches) == len(hashes):  # one in each bucket, most often
            rows: Array = buckets.ravel().take(matches) & self._low
        else:
            rows = np.bitwise_or.reduce((buckets & self._low) * alike, axis=1)
        return rows.view(np.int64)


def id_hash(name: str) -> int:
    """64 bits that stand for an id in every bundle; two of a million ids share them once in 40 million."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
