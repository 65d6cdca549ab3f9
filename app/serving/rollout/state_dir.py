"""The board: what the processes of one service tell each other, as small files in its store.

board/
  release.json    Release: which versions are served, written by the driver alone
  service.json    Service: where the service is
  replicas/       a Snapshot each, written about once a second by the replica
  wishes/         what `rayrec deploy` and its like ask for, until the driver takes it
  bundles/        the versions on the board, as hard links where the disk allows

Every file is written whole and renamed into place.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import msgspec

from app.errors import ArtifactError, disk_errors
from app.serving.rollout.state import Command, DesiredState, Service, Snapshot

FRESH_S = 5.0  # a replica that has not written for so long is gone, or as good as
S = TypeVar("S", bound=msgspec.Struct)


class StateDir:
    """The board of one service.

    Args:
        store: the service's store folder, which holds the board.
    """

    def __init__(self, store: Path) -> None:
        self.folder = store / "board"

    def release(self) -> DesiredState | None:
        """What is to be served; None before a driver said so."""
        return _read(self.folder / "release.json", DesiredState)

    def changed(self) -> tuple[int, int]:
        """Differs once the release is another; as quick as looking a file up."""
        try:
            found = (self.folder / "release.json").stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def publish(self, release: DesiredState) -> None:
        """Say what is to be served.

        Raises:
            MachineError: the disk is full or not writable.
        """
        _write(self.folder / "release.json", release)

    def service(self) -> Service | None:
        """Where the service is, or was."""
        return _read(self.folder / "service.json", Service)

    def announce(self, service: Service) -> None:
        """Say where the service is."""
        _write(self.folder / "service.json", service)

    def wish(self, wish: Command) -> Command:
        """Ask for something; returns it with its id."""
        wish = msgspec.structs.replace(wish, id=f"{time.time_ns():020d}-{secrets.token_hex(3)}")
        _write(self.folder / "wishes" / f"{wish.id}.json", wish)
        return wish

    def take_wishes(self) -> list[Command]:
        """All wishes that wait, the oldest first; they wait no more."""
        found = []
        for path in sorted((self.folder / "wishes").glob("*.json")):
            try:
                wish = _read(path, Command)
            finally:
                path.unlink(missing_ok=True)
            if wish is not None:
                found.append(wish)
        return found

    def report(self, snapshot: Snapshot) -> None:
        """Say what a replica does."""
        _write(self.folder / "replicas" / f"{snapshot.replica}.json", snapshot)

    def snapshots(self, now: float | None = None) -> list[Snapshot]:
        """What the replicas that live say of themselves; of others the files are removed."""
        now, found = time.time() if now is None else now, []
        for path in sorted((self.folder / "replicas").glob("*.json")):
            snapshot = _read(path, Snapshot)
            if snapshot is not None and now - snapshot.time <= FRESH_S:
                found.append(snapshot)
            elif snapshot is None or now - snapshot.time > 4 * FRESH_S:
                path.unlink(missing_ok=True)
        return found

    def keep(self, bundle: Path, digest: str) -> Path:
        """Put a bundle among the board's, so that it outlives what happens at its own place."""
        kept = self.folder / "bundles" / digest[:16]
        draft = kept.with_name(f".{kept.name}")
        with disk_errors(str(kept)):
            for old in (draft, kept):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(bundle, draft, copy_function=_link)
            draft.rename(kept)
        return kept

    def forget(self, wanted: Collection[str]) -> None:
        """Remove the board's bundles but those at the paths wanted."""
        for folder in (self.folder / "bundles").glob("*"):
            if str(folder) not in wanted:
                shutil.rmtree(folder, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _read(path: Path, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(
            f"the board cannot be read ({error})", where=str(path), remedy="remove the file and serve again"
        ) from error


def _write(path: Path, content: msgspec.Struct) -> None:
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}-{os.getpid()}")
        draft.write_bytes(msgspec.json.encode(content))
        draft.replace(path)
