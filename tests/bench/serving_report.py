"""From the turns of the serving benchmark to figures, ratios, bars and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

Figures = dict[str, float]
CONNECTIONS = (1, 16, 64)
LOADS = (50, 80)  # per cent of the capacity
PEERS = ("fastapi", "fastapi2", "litserve", "bentoml", "ray_serve", "limit")
# Replicas of ours that a peer is compared with, where not one: as many as it has processes.
# LitServe takes HTTP in two and scores in a third.
OURS = {"fastapi2": "ours2", "litserve": "ours2"}
P50 = "p50_ratio_fastapi_1"
NEED = {
    **{f"fastapi_{c}": 2.0 for c in (16, 64)},
    **{f"fastapi2_{c}": 1.2 for c in (16, 64)},
    P50: 1.0,
    **{f"{peer}_{c}": 4.0 for peer in ("litserve", "bentoml") for c in (16, 64)},
    **{f"ray_serve_{c}": 10.0 for c in (16, 64)},
    "limit_64": 0.25,
}


class Turn(TypedDict):
    """One turn of a system: by variant and connections, and by load."""

    load_before: float  # other work on the machine
    difference: float  # of its scores, largest
    closed: dict[str, dict[str, Figures]]
    open: dict[str, Figures]


def medians(turns: Sequence[Turn]) -> dict[str, Any]:
    """A system's figures: of its variants the faster at each number of connections counts."""
    variants = {
        path: {c: _median([turn["closed"][path][c] for turn in turns]) for c in turns[0]["closed"][path]}
        for path in turns[0]["closed"]
    }
    best = {
        c: max((figures[c] for figures in variants.values()), key=lambda figures: figures["requests_per_s"])
        for c in map(str, CONNECTIONS)
    }
    arrivals = {load: _median([turn["open"][load] for turn in turns]) for load in turns[0]["open"]}
    return {
        **best,
        "open": arrivals,
        "variants": variants,
        "difference": max(turn["difference"] for turn in turns),
        "turns": list(turns),
    }


def _median(rounds: Sequence[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def ratios(systems: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Ours over theirs in requests a second, with as many replicas as they have processes."""
    return {
        peer: {
            c: systems[OURS.get(peer, "ours")][c]["requests_per_s"] / systems[peer][c]["requests_per_s"]
            for c in map(str, CONNECTIONS)
        }
        for peer in PEERS
        if peer in systems
    }


def bars(systems: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of the systems that took part."""
    values = {
        f"{peer}_{c}": x
        for peer, by_connections in ratios(systems).items()
        for c, x in by_connections.items()
    }
    if "fastapi" in systems:
        values[P50] = systems["ours"]["1"]["p50_ms"] / systems["fastapi"]["1"]["p50_ms"]
    return [
        {
            "name": name,
            "value": values[name],
            "need": need,
            "holds": values[name] <= need if name == P50 else values[name] >= need,
        }
        for name, need in NEED.items()
        if name in values
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    figures = result["figures"]
    systems = figures["systems"]
    lines = [
        "# serving",
        "",
        f"{figures['model']}; {figures['rounds']} rounds of {figures['seconds']:g} s, the median counts.",
        "",
        "| bar | value | need | holds |",
        "|---|---|---|---|",
        *(
            f"| {b['name']} | {b['value']:.2f} | {'at most ' if b['name'] == P50 else ''}{b['need']} "
            f"| {'yes' if b['holds'] else 'no'} |"
            for b in result["bars"]
        ),
        "",
        "| system | "
        + " | ".join(f"{c} connection{'s'[: c - 1]}" for c in CONNECTIONS)
        + " | ours over it |",
        "|---|---|---|---|---|",
        *(_rates(name, system, result["ratios"].get(name)) for name, system in systems.items()),
        "",
        "Requests a second, and the median latency in ms. " + figures["notes"],
        "",
        "| arrivals by chance at | " + " | ".join(f"{load} % of capacity" for load in LOADS) + " |",
        "|---|---|---|",
        *(_arrivals(name, system["open"]) for name, system in systems.items() if system["open"]),
        "",
        "p50 / p95 / p99 in ms from the moment that a request was due, at so many requests a second. "
        f"The program that sends was late by up to {_latest(systems):.1f} ms at its 99th percentile.",
        "",
        *_variants(systems),
    ]
    return "\n".join(lines) + "\n"


def _latest(systems: Mapping[str, Any]) -> float:
    return max(
        (figures["late_ms"] for system in systems.values() for figures in system["open"].values()),
        default=0.0,
    )


def _rates(name: str, system: Mapping[str, Any], ratio: Mapping[str, float] | None) -> str:
    cells = []
    for c in map(str, CONNECTIONS):
        latency = f" ({system[c]['p50_ms']:.2f})" if "p50_ms" in system[c] else ""
        cells.append(f"{system[c]['requests_per_s']:,.0f}{latency}{_failed(system[c])}")
    return f"| {name} | {' | '.join(cells)} | {' / '.join(f'{x:.2f}' for x in (ratio or {}).values())} |"


def _failed(figures: Figures) -> str:
    return f", {figures['failed']:.0f} failed" if figures.get("failed") else ""


def _arrivals(name: str, by_load: Mapping[str, Figures]) -> str:
    cells = []
    for load in map(str, LOADS):
        figures = by_load[load]
        cell = " / ".join(f"{figures[f'p{p}_ms']:.1f}" for p in (50, 95, 99))
        cells.append(f"{cell} at {figures['rate']:,.0f}{_failed(figures)}")
    return f"| {name} | {' | '.join(cells)} |"


def _variants(systems: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, system in systems.items():
        if len(system["variants"]) > 1:
            rates = {
                path: ", ".join(f"{figures['requests_per_s']:,.0f}" for figures in by_connections.values())
                for path, by_connections in system["variants"].items()
            }
            each = "; ".join(f"{path} {text}" for path, text in rates.items())
            lines.append(f"{name} by variant, the faster counts at each: {each}.")
    return lines
