"""What compression keeps and what it saves: `python -m tests.bench.compress` (`make bench-compress`).

Each method at several settings, on SASRec for S3-Rec Beauty, NeuMF for MovieLens-1M as NCF splits it, and the
demo shop: the share of the uncompressed model's NDCG@10 that is left on the test part, with the 95 % interval
of the paired ratio over its users; bytes of the rows and of the whole model, graph included; and how fast a
bundle ranks 100 candidates on one thread, alone and 16 requests at a time. The models are trained once;
finished settings are kept, and an interrupted program goes on. Writes runs/bench/compress.json and .md, and
a picture of size against quality for each recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import pipeline
from app.bundle.benchmark import measure
from app.bundle.export.export import export
from app.bundle.runtime import Ranker
from app.compression.compress import compress
from app.data.dataset import Dataset
from app.data.demo_shop.generate import generate
from app.evaluation.evaluate import evaluate
from app.evaluation.scorer import ModelScorer
from app.ray.session import ray_session
from app.recipe import Recipe
from app.recipe_toml import load
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint
from tests.bench.faults import publish, result_of
from tests.bench.faults_change import bar

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench" / "compress"
DATA = Path(os.environ.get("RAYREC_DATA", REPOSITORY.parent / "shared" / "data"))
CANDIDATES, CALLS, REPEATS = 100, 200, 5
BARS = {"beauty": ((8, 0.995), (16, 0.98)), "neumf": ((8, 0.995), (16, 0.98))}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A recipe below the repository ("": the demo shop), what differs from it, and what a student may be."""

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    students: tuple[Mapping[str, Any], ...] = ()


TASKS = {
    "beauty": Task("examples/beauty.toml", students=({"width": 48}, {"width": 32}, {"width": 16})),
    "neumf": Task(
        "examples/movielens_ncf.toml",
        {"model": {"name": "neumf"}},
        ({"factors": 16, "width": 8}, {"factors": 8, "width": 8}, {"factors": 8, "width": 4}),
    ),
    "shop": Task("", {"model": {"name": "two_tower"}}, ({"width": 48}, {"width": 32}, {"width": 16})),
}


def settings(task: Task) -> dict[str, Figures]:
    """The changes of [compress] by the name of a setting."""
    rows = {name: {"rows": name} for name in ("float32", "float16", "int8", "int4", "int2")}
    felt = {f"{name}, trained": {"rows": name, "steps": ["finetune"]} for name in ("int8", "int4", "int2")}
    grouped = {f"int2 by {g}": {"rows": "int2", "group": g} for g in (8, 16, 32)}
    coded = {f"{c} codes": {"steps": ["product"], "product": {"codes": c}} for c in (8, 16, 28)}
    tuned = {
        f"{name}, trained": {**change, "steps": ["product", "finetune"]} for name, change in coded.items()
    }
    small = {f"{name}, dense int8": {**change, "dense": "int8"} for name, change in tuned.items()}
    pruned = {
        f"pruned {share}{', trained' if trained else ''}": {
            "steps": ["prune", *(["finetune"] if trained else [])],
            "prune": {"share": share},
        }
        for share in (0.25, 0.5, 0.75)
        for trained in (False, True)
    }
    students = {
        "student " + ", ".join(f"{k} {v}" for k, v in student.items()): {
            "steps": ["distill"],
            "distill": {"student": dict(student)},
        }
        for student in task.students
    }
    dense = {"int8, dense int8": {"dense": "int8"}}
    return {**rows, **dense, **felt, **grouped, **coded, **tuned, **small, **pruned, **students}


def trained(name: str, task: Task) -> tuple[Recipe, Dataset, Path]:
    """Prepare and train a task, where that has not been done."""
    folder = OUT / name
    if not task.recipe:
        generate(OUT / "shop-data")
    path = REPOSITORY / task.recipe if task.recipe else OUT / "shop-data" / "recipe.toml"
    recipe = load(path).override({**task.changes, "train.workers": 0, "train.refit": False})
    pipeline.prepare(recipe, folder)
    pipeline.train(recipe, folder)
    return pipeline.resolved(recipe, folder), Dataset.open(folder / "dataset"), folder


