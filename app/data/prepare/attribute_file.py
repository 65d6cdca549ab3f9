"""Files of item or user attributes: one row an id, as text; rows that cannot be used are put aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from app.data.input.form.files import find
from app.data.input.reading import Piece, Torn, pieces
from app.data.input.source import Source, cut, describe
from app.data.prepare.clean import Note, holds_objects, refuse_id, refuse_nested
from app.data.prepare.plan import Plan
from app.data.prepare.rejected import EXAMPLES, example_of
from app.data.prepare.strange import refuse_strange
from app.data.values.numbers import number_texts, strange
from app.data.values.text import normal_ids, number_of, text_of
from app.errors import DataError
from app.recipe import AttributeFile
from app.terminal.console import say

MOST_LOST = 0.1  # share of a file's rows that may be unusable
_FOLD_ROWS = 2_000_000


def attribute_file(plan: Plan, kind: str) -> pl.DataFrame | None:
    """The files of `data.items` or `data.users`: id and attributes as text, sorted by id; None without files.

    Of an id that has several rows, the first value of each column that is not missing holds. Rows that
    cannot be used are written to `scratch`, for `put_attributes_aside`.

    Args:
        plan: the plan.
        kind: "items" or "users".

    Raises:
        DataError: a file that cannot be read, a column that is not there or holds no values, or a file
            of which more than a tenth is lost.
    """
    section: AttributeFile | None = getattr(plan.data, kind)
    if section is None:
        return None
    frames: list[pl.DataFrame] = [pl.DataFrame({"id": pl.Series([], dtype=pl.String)})]
    for number, name in enumerate(find(section.files, key=f"data.{kind}.files")):
        file = _File(describe(name, section), section, plan, kind)
        frames += file.frames
        file.write_rejects(number)
    return folded(frames, _first).sort("id")


def folded(frames: Iterable[pl.DataFrame], fold: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """Frames, in order, as one with a row an id; `fold` merges rows, and is called when many are there."""
    gathered: list[pl.DataFrame] = []
    for frame in frames:
        gathered.append(frame)
        if sum(len(f) for f in gathered) > _FOLD_ROWS and len(gathered) > 1:
            gathered = [fold(pl.concat(gathered, how="diagonal"))]
    return fold(pl.concat(gathered, how="diagonal"))


def _first(frame: pl.DataFrame) -> pl.DataFrame:
    if frame.width == 1:
        return frame.unique(maintain_order=True)
    return frame.group_by("id", maintain_order=True).agg(pl.exclude("id").drop_nulls().first())


def rejected_attributes(plan: Plan) -> dict[str, dict[str, int]]:
    """Rows of attribute files that cannot be used: "items" or "users" -> rows by reason."""
    counts: dict[str, Counter[str]] = {}
    for path in _rejected(plan):
        reasons = pl.read_parquet(path, columns=["_reason"])["_reason"].to_list()
        counts.setdefault(path.name.split("-")[1], Counter()).update(reasons)
    return {kind: dict(rows) for kind, rows in counts.items()}


def first_rejected_attributes(plan: Plan) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The first of these rows, as `first_rejected` shows those of events: "items" or "users" -> by reason."""
    examples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in _rejected(plan):
        reasons = examples.setdefault(path.name.split("-")[1], {})
        firsts = pl.scan_parquet(path).group_by("_reason", maintain_order=True).head(EXAMPLES).collect()
        for row in firsts.iter_rows(named=True):
            reason, example = example_of(row)
            if len(reasons.setdefault(reason, [])) < EXAMPLES:
                reasons[reason].append(example)
    return examples


def put_attributes_aside(plan: Plan, folder: Path) -> None:
    """Move the rows of attribute files that cannot be used to the folder of rejected rows."""
    for path in _rejected(plan):
        path.replace(folder / path.name.removeprefix("rejected-"))


def _rejected(plan: Plan) -> list[Path]:
    return sorted(Path(plan.scratch).glob("rejected-*.parquet"))


