"""Finds the kinds of tables: each file of this folder that defines a subclass of Table is one."""

from __future__ import annotations

import importlib
import pkgutil

from app.errors import RecipeError
from app.tables.base import Table


def table_names() -> list[str]:
    """Names of the kinds of tables in this folder, sorted."""
    import app.tables as folder

    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__) if _tables_in(module.name))


def table_class(name: str) -> type[Table]:
    """The table that the file `app/tables/NAME.py` defines.

    Raises:
        RecipeError: there is no such kind of table; the error lists those that there are.
    """
    if name not in table_names():
        raise RecipeError(
            f"unknown kind of table {name!r}",
            where="model.table",
            remedy=f"choose one of {', '.join(table_names())}",
        )
    return _tables_in(name)[0]


def _tables_in(name: str) -> list[type[Table]]:
    module = importlib.import_module(f"app.tables.{name}")
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Table)
        and value is not Table
        and value.__module__ == module.__name__
    ]
