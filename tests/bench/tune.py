"""What a search finds for its time: `python -m tests.bench.tune` (`make bench-tune`).

On the demo shop, for several seeds, with the hypervolume over quality, latency and bytes below the front:

* joint: hyperparameters and compression in one search;
* sequential: for half the time hyperparameters, then compression of the best of these;
* half: joint, with early stopping (tune.stop_early), for half the time.

Then trials an hour against a search that trained each anew; what Ray Tune costs a trial; budgets, those that
can be kept and those that cannot, shipped and measured as they are served; and a search that is killed at
random moments. Latencies are ratios to one model for all searches of a seed. Finished searches are kept, and
an interrupted program goes on. Writes runs/bench/tune.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume

from app.data.demo_shop.generate import generate
from app.errors import RecipeError
from app.recipe import Recipe
from app.recipe_toml import load, to_toml
from app.terminal.console import say
from tests.bench.faults import publish, result_of
from tests.bench.faults_change import bar
from tuning.front import Front
from tuning.points import Point, pareto_front
from tuning.ship import ship
from tuning.space import training_part
from tuning.suggest import MODEL
from tuning.trials.journal import points
from tuning.tune import opened, search

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench" / "tune"
MODELS = ["two_tower", "mlp", "ease"]
MANY = 100_000  # trials: time ends a search
SLOWER, LARGER = 4.0, 16.0  # times the costs of the first trial, up and down, that the box spans
Figures = dict[str, Any]


def recipe_of(seed: int, minutes: float, **changes: Any) -> Recipe:
    """The shop's recipe for a search of some minutes."""
    shop = OUT / "shop"
    if not (shop / "truth.json").is_file():
        generate(shop)
    base = {"seed": seed, "model": {"name": MODELS[0]}, "train.epochs": 12, "evaluate.baselines": []}
    tune = {"tune.models": MODELS, "tune.trials": MANY, "tune.minutes": minutes}
    return load(shop / "recipe.toml").override({**base, **tune, **changes})


def searched(name: str, seed: int, recipe: Recipe, given: Path | None = None) -> Front:
    """The front of a search that is made once; a file says that it ended by its time.

    Args:
        given: another search, whose data set, reference of latencies and checkpoints it begins with.
    """
    out = OUT / f"{name}-{seed}"
    ended = out / "ended"
    if ended.is_file():
        return opened(recipe, out)
    say(f"{name}, seed {seed}")
    if given is not None and not out.exists():
        copied = ["dataset", "reference", *(["checkpoints"] if name == "compression" else [])]
        for folder in copied:
            shutil.copytree(given / folder, out / folder)
    start = time.monotonic()
    front = search(recipe, out)
    ended.write_text(json.dumps({"seconds": time.monotonic() - start}))
    return front


def compared(seed: int, minutes: float) -> dict[str, Sequence[Point]]:
    """The trials of each way to search, with one seed."""
    joint = searched("joint", seed, recipe_of(seed, minutes))
    uncompressed = {"compress.rows": ["float32"], "compress.dense": ["float32"], "compress.steps": [[]]}
    hyperparameters = recipe_of(seed, minutes / 2, **{"tune.space": uncompressed})
    first = searched("hyperparameters", seed, hyperparameters, joint.out)
    second = searched("compression", seed, compression_of(first, seed, minutes / 2), first.out)
    stopped = recipe_of(seed, minutes / 2, **{"tune.stop_early": True})
    return {
        "joint": joint.trials,
        "sequential": [*first.trials, *second.trials],
        "half": searched("half", seed, stopped, joint.out).trials,
    }


def compression_of(front: Front, seed: int, minutes: float) -> Recipe:
    """The recipe of a search over the compression of the best trial of a front."""
    best = max(front.trials, key=lambda point: point.quality)
    training = training_part(best.settings)
    name = training.pop(MODEL)
    fixed = {key: [value] for key, value in training.items()}
    changes = {"model": {"name": name}, "tune.models": [name], "tune.space": fixed}
    return recipe_of(seed, minutes, **changes)


def hypervolume(trials: Sequence[Point], first: Point, best: float) -> float:
    """Share of a box that the front dominates: from no quality to the best, and around the costs of a trial.

    Costs count by their logarithms, so that noise of a latency, some 10 %, is a twentieth of its side.
    """
    sides = [(point.p95_ms / first.p95_ms, SLOWER) for point in trials]
    sizes = [(point.bytes / first.bytes, LARGER) for point in trials]
    rows = [
        [1 - point.quality / best, *(0.5 + math.log(ratio) / (2 * math.log(most)) for ratio, most in costs)]
        for point, *costs in zip(trials, sides, sizes, strict=True)
    ]
    return float(compute_hypervolume(np.clip(np.array(rows), 0, 1), np.ones(3)))


def volumes(found: Mapping[str, Sequence[Point]]) -> dict[str, float]:
    """The hypervolume of each way to search, in one box."""
    first, best = found["joint"][0], max(p.quality for trials in found.values() for p in trials)
    return {name: hypervolume(pareto_front(trials), first, best) for name, trials in found.items()}


