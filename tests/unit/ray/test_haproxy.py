"""HAProxy's configuration is made safe, or HAProxy does not start; app and cluster start it alike."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import MachineError
from app.ray import haproxy
from cluster import environment

PLAIN = """global
    log 127.0.0.1:514 local0 info
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option httplog
frontend prometheus
    bind :9101
    http-request use-service prometheus-exporter
frontend http_frontend
    bind 127.0.0.1:1
    default_backend http-app
backend default_backend
    http-request return status 404
backend http-app
    log global
    default-server inter 5s
    server none 127.0.0.1:9 check
listen stats
  bind *:8404
  stats enable
"""


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
    assert "429" not in haproxy.harden(PLAIN, Path("/run"))
    limited = haproxy.harden(PLAIN, Path("/run"), 192)
    assert "default-server maxconn 192 inter 5s" in limited
    assert "if METH_POST { nbsrv(http-app) gt 0 } { be_conn_free(http-app) le 0 }" in limited


def test_haproxy_takes_the_hardened_configuration_and_answers_faults_as_problems(tmp_path: Path) -> None:
    binary = haproxy.environment()[haproxy.BINARY]
    (tmp_path / "limit").write_text("192")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(PLAIN)
    environment = {haproxy.BINARY: binary, "PATH": ""}
    done = subprocess.run(
        [sys.executable, haproxy.__file__, "-c", "-f", configuration],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
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
    configuration.write_text(PLAIN)
    done = subprocess.run([launcher, "-vv", "-f", configuration], capture_output=True, text=True, check=True)
    assert "HAProxy version" in done.stdout
    assert "8404" not in configuration.read_text()


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("frontend prometheus\n", "frontend prometheus"),
        ("listen stats\n", "listen stats"),
        ("    mode http\n", "defaults"),
        ("    bind 127.0.0.1:1\n", "frontend http_frontend"),
        ("    default-server inter 5s\n", "default-server"),
    ],
)
def test_a_configuration_that_cannot_be_made_safe_is_refused(
    tmp_path: Path, removed: str, named: str
) -> None:
    """Another version of Ray may write another form: then nothing starts, and the message says why."""
    assert removed in PLAIN
    text = PLAIN.replace(removed, "")
    with pytest.raises(haproxy.UnknownConfiguration, match=named):
        haproxy.harden(text, tmp_path, 8)
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(text)
    (tmp_path / "limit").write_text("8")
    done = subprocess.run(
        [sys.executable, haproxy.__file__, "-f", configuration],
        env={haproxy.BINARY: "/bin/true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert named in done.stderr
    assert configuration.read_text() == text


def test_a_hardened_configuration_stays_as_it_is() -> None:
    once = haproxy.harden(PLAIN, Path("/run"), 8)
    assert haproxy.harden(once, Path("/run"), 8) == once


def test_the_application_and_the_cluster_set_the_same_environment(tmp_path: Path) -> None:
    ours, folder = tmp_path / "app", tmp_path / "cluster"
    ours.mkdir()
    folder.mkdir()
    of_app = {**haproxy.variables(), **haproxy.environment(ours)}
    of_cluster = environment.of_node(folder)
    differing = {
        name
        for name, value in of_app.items()
        if of_cluster.get(name) != value.replace(str(ours), str(folder))
    }
    assert differing == set()
    assert (folder / "haproxy").read_text() == (ours / "haproxy").read_text()


def test_a_planted_link_is_refused_and_what_lies_behind_it_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "victim" / "photos").mkdir(parents=True)
    (tmp_path / "guessable").symlink_to(tmp_path / "victim")
    monkeypatch.setattr(haproxy, "FOLDER", tmp_path / "guessable")
    with pytest.raises(MachineError, match="is a link"):
        haproxy.environment()
    assert (tmp_path / "victim" / "photos").is_dir()


def test_only_the_folders_of_dead_processes_that_carry_our_mark_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(haproxy, "FOLDER", tmp_path / "base")
    (tmp_path / "victim").mkdir()
    for name, marked in (("99999998", True), ("99999999", False), ("notes", False)):
        (tmp_path / "base" / name).mkdir(parents=True)
        if marked:
            (tmp_path / "base" / name / haproxy.OURS).touch()
    (tmp_path / "victim" / haproxy.OURS).touch()
    (tmp_path / "base" / "99999997").symlink_to(tmp_path / "victim")
    haproxy.environment()
    own = tmp_path / "base" / str(os.getpid())
    assert {path.name for path in own.parent.iterdir()} == {"99999997", "99999999", "notes", own.name}
    assert (tmp_path / "victim" / haproxy.OURS).exists()
    assert [path.stat().st_mode & 0o777 for path in (own, own.parent)] == [0o700, 0o700]
    haproxy.forget()
    assert not own.exists()


def test_the_runtime_folder_of_the_user_is_taken_where_it_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(haproxy, "LONGEST", len(str(tmp_path)))
    monkeypatch.setattr(haproxy, "FOLDER", tmp_path / "temporary")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    haproxy.environment()
    assert (tmp_path / "rayrec" / str(os.getpid())).is_dir()
    haproxy.forget()
    monkeypatch.setattr(haproxy, "LONGEST", 3)
    haproxy.environment()
    assert (tmp_path / "temporary" / str(os.getpid())).is_dir()
