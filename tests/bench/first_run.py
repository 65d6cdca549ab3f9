"""A new user's first run on public logs as they came: `python -m tests.bench.first_run`.

For each log three commands and no edit: `rayrec init --from`, `rayrec run`, `rayrec serve`, and one
recommendation over HTTP. The model is compared with the better of popularity and item_knn on the same
test users, at the moment of the test event and a stated time after the last event. Writes
runs/bench/first_run.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from app.terminal.console import say

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench"
DATA = Path(os.environ.get("RAYREC_DATA", REPOSITORY.parent / "shared" / "data"))
LOGS = {
    "diginetica": ["as-they-came/diginetica/*"],
    "retailrocket": ["as-they-came/retailrocket/*"],
    "steam": ["as-they-came/steam/*"],
    "book-crossing": ["as-they-came/book-crossing/*"],
    "online-retail": ["online-retail/online_retail.csv.gz"],
}
FIGURE, BASELINES = "ndcg@10", ("popularity", "item_knn")
LIMIT_S, SERVE_S = 900, 180
NEED = {"ratio": 1.0, "ratio_ordered": 1.1, "minutes": 10.0, "delayed_sets": 0.9}
Figures = dict[str, Any]


def first_run(log: str, folder: Path) -> Figures:
    """The three commands on a log; figures of the model, its baselines and the time taken."""
    files = [str(path) for pattern in LOGS[log] for path in sorted(DATA.glob(pattern))]
    if not files:
        raise SystemExit(f"{log} is not in {DATA}; name the folder of the data in RAYREC_DATA")
    start = time.monotonic()
    _rayrec("init", str(folder), "--from", *files)
    run = json.loads(_rayrec("run", str(folder / "recipe.toml"), "--out", str(folder / "out"), "--json"))
    ran = time.monotonic()
    items = _recommend(Path(run["bundle"]), folder)
    figures = {name: run["baselines"][name][FIGURE] for name in BASELINES}
    best = max(figures, key=lambda name: figures[name])
    return {
        FIGURE: run["figures"][FIGURE],
        **figures,
        "ratio": run["figures"][FIGURE] / max(figures[best], 1e-12),
        "difference": run["differences"][best][FIGURE],
        "order": run["data"]["order"],
        "delayed": {name: delayed[FIGURE] for name, delayed in run["delayed"].items()},
        "choice": run.get("choice"),
        "run_s": round(ran - start, 1),
        "first_recommendation_s": round(time.monotonic() - start, 1),
        "recommended": items,
        "seconds": run["seconds"],
    }


def _rayrec(*arguments: str) -> str:
    command = [sys.executable, "-m", "app", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise SystemExit(f"rayrec {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout.decode()


def _recommend(bundle: Path, folder: Path) -> int:
    """Serve the bundle and ask once; returns how many items came."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "serve.log").open("w") as log:
        command = [sys.executable, "-m", "app", "serve", str(bundle), "--port", str(port)]
        service = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        return _ask(f"http://127.0.0.1:{port}/v1/recommend", service)
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)


def _ask(url: str, service: subprocess.Popen[bytes]) -> int:
    body = json.dumps({"user": "1", "k": 10}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    deadline = time.monotonic() + SERVE_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return len(json.load(answer)["items"])
        except OSError:
            if time.monotonic() > deadline or service.poll() is not None:
                raise
            time.sleep(0.2)


def report(results: dict[str, Figures]) -> Figures:
    """What is written: a ratio for each log, and the bars."""
    ordered = [r["ratio"] for r in results.values() if r["order"] != "none"]
    # Without times there is no moment to ask at: figures are the same at any.
    sets = [
        min(r["delayed"].values(), default=r[FIGURE]) / r[FIGURE]
        for r in results.values()
        if r["order"] == "none"
    ]
    behind = [log for log, r in results.items() if r["difference"][2] < 0]  # the whole interval is below 0
    slowest = max(r["run_s"] for r in results.values()) / 60
    bars = [
        {"name": "logs behind a baseline", "value": len(behind), "need": 0, "holds": not behind},
        {"name": "minutes of the slowest", "value": slowest, "need": NEED["minutes"], "holds": slowest <= 10},
    ]
    for name, values, key in (
        ("mean ratio where there is an order", ordered and [statistics.mean(ordered)], "ratio_ordered"),
        ("at a serving moment, without times", sets and [min(sets)], "delayed_sets"),
    ):
        if values:
            need = NEED[key]
            bars.append({"name": name, "value": values[0], "need": need, "holds": values[0] >= need})
    versions = {name: importlib.metadata.version(name) for name in ("ray", "torch", "polars", "numpy")}
    return {
        "name": "first_run",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": versions,
        "ratios": {log: r["ratio"] for log, r in results.items()},
        "bars": bars,
        "figures": results,
    }


def _markdown(content: Figures) -> str:
    lines = [
        "| log | NDCG@10 | popularity | item_knn | ratio | difference | at a serving moment | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for log, r in content["figures"].items():
        low, high = r["difference"][1:]
        delayed = ", ".join(f"{name} {value:.4f}" for name, value in r["delayed"].items())
        lines.append(
            f"| {log} | {r[FIGURE]:.4f} | {r['popularity']:.4f} | {r['item_knn']:.4f} | {r['ratio']:.2f} "
            f"| {low:+.4f} to {high:+.4f} | {delayed} | {r['run_s']:.0f} |"
        )
    bars = [f"- {b['name']}: {b['value']:.3g} (need {b['need']:g}) {b['holds']}" for b in content["bars"]]
    return "\n".join([*lines, "", *bars, ""])


def main() -> None:
    """Run the logs that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="*", help=f"of {', '.join(LOGS)}; none: all")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "first_run")
    arguments = parser.parse_args()
    results = {}
    for log in arguments.logs or LOGS:
        say(f"{log}: init, run, serve")
        folder = arguments.folder / f"{log}-{time.strftime('%H%M%S')}"
        results[log] = first_run(log, folder)
        say(json.dumps(results[log]))
    content = report(results)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "first_run.json").write_text(json.dumps(content, indent=1) + "\n")
    (OUT / "first_run.md").write_text(_markdown(content))
    print(_markdown(content))


if __name__ == "__main__":
    main()
