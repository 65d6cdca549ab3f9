"""Training survives the death of a worker and of the program, over real Ray Train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import pipeline
from app.artifact import Artifact, open_artifact
from app.data.dataset import Dataset
from app.evaluation.evaluate import Report, evaluate
from app.evaluation.scorer import ModelScorer
from app.models.discovery import model_class
from app.ray import processes
from app.recipe import Recipe, parse
from app.training.checkpoint import load_checkpoint
from app.training.defaults import candidates
from app.training.hosts import PROGRESS
from app.training.train import train
from tests.tiny import tiny_dataset

DEADLINE_S = 120.0
EPOCHS = 2
SETTINGS = {"epochs": EPOCHS, "batch_size": 32, "workers": 1, "patience": 0, "valid_users": 200}
DRIVER = """
import sys
from pathlib import Path
from app.data.dataset import Dataset
from app.recipe import parse
import app.training.loop
from app.training.train import train
app.training.loop.LOG_EVERY_S = 0.0  # an epoch may take less than the second between two lines
dataset = Dataset.open(Path(sys.argv[1]))
train(parse({"model": {"name": "mlp"}, "train": eval(sys.argv[2])}, "test"), dataset, Path(sys.argv[3]))
"""

CHOICE = """
import sys
from pathlib import Path
import app.training.loop
from app import pipeline
from app.recipe import parse
app.training.loop.LOG_EVERY_S = 0.0  # an epoch may take less than the second between two lines
pipeline.choose(parse({"train": eval(sys.argv[1])}, "test"), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Large enough that an epoch takes seconds, so that a kill falls into one."""
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset", users=1000, events=20_000)


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same training in this process, with nothing happening to it."""
    return train(recipe(workers=0), dataset, tmp_path_factory.mktemp("undisturbed") / "checkpoint")


def recipe(**changes: Any) -> Recipe:
    return parse({"model": {"name": "mlp"}, "train": {**SETTINGS, **changes}}, "test")


def quality(dataset: Dataset, artifact: Artifact) -> Report:
    checkpoint = load_checkpoint(artifact.path, dataset)
    return evaluate(recipe(), dataset, ModelScorer(checkpoint.model), baselines=False)


def wait_for(run: Path, reached: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The lines of a run's progress once they have come as far as `reached` wants."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        lines = read(run)
        if reached(lines):
            return lines
        time.sleep(0.02)
    raise AssertionError(f"the run in {run} never got there: {read(run)[-3:]}")


def read(run: Path) -> list[dict[str, Any]]:
    file = run / PROGRESS
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def in_the_second_epoch(lines: list[dict[str, Any]]) -> bool:
    """An epoch is behind, and a step of the next is logged."""
    return bool(lines) and lines[-1]["event"] == "step" and any(x["event"] == "epoch" for x in lines)


def assert_alike(dataset: Dataset, disturbed: Artifact, undisturbed: Artifact) -> None:
    disturbed_report, report = quality(dataset, disturbed), quality(dataset, undisturbed)
    low, high = report.intervals["ndcg@10"]
    assert low <= disturbed_report.figures["ndcg@10"] <= high
    assert disturbed.figures["epochs"] == undisturbed.figures["epochs"] == EPOCHS


def test_a_killed_worker_is_replaced_and_goes_on(
    ray_local: None,
    dataset: Dataset,
    undisturbed: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(wait_for(tmp_path / ".checkpoint.run", in_the_second_epoch)[-1]["pid"])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    # One epoch less than the recipe has, as a refit trains: each worker stops after the epochs it is given.
    survived = train(recipe(epochs=EPOCHS + 1), dataset, tmp_path / "checkpoint", epochs=EPOCHS)
    killer.join()
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    assert survived.figures["resumed_from"] >= 1
    assert f"resumed from epoch {survived.figures['resumed_from']}" in capsys.readouterr().err
    assert_alike(dataset, survived, undisturbed)


def test_the_same_command_goes_on_after_the_program_was_killed(
    ray_local: None, dataset: Dataset, undisturbed: Artifact, tmp_path: Path
) -> None:
    out, run = tmp_path / "checkpoint", tmp_path / ".checkpoint.run"
    command = [sys.executable, "-c", DRIVER, str(dataset.path), repr(SETTINGS), str(out)]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(run, in_the_second_epoch)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    processes.end_dead_runs()
    assert not out.exists()
    survived = train(recipe(), dataset, out)
    assert survived.figures["resumed_from"] >= 1
    assert not run.exists()
    assert_alike(dataset, survived, undisturbed)


def test_ctrl_c_and_the_same_command(dataset: Dataset, undisturbed: Artifact, tmp_path: Path) -> None:
    """In one process, without Ray: interrupted, nothing is published and the rest is trained later."""
    out, run = tmp_path / "checkpoint", tmp_path / ".checkpoint.run"
    command = [sys.executable, "-c", DRIVER, str(dataset.path), repr({**SETTINGS, "workers": 0}), str(out)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(run, in_the_second_epoch)
    driver.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in driver.communicate(timeout=30)[1]
    assert not out.exists()
    survived = train(recipe(workers=0), dataset, out)
    assert survived.figures["resumed_from"] >= 1
    assert_alike(dataset, survived, undisturbed)


def test_a_choice_of_the_model_goes_on_after_the_program_was_killed(tmp_path: Path) -> None:
    """What is trained is not trained again, and the training under way goes on from its last epoch."""
    data = tiny_dataset(tmp_path / "dataset", users=300, events=6000)
    names = [c.name for c in candidates(data)]
    learned = next(name for name in names if model_class(name).learns)
    closed = names[: names.index(learned)]
    settings = {**SETTINGS, "workers": 0, "epochs": 3}
    driver = subprocess.Popen([sys.executable, "-c", CHOICE, repr(settings), str(tmp_path)])
    wait_for(tmp_path / "candidates" / f".{learned}.run", in_the_second_epoch)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    fitted = {name: (tmp_path / "candidates" / name / "manifest.json").stat().st_mtime_ns for name in closed}
    assert not (tmp_path / "choice").exists()
    figures = pipeline.choose(parse({"train": settings}, "test"), tmp_path).figures
    assert [row["name"] for row in figures["candidates"]] == names
    for name, written in fitted.items():
        assert (tmp_path / "candidates" / name / "manifest.json").stat().st_mtime_ns == written
    trained = open_artifact(tmp_path / "candidates" / learned, "checkpoint", verify=False)
    assert trained.figures["resumed_from"] >= 1
