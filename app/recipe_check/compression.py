"""Rules about [compress]: what a model can take, and what a student may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.errors import RecipeError
from app.recipe import Recipe
from app.recipe.compress import Step
from app.recipe_check.model import AUTO, closed_forms

LEARNING = ("finetune", "distill")  # steps that train
# Steps that cannot follow some others: what is wrong, and those.
BEFORE: dict[Step, tuple[str, tuple[Step, ...]]] = {
    "svd": ("'svd' cannot make product codes narrower", ("product",)),
    "low_rank": ("'low_rank' makes new weights, and those that were set to zero are lost", ("prune",)),
    "neurons": (
        "'neurons' makes layers narrower, which stored rows and factors cannot follow",
        ("low_rank", "svd", "product", "finetune"),
    ),
}


def mistakes_of(recipe: Recipe) -> Iterator[RecipeError]:
    """Mistakes in the steps of compression, which would show after the training."""
    steps = recipe.compress.steps
    for name in dict.fromkeys(step for step in steps if steps.count(step) > 1):
        remedy = "name each step at most once"
        yield RecipeError(f"{name!r} is listed twice", where="compress.steps", remedy=remedy)
    yield from _order(steps)
    yield from _closed_form(recipe)
    if "distill" in steps:
        yield from _student(recipe)


def _order(steps: list[Step]) -> Iterator[RecipeError]:
    """Mistakes in the order of steps."""
    for name, (problem, earlier) in BEFORE.items():
        before = [step for step in steps[: steps.index(name)] if step in earlier] if name in steps else []
        if before:
            remedy = f"name {name!r} before {', '.join(map(repr, before))}"
            yield RecipeError(problem, where="compress.steps", remedy=remedy)


def _closed_form(recipe: Recipe) -> Iterator[RecipeError]:
    if recipe.model.file or recipe.model.name not in closed_forms():
        return
    for name in recipe.compress.steps:
        if name in LEARNING:
            yield RecipeError(
                f"{name!r} trains, and {recipe.model.name} is fitted in closed form",
                where="compress.steps",
                remedy=f"leave out {name!r}",
            )


def _student(recipe: Recipe) -> Iterator[RecipeError]:
    settings, section = recipe.compress.distill, recipe.model
    if "distill" in recipe.compress.steps[1:]:
        yield RecipeError(
            "'distill' begins a new model, and what was done before it is lost",
            where="compress.steps",
            remedy="name it first",
        )
    if not settings.student:
        yield RecipeError(
            "the student is as large as its teacher",
            where="compress.distill.student",
            remedy="name hyperparameters that make it smaller, e.g. { width = 16 }",
        )
    for folder in settings.teachers:
        if not (Path(folder) / "manifest.json").is_file():
            remedy = "give the folder `checkpoint` of a run"
            yield RecipeError(
                f"{folder!r} is no checkpoint", where="compress.distill.teachers", remedy=remedy
            )
    if settings.student and (section.file or section.name != AUTO):
        yield from _hyperparameters(recipe)


def _hyperparameters(recipe: Recipe) -> Iterator[RecipeError]:
    """Mistakes in the keys of the student, which its Config checks: imports torch."""
    from app.models.discovery import model_config

    section, student = recipe.model, recipe.compress.distill.student
    try:
        model_config(section.source, {**section.hyperparameters, **student})
    except RecipeError as error:
        key = error.where.removeprefix("model.")
        if key.partition(".")[0] in student:  # others are told as mistakes of [model]
            yield RecipeError(error.what, where="compress.distill.student", remedy=error.remedy)
