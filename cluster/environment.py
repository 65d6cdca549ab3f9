"""The environment of a node and of those who talk to it.

The variables stand in app/ray/environment.toml, which the application reads, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

from cluster import state
from cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parent.parent
RAY = ROOT / "app" / "ray"


@cache
def variables() -> dict[str, str]:
    """The variables of every Ray node and of its clients."""
    read: dict[str, str] = tomllib.loads((RAY / "environment.toml").read_text())["variables"]
    return read


def of_client() -> dict[str, str]:
    """Variables that a process needs to talk to the node."""
    return {**variables(), "RAY_AUTH_TOKEN_PATH": str(state.token())}


def of_node(folder: Path) -> dict[str, str]:
    """The whole environment of `ray start`; `folder` is the node's own."""
    # An address or mark of another node would lead this one's processes there.
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAYREC_DRIVER")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**inherited, **of_client(), **own, **_haproxy(folder)}


def _haproxy(folder: Path) -> dict[str, str]:
    """Variables that make Serve start HAProxy as the application does, with its files in `folder`."""
    command = [sys.executable, "-P", str(RAY / "haproxy.py"), "environment", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"HAProxy cannot be set up:\n{done.stderr}", "see above")
    printed: dict[str, str] = json.loads(done.stdout)
    return printed
