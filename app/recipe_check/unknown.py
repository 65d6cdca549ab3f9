"""The message for a name that is not known."""

from __future__ import annotations

import difflib

from app.errors import RecipeError


def unknown(what: str, value: str, where: str, known: list[str], beside: str = "") -> RecipeError:
    """An unknown name, with the one that was meant or all that there are."""
    close = difflib.get_close_matches(value, known, n=1)
    choices = ", ".join(known) or "there are none"
    remedy = f"did you mean {close[0]!r}?" if close else f"choose among {choices}{beside}"
    return RecipeError(f"no {what} {value!r}", where=where, remedy=remedy)
