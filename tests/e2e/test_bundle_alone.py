"""A bundle ranks in an environment that has numpy, onnxruntime and msgspec and nothing else of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from app.bundle.request.requests import Context, RankRequest, RecommendRequest
from tests.bundles import NOW, bundle_of, random_model
from tests.conftest import REPOSITORY
from tests.tiny import tiny_dataset

PACKAGES = ("numpy", "onnxruntime", "msgspec")
OPTIONS = ("--no-deps", "--no-compile")  # nothing else at all, and quickly
RANK = """
import importlib.util, json, sys
for name in ("torch", "ray", "pandas", "pyarrow", "sklearn", "onnx", "pydantic"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed"
from app.bundle.request.requests import Context, RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
ranker = Ranker.open(sys.argv[1])
moment = Context(timestamp=float(sys.argv[2]))
(ranked,) = ranker.rank([RankRequest("u3", ["i1", "i2", "i3", "new"], context=moment, explain=True)])
(best,) = ranker.recommend([RecommendRequest("u3", k=5, context=moment)])
print(json.dumps([[(s.item, s.score) for s in answer.items] for answer in (ranked, best)]))
"""


@pytest.fixture(scope="module")
def lonely_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment, at the versions that are installed here."""
    folder = tmp_path_factory.mktemp("alone") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pins = [f"{name}=={version(name)}" for name in PACKAGES]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *OPTIONS, *pins]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and "connection" in done.stderr.lower():
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return python


def test_it_ranks_as_here(lonely_python: Path, tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", events=1500)
    ranker = bundle_of(random_model("two_tower", dataset), dataset, tmp_path / "bundle", precision="int8")
    (home := tmp_path / "home").mkdir()
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(
        [lonely_python, "-c", RANK, str(tmp_path / "bundle"), str(NOW)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*"))  # where ONNX Runtime's telemetry would keep a device id
    moment = Context(timestamp=float(NOW))
    here = [
        *ranker.rank([RankRequest("u3", ["i1", "i2", "i3", "new"], context=moment)]),
        *ranker.recommend([RecommendRequest("u3", k=5, context=moment)]),
    ]
    for pairs, answer in zip(json.loads(done.stdout), here, strict=True):
        assert [item for item, _ in pairs] == [one.item for one in answer.items]
        assert [score for _, score in pairs] == pytest.approx([one.score for one in answer.items], abs=1e-5)
