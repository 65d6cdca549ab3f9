"""The folder in which the processes of one service exchange small files.

state/
  desired.json    DesiredState: which versions are to be served, written by the controller alone
  service.json    Service: where the service is
  replicas/       a Snapshot each, written about once a second by the replica
  commands/       a Command each, from `rayrec deploy` and its like, until the controller takes it
  bundles/        copies of the versions of the desired state

Every file is replaced whole. Older versions used a folder `board`, which nothing reads any more.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import msgspec

from app.artifact import open_artifact
from app.errors import ArtifactError, disk_errors
from app.files import copy_file, write_atomically
from app.ray.processes import lives, run_mark
from app.serving.rollout.state import Command, CommandResult, DesiredState, Service, Snapshot

GONE_S = 60.0  # a silent replica on another machine, whose process cannot be looked up, is gone then
S = TypeVar("S", bound=msgspec.Struct)


class StateDir:
    """The state folder of one service.

    Args:
        store: the service's store folder, in which it lies.
    """

    def __init__(self, store: Path) -> None:
        self.folder = store / "state"

    def desired_state(self) -> DesiredState | None:
        """What is to be served; None before a service was started here.

        Raises:
            ArtifactError: the file cannot be read.
        """
        return _read(self.folder / "desired.json", DesiredState)

    def fingerprint(self) -> tuple[int, int]:
        """Changes with the desired state; costs one look at a file's entry."""
        try:
            entry = (self.folder / "desired.json").stat()
        except OSError:
            return 0, 0
        return entry.st_mtime_ns, entry.st_ino

    def publish(self, desired: DesiredState) -> None:
        """Write what is to be served; it survives a loss of power.

        Raises:
            MachineError: the disk is full or not writable.
        """
        _write(self.folder / "desired.json", desired, durable=True)

    def service(self) -> Service | None:
        """Where the service is, or was."""
        return _read(self.folder / "service.json", Service)

    def announce(self, service: Service) -> None:
        """Write where the service is."""
        _write(self.folder / "service.json", service)

    def submit(self, command: Command) -> Command:
        """Leave a command for the controller; returns it with its id."""
        command = msgspec.structs.replace(command, id=f"{time.time_ns():020d}-{secrets.token_hex(3)}")
        _write(self._command_path(command.id), command)
        return command

    def withdraw(self, command: Command) -> bool:
        """Take a command back; False where the controller has taken it already."""
        try:
            self._command_path(command.id).unlink()
        except FileNotFoundError:
            return False
        return True

    def waiting_commands(self) -> int:
        """How many commands the controller has not taken yet."""
        return len(list((self.folder / "commands").glob("*.json")))

    def take_commands(self) -> tuple[list[Command], list[CommandResult]]:
        """Remove all commands that wait, the oldest first, and return them.

        Returns:
            The commands, and a refusal for each file that holds none. A file that cannot be removed is
            refused again by the next call.
        """
        commands, refusals = [], []
        for path in sorted((self.folder / "commands").glob("*.json")):
            try:
                content = path.read_bytes()
                path.unlink()
                command = msgspec.json.decode(content, type=Command)
            except FileNotFoundError:  # withdrawn meanwhile
                continue
            except (OSError, msgspec.MsgspecError) as error:
                refusals.append(CommandResult(path.stem, "refused", f"{path} holds no command ({error})"))
            else:
                commands.append(msgspec.structs.replace(command, id=path.stem))
        return commands, refusals

    def report(self, snapshot: Snapshot) -> None:
        """Write what a replica does, from within its process."""
        _write(self.folder / "replicas" / f"{snapshot.replica}.json", snapshot)

    def snapshots(self, now: float | None = None) -> list[Snapshot]:
        """The last report of every replica that lives, the silent ones among them; removes those of others.

        Args:
            now: seconds since the epoch; None: this moment.
        """
        now = time.time() if now is None else now
        live = []
        for path in sorted((self.folder / "replicas").glob("*.json")):
            try:
                snapshot = _read(path, Snapshot)
            except ArtifactError:  # a replica that lives writes it anew within a second
                snapshot = None
            if snapshot is not None and _lives(snapshot, now):
                live.append(snapshot)
            else:
                path.unlink(missing_ok=True)
        return live

    def remove_snapshots(self) -> None:
        """Remove the reports of all replicas, before the first one of a service starts."""
        shutil.rmtree(self.folder / "replicas", ignore_errors=True)

    def keep_bundle(self, bundle: Path, digest: str) -> Path:
        """Copy a bundle here, which a change of its folder leaves as it is; returns the copy's path.

        A whole copy that is there already stays.

        Raises:
            ArtifactError: the copy is not what the manifest says.
            MachineError: the disk is full.
        """
        kept = self.folder / "bundles" / digest[:16]
        if _holds(kept, digest):
            return kept
        draft = kept.with_name(f".{kept.name}")
        with disk_errors(str(kept)):
            for old in (draft, kept):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(bundle, draft, copy_function=copy_file)
            open_artifact(draft, verify=True)
            draft.rename(kept)
        return kept

    def remove_other_bundles(self, wanted: Collection[str]) -> None:
        """Remove the bundles kept here but those at the paths wanted."""
        for folder in (self.folder / "bundles").glob("*"):
            if str(folder) not in wanted:
                shutil.rmtree(folder, ignore_errors=True)

    def _command_path(self, command: str) -> Path:
        return self.folder / "commands" / f"{command}.json"


def identify_process() -> tuple[int, str, str]:
    """This process for its snapshots: pid, host and mark."""
    return os.getpid(), socket.gethostname(), run_mark()


def _holds(folder: Path, digest: str) -> bool:
    try:
        return open_artifact(folder).digest == digest
    except ArtifactError:
        return False


def _lives(snapshot: Snapshot, now: float) -> bool:
    """Whether its process runs, as far as this machine can tell: a stalled one does."""
    if snapshot.mark and snapshot.host == socket.gethostname():
        return lives(snapshot.mark)
    return now - snapshot.time <= GONE_S


def _read(path: Path, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(
            f"the service's state cannot be read ({error})",
            where=str(path),
            remedy="remove the file and start the service again",
        ) from error


def _write(path: Path, content: msgspec.Struct, *, durable: bool = False) -> None:
    with disk_errors(str(path)):
        write_atomically(path, msgspec.json.encode(content), durable=durable)
