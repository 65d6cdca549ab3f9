"""Does what is wished of a running service: one thread of the driver, which alone writes the release."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from app.artifact import open_artifact
from app.bundle.format.layout import read_info
from app.errors import RayRecError, RecipeError
from app.recipe import Serve
from app.serving.bundle_cache import held
from app.serving.rollout.canary import Rollout
from app.serving.rollout.memory import check_room, free_bytes
from app.serving.rollout.state import KEPT_OUTCOMES, Command, CommandResult, DesiredState, Experiment, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.scoring.registry import check_names
from app.terminal.console import say

EVERY_S = 0.2


def version_of(bundle: Path) -> Version:
    """What a bundle is as a version.

    Raises:
        ArtifactError: it is damaged.
    """
    artifact = open_artifact(bundle, "bundle")
    label = read_info(bundle / "bundle.json").version or artifact.digest[:12]
    return Version(label, str(bundle), artifact.digest)


def begin(board: StateDir, version: Version) -> DesiredState:
    """Put the bundle that a service starts with on its board.

    It is served whatever was deployed before: who names a bundle means it. Only after a crash
    does a service that is started just as before go on with what was deployed last.
    """
    main, before = version, board.release()
    if before is not None and before.main.digest != version.digest:
        if before.began == version.digest and not before.ended and _whole(before.main):
            main = before.main
            say(f"after a crash, version {main.label} goes on, which was deployed last")
        else:
            say(f"version {version.label} is served; last was {before.main.label}, deployed since")
    if main is version:
        main = replace(version, bundle=str(board.keep(Path(version.bundle), version.digest)))
    release = DesiredState([replace(main, share=1.0)], began=version.digest)
    if before is not None:
        release = replace(release, experiment=before.experiment)
    board.publish(release)
    board.forget({one.bundle for one in release.versions})
    board.take_wishes()  # of those who have long stopped waiting
    return release


def _whole(version: Version) -> bool:
    try:
        return version_of(Path(version.bundle)).digest == version.digest
    except RayRecError:
        return False


@contextmanager
def controlling(board: StateDir, settings: Serve) -> Iterator[None]:
    """Do what is wished for the block. The board has a release already."""
    release = board.release()
    assert release is not None
    controller, ended = RolloutController(board, settings, release), threading.Event()

    def conduct() -> None:
        while not ended.wait(EVERY_S):
            try:
                controller.step(time.time())
            except RayRecError as error:
                say(f"deployments: {error}")

    thread = threading.Thread(target=conduct, name="conductor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        controller.end()


class RolloutController:
    """Takes wishes and steers rollouts; used by one thread.

    Args:
        release: what is served now.
    """

    def __init__(self, board: StateDir, settings: Serve, release: DesiredState) -> None:
        self.board, self.settings, self.release = board, settings, release
        self.rollout: Rollout | None = None
        # Of the rollout: whose wish it is, the share of users, and where a rollback led before.
        self._wish, self._percent = "", 0.0
        self._before: Version | None = None

    def step(self, now: float) -> None:
        """Do what waits; called several times a second, `now` in seconds since the epoch."""
        for wish in self.board.take_wishes():
            try:
                self._take(wish, now)
            except RayRecError as error:
                self._publish(**self._told(CommandResult(wish.id, "refused", str(error))))
        if self.rollout is not None:
            self._advance(self.rollout, now)

    def end(self) -> None:
        """The service stops in good order: what is on trial is not served next time."""
        self._publish(ended=True)

    def _take(self, wish: Command, now: float) -> None:
        if wish.kind == "deploy":
            self._deploy(wish, now)
        elif wish.kind == "rollback":
            self._roll_back(wish)
        elif wish.kind == "promote":
            if self.rollout is None or self.rollout.state not in ("canary", "experiment"):
                raise RecipeError("no version is on trial", remedy="deploy one first")
            self._promote(f"promoted by hand (wish {wish.id})", CommandResult(wish.id, "done"))
        else:
            self._scale(wish)

    def _deploy(self, wish: Command, now: float) -> None:
        if self.rollout is not None:
            raise RecipeError(
                f"version {self.release.versions[-1].label} is on trial",
                remedy="wait, or end it with `rayrec rollback`",
            )
        with held(wish.bundle, self.settings) as folder:
            self._take_on(wish, folder, now)

    def _take_on(self, wish: Command, folder: Path, now: float) -> None:
        """Put the bundle in a folder on trial."""
        version, main = version_of(folder), self.release.main
        if version.digest == main.digest:
            raise RecipeError(
                "this bundle is served already", where=wish.bundle, remedy="nothing is to be done"
            )
        if version.label == main.label:
            raise RecipeError(
                f"another bundle of version {version.label!r} is served",
                where=wish.bundle,
                remedy="export it with another export.version, so that answers tell them apart",
            )
        check_names(self.settings, read_info(folder / "bundle.json").name)
        # Replicas load it beside what they have. That of before is dropped, but not at once.
        replicas = max(1, len(self.board.snapshots(now)))
        check_room(open_artifact(folder, "bundle", verify=False), replicas, free_bytes)
        version = replace(version, bundle=str(self.board.keep(folder, version.digest)))
        self._before = self.release.previous
        limits = self.settings.rollout.model_copy(update=wish.limits)
        self.rollout = Rollout(main.digest, version.digest, limits, now, wish.keep, wish.now)
        self._wish = wish.id
        self._percent = wish.percent or limits.canary_percent
        self._publish(versions=[main, version], phase="loading", salt=wish.id, note="", previous=None)
        before = {self._before.bundle} if self._before else set()
        self.board.forget({main.bundle, version.bundle} | before)

    def _advance(self, rollout: Rollout, now: float) -> None:
        before = rollout.state
        rollout.step(now, self.board.snapshots(now))
        if rollout.state == "promoted":
            self._promote()
        elif rollout.state == "rolled back":
            self._return(rollout.reason)
        elif rollout.state != before:
            self._shift(rollout)
        elif rollout.note != self.release.note:
            self._publish(note=rollout.note)

    def _shift(self, rollout: Rollout) -> None:
        """The state changed, and with it who meets the new version."""
        changes: dict[str, Any] = {"phase": rollout.state, "note": rollout.note}
        main, trial = self.release.versions
        if rollout.state in ("canary", "experiment"):
            share = self._percent / 100
            changes["versions"] = [replace(main, share=1 - share), replace(trial, share=share)]
        if rollout.state == "experiment":
            labels = [main.label, trial.label]
            changes["experiment"] = Experiment(self.release.salt, time.time(), labels)
            changes |= self._told(CommandResult(self._wish, "done", "both versions stay until one is chosen"))
        self._publish(**changes)

    def _promote(self, note: str = "", outcome: CommandResult | None = None) -> None:
        main, trial = self.release.versions
        told = [CommandResult(self._wish, "done"), *([outcome] if outcome else [])]
        self._settle(replace(trial, share=1.0), replace(main, share=0.0), note, *told)

    def _return(self, reason: str, *further: CommandResult) -> None:
        """From a trial back to the version before."""
        outcome = CommandResult(self._wish, "rolled back", reason)
        note = f"version {self.release.versions[1].label} was rolled back: {reason}"
        self._settle(replace(self.release.main, share=1.0), self._before, note, outcome, *further)

    def _roll_back(self, wish: Command) -> None:
        if self.rollout is not None:
            self._return("rolled back by hand", CommandResult(wish.id, "done"))
        elif self.release.previous is None:
            raise RecipeError("there is no version before this one", remedy="deploy the bundle that you want")
        else:
            main, previous = self.release.main, self.release.previous
            done = CommandResult(wish.id, "done")
            self._settle(replace(previous, share=1.0), replace(main, share=0.0), "rolled back by hand", done)

    def _settle(self, main: Version, previous: Version | None, note: str, *outcomes: CommandResult) -> None:
        self.rollout = None
        told = self._told(*outcomes)
        self._publish(versions=[main], previous=previous, phase="steady", note=note, **told)

    def _scale(self, wish: Command) -> None:
        if wish.replicas > self.settings.max_replicas:
            raise RecipeError(
                f"{wish.replicas} replicas, the service may have {self.settings.max_replicas}",
                where="serve.max_replicas",
                remedy=f"start it with --set serve.max_replicas={wish.replicas}",
            )
        self._publish(replicas=wish.replicas, **self._told(CommandResult(wish.id, "done")))

    def _told(self, *outcomes: CommandResult) -> dict[str, Any]:
        return {"outcomes": [*self.release.outcomes, *outcomes][-KEPT_OUTCOMES:]}

    def _publish(self, **changes: Any) -> None:
        self.release = replace(self.release, **changes)
        self.board.publish(self.release)
