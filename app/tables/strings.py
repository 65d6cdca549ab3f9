"""A column of ids on disk: offsets and UTF-8 bytes, memory-mapped, numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt


class Strings:
    """Read-only sequence of N strings in two arrays.

    Args:
        offsets: (N + 1,) int64, where each string starts in `data`.
        data: (bytes,) uint8, the strings in UTF-8, one after another.
    """

    def __init__(self, offsets: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]) -> None:
        self.offsets, self.data = offsets, data

    @classmethod
    def load(cls, folder: Path) -> Strings:
        """Memory-map `offsets.npy` and `bytes.npy` of a folder."""
        return cls(
            np.load(folder / "offsets.npy", mmap_mode="r"), np.load(folder / "bytes.npy", mmap_mode="r")
        )

    @staticmethod
    def save(folder: Path, values: Iterable[str]) -> None:
        """Write strings as `offsets.npy` and `bytes.npy`."""
        Strings.of(values).write(folder)

    def write(self, folder: Path) -> None:
        """Write the strings as `save` does."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "offsets.npy", self.offsets)
        np.save(folder / "bytes.npy", self.data)

    @classmethod
    def of(cls, values: Iterable[str]) -> Strings:
        """The values as a sequence in memory."""
        encoded = [value.encode() for value in values]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return cls(offsets, np.frombuffer(b"".join(encoded), np.uint8))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return bytes(self.data[self.offsets[index] : self.offsets[index + 1]]).decode()

    def __iter__(self) -> Iterator[str]:
        data, offsets = self.data.tobytes(), self.offsets.tolist()
        for start, end in pairwise(offsets):
            yield data[start:end].decode()

    def size(self, start: int, stop: int) -> int:
        """Bytes of the strings from `start` to before `stop`."""
        return int(self.offsets[stop] - self.offsets[start])

    def index(self) -> dict[str, int]:
        """The row of each string."""
        return {value: position for position, value in enumerate(self)}
