"""What a file outside the bundle takes of a request: the names of its inputs, and their values."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Any

import numpy as np

from app.bundle.export.from_dataset import default_event, events_of
from app.bundle.export.source import ExportSource
from app.bundle.format.layout import Array
from app.bundle.request.requests import RankRequest
from app.bundle.request.validation import moment
from app.events import HistoryEvent
from app.features.context import Context, ages, gaps

FLOATS = {"history_age", "history_gap", "context"}
DESCRIPTIONS = {
    "user": "user ids (B,)",
    "item": "ids of the candidates (B, C)",
    "history": 'item ids of the last events (B, L), the most recent last, "" before the first',
    "history_event": 'event types (B, L), "" where there is no event',
    "history_age": "log1p of the hours from each event to the last (B, L), at most 90 days; 0 where none is",
    "history_gap": "log1p of the hours from each event to the one before it (B, L), at most 90 days; else 0",
    "context": "features of the moment (B, T), as the metadata names them",
}


def described(source: ExportSource) -> dict[str, Any]:
    """What a caller must know beside the inputs, as JSON values."""
    schema = source.dataset.schema
    return {
        "model": source.checkpoint.name,
        "history": events_of(source.checkpoint.model, source.dataset),
        "reads": source.checkpoint.model.reads,
        "events": schema.events[1:],
        "default_event": schema.events[default_event(source.dataset)],
        "context": list(schema.context),
        "context_bounds": schema.context_bounds,
        "session_gap": schema.session_gap,
        "timed": schema.timed,
    }


def feeds(
    request: RankRequest,
    description: dict[str, Any],
    *,
    padded: bool = False,
    known: Container[str] | None = None,
) -> dict[str, Array]:
    """The inputs for one request, ids as text.

    Args:
        request: its own history counts alone.
        description: of `described`.
        padded: whether every history is padded to the longest, not only those of models of recent events.
        known: items whose events count; None: all.
    """
    timestamp, length = request.context.timestamp if request.context else None, description["history"]
    now = time.time_ns() // 1000 if timestamp is None else moment(timestamp, "context.timestamp")
    last = _shown(request, now, description, known)
    padding = (length if padded or description["reads"] == "recent" else max(1, len(last))) - len(last)
    times = np.array([[0] * padding + [when if description["timed"] else 0 for when, _ in last]], np.int64)
    kinds = [event.event or description["default_event"] for _, event in last]
    context = Context(description["context"], description["context_bounds"], description["session_gap"])
    return {
        "user": np.array([request.user], object),
        "item": np.array([request.items], object),
        "history": np.array([[""] * padding + [event.item for _, event in last]], object),
        "history_event": np.array([[""] * padding + kinds], object),
        "history_age": ages(times),
        "history_gap": gaps(times),
        "context": context(np.array([now], np.int64), times),
    }


def _shown(
    request: RankRequest, now: int, description: dict[str, Any], known: Container[str] | None
) -> list[tuple[int, HistoryEvent]]:
    """The events that the model is shown, each with its microseconds, the most recent last."""
    events = [
        (now if event.timestamp is None else moment(event.timestamp, f"history[{i}].timestamp"), event)
        for i, event in enumerate(request.history or ())
        if known is None or event.item in known
    ]
    last = sorted(events, key=lambda pair: pair[0])[-description["history"] :]
    if description["reads"] == "all":
        latest = {event.item: number for number, (_, event) in enumerate(last)}
        last = [last[number] for number in sorted(latest.values())]
    return last
