"""Every error a user can meet.

    RayRecError            exit 2: our fault
    └── UserError          exit 1: theirs, with the remedy
        ├── RecipeError    a key or value of the recipe
        ├── DataError      a file, row or column of the input
        ├── ArtifactError  a damaged, missing or foreign artefact
        ├── RequestError   a request to the ranker (HTTP 4xx)
        └── MachineError   the machine: port in use, disk full, out of memory

A message says what was wrong, the value received, where, and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class RayRecError(Exception):
    """An error with its location and remedy.

    Args:
        what: what was wrong, with the value received.
        where: file, row or key; empty where nothing can be named.
        remedy: what to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what, self.where, self.remedy = what, where, remedy

    def __str__(self) -> str:
        location = f"{self.where}: " if self.where else ""
        return f"{location}{self.what}" + (f" - {self.remedy}" if self.remedy else "")

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from Ray workers to the driver: keep the keywords.
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(kind: type[RayRecError], what: str, where: str, remedy: str) -> RayRecError:
    return kind(what, where=where, remedy=remedy)


class UserError(RayRecError):
    """A mistake that the user can mend."""

    exit_code = 1


class RecipeError(UserError):
    """A recipe key that is unknown, of the wrong type or at odds with another."""


class DataError(UserError):
    """Input data that cannot be used."""


class ArtifactError(UserError):
    """An artefact that is damaged, truncated, missing, too new or of another kind."""


class RequestError(UserError):
    """A ranking request that cannot be answered; serving turns it into a 4xx."""


class MachineError(UserError):
    """Something about the machine: a full disk, a port in use, a missing package."""


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """Turn a full disk and the like into a MachineError that names `where`."""
    try:
        yield
    except OSError as error:
        # numpy tells of a write cut short in words alone.
        short = error.errno is None and "requested and" in str(error)
        if short or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(
                f"the disk is full ({error.strerror or error})",
                where=where,
                remedy="free some space or choose another output folder; nothing was published",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise MachineError(
                f"cannot write ({error.strerror})", where=where, remedy="choose a folder you may write to"
            ) from error
        raise
