"""Before the service starts: addresses, ports, what is said. And what is ended afterwards."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import MachineError, RecipeError
from app.ray import haproxy, processes
from app.recipe import Serve
from app.serving.listen import base_url, check_exposure, check_port, example
from app.serving.service import build, check_cores, store_folder


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_a_port_in_use_names_its_holder_and_the_remedy(taken: int) -> None:
    with pytest.raises(MachineError) as refusal:
        check_port(Serve(port=taken))
    text = str(refusal.value)
    assert f"127.0.0.1:{taken}" in text
    assert f"process {os.getpid()}" in text
    assert "--port" in text
    check_port(Serve(port=taken, host="127.0.0.2"))


def test_an_address_that_is_not_ours_is_refused() -> None:
    for host in ("203.0.113.7", "no.such.host.invalid"):
        with pytest.raises(MachineError, match=host):
            check_port(Serve(host=host, port=8000))


@pytest.mark.parametrize(
    ("host", "key", "allowed"),
    [
        ("127.0.0.1", "", True),
        ("127.8.8.8", "", True),
        ("::1", "", True),
        ("localhost", "", True),
        ("0.0.0.0", "", False),
        ("::", "", False),
        ("192.168.0.3", "", False),
        ("example.org", "", False),
        ("0.0.0.0", "sesame", True),
    ],
)
def test_only_loopback_needs_no_key(host: str, key: str, allowed: bool) -> None:
    if allowed:
        check_exposure(Serve(host=host), key)
    else:
        with pytest.raises(RecipeError, match="RAYREC_API_KEY"):
            check_exposure(Serve(host=host), key)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
    ],
)
def test_base_url(host: str, url: str) -> None:
    assert base_url(Serve(host=host)) == url


def test_the_example_is_a_command_line() -> None:
    words = shlex.split(example("http://127.0.0.1:8000", 'O\'Neil "x"', key=True))
    assert words[1] == "http://127.0.0.1:8000/v1/recommend"
    assert json.loads(words[-1]) == {"user": 'O\'Neil "x"', "k": 5}
    assert "X-API-Key: $RAYREC_API_KEY" in words


def test_the_store_lies_beside_the_bundle_unless_told(tmp_path: Path) -> None:
    assert store_folder(tmp_path / "bundle", Serve()) == tmp_path / "bundle.store"
    assert store_folder(tmp_path / "bundle", Serve(store="/data/log")) == Path("/data/log")


def test_a_bundle_at_an_address_keeps_its_store_in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    a, b = (store_folder(f"s3://{bucket}/shop/", Serve()) for bucket in "ab")
    assert a != b
    assert a.parent == Path("/state/rayrec/stores")
    assert a.name.startswith("shop-")
    assert store_folder("s3://a/shop", Serve(store="/data/log")) == Path("/data/log")


@pytest.mark.parametrize(
    ("nodes", "replicas", "cpus", "fits"),
    [([4], 4, 1, True), ([4], 5, 1, False), ([3, 3], 2, 2, True), ([3, 3], 3, 2, False), ([2], 1, 3, False)],
)
def test_replicas_need_cores_on_one_node_each(
    monkeypatch: pytest.MonkeyPatch, nodes: list[int], replicas: int, cpus: int, fits: bool
) -> None:
    found = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 100.0}}
    monkeypatch.setattr("ray.nodes", lambda: [*found, dead])
    settings = Serve(min_replicas=replicas, max_replicas=replicas, cpus=cpus)
    if fits:
        check_cores(settings)
    else:
        with pytest.raises(MachineError, match=f"{replicas} replicas of {cpus} cores"):
            check_cores(settings)


def test_a_serve_configuration_builds_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYREC_API_KEY", raising=False)
    assert build({"bundle": "/data/bundle", "max_replicas": 4}) is not None
    with pytest.raises(RecipeError, match="bundle"):
        build({})
    with pytest.raises(RecipeError, match="max_replica"):
        build({"bundle": "/data/bundle", "max_replica": 4})
    with pytest.raises(RecipeError, match="RAYREC_API_KEY"):
        build({"bundle": "/data/bundle", "host": "0.0.0.0"})


def test_serves_own_configuration_is_hardened() -> None:
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE as TEMPLATE

    hardened = haproxy.harden(TEMPLATE, Path("/run"))
    for gone in ("config.metrics_port", "config.stats_port", "option httplog", "config.log_target"):
        assert gone in TEMPLATE
        assert gone not in hardened
    for guard in (
        "timeout http-request 10s",
        "wait-for-body time 10s",
        "disable-l7-retry",
        "errorfile 408 /run/408.http",
    ):
        assert hardened.count(guard) == 1
    assert hardened.count("/run/503.http") == 3
    kept = [line for line in TEMPLATE.splitlines() if not re.search(r"errorfile|^ +log |option .*log", line)]
    missing = set(kept) - set(hardened.splitlines())
    assert len(missing) == 9, missing


def test_what_exceeds_the_replicas_queues_is_refused_by_haproxy() -> None:
    plain = "frontend http_frontend\n    bind :1\nbackend http-app\n    default-server inter 5s check\n"
    assert "429" not in haproxy.harden(plain, Path("/run"))
    limited = haproxy.harden(plain, Path("/run"), 192)
    assert "default-server maxconn 192 inter 5s check" in limited
    assert "if METH_POST { nbsrv(http-app) gt 0 } { be_conn_free(http-app) le 0 }" in limited


def test_haproxy_takes_the_hardened_configuration_and_answers_faults_as_problems(tmp_path: Path) -> None:
    binary = haproxy.environment()[haproxy.BINARY]
    plain = """global
    log 127.0.0.1:514 local0 info
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option httplog
frontend http_frontend
    bind 127.0.0.1:1
    default_backend http-app
