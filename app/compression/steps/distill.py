"""A smaller model of the same kind learns from the trained one, and from others beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.compression.teacher import Distillation
from app.compression.work import Work
from app.errors import RecipeError
from app.models.build import build_model
from app.training.checkpoint import load_checkpoint, weights_of


def apply(work: Work) -> dict[str, Any]:
    """Train the student that compress.distill.student describes, and go on with it.

    Returns:
        distill: the student's best figure on validation, and the teacher's.

    Raises:
        RecipeError: a teacher in closed form or of another kind, or a student that is not smaller.
    """
    settings, metric = work.recipe.compress.distill, work.recipe.train.metric
    if not work.model.learns:
        raise RecipeError(
            f"{work.source.name} is fitted in closed form, and a student of it would be, too",
            where="compress.steps",
            remedy="leave out 'distill'",
        )
    hyperparameters = {**work.hyperparameters, **settings.student}
    teachers = (str(work.source.artifact.path), *settings.teachers)
    objective = Distillation(teachers, str(work.dataset.path), settings.weight)
    changes = {f"model.{name}": value for name, value in settings.student.items()}
    _refuse_larger(work, hyperparameters)
    for folder in settings.teachers:
        _refuse_unlike(work, Path(folder))
    trained = work.train(changes, "student", objective)
    student = load_checkpoint(trained.path, work.dataset)
    work.change_model(student.model, hyperparameters)
    best = {"student": trained, "teacher": work.source.artifact}
    return {"distill": {"metric": metric} | {k: a.figures.get(f"best_{metric}") for k, a in best.items()}}


def _refuse_unlike(work: Work, folder: Path) -> None:
    teacher, student = load_checkpoint(folder, work.dataset), work.model
    for what, own, other in (
        ("trains on", student.trains_on, teacher.model.trains_on),
        ("reads", student.reads, teacher.model.reads),
    ):
        if own != other:
            raise RecipeError(
                f"{teacher.name} {what} {other}, and the student {what} {own}: they cannot share batches",
                where=f"compress.distill.teachers: {folder}",
                remedy="give checkpoints of models that learn as the student does",
            )


def _refuse_larger(work: Work, hyperparameters: dict[str, Any]) -> None:
    source = work.recipe.model.source
    student = build_model(source, hyperparameters, work.dataset, fit=False)
    (own, _), (most, _) = weights_of(student), weights_of(work.model)
    if own >= most:
        raise RecipeError(
            f"the student has {own:,} weights, the teacher {most:,}",
            where="compress.distill.student",
            remedy="name hyperparameters that make it smaller, such as width",
        )
