"""Quality on public data beside what is published: `python -m tests.bench.quality`.

Runs the recipes of examples/ and the demo shop, each with several seeds, as a user would: the best epoch is
chosen on validation, and the test part is measured once. popularity, item_knn and ease are measured on the
same split. Finished runs are kept, an interrupted one goes on. Writes runs/bench/quality.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any

from app.data.dataset import Dataset
from app.data.demo_shop.generate import generate
from app.data.demo_shop.truth import attainable
from app.terminal.console import say

REPOSITORY = Path(__file__).resolve().parents[2]
OUT, RUNS = REPOSITORY / "runs" / "bench", REPOSITORY / "runs" / "quality"
DATA = Path(os.environ.get("RAYREC_DATA", REPOSITORY.parent / "shared" / "data"))
BASELINES = ["popularity", "item_knn", "ease"]
HIT, NDCG, ATTAINED = "hit_rate@10", "ndcg@10", "share of the attainable ndcg@10"
END_S = 120  # that a run which is told to end may take
Figures = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A recipe, what is published for its protocol, and what it has to reach.

    Attributes:
        recipe: below the repository; "" for the demo shop, which is generated.
        published: figures by model.
        least, aim: of the mean over seeds.
        minutes: of a run, at most; 0: no bar.
        beats: a baseline from which the interval of the difference has to be apart.
    """

    recipe: str
    published: Mapping[str, Mapping[str, float]]
    least: Mapping[str, float]
    aim: Mapping[str, float]
    minutes: float = 0.0
    beats: str = ""


def _published(**models: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {name: {HIT: hit, NDCG: ndcg} for name, (hit, ndcg) in models.items()}


TASKS = {
    "beauty": Task(
        "examples/beauty.toml",
        _published(
            WEARec=(0.1041, 0.0614),
            BSARec=(0.1008, 0.0611),
            eSASRec=(0.0928, 0.0523),
            SASRec=(0.0605, 0.0318),
        ),
        {HIT: 0.092, NDCG: 0.053},
        {HIT: 0.104, NDCG: 0.061},
        minutes=40,
    ),
    "movielens_1m": Task(
        "examples/movielens_1m.toml",
        _published(WEARec=(0.3334, 0.1904), gSASRec=(0.3003, 0.1726), SASRec=(0.2392, 0.1259)),
        {HIT: 0.300, NDCG: 0.172},
        {HIT: 0.333, NDCG: 0.190},
        minutes=60,
    ),
    "movielens_ncf": Task(
        "examples/movielens_ncf.toml",
        _published(MF=(0.7294, 0.4523), NeuMF=(0.730, 0.447), SLIM=(0.7162, 0.4468)),
        {HIT: 0.725, NDCG: 0.450},
        {HIT: 0.735, NDCG: 0.460},
    ),
    "movielens_ncf_sequence": Task(
        "examples/movielens_ncf_sequence.toml",
        _published(SASRec_on_its_own_negatives=(0.8245, 0.5905)),
        {HIT: 0.825, NDCG: 0.615},
        {HIT: 0.84, NDCG: 0.63},
        minutes=60,
    ),
    "online_retail": Task("examples/online_retail.toml", {}, {NDCG: 0.281}, {NDCG: 0.32}, beats="item_knn"),
    "demo": Task("", {}, {ATTAINED: 0.88}, {ATTAINED: 0.95}),
}


@dataclass
class Kept:
    """What is known of a run: how long its tries took, and its result once it is finished."""

    path: Path
    key: str
    minutes: float = 0.0
    result: Figures = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, key: str) -> Kept:
        """What an earlier try with the same key left, or nothing."""
        content = json.loads(path.read_text()) if path.is_file() else {}
        if content.get("key") != key:
            return cls(path, key)
        return cls(path, key, content["minutes"], content["result"])

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": self.key, "minutes": round(self.minutes, 2), "result": self.result}
        self.path.write_text(json.dumps(content, indent=1) + "\n")


