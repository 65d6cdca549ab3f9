"""`manifest.json`: what it says of an artefact, and whether the files are as it says.

It comes from disk, and so may hold anything: what is read is checked, field by field. Only the standard
library is used here, because the serving runtime loads bundles through this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from app.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
FIELDS = {"kind": str, "key": str, "settings": dict, "parents": dict, "figures": dict, "files": dict}
Json = dict[str, Any]


def read_manifest(path: Path) -> Json:
    """The manifest of the artefact at `path`, with every field of FIELDS and its digest.

    Raises:
        ArtifactError: there is none, or it cannot be read, is damaged or of another format.
    """
    target = path / MANIFEST
    try:
        content = target.read_bytes()
    except FileNotFoundError:
        what = "no manifest.json, so this is not a whole artefact" if path.is_dir() else "no such folder"
        raise ArtifactError(what, where=str(path), remedy="run the stage that makes it again") from None
    except OSError as error:
        raise _unreadable(target, error) from None
    try:
        manifest = json.loads(content)
        claimed = manifest.pop("digest")
        format_ = manifest["format"]
        matches = digest_of(manifest) == claimed
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(target, f"the manifest is damaged ({type(error).__name__})") from None
    if format_ != FORMAT:
        raise ArtifactError(
            f"format {format_!r}, this version reads {FORMAT}", where=str(target), remedy="upgrade rayrec"
        )
    if not matches:
        raise _damaged(target, "the manifest does not match its digest")
    if what := _unlike_a_manifest(manifest):
        raise _damaged(target, what)
    return {**manifest, "digest": claimed}


def verify_file(path: Path, size: int, sha256: str) -> None:
    """Compare a file with its entry; raises ArtifactError where it differs or cannot be read."""
    remedy = "copy the artefact again or run its stage with --force"
    try:
        if not path.is_file():
            raise ArtifactError("the file is missing", where=str(path), remedy=remedy)
        if path.stat().st_size != size:
            what = f"{path.stat().st_size} bytes, expected {size}"
            raise ArtifactError(what, where=str(path), remedy=remedy)
        if file_sha256(path) != sha256:
            raise ArtifactError("the content does not match its SHA-256", where=str(path), remedy=remedy)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unlike_a_manifest(manifest: Json) -> str:
    """What is wrong with a manifest whose digest is right, as of one made by hand; "" if nothing is."""
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            given = type(manifest[name]).__name__ if name in manifest else "missing"
            return f"{name!r} of the manifest is {given}, expected {kind.__name__}"
    if not all(isinstance(digest, str) for digest in manifest["parents"].values()):
        return "'parents' of the manifest holds other things than digests"
    for name, entry in manifest["files"].items():
        if not _is_entry(entry):
            return f"file {name!r} of the manifest has no size and SHA-256"
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.as_posix() != name or "\0" in name:
            return f"file {name!r} of the manifest lies outside the artefact"
    return ""


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    size, sha256 = entry.get("bytes"), entry.get("sha256")
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0 and isinstance(sha256, str)


def _damaged(manifest: Path, what: str) -> ArtifactError:
    return ArtifactError(what, where=str(manifest), remedy="copy the artefact again")


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    what = f"the file cannot be read ({error.strerror})"
    return ArtifactError(what, where=str(path), remedy="let the user of this process read it")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of what can be written as JSON, as hex: of a manifest without its digest, or of a cache key."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
