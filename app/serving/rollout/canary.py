"""Takes a new version from loading to all users, or back; decides from what replicas report.

    loading -> shadow -> canary -> promoted
                                -> (experiment, where both are to stay)
    and from each of them -> rolled back

Shadow compares both versions on the same requests, so it needs few of them. The canary is
judged beside the running version in the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec

from app.recipe import Rollout as Limits
from app.serving.rollout.state import Snapshot, VersionState
from app.serving.versions.stats import Comparison, Scores, VersionStats, plus, quantile_ms

ENOUGH = 20  # requests before a rate or a mean is believed
ENOUGH_MORE = 50  # before a 95th percentile is, and the mean of users who ask again and again
MANY_ERRORS = 5  # which need no more requests to be believed
State = Literal["loading", "shadow", "canary", "experiment", "promoted", "rolled back"]
T = TypeVar("T", bound=msgspec.Struct)


@dataclass
class Rollout:
    """One version on trial beside another; both named by their digests.

    Args:
        old, new: digests.
        limits: the recipe's [serve.rollout].
        began: now, in seconds on any clock.
        keep: end as an experiment rather than with all users.
        now: end the trial once the new version is loaded everywhere.
    """

    old: str
    new: str
    limits: Limits
    began: float
    keep: bool = False
    now: bool = False
    state: State = "loading"
    reason: str = ""
    # By replica; those that ended count, too.
    _last: dict[str, Snapshot] = field(default_factory=dict)
    _start: dict[str, Snapshot] | None = None  # when the trial began
    _base: dict[str, Snapshot] = field(default_factory=dict)  # when the state began

    def step(self, now: float, snapshots: Sequence[Snapshot]) -> None:
        """Look at what the replicas that live report, and go on where it is time."""
        self._last |= {one.replica: one for one in snapshots}
        if self._start is None:
            self._start = self._base = dict(self._last)
        refused = [v.error for one in snapshots if (v := one.versions.get(self.new)) and v.state == "refused"]
        fault = refused[0] if refused else self._fault()
        if fault:
            self.reason = fault
            self._enter("rolled back", now)
        elif self.state == "loading":
            self._load(now, snapshots)
        elif self.state == "shadow":
            compared, waited = self._compared().count, now - self.began
            if compared >= self.limits.shadow_requests or waited >= self.limits.shadow_s:
                self._enter("experiment" if self.keep else "canary", now)
        elif self.state == "canary":
            self._try(now - self.began, now)

    @property
    def note(self) -> str:
        """How it stands, for a person."""
        compared = self._compared()
        if self.state == "shadow":
            text = f"{compared.count} of {self.limits.shadow_requests} requests compared"
        else:
            text = f"{self._tally(self.new).requests} requests answered" if self.state != "loading" else ""
        if compared.judged:
            text += f", agreement {compared.agreement / compared.judged:.2f}"
        return text

    def _load(self, now: float, snapshots: Sequence[Snapshot]) -> None:
        states = [one.versions[self.new].state for one in snapshots if self.new in one.versions]
        ready = states.count("ready")
        if snapshots and ready == len(snapshots):
            self._enter("promoted" if self.now else "shadow", now)
        elif now - self.began >= self.limits.load_s:
            self.reason = f"loaded by {ready} of {len(snapshots)} replicas within {self.limits.load_s:g} s"
            self._enter("rolled back", now)

    def _try(self, waited: float, now: float) -> None:
        met = waited >= self.limits.canary_s and self._tally(self.new).requests >= self.limits.canary_requests
        if met or waited >= self.limits.canary_longest_s:
            self._enter("promoted", now)

    def _enter(self, state: State, now: float) -> None:
        self.state, self.began, self._base = state, now, dict(self._last)

    def _fault(self) -> str:
        """Why the new version must go, or "" as long as nothing speaks against it."""
        compared, limits = self._compared(), self.limits
        if (
            _believed(compared.count, compared.errors)
            and compared.errors / compared.count > limits.max_errors
        ):
            return f"it failed on {compared.errors} of {compared.count} requests that the old one answered"
        if compared.judged >= ENOUGH and compared.agreement / compared.judged < limits.min_agreement:
            found = compared.agreement / compared.judged
            return f"its ranking agrees with the old one's to {found:.2f}, less than {limits.min_agreement:g}"
        slow = self._slow(compared.old_times, compared.new_times, 0.5, ENOUGH)
        if slow or self.state not in ("canary", "experiment"):
            return slow
        return self._fault_live()

    def _fault_live(self) -> str:
        old, new, limits = self._tally(self.old), self._tally(self.new), self.limits
        usual = old.errors / old.requests if old.requests else 0.0
        if _believed(new.requests, new.errors) and new.errors / new.requests > usual + limits.max_errors:
            return f"it failed on {new.errors} of {new.requests} requests"
        shadowed = self._compared().scores
        drift = _drift(shadowed, new.scores)
        if drift > limits.max_drift:
            return (
                f"its scores are {drift:.1f} standard deviations from those it gave beside the old one,"
                f" more than {limits.max_drift:g}"
            )
        return self._slow(old.times, new.times, 0.95, ENOUGH_MORE)

    def _slow(self, old: list[int], new: list[int], share: float, enough: int) -> str:
        if min(sum(old), sum(new)) < enough:
            return ""
        before, after = quantile_ms(old, share), quantile_ms(new, share)
        if after <= max(self.limits.floor_ms, self.limits.max_slowdown * before):
            return ""
        return (
            f"it is slow: {after:.0f} ms at the {100 * share:g}th percentile,"
            f" the old one {before:.0f} ms in the same time"
        )

    def _tally(self, digest: str) -> VersionStats:
        return self._since(self._base, digest, lambda version: version.stats, VersionStats())

    def _compared(self) -> Comparison:
        return self._since(self._start or {}, self.new, lambda version: version.compared, Comparison())

    def _since(
        self, base: dict[str, Snapshot], digest: str, part: Callable[[VersionState], T], total: T
    ) -> T:
        for snapshots, sign in ((self._last, 1), (base, -1)):
            for snapshot in snapshots.values():
                if digest in snapshot.versions:
                    total = plus(total, part(snapshot.versions[digest]), sign)
        return total


def _believed(count: int, errors: int) -> bool:
    return count >= ENOUGH or errors >= MANY_ERRORS


def _drift(shadowed: Scores, live: Scores) -> float:
    """Distance of the means in standard deviations; 0 while there are too few."""
    if min(shadowed.count, live.count) < ENOUGH_MORE:
        return 0.0
    return abs(live.mean - shadowed.mean) / max(shadowed.deviation, 1e-9 + 1e-6 * abs(shadowed.mean))
