"""Before a service starts: addresses, ports, cores, stores. And what is ended afterwards."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import MachineError, RecipeError
from app.recipe import Serve
from app.serving.application import check_cores
from app.serving.listen import base_url, check_exposure, check_port, example
from app.serving.service import build, store_folder


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


def test_the_store_lies_beside_the_bundle_unless_a_setting_names_another(tmp_path: Path) -> None:
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
    living = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 100.0}}
    monkeypatch.setattr("ray.nodes", lambda: [*living, dead])
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


@pytest.mark.parametrize(
    ("nodes", "store", "autoscaled", "refused"),
    [
        ([4], "", False, False),
        ([4, 4], "", False, True),
        ([0, 4], "", False, False),  # a head that runs no replica
        ([4, 4], "/data/store", False, True),
        ([4, 4], "rediss://:secret@redis:6379/0", False, False),
        ([0, 4], "", True, True),  # KubeRay starts further nodes for further replicas
    ],
)
def test_several_nodes_need_a_store_that_they_can_share(
    monkeypatch: pytest.MonkeyPatch, nodes: list[int], store: str, autoscaled: bool, refused: bool
) -> None:
    living = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in nodes]
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: living)
    monkeypatch.setenv("RAYREC_STORE", store)
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    if autoscaled:
        monkeypatch.setenv("RAY_CLUSTER_NAME", "rayrec")
    if not refused:
        assert build({"bundle": "/data/bundle", "max_replicas": 4}) is not None
        return
    with pytest.raises(RecipeError, match="several nodes") as refusal:
        build({"bundle": "/data/bundle", "max_replicas": 4})
    assert refusal.value.where == "serve.store"
    assert "secret" not in str(refusal.value)
