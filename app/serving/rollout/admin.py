"""What the verbs deploy, rollback, promote and scale do with a service that runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.errors import ArtifactError, MachineError, RecipeError
from app.recipe import parse
from app.recipe_toml import parse_override
from app.serving.rollout.discovery import is_running
from app.serving.rollout.state import Command, CommandResult, DesiredState, Service, Snapshot
from app.serving.rollout.state_dir import StateDir
from app.serving.rollout.status import desired_state_of
from app.terminal.console import say

LOOK_S = 0.1
PATIENCE_S = 60.0  # a command is carried out within it, and replicas follow within it
FETCH_S = 600.0  # a deployment is first fetched, verified and copied
PREFIX = "serve.rollout."


def parse_limits(changes: Sequence[str]) -> dict[str, float | bool]:
    """Keys of serve.rollout as a deployment changes them, from --set serve.rollout.KEY=VALUE.

    Raises:
        RecipeError: another key, or a wrong value.
    """
    overrides = dict(parse_override(text) for text in changes)
    for key in overrides:
        if not key.startswith(PREFIX):
            raise RecipeError(
                "only the rollout can be set for a service that runs", where=key, remedy=f"{PREFIX}KEY=VALUE"
            )
    rollout = parse({}, "--set").override(overrides).serve.rollout
    return {key: getattr(rollout, key) for key in (name[len(PREFIX) :] for name in overrides)}


def deploy(service: Service, command: Command) -> dict[str, Any]:
    """Have a bundle take over, and wait until it did.

    Returns:
        What is served then.

    Raises:
        ArtifactError: it was refused or rolled back, and the version before goes on.
        MachineError: it is still on trial after the time that its phase may take, because it waits for
            requests; or the service ended.
    """
    return _carry_out(service, command, _progress_printer())


def roll_back(service: Service) -> dict[str, Any]:
    """End a trial, or return to the version before, and wait until all replicas did."""
    return _carry_out(service, Command("rollback"))


def promote(service: Service) -> dict[str, Any]:
    """Give all users the version on trial, and wait until all replicas do."""
    return _carry_out(service, Command("promote"))


def scale(service: Service, replicas: int) -> dict[str, Any]:
    """Have so many replicas, 0: as the load asks; waits until they are there."""
    state_dir = StateDir(Path(service.store))
    _wait_for_result(service, state_dir.submit(Command("scale", replicas=replicas)))
    if replicas:
        _wait(service, lambda: len(state_dir.snapshots()) == replicas, f"there are not {replicas} replicas")
    return {"replicas": replicas or "as the load asks"}


def _carry_out(
    service: Service, command: Command, progress: Callable[[DesiredState], None] = lambda _: None
) -> dict[str, Any]:
    """Have a command carried out, and wait until all replicas serve what it leads to."""
    state_dir = StateDir(Path(service.store))
    desired = _wait_for_result(service, state_dir.submit(command), progress)
    wanted = _wanted_shares(desired)
    _wait(
        service,
        lambda: all(_served_shares(snapshot) == wanted for snapshot in state_dir.snapshots()),
        "not all replicas serve it",
    )
    return _summary(desired)


def _wait_for_result(
    service: Service, command: Command, progress: Callable[[DesiredState], None] = lambda _: None
) -> DesiredState:
    """The desired state in which the result of a command stands.

    Waits PATIENCE_S, for a deployment FETCH_S until its trial begins and then until PATIENCE_S after the
    end of each phase.

    Raises:
        ArtifactError: the command was refused, or its version was rolled back.
        MachineError: the service ended, or there is no result by then.
    """
    state_dir = StateDir(Path(service.store))
    deadline = time.time() + (FETCH_S if command.kind == "deploy" else PATIENCE_S)
    while True:
        desired = desired_state_of(state_dir)
        progress(desired)
        result = desired.result(command.id)
        if result is not None:
            _check(result, command.bundle)
            return desired
        if not is_running(service):
            raise MachineError("the service ended meanwhile", where=service.url, remedy="start it again")
        if desired.trial is not None and desired.salt == command.id:
            deadline = desired.phase_ends + PATIENCE_S
        if time.time() > deadline:
            raise _overdue(service, state_dir, command, desired)
        time.sleep(LOOK_S)


def _overdue(service: Service, state_dir: StateDir, command: Command, desired: DesiredState) -> MachineError:
    """The error for a command that has no result by its deadline."""
    if state_dir.withdraw(command):
        what = f"the service did not take up the command ({command.kind}), which was withdrawn"
        remedy = (
            "it may be busy with a deployment: look with `rayrec status`, and at what `rayrec serve` prints"
        )
    elif desired.trial is not None and desired.salt == command.id:
        what = f"version {desired.trial.label} is still on trial ({desired.phase}: {desired.note})"
        remedy = (
            "the trial goes on: look with `rayrec status`; `rayrec experiment --promote` gives the version to"
            " all users, `rayrec rollback` ends it"
        )
    else:
        what = f"the service took up the command ({command.kind}) but has not carried it out yet"
        remedy = "look with `rayrec status`, and at what `rayrec serve` prints"
    return MachineError(what, where=service.url, remedy=remedy)


def _wait(service: Service, holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise MachineError(
                f"{what} after {PATIENCE_S:g} s", where=service.url, remedy="look with `rayrec status`"
            )
        time.sleep(LOOK_S)


def _check(result: CommandResult, bundle: str) -> None:
    if result.state != "done":
        remedy = "the version that was served before goes on" if bundle else ""
        raise ArtifactError(f"{result.state}: {result.reason}", where=bundle, remedy=remedy)


def _progress_printer() -> Callable[[DesiredState], None]:
    """A function that prints each phase of a trial, and its note as often as that changes."""
    printed = ("", "")

    def progress(desired: DesiredState) -> None:
        nonlocal printed
        if desired.trial is None or printed == (desired.phase, desired.note):
            return
        printed = desired.phase, desired.note
        percent = f" ({100 * desired.trial.share:.0f} % of the users)" if desired.trial.share else ""
        say(f"{desired.phase}{percent}: {desired.note or desired.trial.label}")

    return progress


def _wanted_shares(desired: DesiredState) -> dict[str, float]:
    return {version.digest: round(version.share, 6) for version in desired.versions if version.share}


def _served_shares(snapshot: Snapshot) -> dict[str, float]:
    return {digest: round(version.share, 6) for digest, version in snapshot.versions.items() if version.share}


def _summary(desired: DesiredState) -> dict[str, Any]:
    return {
        "phase": desired.phase,
        "versions": {version.label: version.share for version in desired.versions},
        "before": desired.previous.label if desired.previous else None,
    }
