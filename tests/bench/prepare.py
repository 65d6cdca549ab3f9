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

from app.console import say
from app.engine import ray_session
from app.recipe import Recipe, parse
from tests.bench.prepare_peers import CORE, EVENTS, FIRST, HISTORY, LAST, THRESHOLD

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench"
EVENTS_A_USER, ITEMS_PER_ROW = 25, 200
NEED = {"pandas": 2.0, "polars": 0.5, "peak_mib_over_idle": 2048.0}
PARTS = ("train", "valid", "test")
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
    from app.data.shop import generate

    start = time.perf_counter()
    generate(
        folder, users=max(100, rows // EVENTS_A_USER), items=max(500, rows // ITEMS_PER_ROW), events=rows
    )
    say(f"{rows} events generated in {time.perf_counter() - start:.1f} s")
    return folder / "events.csv"


def tree_mib() -> float:
    """Proportional set size of this process and all below it: shared pages count once."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended meanwhile
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


@contextmanager
def watched() -> Iterator[Figures]:
    """Idle and peak memory of the process tree around a block."""
    found: Figures = {"idle_mib": tree_mib(), "peak_mib": 0.0, "samples": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            found["peak_mib"] = max(found["peak_mib"], tree_mib())
            found["samples"] += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found["over_idle_mib"] = found["peak_mib"] - found["idle_mib"]


def ours(events: Path, out: Path) -> Figures:
    from app.data.prepare import prepare

    with ray_session():
        time.sleep(3)  # until the node is idle; what counts as idle, not as right
        with watched() as figures:
            start = time.perf_counter()
            artifact = prepare(recipe_of(events), out)
            figures["seconds"] = time.perf_counter() - start
    return {**figures, **artifact.figures}


def peer(name: str, events: Path, out: Path) -> Figures:
    command = [sys.executable, "-m", "tests.bench.prepare_peers", name, str(events), str(out)]
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    if process.wait():
        raise SystemExit(f"{name} failed")
    return {**json.loads(process.stdout.read().splitlines()[-1]), "peak_mib": peak / 2**20}


def digest_of_peer(out: Path) -> dict[str, tuple[int, int]]:
    """Rows of each part and a sum of their hashes, which their order does not change."""
    import polars as pl

    found = {}
    for part in PARTS:
        columns = [
            pl.col("user_id"),
            pl.col("item_id"),
            pl.col("time").cast(pl.Datetime("us")).dt.epoch("us"),
        ]
        frame = pl.scan_parquet(out / f"{part}.parquet").select(columns).collect()
        found[part] = _digest(frame.rename({"user_id": "user", "item_id": "item"}))
    return found


def digest_of_ours(out: Path) -> dict[str, tuple[int, int]]:
    import numpy as np
    import polars as pl

    from app.data.dataset import Dataset

    dataset = Dataset.open(out, verify=False)
    users, items = (pl.Series(list(ids), dtype=pl.String) for ids in (dataset.users, dataset.items))
    found = {}
    for part in PARTS:
        rows = getattr(dataset, part)
        columns = {
            "user": users[np.asarray(rows.user).astype(np.uint32)],
            "item": items[np.asarray(rows.item).astype(np.uint32)],
            "time": pl.Series(np.asarray(rows.time)),
        }
        found[part] = _digest(pl.DataFrame(columns))
    return found


def _digest(frame: Any) -> tuple[int, int]:
    hashes = frame.hash_rows(seed=1).to_numpy()
    return len(frame), int(hashes.sum(dtype="uint64"))


def compare(rows: int, folder: Path) -> Figures:
    """Time of the three on the same log; stops where their rows differ."""
    events = make_log(folder / "shop", rows)
    figures: Figures = {"ours": ours(events, folder / "ours")}
    mine = digest_of_ours(folder / "ours")
    shutil.rmtree(folder / "ours")
    for name in ("polars", "pandas"):
        figures[name] = peer(name, events, folder / name)
        theirs = digest_of_peer(folder / name)
        if theirs != mine:
            raise SystemExit(f"{name} gives other rows: {theirs} against {mine}")
        shutil.rmtree(folder / name)
        say(f"{name}: {figures[name]}")
    shutil.rmtree(folder / "shop")
    return figures


def report(figures: Figures, peak: float) -> Figures:
    timed = figures["compared"]
    ratios = {name: timed[name]["seconds"] / timed["ours"]["seconds"] for name in ("pandas", "polars")}
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
    versions = {n: importlib.metadata.version(n) for n in ("ray", "polars", "pandas", "pyarrow", "numpy")}
    machine = {"cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1)}
    return {
        "name": "prepare",
        "machine": {**machine, "python": platform.python_version(), "load": os.getloadavg()[0]},
        "versions": versions,
        "ratios": ratios,
        "peak_mib_over_idle": peak,
        "bars": bars,
        "figures": figures,
    }


def write(result: Figures) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "prepare.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["# prepare", "", "| bar | value | need | holds |", "|---|---|---|---|"]
    lines += [
        f"| {b['name']} | {b['value']:.2f} | {b['need']} | {'yes' if b['holds'] else 'no'} |"
        for b in result["bars"]
    ]
    lines += ["", "| program | seconds | peak MiB |", "|---|---|---|"]
    timed = result["figures"]["compared"]
    lines += [f"| {n} | {f['seconds']:.1f} | {f['peak_mib']:.0f} |" for n, f in timed.items()]
    (OUT / "prepare.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="events of the comparison")
    parser.add_argument("--large", type=int, default=30_000_000, help="events of the memory bar; 0: skip")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to work; default: a temporary folder"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-prepare-", dir=given.folder) as name:
        folder = Path(name)
        figures: Figures = {"rows": given.rows, "compared": compare(given.rows, folder)}
        if given.large:
            figures["large"] = {
                "rows": given.large,
                **ours(make_log(folder / "shop", given.large), folder / "ours"),
            }
    peaks = [figures["compared"]["ours"]["over_idle_mib"], figures.get("large", {}).get("over_idle_mib", 0.0)]
    write(report(figures, max(peaks)))


if __name__ == "__main__":
    main()
