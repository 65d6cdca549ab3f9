"""What the README tells a new user to type works as written."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
# Commands that a test of their own runs, with the folder names of that test.
CHANGES = ("deploy", "rollback", "status", "experiment")
ELSEWHERE = {
    "rayrec events": "unit/stores/test_export.py",
    "rayrec tune": "e2e/test_tune.py",
    "rayrec bench": "unit/comparison/test_models.py",
    "rayrec compare": "unit/comparison/test_runs.py",
    "rayrec evaluate": "unit/comparison/test_folds.py",
    "python -m cluster": "e2e/test_cluster.py",
    **{f"rayrec {verb}": "e2e/test_deploy.py" for verb in CHANGES},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's recipe and a log that has its columns."""
    folder = tmp_path_factory.mktemp("readme")
    (recipe,) = re.findall(r"```toml\n# recipe.toml\n(.*?)```", README, re.DOTALL)
    (folder / "recipe.toml").write_text(recipe)
    (folder / "log").mkdir()
    rng = random.Random(0)
    with (folder / "log" / "2026-01.csv").open("w", newline="") as stream:
        log = csv.writer(stream)
        log.writerow(["customer", "product", "time", "action", "quantity"])
        for n in range(4000):
            user = rng.randrange(80)
            product = (user % 4) * 15 + rng.randrange(15)  # four groups of taste
            action = rng.choice(["view", "view", "cart", "purchase"])
            day, second = 1 + n // 200, n % 200
            time = f"2026-01-{day:02d}T10:{second // 60:02d}:{second % 60:02d}"
            log.writerow([f"u{user}", f"p{product}", time, action, rng.choice([1, 2, 0])])
    return folder


def run(command: str, folder: Path) -> str:
    """Output of a README command, run in `folder` by this environment's rayrec."""
    words = shlex.split(command)
    assert words[0] == "rayrec"
    done = subprocess.run(
        [sys.executable, "-m", "app", *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(start: str) -> str:
    """The README's command that begins like this."""
    (found,) = (c for c in COMMANDS if c.startswith(start))
    return found


def test_init_then_run_then_rank(shop: Path) -> None:
    guessed = run(command("rayrec init mine"), shop)
    assert all(name in guessed for name in ("customer", "product", "time", "action"))
    ran = run(command("rayrec run") + " --set train.minutes=0.1", shop)  # to choose the model in
    assert "ndcg@10" in ran
    compared = json.loads(run(command("rayrec check mine/recipe.toml --bundle") + " --json", shop))
    for way in ("runtime", "service"):
        assert compared[way]["different"] == 0, compared
    assert "filtered" in run("rayrec check recipe.toml", shop)  # the recipe that is written by hand
    assert (shop / "runs/mine/bundle/manifest.json").is_file()
    ranked = json.loads(run(command("rayrec rank runs/mine/bundle --user ") + " --json", shop))
    assert len(ranked["items"]) == 5
    (shop / "users.txt").write_text("u1\nu2\n")
    lists = json.loads(run(command("rayrec rank runs/mine/bundle --users ") + " --json", shop))
    assert lists["users"] == 2
    assert (shop / "lists.parquet").is_file()


@pytest.fixture
def served(shop: Path) -> Iterator[int]:
    """The port that the README's serve command answers at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [*shlex.split(command("rayrec serve"))[1:], "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *words], cwd=shop, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        assert any(line.startswith("try: curl") for line in process.stderr), "it ended before it served"
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_serve_answers_the_curl_line(served: int) -> None:
    words = shlex.split(command("curl").replace("localhost:8000", f"localhost:{served}"))
    answer = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert len(answer["items"]) == 5


@pytest.mark.parametrize("target", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(target: str) -> None:
    planned = subprocess.run(
        ["make", "-n", *target.split()[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert planned.stdout


def test_every_other_command_has_a_test_of_its_own() -> None:
    run_here = ("make", "curl", "rayrec init", "rayrec check", "rayrec run", "rayrec rank", "rayrec serve")
    for found in COMMANDS:
        if not found.startswith(run_here):
            (test,) = (t for start, t in ELSEWHERE.items() if found.startswith(start))
            assert found.split()[1] in (REPOSITORY / "tests" / test).read_text()


def test_every_path_it_names_exists() -> None:
    rows = re.findall(r"^\| (`.+) \| (.+) \|$", README.partition("## Where things are")[2], re.MULTILINE)
    assert len(rows) > 8
    for first, second in rows:
        paths = re.findall(r"`([^`]+)`", first)
        paths += [paths[0] + room for room in re.findall(r"`([^`]+/)`", second)]
        assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    linked = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert [link for link in linked if not (REPOSITORY / link).exists()] == []
