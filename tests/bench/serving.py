"""Serving against servers written by hand and other frameworks: `python -m tests.bench.serving`.

One model (user and item vectors through dense layers), the same weights everywhere. In every
round each system is started, its answers are compared, it is asked by wrk over 1, 16 and 64
connections and then by arrivals at 50 and 80 % of what it could answer, and is ended before
the next one starts. Writes runs/bench/serving.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from app.bundle.runtime import Ranker
from app.terminal.console import say
from tests.bench import serving_report as report
from tests.bench.serving_load import Figures, poisson, wrk
from tests.bench.serving_model import CANDIDATES, HIDDEN, ITEMS, WIDTH, World, make_world
from tests.bench.serving_systems import (
    REPOSITORY,
    SYSTEMS,
    difference,
    largest_difference,
    python_of,
    running,
)

OUT = REPOSITORY / "runs" / "bench"
PINS = Path(__file__).parent / "serving_peers"
CHECKED = 64  # requests whose answers are compared
TOLERANCE = 1e-3
LIMIT = "limit"
NOTES = (
    "Answers of peers, which have float32 weights, are compared with our model in float32, those of our "
    "service, whose rows are int8, with our runtime in this process."
)


class Bench:
    """What stays the same over all turns."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self.requests = world.requests(CHECKED)
        answers = Ranker.open(world.folder / "bundle").rank(self.requests)
        self.served = [{scored.item: scored.score for scored in answer.items} for answer in answers]
        self.exact = world.exact(self.requests)

    def rounding(self) -> float:
        """Largest difference of a score that int8 rows make."""
        return max(map(difference, self.served, self.exact))

    def turn(self, name: str) -> report.Turn:
        load = os.getloadavg()[0]
        figures = self._limit() if name == LIMIT else self._server(name)
        rates = [
            of_setting["requests_per_s"]
            for by_connections in figures["closed"].values()
            for of_setting in by_connections.values()
        ]
        say(f"{name}: {', '.join(f'{rate:,.0f}' for rate in rates)} requests/s")
        return {**figures, "load_before": load}  # type: ignore[typeddict-item]

    def _limit(self) -> dict[str, Any]:
        world = self.world
        files = [str(path) for path in (world.folder / "bundle", world.users, world.lists)]
        command = [sys.executable, "-m", "tests.bench.serving_limit", *files, str(self.seconds)]
        output = subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.PIPE).stdout
        rates = {batch: {"requests_per_s": rate} for batch, rate in json.loads(output).items()}
        return {"difference": 0.0, "closed": {"": {**rates, "64": rates["16"]}}, "open": {}}

    def _server(self, name: str) -> dict[str, Any]:
        closed: dict[str, dict[str, Figures]] = {}
        with running(name, self.world, OUT / "venvs") as targets:
            expected = self.served if name.startswith("ours") else self.exact
            differs = max(largest_difference(target, self.requests, expected) for target in targets)
            if differs > TOLERANCE:
                raise SystemExit(f"the scores of {name} differ by {differs:.2g}")
            for target in targets:
                wrk(target, 16, self.seconds)  # warms it up
                closed[target.path] = {str(c): wrk(target, c, self.seconds) for c in report.CONNECTIONS}
            capacity, best = max(
                (max(closed[target.path][c]["requests_per_s"] for c in ("16", "64")), target)
                for target in targets
            )
            arrivals = {
                str(load): poisson(best, capacity * load / 100, self.seconds) for load in report.LOADS
            }
        return {"difference": differs, "closed": closed, "open": arrivals}


def measure(names: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    """All systems in turns."""
    for name in names:
        if name != LIMIT:
            python_of(SYSTEMS[name], OUT / "venvs")
    folder = OUT / "serving"
    shutil.rmtree(folder, ignore_errors=True)
    bench = Bench(make_world(folder), seconds)
    turns: dict[str, list[report.Turn]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            turns[name].append(bench.turn(name))
    return {
        "model": f"{ITEMS:,} items, {WIDTH} wide, layers of {HIDDEN}, {CANDIDATES} candidates a request",
        "rounds": rounds,
        "seconds": seconds,
        "notes": f"{NOTES} int8 changes a score by at most {bench.rounding():.2g}.",
        "int8_difference": bench.rounding(),
        "systems": {name: report.medians(of_system) for name, of_system in turns.items()},
    }


def result_of(figures: dict[str, Any]) -> dict[str, Any]:
    systems = figures["systems"]
    bars = report.bars(systems)
    p50 = {bar["name"]: bar["value"] for bar in bars if bar["name"] == report.P50}
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "name": "serving",
        "machine": {"cores": os.cpu_count(), "memory_gib": memory, "python": platform.python_version()},
        "versions": versions(),
        "ratios": report.ratios(systems),
        **p50,
        "bars": bars,
        "figures": figures,
    }


def versions() -> dict[str, str]:
    """Those of the peers, and of what scores in ours."""
    wanted = {
        "fastapi": ("fastapi", "uvicorn", "torch"),
        "litserve": ("litserve",),
        "bentoml": ("bentoml",),
        "ray_serve": ("ray",),
    }
    installed = {name: importlib.metadata.version(name) for name in ("onnxruntime", "numpy", "msgspec")}
    for peer, packages in wanted.items():
        lines = (PINS / f"requirements-{peer}.txt").read_text().split()
        pins = dict(line.split("==") for line in lines)
        installed |= {package: pins[package] for package in packages}
    return installed


def write(result: dict[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "serving.json").write_text(json.dumps(result, indent=1) + "\n")
    text = report.markdown(result)
    (OUT / "serving.md").write_text(text)
    print(text, end="")


def main() -> None:
    names = ("ours", *report.PEERS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that all take turns")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=names[1:], default=names[1:], help="peers beside ours")
    parser.add_argument("--short", action="store_true", help="one round of one second, to see that all works")
    given = parser.parse_args()
    rounds, seconds = (1, 1.0) if given.short else (given.rounds, given.seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    ours = ["ours", *sorted({report.OURS[peer] for peer in given.only if peer in report.OURS})]
    result = result_of(measure([*ours, *given.only], rounds, seconds))
    write(result)
    raise SystemExit(0 if all(bar["holds"] for bar in result["bars"]) else 1)


if __name__ == "__main__":
    main()
