"""The folders of a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SearchDirs:
    """The folders of a search, shared by all of its trials."""

    out: Path

    @property
    def dataset(self) -> Path:
        """The data set that all trials train on."""
        return self.out / "dataset"

    def checkpoint(self, key: str) -> Path:
        """The checkpoint with the cache key `key`."""
        return self.out / "checkpoints" / key[:16]

    @property
    def reference(self) -> Path:
        """The bundle that latencies are measured beside."""
        return self.out / "reference"

    @property
    def rungs(self) -> Path:
        """What trials had reached after some of their epochs, by which later ones are stopped."""
        return self.out / "rungs.jsonl"

    @property
    def ray(self) -> Path:
        """Ray Tune's own files, which are of no use after the search."""
        return self.out / "ray"

    @property
    def trials(self) -> Path:
        """Folders of the trials that run; each trial removes its own."""
        return self.out / "trials"
