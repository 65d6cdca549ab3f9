"""A look at the input without making a data set."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.data.input.form.files import find
from app.data.input.form.form import Form
from app.data.input.source import describe
from app.data.prepare.attribute_file import first_rejected_attributes
from app.data.prepare.ingest import Ingested, ingest
from app.data.prepare.rejected import first_rejected
from app.data.prepare.selection.select import select
from app.ray.session import ray_session
from app.recipe import Recipe

# A second on two cores without a GPU.
START = 6.0  # seconds until Ray runs, for the first stage
ROWS = 400_000.0  # rows read, cleaned and split
SAMPLES = 100_000.0  # positives and negatives trained on
SCORES = 20_000_000.0  # items scored and ranked for a user
CANDIDATES = 3.0  # trainings that a choice of the model takes at most
EXPORTED = 200_000.0  # items written to a bundle


def check(recipe: Recipe) -> dict[str, Any]:
    """All phases of `prepare` but the writing.

    Returns:
        columns of each file; forms: how each file of events, items and users is read; the figures of the
        data set's manifest; events: the event types; candidates: evaluate.candidates; examples: the first
        rejected rows of each reason; attribute_examples: the same of the files of items and users; seconds:
        the expected time of each stage of `run`.

    Raises:
        UserError: as `prepare` would.
    """
    with tempfile.TemporaryDirectory(prefix="rayrec-check-") as folder, ray_session():
        ingested = ingest(recipe, Path(folder))
        selected = select(ingested, write=False)
        return {
            "columns": {s.source.name: list(s.source.columns) for s in ingested.splits},
            "forms": dict(_forms(recipe, ingested)),
            **selected.figures,
            "events": ingested.events[1:],
            "candidates": recipe.evaluate.candidates,
            "examples": first_rejected(ingested.splits, ingested.plan, ingested.positions),
            "attribute_examples": first_rejected_attributes(ingested.plan),
            "seconds": estimate(recipe, selected.figures),
        }


def _forms(recipe: Recipe, ingested: Ingested) -> Iterator[tuple[str, dict[str, Any]]]:
    """How each file of events, then of items and users is read, by its name."""
    for source in dict.fromkeys(split.source for split in ingested.splits):
        yield source.name, {"holds": "events", **_form(source.form)}
    for key in ("items", "users"):
        if (section := getattr(recipe.data, key)) is not None:
            for name in find(section.files, key=f"data.{key}.files"):
                yield name, {"holds": key, **_form(describe(name, section).form)}


def _form(form: Form) -> dict[str, Any]:
    keys = ("format", "gzip", "delimiter", "encoding", "quote", "header", "layout", "columns")
    return {**{key: getattr(form, key) for key in keys}, "guessed": sorted(form.guessed)}


def estimate(recipe: Recipe, figures: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that the stages of `run` take on two cores, and their total.

    Args:
        recipe: the recipe.
        figures: of the data set: rows_in, train, valid, test, users, items.
    """
    train, items = recipe.train, figures["items"]
    validated = min(train.valid_users, figures["valid"]) * items
    evaluated = min(recipe.evaluate.max_users or figures["test"], figures["test"]) * items
    trained = train.epochs * figures["train"] * (1 + train.negatives) / SAMPLES
    ranked = min(train.epochs * validated / SCORES, train.valid_share * trained)
    auto, copied = recipe.model.source == "auto", train.workers < 2  # then training is that of the choice
    seconds = {
        "prepare": START + figures["rows_in"] / ROWS,
        "choose": min(60 * train.minutes, CANDIDATES * (trained + ranked)) if auto else 0.0,
        "train": 0.0 if auto and copied else trained,
        "validate": 0.0 if auto and copied else ranked,
        "evaluate": (1 + len(recipe.evaluate.baselines)) * evaluated / SCORES,
        "export": 1 + items / EXPORTED,
    }
    return {stage: round(s, 1) for stage, s in {**seconds, "total": sum(seconds.values())}.items()}
