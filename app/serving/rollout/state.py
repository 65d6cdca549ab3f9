"""What the processes of a service tell each other: wishes, what is to be served, what replicas do."""

from __future__ import annotations

from typing import Literal

import msgspec

from app.serving.versions.stats import Comparison, VersionStats

KEPT_OUTCOMES = 20
Phase = Literal["steady", "loading", "shadow", "canary", "experiment"]


class Version(msgspec.Struct, frozen=True):
    """A bundle that is served, or about to be. `label` is what answers call their version."""

    label: str
    bundle: str
    digest: str
    share: float = 0.0  # of the users


class CommandResult(msgspec.Struct, frozen=True):
    """What became of a wish."""

    wish: str
    state: Literal["done", "refused", "rolled back"]
    reason: str = ""


class Experiment(msgspec.Struct, frozen=True):
    """Two versions that share the users, or did."""

    salt: str
    started: float  # seconds since the epoch
    labels: list[str]  # what was served before comes first


class DesiredState(msgspec.Struct, frozen=True):
    """What is to be served. The first version is the one to return to; a second is on trial."""

    versions: list[Version]
    phase: Phase = "steady"
    salt: str = ""  # of the choice by user
    note: str = ""  # how the trial goes
    previous: Version | None = None  # stays loaded, for a rollback at once
    replicas: int = 0  # wanted; 0: as many as the load needs
    outcomes: list[CommandResult] = []
    experiment: Experiment | None = None
    began: str = ""  # digest of the bundle that the service was started with
    ended: bool = False  # the driver stopped in good order

    @property
    def main(self) -> Version:
        """The version to return to."""
        return self.versions[0]

    @property
    def trial(self) -> Version | None:
        """The version on trial."""
        return self.versions[1] if len(self.versions) > 1 else None

    def outcome(self, wish: str) -> CommandResult | None:
        """What became of a wish, once that is known."""
        return next((one for one in self.outcomes if one.wish == wish), None)


class Command(msgspec.Struct, frozen=True):
    """What a person asks of a running service."""

    kind: Literal["deploy", "rollback", "promote", "scale"]
    bundle: str = ""
    percent: float = 0.0  # of the users who meet the new version on trial; 0: as the recipe says
    keep: bool = False  # both versions stay: an experiment
    now: bool = False  # all users at once, without a trial
    replicas: int = 0
    limits: dict[str, float] = {}  # keys of serve.rollout that differ this time
    id: str = ""


class VersionState(msgspec.Struct):
    """A version in one replica, since it was loaded there."""

    state: Literal["loading", "ready", "refused"]
    error: str = ""
    share: float = 0.0  # as this replica chooses now
    stats: VersionStats = msgspec.field(default_factory=VersionStats)
    recent: VersionStats = msgspec.field(default_factory=VersionStats)  # of the snapshot's last `seconds`
    compared: Comparison = msgspec.field(default_factory=Comparison)


class Snapshot(msgspec.Struct):
    """What a replica says of itself."""

    replica: str
    time: float  # seconds since the epoch
    pid: int
    held: float  # calls, on average over the last seconds
    seconds: float  # that `recent` spans
    versions: dict[str, VersionState]  # by digest
    metrics: str = ""


class Service(msgspec.Struct, frozen=True):
    """Where a service is."""

    url: str
    store: str
    pid: int
    mark: str  # see app.ray.processes
    max_replicas: int