def run(name: str, seed: int, deadline: float, *, auto: bool, baselines: bool) -> Kept:
    """Run a recipe with a seed until it is finished or the deadline of time.monotonic is reached."""
    folder = RUNS / (f"{name}-auto" if auto else name)
    recipe = _recipe(name)
    changes = [f"seed={seed}", f"evaluate.baselines={json.dumps(BASELINES if baselines else [])}"]
    changes += ['model={name = "auto"}'] if auto else []
    key = hashlib.sha256("\n".join([recipe.read_text(), *changes]).encode()).hexdigest()
    kept = Kept.read(folder / f"seed-{seed}.json", key)
    if kept.result or time.monotonic() >= deadline:
        return kept
    say(f"{folder.name}, seed {seed}")
    out, start = folder / f"seed-{seed}", time.monotonic()
    sets = [part for change in changes for part in ("--set", change)]
    printed = _rayrec(["run", str(recipe), "--out", str(out), *sets, "--json"], deadline)
    kept.minutes += (time.monotonic() - start) / 60
    if printed:
        kept.result = _result(json.loads(printed), name, out)
    kept.write()
    return kept


def _recipe(name: str) -> Path:
    if TASKS[name].recipe:
        return REPOSITORY / TASKS[name].recipe
    shop = RUNS / name / "shop"
    if not (shop / "truth.json").is_file():
        generate(shop)
    return shop / "recipe.toml"


def _rayrec(arguments: list[str], deadline: float) -> str:
    """What a verb prints; "" where it was told to end at the deadline."""
    command = [sys.executable, "-m", "app", *arguments]
    variables = {**os.environ, "RAYREC_DATA": str(DATA)}
    with subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, text=True) as child:
        try:
            left = deadline - time.monotonic()
            printed, _ = child.communicate(timeout=max(1.0, left) if left < TIMEOUT_MAX else None)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=END_S)
            return ""
    if child.returncode:
        raise SystemExit(f"rayrec {' '.join(arguments)} ended with {child.returncode}")
    return printed


def _result(printed: Figures, name: str, out: Path) -> Figures:
    figures = {figure: printed["figures"][figure] for figure in (HIT, NDCG)}
    baselines = {b: {figure: f[figure] for figure in (HIT, NDCG)} for b, f in printed["baselines"].items()}
    if not TASKS[name].recipe:
        most = attainable(RUNS / name / "shop", Dataset.open(out / "dataset", verify=False))
        for row in (figures, *baselines.values()):
            row[ATTAINED] = row[NDCG] / most
    return {
        "figures": figures,
        "interval": printed["intervals"][NDCG],
        "baselines": baselines,
        "differences": {b: d[NDCG] for b, d in printed["differences"].items()},
        "chosen": printed.get("choice", {}).get("chosen"),
        "validation": {k: v for k, v in printed["training"].items() if k.startswith("best_")},
        "seconds": printed["seconds"],
    }


def summary(name: str, runs: Mapping[int, Kept]) -> Figures:
    """Mean and spread of the finished runs of a task, by seed, with the baselines of the first."""
    finished = {seed: kept for seed, kept in runs.items() if kept.result}
    results = [kept.result for kept in finished.values()]
    figures = {
        figure: {
            "mean": statistics.mean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": values,
        }
        for figure in results[0]["figures"]
        for values in [[result["figures"][figure] for result in results]]
    }
    measured = next((result for result in results if result["baselines"]), results[0])
    return {
        "seeds": list(finished),
        "figures": figures,
        "baselines": measured["baselines"],
        "differences": measured["differences"],
        "chosen": [result["chosen"] for result in results],
        "minutes": max(kept.minutes for kept in finished.values()),
        "published": {model: dict(f) for model, f in TASKS[name.removesuffix("-auto")].published.items()},
    }


def bars(name: str, figures: Figures) -> list[Figures]:
    """What a task has to reach, and whether it does."""
    task = TASKS[name.removesuffix("-auto")]
    if name.endswith("-auto"):
        return [_apart(name, baseline, figures, 1) for baseline in BASELINES[1:]]
    reached = []
    for figure, need in task.least.items():
        value = figures["figures"][figure]["mean"]
        bar = {"name": f"{name} {figure}", "value": value, "need": need, "holds": value >= need}
        reached.append({**bar, "aim": task.aim[figure], "aim_holds": value >= task.aim[figure]})
    if task.minutes:
        minutes = figures["minutes"]
        bar = {"name": f"{name} minutes", "value": minutes, "need": task.minutes}
        reached.append({**bar, "holds": minutes <= task.minutes})
    if task.beats:
        reached.append(_apart(name, task.beats, figures, 0))
    return reached


