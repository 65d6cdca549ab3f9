"""What the tables of a recipe share: how they treat unknown keys, and bounds of numbers."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of the recipe: unknown keys are refused, and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def length_of_time_us(text: str) -> int:
    """Microseconds of a length of time such as "30m", "1h" or "1.5d".

    Raises:
        PydanticCustomError: not a number and one of s, m, h and d.
    """
    if not re.fullmatch(r"(\d+(\.\d+)?|\.\d+)[smhd]", text):
        raise PydanticCustomError("length", 'no length of time: write e.g. "30m", "1h" or "1d"')
    return round(float(text[:-1]) * _UNITS_US[text[-1]])
