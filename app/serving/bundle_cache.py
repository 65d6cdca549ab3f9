"""Copies of bundles from object storage on this machine, each kept as long as it is used."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO

from app import errors
from app.errors import MachineError
from app.recipe import Serve

TRIES = 5


def is_remote(location: str) -> bool:
    """Whether a bundle's location is a URI."""
    return "://" in location


def absolute(location: str) -> str:
    """A bundle's location in a form that means the same in another working folder."""
    return location if is_remote(location) else str(Path(location).absolute())


def cache_folder(settings: Serve) -> Path:
    """Where copies lie: serve.cache_dir, or the user's folder for caches."""
    if settings.cache_dir:
        return Path(settings.cache_dir).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "rayrec" / "bundles"


def state_folder(uri: str) -> Path:
    """Where a service whose bundle lies at a URI keeps its own files."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state else Path.home() / ".local" / "state"
    name = uri.rstrip("/").rpartition("/")[2].partition("?")[0]
    return base / "rayrec" / "stores" / f"{name}-{sha256(uri.encode()).hexdigest()[:12]}"


class BundleCopy:
    """A bundle's folder on this machine, which stays until `close`.

    Args:
        path: the folder.
        lock: an open file with a shared lock on the copy; None: the folder is the user's own, which
            nothing removes.
    """

    def __init__(self, path: Path, lock: IO[str] | None = None) -> None:
        self.path, self._lock = path, lock

    def close(self) -> None:
        """Let the copy be removed from now on."""
        if self._lock is not None:
            self._lock.close()

    def keep_while(self, user: object) -> None:
        """Keep the copy as long as an object lives."""
        weakref.finalize(user, self.close)


def open_copy(location: str, settings: Serve) -> BundleCopy:
    """The folder at a path itself, or a copy of the bundle at a URI; blocks while that is fetched.

    Raises:
        ArtifactError: there is no bundle, or it is damaged.
        MachineError: the storage cannot be read, or there is no room for a copy.
    """
    if not is_remote(location):
        return BundleCopy(Path(location).absolute())
    for _ in range(TRIES):
        path, lock_file = _fetched(location, settings)
        lock = lock_file.open("a")
        # Many replicas use one copy: filelock has no shared locks.
        fcntl.flock(lock, fcntl.LOCK_SH)
        if path.is_dir():
            return BundleCopy(path, lock)
        lock.close()  # another process removed it in between to make room
    raise MachineError(
        "copies are removed as soon as they are fetched",
        where=str(path.parent),
        remedy="raise serve.cache_gb",
    )


@contextmanager
def local_copy(location: str, settings: Serve) -> Iterator[Path]:
    """The folder of a bundle, which stays for the block; see open_copy."""
    copy = open_copy(location, settings)
    try:
        yield copy.path
    finally:
        copy.close()


def _fetched(uri: str, settings: Serve) -> tuple[Path, Path]:
    """A copy's folder, and the file that its users lock. A process of its own fetches it."""
    folder, limit = cache_folder(settings), int(settings.cache_gb * 2**30)
    root = str(Path(errors.__file__).parents[1])  # wherever this process has its modules from
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "app.bundle.fetch", uri, str(folder), str(limit)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        result = json.loads(done.stdout)
    except ValueError:
        # Some storages' libraries end the process where they find no keys.
        last = " ".join(done.stderr.split()[-40:])[-300:] or f"exit code {done.returncode}"
        raise MachineError(
            f"the bundle could not be fetched ({last})",
            where="the bundle",
            remedy="check its address, and your keys",
        ) from None
    if "error" in result:
        error = result["error"]
        kind = getattr(errors, error.pop("kind"))
        raise kind(error.pop("what"), **error)
    return Path(result["path"]), Path(result["lock"])
