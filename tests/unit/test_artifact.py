"""Artefacts are whole or absent, and damage is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.artifact import cache_key, open_artifact, publish, reuse, verified_once
from app.errors import ArtifactError, MachineError
from app.manifest import FIELDS, MANIFEST, file_sha256


def make(out: Path, content: bytes = b"0123456789", **settings_: object) -> None:
    with publish(out, "thing", settings_, {"parent": "d1"}) as draft:
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "file.bin").write_bytes(content)
        draft.figures["answer"] = 42


def test_round_trip(tmp_path: Path) -> None:
    make(tmp_path / "a", epochs=3)
    found = open_artifact(tmp_path / "a", "thing")
    assert found.figures == {"answer": 42}
    assert found.settings == {"epochs": 3}
    assert found.parents == {"parent": "d1"}
    assert found.bytes == 10
    assert found.key == cache_key("thing", {"epochs": 3}, {"parent": "d1"})


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish(tmp_path / "a", "thing", {}, {}) as draft:
        (draft.path / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_keeps_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), publish(tmp_path / "a", "thing", {}, {}):
        raise RuntimeError
    assert (open_artifact(tmp_path / "a").path / "deep/file.bin").read_bytes() == b"old"


def test_a_killed_writer_is_swept_and_never_taken_for_whole(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from app.artifact import publish\n"
        "with publish(Path(sys.argv[1]), 'thing', {}, {}) as d:\n"
        "    (d.path / 'half').write_text('half'); os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert died.returncode == -9
    assert [p.name[:7] for p in tmp_path.iterdir()] == [".a.tmp-"]
    assert reuse(tmp_path / "a", "thing", "any") is None
    make(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_reuse_only_for_the_same_key(tmp_path: Path) -> None:
    make(tmp_path / "a", epochs=3)
    same = cache_key("thing", {"epochs": 3}, {"parent": "d1"})
    other = cache_key("thing", {"epochs": 4}, {"parent": "d1"})
    assert reuse(tmp_path / "a", "thing", same) is not None
    assert reuse(tmp_path / "a", "thing", other) is None
    (tmp_path / "a/deep/file.bin").write_bytes(b"damaged!!!")
    assert reuse(tmp_path / "a", "thing", same) is None


def test_another_version_of_the_stage_is_not_reused(tmp_path: Path) -> None:
    """An upgrade that mends a stage does not take what the older one made."""
    inputs = ("thing", {"epochs": 3}, {"parent": "d1"})
    with publish(tmp_path / "a", *inputs, 2) as draft:
        (draft.path / "file.bin").write_bytes(b"made by version 2")
    assert reuse(tmp_path / "a", "thing", cache_key(*inputs, 2)) is not None
    assert reuse(tmp_path / "a", "thing", cache_key(*inputs, 3)) is None
    assert cache_key(*inputs) == cache_key(*inputs, 1) != cache_key(*inputs, 2)


def test_within_a_run_an_artefact_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.parent.parent.name.partition(".tmp")[0].strip("."))
        return file_sha256(path)

    make(tmp_path / "old")
    for module in ("artifact", "manifest"):  # where it is written, and where it is read
        monkeypatch.setattr(f"app.{module}.file_sha256", counted)
    with verified_once():
        make(tmp_path / "new")
        for _ in range(3):
            open_artifact(tmp_path / "old", "thing")
            open_artifact(tmp_path / "new", "thing")
        assert sorted(hashed) == ["new", "old"]
        make(tmp_path / "old", b"another content")
        open_artifact(tmp_path / "old")
        assert sorted(hashed) == ["new", "old", "old"]
    open_artifact(tmp_path / "new")
    assert sorted(hashed) == ["new", "new", "old", "old"], "outside a run each opening verifies"


def test_within_a_run_damage_is_refused_all_the_same(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a/deep/file.bin").write_bytes(b"damaged!!!")
    with verified_once(), pytest.raises(ArtifactError, match=r"deep/file\.bin"):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize("damage", [b"x123456789", b"012345678", b"", None])
def test_damage_names_the_file(tmp_path: Path, damage: bytes | None) -> None:
    make(tmp_path / "a")
    target = tmp_path / "a/deep/file.bin"
    target.unlink() if damage is None else target.write_bytes(damage)
    with pytest.raises(ArtifactError, match=r"deep/file\.bin"):
        open_artifact(tmp_path / "a")


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_any_changed_manifest_byte_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("m") / "a"
    make(folder)
    manifest = folder / MANIFEST
    content = bytearray(manifest.read_bytes())
    at = position % len(content)
    before = json.loads(bytes(content))
    content[at] = byte
    manifest.write_bytes(content)
    try:
        same = json.loads(bytes(content)) == before
    except ValueError:
        same = False
    if same:  # white space, or the byte that stood there
        open_artifact(folder)
    else:
        with pytest.raises(ArtifactError, match=r"manifest|bytes|content|missing|format"):
            open_artifact(folder)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it the digest that it then has, as somebody by hand can."""
    content = json.loads((folder / MANIFEST).read_bytes())
    del content["digest"]
    change(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(content))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["format", *FIELDS]), values, st.booleans())
