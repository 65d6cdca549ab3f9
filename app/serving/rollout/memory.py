"""How much memory another version of a bundle takes, and how much this machine has left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from app.artifact import Artifact
from app.bundle.format.ids import REMEMBERED
from app.errors import MachineError

CGROUPS = Path("/sys/fs/cgroup")
# Beside tables and lists, which replicas map and share: ONNX Runtime keeps a graph as read and as
# optimised; an id that is looked up takes a slot in a table.
GRAPHS, PER_GRAPH, PER_ID = ("model.onnx", "user.onnx"), 2.5, 64
BASE = 16 << 20  # sessions, thread pools, buffers of a first batch


def private_bytes(artifact: Artifact) -> int:
    """About how many bytes a replica takes for a bundle that it cannot share with others."""
    size = {name: int(entry["bytes"]) for name, entry in artifact.files.items()}
    graphs = PER_GRAPH * sum(size.get(name, 0) for name in GRAPHS)
    ids = min(REMEMBERED, size.get("items/hashes.npy", 0) // 8)
    return int(BASE + graphs + PER_ID * ids)


def check_room(artifact: Artifact, replicas: int, free: Callable[[], int]) -> None:
    """Refuse a bundle that so many replicas could not load beside what they have.

    Raises:
        MachineError: says what is needed and what is free.
    """
    needed, left = replicas * private_bytes(artifact), free()
    if needed > left:
        raise MachineError(
            f"{replicas} replicas need about {needed >> 20} MiB to load it beside the version that is "
            f"served, {left >> 20} MiB are free",
            where=str(artifact.path),
            remedy="have fewer replicas (`rayrec scale`), or start the service again with this bundle",
        )


def free_bytes(process: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> int:
    """Memory that this process can have: the machine's, within the limits of its control groups."""
    return min([int(psutil.virtual_memory().available), *_left(process, root)])


def _left(process: Path, root: Path) -> list[int]:
    """Bytes that each group with a limit has left; files in the page cache give way. Only Linux has them."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder, left = root / own.strip("/"), []
    for group in (folder, *folder.parents):
        limit = _number(group / "memory.max")
        used = _number(group / "memory.current")
        if limit is not None and used is not None:
            left.append(max(0, limit - used + _inactive(group / "memory.stat")))
        if group == root:
            break
    return left


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group here, or "max"
        return None


def _inactive(path: Path) -> int:
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
        return int(fields["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0
