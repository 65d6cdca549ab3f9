"""Embedding tables. Models declare them by name and width; what they are made of is set outside.

One file a kind of table, with one subclass of Table; `model.table` of a recipe names the file.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from app.errors import RecipeError


class TableOptions(BaseModel):
    """The options of a kind of table, `model.table_options` of a recipe; subclasses add theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Table(nn.Module):
    """Rows of floats, looked up by id; row 0 is that of the unknown id alone and begins with zeros.

    Attributes:
        name, rows: as a model declared the table; see `Tables`.
    """

    Options: ClassVar[type[TableOptions]] = TableOptions
    name = ""
    rows = 0

    @classmethod
    def create(cls, rows: int, width: int, options: Any) -> Table:
        """A table for `rows` ids, by the Options of this kind; another kind where that is smaller."""
        raise NotImplementedError

    @classmethod
    def check(cls, options: dict[str, Any]) -> TableOptions:
        """Validate `model.table_options`.

        Raises:
            RecipeError: an unknown, missing or wrong option, named.
        """
        try:
            return cls.Options.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            known = ", ".join(cls.Options.model_fields) or "no options"
            raise RecipeError(
                f"{key}: {first['msg']}", where="model.table_options", remedy=f"this kind has {known}"
            ) from None

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (…) int64 as (…, D) float32."""
        raise NotImplementedError

    def set_unknown(self, row: Tensor) -> None:
        """Make `row` (D,) the row of id 0, in place; the rows of other ids stay as they are."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Size of the stored rows, in bytes."""
        return sum(p.numel() * p.element_size() for p in (*self.parameters(), *self.buffers()))


class Tables(Protocol):
    """Makes the tables that a model declares."""

    def __call__(self, name: str, rows: int, width: int) -> Table:
        """A table of `rows` x `width`, row 0 for unknown ids.

        Args:
            name: what has a row; where it is each user or each item, the name is "user" or "item", or
                begins with it, such as "item_bias".
        """
        ...
