"""From ids to rows and back, over files that all replicas of a machine share.

Beside the strings lie their 64-bit hashes, sorted, and the row of each, so that millions of
ids need no dictionary at start: an id is found by binary search and compared with the string.
Ids in use are remembered in a dictionary of bounded size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from app.bundle.layout import Array, compact, load_array
from app.errors import ArtifactError
from app.strings import Strings

REMEMBERED = 1 << 18


class Ids:
    """N ids by row; row 0 is "" and stands for every id that is not known.

    Args:
        strings: the ids by row.
        hashes: (N - 1,) uint64, ascending, of the rows from 1.
        order: (N - 1,) unsigned, the row of each hash.
    """

    def __init__(self, strings: Strings, hashes: Array, order: Array) -> None:
        self.strings = strings
        self._hashes, self._order = hashes, order
        self._known: dict[str, int] = {}

    @staticmethod
    def write(folder: Path, ids: Iterable[str]) -> None:
        """Write ids by row, "" first."""
        ids = list(ids)
        Strings.save(folder, ids)
        hashes = np.fromiter((_hash(i) for i in ids[1:]), np.uint64, len(ids) - 1)
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
        return len(self.strings)

    def __getitem__(self, row: int) -> str:
        return self.strings[row]

    def remember(self) -> None:
        """Read ids ahead, as many as are remembered, so that the first requests are quick."""
        self._known = {value: row for row, value in enumerate(islice(self.strings, REMEMBERED)) if row}

    def find(self, name: str) -> int:
        """Row of an id, 0 if it is unknown."""
        return self._known.get(name) or self._search(name)

    def find_all(self, names: Iterable[str]) -> list[int]:
        """Rows of ids."""
        names = list(names)
        rows = list(map(self._known.get, names))
        if None in rows:
            return [row or self._search(name) for row, name in zip(rows, names, strict=True)]
        return rows  # type: ignore[return-value]

    def _search(self, name: str) -> int:
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._order[place])
            if self.strings[row] == name:
                if len(self._known) >= REMEMBERED:
                    self._known = {}
                self._known[name] = row
                return row
            place += 1
        return 0


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