def measured(recipe: Recipe, dataset: Dataset, folder: Path, change: Figures) -> Figures:
    """Compress, evaluate and export with a setting; what was measured before is taken from its file."""
    recipe = recipe.override({f"compress.{key}": value for key, value in change.items()})
    code = f"{recipe.part('compress')} {pipeline.VERSIONS}"
    kept = folder / "settings" / f"{hashlib.sha256(code.encode()).hexdigest()[:16]}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    source, small, bundle = folder / "checkpoint", folder / "small", folder / "small-bundle"
    artifact = compress(recipe, dataset, source, small, judge=False)
    checkpoint = load_checkpoint(small, dataset)
    before = ModelScorer(load_checkpoint(source, dataset).model)
    scorer = ModelScorer(checkpoint.model, checkpoint.rows)
    report = evaluate(recipe, dataset, scorer, baselines=False, uncompressed=before)
    export(recipe, dataset, checkpoint, bundle, {}, {}, {}, retrieval=False)
    graph = sum(path.stat().st_size for path in bundle.glob("*.onnx") if path.name != "item.onnx")
    result = {
        "kept": next(iter(report.kept.values())),
        "rows": artifact.figures["bytes_after"],
        "model": artifact.figures["bytes_after"] + graph,
        "seconds": sum(step["seconds"] for step in artifact.figures["steps"]),
        **speed(bundle),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(result, indent=1) + "\n")
    return result


def speed(bundle: Path) -> Figures:
    """Median of several measurements: milliseconds of a request alone, and requests a second by 16."""
    ranker = Ranker.open(bundle, threads=1, verify=False)
    alone, many = (
        [measure(ranker, candidates=CANDIDATES, batch=batch, calls=CALLS) for _ in range(REPEATS)]
        for batch in (1, 16)
    )
    return {
        "p50_ms": statistics.median(m["p50_ms"] for m in alone),
        "p95_ms": statistics.median(m["p95_ms"] for m in alone),
        "requests_per_s": statistics.median(m["requests_per_s"] for m in many),
    }


def best_within(rows: Mapping[str, Figures], share: float, size: str) -> float:
    """How many times smaller than float32 the smallest setting is that keeps so much."""
    full = rows["float32"][size]
    sizes = [row[size] for row in rows.values() if row["kept"][0] >= share]
    return round(float(full / min(sizes)), 2)


def draw(name: str, rows: Mapping[str, Figures]) -> Path:
    """Size of the model against what it keeps, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for label, row in rows.items():
        share, low, high = row["kept"]
        axis.errorbar(row["model"] / 1e6, share, [[share - low], [high - share]], fmt="o", capsize=2)
        axis.annotate(
            label, (row["model"] / 1e6, share), fontsize=6, xytext=(3, 3), textcoords="offset points"
        )
    axis.set(xscale="log", xlabel="model, MB", ylabel="share of the uncompressed NDCG@10", title=name)
    axis.xaxis.set_major_formatter("{x:g}")
    path = OUT / f"{name}.png"
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return path


def main() -> None:
    """Measure the recipes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=[], help="settings whose name has one of these words")
    options = parser.parse_args()
    os.environ.setdefault("RAYREC_DATA", str(DATA))
    results: dict[str, dict[str, Figures]] = {}
    bars = []
    with ray_session():
        for name in options.only:
            task = TASKS[name]
            recipe, dataset, folder = trained(name, task)
            rows = results[name] = {}
            for label, change in settings(task).items():
                if label != "float32" and options.methods and not any(m in label for m in options.methods):
                    continue
                rows[label] = row = measured(recipe, dataset, folder, change)
                share, low, high = row["kept"]
                say(
                    f"{name}, {label}: {share:.1%} ({low:.1%} to {high:.1%}), rows"
                    f" {rows['float32']['rows'] / row['rows']:.1f} x, model"
                    f" {rows['float32']['model'] / row['model']:.1f} x smaller, {row['p50_ms']:.3f} ms,"
                    f" {row['requests_per_s']:.0f} requests/s"
                )
            draw(name, rows)
            for least, share in BARS.get(name, ()):
                times = best_within(rows, share, "model")
                bars.append(bar(f"{name}: times smaller at {share:.1%}", times, at_least=least))
    publish({**result_of("compress", bars, {}), "settings": results})


if __name__ == "__main__":
    main()
