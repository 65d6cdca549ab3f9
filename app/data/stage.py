"""From an event log to a data set: the whole stage on one page.

    1 ingest       Ray Data reads the splits; rows are judged one by one and go to buckets of users
    2 dedupe_sort  one task a bucket: duplicates, order in time
      selection    one task a bucket and step: outliers, rounds of the k-core
    3 finalize     one task a bucket: split, columns; then the buckets are joined
    4 put_aside    rejected rows are read again and written with their reason

Memory is bounded by a piece of the input and by a bucket, besides the ids and attributes of
items and users. What is written does not depend on the number of cores or buckets.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from app.artifact import Artifact, open_artifact, publish
from app.data.check import check
from app.data.dataset import Part, Schema
from app.data.input.form.files import digests, find
from app.data.input.stored_log import digest_of_log, is_log
from app.data.prepare.attribute_file import put_attributes_aside
from app.data.prepare.buckets import positive_types
from app.data.prepare.concat import fill_values, join_parts, write_strings
from app.data.prepare.content_features import write_features, write_raw
from app.data.prepare.finalize import PARTS
from app.data.prepare.ingest import Ingested, ingest
from app.data.prepare.rejected import put_aside
from app.data.prepare.selection.select import Selected, select
from app.data.ray_map import map_splits
from app.errors import MachineError, RayRecError
from app.features.context import context_width, fit_bounds
from app.ray.session import ray_session
from app.recipe import Recipe
from app.terminal.console import say

Array = npt.NDArray[Any]
Json = dict[str, Any]
STAGE_VERSION = 6  # raise it when the same recipe and files come to give another data set
_BLOCK = 1 << 22
__all__ = ["check", "prepare", "source_digests"]


def source_digests(recipe: Recipe) -> dict[str, str]:
    """Input file -> digest of its size and time of change; feedback log -> digest of its content.

    Raises:
        DataError: a file or log is absent.
    """
    logs = [entry for entry in recipe.data.events if is_log(entry)]
    files = [entry for entry in recipe.data.events if not is_log(entry)]
    names = find(files) if files or not (logs or recipe.data.sources) else []
    for number, own in enumerate(recipe.data.sources):
        names += find(own.files, key=f"data.sources[{number}].files")
    if recipe.split.method == "given" and recipe.split.test > 0:
        names += find(recipe.split.test_events, key="split.test_events")
    for key in ("items", "users"):
        source = getattr(recipe.data, key)
        names += find(source.files, key=f"data.{key}.files") if source else []
    return digests(names) | dict(digest_of_log(entry) for entry in logs)


def prepare(recipe: Recipe, out: Path) -> Artifact:
    """Clean, split and write the data set at `out`; opens a Ray session where none runs.

    Raises:
        UserError: input or recipe cannot be used, or the disk is full; nothing is published.
    """
    parents = source_digests(recipe)
    settings = recipe.part("data", "split", "features")
    with ray_session(), publish(out, "dataset", settings, parents, STAGE_VERSION) as draft:
        scratch = draft.path / "scratch"
        scratch.mkdir()
        try:
            selected = select(ingest(recipe, scratch), write=True)
            draft.figures.update(_write(recipe, selected, draft.path))
        except MachineError as error:  # tasks know the scratch folder alone
            raise MachineError(error.what, where=str(out), remedy=error.remedy) from None
        shutil.rmtree(scratch)
    return open_artifact(out, "dataset", verify=False)


def _write(recipe: Recipe, selected: Selected, out: Path) -> Json:
    plan = selected.ingested.plan
    join_parts(Path(plan.scratch), out, selected.rows, selected.width)
    if plan.data.missing.get(plan.data.value) == "median":
        fill_values(out)
    _write_ids(selected, out)
    schema, unusable = _describe(recipe, selected, out)
    (out / "schema.json").write_bytes(msgspec.json.format(msgspec.json.encode(schema), indent=1))
    figures = selected.figures
    _put_aside(selected.ingested, out, figures["rows_in"] - figures["rows_kept"])
    put_attributes_aside(plan, out / "rejected")
    for name, values in unusable.items():
        values.write_parquet(out / "rejected" / f"features-{name}.parquet")
        figures["unusable_values"] = figures.get("unusable_values", 0) + len(values)
    for note in figures.get("notes", []):
        say(note)
    return figures


def _write_ids(selected: Selected, out: Path) -> None:
    """Write users/ and items/, and make room for users of the attribute file alone, who have no events."""
    write_strings(out / "items", [selected.items["id"].to_arrow()])
    write_strings(out / "users", [selected.users["id"].to_arrow()])
    for part in PARTS:
        path = out / part / "indptr.npy"
        indptr = np.load(path)
        np.save(path, np.pad(indptr, (0, len(selected.users) + 2 - len(indptr)), "edge"))


def _describe(recipe: Recipe, selected: Selected, out: Path) -> tuple[Schema, dict[str, pl.DataFrame]]:
    """Write features/ and columns/; returns what the arrays mean, and values that no feature could use."""
    folder, missing, events = out / "features", recipe.data.missing, selected.ingested.events
    users, items = selected.users, selected.items
    folder.mkdir()
    gap = recipe.data.session_gap_us
    context: list[str] = [*recipe.features.context] if recipe.data.timed else []
    trained = {n: _seen(out / "train" / f"{n}.npy", len(f)) for n, f in (("user", users), ("item", items))}
    of_items, bad_items = write_features(
        folder, "item", recipe.features.item, items, trained["item"], missing
    )
    of_users, bad_users = write_features(
        folder, "user", recipe.features.user, users, trained["user"], missing
    )
    write_raw(out / "columns" / "items.parquet", items.drop("id"), recipe.features.item)
    unusable = {name: bad for name, bad in (("item", bad_items), ("user", bad_users)) if len(bad)}
    schema = Schema(
        users=len(trained["user"]) + 1,
        items=len(trained["item"]) + 1,
        events=events,
        history=recipe.features.history,
        context=context,
        context_width=context_width(context),
        item_dense=of_items.dense_width,
        item_blocks=of_items.blocks,
        user_dense=of_users.dense_width,
        item_categories=of_items.categories,
        user_categories=of_users.categories,
        end_time=selected.end,
        positive=positive_types(events, recipe.data),
        timed=recipe.data.timed,
        ordered=recipe.data.ordered,
        context_bounds=fit_bounds(context, gap, recipe.features.history, Part.load(out / "train")),
        session_gap=gap,
        positive_above=recipe.data.positive_above,
        ties=selected.ties,
    )
    return schema, unusable


def _seen(path: Path, count: int) -> Array:
    """(count,) bool: rows 1.. that occur in a column."""
    column = np.load(path, mmap_mode="r")
    seen = np.zeros(count + 1, bool)
    for start in range(0, len(column), _BLOCK):
        seen[column[start : start + _BLOCK]] = True
    return seen[1:]


def _put_aside(ingested: Ingested, out: Path, rejected: int) -> None:
    folder = out / "rejected"
    folder.mkdir()
    if not rejected:
        return
    shared = (ingested.plan, ingested.positions, str(folder))
    reports = map_splits(
        put_aside, ingested.splits, shared, "putting rejected rows aside", ingested.plan.scratch
    )
    written = sum(report["rows"] for report in reports)
    if written != rejected:
        raise RayRecError(
            f"{written} rejected rows were read again of {rejected}",
            remedy="do not change input files meanwhile",
        )
