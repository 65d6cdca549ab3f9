"""What a sample of a column shows: how many values it has, and whether they are numbers, times or texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import nan

import polars as pl

from app.terminal.guess import times

MISSING = ("", "NA", "N/A", "nan", "NaN", "null", "NULL", "None", "\\N", "<NA>")
MOSTLY = 0.95  # share of values that has to be of a kind
CODED = 0.005  # share of numbers with a leading 0, or with signs, that shows a code
LONGEST_ID = 64  # characters on average


@dataclass(frozen=True)
class Column:
    """A column of a sample as text, with what its values look like; missing values are null.

    Attributes:
        name: in the recipe.
        values: of the sample.
        listed: whether the file says that a value lists several, between blanks.
    """

    name: str
    values: pl.Series
    listed: bool = False

    @classmethod
    def of(cls, series: pl.Series, *, listed: bool = False) -> Column:
        """The column with the texts that mean "missing" taken out."""
        text = series.cast(pl.String).str.strip_chars()
        return cls(series.name, text.set(text.is_in(MISSING), None), listed)

    @cached_property
    def present(self) -> pl.Series:
        """The values that are there."""
        return self.values.drop_nulls()

    @cached_property
    def filled(self) -> float:
        """Share of rows with a value."""
        return len(self.present) / max(1, len(self.values))

    @cached_property
    def distinct(self) -> int:
        """Number of different values."""
        return self.present.n_unique()

    @cached_property
    def unique(self) -> float:
        """Different values as a share of all; 1 where none comes twice."""
        return self.distinct / max(1, len(self.present))

    @cached_property
    def numbers(self) -> pl.Series:
        """The values as float64, null where one is no number."""
        return self.present.cast(pl.Float64, strict=False)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest number; not a number where there is none."""
        low, high = self.numbers.min(), self.numbers.max()
        return (low, high) if isinstance(low, float) and isinstance(high, float) else (nan, nan)

    @cached_property
    def numeric(self) -> bool:
        """Whether the values are numbers."""
        return self._share(self.numbers.is_not_null()) >= MOSTLY

    @cached_property
    def fractional(self) -> bool:
        """Whether the values are numbers with decimals other than .0, which ids do not have."""
        known = self.numbers.drop_nulls()
        return self.numeric and self._share(known != known.round()) > 1 - MOSTLY

    @cached_property
    def code(self) -> bool:
        """Whether digits are no quantity: some begin with a 0, or have letters or signs among them."""
        digits = self.numbers.is_null() & self.present.str.contains(r"\d")
        return self._share(digits | self.present.str.contains(r"^0\d")) > CODED

    @cached_property
    def several(self) -> bool:
        """Whether values list several words with a sign between them, as "Comedy|Drama" does."""
        return self.listed or self._share(self.present.str.contains(r"\w\s*[|;]\s*\w")) > 1 - MOSTLY

    @cached_property
    def length(self) -> float:
        """Characters of a value on average."""
        return float(self.present.str.len_chars().mean() or 0)  # type: ignore[arg-type]

    @cached_property
    def words(self) -> float:
        """Words of a value on average."""
        return float(self.present.str.count_matches(r"\S+").mean() or 0)  # type: ignore[arg-type]

    @cached_property
    def address(self) -> bool:
        """Whether the values are addresses of web pages or pictures."""
        return self._share(self.present.str.contains(r"^(https?:)?//")) >= MOSTLY

    @cached_property
    def spelling(self) -> times.Spelling | None:
        """How the values are spelled as times; None where they are none."""
        return times.find_spelling(self.present)

    @property
    def constant(self) -> bool:
        """Whether all rows are alike, or nothing is there: such a column says nothing."""
        return self.distinct <= 1

    @property
    def identifies(self) -> bool:
        """Whether values can be ids: short, no decimals, several."""
        return not (self.constant or self.fractional or self.length > LONGEST_ID or self.words > 3)

    def _share(self, mask: pl.Series) -> float:
        return float(mask.sum()) / max(1, len(self.present))
