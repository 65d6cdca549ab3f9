"""Phase 1 as a whole: list the input, cut it into splits, partition them, and refuse what cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.data.input.form.files import find
from app.data.input.source import Source, Split, cut, describe
from app.data.input.stored_log import copy_log, is_log
from app.data.prepare.clean import Note
from app.data.prepare.dedupe_sort import PieceInfo
from app.data.prepare.partition import MAX_EVENTS, partition
from app.data.prepare.plan import Plan, make_plan
from app.data.prepare.rejected import SplitPosition
from app.data.prepare.strange import refuse_strange
from app.data.ray_map import map_splits
from app.data.values.time_format import advice, ambiguous_formats
from app.errors import DataError
from app.recipe import Recipe
from app.terminal.console import say

Json = dict[str, Any]


@dataclass(frozen=True)
class Ingested:
    """The outcome of phase 1. Lists are in the order of the input."""

    plan: Plan
    splits: list[Split]
    reports: list[Json]  # one a split
    offsets: list[int]  # rows before each split
    events: list[str]  # row 0 is ""
    items_put: list[pl.DataFrame]  # attributes by PUT /v1/items, one frame a feedback log

    @property
    def rows(self) -> int:
        """Rows of all files, unreadable ones included."""
        return sum(r["rows"] for r in self.reports)

    @property
    def rejected(self) -> Counter[str]:
        """Rows rejected so far, by reason."""
        return sum((Counter(r["rejected"]) for r in self.reports), Counter())

    @property
    def positions(self) -> dict[int, SplitPosition]:
        """Where the rows of each split are in the input, by its number."""
        lines: dict[Source, int] = {}
        positions = {}
        for split, report, offset in zip(self.splits, self.reports, self.offsets, strict=True):
            in_file = lines.get(split.source, 0)
            positions[split.number] = SplitPosition(offset, in_file, report["rows"])
            lines[split.source] = in_file + report["lines"]
        return positions

    @property
    def infos(self) -> list[PieceInfo]:
        """The pieces that hold rows."""
        row = {name: number for number, name in enumerate(self.events)}
        return [
            PieceInfo(p["name"], offset, split.source.test, tuple(row[e] for e in p["events"]))
            for split, report, offset in zip(self.splits, self.reports, self.offsets, strict=True)
            for p in report["pieces"]
            if p["kept"]
        ]


def sources_of(recipe: Recipe, scratch: Path) -> tuple[list[Source], list[pl.DataFrame]]:
    """The sources of events in order, given test files last, each looked into.

    Feedback logs are copied to `scratch`; the frames hold what they say of items.

    Raises:
        DataError: absent, empty, truncated or not what its name says.
        RecipeError: a split of given files without test files.
    """
    if not (recipe.data.events or recipe.data.sources):
        find([])  # raises that there are none
    sources: list[Source] = []
    items = []
    for number, entry in enumerate(recipe.data.events):
        if is_log(entry):
            source, put = copy_log(entry, scratch / f"log-{number}.parquet", recipe.data)
            sources.append(source)
            items.append(put)
        else:
            sources += [describe(name, recipe.data) for name in find([entry])]
    for number, own in enumerate(recipe.data.sources):
        names = find(own.files, key=f"data.sources[{number}].files")
        sources += [describe(name, recipe.data, own=own) for name in names]
    if recipe.split.method == "given" and recipe.split.test > 0:
        names = find(recipe.split.test_events, key="split.test_events")
        sources += [describe(name, recipe.data, test=True) for name in names]
    return _labelled(sources), items


def _labelled(sources: list[Source]) -> list[Source]:
    """Sources in which the ids of users that are rows begin with another name each."""
    labels = Counter(source.label for source in sources)
    return [replace(s, label=s.name) if s.row_users and labels[s.label] > 1 else s for s in sources]


def ingest(recipe: Recipe, scratch: Path) -> Ingested:
    """Run phase 1.

    Raises:
        UserError: the input cannot be used; names file, row and remedy.
    """
    sources, items = sources_of(recipe, scratch)
    splits: list[Split] = []
    for source in sources:
        splits += cut(source, len(splits))
    if not splits:
        names = ", ".join(s.name for s in sources)
        raise DataError("no events: a header and no rows", where=names, remedy="give a file with rows")
    plan = make_plan(recipe, sources, splits, str(scratch))
    splits, reports = _partition_all(splits, plan)
    offsets = np.concatenate([[0], np.cumsum([r["rows"] for r in reports])]).tolist()
    ingested = Ingested(plan, splits, reports, offsets[:-1], _event_types(plan, reports), items)
    _refuse(ingested)
    return ingested


def _partition_all(splits: list[Split], plan: Plan) -> tuple[list[Split], list[Json]]:
    reports = {r["split"]: r for r in map_splits(partition, splits, (plan,), "reading", plan.scratch)}
    torn = {splits[n].source for n, r in reports.items() if r.get("torn")}
    if torn:
        # Quotes may span lines there, so that a byte range may begin within a value: read as one.
        again = {s: next(p for p in splits if p.source == s) for s in torn}
        for split in (s for s in splits if s.source in torn):
            for path in Path(plan.scratch).glob(f"{split.number:07d}-*"):
                path.unlink()
        whole = [replace(s, end=s.source.size, whole=True) for s in again.values()]
        more = map_splits(partition, whole, (plan,), "reading whole files", plan.scratch)
        splits = sorted([s for s in splits if s.source not in torn] + whole, key=lambda s: s.number)
        reports |= {r["split"]: r for r in more}
    return splits, [reports[s.number] for s in splits]


def _event_types(plan: Plan, reports: Sequence[Json]) -> list[str]:
    seen = {e for r in reports for p in r["pieces"] for e in p["events"]}
    known = plan.data.event_types or sorted(seen | set(plan.data.positive))
    if len(known) > MAX_EVENTS:
        remedy = f"map a column with at most {MAX_EVENTS} types, or list them in data.event_types"
        raise DataError(f"{len(known)} event types", where=f"column {plan.data.event!r}", remedy=remedy)
    stray = sorted(set(plan.data.positive) - seen)
    if stray and seen:
        say(f"data.positive: no event of type {stray[0]!r}; the log has {', '.join(sorted(seen))}")
    return ["", *known, *sorted(seen - set(known))]


def _refuse(ingested: Ingested) -> None:
    notes = _notes(ingested)
    refuse_strange([(note, where) for note, where in notes if note.kind != "time"], ingested.plan.data)
    late = next(((note, where) for note, where in notes if note.kind == "time"), None)
    if not any(p["kept"] for r in ingested.reports for p in r["pieces"]):
        example = f"{late[0].column} = {late[0].value!r} in {late[1]}" if late else ""
        raise no_events(ingested.rejected, ingested.rows, example, late[0].value if late else "")
    if late and ambiguous_formats([late[0].value]):
        bad = sum(note.bad for note, _ in notes if note.kind == "time")
        example = f"{late[0].column} = {late[0].value!r} is no time"
        say(f"{late[1]}: {example}, as {bad} in all; {advice(late[0].value)}")


def _notes(ingested: Ingested) -> list[tuple[Note, str]]:
    """Notes on columns, each with file and row of the first value that cannot be used."""
    positions = ingested.positions
    return [
        (Note(**note), f"{split.source.name}, row {positions[split.number].in_file + note['row'] + 1}")
        for split, report in zip(ingested.splits, ingested.reports, strict=True)
        for note in report["notes"]
    ]


def no_events(rejected: Counter[str], rows: int, example: str = "", time: str = "") -> DataError:
    """The error when cleaning leaves nothing, with the counts; `time` is a text that is no time."""
    counts = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common()) or "none rejected"
    suffix = f"; e.g. {example}" if example else ""
    remedy = "relax the rule that rejects most"
    if rejected and rejected.most_common(1)[0][0] == "bad_time":
        remedy = f"{advice(time)}, or mend data.earliest and data.latest"
    return DataError(f"no events are left of {rows} rows ({counts}{suffix})", where="data", remedy=remedy)
