"""Whether another version fits into memory beside the one that is served."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from app.artifact import open_artifact, publish
from app.errors import MachineError
from app.serving.rollout import memory
from app.serving.rollout.memory import BASE, check_room, free_bytes, private_bytes

MIB = 1 << 20


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A graph of 2 MiB, 1000 items, and 8 MiB of rows, which all replicas share."""
    with publish(tmp_path / "bundle", "bundle", {}, {}) as draft:
        for name, size in (("model.onnx", 2 * MIB), ("items/hashes.npy", 8000), ("rows/item.bin", 8 * MIB)):
            (draft.path / name).parent.mkdir(exist_ok=True)
            (draft.path / name).write_bytes(bytes(size))
    return tmp_path / "bundle"


def test_tables_are_shared_and_graphs_are_not(bundle: Path) -> None:
    assert private_bytes(open_artifact(bundle)) == BASE + 5 * MIB + 64_000


def test_each_replica_loads_it(bundle: Path) -> None:
    artifact = open_artifact(bundle)
    check_room(artifact, 2, lambda: 2 * private_bytes(artifact))
    with pytest.raises(MachineError, match=r"3 replicas need about 63 MiB.*42 MiB are free.*fewer"):
        check_room(artifact, 3, lambda: 2 * private_bytes(artifact))


@pytest.fixture
def groups(tmp_path: Path) -> tuple[Path, Path]:
    """A process in a group without limit, within one that has 30 of 100 MiB left and 5 to give back."""
    root = tmp_path / "cgroup"
    (root / "pod" / "container").mkdir(parents=True)
    for folder, limit in ((root / "pod", str(100 * MIB)), (root / "pod" / "container", "max")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{70 * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {5 * MIB}\nactive_file 3\n")
    (tmp_path / "own").write_text("0::/pod/container\n")
    return tmp_path / "own", root


def test_a_limit_of_a_group_counts(groups: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(*groups) == 35 * MIB
    available = psutil.virtual_memory()._replace(available=7 * MIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: available)
    assert free_bytes(*groups) == 7 * MIB


def test_without_groups_the_machine_alone_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = psutil.virtual_memory()._replace(available=7 * MIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: available)
    assert free_bytes(tmp_path / "none", tmp_path) == 7 * MIB
    (tmp_path / "own").write_text("0::/gone\n")
    assert free_bytes(tmp_path / "own", tmp_path) == 7 * MIB
