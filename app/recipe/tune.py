"""[tune]: how hyperparameters and compression are searched together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from app.recipe.section import Count, Positive, Section

RANGE = {"low", "high", "log"}  # keys of a range; low and high are needed


class Tune(Section):
    """How hyperparameters and compression are searched together."""

    trials: Positive = Field(20, description="trials, finished or stopped early, at which the search ends")
    minutes: float = Field(
        0.0, ge=0, description="time after which no further trial begins, of each call; 0: no limit"
    )
    parallel: Count = Field(0, description="trials that run at a time; 0: one for each core")
    epochs: Count = Field(0, description="epochs of a trial at most; 0: those of [train]")
    stop_early: bool = Field(
        False,
        description="whether a trial ends that after a ninth or a third of its epochs is behind others in"
        " quality, latency and bytes together; for trainings of minutes",
    )
    max_users: Positive = Field(2000, description="validation users that a trial ranks")
    models: list[str] = Field(
        [], description="models to search over; empty: the recipe's own, or those that auto compared"
    )
    space: dict[str, Any] = Field(
        {},
        description="keys of [model], [train] and [compress] with what is tried for each: a list of values,"
        " one where it is to stay, or { low, high, log }; other keys are searched as ever",
    )
    budget: str = Field(
        "", description='limits of the choice, e.g. "p95_ms<=8, mb<=20" or "ndcg@10>=0.98*best"; empty: none'
    )

    def searched(self) -> dict[str, list[Any] | tuple[Any, ...]]:
        """Of each dotted key of `space` its values, or its range as (low, high) or (low, high, "log")."""
        return {
            key: tried if isinstance(tried, list) else _range(tried)
            for key, tried in leaves_of_space(self.space)
        }


def leaves_of_space(space: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a space, which TOML may nest, with what stands there."""
    for key, value in space.items():
        if isinstance(value, Mapping) and not RANGE & set(value):
            yield from leaves_of_space(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value


def _range(content: Mapping[str, Any]) -> tuple[Any, ...]:
    return content["low"], content["high"], *(["log"] if content.get("log") else [])
