"""What `up` started, remembered in $RAYREC_HOME (default ~/.rayrec) until `down`."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from cluster.errors import ClusterError


@dataclass(frozen=True)
class Node:
    """A running local node.

    Args:
        pid: of the `ray start --block` process, the ancestor of all others.
        created: its start time in seconds since the epoch; with the pid it names one process.
        address: host:port of the GCS.
        dashboard: URL of the job API, on the loopback interface.
        folder: Ray's temporary folder, made for this node alone.
        pids: [pid, created] of the other processes as they were when the node became ready.
    """

    pid: int
    created: float
    address: str
    dashboard: str
    folder: str
    pids: list[tuple[int, float]]


def home() -> Path:
    """The folder of state and token, readable by its owner alone."""
    folder = Path(os.environ.get("RAYREC_HOME") or Path.home() / ".rayrec").absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def locked() -> Iterator[None]:
    """One `up` or `down` at a time."""
    with FileLock(home() / "cluster.lock"):
        yield


def token() -> Path:
    """The file with the token that every Ray connection needs; made at first use, mode 0600."""
    path = home() / "cluster.token"
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32))
    path.chmod(0o600)
    return path


def save(node: Node) -> None:
    """Remember a node, replacing the file whole."""
    target = home() / "cluster.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(node), indent=1) + "\n")
    temporary.chmod(0o600)
    temporary.rename(target)


def recorded() -> Node | None:
    """The node that was started last and not taken down, whether it lives or not."""
    path = home() / "cluster.json"
    try:
        content = json.loads(path.read_text())
        return Node(**{**content, "pids": [(int(p), float(c)) for p, c in content["pids"]]})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(f"{path} is damaged ({error})", "end its processes and remove the file") from None


def forget() -> None:
    """Remove the record of the node that was started last."""
    (home() / "cluster.json").unlink(missing_ok=True)


def process(pid: int, created: float) -> psutil.Process | None:
    """The process, if it still is the one that was recorded and not a zombie."""
    try:
        candidate = psutil.Process(pid)
        # The clock may be set while the node runs; a pid does not come round within two seconds.
        same = abs(candidate.create_time() - created) < 2 and candidate.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return candidate if same else None


def running() -> Node:
    """The node that is up.

    Raises:
        ClusterError: there is none.
    """
    node = recorded()
    if node is None or process(node.pid, node.created) is None:
        raise ClusterError("no cluster is up", "`python -m cluster up` starts one")
    return node
