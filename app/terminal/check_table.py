"""What `rayrec check` shows: how each file is read, what becomes of its rows, and how long a run takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from app.terminal.summary import Rows

FILES = 10  # kinds of files that are shown, each with its first file
LONGEST = 24  # characters of a value in an example
LAYOUTS = {
    "events": "a row an event",
    "lists": "a row lists items",
    "impressions": "a row lists what was shown",
}
EVALUATED = {
    "all": "what was held out is to be ranked high among all items",
    "listed": "what was held out is to be ranked high among the negatives listed with it",
    "logged": "every event that was held out is scored and compared with its label; nothing is ranked",
}
DELIMITERS = {"\t": "tabs", " ": "blanks"}


def of_check(result: Mapping[str, Any]) -> Rows:
    """Rows for `rayrec check`: files, counts, rejected rows with examples, the split, and the time."""
    names = _short_names([*result["forms"], *result["columns"]])
    return [
        *_files(result, names),
        ("rows in, kept", f"{result['rows_in']:,}, {result['rows_kept']:,}"),
        *_rejected(result, names),
        ("users, items", f"{result['users']:,}, {result['items']:,}"),
        ("event types", ", ".join(result["events"])),
        ("split", _split(result)),
        ("evaluation", EVALUATED[result["candidates"]]),
        *(("note", note) for note in result.get("notes", [])),
        ("expected time", _time(result["seconds"])),
    ]


def _short_names(names: list[str]) -> dict[str, str]:
    """Paths without the folders that they share."""
    paths = {name: PurePosixPath(name).parts for name in names}
    kept = 1
    while len({parts[-kept:] for parts in paths.values()}) < len(set(paths.values())):
        kept += 1
    return {name: "/".join(parts[-kept:]) for name, parts in paths.items()}


def _files(result: Mapping[str, Any], names: Mapping[str, str]) -> Rows:
    """How files are read, those that are read alike in one row, and their columns."""
    alike: dict[tuple[str, str], list[str]] = {}
    for file, form in result["forms"].items():
        columns = ", ".join(result["columns"].get(file, form["columns"]))
        alike.setdefault((_form(form), columns), []).append(names[file])
    rows: Rows = []
    for (form_text, columns), files in list(alike.items())[:FILES]:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        rows += [(f"{files[0]}{more}", form_text), ("  columns", columns)]
    hidden = len(alike) - FILES
    return [*rows, *([("", f"and {hidden} further kinds of files, see --json")] if hidden > 0 else [])]


def _form(form: Mapping[str, Any]) -> str:
    guessed = form["guessed"]

    def part(key: str, text: str) -> str:
        return f"{text} (guess)" if key in guessed else text

    parts = [f"{form['format']}{', gzip' if form['gzip'] else ''}"]
    if form["format"] == "csv":
        delimiter = DELIMITERS.get(form["delimiter"], repr(form["delimiter"]))
        parts += [part("delimiter", f"fields between {delimiter}")]
        parts += [part("header", "with a header" if form["header"] else "no header")]
        parts += [] if form["quote"] else ["no quotes"]
    if form["format"] != "parquet":
        parts.append(part("encoding", form["encoding"]))
    if form["holds"] == "events":
        return ", ".join([*parts, part("layout", LAYOUTS[form["layout"]])])
    return ", ".join([*parts, f"describes {form['holds']}"])


def _rejected(result: Mapping[str, Any], names: Mapping[str, str]) -> Rows:
    """Rows of the log that are rejected, then those of item and user files that cannot be used."""
    counts = result["rejected"]
    total = sum(counts.values())
    share = f"{total:,} ({total / max(1, result['rows_in']):.1%})" if total else "none"
    rows: Rows = [("rejected", share), *_reasons(counts, result["examples"], names)]
    for kind, lost in result.get("rejected_attributes", {}).items():
        rows.append((f"rejected {kind}", f"{sum(lost.values()):,} in their files"))
        rows += _reasons(lost, result["attribute_examples"].get(kind, {}), names)
    return rows


def _reasons(counts: Mapping[str, int], examples: Mapping[str, Any], names: Mapping[str, str]) -> Rows:
    """Reasons with their counts, and the first rows of each."""
    rows: Rows = []
    for reason, count in counts.items():
        rows.append((f"  {reason}", f"{count:,}"))
        for example in examples.get(reason, ()):
            file = f"{names.get(example['file'], example['file'])}, " if len(names) > 1 else ""
            rows.append((f"    {file}row {example['row']:,}", _values(example["values"])))
    return rows


def _values(values: Mapping[str, str | None]) -> str:
    """The values of a row, the long ones cut."""
    if list(values) == ["text"]:  # a line that cannot be read
        return " ".join((values["text"] or "").split())
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: str | None) -> str:
    if value is None:
        return "(missing)"
    value = " ".join(value.split())  # tabs and line ends would tear the table
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"


def _split(result: Mapping[str, Any]) -> str:
    orders = {
        "times": "in the order of their times",
        "rows": "in the order of rows",
        "none": "without an order",
    }
    parts = ", ".join(f"{part} {result[part]:,}" for part in ("train", "valid", "test"))
    return f"{parts}; events {orders[result['order']]}"


def _time(seconds: Mapping[str, float]) -> str:
    stages = ", ".join(f"{stage} {_span(s)}" for stage, s in seconds.items() if stage != "total" and s >= 1)
    return f"about {_span(seconds['total'])}: {stages}"


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