def test_a_field_that_is_missing_or_of_another_type_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any, missing: bool
) -> None:
    folder = tmp_path_factory.mktemp("m") / "a"
    make(folder)
    kind = FIELDS.get(name, int)

    def change(content: dict[str, Any]) -> None:
        content.pop(name)
        if not missing:
            content[name] = value

    rewrite(folder, change)
    fits = not missing and isinstance(value, kind) and name in ("kind", "key", "settings", "figures")
    fits |= name == "parents" and not missing and value == {}
    fits |= name == "files" and not missing and value == {}
    fits |= name == "format" and not missing and value == 1
    if fits:
        open_artifact(folder)
        return
    with pytest.raises(ArtifactError, match=r"manifest|format|file") as caught:
        open_artifact(folder)
    assert str(folder) in caught.value.where and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "./deep/file.bin", "deep//file.bin"]
)
def test_a_file_outside_the_artefact_is_none_of_its_files(tmp_path: Path, name: str) -> None:
    make(tmp_path / "a")
    rewrite(
        tmp_path / "a", lambda content: content["files"].update({name: content["files"]["deep/file.bin"]})
    )
    with pytest.raises(ArtifactError, match="lies outside the artefact"):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize("entry", [3, [], {}, {"bytes": "9", "sha256": ""}, {"bytes": -1, "sha256": ""}])
def test_an_entry_needs_a_size_and_a_digest(tmp_path: Path, entry: object) -> None:
    make(tmp_path / "a")
    rewrite(tmp_path / "a", lambda content: content["files"].update({"deep/file.bin": entry}))
    with pytest.raises(ArtifactError, match=r"'deep/file.bin' of the manifest has no size and SHA-256"):
        open_artifact(tmp_path / "a")


def test_a_manifest_of_deep_nesting_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_text('{"figures": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ArtifactError, match="damaged"):
        open_artifact(tmp_path / "a")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    make(tmp_path / "a")
    file = tmp_path / "a" / "deep" / "file.bin"
    target = tmp_path / "locked" / "file.bin"
    target.parent.mkdir()
    file.rename(target)
    file.symlink_to(file)  # nobody, not even root, can read it
    with pytest.raises(ArtifactError, match="file") as caught:
        open_artifact(tmp_path / "a")
    assert caught.value.where == str(file)


def test_another_kind_a_newer_format_and_a_foreign_folder(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="this is a thing, expected a bundle"):
        open_artifact(tmp_path / "a", "bundle")
    manifest = tmp_path / "a" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ArtifactError, match="upgrade"):
        open_artifact(tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not an artefact"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ArtifactError, match="no such folder"):
        open_artifact(tmp_path / "nothing")


def test_a_full_disk_is_a_message_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MachineError, match="disk is full"):
            make(tmp_path / "a", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_one_may_not_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="cannot write"):
        make(tmp_path / "a")
