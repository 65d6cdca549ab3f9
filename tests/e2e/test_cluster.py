"""A real node on this machine: up, jobs that end well and badly, down, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import ending, state
from tests.conftest import REPOSITORY

# Stands in for the application: what matters here is the way there and back.
APPLICATION = """
import json, os, pathlib, sys

verb, recipe, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[4])
if verb == "fail":
    sys.exit(3)
import ray

ray.init(log_to_driver=False)

@ray.remote
def add(a, b):
    return a + b

out.mkdir(parents=True)
(out / "sum").write_text(str(ray.get(add.remote(20, 22))))
print(json.dumps({"bundle": str(out), "recipe": recipe.read_text(), "data": os.environ.get("RAYREC_DATA")}))
"""


def cluster(*arguments: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "cluster", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[state.Node]:
    """A node for the module, whose processes and files are all gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYREC_HOME", str(tmp_path_factory.mktemp("home")))
        started = cluster("up")
        found = state.recorded()
        try:
            assert started.returncode == 0, started.stderr
            assert found is not None
            yield found
        finally:
            if state.recorded():
                cluster("down")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").touch()
    (folder / "app" / "__main__.py").write_text(APPLICATION)
    (folder / "shop.toml").write_text("name = 'shop'")
    return folder


def test_a_second_node_is_refused(node: state.Node) -> None:
    again = cluster("up")
    assert again.returncode == 1
    assert f"a cluster is up (pid {node.pid})" in again.stderr


def test_a_job_brings_its_result_back(
    node: state.Node, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYREC_DATA", str(tmp_path))
    done = cluster("submit", "--", "run", "shop.toml", "--out", "results/shop", folder=project)
    assert done.returncode == 0, done.stderr
    out = project / "results" / "shop"
    assert json.loads(done.stdout) == {"bundle": str(out), "recipe": "name = 'shop'", "data": str(tmp_path)}
    assert (out / "sum").read_text() == "42"


def test_a_failed_job_returns_its_own_code(node: state.Node, project: Path) -> None:
    failed = cluster("submit", "--", "fail", "shop.toml", "--out", "x", folder=project)
    assert failed.returncode == 3
    assert failed.stdout == ""
    assert "failed" in failed.stderr


def test_the_status_tells_nodes_and_jobs(node: state.Node) -> None:
    status = json.loads(cluster("status", "--json").stdout)
    assert [n["state"] for n in status["nodes"]] == ["ALIVE"]
    assert status["nodes"][0]["resources_total"]["CPU"] >= 4
    assert [j["status"] for j in status["jobs"]] == ["SUCCEEDED", "FAILED"]
    assert cluster("status").stdout.count("\nnode ") == 1


def test_strangers_are_not_let_in(node: state.Node) -> None:
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{node.dashboard}/api/jobs/")
    assert refused.value.code == 401


def test_down_leaves_nothing(node: state.Node) -> None:
    root = state.process(node.pid, node.created)
    assert root is not None
    tree = [root, *ending.descendants(root)]
    assert len(tree) > 5
    down = cluster("down")
    assert down.returncode == 0, down.stderr
    left = [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert not Path(node.folder).exists()
    assert state.recorded() is None


def test_what_a_killed_node_left_is_cleared_by_the_next() -> None:
    """`down` ends what is left where the root was killed and could not end it itself."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.MonkeyPatch.context() as patch:
        import tempfile

        patch.setenv("RAYREC_HOME", tempfile.mkdtemp())
        folder = tempfile.mkdtemp()
        left = (child.pid, psutil.Process(child.pid).create_time())
        state.save(state.Node(2**22 - 1, 1.0, "127.0.0.1:1", "http://127.0.0.1:1", folder, [left]))
        down = cluster("down")
    assert down.returncode == 0, down.stderr
    assert "1 processes ended" in down.stderr
    assert child.wait(10) != 0
    assert not Path(folder).exists()
