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
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import psutil

from tests.bench import faults_change, faults_kill, faults_load, faults_parts, faults_seen, fuzz

OUT = Path("runs/bench")


def measure(short: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All parts: their bars and figures."""
    bars: list[dict[str, Any]] = []
    figures: dict[str, Any] = {"short": short}

    def add(name: str, part: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
        bars.extend(part[0])
        figures[name] = part[1]

    with faults_change.serving() as site:
        add("change", faults_change.change(site, 1000 if short else 10_000))
        add("damage", faults_change.damage(site, 30 if short else 1000))
        add("canary", faults_change.canary(site))
        add("kill", faults_kill.replica(site, *((2000, 1) if short else (20_000, 3))))
        add("fuzz", fuzz.fuzz(site, 2000 if short else 100_000))
    with tempfile.TemporaryDirectory(prefix="rayrec-faults-") as folder:
        add("overload", faults_load.overload(Path(folder, "overload"), 3 if short else 30))
        add("feedback", faults_kill.feedback(Path(folder, "overload", "bundle"), 1 if short else 20))
        add("parts", faults_parts.parts(Path(folder, "overload", "bundle"), short))
        add("seen", faults_seen.seen(Path(folder, "seen"), 1200 if short else 10_000))
        add("tables", faults_load.tables(Path(folder), 0.05 if short else 1.0))
    return bars, figures


def result_of(name: str, bars: list[dict[str, Any]], figures: dict[str, Any]) -> dict[str, Any]:
    """A result of bars and figures, as it is written."""
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "name": name,
        "machine": {"cores": os.cpu_count(), "memory_gib": memory, "python": platform.python_version()},
        "versions": {n: importlib.metadata.version(n) for n in ("ray", "onnxruntime", "numpy")},
        "ratios": {},
        "bars": bars,
        "figures": figures,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of bars, and the figures behind them."""
    figures = ["```json", json.dumps(result["figures"], indent=1), "```"]
    return "\n".join([f"# {result['name']}", "", *table_of(result["bars"]), "", *figures]) + "\n"


def table_of(bars: list[dict[str, Any]]) -> list[str]:
    """The bars as lines of Markdown."""
    lines = ["| bar | value | need | holds |", "|---|---|---|---|"]
    for bar in bars:
        need = f"{'at most' if bar['at_most'] else 'at least'} {bar['need']:g}"
        lines.append(f"| {bar['name']} | {bar['value']:g} | {need} | {'yes' if bar['holds'] else 'no'} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of it, to see that all works")
    short = parser.parse_args().short
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no service is left behind
    publish(result_of("faults", *measure(short)))


def publish(result: dict[str, Any]) -> NoReturn:
    """Write and print a result, and end with 1 where a bar does not hold."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    (OUT / f"{result['name']}.md").write_text(text)
    print(text, end="")
    raise SystemExit(0 if all(bar["holds"] for bar in result["bars"]) else 1)


if __name__ == "__main__":
    main()
