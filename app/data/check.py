"""A look at the input without making a data set."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from app.data.prepare.dedupe_sort import read_batch
from app.data.prepare.ingest import ingest
from app.data.prepare.plan import Plan
from app.data.prepare.vocabulary import items_of
from app.ray.session import ray_session
from app.recipe import Recipe

SAMPLES_PER_SECOND = 100_000  # of training on two cores, to give an idea of its time


def check(recipe: Recipe) -> dict[str, Any]:
    """Phase 1 without a data set: schema, counts, what is rejected so far, time of training.

    Raises:
        UserError: as `prepare` would.
    """
    with tempfile.TemporaryDirectory(prefix="rayrec-check-") as folder, ray_session():
        ingested = ingest(recipe, Path(folder), dry=True)
        names = [info.name for info in ingested.infos]
        kept = sum(p["kept"] for r in ingested.reports for p in r["pieces"])
        samples = kept * (1 + recipe.train.negatives) * recipe.train.epochs
        return {
            "columns": {s.source.name: list(s.source.columns) for s in ingested.splits},
            "rows_in": ingested.rows,
            "rows_kept": kept,
            "rejected": dict(ingested.rejected),
            "users": _count_users(ingested.plan, names),
            "items": len(items_of(ingested.plan, names, ingested.items_put)),
            "events": ingested.events[1:],
            "training_seconds": round(samples / SAMPLES_PER_SECOND, 1),
        }


def _count_users(plan: Plan, names: list[str]) -> int:
    total = 0
    for bucket in range(plan.buckets):
        hashes = [read_batch(Path(plan.scratch) / f"{n}.users", bucket)["hash"].to_numpy() for n in names]
        total += len(np.unique(np.concatenate(hashes)))
    return total