def of_time(seed: int, minutes: float) -> Figures:
    """Trials an hour against none that reuses a training, and the seconds of a trial that are Ray Tune's."""
    recipe, out = recipe_of(seed, minutes), OUT / f"joint-{seed}"
    searched("joint", seed, recipe)
    trials = [trial for trial in journal(out).get_trials() if "seconds" in trial.user_attrs]
    seconds = sum(trial.user_attrs["seconds"] for trial in trials)
    reused = [trial for trial in trials if trial.user_attrs.get("reused")]
    trained = {t.user_attrs.get("checkpoint"): t.user_attrs["seconds"] for t in trials if t not in reused}
    # What a trial of a new training takes beside the training is what one takes that reuses it.
    beside = statistics.mean(trial.user_attrs["seconds"] for trial in reused)
    anew = sum(max(0.0, trained.get(t.user_attrs["checkpoint"], beside) - beside) for t in reused)
    wall = json.loads((out / "ended").read_text())["seconds"]
    parallel = recipe.tune.parallel or os.cpu_count() or 1
    return {
        "trials": len(trials),
        "reused": len(reused),
        "trials_an_hour": 3600 * len(trials) / wall,
        "against_no_reuse": (seconds + anew) / seconds,
        "overhead_s": (wall * parallel - seconds) / len(trials),
    }


def budgets(seed: int, minutes: float, feasible: int, infeasible: int) -> Figures:
    """How many random budgets hold in real serving, and how many that cannot be kept are refused."""
    draws, recipe = random.Random(seed), recipe_of(seed, minutes)
    out, front = OUT / f"joint-{seed}", searched("joint", seed, recipe)
    held, refused, lines = 0, 0, []
    for _ in range(feasible):
        point, extra = draws.choice(front.points), draws.uniform(1.05, 3)
        share = 0.999 * min(1.0, point.quality / max(p.quality for p in front.trials))
        text = f"mb<={extra * point.mb + 0.2:.4f}, p95_ms<={extra * (point.p95_ms + 4):.3f}"
        text += f", {point.metric}>={share:.4f}*best"
        shipped = ship(opened(recipe, out, text))
        kept = shipped["mb"] <= extra * point.mb + 0.2 and shipped["p95_ms"] <= extra * (point.p95_ms + 4)
        held += kept
        lines.append({"budget": text, "shipped": shipped, "held": kept})
    for _ in range(infeasible):
        smallest = min(point.mb for point in front.trials)
        text = f"mb<={draws.uniform(0.2, 0.95) * smallest:.4f}"
        try:
            ship(opened(recipe, out, text))
        except RecipeError as error:
            refused += "nearest: trial" in str(error)
            lines.append({"budget": text, "refused": str(error)})
    return {"held": held, "refused": refused, "each": lines}


def kills(seed: int, times: int, trials: int) -> Figures:
    """A search that is killed at random moments and begun again: which trials are lost or run twice."""
    out, draws = OUT / f"killed-{seed}", random.Random(seed)
    recipe = recipe_of(seed, 0.0, **{"tune.parallel": 1, "tune.trials": trials, "train.epochs": 2})
    path = OUT / "killed.toml"
    path.write_text(to_toml(recipe))
    command = [sys.executable, "-m", "app", "tune", str(path), "--out", str(out), "--json"]
    seen: list[Any] = []
    lost = 0
    for _ in range(times):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, cwd=REPOSITORY, **quiet)
        time.sleep(draws.uniform(15, 60))
        child.send_signal(signal.SIGKILL)
        child.wait()
        now = finished(out)
        lost += now[: len(seen)] != seen
        seen = now
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    now = finished(out)
    lost += now[: len(seen)] != seen
    return {"killed_after": len(seen), "trials": len(now), "lost": lost, "twice": len(now) - len(set(now))}


def finished(out: Path) -> list[str]:
    """The settings of the finished trials of a journal."""
    if not (out / "journal.log").is_file():
        return []
    try:
        return [json.dumps(point.settings, sort_keys=True) for point in points(journal(out))]
    except (KeyError, ValueError):  # the study is not written yet
        return []


def journal(out: Path) -> optuna.Study:
    """The study of a search."""
    backend = optuna.storages.journal.JournalFileBackend(str(out / "journal.log"))
    return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))


def main() -> None:
    """Run the searches and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=4.0, help="of a search")
    parser.add_argument("--budgets", type=int, nargs=2, default=(10, 5), help="that can and cannot be kept")
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    by_seed = [volumes(compared(seed, options.minutes)) for seed in range(1, options.seeds + 1)]
    for seed, volume in enumerate(by_seed, 1):
        say(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in volume.items()))
    joint = [volume["joint"] / volume["sequential"] for volume in by_seed]
    half = [volume["half"] / volume["joint"] for volume in by_seed]
    timed = of_time(1, options.minutes)
    chosen = budgets(1, options.minutes, *options.budgets)
    killed = kills(1, options.kills, trials=8 * options.kills) if options.kills else {"lost": 0, "twice": 0}
    bars = [
        bar("joint over sequential, mean", round(statistics.mean(joint), 3), at_least=1.15),
        bar("joint over sequential, least", round(min(joint), 3), at_least=0.97),
        bar(
            "half the time with early stopping over all of it without",
            round(statistics.mean(half), 3),
            at_least=0.98,
        ),
        bar("trials an hour over none reused", round(timed["against_no_reuse"], 2), at_least=3),
        bar("seconds of a trial that are Ray Tune's", round(timed["overhead_s"], 2), at_most=3),
        bar("budgets that hold as served", chosen["held"], at_least=options.budgets[0]),
        bar("budgets refused with the nearest", chosen["refused"], at_least=options.budgets[1]),
        bar("trials lost or run twice after kills", killed["lost"] + killed["twice"], at_most=0),
    ]
    figures = {"volumes": by_seed, "time": timed, "budgets": chosen, "kills": killed}
    publish(result_of("tune", bars, figures))


if __name__ == "__main__":
    main()
