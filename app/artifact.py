"""Artefacts: directories of files with a manifest, published whole or not at all.

`manifest.json` holds kind, format version, cache key, settings (the recipe part that made
it), parents' digests, figures, and size and SHA-256 of every file, and a digest of itself.
A stage writes into a temporary sibling, which is synced and renamed; a directory with a
manifest is whole, one without is rubbish. Only the standard library is used here, because
the serving runtime loads bundles through this module.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import ArtifactError, disk_errors
from app.files import sync
from app.manifest import FIELDS, FORMAT, MANIFEST, Json, digest_of, file_sha256, read_manifest, verify_file

_verified: ContextVar[set[tuple[str, str]] | None] = ContextVar("verified", default=None)  # path, digest


@dataclass(frozen=True)
class Artifact:
    """An artefact on disk, as its manifest describes it."""

    path: Path
    kind: str
    key: str
    digest: str
    settings: Json
    parents: dict[str, str]
    figures: Json
    files: dict[str, dict[str, Any]]

    @property
    def bytes(self) -> int:
        """Size of all files, in bytes, without the manifest."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


@dataclass
class Draft:
    """An artefact being written: put files under `path`, figures into `figures`."""

    path: Path
    figures: Json = field(default_factory=dict)


def cache_key(kind: str, settings: Mapping[str, Any], parents: Mapping[str, str], version: int = 1) -> str:
    """SHA-256 of what an artefact is made from.

    Artefacts with equal keys come from the same settings and parents through the same version of a
    stage. Their content is equal as far as the stage is deterministic; times, for one, differ.

    Args:
        version: of the stage's code. A stage raises its number when the same input comes to give another
            output, so that an upgrade does not use again what the older code made.
    """
    made_from = {"kind": kind, "format": FORMAT, "version": version, "settings": settings, "parents": parents}
    return digest_of(made_from)


@contextmanager
def verified_once() -> Iterator[None]:
    """Within the block each artefact is hashed once: when it is published, or when it is first opened.

    A run of several stages opens the same data set in each of them.
    """
    token = _verified.set(set())
    try:
        yield
    finally:
        _verified.reset(token)


@contextmanager
def publish(
    out: Path, kind: str, settings: Mapping[str, Any], parents: Mapping[str, str], version: int = 1
) -> Iterator[Draft]:
    """Write an artefact: yields a Draft, publishes it at `out` when the block ends well.

    An artefact already at `out` is replaced; any other non-empty directory is refused. When
    the block raises, nothing is left behind. What it is made from is as `cache_key` takes it.

    Raises:
        ArtifactError: `out` exists and is not an artefact.
        MachineError: the disk is full or not writable.
    """
    out = out.absolute()
    _refuse_foreign(out)
    with disk_errors(str(out)):
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
        temporary.mkdir()
    draft = Draft(temporary)
    try:
        with disk_errors(str(out)):
            yield draft
            digest = _seal(draft, kind, settings, parents, version)
            _replace(temporary, out)
            _note_verified(out, digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_artifact(path: Path, kind: str | None = None, *, verify: bool = True) -> Artifact:
    """Load the artefact at `path` and check every file against its manifest, once within `verified_once`.

    Raises:
        ArtifactError: no manifest, damaged or truncated file (named), unknown format, or
            another kind than `kind`.
    """
    path = Path(path)
    manifest = read_manifest(path)
    artifact = Artifact(
        path=path,
        **{name: manifest[name] for name in ("digest", *FIELDS)},
    )
    if kind is not None and artifact.kind != kind:
        raise ArtifactError(
            f"this is a {artifact.kind}, expected a {kind}", where=str(path), remedy=f"give the {kind} folder"
        )
    if verify and (str(path.absolute()), artifact.digest) not in (_verified.get() or ()):
        for name, entry in artifact.files.items():
            verify_file(path / name, int(entry["bytes"]), str(entry["sha256"]))
        _note_verified(path, artifact.digest)
    return artifact


def reuse(out: Path, kind: str, key: str) -> Artifact | None:
    """The artefact at `out` if it is whole and was made from the same key, else None."""
    try:
        if open_artifact(out, kind, verify=False).key != key:
            return None
        return open_artifact(out, kind)
    except ArtifactError:
        return None


def _note_verified(path: Path, digest: str) -> None:
    verified = _verified.get()
    if verified is not None:
        verified.add((str(path.absolute()), digest))


def _seal(
    draft: Draft, kind: str, settings: Mapping[str, Any], parents: Mapping[str, str], version: int
) -> str:
    """Sync the files, write the manifest and return its digest."""
    files = {}
    for path in sorted(p for p in draft.path.rglob("*") if p.is_file()):
        files[path.relative_to(draft.path).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        sync(path)
    content: Json = {
        "kind": kind,
        "format": FORMAT,
        "key": cache_key(kind, settings, parents, version),
        "settings": dict(settings),
        "parents": dict(parents),
        "figures": draft.figures,
        "files": files,
    }
    # Through JSON once, so that the digest is of what a reader will see.
    content = json.loads(json.dumps(content, default=str))
    content["digest"] = digest_of(content)
    target = draft.path / MANIFEST
    target.write_text(json.dumps(content, indent=1) + "\n")
    sync(target)
    sync(draft.path)
    return str(content["digest"])


def _replace(temporary: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what killed writers left; put back an artefact lost between two renames."""
    for path in out.parent.glob(f".{out.name}.*-*"):
        pid = path.name.rsplit("-", 1)[-1]
        if not pid.isdigit() or (pid != str(os.getpid()) and _lives(int(pid))):
            continue
        if ".old-" in path.name and not out.exists() and (path / MANIFEST).exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and is another user's
    return True


def _refuse_foreign(out: Path) -> None:
    if not out.exists() or (out / MANIFEST).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise ArtifactError(
            "exists and is not an artefact of RayRec", where=str(out), remedy="choose another output folder"
        )
