"""The fitted features of a table of attributes: fit, transform, save, load. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.errors import ArtifactError, RecipeError
from app.features.base import Array, Feature, State
from app.features.kinds import from_settings, kind_of, settings_of

FILLS = "fills.json"  # beside a saved state: what was put where a column had no value, by column


# Values by the name of their column, or by the feature where its `prepared` made them.
Columns = Mapping[Any, Array]


class Block(NamedTuple):
    """The dense floats that one feature makes: `width` of them from `start` on."""

    kind: str
    column: str
    start: int
    width: int


@dataclass(frozen=True)
class FittedColumns:
    """Features with their states, row-aligned lists."""

    features: list[Feature]
    states: list[State]

    @property
    def dense_width(self) -> int:
        """F, the number of floats in a row."""
        return sum(block.width for block in self.blocks)

    @property
    def blocks(self) -> list[Block]:
        """Which of the F floats are of which feature; features that are categories have none."""
        blocks, start = [], 0
        for feature, state in zip(self.features, self.states, strict=True):
            if width := _width(feature, state):
                blocks.append(Block(kind_of(feature), feature.column, start, width))
                start += width
        return blocks

    @property
    def categories(self) -> list[int]:
        """Cardinality of each of the K category features, unknown (0) counted."""
        return [int(s["cardinality"]) for s in self.states if "cardinality" in s]

    def transform(self, columns: Columns, rows: int | None = None) -> tuple[Array, Array]:
        """All features of N rows.

        Args:
            columns: name, or feature -> (N,) object array, None where missing.
            rows: N, needed only where there is no column.

        Returns:
            dense (N, F) float32 in the order of the recipe, category (N, K) int32.

        Raises:
            RecipeError: a feature's column is absent.
        """
        count = len(next(iter(columns.values()))) if columns else rows or 0
        dense, category = [np.zeros((count, 0), np.float32)], [np.zeros((count, 0), np.int32)]
        for feature, state in zip(self.features, self.states, strict=True):
            values = feature.transform(_column(columns, feature), state)
            if values.ndim == 1:
                category.append(values[:, None])
            else:
                dense.append(values)
        return np.concatenate(dense, 1), np.concatenate(category, 1)

    def save(self, folder: Path, name: str) -> None:
        """Write `folder/name/state.json`, and each array of a state as `N.key.npy` beside it."""
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        entries = []
        for number, (feature, state) in enumerate(zip(self.features, self.states, strict=True)):
            arrays = [key for key, value in state.items() if isinstance(value, np.ndarray)]
            for key in arrays:
                np.save(target / f"{number}.{key}.npy", state[key], allow_pickle=False)
            plain = {key: value for key, value in state.items() if key not in arrays}
            entries.append({"settings": settings_of(feature), "state": plain, "arrays": arrays})
        (target / "state.json").write_text(json.dumps(entries, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, name: str) -> FittedColumns:
        """What `save` wrote.

        Raises:
            ArtifactError: absent, damaged, or a kind that this version does not know.
        """
        target = folder / name
        try:
            entries = json.loads((target / "state.json").read_bytes())
            features = [from_settings(entry["settings"]) for entry in entries]
            states = [_state(target, number, entry) for number, entry in enumerate(entries)]
        except (OSError, ValueError, KeyError, TypeError, RecipeError) as error:
            raise ArtifactError(
                f"the fitted features cannot be read ({type(error).__name__}: {error})",
                where=str(target),
                remedy="run `rayrec prepare` again",
            ) from error
        return cls(features, states)


def fit_columns(features: Sequence[Feature], columns: Columns, train: Array) -> FittedColumns:
    """Fit the recipe's features.

    Args:
        features: [[features.item]] or [[features.user]] of the recipe.
        columns: name, or feature -> (N,) object array, None where missing.
        train: (N,) bool, rows that occur in training; statistics come from these alone.

    Raises:
        RecipeError: a feature's column is absent.
    """
    states = [feature.fit(_column(columns, feature)[train]) for feature in features]
    return FittedColumns(list(features), states)


def _column(columns: Columns, feature: Feature) -> Array:
    if feature in columns:
        return columns[feature]
    if feature.column not in columns:
        names = ", ".join(repr(name) for name in columns if isinstance(name, str))
        raise RecipeError(
            f"no attribute column {feature.column!r}",
            where="features",
            remedy=f"the columns are {names or 'none: name a file of attributes'}",
        )
    return columns[feature.column]


def _state(folder: Path, number: int, entry: Mapping[str, Any]) -> State:
    arrays = {key: np.load(folder / f"{number}.{key}.npy", allow_pickle=False) for key in entry["arrays"]}
    return {**entry["state"], **arrays}


def _width(feature: Feature, state: State) -> int:
    empty = feature.transform(np.empty(0, object), state)
    return 0 if empty.ndim == 1 else int(empty.shape[1])
