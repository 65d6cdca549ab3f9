"""The results of the verbs as rows of name and value, for a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, str]]


def of_run(result: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec run`: data, training, quality with the baselines beside it, and costs."""
    trained = [*_training(result["training"]), *_refit(result.get("refit"))]
    return [*_data(result["data"]), *trained, *_quality(result), *_costs(result)]


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


def _refit(refit: Mapping[str, Any] | None) -> Rows:
    """What the refit trained on; no row where there was none."""
    if refit is None:
        return []
    epochs = f"{refit['epochs']} epochs on " if refit["epochs"] else "fitted again on "
    return [("refit", f"{epochs}all {refit['events']:,} events")]


def _quality(result: Mapping[str, Any]) -> Rows:
    if not result["figures"]:
        return [("quality", "not measured: nothing was held out")]
    rows = []
    for name in _headline(result["figures"]):
        others = [f", {baseline} {figures[name]:.4f}" for baseline, figures in result["baselines"].items()]
        rows.append((name, f"{result['figures'][name]:.4f}{''.join(others)}"))
    return rows


def _headline(figures: Mapping[str, Any]) -> list[str]:
    preferred = ("ndcg@10", "hit_rate@10", "recall@20")
    return [name for name in preferred if name in figures] or list(figures)[:3]


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
    """Rows for `rayrec status`: the service, its replicas, and a row for each version."""
    silent = f", {status['silent']} silent" if status["silent"] else ""
    replicas = f"{status['replicas']} (wanted: {status['wanted']}){silent}, {status['ongoing']} calls ongoing"
    rows = [
        ("service", f"{status['url']}, {status['store']}"),
        ("phase", f"{status['phase']}{': ' if status['note'] else ''}{status['note']}"),
        ("replicas", replicas),
    ]
    if status["waiting_commands"]:
        rows.append(("commands", f"{status['waiting_commands']} waiting"))
    return [*rows, *((version["version"], _version(version)) for version in status["versions"])]


def _version(version: Mapping[str, Any]) -> str:
    ready = f"ready on {version['ready']}" + (f", {version['error']}" if version["error"] else "")
    return (
        f"{100 * version['share']:.0f} % of the users, {version['requests_per_s']:,.1f} requests/s,"
        f" p95 {version['p95_ms']:.1f} ms, {version['errors']} failed, {ready}"
    )


def of_experiment(report: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec experiment`: a row for each version, and how they differ."""
    if "arms" not in report:
        return of_stage(report)
    rows = [
        (arm["variant"], f"{arm['users']:,} users, {arm['outcomes']:,} outcomes, {arm['rate']:.4f} a user")
        for arm in report["arms"]
    ]
    gap = report["difference"]
    if gap:
        rows.append(("difference", f"{gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}, 95 %)"))
    return [*rows, ("verdict", report["verdict"])]
