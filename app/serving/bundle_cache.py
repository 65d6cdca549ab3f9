"""Bundles that lie elsewhere: a copy on this machine, which stays as long as it is used."""

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


def is_remote(place: str) -> bool:
    """Whether a bundle's place is a URI."""
    return "://" in place


def absolute(place: str) -> str:
    """A place that means the same in another working folder."""
    return place if is_remote(place) else str(Path(place).absolute())


def cache_folder(settings: Serve) -> Path:
    """Where copies lie: serve.cache_dir, or the user's folder for such."""
    if settings.cache_dir:
        return Path(settings.cache_dir).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "rayrec" / "bundles"


def state_folder(uri: str) -> Path:
    """Where a service keeps what is its own when its bundle lies elsewhere."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state else Path.home() / ".local" / "state"
    name = uri.rstrip("/").rpartition("/")[2].partition("?")[0]
    return base / "rayrec" / "stores" / f"{name}-{sha256(uri.encode()).hexdigest()[:12]}"


class Copy:
    """A bundle's folder on this machine; `close` once it need not stay.

    Args:
        path: the folder.
        lock: held meanwhile; None: it is nobody's to remove.
    """

    def __init__(self, path: Path, lock: IO[str] | None = None) -> None:
        self.path, self._lock = path, lock

    def close(self) -> None:
        """It may be removed from now on."""
        if self._lock is not None:
            self._lock.close()

    def stay_for(self, user: object) -> None:
        """It stays as long as an object lives."""
        weakref.finalize(user, self.close)


def copy_of(place: str, settings: Serve) -> Copy:
    """The folder at a path itself, or a copy of what lies at a URI; blocks while that is fetched.

    Raises:
        ArtifactError: there is no bundle, or it is damaged.
        MachineError: the storage cannot be read, or there is no room for a copy.
    """
    if not is_remote(place):
        return Copy(Path(place).absolute())
    for _ in range(TRIES):
        path, lock_file = _fetched(place, settings)
        lock = lock_file.open("a")
        fcntl.flock(lock, fcntl.LOCK_SH)
        if path.is_dir():
            return Copy(path, lock)
        lock.close()  # somebody removed it in between to make room
    raise MachineError(
        "copies are removed as soon as they are made", where=str(path.parent), remedy="raise serve.cache_gb"
    )


@contextmanager
def held(place: str, settings: Serve) -> Iterator[Path]:
    """The folder of a bundle, which stays for the block; see copy_of."""
    copy = copy_of(place, settings)
    try:
        yield copy.path
    finally:
        copy.close()


def _fetched(uri: str, settings: Serve) -> tuple[Path, Path]:
    """A copy, and the file that its users lock."""
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
        said = json.loads(done.stdout)
    except ValueError:
        # Some storages' libraries end the process where they find no keys.
        last = " ".join(done.stderr.split()[-40:])[-300:] or f"exit code {done.returncode}"
        raise MachineError(
            f"fetching it failed ({last})", where="the bundle", remedy="check its address, and your keys"
        ) from None
    if "error" in said:
        error = said["error"]
        kind = getattr(errors, error.pop("kind"))
        raise kind(error.pop("what"), **error)
    return Path(said["path"]), Path(said["lock"])
