"""What there is to see of a service that runs: `rayrec status` and `rayrec experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.errors import RecipeError
from app.serving.rollout.state import DesiredState, Service, Snapshot, VersionState
from app.serving.rollout.state_dir import StateDir
from app.serving.versions import experiment
from app.serving.versions.stats import VersionStats, plus, quantile_ms


def status(service: Service) -> dict[str, Any]:
    """Versions, shares, phase, replicas, and what they did in the last seconds."""
    board = StateDir(Path(service.store))
    release, snapshots = release_of(board), board.snapshots()
    named = [*release.versions, *([release.previous] if release.previous else [])]
    return {
        "url": service.url,
        "store": service.store,
        "phase": release.phase,
        "note": release.note,
        "replicas": len(snapshots),
        "wanted": release.replicas or "as the load asks",
        "held": round(sum(one.held for one in snapshots), 1),
        "versions": [
            {
                "version": one.label,
                "share": one.share,
                **_figures(one.digest, snapshots),
                "bundle": one.bundle,
            }
            for one in named
        ],
    }


def report(service: Service, event: str = "") -> dict[str, Any]:
    """The last experiment: users and outcomes by version, and how far they differ.

    Args:
        event: type of the feedback events that count as outcomes; empty: all.

    Raises:
        RecipeError: there was none.
    """
    release = release_of(StateDir(Path(service.store)))
    last = release.experiment
    if last is None:
        raise RecipeError(
            "there was no experiment", remedy="start one with `rayrec deploy BUNDLE --share 50 --keep`"
        )
    counts = experiment.outcomes(Path(service.store), last.salt, last.started, event)
    arms = [experiment.arm(label, counts.get(label, [])) for label in last.labels]
    found: dict[str, Any] = {
        "runs": release.phase == "experiment",
        "event": event or "any",
        "arms": [
            {"variant": a.variant, "users": a.users, "outcomes": a.outcomes, "rate": a.rate} for a in arms
        ],
    }
    first, second = (counts.get(label, []) for label in last.labels)
    if min(len(first), len(second)) < 2:
        return {**found, "difference": None, "verdict": "too few users so far"}
    gap = experiment.difference(first, second)
    verdict = ("better" if gap.value > 0 else "worse") if gap.decides else "not told apart"
    return {
        **found,
        "difference": {"value": gap.value, "low": gap.low, "high": gap.high, "level": 0.95},
        "verdict": f"{last.labels[1]} is {verdict}" if gap.decides else f"the versions are {verdict} yet",
    }


def release_of(board: StateDir) -> DesiredState:
    """The release on a board.

    Raises:
        RecipeError: there is none.
    """
    release = board.release()
    if release is None:
        raise RecipeError("the service has no board", where=str(board.folder), remedy="start it again")
    return release


def _figures(digest: str, snapshots: list[Snapshot]) -> dict[str, Any]:
    states: list[VersionState] = [one.versions[digest] for one in snapshots if digest in one.versions]
    recent = VersionStats()
    for state in states:
        recent = plus(recent, state.recent)
    seconds = max((one.seconds for one in snapshots), default=0.0)
    return {
        "ready": sum(state.state == "ready" for state in states),
        "error": next((state.error for state in states if state.error), ""),
        "requests_per_s": round(recent.requests / seconds, 1) if seconds else 0.0,
        "p95_ms": round(quantile_ms(recent.times, 0.95), 2),
        "errors": sum(state.stats.errors for state in states),
    }
