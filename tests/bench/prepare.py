"""Preparing against pandas and polars, and its memory: `python -m tests.bench.prepare`.

Shop events from CSV to a data set; Ray is started before the clock. The three must give the
same rows. Writes runs/bench/prepare.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from app.ray.session import ray_session
from app.recipe import Recipe, parse
from app.terminal.console import say
from tests.bench.prepare_peers import CORE, EVENTS, FIRST, HISTORY, LAST, THRESHOLD

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench"
EVENTS_A_USER, ITEMS_PER_ROW = 25, 200
NEED = {"pandas": 2.0, "polars": 0.5, "peak_mib_over_idle": 2048.0}
PARTS = ("train", "valid", "test")
PROGRAMS = ("ours", "polars", "pandas")
Figures = dict[str, Any]


def recipe_of(events: Path) -> Recipe:
    return parse(
        {
            "data": {
                "events": [str(events)],
                "user": "user_id",
                "item": "item_id",
                "event": "event",
                "value": "quantity",
                "event_types": EVENTS,
                "where": "quantity > 0",
                "outliers": [{"column": "price", "threshold": THRESHOLD}],
                "earliest": FIRST,
                "latest": LAST,
                "min_user_events": CORE,
                "min_item_events": CORE,
            },
            "split": {"method": "leave_last"},
            "features": {"history": HISTORY},
        },
        "bench",
    )


def make_log(folder: Path, rows: int) -> Path:
    from app.data.demo_shop.generate import generate

    start = time.perf_counter()
    generate(
        folder, users=max(100, rows // EVENTS_A_USER), items=max(500, rows // ITEMS_PER_ROW), events=rows
    )
    say(f"{rows} events generated in {time.perf_counter() - start:.1f} s")
    return folder / "events.csv"


class ProcessMeter:
    """Memory and CPU of a process and all below it, sampled.

    Memory is the proportional set size: pages that processes share count once. CPU seconds
    hardly depend on what else the machine does, as seconds on the clock do.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.peak, self.cpu = pid, 0.0, dict[int, float]()

    def sample(self) -> float:
        """MiB now."""
        total = 0
        for process in self._tree():
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                times = process.cpu_times()
            except (OSError, psutil.Error):
                continue  # it ended meanwhile
            self.cpu[process.pid] = times.user + times.system
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        self.peak = max(self.peak, total / 1024)
        return total / 1024

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            return []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample while the block runs."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                self.sample()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def ours_here(events: Path, out: Path) -> Figures:
    """Prepare in this process, which has done nothing before; Ray is up and idle at the start."""
    from app.data.stage import prepare

    with ray_session():
        time.sleep(3)  # the node settles: what is measured now counts as idle
        meter = ProcessMeter(os.getpid())
        idle, before = meter.sample(), sum(meter.cpu.values())
        with meter.running():
            start = time.perf_counter()
            artifact = prepare(recipe_of(events), out)
            seconds = time.perf_counter() - start
    cpu = sum(meter.cpu.values()) - before
    memory = {"idle_mib": idle, "peak_mib": meter.peak, "over_idle_mib": meter.peak - idle}
    return {"seconds": seconds, "cpu_seconds": cpu, **memory, **artifact.figures}


