"""A bundle with any byte changed, cut off or missing is refused, and the file is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from app.bundle.runtime import Ranker
from app.errors import ArtifactError
from app.manifest import digest_of
from tests.bundles import bundle_of, describe_items, random_model
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module", params=[("two_tower", {"index": "ivf_sq8"}), ("mlp", {"candidates": 5})])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with an index, and one with all sources of candidates; both with columns of both kinds."""
    model, settings = request.param
    folder = tmp_path_factory.mktemp("damage")
    dataset = tiny_dataset(folder / "dataset", users=20, items=12, events=200)
    describe_items(dataset, category=[None, *"abcabcabcabc"], price=[None, *range(12)])
    ranker = bundle_of(
        random_model(model, dataset), dataset, folder / "bundle", precision="int8", settings=settings
    )
    return ranker.artifact.path


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def refused(bundle: Path, file: Path, *, verify: bool = True) -> str:
    with pytest.raises(ArtifactError) as error:
        Ranker.open(bundle, verify=verify)
    assert file.name in error.value.where
    assert error.value.remedy
    return str(error.value)


def test_a_changed_byte_anywhere_is_found(bundle: Path) -> None:
    rng = np.random.default_rng(0)
    files = [file for file in files_of(bundle) if file.name != "manifest.json" and file.stat().st_size]
    for trial in range(200):
        file = files[trial % len(files)]
        whole = file.read_bytes()
        position = int(rng.integers(len(whole)))
        broken = bytearray(whole)
        broken[position] ^= int(rng.integers(1, 256))
        file.write_bytes(broken)
        assert "SHA-256" in refused(bundle, file)
        file.write_bytes(whole)
    Ranker.open(bundle)


def test_a_changed_byte_of_the_manifest_is_found_unless_it_means_the_same(bundle: Path) -> None:
    rng, file = np.random.default_rng(1), bundle / "manifest.json"
    whole = file.read_bytes()
    meaning, caught = json.loads(whole), 0
    for _ in range(150):
        broken = bytearray(whole)
        broken[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        file.write_bytes(broken)
        try:
            Ranker.open(bundle)
        except ArtifactError as error:
            assert "manifest" in str(error)
            caught += 1
        else:
            assert json.loads(bytes(broken)) == meaning, "only white space may differ"
    file.write_bytes(whole)
    assert caught > 100
    Ranker.open(bundle)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_named(bundle: Path, verify: bool) -> None:
    for file in files_of(bundle):
        if not verify and file.name in ("card.md", "manifest.json"):
            continue  # the runtime does not read the card; the manifest is always verified
        whole = file.read_bytes()
        if not whole:
            continue
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArtifactError) as error:
            Ranker.open(bundle, verify=verify)
        assert file.name in error.value.where
        file.write_bytes(whole)
    Ranker.open(bundle, verify=verify)


def test_a_missing_file_is_named(bundle: Path, tmp_path: Path) -> None:
    for file in files_of(bundle):
        moved = shutil.move(file, tmp_path / "aside")
        if file.name == "manifest.json":
            with pytest.raises(ArtifactError, match=r"no manifest\.json"):
                Ranker.open(bundle)
        else:
            assert "missing" in refused(bundle, file)
        shutil.move(moved, file)
    Ranker.open(bundle)


def test_a_newer_format_is_refused(bundle: Path) -> None:
    file = bundle / "manifest.json"
    whole = file.read_bytes()
    content = json.loads(whole) | {"format": 99}
    content.pop("digest")
    file.write_text(json.dumps(content | {"digest": digest_of(content)}))
    assert "format 99" in refused(bundle, file)
    file.write_bytes(whole)


def test_another_kind_of_artefact_is_refused(bundle: Path) -> None:
    with pytest.raises(ArtifactError, match="this is a dataset, expected a bundle"):
        Ranker.open(bundle.parent / "dataset")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        Ranker.open(tmp_path / "nowhere")
