"""Carries out the commands for a running service: one thread, which alone writes the desired state."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from app.artifact import open_artifact
from app.bundle.format.layout import read_info
from app.errors import RecipeError
from app.recipe import Serve
from app.serving.bundle_cache import local_copy
from app.serving.rollout.canary import Rollout
from app.serving.rollout.memory import check_room, free_bytes
from app.serving.rollout.start import remove_old_exposures, version_of
from app.serving.rollout.state import (
    KEPT_RESULTS,
    Command,
    CommandResult,
    DesiredState,
    Experiment,
    Version,
    reason_of,
)
from app.serving.rollout.state_dir import StateDir
from app.serving.scoring.registry import check_names
from app.terminal.console import say

EVERY_S = 0.2


@contextmanager
def controlling(state_dir: StateDir, settings: Serve) -> Iterator[None]:
    """Carry out commands for the block, in a thread. A desired state was published before."""
    desired = state_dir.desired_state()
    assert desired is not None
    controller, ended = RolloutController(state_dir, settings, desired), threading.Event()
    thread = threading.Thread(target=_run, args=(controller, ended), name="rollout", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        controller.stop()


def _run(controller: RolloutController, ended: threading.Event) -> None:
    """Step until it is ended, whatever a step raises.

    Without this thread a service goes on to answer, but no command would ever be carried out. So nothing
    ends it, not even an exit; what went wrong is printed once, as long as it stays the same.
    """
    printed = ""
    while not ended.wait(EVERY_S):
        try:
            controller.step(time.time())
        except BaseException as error:
            reason = reason_of(error)
            if reason != printed:
                with suppress(OSError, ValueError):  # nobody reads stderr any more
                    say(f"deployments cannot go on, the service tries again: {reason}")
            printed = reason
        else:
            printed = ""


class RolloutController:
    """Takes commands and steers the rollout of a version on trial; used by one thread.

    What it knows changes only after the desired state is written, so that a step that failed on a full
    disk is done again.

    Args:
        state_dir: of the service.
        settings: the recipe's [serve] section.
        desired: what is served now.
    """

    def __init__(self, state_dir: StateDir, settings: Serve, desired: DesiredState) -> None:
        self.state_dir, self.settings, self.desired = state_dir, settings, desired
        self.rollout: Rollout | None = None
        self._command = Command("deploy", id=desired.salt)  # that began the rollout
        if desired.trial is not None:  # an experiment from before this start
            main, trial = (version.digest for version in desired.versions)
            self.rollout = Rollout(main, trial, settings.rollout, time.time(), keep=True, state="experiment")
        self._fallback: Version | None = None  # the previous version when the rollout began
        self._results: list[CommandResult] = []  # not written yet

    def step(self, now: float) -> None:
        """Carry out what waits; called several times a second, `now` in seconds since the epoch.

        Raises:
            MachineError: the desired state cannot be written; the next step does what this one could not.
        """
        commands, refusals = self.state_dir.take_commands()
        self._results += [refusal for refusal in refusals if self.desired.result(refusal.command) is None]
        for command in commands:
            try:
                self._execute(command, now)
            except Exception as error:  # its result says so, instead of a person who waits for ever
                self._results.append(CommandResult(command.id, "refused", reason_of(error)))
        if self._results:
            self._publish()
        if self.rollout is not None:
            self._advance(self.rollout, now)

    def stop(self) -> None:
        """Note that the service stops in good order: a version on trial is not served next time."""
        self._publish(stopped=True)

    def _execute(self, command: Command, now: float) -> None:
        if command.kind == "deploy":
            self._deploy(command, now)
        elif command.kind == "rollback":
            self._roll_back(command)
        elif command.kind == "promote":
            if self.rollout is None or self.rollout.state not in ("canary", "experiment"):
                raise RecipeError("no version is on trial", remedy="deploy one first")
            self._promote("promoted by hand", CommandResult(command.id, "done"))
        else:
            self._scale(command)

    def _deploy(self, command: Command, now: float) -> None:
        if self.rollout is not None:
            raise RecipeError(
                f"version {self.desired.versions[-1].label} is on trial",
                remedy="wait, or end it with `rayrec rollback`",
            )
        with local_copy(command.bundle, self.settings) as folder:
            self._begin_rollout(command, folder, now)

    def _begin_rollout(self, command: Command, folder: Path, now: float) -> None:
        """Put the bundle in a folder on trial."""
        main, previous = self.desired.main, self.desired.previous
        version = version_of(folder)
        self._check(version, command.bundle, folder, now)
        version = replace(version, bundle=str(self.state_dir.keep_bundle(folder, version.digest)))
        # Replicas load it beside what they have; the previous version is dropped, but its files stay.
        kept = {main.bundle, version.bundle} | ({previous.bundle} if previous else set())
        self.state_dir.remove_other_bundles(kept)
        limits = self.settings.rollout.model_copy(update=command.limits)
        rollout = Rollout(main.digest, version.digest, limits, now, command.keep, command.now)
        self._publish(
            versions=[main, version],
            phase="loading",
            salt=command.id,
            note="",
            phase_ends=rollout.ends,
            previous=None,
        )
        self.rollout, self._command, self._fallback = rollout, command, previous

    def _check(self, version: Version, bundle: str, folder: Path, now: float) -> None:
        """Refuse a version that cannot be told from the one that is served, or that finds no room."""
        main = self.desired.main
        if version.digest == main.digest:
            raise RecipeError("this bundle is served already", where=bundle, remedy="there is nothing to do")
        if version.label == main.label:
            raise RecipeError(
                f"another bundle of version {version.label!r} is served",
                where=bundle,
                remedy="export it with another export.version, so that answers tell them apart",
            )
        check_names(self.settings, read_info(folder / "bundle.json").name)
        replicas = max(1, len(self.state_dir.snapshots(now)))
        check_room(open_artifact(folder, "bundle", verify=False), replicas, free_bytes)

    def _advance(self, rollout: Rollout, now: float) -> None:
        snapshots = self.state_dir.snapshots(now)
        note = ""
        try:
            rollout.step(now, snapshots)
            note = rollout.note
        except Exception as error:  # a version that cannot be judged must not reach more users
            rollout.end(f"the trial could not be judged ({reason_of(error)})", now)
        if rollout.state == "promoted":
            self._promote()
        elif rollout.state == "rolled back":
            self._return(rollout.reason)
        elif rollout.state != self.desired.phase:
            self._shift(rollout, note)
        elif note != self.desired.note:
            self._publish(note=note)

    def _shift(self, rollout: Rollout, note: str) -> None:
        """Publish the rollout's new state, and with it the shares of the users."""
        main, trial = self.desired.versions
        changes: dict[str, Any] = {"phase": rollout.state, "note": note, "phase_ends": rollout.ends}
        if rollout.state in ("canary", "experiment"):
            share = (self._command.percent or rollout.limits.canary_percent) / 100
            changes["versions"] = [replace(main, share=1 - share), replace(trial, share=share)]
        if rollout.state != "experiment":
            self._publish(**changes)
            return
        changes["experiment"] = Experiment(self.desired.salt, time.time(), [main.label, trial.label])
        done = CommandResult(self._command.id, "done", "both versions stay until one is chosen")
        self._publish(done, **changes)
        remove_old_exposures(self.state_dir, self.desired)

    def _promote(self, note: str = "", *further: CommandResult) -> None:
        """Give all users the version on trial."""
        main, trial = self.desired.versions
        done = CommandResult(self._command.id, "done")
        self._settle(replace(trial, share=1.0), replace(main, share=0.0), note, done, *further)

    def _return(self, reason: str, *further: CommandResult) -> None:
        """From a trial back to the version before."""
        result = CommandResult(self._command.id, "rolled back", reason)
        note = f"version {self.desired.versions[1].label} was rolled back: {reason}"
        self._settle(replace(self.desired.main, share=1.0), self._fallback, note, result, *further)

    def _roll_back(self, command: Command) -> None:
        done = CommandResult(command.id, "done")
        if self.rollout is not None:
            self._return("rolled back by hand", done)
        elif self.desired.previous is None:
            raise RecipeError("there is no version before this one", remedy="deploy the bundle that you want")
        else:
            main, previous = self.desired.main, self.desired.previous
            self._settle(replace(previous, share=1.0), replace(main, share=0.0), "rolled back by hand", done)

    def _settle(self, main: Version, previous: Version | None, note: str, *results: CommandResult) -> None:
        """End the rollout with one version for all users."""
        self._publish(*results, versions=[main], previous=previous, phase="steady", note=note, phase_ends=0.0)
        self.rollout = None

    def _scale(self, command: Command) -> None:
        if command.replicas > self.settings.max_replicas:
            raise RecipeError(
                f"{command.replicas} replicas, the service may have {self.settings.max_replicas}",
                where="serve.max_replicas",
                remedy=f"start it with --set serve.max_replicas={command.replicas}",
            )
        self._publish(CommandResult(command.id, "done"), replicas=command.replicas)

    def _publish(self, *results: CommandResult, **changes: Any) -> None:
        """Write the desired state with these changes and all new results."""
        all_results = [*self.desired.results, *self._results, *results][-KEPT_RESULTS:]
        desired = replace(self.desired, **changes, results=all_results)
        self.state_dir.publish(desired)
        self.desired, self._results = desired, []
