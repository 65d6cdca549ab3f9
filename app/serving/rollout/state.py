"""The records that the processes of a service exchange: commands, the desired state, reports of replicas."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.errors import RayRecError
from app.serving.versions.stats import Comparison, VersionStats

KEPT_RESULTS = 20
SILENT_S = 5.0  # a replica reports once a second; without a report for so long it is silent
Phase = Literal["steady", "loading", "shadow", "canary", "experiment"]


class Version(msgspec.Struct, frozen=True):
    """A bundle that is served, or about to be. `label` is what answers call their version."""

    label: str
    bundle: str
    digest: str
    share: float = 0.0  # of the users


class CommandResult(msgspec.Struct, frozen=True):
    """How the command with the id `command` ended; `reason` says why it was not carried out."""

    command: str
    state: Literal["done", "refused", "rolled back"]
    reason: str = ""


class Experiment(msgspec.Struct, frozen=True):
    """Two versions between which the users are split, now or earlier."""

    salt: str
    started: float  # seconds since the epoch
    labels: list[str]  # the version that was served before comes first


class DesiredState(msgspec.Struct, frozen=True):
    """What the replicas are to serve. The first version is the one to return to; a second is on trial."""

    versions: list[Version]
    phase: Phase = "steady"
    salt: str = ""  # of the split by user; the id of the command that deployed the trial
    note: str = ""  # how far the trial is
    phase_ends: float = 0.0  # seconds since the epoch, unless the phase waits for requests; 0: it has no end
    previous: Version | None = None  # stays loaded, for a rollback at once
    replicas: int = 0  # wanted; 0: as many as the load needs
    results: list[CommandResult] = []  # of the last KEPT_RESULTS commands
    experiment: Experiment | None = None  # the last one
    started_with: str = ""  # digest of the bundle that the service was started with
    stopped: bool = False  # the service was stopped, it did not crash

    @property
    def main(self) -> Version:
        """The version to return to."""
        return self.versions[0]

    @property
    def trial(self) -> Version | None:
        """The version on trial, if there is one."""
        return self.versions[1] if len(self.versions) > 1 else None

    def result(self, command: str) -> CommandResult | None:
        """The result of the command with this id; None as long as there is none."""
        return next((result for result in self.results if result.command == command), None)


class Command(msgspec.Struct, frozen=True):
    """What a person asks of a running service."""

    kind: Literal["deploy", "rollback", "promote", "scale"]
    bundle: str = ""
    percent: Annotated[float, Meta(ge=0, lt=100)] = 0.0  # of the users for the trial; 0: as the recipe says
    keep: bool = False  # both versions stay: an experiment
    now: bool = False  # all users at once, without a trial
    replicas: Annotated[int, Meta(ge=0)] = 0
    limits: dict[str, float | bool] = {}  # keys of serve.rollout that differ this time
    id: str = ""


class VersionState(msgspec.Struct):
    """A version in one replica, since it was loaded there."""

    state: Literal["loading", "ready", "refused"]
    error: str = ""
    share: float = 0.0  # of the users, as this replica assigns them now
    stats: VersionStats = msgspec.field(default_factory=VersionStats)
    recent: VersionStats = msgspec.field(default_factory=VersionStats)  # of the snapshot's last `seconds`
    compared: Comparison = msgspec.field(default_factory=Comparison)


class Snapshot(msgspec.Struct):
    """What a replica reports of itself."""

    replica: str
    time: float  # seconds since the epoch
    pid: int
    ongoing: float  # calls under way, on average over the last seconds
    seconds: float  # that `recent` spans
    versions: dict[str, VersionState]  # by digest
    metrics: str = ""
    host: str = ""
    mark: str = ""  # of the process, see app.ray.processes

    def is_silent(self, now: float) -> bool:
        """Whether the replica has stopped reporting; `now` in seconds since the epoch."""
        return now - self.time > SILENT_S


class Service(msgspec.Struct, frozen=True):
    """Where a running service is found."""

    url: str
    store: str
    pid: int
    mark: str  # see app.ray.processes
    max_replicas: int


def reason_of(error: BaseException) -> str:
    """An error as the reason of a result: our own messages say enough, others need their type."""
    return str(error) if isinstance(error, RayRecError) else f"{type(error).__name__}: {error}"