class _File:
    """One attribute file.

    Attributes:
        frames: of each piece: ids and attributes.
        rejects: of each piece: original columns, _reason, _row (from 1), _text and _file.
    """

    def __init__(self, source: Source, section: AttributeFile, plan: Plan, kind: str) -> None:
        self.source, self.section, self.plan, self.kind = source, section, plan, kind
        missing = [c for c in (section.id, *section.columns) if c not in source.columns]
        if missing:
            remedy = f"the file has {', '.join(source.columns)}"
            raise DataError(f"no column {missing[0]!r} (data.{kind})", where=source.name, remedy=remedy)
        try:
            self._read(whole=False)
        except Torn:  # quotes may span lines, so that a byte range may begin within a value
            self._read(whole=True)
        refuse_strange(self.notes, self.plan.data)
        self._refuse_lost()

    def _read(self, *, whole: bool) -> None:
        self.frames: list[pl.DataFrame] = []
        self.rejects: list[pl.DataFrame] = []
        self.notes: list[tuple[Note, str]] = []
        self.rows = 0
        splits = cut(self.source, 0)
        if whole:
            splits = [replace(splits[0], end=self.source.size, whole=True)]
        for split in splits:
            lines = 0
            for piece in pieces(split):
                self._add(piece, self.rows)
                lines += piece.lines
            self.rows += lines

    def _add(self, piece: Piece, before: int) -> None:
        """Take a piece; `before` is the number of rows of the file before it."""
        if piece.bad:
            numbers, lines = [before + row + 1 for row in piece.bad_origins], [text for _, text in piece.bad]
            self.rejects.append(pl.DataFrame({"_reason": "unreadable", "_row": numbers, "_text": lines}))
        frame, section = piece.frame, self.section
        if not frame.height:
            return
        refuse_id(frame[section.id], self.source.name)
        ids = normal_ids(frame[section.id], self.plan.data.missing_words)
        rows = pl.Series("_row", before + piece.origins + 1)
        lacking = frame.with_columns(rows).filter(ids.is_null())
        if len(lacking):
            self.rejects.append(lacking.with_columns(_reason=pl.lit("missing_id")))
        texts = {c: self._texts(frame[c], rows) for c in self._columns(frame)}
        self.frames.append(pl.DataFrame({"id": ids, **texts}).drop_nulls("id"))

    def _columns(self, frame: pl.DataFrame) -> list[str]:
        """The attributes that are read: those named, else all but objects that no feature uses."""
        plan, own = self.plan, self.section
        if own.columns:
            return [c for c in own.columns if c in frame.columns]
        used = plan.item_features if self.kind == "items" else plan.user_features
        return [c for c in frame.columns if c != own.id and (c in used or not holds_objects(frame[c]))]

    def _texts(self, cells: pl.Series, rows: pl.Series) -> pl.Series:
        plan = self.plan
        refuse_nested(cells, self.source.name)
        if cells.name not in (plan.item_numbers if self.kind == "items" else plan.user_numbers):
            return text_of(cells, plan.data.missing_words)
        texts = number_texts(cells, plan.data.decimal)
        numbers = number_of(texts)
        bad = strange(cells, numbers, plan.data.missing_words)
        if bad.any():
            first, good = int(bad.arg_true()[0]), len(numbers) - numbers.null_count()
            note = Note(
                "attribute", cells.name, int(bad.sum()), good, str(cells[first])[:80], rows[first] - 1
            )
            self.notes.append((note, f"{self.source.name}, row {rows[first]}"))
        return texts

    @property
    def lost(self) -> int:
        """Rows that cannot be used."""
        return sum(len(frame) for frame in self.rejects)

    def _refuse_lost(self) -> None:
        """Rows without an id are counted, but none of them was for anybody."""
        rows = [row for frame in self.rejects for row in frame.filter(_reason="unreadable")["_row"]]
        if len(rows) > self.rows * MOST_LOST:
            what = f"{len(rows)} of {self.rows} rows have other fields than the header"
            remedy = f"mend the file, or set data.{self.kind}.delimiter, quote or header to what it has"
            raise DataError(what, where=f"{self.source.name}, row {min(rows)}", remedy=remedy)

    def write_rejects(self, number: int) -> None:
        """Write the rows that cannot be used to the plan's `scratch`; `number` tells files apart."""
        if not self.rejects:
            return
        rejected = (
            pl.concat(self.rejects, how="diagonal").sort("_row").with_columns(_file=pl.lit(self.source.name))
        )
        say(f"{self.lost} of {self.rows} rows of {self.source.name} cannot be used, see rejected/")
        rejected.write_parquet(Path(self.plan.scratch) / f"rejected-{self.kind}-{number:05d}.parquet")
