"""Manifests, images and the Serve configuration: valid YAML with what their readers require."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.ray import haproxy
from app.recipe import parse
from cluster.errors import ClusterError
from cluster.serve_config import serve_config
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster"
KINDS = {"raycluster": "RayCluster", "rayjob": "RayJob", "rayservice": "RayService"}


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / "kuberay" / f"{name}.yaml").read_text())
    return content


def cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifest(name)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_has_what_kuberay_requires(name: str) -> None:
    content = manifest(name)
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", KINDS[name])
    assert content["metadata"]["name"]
    cluster = cluster_of(name)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert isinstance(group["rayStartParams"], dict)
        pod = group["template"]["spec"]
        claimed = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"]
            assert set(container["resources"]) == {"limits", "requests"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= claimed
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", KINDS)
def test_a_cluster_asks_for_a_token_and_names_the_installed_ray(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == importlib.metadata.version("ray")


def test_the_job_runs_the_application() -> None:
    entrypoint = manifest("rayjob")["spec"]["entrypoint"]
    assert entrypoint.startswith("python -m app run /app/examples/")
    assert " --json" in entrypoint


def validated(text: str) -> dict[str, Any]:
    """A configuration after Serve's own schema, with defaults filled in.

    In a process of its own: Ray reads its environment when it is imported, and this one may
    start a session later.
    """
    code = (
        "import sys, yaml; from ray.serve.schema import ServeDeploySchema as S; "
        "print(S.model_validate(yaml.safe_load(sys.stdin)).model_dump_json())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_the_service_is_a_serve_configuration() -> None:
    config = validated(manifest("rayservice")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert application["import_path"] == "app.serving.service:build"
    settings = {key: value for key, value in application["args"].items() if key != "bundle"}
    assert parse({"serve": settings}, "args").serve.host == config["http_options"]["host"]
    containers = cluster_of("rayservice")["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert "RAYREC_API_KEY" in {variable["name"] for variable in containers[0]["env"]}


def test_the_configuration_of_a_bundle_names_it(tmp_path: Path) -> None:
    bundle = tmp_path / "it's a bundle: #1"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    config = validated(serve_config(bundle, port=8123))
    assert config["applications"][0]["args"] == {"bundle": str(bundle), "host": "127.0.0.1", "port": 8123}
    assert config["http_options"]["port"] == 8123


def test_a_bundle_may_lie_in_storage() -> None:
    config = validated(serve_config("s3://shop/bundle?region=eu-west-1"))
    assert config["applications"][0]["args"]["bundle"] == "s3://shop/bundle?region=eu-west-1"


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="is not a bundle"):
        serve_config(tmp_path)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.serve"])
def test_an_image_copies_what_exists_and_runs_as_a_user(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((REPOSITORY / word).exists() for word in copied if word != "README.md")
    assert lines.index("USER rayrec") > max(i for i, line in enumerate(lines) if line.startswith("RUN"))


def variables_of(dockerfile: str) -> dict[str, str]:
    text = (FOLDER / dockerfile).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("ENV ")]
    pairs = [word.partition("=") for line in lines for word in shlex.split(line)[1:]]
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.serve"])
def test_an_image_sets_the_environment_of_every_ray_node(name: str) -> None:
    """KubeRay starts Ray by itself: what the image does not set, no pod has."""
    assert haproxy.variables().items() <= variables_of(name).items()
    assert "wget" in (FOLDER / name).read_text()  # KubeRay's probes of the workers call it


def test_the_serving_image_starts_haproxy_as_the_application_does(tmp_path: Path) -> None:
    image = variables_of("Dockerfile.serve")
    for variable, value in haproxy.environment(tmp_path).items():
        if variable == haproxy.BINARY:
            assert image[variable].endswith("/".join(Path(value).parts[-3:]))
        else:
            assert image[variable] == value.replace(str(tmp_path), "/opt/rayrec")


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_says_from_which_kuberay_on_it_is_safe(name: str) -> None:
    assert "KubeRay 1.5.1 or later" in (FOLDER / "kuberay" / f"{name}.yaml").read_text()


def test_workers_come_and_go_where_their_number_has_a_range() -> None:
    for name in KINDS:
        cluster = cluster_of(name)
        ranges = any(group["minReplicas"] < group["maxReplicas"] for group in cluster["workerGroupSpecs"])
        assert bool(cluster.get("enableInTreeAutoscaling")) == ranges, name


def test_the_service_keeps_feedback_in_a_redis_from_a_secret_and_serves_through_haproxy() -> None:
    config = validated(manifest("rayservice")["spec"]["serveConfigV2"])
    assert "store" not in config["applications"][0]["args"]  # an SQLite file, or a password in the open
    cluster = cluster_of("rayservice")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"]["value"] == "1"
        assert variables["RAYREC_STORE"]["valueFrom"]["secretKeyRef"] == {
            "name": "rayrec-store",
            "key": "url",
        }


def test_the_serving_image_has_neither_torch_nor_pandas() -> None:
    text = (FOLDER / "Dockerfile.serve").read_text()
    installed = re.search(r"pip install.*?\n\s+(.*)\n", text)
    assert installed
    assert not {"torch", "pandas", "pyarrow", '"ray[data]"'} & set(installed[1].split())
