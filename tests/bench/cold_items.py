"""Films that training never saw, ranked among all: `python -m tests.bench.cold_items`.

A tenth of MovieLens-1M's films is drawn by a seed, and every rating of them is the test part; the item file
holds all films. A user's hidden films are ranked among all films that the user has not rated in training.
`fusion`, which has titles, genres and years, is compared with `two_tower` by ids alone on the same split,
and with the order of chance. The best epoch of each is chosen on the last training rating of each user.
Writes runs/bench/cold_items.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from app.data.dataset import Dataset
from app.data.stage import prepare
from app.evaluation.evaluate import evaluate
from app.evaluation.requests import requests_of
from app.evaluation.scorer import ModelScorer
from app.ray.session import ray_session
from app.recipe import Recipe, parse
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint
from app.training.train import fit

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "runs" / "bench"
DATA = Path(os.environ.get("RAYREC_DATA", REPOSITORY.parent / "shared" / "data")) / "ml-1m"
SHARE = 0.1  # of the films, hidden from training
NEED, AIM = 5.0, 10.0  # times the figure of ids alone
FIGURE, K = "ndcg@10", 10
CONTENT = [
    {"kind": "text", "column": "title", "vocabulary": 300},
    {"kind": "text", "column": "genres", "vocabulary": 64},
    {"kind": "number", "column": "year"},
    {"kind": "category", "column": "year"},
]
USERS = [{"kind": "category", "column": name} for name in ("gender", "age", "occupation")]
Figures = dict[str, Any]


def write_files(folder: Path, seed: int) -> int:
    """Write train, test and items; returns how many films are hidden."""
    ratings = pl.read_parquet(DATA / "ratings.parquet").sort("user_id", "position")
    films = ratings["movie_id"].unique().sort().to_numpy()
    hidden = np.random.default_rng(seed).choice(films, round(SHARE * len(films)), replace=False)
    is_hidden = pl.col("movie_id").is_in(hidden.tolist())
    ratings.filter(~is_hidden).write_parquet(folder / "train.parquet")
    ratings.filter(is_hidden).write_parquet(folder / "test.parquet")
    year = pl.col("title").str.extract(r"\((\d{4})\)$").cast(pl.Int64)
    title = pl.col("title").str.replace(r"\s*\(\d{4}\)$", "")
    movies = pl.read_parquet(DATA / "movies.parquet").filter(pl.col("movie_id").is_in(films.tolist()))
    movies.with_columns(year=year, title=title).write_parquet(folder / "items.parquet")
    return len(hidden)


def recipe_of(folder: Path, model: str, content: list[dict[str, Any]], seed: int) -> Recipe:
    return parse(
        {
            "name": model,
            "seed": seed,
            "data": {
                "events": [str(folder / "train.parquet")],
                "user": "user_id",
                "item": "movie_id",
                "timestamp": "",
                "row_order": True,
                "items": {"files": [str(folder / "items.parquet")], "id": "movie_id"},
                "users": {"files": [str(DATA / "users.parquet")], "id": "user_id"},
            },
            "split": {"method": "given", "test_events": [str(folder / "test.parquet")]},
            "features": {"history": 50, "context": [], "item": content, "user": USERS},
            "model": {"name": model},
            "train": {"workers": 0},
            "evaluate": {"baselines": [], "delay": []},
        },
        "bench",
    )


def measured(folder: Path, recipe: Recipe, minutes: float) -> Figures:
    """Prepare, train and evaluate: the test figure, that of validation, and chance."""
    dataset = Dataset.open(prepare(recipe, folder / f"{recipe.name}-dataset").path, verify=False)
    begun = time.perf_counter()
    limit_s = minutes * 60 or None
    checkpoint = fit(recipe, dataset, folder / f"{recipe.name}-checkpoint", limit_s=limit_s)
    seconds = time.perf_counter() - begun
    scorer = ModelScorer(load_checkpoint(checkpoint.path, dataset).model)
    report = evaluate(recipe, dataset, scorer)
    figures = {
        FIGURE: report.figures[FIGURE],
        "valid": checkpoint.figures[f"best_{FIGURE}"],
        "seconds": seconds,
        "epochs": checkpoint.figures["epochs"],
        "chance": chance(dataset),
    }
    say(f"seed {recipe.seed}, {recipe.name}: {json.dumps(figures)}")
    return figures


def chance(dataset: Dataset) -> float:
    """The expected NDCG@10 of a random order: every place holds a target with the same probability."""
    requests = requests_of(dataset, "test")
    targets = np.diff(requests.indptr)
    seen = np.diff(dataset.train.indptr)[requests.user] + np.diff(dataset.valid.indptr)[requests.user]
    gains = 1 / np.log2(np.arange(2, K + 2))
    best = np.cumsum(gains)[np.minimum(targets, K) - 1]
    return float((targets / (dataset.schema.items - 1 - seen) * gains.sum() / best).mean())


def run_seed(seed: int, minutes: float) -> Figures:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hidden = write_files(folder, seed)
        results = {
            "fusion": measured(folder, recipe_of(folder, "fusion", CONTENT, seed), minutes),
            "ids": measured(folder, recipe_of(folder, "two_tower", [], seed), minutes),
        }
    say(f"seed {seed}: {hidden} films hidden")
    return results


def report(results: dict[int, Figures]) -> Figures:
    """Means over seeds. Ids alone count as chance at least, so that a ratio means something."""
    ratios = [
        run["fusion"][FIGURE] / max(run["ids"][FIGURE], run["ids"]["chance"]) for run in results.values()
    ]
    figures = {
        f"{model}_{name}": statistics.mean(run[model][name] for run in results.values())
        for model in ("fusion", "ids")
        for name in (FIGURE, "valid", "seconds", "epochs", "chance")
    }
    ratio, spread = statistics.mean(ratios), statistics.pstdev(ratios)
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "name": "cold_items",
        "machine": {"cores": os.cpu_count(), "memory_gib": memory, "python": platform.python_version()},
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "numpy")},
        "ratios": {"ids": round(ratio, 2)},
        "bars": [
            {"name": "fusion over ids alone", "value": round(ratio, 2), "need": NEED, "holds": ratio >= NEED},
            {"name": "aim", "value": round(ratio, 2), "need": AIM, "holds": ratio >= AIM},
        ],
        "figures": {**figures, "ratio_spread": spread, "seeds": sorted(results)},
    }


def write(result: Figures) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "cold_items.json").write_text(json.dumps(result, indent=1) + "\n")
    figures = result["figures"]
    lines = [
        "# Films unseen in training, ranked among all",
        "",
        f"MovieLens-1M, a tenth of the films hidden, seeds {', '.join(map(str, figures['seeds']))}; means.",
        "",
        "| model | NDCG@10 of hidden films | NDCG@10 of validation | epochs | seconds |",
        "|---|---|---|---|---|",
    ]
    for model, name in (("fusion", "fusion: title, genres, year"), ("ids", "two_tower by ids alone")):
        values = f"{figures[f'{model}_{FIGURE}']:.4f} | {figures[f'{model}_valid']:.4f}"
        effort = f"{figures[f'{model}_epochs']:.0f} | {figures[f'{model}_seconds']:.0f}"
        lines.append(f"| {name} | {values} | {effort} |")
    lines += [
        f"| chance | {figures['ids_chance']:.4f} | | | |",
        "",
        f"fusion over ids alone (chance at least): {result['ratios']['ids']:.1f} ×, deviation"
        f" {figures['ratio_spread']:.1f}; needed {NEED:.0f} ×, aim {AIM:.0f} ×.",
    ]
    (OUT / "cold_items.md").write_text("\n".join(lines) + "\n")
    say("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="splits, by the seeds 0, 1, ...")
    parser.add_argument("--minutes", type=float, default=0, help="of a training at most; 0: no limit")
    options = parser.parse_args()
    with ray_session():
        results = {seed: run_seed(seed, options.minutes) for seed in range(options.seeds)}
    result = report(results)
    write(result)
    raise SystemExit(0 if result["bars"][0]["holds"] else 1)


if __name__ == "__main__":
    main()
