"""python -m app.bundle.fetch URI FOLDER LIMIT: a copy of a bundle from object storage, in a folder of copies.

A process of its own, because pyarrow, which reaches the storage, must not be in a replica. It
prints one JSON line: the copy and its lock, or what went wrong.

FOLDER/
  DIGEST/         a copy, named by the first half of its manifest's digest; its time is its last use
  .DIGEST.lock    locked (shared) by every process that uses the copy, which is not removed meanwhile
  .draft/         a copy under way; rubbish once .lock is free
  .lock           locked while a process fetches or removes; others wait
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from app.artifact import Artifact, open_artifact
from app.errors import ArtifactError, MachineError, RayRecError, disk_errors
from app.files import AlreadyLocked, locked
from app.manifest import MANIFEST

PIECE = 8 << 20
RETRY_S = 10
NAME = 32  # characters of the digest
MAX_MANIFEST = 64 << 20
_FAULTS = (  # a pattern of the storage's messages in upper case; our message; the remedy
    (
        r"NO_?SUCH_?BUCKET|BUCKET '.*' NOT FOUND|BUCKET DOES NOT EXIST",
        "there is no such bucket",
        "correct the address",
    ),
    (
        r"ACCESS_?DENIED|FORBIDDEN|HTTP STATUS 40[13]|UNAUTH|INVALID_?ACCESS|SIGNATURE|CREDENTIAL|PERMISSION",
        "no rights to read it",
        "give this machine a role or keys, as the storage's own tools take them from the environment",
    ),
    (
        r"NETWORK|CURL|RESOLVE|CONNECT|TIMED? ?OUT|UNREACHABLE",
        "the storage does not answer",
        "check the network, and the endpoint and region in the address",
    ),
)


def fetch(uri: str, folder: Path, limit: int) -> Artifact:
    """A whole copy of the bundle at `uri`; fetched unless one of its digest is there.

    Args:
        uri: of the bundle's folder, as pyarrow knows it: s3, gs, abfs, hdfs, file.
        folder: of copies.
        limit: bytes of all copies; the least recently used that are not in use are removed.

    Raises:
        ArtifactError: there is no bundle, or what came is damaged.
        MachineError: no bucket, rights or network; the disk is full, or the limit too small.
    """
    with disk_errors(str(folder)), locked(folder / ".lock"):
        draft = folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir()
            artifact = _manifest(uri, draft)
            copy = folder / artifact.digest[:NAME]
            if not _whole(copy):
                _make_room(artifact, folder, limit)
                _fill(uri, draft, artifact)
                shutil.rmtree(copy, ignore_errors=True)  # a damaged one
                draft.rename(copy)
            os.utime(copy)
            return open_artifact(copy, "bundle", verify=False)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _manifest(uri: str, draft: Path) -> Artifact:
    """What a bundle should be, from its manifest alone."""
    with _storage_errors(uri):
        system, base = _system(uri)
        with system.open_input_stream(f"{base}/{MANIFEST}") as stream:
            content = stream.read(MAX_MANIFEST)
    (draft / MANIFEST).write_bytes(content)
    try:
        artifact = open_artifact(draft, "bundle", verify=False)
    except ArtifactError as error:
        raise ArtifactError(error.what, where=shown(uri), remedy="upload the bundle again") from None
    for name in artifact.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.parts[:1] == (MANIFEST,):
            raise ArtifactError(f"the manifest names {name!r}", where=shown(uri), remedy="do not trust it")
    return artifact


def _fill(uri: str, draft: Path, artifact: Artifact) -> None:
    """Fetch every file, and compare it with the manifest."""
    for name, entry in artifact.files.items():
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        left = int(entry["bytes"])
        with _storage_errors(f"{uri}/{name}"), target.open("wb") as out:
            system, path = _system(uri)
            with system.open_input_stream(f"{path}/{name}") as stream:
                while left >= 0 and (piece := stream.read(PIECE)):  # not more than announced
                    left -= len(piece)
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
    try:
        open_artifact(draft, "bundle")
    except ArtifactError as error:
        name = Path(error.where).relative_to(draft).as_posix()
        file = f"{shown(uri)}/{name}"
        raise ArtifactError(error.what, where=file, remedy="upload the bundle again") from None


def _whole(copy: Path) -> bool:
    try:
        open_artifact(copy, "bundle")
    except (ArtifactError, OSError):
        return False
    return True


def _make_room(artifact: Artifact, folder: Path, limit: int) -> None:
    """Remove copies until another one fits, or say why it does not."""
    copies = sorted((p for p in folder.iterdir() if _is_copy(p)), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) for path in copies}
    for path in copies:
        if sum(sizes.values()) + artifact.bytes > limit and _remove(path):
            del sizes[path]
    in_use = sum(sizes.values())
    if in_use + artifact.bytes > limit:
        raise MachineError(
            f"the bundle takes {_mb(artifact.bytes)}, copies in use {_mb(in_use)}, the limit is {_mb(limit)}",
            where=str(folder),
            remedy="raise serve.cache_gb",
        )
    free = shutil.disk_usage(folder).free
    if artifact.bytes > free:
        raise MachineError(
            f"the disk is full: the bundle takes {_mb(artifact.bytes)}, {_mb(free)} are free",
            where=str(folder),
            remedy="free some space, or name another folder in serve.cache_dir",
        )


def _is_copy(path: Path) -> bool:
    return len(path.name) == NAME and set(path.name) <= set("0123456789abcdef")


def _remove(copy: Path) -> bool:
    """Remove a copy, unless a process uses it."""
    try:
        with locked(lock_of(copy), wait=False):
            shutil.rmtree(copy, ignore_errors=True)
    except AlreadyLocked:
        return False
    return True


def lock_of(copy: Path) -> Path:
    """The file that users of a copy lock."""
    return copy.with_name(f".{copy.name}.lock")


def _system(uri: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={RETRY_S}"  # else it tries for 15 minutes
    system, path = FileSystem.from_uri(uri)
    return system, path.rstrip("/")


@contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    """Turn what the storage raises into our errors."""
    try:
        yield
    except ImportError:
        raise MachineError(
            "bundles from storage need pyarrow", where=shown(uri), remedy="pip install pyarrow"
        ) from None
    except (OSError, ValueError) as error:  # pyarrow's own are among these
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # of the copy
        raise _translated(error, uri) from None


def _translated(error: OSError | ValueError, uri: str) -> RayRecError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    for pattern, what, remedy in _FAULTS:
        if re.search(pattern, text.upper()):
            return MachineError(what, where=shown(uri), remedy=remedy)
    if isinstance(error, FileNotFoundError):
        return ArtifactError(
            "there is no whole bundle", where=shown(uri), remedy="name its folder; upload all its files"
        )
    return MachineError(f"cannot be read ({text[:200]})", where=shown(uri), remedy="check the address")


def shown(uri: str) -> str:
    """An address without keys that it may hold."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _mb(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def main(arguments: list[str]) -> int:
    """Print the outcome as one JSON line; 0: there is a copy."""
    uri, folder, limit = arguments
    try:
        artifact = fetch(uri, Path(folder), int(limit))
    except RayRecError as error:
        described = {"what": error.what, "where": error.where, "remedy": error.remedy}
        print(json.dumps({"error": {"kind": type(error).__name__, **described}}))
        return 1
    print(json.dumps({"path": str(artifact.path), "lock": str(lock_of(artifact.path))}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
