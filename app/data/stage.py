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
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from app.artifact import Artifact, open_artifact, publish
from app.data.check import check
from app.data.dataset import Schema
from app.data.input.files import digests, find
from app.data.input.stored_log import digest_of_log, is_log
from app.data.prepare.buckets import Buckets, number_items, positive_types
from app.data.prepare.concat import fill_values, join_parts, write_strings
from app.data.prepare.content_features import write_features, write_raw
from app.data.prepare.dedupe_sort import read_batch
from app.data.prepare.finalize import PARTS
from app.data.prepare.ingest import Ingested, ingest, no_events
from app.data.prepare.plan import Plan
from app.data.prepare.rejected import put_aside
from app.data.prepare.vocabulary import attribute_file, bounded_attributes, items_of, merge, write_maps
from app.data.ray_map import map_splits
from app.errors import DataError, MachineError, RayRecError
from app.features.context import context_width
from app.ray.session import ray_session
from app.recipe import Recipe

Array = npt.NDArray[Any]
Json = dict[str, Any]
STAGE_VERSION = 3  # raise it when the same recipe and files come to give another data set
_BLOCK = 1 << 22
__all__ = ["check", "prepare", "source_digests"]


def source_digests(recipe: Recipe) -> dict[str, str]:
    """Input file -> digest of its size and time of change; feedback log -> digest of its content.

    Raises:
        DataError: a file or log is absent.
    """
    logs = [entry for entry in recipe.data.events if is_log(entry)]
    files = [entry for entry in recipe.data.events if not is_log(entry)]
    names = find(files) if files or not logs else []
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
            draft.figures.update(_write(recipe, ingest(recipe, scratch), draft.path))
        except MachineError as error:  # tasks know the scratch folder alone
            raise MachineError(error.what, where=str(out), remedy=error.remedy) from None
        shutil.rmtree(scratch)
    return open_artifact(out, "dataset", verify=False)


def _write(recipe: Recipe, ingested: Ingested, out: Path) -> Json:
    plan, rejected = ingested.plan, ingested.rejected
    names = [info.name for info in ingested.infos]
    items = items_of(plan, names, ingested.items_put)
    write_maps(plan, names, items)
    buckets = Buckets(ingested, len(items))
    buckets.dedupe_sort()
    if plan.data.outliers:
        buckets.drop_outliers()
        items = bounded_attributes(plan, items)
    rejected += buckets.rejected
    items = number_items(plan, items, _select(buckets))
    if buckets.rows == 0:
        raise no_events(rejected + Counter(core=ingested.rows - rejected.total()), ingested.rows)
    reports = buckets.finalize()
    rejected.update({"core": sum(r["core"] for r in reports)})
    rows = {part: [r["rows"][part] for r in reports] for part in PARTS}
    _refuse_empty(rows, recipe)
    join_parts(Path(plan.scratch), out, rows, buckets.width)
    if plan.data.missing.get(plan.data.value) == "median":
        fill_values(out)
    users = _write_ids(plan, items, out)
    schema = _describe(recipe, ingested, out, users, items, max(r["end"] for r in reports))
    (out / "schema.json").write_bytes(msgspec.json.format(msgspec.json.encode(schema), indent=1))
    _put_aside(ingested, out, rejected.total())
    figures = {
        "rows_in": ingested.rows,
        "rows_kept": ingested.rows - rejected.total(),
        "rejected": {r: rejected[r] for r in plan.reasons if rejected[r]},
        "users": schema.users - 1,
        "items": schema.items - 1,
        **{part: sum(rows[part]) for part in PARTS},
    }
    repeated = sum(r["repeated"] for r in reports)
    return figures | ({"repeated": repeated} if repeated else {})


def _select(buckets: Buckets) -> Array:
    """Take the core where the recipe asks for one; (items,) bool: items that have a row.

    Items that nobody met have one too, unless a core asks for events; those that it dropped have none.
    """
    data, seen = buckets.plan.data, buckets.items > 0
    if max(data.min_user_events, data.min_item_events) == 1:
        return np.ones(len(seen), bool)
    items_left = buckets.take_core()
    return items_left if data.min_item_events > 1 else (buckets.items > 0) | ~seen


def _refuse_empty(rows: dict[str, list[int]], recipe: Recipe) -> None:
    if sum(rows["train"]) == 0:
        counts = ", ".join(f"{part} {sum(rows[part])}" for part in PARTS)
        raise DataError(
            f"the split leaves no event to train on ({counts})",
            where=f"split.method = {recipe.split.method!r}",
            remedy="lower split.valid and split.test, or choose another method",
        )


def _write_ids(plan: Plan, items: pl.DataFrame, out: Path) -> pl.DataFrame:
    """Write users/ and items/; returns the users with their attributes."""
    write_strings(out / "items", [items["id"].to_arrow()])
    finals = [Path(plan.scratch) / f"bucket-{b}.final" for b in range(plan.buckets)]
    seen = pl.concat(
        [pl.DataFrame(pl.from_arrow(read_batch(p))).drop("hash") for p in finals], how="diagonal"
    )
    users = merge(seen, attribute_file(plan.data.users, plan.data, "data.users"))
    write_strings(out / "users", [users["id"].to_arrow()])
    for part in PARTS:  # users of the attribute file alone have no events
        path = out / part / "indptr.npy"
        indptr = np.load(path)
        np.save(path, np.pad(indptr, (0, len(users) + 2 - len(indptr)), "edge"))
    return users


def _describe(
    recipe: Recipe, ingested: Ingested, out: Path, users: pl.DataFrame, items: pl.DataFrame, end: int
) -> Schema:
    """Write features/ and columns/, and say what the arrays mean."""
    folder, missing = out / "features", recipe.data.missing
    folder.mkdir()
    trained = {n: _seen(out / "train" / f"{n}.npy", len(f)) for n, f in (("user", users), ("item", items))}
    users, items = users.drop("id"), items.drop("id")
    of_items = write_features(folder, "item", recipe.features.item, items, trained["item"], missing)
    of_users = write_features(folder, "user", recipe.features.user, users, trained["user"], missing)
    write_raw(out / "columns" / "items.parquet", items, recipe.features.item)
    return Schema(
        users=len(trained["user"]) + 1,
        items=len(trained["item"]) + 1,
        events=ingested.events,
        history=recipe.features.history,
        context=list(recipe.features.context),
        context_width=context_width(recipe.features.context),
        item_dense=of_items.dense_width,
        user_dense=of_users.dense_width,
        item_categories=of_items.categories,
        user_categories=of_users.categories,
        end_time=end,
        positive=positive_types(ingested.events, ingested.plan.data),
    )


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
