"""card.md: what a bundle is, for people: data, figures, limits, how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from app.bundle.export.from_dataset import last_time
from app.bundle.format.layout import Info
from app.data.dataset import Dataset

LIMITS = """\
- An id that training did not see is ranked as an unknown one (`cold_start: true`).
- It knows what was in the log up to {end}; the further the present is from it, the more the
  figures above may differ from what you see.
- People chose from what they were shown; what was never shown cannot look good.
- It holds ids of users and what they last did: treat it as personal data.
- Scores are logits of a ranking, comparable within a request; they are no promise of a probability."""


def card(
    info: Info,
    dataset: Dataset,
    hyperparameters: Mapping[str, Any],
    figures: Mapping[str, Any],
    sizes: Mapping[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        info: of the bundle.
        dataset: whose events its histories hold.
        hyperparameters: of the model.
        figures: of the report; "refit" says how the weights were trained once more, where they were.
        sizes: precisions of rows and dense part, and how recommendations find items.
    """
    end = _date(last_time(dataset))
    own = {key: value for key, value in sorted(hyperparameters.items()) if key != "resized"}
    settings = ", ".join(f"{key} = {value!r}" for key, value in own.items()) or "defaults"
    resized = hyperparameters.get("resized", {})
    smaller = f" {len(resized)} dense layers are smaller than these say." if resized else ""
    sections = {
        f"# {info.name}": [
            f"A `{info.model}` model that ranks {info.items - 1:,} items for {info.users - 1:,} known users."
        ],
        "## Data": _data(info, dataset, figures, end),
        "## Figures": [*_table(figures), "", _first_stage(sizes), *_notes(figures)],
        "## Limits": [LIMITS.format(end=end)],
        "## How it was made": [
            f"Hyperparameters: {settings}.{smaller}",
            f"Rows {sizes['rows']}, dense part {sizes['dense']}; ONNX opset {info.opset}.",
            f"Data set `{dataset.artifact.digest[:12]}`; the manifest has all digests and settings.",
        ],
    }
    return "\n".join(line for title, lines in sections.items() for line in (title, "", *lines, ""))


def _data(info: Info, dataset: Dataset, figures: Mapping[str, Any], end: str) -> list[str]:
    data = dataset.artifact.figures
    return [
        f"{data.get('rows_in', 0):,} events read, {data.get('rows_kept', 0):,} kept; "
        f"{len(dataset.train):,} train, {len(dataset.valid):,} validate, {len(dataset.test):,} test.",
        f"Event types: {', '.join(info.events[1:])}. {_histories(info)}",
        "",
        _weights(dataset, figures),
        f"Histories, seen items, popularity and candidates hold all {_events(dataset):,} events, "
        f"up to {end}.",
    ]


def _histories(info: Info) -> str:
    """How much of a user's past counts."""
    if info.reads == "recent":
        return f"A history has up to {info.history} events."
    if info.reads == "events":
        return f"A history has a user's last {info.history:,} events."
    return f"A history has every item of a user's last {info.history:,} events once."


def _notes(figures: Mapping[str, Any]) -> list[str]:
    """What the report says beside its figures, such as which models were compared, and figures later on."""
    delayed = [
        f"NDCG, {moment if 'moment' in moment else f'{moment} after the last event'}: "
        + ", ".join(f"{name} {f:.4f}" for name, f in shown.items() if name.startswith("ndcg@"))
        for moment, shown in figures.get("delayed", {}).items()
    ]
    notes = [*figures.get("notes", []), *delayed]
    return ["", *(f"- {note}" for note in notes)] if notes else []


def _events(dataset: Dataset) -> int:
    """Events on items that have a row."""
    return sum(int(np.count_nonzero(part.item)) for part in dataset.parts)


def _weights(dataset: Dataset, figures: Mapping[str, Any]) -> str:
    """What the weights have seen."""
    refit, both = figures.get("refit"), figures.get("valid_too")
    if refit is None and both is not None:
        return f"The weights have seen the {both:,} events of the training and the validation part."
    if refit is None:
        held_out = " and none of the parts held out" if len(dataset.parts) > 1 else ""
        return f"The weights have seen the {len(dataset.train):,} events of the training part{held_out}."
    events, epochs = f"on all {refit['events']:,} events", refit["epochs"]
    if not epochs:
        how = f"The model was fitted once more {events}"
    elif refit["chosen_by"]:
        how = (
            f"The weights were trained once more {events}, "
            f"for the {epochs} epochs that were best on validation by {refit['chosen_by']}"
        )
    else:
        how = f"The weights were trained once more {events}, for {epochs} epochs: validation chose none"
    return f"{how}. The figures below are of the weights before that, which had seen the training part alone."


def _first_stage(sizes: Mapping[str, Any]) -> str:
    """How recommendations find items, and what they miss."""
    share = f"which find {sizes.get('recall@20', 1.0):.1%} of the exact best 20"
    kind = sizes.get("kind", "all")
    if kind in ("all", "exact"):
        return "Recommendations compare every item."
    if kind == "sources":
        return f"Recommendations rank {sizes['candidates']:,} candidates of several sources, {share}."
    return f"Recommendations take the nearest items of a faiss index ({kind}), {share}."


def _date(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _table(figures: Mapping[str, Any]) -> list[str]:
    """The model's figures beside each baseline's, or a note that there are none."""
    own = figures.get("figures", figures)
    numbers = {name: v for name, v in own.items() if isinstance(v, int | float)}
    if not numbers:
        return ["Not evaluated."]
    baselines = figures.get("baselines", {})
    header = ["figure", "this model", *baselines]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for name, value in numbers.items():
        others = [_number(base.get(name)) for base in baselines.values()]
        lines.append("| " + " | ".join([name, _number(value), *others]) + " |")
    return lines


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""
