"""Keeps a replica in step with its board: loads what is to be served, and says what it does."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator

from app.bundle.request.requests import RankRequest
from app.bundle.runtime import Ranker
from app.errors import ArtifactError, RayRecError, RequestError
from app.serving.rollout.state import DesiredState, Snapshot, Version, VersionState
from app.serving.rollout.state_dir import StateDir
from app.serving.versions.experiment import Exposures
from app.serving.versions.shadow import Ranking, Shadow, compare
from app.serving.versions.stats import VersionStats, plus
from app.serving.versions.traffic_split import TrafficSplit, Variant

LOOK_S, REPORT_S, REPORTS = 0.2, 1.0, 10
MADE_UP, CANDIDATES = 24, 100  # requests, and items of each, where too few live ones are known
_log = logging.getLogger("ray.serve")


class ReplicaAgent:
    """Opens what the board names, or `bundle` where it names nothing; used on one event loop.

    Args:
        board: of the service; None: it has none.
        replica: id of this replica.
        bundle: folder of a bundle.
        opener: opens a bundle, and refuses a damaged one.
        every: one of so many requests is scored by the version on trial, too.

    Raises:
        ArtifactError: what all users are to meet is damaged.
    """

    def __init__(
        self, board: StateDir | None, replica: str, bundle: str, opener: Callable[[str], Ranker], every: int
    ) -> None:
        self.board, self.replica, self._open = board, replica, opener
        self._loaded: dict[str, Variant] = {}
        self._refused: dict[str, str] = {}
        self._loading: tuple[str, asyncio.Future[Variant]] | None = None
        self._past: deque[tuple[float, dict[str, VersionStats]]] = deque(maxlen=REPORTS)
        self._mark, self._release = (board.changed(), board.release()) if board else ((0, 0), None)
        exposures = Exposures(board.folder.parent) if board else None
        if self._release is None:
            self.variants = TrafficSplit(Variant(opener(bundle), ""), Shadow(every), exposures)
            return
        main = self._opened(self._release.main)
        self._loaded[main.digest] = main
        self.variants = TrafficSplit(main, Shadow(every), exposures)
        for version in self._release.versions[1:]:
            if version.share:  # else its users would meet another version here until it is loaded
                self._note(version.digest, lambda version=version: self._opened(version))  # type: ignore[misc]
        self._apply(self._release)

    async def run(self, describe: Callable[[], tuple[float, str]]) -> None:
        """Watch for ever, if there is a board. `describe`: calls held, and the text of the metrics."""
        due, exposures = 0.0, self.variants.exposures
        while self.board is not None and exposures is not None:
            try:
                self.look()
                if time.monotonic() >= due:
                    due = time.monotonic() + REPORT_S
                    await asyncio.to_thread(self.board.report, self.snapshot(*describe()))
                    await asyncio.to_thread(exposures.flush)
            except RayRecError as error:  # a full disk, say: what is loaded goes on
                _log.error("the board cannot be used: %s", error)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Do what the board says: load, shift, drop."""
        if self.board is None:
            return
        mark = self.board.changed()
        if mark != self._mark:
            self._mark, self._release = mark, self.board.release()
        if self._loading is not None and self._loading[1].done():
            digest, future = self._loading
            self._loading = None
            self._note(digest, future.result)
        if self._release is not None:
            self._apply(self._release)
            self._load(self._release)

    def others(self) -> list[str]:
        """The metrics of the other replicas as they last said them."""
        snapshots = self.board.snapshots() if self.board else []
        return [one.metrics for one in snapshots if one.replica != self.replica]

    def snapshot(self, held: float, metrics: str) -> Snapshot:
        """What this replica does."""
        now = time.monotonic()
        tallies = {digest: plus(one.stats, VersionStats()) for digest, one in self._loaded.items()}
        since, before = self._past[0] if self._past else (now, tallies)
        self._past.append((now, tallies))
        versions = {
            digest: VersionState(
                "ready",
                "",
                self.variants.share_of(digest),
                tallies[digest],
                plus(tallies[digest], before.get(digest, VersionStats()), -1),
                one.compared,
            )
            for digest, one in self._loaded.items()
        }
        versions |= {digest: VersionState("refused", error) for digest, error in self._refused.items()}
        if self._loading is not None:
            versions[self._loading[0]] = VersionState("loading")
        return Snapshot(self.replica, time.time(), os.getpid(), held, now - since, versions, metrics)

    def _apply(self, release: DesiredState) -> None:
        served = [self._loaded.get(version.digest) for version in release.versions if version.share]
        main = self._loaded.get(release.main.digest)
        # What is not loaded yet cannot be shifted to: until then all stays as it is.
        if main is not None and None not in served:
            others = [(v.share, self._loaded[v.digest]) for v in release.versions[1:] if v.share]
            self.variants.share(main, others, release.salt)
        trial = release.trial if release.phase != "loading" else None
        self.variants.trial = self._loaded.get(trial.digest) if trial else None
        named = {version.digest for version in _named(release)}
        kept = named | {variant.digest for variant in self.variants.served()}
        self._loaded = {digest: one for digest, one in self._loaded.items() if digest in kept}
        self._refused = {digest: error for digest, error in self._refused.items() if digest in named}

    def _load(self, release: DesiredState) -> None:
        for version in _named(release):
            known = version.digest in self._loaded or version.digest in self._refused
            if not known and self._loading is None:
                loop = asyncio.get_running_loop()
                self._loading = version.digest, loop.run_in_executor(None, self._warmed, version)

    def _warmed(self, version: Version) -> Variant:
        variant = self._opened(version)
        warm(self.variants, variant)
        return variant

    def _opened(self, version: Version) -> Variant:
        ranker = self._open(version.bundle)
        if ranker.artifact.digest != version.digest:
            raise ArtifactError(
                "the bundle is another than was announced", where=version.bundle, remedy="deploy it again"
            )
        return Variant(ranker, version.digest)

    def _note(self, digest: str, outcome: Callable[[], Variant]) -> None:
        try:
            self._loaded[digest] = outcome()
        except Exception as error:  # whatever is wrong with it, what runs goes on
            _log.error("a version was refused", exc_info=error)
            known = isinstance(error, RayRecError)
            self._refused[digest] = str(error) if known else f"{type(error).__name__}: {error}"


def warm(variants: TrafficSplit, new: Variant) -> None:
    """Have a new version answer recent requests, or made-up ones, and compare it with the running one.

    Raises:
        Exception: it failed on one.
    """
    old = variants.main.ranker
    requests = [*variants.recent, *_made_up(old)][:MADE_UP]
    for request in requests:  # the first are slow, so that they tell nothing of its speed
        try:
            new.ranker.answer([new.ranker.read(request)])
        except RequestError:
            continue  # counted as a difference below
    for request in requests:
        compare(old, new.ranker, new.compared, request)


def _made_up(ranker: Ranker) -> Iterator[Ranking]:
    users, items = len(ranker.users), len(ranker.items)
    names = [ranker.items[row] for row in range(1, items, max(1, items // CANDIDATES))][:CANDIDATES]
    for row in range(1, users, max(1, users // MADE_UP)):
        yield RankRequest(ranker.users[row], names)


def _named(release: DesiredState) -> list[Version]:
    return [*release.versions, *([release.previous] if release.previous else [])]
