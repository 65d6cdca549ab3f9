"""[evaluate] and [export]: the protocol of the figures, and what the bundle holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from app.recipe.section import Count, Positive, Section, length_of_time_us


class Evaluate(Section):
    """The protocol of the reported figures."""

    k: list[Positive] = Field(
        default=[5, 10, 20], description="lengths of the lists for which figures are computed"
    )
    candidates: Literal["all", "listed", "logged"] = Field(
        "all",
        description="targets are ranked among all items, or among the negatives of the test part; logged:"
        " nothing is ranked, every held-out event is scored and compared with its label, for click-through",
    )
    exclude_seen: bool = Field(
        True, description="items of the user's earlier events are not ranked, unless one of them is a target"
    )
    bootstrap: Count = Field(200, description="resamples of users for confidence intervals; 0: no intervals")
    baselines: list[str] = Field(
        default=["popularity", "item_knn"],
        description="models in closed form that the report compares with, popularity or item_knn",
    )
    max_users: Count = Field(0, description="users drawn at random to be ranked; 0: all")
    delay: list[str] = Field(
        default=["median", "1d"],
        description="serving moments: the same users are asked again so long after their last event,"
        ' "median" (of the gaps between events in training) or a time such as "30m", "1h", "1d"; []: never',
    )

    @field_validator("delay")
    @classmethod
    def _lengths_of_time(cls, delays: list[str]) -> list[str]:
        for text in delays:
            if text != "median":
                length_of_time_us(text)
        return delays


class Export(Section):
    """What goes into the bundle."""

    name: str = Field("", description="name of the model in answers; empty: the recipe's")
    version: str = Field("", description="version in answers; empty: the digest of the bundle")
    index: Literal["auto", "exact", "ivf_sq8", "ivf_pq", "hnsw"] = Field(
        "auto", description="index of the items nearest to a user; auto: exact up to 100,000 items"
    )
    recall: float = Field(
        0.98, gt=0, lt=1, description="least share of the exact best 20 items that the index finds"
    )
    candidates: Positive = Field(
        1000, description="items that a recommendation ranks at most, where the model has no index"
    )
    columns: list[str] = Field(
        default=[], description="item columns that filters and caps may name; empty: all but long texts"
    )
    unpickle: bool = Field(
        False,
        description="allow the format torch_export, whose files are unpickled when they are loaded: they can"
        " run any code, so load only those of your own",
    )
