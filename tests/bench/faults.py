"""Faults and change under way: `python -m tests.bench.faults` (`make bench-faults`).

Writes runs/bench/faults.json and .md; ends with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.bench import faults_change

OUT = Path("runs/bench")
AT_MOST = ("_failed", "_s")  # ends of the names of bars that are upper limits


def measure(short: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All parts: their bars and figures."""
    bars: list[dict[str, Any]] = []
    figures: dict[str, Any] = {"short": short}
    with faults_change.serving() as site:
        for name, part in (
            ("change", lambda: faults_change.change(site, 1000 if short else 10_000)),
            ("damage", lambda: faults_change.damage(site, 30 if short else 1000)),
            ("canary", lambda: faults_change.canary(site)),
        ):
            found, figures[name] = part()
            bars += found
    return bars, figures


def result_of(bars: list[dict[str, Any]], figures: dict[str, Any]) -> dict[str, Any]:
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "name": "faults",
        "machine": {"cores": os.cpu_count(), "memory_gib": memory, "python": platform.python_version()},
        "versions": {n: importlib.metadata.version(n) for n in ("ray", "onnxruntime", "numpy")},
        "ratios": {},
        "bars": bars,
        "figures": figures,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of bars, and the figures behind them."""
    lines = ["# faults", "", "| bar | value | need | holds |", "|---|---|---|---|"]
    for bar in result["bars"]:
        need = f"{'at most' if bar['name'].endswith(AT_MOST) else 'at least'} {bar['need']:g}"
        lines.append(f"| {bar['name']} | {bar['value']:g} | {need} | {'yes' if bar['holds'] else 'no'} |")
    lines += ["", "```json", json.dumps(result["figures"], indent=1), "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of it, to see that all works")
    short = parser.parse_args().short
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no service is left behind
    result = result_of(*measure(short))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "faults.json").write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    (OUT / "faults.md").write_text(text)
    print(text, end="")
    raise SystemExit(0 if all(bar["holds"] for bar in result["bars"]) else 1)


if __name__ == "__main__":
    main()
