"""The systems of the serving benchmark: how each is installed, started, asked and ended."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import psutil

from app.bundle.request.requests import RankRequest
from app.terminal.console import say
from tests.bench.serving_load import Target
from tests.bench.serving_model import World
from tests.bench.serving_peers.scorer import WEIGHTS

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = "tests.bench.serving_peers"
READY_S, ENDED_S, CALM_S, CALM_PERCENT = 120.0, 30.0, 30.0, 8.0
UVICORN = f"-m uvicorn {PEERS}.with_fastapi:app --host 127.0.0.1 --no-access-log --log-level warning"


@dataclass(frozen=True)
class System:
    """A server of rankings.

    Args:
        command: what its Python is given; {port} and {bundle} are filled in.
        environment: name of its virtual environment; empty: this one.
        paths: of the calls that rank; where there are several, they are variants.
        opening, closing: around a request, where it is not the whole body.
    """

    command: str
    environment: str = ""
    paths: tuple[str, ...] = ("/rank",)
    opening: str = ""
    closing: str = ""


def _ours(replicas: int) -> System:
    fixed = f"--set serve.min_replicas={replicas} --set serve.max_replicas={replicas}"
    return System(f"-m app serve {{bundle}} --port {{port}} {fixed}", paths=("/v1/rank",))


SYSTEMS = {
    "ours": _ours(1),
    "ours2": _ours(2),
    "fastapi": System(f"{UVICORN} --port {{port}}", "fastapi", ("/rank", "/batched")),
    "fastapi2": System(f"{UVICORN} --port {{port}} --workers 2", "fastapi", ("/rank", "/batched")),
    "litserve": System(f"-m {PEERS}.with_litserve {{port}}", "litserve"),
    "bentoml": System(
        f"-m bentoml serve {PEERS}.with_bentoml:Ranking --host 127.0.0.1 --port {{port}}",
        "bentoml",
        opening='{"requests":[',
        closing="]}",
    ),
    "ray_serve": System(f"-m {PEERS}.with_ray_serve {{port}}", "ray_serve"),
}


def python_of(system: System, folder: Path) -> Path:
    """The interpreter of a system; its environment is made in `folder` where there is none yet."""
    if not system.environment:
        return Path(sys.executable)
    pins = Path(__file__).parent / "serving_peers" / f"requirements-{system.environment}.txt"
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    venv = folder / system.environment
    stamp = venv / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f"installing {pins.name}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(pins)]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted)
    return venv / "bin" / "python"


@contextmanager
def running(name: str, world: World, venvs: Path) -> Iterator[list[Target]]:
    """Start a system for the block; yields a target for each of its variants.

    Its output goes to NAME.log in the folder of `world`.

    Raises:
        SystemExit: it does not start; the end of its log is shown.
    """
    system, port = SYSTEMS[name], free_port()
    command = system.command.format(port=port, bundle=world.folder / "bundle").split(" ")
    log = world.folder / f"{name}.log"
    targets = [
        Target(port, path, world.users, world.lists, system.opening, system.closing) for path in system.paths
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(python_of(system, venvs)), *command],
            cwd=REPOSITORY,
            env=_environment(system, world),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, targets, world.requests(1)[0], log)
            _wait_until_calm()
            yield targets
        finally:
            _end(process)


def _environment(system: System, world: World) -> Mapping[str, str]:
    given = dict(os.environ)
    if system.environment:
        given |= {WEIGHTS: str(world.folder / "weights"), "PYTHONPATH": str(REPOSITORY)}
        given |= {"DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return given


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(
    process: subprocess.Popen[bytes], targets: list[Target], request: RankRequest, log: Path
) -> None:
    deadline = time.monotonic() + READY_S
    with httpx.Client(timeout=5) as client:
        while True:
            try:
                for target in targets:
                    ask(client, target, request)
                return
            except (httpx.HTTPError, msgspec.MsgspecError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                    raise SystemExit(f"{' '.join(process.args)} does not answer ({error})\n{end}") from None  # type: ignore[arg-type]
            time.sleep(0.1)


def _wait_until_calm() -> None:
    """What systems still do when they already answer is part of their start, not of their speed."""
    deadline = time.monotonic() + CALM_S
    while psutil.cpu_percent(1.0) > CALM_PERCENT and time.monotonic() < deadline:
        continue


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the program; what it started and left alive is killed, by pid and start time."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    process.terminate()
    try:
        process.wait(ENDED_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(below, 5)
    for process_left in left:
        process_left.kill()
    psutil.wait_procs(left, 5)


class _Scored(msgspec.Struct):
    item: str
    score: float


class _Ranking(msgspec.Struct):
    items: list[_Scored]


def ask(client: httpx.Client, target: Target, request: RankRequest) -> dict[str, float]:
    """The scores of a request's candidates by item, best first."""
    body = f"{target.opening}{msgspec.json.encode(request).decode()}{target.closing}"
    url = f"http://127.0.0.1:{target.port}{target.path}"
    answer = client.post(url, content=body, headers={"Content-Type": "application/json"}).raise_for_status()
    content = answer.content
    if content.startswith(b"["):
        [ranking] = msgspec.json.decode(content, type=list[_Ranking])
    else:
        ranking = msgspec.json.decode(content, type=_Ranking)
    return {scored.item: scored.score for scored in ranking.items}


def largest_difference(
    target: Target, requests: list[RankRequest], expected: list[dict[str, float]]
) -> float:
    """Of the scores of requests, asked 16 at a time, to those expected; relative where these exceed 1."""
    with httpx.Client(timeout=30) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: ask(client, target, request), requests))
    return max(difference(*pair) for pair in zip(answers, expected, strict=True))


def difference(scores: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Largest difference of two scores of an item; infinite where the items are not the same."""
    if scores.keys() != expected.keys():
        return float("inf")
    return max(abs(scores[item] - score) / max(1.0, abs(score)) for item, score in expected.items())
