"""What a run shows a person: the figures that decide, with the baselines beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, str]]


def of_run(result: Mapping[str, Any]) -> Rows:
    """Rows of name and value for the summary of `rayrec run`."""
    return [*_data(result["data"]), *_training(result["training"]), *_quality(result), *_costs(result)]


def of_stage(result: Mapping[str, Any]) -> Rows:
    """Rows for any other result: nested keys joined by dots."""
    return list(_flat(result, ""))


def _data(data: Mapping[str, Any]) -> Rows:
    rejected = ", ".join(f"{reason} {n:,}" for reason, n in data["rejected"].items() if n)
    return [
        ("rows in, kept", f"{data['rows_in']:,}, {data['rows_kept']:,}"),
        ("rejected", rejected or "none"),
        ("users, items", f"{data['users']:,}, {data['items']:,}"),
    ]


def _training(figures: Mapping[str, Any]) -> Rows:
    resumed = figures.get("resumed_from")
    note = "" if resumed is None else f", resumed from {resumed}"
    return [("epochs", f"{figures['epochs']} (best {figures['best_epoch']}){note}")]


def _quality(result: Mapping[str, Any]) -> Rows:
    return [
        (
            name,
            f"{result['figures'][name]:.4f}"
            + "".join(f", {other} {found[name]:.4f}" for other, found in result["baselines"].items()),
        )
        for name in _headline(result["figures"])
    ]


def _headline(figures: Mapping[str, Any]) -> list[str]:
    wanted = ("ndcg@10", "hit_rate@10", "recall@20")
    return [name for name in wanted if name in figures] or list(figures)[:3]


def _costs(result: Mapping[str, Any]) -> Rows:
    size, seconds = result["bytes"], result["seconds"]
    return [
        ("bundle", f"{size['bundle'] / 1e6:.2f} MB, {size['float32'] / 1e6:.2f} MB in float32"),
        ("seconds", ", ".join(f"{stage} {s:.1f}" for stage, s in seconds.items())),
    ]


def _flat(result: Mapping[str, Any], prefix: str) -> Rows:
    rows: Rows = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            rows.append((f"{prefix}{key}", f"{value:.4g}"))
        else:
            rows.append((f"{prefix}{key}", f"{value:,}" if type(value) is int else str(value)))
    return rows


def of_service(status: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec status`."""
    rows = [
        ("service", f"{status['url']}, {status['store']}"),
        ("phase", f"{status['phase']}{': ' if status['note'] else ''}{status['note']}"),
        ("replicas", f"{status['replicas']} (wanted: {status['wanted']}), {status['held']} calls held"),
    ]
    for one in status["versions"]:
        figures = (
            f"{one['requests_per_s']:,.1f} requests/s, p95 {one['p95_ms']:.1f} ms, {one['errors']} failed"
        )
        ready = f"ready on {one['ready']}" + (f", {one['error']}" if one["error"] else "")
        rows.append((one["version"], f"{100 * one['share']:.0f} % of the users, {figures}, {ready}"))
    return rows


def of_experiment(report: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec experiment`."""
    if "arms" not in report:
        return of_stage(report)
    rows = [
        (one["variant"], f"{one['users']:,} users, {one['outcomes']:,} outcomes, {one['rate']:.4f} a user")
        for one in report["arms"]
    ]
    gap = report["difference"]
    if gap:
        rows.append(("difference", f"{gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}, 95 %)"))
    return [*rows, ("verdict", report["verdict"])]