backend http-app
    log global
    default-server inter 5s
    server none 127.0.0.1:9 check
"""
    (tmp_path / "limit").write_text("192")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(plain)
    environment = {haproxy.BINARY: binary, "PATH": ""}
    said = subprocess.run(
        [sys.executable, haproxy.__file__, "-c", "-f", configuration],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert "WARNING" not in said.stderr
    assert "default-server maxconn 192 inter 5s" in configuration.read_text()
    for status in (400, 408, 503):
        head, _, body = (tmp_path / f"{status}.http").read_bytes().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"Content-Length: %d" % len(body) in head
        assert json.loads(body)["status"] == status


def test_a_run_within_a_run_finds_the_real_haproxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(haproxy, "FOLDER", tmp_path)
    for name in (haproxy.BINARY, "RAY_SERVE_HAPROXY_BINARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    first = haproxy.environment()
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    second = haproxy.environment()
    assert second[haproxy.BINARY] == first[haproxy.BINARY]
    launcher = first["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert launcher != first[haproxy.BINARY]
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text("global\nlisten stats\n  bind *:8404\n")
    said = subprocess.run([launcher, "-vv", "-f", configuration], capture_output=True, text=True, check=True)
    assert "HAProxy version" in said.stdout
    assert configuration.read_text() == "global\n"


DRIVER = """
import subprocess, sys, time
from app.ray.processes import marked
with marked():
    child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_what_a_killed_run_left_is_ended_and_nothing_else() -> None:
    dead, alive = (subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE) for _ in range(2))
    try:
        children = []
        for driver in (dead, alive):
            assert driver.stdout is not None
            lines = sorted(int(driver.stdout.readline()) for _ in range(2))
            children.append(lines[1])  # the other line is the child's 1: it has begun
            assert processes.of_run(processes.run_mark(driver.pid)) == [lines[1]]
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert processes.end_dead_runs() == [children[0]]
        assert processes.run_mark(children[0]) == ""
        assert processes.run_mark(children[1])
        assert processes.end_dead_runs() == []
    finally:
        mark = processes.run_mark(alive.pid)
        for driver in (dead, alive):
            driver.kill()
            driver.wait()
            assert driver.stdout is not None
            driver.stdout.close()
        processes.PATIENCE_S, patience = 0.0, processes.PATIENCE_S
        processes.end_run(mark)
        processes.PATIENCE_S = patience
