"""What the verbs deploy, rollback, promote and scale do with a service that runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.errors import ArtifactError, MachineError, RecipeError
from app.recipe import parse, parse_override
from app.serving.rollout.discovery import runs
from app.serving.rollout.state import Command, CommandResult, DesiredState, Service, Snapshot
from app.serving.rollout.state_dir import StateDir
from app.serving.rollout.status import release_of
from app.terminal.console import say

LOOK_S = 0.1
PATIENCE_S = 60.0
PREFIX = "serve.rollout."


def limits(changes: Sequence[str]) -> dict[str, float]:
    """Keys of serve.rollout as a deployment changes them, from --set serve.rollout.KEY=VALUE.

    Raises:
        RecipeError: another key, or a wrong value.
    """
    given = dict(parse_override(text) for text in changes)
    for key in given:
        if not key.startswith(PREFIX):
            raise RecipeError(
                "only the rollout can be set for a service that runs", where=key, remedy=f"{PREFIX}KEY=VALUE"
            )
    rollout = parse({}, "--set").override(given).serve.rollout
    return {key: float(getattr(rollout, key)) for key in (name[len(PREFIX) :] for name in given)}


def deploy(service: Service, wish: Command) -> dict[str, Any]:
    """Have a bundle take over, and wait until it did.

    Returns:
        What is served then.

    Raises:
        ArtifactError: it was refused or rolled back, and the version before goes on.
    """
    wish = StateDir(Path(service.store)).wish(wish)
    release = _settled(service, wish, _narrator())
    outcome = release.outcome(wish.id)
    assert outcome is not None
    _check(outcome, wish.bundle)
    _applied(service, lambda one: _shares(release) == _served(one))
    return _serving(release)


def roll_back(service: Service) -> dict[str, Any]:
    """End a trial, or return to the version before, and wait until all replicas did."""
    return _done(service, Command("rollback"))


def promote(service: Service) -> dict[str, Any]:
    """Give all users the version on trial, and wait until all replicas do."""
    return _done(service, Command("promote"))


def scale(service: Service, replicas: int) -> dict[str, Any]:
    """Have so many replicas, 0: as the load asks; waits until they are there."""
    board = StateDir(Path(service.store))
    wish = board.wish(Command("scale", replicas=replicas))
    outcome = _settled(service, wish).outcome(wish.id)
    assert outcome is not None
    _check(outcome, "")
    if replicas:
        _wait(service, lambda: len(board.snapshots()) == replicas, f"there are not {replicas} replicas")
    return {"replicas": replicas or "as the load asks"}


def _done(service: Service, wish: Command) -> dict[str, Any]:
    wish = StateDir(Path(service.store)).wish(wish)
    release = _settled(service, wish)
    outcome = release.outcome(wish.id)
    assert outcome is not None
    _check(outcome, "")
    _applied(service, lambda one: _shares(release) == _served(one))
    return _serving(release)


def _settled(
    service: Service, wish: Command, told: Callable[[DesiredState], None] = lambda _: None
) -> DesiredState:
    """The release in which the outcome of a wish stands."""
    board = StateDir(Path(service.store))
    while True:
        release = release_of(board)
        told(release)
        if release.outcome(wish.id) is not None:
            return release
        if not runs(service):
            raise MachineError("the service ended meanwhile", where=service.url, remedy="start it again")
        time.sleep(LOOK_S)


def _applied(service: Service, holds: Callable[[Snapshot], bool]) -> None:
    board = StateDir(Path(service.store))
    _wait(service, lambda: all(map(holds, board.snapshots())), "not all replicas serve it")


def _wait(service: Service, holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise MachineError(
                f"{what} after {PATIENCE_S:g} s", where=service.url, remedy="look with `rayrec status`"
            )
        time.sleep(LOOK_S)


def _check(outcome: CommandResult, bundle: str) -> None:
    if outcome.state != "done":
        remedy = "what was served before goes on" if bundle else ""
        raise ArtifactError(f"{outcome.state}: {outcome.reason}", where=bundle, remedy=remedy)


def _narrator() -> Callable[[DesiredState], None]:
    """Says each phase and, now and then, how far it is."""
    said = ["", ""]

    def tell(release: DesiredState) -> None:
        if release.trial is None or (said[0] == release.phase and said[1] == release.note):
            return
        said[:] = [release.phase, release.note]
        percent = f" ({100 * release.trial.share:.0f} % of the users)" if release.trial.share else ""
        say(f"{release.phase}{percent}: {release.note or release.trial.label}")

    return tell


def _shares(release: DesiredState) -> dict[str, float]:
    return {one.digest: round(one.share, 6) for one in release.versions if one.share}


def _served(snapshot: Snapshot) -> dict[str, float]:
    return {digest: round(one.share, 6) for digest, one in snapshot.versions.items() if one.share}


def _serving(release: DesiredState) -> dict[str, Any]:
    return {
        "phase": release.phase,
        "versions": {one.label: one.share for one in release.versions},
        "before": release.previous.label if release.previous else None,
    }
