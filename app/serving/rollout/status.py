"""What there is to see of a service that runs: `rayrec status` and `rayrec experiment`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from app.errors import RecipeError
from app.serving.rollout.state import DesiredState, Service, Snapshot, VersionState
from app.serving.rollout.state_dir import StateDir
from app.serving.versions import experiment
from app.serving.versions.stats import VersionStats, plus, quantile_ms


def status(service: Service) -> dict[str, Any]:
    """Versions, shares, phase, replicas, and what they did in the last seconds."""
    state_dir = StateDir(Path(service.store))
    desired, snapshots, now = desired_state_of(state_dir), state_dir.snapshots(), time.time()
    versions = [*desired.versions, *([desired.previous] if desired.previous else [])]
    return {
        "url": service.url,
        "store": service.store,
        "phase": desired.phase,
        "note": desired.note,
        "replicas": len(snapshots),
        "silent": sum(snapshot.is_silent(now) for snapshot in snapshots),
        "wanted": desired.replicas or "as the load asks",
        "ongoing": round(sum(snapshot.ongoing for snapshot in snapshots), 1),
        "waiting_commands": state_dir.waiting_commands(),
        "versions": [
            {
                "version": version.label,
                "share": version.share,
                **_figures(version.digest, snapshots),
                "bundle": version.bundle,
            }
            for version in versions
        ],
    }


def report(service: Service, event: str = "") -> dict[str, Any]:
    """The last experiment: users and outcomes by version, and how far they differ.

    Args:
        event: type of the feedback events that count as outcomes; empty: all.

    Raises:
        RecipeError: there was none.
    """
    desired = desired_state_of(StateDir(Path(service.store)))
    last = desired.experiment
    if last is None:
        raise RecipeError(
            "there was no experiment", remedy="start one with `rayrec deploy BUNDLE --share 50 --keep`"
        )
    counts = experiment.outcomes(Path(service.store), last.salt, last.started, event)
    arms = [experiment.arm(label, counts.get(label, [])) for label in last.labels]
    result: dict[str, Any] = {
        "runs": desired.phase == "experiment",
        "event": event or "any",
        "arms": [
            {"variant": a.variant, "users": a.users, "outcomes": a.outcomes, "rate": a.rate} for a in arms
        ],
    }
    first, second = (counts.get(label, []) for label in last.labels)
    if min(len(first), len(second)) < 2:
        return {**result, "difference": None, "verdict": "too few users so far"}
    gap = experiment.difference(first, second)
    verdict = "better" if gap.value > 0 else "worse"
    return {
        **result,
        "difference": {"value": gap.value, "low": gap.low, "high": gap.high, "level": 0.95},
        "verdict": f"{last.labels[1]} is {verdict}" if gap.decides else "no difference can be seen yet",
    }


def desired_state_of(state_dir: StateDir) -> DesiredState:
    """What a service is to serve.

    Raises:
        RecipeError: the folder holds no such file.
    """
    desired = state_dir.desired_state()
    if desired is None:
        raise RecipeError(
            "the service has no state folder", where=str(state_dir.folder), remedy="start it again"
        )
    return desired


def _figures(digest: str, snapshots: list[Snapshot]) -> dict[str, Any]:
    states: list[VersionState] = [s.versions[digest] for s in snapshots if digest in s.versions]
    recent = VersionStats()
    for state in states:
        recent = plus(recent, state.recent)
    seconds = max((snapshot.seconds for snapshot in snapshots), default=0.0)
    return {
        "ready": sum(state.state == "ready" for state in states),
        "error": next((state.error for state in states if state.error), ""),
        "requests_per_s": round(recent.requests / seconds, 1) if seconds else 0.0,
        "p95_ms": round(quantile_ms(recent.times, 0.95), 2),
        "errors": sum(state.stats.errors for state in states),
    }
