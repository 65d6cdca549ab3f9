"""What every model promises, checked: for the models of RayRec by the tests, for a user's own by
`rayrec check --model`.

A promise is a function that raises BrokenPromise. Its docstring says what is promised.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from app.errors import RecipeError
from app.evaluation.contract.learning import (
    asks_for_training_that_there_is,
    follows_the_past_alone,
    learns_alike_under_a_seed,
    learns_rows_by_heart,
    learns_with_every_weight,
)
from app.evaluation.contract.scoring import (
    exports,
    makes_rows_in_advance,
    reads_a_past_of_any_length,
    restores_from_its_state,
    scores_a_request_as_if_alone,
    scores_candidates_in_any_order,
    scores_every_candidate,
    scores_unknown_ids,
    searches_what_it_can_be,
    takes_every_kind_of_table,
    treats_untrained_ids_as_unknown,
)
from app.evaluation.contract.subject import BrokenPromise, Subject
from app.evaluation.sample import sample_dataset
from app.models.discovery import model_class, model_config
from app.recipe import ModelSection

__all__ = ["PROMISES", "Subject", "broken_by", "check_model", "treats_untrained_ids_as_unknown"]

PROMISES: tuple[Callable[[Subject], None], ...] = (
    scores_every_candidate,
    makes_rows_in_advance,
    scores_a_request_as_if_alone,
    scores_candidates_in_any_order,
    reads_a_past_of_any_length,
    follows_the_past_alone,
    learns_with_every_weight,
    learns_rows_by_heart,
    learns_alike_under_a_seed,
    asks_for_training_that_there_is,
    scores_unknown_ids,
    treats_untrained_ids_as_unknown,
    exports,
    restores_from_its_state,
    searches_what_it_can_be,
    takes_every_kind_of_table,
)


def check_model(model: ModelSection) -> dict[str, Any]:
    """Check a model against every promise.

    Returns:
        model, its name, and promises, how many it keeps.

    Raises:
        RecipeError: the model cannot be built, or breaks promises, which the error lists.
    """
    model_config(model.source, model.hyperparameters)
    with tempfile.TemporaryDirectory() as folder:
        kinds = [group[0] for group in model_class(model.source).NEEDS]
        dataset = sample_dataset(Path(folder) / "dataset", kinds)
        subject = Subject(model.source, dataset, model.hyperparameters)
        subject.build()
        broken = [message for promise in PROMISES if (message := broken_by(subject, promise))]
    if broken:
        raise RecipeError(
            f"{model.name} breaks {len(broken)} of {len(PROMISES)} promises of a model\n  "
            + "\n  ".join(broken),
            where=model.file or "model.name",
            remedy="see the docstrings of app.models.base.Model",
        )
    return {"model": model.name, "promises": len(PROMISES)}


@torch.no_grad()
def broken_by(subject: Subject, promise: Callable[[Subject], None]) -> str:
    """The promise and what the model does instead, in one line; "" where it is kept."""
    try:
        promise(subject)
    except Exception as error:
        what = str(error).strip().splitlines() or [type(error).__name__]
        line = "" if isinstance(error, BrokenPromise) else _line_of(error, subject.source)
        return f"{promise.__name__}: {(promise.__doc__ or '').strip()} But {line}{what[0]}"
    return ""


def _line_of(error: Exception, source: str) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == source]
    return f"line {lines[-1]} raised {type(error).__name__}: " if lines else f"{type(error).__name__}: "
