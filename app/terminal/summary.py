"""The results of the verbs as rows of name and value, for a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, str]]


def of_run(result: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec run`: data, training, quality with the baselines beside it, and costs."""
    trained = [*_training(result["training"]), *_refit(result.get("refit"))]
    return [*_data(result["data"]), *trained, *_quality(result), *_costs(result)]


def of_tune(result: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec tune`: the front, best first, with the baselines beside it, and the choice."""
    metric, best = result["metric"], result["best"]
    beside = "".join(f", {name} {quality:.4f}" for name, quality in result["baselines"].items())
    kept = "within the budget" if result["within_budget"] else "nearest to the budget"
    ended = "".join(f", {result[how]} {how}" for how in ("stopped", "failed") if result[how])
    return [
        ("trials", f"{result['trials']}, {result['reused']} on a checkpoint that was there{ended}"),
        ("models", ", ".join(result["models"])),
        *((f"front, trial {point['trial']}", _point(point, metric)) for point in result["front"]),
        ("chosen", f"trial {best['trial']}, {kept}"),
        (metric, f"{best[metric]:.4f}{beside}"),
        *((name, _setting(value)) for name, value in sorted(best["settings"].items())),
        *_shipped(result.get("shipped"), metric),
    ]


def of_trial(result: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec tune --explain`: figures, what beats the trial, and where its settings differ."""
    metric, beaten = result["metric"], result["beaten_by"]
    low, high = result["p95_range"] or (result["p95_ms"],) * 2
    misses = ", ".join(f"{name} by {share:.0%}" for name, share in result["misses"].items())
    rows = [
        ("trial", f"{result['trial']}{', the chosen one' * (result['trial'] == result['chosen'])}"),
        (metric, f"{result[metric]:.4f}"),
        ("p95", f"{result['p95_ms']:.2f} ms ({low:.2f} to {high:.2f})"),
        ("bundle", f"{result['mb']:.2f} MB"),
        ("checkpoint", "of an earlier trial" if result["reused"] else "trained by this trial"),
        ("on the front", f"no: trial {beaten[0]} beats it" if beaten else "yes: no trial beats it"),
        ("budget", f"misses {misses}" if misses else "kept"),
    ]
    for name, title in (("recipe", "the recipe"), ("chosen", f"trial {result['chosen']}, the chosen one")):
        differences = result[f"differs_from_{name}"]
        rows.append((f"beside {title}", "" if differences else "the same settings"))
        rows += [
            (f"  {key}", f"{_setting(values['here'])} (there {_setting(values['there'])})")
            for key, values in differences.items()
        ]
    return rows


def _shipped(shipped: Mapping[str, Any] | None, metric: str) -> Rows:
    """What was shipped, as it is served, and what its report says; no row where nothing was."""
    if shipped is None:
        return []
    tested = f"{metric} {shipped['figures'][metric]:.4f} on the test part, " * (metric in shipped["figures"])
    costs = f"p95 {shipped['p95_ms']:.2f} ms over HTTP, {shipped['mb']:.2f} MB"
    rows = [("shipped", f"trial {shipped['trial']}: {tested}{costs}")]
    if "deployed" in shipped:
        versions = ", ".join(f"{name} {share:.0%}" for name, share in shipped["deployed"]["versions"].items())
        rows.append(("deployed", f"{versions} of the users ({shipped['deployed']['phase']})"))
    return rows


def _point(point: Mapping[str, Any], metric: str) -> str:
    model = f", {point['settings']['model.name']}" if "model.name" in point["settings"] else ""
    return f"{metric} {point[metric]:.4f}, p95 {point['p95_ms']:.2f} ms, {point['mb']:.2f} MB{model}"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
        others = [f", {baseline} {f[name]:.4f}" for baseline, f in result["baselines"].items() if name in f]
        rows.append((name, f"{result['figures'][name]:.4f}{''.join(others)}"))
    for name, (share, low, high) in result["kept"].items():
        interval = "" if low is None else f" ({low:.1%} to {high:.1%})"
        rows.append(("compressed", f"keeps {share:.1%} of {name}{interval}"))
    return rows


def behind(result: Mapping[str, Any], recipe: str) -> list[str]:
    """Lines that say which baselines are better than the model, by how much, and what helps."""
    lines = []
    for name in result.get("behind", []):
        figure, (value, low, high) = next(iter(result["differences"][name].items()))
        others, own = result["baselines"][name][figure], result["figures"][figure]
        how = "better than the model" if high < 0 else "as good as the model, as far as this test tells"
        lines.append(
            f"{name} is {how}: {figure} {others:.4f} against {own:.4f}"
            f" (difference {value:+.4f}, {low:+.4f} to {high:+.4f})"
        )
    first = f"rayrec run {recipe} --set model.name=auto chooses by comparison"
    if result.get("choice"):  # it has been done, within a time
        users = result["choice"]["users"]
        first = f"a longer comparison than that on {users:,} users (--set train.minutes=30), or more events"
    return [*lines, f"What helps: {first}; rayrec tune {recipe} searches on"] if lines else []


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
            rows += _listed(f"{prefix}{key}", value)
    return rows


def _listed(name: str, value: Any) -> Rows:
    """A plain value as a row; of a list of tables a row for each entry, of others one in words."""
    if isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        return [(f"{name} {n}", _in_words(entry)) for n, entry in enumerate(value, 1)]
    return [(name, _in_words(value))]


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


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