def _apart(name: str, baseline: str, figures: Figures, bound: int) -> Figures:
    """Whether a bound of the difference to a baseline is above 0: the lower (0) or the upper one (1)."""
    value = figures["differences"][baseline][1 + bound]
    label = f"{name} above {baseline}, {('lower', 'upper')[bound]} bound of the difference"
    return {"name": label, "value": value, "need": 0.0, "holds": value >= 0 if bound else value > 0}


def report(results: Mapping[str, Figures]) -> Figures:
    """What is written: ratios to the best published figure, the bars, and every figure."""
    ratios = {}
    for name, figures in results.items():
        for figure in (HIT, NDCG):
            published = [model[figure] for model in figures["published"].values()]
            if published:
                ratio = figures["figures"][figure]["mean"] / max(published)
                ratios.setdefault("best_published", {})[f"{name} {figure}"] = ratio
    versions = {name: importlib.metadata.version(name) for name in ("ray", "torch", "polars", "numpy")}
    return {
        "name": "quality",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": versions,
        "ratios": ratios,
        "bars": [bar for name, figures in results.items() for bar in bars(name, figures)],
        "figures": dict(results),
    }


def markdown(content: Figures) -> str:
    """The report for people: a table a task, then the bars."""
    lines = []
    for name, task in content["figures"].items():
        seeds = f"{len(task['seeds'])} seeds, {task['minutes']:.0f} minutes at most"
        lines += [f"## {name}: {seeds}", "", f"| model | {HIT} | {NDCG} |", "|---|---|---|"]
        ours = [_mean(task["figures"][figure]) for figure in (HIT, NDCG)]
        lines.append(f"| **ours{_chosen(task)}** | {' | '.join(ours)} |")
        for kind in ("baselines", "published"):
            for model, figures in task[kind].items():
                beside = f"{model}, published" if kind == "published" else model
                lines.append(f"| {beside} | {figures[HIT]:.4f} | {figures[NDCG]:.4f} |")
        lines.append("")
    for bar in content["bars"]:
        aim = f", aim {bar['aim']:g}: {bar['aim_holds']}" if "aim" in bar else ""
        lines.append(f"- {bar['name']}: {bar['value']:.4g} (need {bar['need']:g}) {bar['holds']}{aim}")
    return "\n".join([*lines, ""])


def _mean(figure: Figures) -> str:
    spread = "" if figure["sd"] is None else f" ± {figure['sd']:.4f}"
    return f"{figure['mean']:.4f}{spread}"


def _chosen(task: Figures) -> str:
    names = sorted({name for name in task["chosen"] if name})
    return f" ({', '.join(names)})" if names else ""


def measure(names: Iterable[str], seeds: int, minutes: float, *, auto: bool = False) -> Figures:
    """Run tasks with seeds 1, 2, ... until all are finished or the minutes are over."""
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    results = {}
    for name in names:
        runs = {
            seed: run(name, seed, deadline, auto=auto, baselines=seed == 1) for seed in range(1, seeds + 1)
        }
        waiting = [seed for seed, kept in runs.items() if not kept.result]
        if waiting:
            say(f"{name}: seeds {', '.join(map(str, waiting))} are not finished; the same command goes on")
        if len(waiting) < seeds:
            label = f"{name}-auto" if auto else name
            results[label] = summary(label, runs)
    return report(results)


def main() -> None:
    """Run the tasks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=TASKS, help="a task (repeatable); none: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="in all; 0: until all are finished")
    parser.add_argument("--auto", action="store_true", help='the same with model.name = "auto"')
    arguments = parser.parse_args()
    content = measure(arguments.only or TASKS, arguments.seeds, arguments.minutes, auto=arguments.auto)
    OUT.mkdir(parents=True, exist_ok=True)
    name = "quality_auto" if arguments.auto else "quality"
    (OUT / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (OUT / f"{name}.md").write_text(markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
