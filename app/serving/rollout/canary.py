"""Takes a new version from loading to all users, or back; decides from what replicas report.

    loading -> shadow -> canary -> promoted
                      -> experiment, where both versions are to stay
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
        began: when the state began, in seconds on any clock.
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
    # What the canary waits for once its time is over: the rest of a sentence.
    _lacks: str = ""
    # By replica; those that ended count, too.
    _last: dict[str, Snapshot] = field(default_factory=dict)
    _start: dict[str, Snapshot] | None = None  # when the trial began
    _base: dict[str, Snapshot] = field(default_factory=dict)  # when the state began

    def step(self, now: float, snapshots: Sequence[Snapshot]) -> None:
        """Go on where it is time, by the last reports of all live replicas, the silent ones among them."""
        if self.state in ("promoted", "rolled back"):
            return
        self._last |= {snapshot.replica: snapshot for snapshot in snapshots}
        if self._start is None:
            self._start = self._base = dict(self._last)
        refusals = [v.error for s in snapshots if (v := s.versions.get(self.new)) and v.state == "refused"]
        fault = refusals[0] if refusals else self._fault()
        if fault:
            self.end(fault, now)
        elif self.state == "loading":
            self._wait_until_loaded(now, snapshots)
        elif self.state == "shadow":
            compared, waited = self._compared().count, now - self.began
            if compared >= self.limits.shadow_requests or waited >= self.limits.shadow_s:
                self._enter("experiment" if self.keep else "canary", now)
        elif self.state == "canary":
            self._wait_until_tried(now, snapshots)

    def end(self, reason: str, now: float) -> None:
        """Roll the new version back."""
        self.reason = reason
        self._enter("rolled back", now)

    @property
    def ends(self) -> float:
        """When the state ends at the latest, unless it waits for requests; 0 for an experiment."""
        seconds = {
            "loading": self.limits.load_s,
            "shadow": self.limits.shadow_s,
            "canary": max(self.limits.canary_s, self.limits.canary_longest_s),
        }
        return self.began + seconds[self.state] if self.state in seconds else 0.0

    @property
    def note(self) -> str:
        """How far the trial is, for a person."""
        if self.state == "loading":
            return ""
        compared = self._compared()
        if self.state == "shadow":
            text = f"{compared.count} of {self.limits.shadow_requests} requests compared"
        else:
            text = f"{self._stats(self.new).requests} requests answered"
        if self.state == "canary" and self._lacks:
            text = f"waiting for {self._lacks}: {text}"
        if compared.judged:
            text += f", agreement {compared.agreement / compared.judged:.2f}"
        return text

    def _wait_until_loaded(self, now: float, snapshots: Sequence[Snapshot]) -> None:
        missing = self._missing(snapshots)
        if snapshots and not missing:
            self._enter("promoted" if self.now else "shadow", now)
        elif now - self.began >= self.limits.load_s:
            loaded = f"{len(snapshots) - len(missing)} of {len(snapshots)} replicas"
            others = f", not by {', '.join(missing)}" if missing else ""
            self.end(f"loaded by {loaded} within {self.limits.load_s:g} s{others}", now)

    def _missing(self, snapshots: Sequence[Snapshot]) -> list[str]:
        """Replicas that have not loaded the new version, as far as they have reported it."""
        return [
            s.replica
            for s in snapshots
            if self.new not in s.versions or s.versions[self.new].state != "ready"
        ]

    def _wait_until_tried(self, now: float, snapshots: Sequence[Snapshot]) -> None:
        """Promote it after enough requests, or after some when there are few; none prove nothing."""
        limits, waited, answered = self.limits, now - self.began, self._stats(self.new).requests
        needed = limits.canary_requests
        if waited >= limits.canary_longest_s:
            needed = 0 if limits.promote_idle else min(ENOUGH, needed)
        self._lacks = ""
        if waited < limits.canary_s or (answered < needed and waited < limits.canary_longest_s):
            return
        missing = self._missing(snapshots)
        if answered < needed:
            self._lacks = f"requests, at least {needed}"
        elif missing or not snapshots:
            self._lacks = f"replicas that have not loaded it ({', '.join(missing) or 'there is none'})"
        else:
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
            agreement = compared.agreement / compared.judged
            least = limits.min_agreement
            return f"its ranking agrees with the old one's to {agreement:.2f}, less than {least:g}"
        slow = self._slow(compared.old_times, compared.new_times, 0.5, ENOUGH)
        if slow or self.state not in ("canary", "experiment"):
            return slow
        return self._fault_live()

    def _fault_live(self) -> str:
        old, new, limits = self._stats(self.old), self._stats(self.new), self.limits
        usual = old.errors / old.requests if old.requests else 0.0
        if _believed(new.requests, new.errors) and new.errors / new.requests > usual + limits.max_errors:
            return f"it failed on {new.errors} of {new.requests} requests"
        drift = _drift(self._compared().scores, new.scores)
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

    def _stats(self, digest: str) -> VersionStats:
        """What a version did since the state began."""
        return self._since(self._base, digest, lambda version: version.stats, VersionStats())

    def _compared(self) -> Comparison:
        """How the new version compares since the trial began."""
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
