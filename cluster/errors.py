"""What can go wrong with the cluster, said in one line with its remedy."""

from __future__ import annotations


class ClusterError(Exception):
    """A mistake or a state of the machine that the user can mend (exit code 1)."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what} - {remedy}" if remedy else what)