def run(name: str, events: Path, out: Path) -> Figures:
    """One program in a process of its own, so that nothing of the last run counts as idle."""
    module = ["tests.bench.prepare", "--ours"] if name == "ours" else ["tests.bench.prepare_peers", name]
    command = [sys.executable, "-m", *module, str(events), str(out)]
    load = os.getloadavg()[0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    meter = ProcessMeter(process.pid)
    with meter.running():
        output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{name} ended with exit code {process.returncode} (negative: by that signal)")
    figures = {"peak_mib": meter.peak, "cpu_seconds": sum(meter.cpu.values())}
    figures |= json.loads(output.splitlines()[-1]) | {"load_before": load}
    say(f"{name}: {figures}")
    return figures


def digest_of_peer(out: Path) -> dict[str, tuple[int, int]]:
    """Rows of each part and a sum of their hashes, which their order does not change."""
    import polars as pl

    figures = {}
    for part in PARTS:
        columns = [
            pl.col("user_id"),
            pl.col("item_id"),
            pl.col("time").cast(pl.Datetime("us")).dt.epoch("us"),
        ]
        frame = pl.scan_parquet(out / f"{part}.parquet").select(columns).collect()
        figures[part] = _digest(frame.rename({"user_id": "user", "item_id": "item"}))
    return figures


def digest_of_ours(out: Path) -> dict[str, tuple[int, int]]:
    import numpy as np
    import polars as pl

    from app.data.dataset import Dataset

    dataset = Dataset.open(out, verify=False)
    users, items = (pl.Series(list(ids), dtype=pl.String) for ids in (dataset.users, dataset.items))
    figures = {}
    for part in PARTS:
        rows = getattr(dataset, part)
        columns = {
            "user": users[np.asarray(rows.user).astype(np.uint32)],
            "item": items[np.asarray(rows.item).astype(np.uint32)],
            "time": pl.Series(np.asarray(rows.time)),
        }
        figures[part] = _digest(pl.DataFrame(columns))
    return figures


def _digest(frame: Any) -> tuple[int, int]:
    hashes = frame.hash_rows(seed=1).to_numpy()
    return len(frame), int(hashes.sum(dtype="uint64"))


def compare(rows: int, folder: Path, rounds: int) -> dict[str, list[Figures]]:
    """Runs of the three on the same log, in turns; stops where their rows differ."""
    events = make_log(folder / "shop", rows)
    runs: dict[str, list[Figures]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        digests = {}
        for name in PROGRAMS:
            runs[name].append(run(name, events, folder / name))
            digests[name] = (digest_of_ours if name == "ours" else digest_of_peer)(folder / name)
            shutil.rmtree(folder / name)
        if any(digest != digests["ours"] for digest in digests.values()):
            raise SystemExit(f"the rows differ: {digests}")
    shutil.rmtree(folder / "shop")
    return runs


def best(runs: list[Figures], figure: str = "seconds") -> float:
    """The least of the rounds: what disturbs a run can only add to it."""
    return float(min(r[figure] for r in runs))


def report(figures: Figures, peak: float) -> Figures:
    timed = figures["compared"]
    ratios = {name: best(timed[name]) / best(timed["ours"]) for name in ("pandas", "polars")}
    values = {**ratios, "peak_mib_over_idle": peak}
    bars = [
        {
            "name": n,
            "value": v,
            "need": NEED[n],
            "holds": v <= NEED[n] if n.startswith("peak") else v >= NEED[n],
        }
        for n, v in values.items()
    ]
    by_cpu = {n: best(timed[n], "cpu_seconds") / best(timed["ours"], "cpu_seconds") for n in ratios}
    versions = {n: importlib.metadata.version(n) for n in ("ray", "polars", "pandas", "pyarrow", "numpy")}
    machine = {"cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1)}
    return {
        "name": "prepare",
        "machine": {**machine, "python": platform.python_version()},
        "versions": versions,
        "ratios": ratios,
        "peak_mib_over_idle": peak,
        "bars": bars,
        "figures": {**figures, "cpu_ratios": by_cpu},
    }


def write(result: Figures) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "prepare.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["# prepare", "", "| bar | value | need | holds |", "|---|---|---|---|"]
    lines += [
        f"| {b['name']} | {b['value']:.2f} | {b['need']} | {'yes' if b['holds'] else 'no'} |"
        for b in result["bars"]
    ]
    lines += [
        "",
        "| program | seconds of each round | CPU seconds | peak MiB | load before |",
        "|---|---|---|---|---|",
    ]
    for name, runs in result["figures"]["compared"].items():
        columns = [
            ", ".join(f"{r[key]:.{digits}f}" for r in runs)
            for key, digits in (("seconds", 1), ("cpu_seconds", 0), ("peak_mib", 0), ("load_before", 1))
        ]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    lines += ["", "Ratios are of the least seconds of the rounds; `load` is other work on the machine."]
    (OUT / "prepare.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="events of the comparison")
    parser.add_argument("--large", type=int, default=30_000_000, help="events of the memory bar; 0: skip")
    parser.add_argument("--rounds", type=int, default=2, help="times that the three take turns")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to work; default: a temporary folder"
    )
    parser.add_argument("--ours", type=Path, nargs=2, metavar=("EVENTS", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        print(json.dumps(ours_here(*given.ours)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-prepare-", dir=given.folder) as name:
        folder = Path(name)
        figures: Figures = {"rows": given.rows, "compared": compare(given.rows, folder, given.rounds)}
        if given.large:
            events = make_log(folder / "shop", given.large)
            figures["large"] = {"rows": given.large, **run("ours", events, folder / "ours")}
    peaks = [r["over_idle_mib"] for r in figures["compared"]["ours"]]
    write(report(figures, max([*peaks, figures.get("large", {}).get("over_idle_mib", 0.0)])))


if __name__ == "__main__":
    main()
