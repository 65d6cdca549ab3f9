"""Keeps a replica at the desired state: loads what is to be served, and reports what the replica does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.bundle.request.requests import RankRequest
from app.bundle.runtime import Ranker
from app.errors import ArtifactError, RayRecError, RequestError
from app.serving.rollout.state import DesiredState, Snapshot, Version, VersionState, reason_of
from app.serving.rollout.state_dir import StateDir, identify_process
from app.serving.versions.experiment import Exposures
from app.serving.versions.shadow import Ranking, Shadow, compare
from app.serving.versions.stats import VersionStats, plus
from app.serving.versions.traffic_split import TrafficSplit, Variant

LOOK_S, REPORT_S, REPORTS = 0.2, 1.0, 10
MADE_UP, CANDIDATES = 24, 100  # requests, and items of each, where too few live ones are known
_log = logging.getLogger("ray.serve")


class ReplicaAgent:
    """Opens what the desired state names, or `bundle` where there is none; used on one event loop.

    Args:
        state_dir: of the service; None: it has none.
        replica: id of this replica.
        bundle: folder of a bundle.
        open_ranker: opens a bundle, and refuses a damaged one.
        every: one of so many requests is scored by the version on trial, too.

    Raises:
        ArtifactError: the bundle that serves all users is damaged.
    """

    def __init__(
        self,
        state_dir: StateDir | None,
        replica: str,
        bundle: str,
        open_ranker: Callable[[str], Ranker],
        every: int,
    ) -> None:
        self.state_dir, self.replica, self._open_ranker = state_dir, replica, open_ranker
        self._loaded: dict[str, Variant] = {}
        self._refused: dict[str, str] = {}
        self._loading: tuple[str, asyncio.Future[Variant]] | None = None
        self._past: deque[tuple[float, dict[str, VersionStats]]] = deque(maxlen=REPORTS)
        self._logged: dict[str, str] = {}  # the last error of each task
        self._exposures = Exposures(state_dir.folder.parent) if state_dir else None
        self._fingerprint = state_dir.fingerprint() if state_dir else (0, 0)
        self._desired = state_dir.desired_state() if state_dir else None
        if self._desired is None:
            self.traffic_split = TrafficSplit(Variant(open_ranker(bundle), ""), Shadow(every))
            return
        main = self._open(self._desired.main)
        self._loaded[main.digest] = main
        self.traffic_split = TrafficSplit(main, Shadow(every))
        for version in self._desired.versions[1:]:
            if version.share:  # else its users would be served another version here until it is loaded
                self._keep(version.digest, lambda version=version: self._open(version))  # type: ignore[misc]
        self._apply(self._desired)

    async def run(self, describe: Callable[[], tuple[float, str]]) -> None:
        """Follow the desired state for ever, if there is one, whatever goes wrong on the way.

        Args:
            describe: gives the calls under way, and the text of the metrics.
        """
        due, exposures = 0.0, self._exposures
        while self.state_dir is not None and exposures is not None:
            with self._going_on("follow the desired state"):
                self.follow()
            if time.monotonic() >= due:
                due = time.monotonic() + REPORT_S
                described = 0.0, ""
                with self._going_on("describe what it does"):
                    described = describe()
                with self._going_on("report what it does"):
                    await asyncio.to_thread(self.state_dir.report, self.snapshot(*described))
                with self._going_on("store who was served"):
                    await asyncio.to_thread(exposures.flush)
            await asyncio.sleep(LOOK_S)

    def follow(self) -> None:
        """Do what the desired state asks for: load versions, shift users, drop versions."""
        if self.state_dir is None:
            return
        fingerprint = self.state_dir.fingerprint()
        if fingerprint != self._fingerprint:
            self._desired = self.state_dir.desired_state()
            self._fingerprint = fingerprint
        if self._loading is not None and self._loading[1].done():
            digest, future = self._loading
            self._loading = None
            self._keep(digest, future.result)
        if self._desired is not None:
            self._apply(self._desired)
            self._load(self._desired)

    def other_metrics(self) -> list[str]:
        """The metrics of the other replicas as they last reported them."""
        snapshots = self.state_dir.snapshots() if self.state_dir else []
        now = time.time()
        return [s.metrics for s in snapshots if s.replica != self.replica and not s.is_silent(now)]

    def snapshot(self, ongoing: float, metrics: str) -> Snapshot:
        """What this replica does; see Snapshot for the arguments."""
        now = time.monotonic()
        stats = {digest: plus(variant.stats, VersionStats()) for digest, variant in self._loaded.items()}
        since, before = self._past[0] if self._past else (now, stats)
        self._past.append((now, stats))
        versions = {
            digest: VersionState(
                "ready",
                "",
                self.traffic_split.weight_of(digest),
                stats[digest],
                plus(stats[digest], before.get(digest, VersionStats()), -1),
                variant.compared,
            )
            for digest, variant in self._loaded.items()
        }
        versions |= {digest: VersionState("refused", error) for digest, error in self._refused.items()}
        if self._loading is not None:
            versions[self._loading[0]] = VersionState("loading")
        pid, host, mark = identify_process()
        seconds = now - since
        return Snapshot(self.replica, time.time(), pid, ongoing, seconds, versions, metrics, host, mark)

    def _apply(self, desired: DesiredState) -> None:
        served = [self._loaded.get(version.digest) for version in desired.versions if version.share]
        main = self._loaded.get(desired.main.digest)
        # What is not loaded yet cannot be shifted to: until then all stays as it is.
        if main is not None and None not in served:
            others = [(v.share, self._loaded[v.digest]) for v in desired.versions[1:] if v.share]
            self.traffic_split.set_weights(main, others, desired.salt)
        trial = desired.trial if desired.phase != "loading" else None
        self.traffic_split.trial = self._loaded.get(trial.digest) if trial else None
        # A canary ends by itself and has no report, so that nobody asks who was served.
        self.traffic_split.exposures = self._exposures if desired.phase == "experiment" else None
        named = {version.digest for version in _named(desired)}
        kept = named | {variant.digest for variant in self.traffic_split.served()}
        self._loaded = {digest: variant for digest, variant in self._loaded.items() if digest in kept}
        self._refused = {digest: error for digest, error in self._refused.items() if digest in named}

    def _load(self, desired: DesiredState) -> None:
        """Begin to load the next version that is neither loaded nor refused, unless one is being loaded."""
        for version in _named(desired):
            known = version.digest in self._loaded or version.digest in self._refused
            if not known and self._loading is None:
                loop = asyncio.get_running_loop()
                self._loading = version.digest, loop.run_in_executor(None, self._open_warm, version)

    def _open_warm(self, version: Version) -> Variant:
        variant = self._open(version)
        warm(self.traffic_split, variant)
        return variant

    def _open(self, version: Version) -> Variant:
        ranker = self._open_ranker(version.bundle)
        if ranker.artifact.digest != version.digest:
            raise ArtifactError(
                "the bundle is another than was announced", where=version.bundle, remedy="deploy it again"
            )
        return Variant(ranker, version.digest)

    def _keep(self, digest: str, opened: Callable[[], Variant]) -> None:
        """Keep a version that was opened, or the reason why it was not."""
        try:
            self._loaded[digest] = opened()
        except Exception as error:  # whatever is wrong with it, the version that is served goes on
            _log.error("a version was refused", exc_info=error)
            self._refused[digest] = reason_of(error)

    @contextmanager
    def _going_on(self, task: str) -> Iterator[None]:
        """Log what the block raises instead of raising it; once, as long as it stays the same."""
        try:
            yield
        except Exception as error:
            reason = reason_of(error)
            if self._logged.get(task) != reason:
                trace = None if isinstance(error, RayRecError) else error
                _log.error("a replica could not %s and tries again: %s", task, reason, exc_info=trace)
            self._logged[task] = reason
        else:
            self._logged.pop(task, None)


def warm(traffic_split: TrafficSplit, new: Variant) -> None:
    """Have a new version answer recent requests, or made-up ones, and compare it with the running one.

    Raises:
        Exception: it failed on one.
    """
    old = traffic_split.main.ranker
    requests = [*traffic_split.recent, *_made_up(old)][:MADE_UP]
    for request in requests:  # the first are slow, so that they say nothing of its speed
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


def _named(desired: DesiredState) -> list[Version]:
    return [*desired.versions, *([desired.previous] if desired.previous else [])]
