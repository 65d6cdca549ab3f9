"""`rayrec rank BUNDLE --users FILE --out FILE`: nightly lists, ranked by Ray Data's actors.

An interrupted run goes on where it stopped when it is started again, with the same input,
bundle and settings; every user is in the output once for each row of the input. All lists are of
the moment at which the run began. On a cluster the bundle and the output lie on storage that all
nodes share.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from app.artifact import cache_key, open_artifact
from app.data.input.files import digests, find
from app.data.ray_map import map_in_actors
from app.errors import MachineError, RequestError, disk_errors
from app.lists.parts import Parts, open_parts
from app.lists.ranking import Rankings
from app.lists.users import read_users
from app.ray.session import ray_session
from app.stores.open import open_store
from app.stores.schema import FILE
from app.terminal.console import progress, say

Json = dict[str, Any]
ENDINGS = {".parquet": ".parquet", ".pq": ".parquet", ".jsonl": ".jsonl", ".ndjson": ".jsonl"}
BLOCK_ROWS = 2000  # users of a part: what an interruption costs at most, on each core


def rank_users(
    bundle: Path, users: str, out: Path, *, k: int = 10, store: str = "", block_rows: int = BLOCK_ROWS
) -> Json:
    """Write the best k items of every user: columns user, rank (from 1), item, score.

    Args:
        bundle: folder of a bundle.
        users: a file or folder, see app.lists.users.
        out: .parquet or .jsonl.
        k: items of a user at most.
        store: folder of a service's feedback, or redis://…; lists know of its events. Empty: none.
        block_rows: users ranked and written in one go.

    Returns:
        Counts of users, rows, unknown users (`cold_start`) and rows left out (`rejected`, and
        why the first was: `fault`); `resumed` parts of an earlier run; times.

    Raises:
        DataError, ArtifactError, RequestError, MachineError: tell what cannot be used.
    """
    start = time.monotonic()
    out = out.absolute()
    suffix = _suffix(out)
    digest = open_artifact(bundle, "bundle").digest
    names = find([users], key="--users")
    store = _checked_store(store)
    settings = {"k": k, "store": store, "rows": block_rows, "suffix": suffix}
    key = cache_key("lists", settings, {**digests(names), "bundle": digest})
    with disk_errors(str(out)), open_parts(out, key, suffix) as parts:
        with progress("read users"):
            found = parts.cut(read_users(names), k, block_rows)
        waiting = parts.waiting(found["blocks"])
        if len(waiting) < found["blocks"]:
            say(f"{found['blocks'] - len(waiting)} of {found['blocks']} parts are there from before")
        speed = _rank(parts, waiting, (bundle.absolute(), parts, k, store), found["blocks"])
        summary = _summary(parts, found)
        parts.join(out, found["blocks"])
    return summary | {
        "out": str(out),
        "resumed": found["blocks"] - len(waiting),
        "users_per_s": speed,
        "seconds": round(time.monotonic() - start, 1),
    }


def _rank(parts: Parts, waiting: list[int], arguments: tuple[Any, ...], blocks: int) -> float:
    """Rank the blocks; returns users a second, the start of the actors included."""
    if not waiting:
        return 0.0
    users = 0
    with ray_session(), progress("rank users", blocks) as bar:
        start = time.monotonic()
        bar.advance(blocks - len(waiting))
        for report in map_in_actors(Rankings, arguments, waiting, str(parts.folder)):
            users += report["users"]
            bar.advance(note=f"{users} users")
        return round(users / (time.monotonic() - start), 1)


def _summary(parts: Parts, found: Json) -> Json:
    """Sums over all parts, and what the reading left out."""
    total: Counter[str] = Counter(rejected=found["rejected"])
    fault = found["fault"]
    for report in parts.reports(found["blocks"]):
        fault = fault or report.pop("fault")
        total.update({name: count for name, count in report.items() if name != "fault"})
    counts = {name: total[name] for name in ("users", "rows", "cold_start", "rejected")}
    return counts | ({"fault": fault} if fault else {})


def _suffix(out: Path) -> str:
    if out.suffix.lower() not in ENDINGS:
        raise RequestError(
            f"{out.name!r} has an unknown ending", where="--out", remedy="use .parquet or .jsonl"
        )
    if out.is_dir():
        raise RequestError("is a folder", where=str(out), remedy="name a file")
    return ENDINGS[out.suffix.lower()]


def _checked_store(store: str) -> str:
    """Where it lies for an actor, too. Refuses here what would fail in each; a store of files is not made."""
    if store and "://" not in store:
        store = str(Path(store).absolute())
        if not (Path(store) / FILE).is_file():
            remedy = "name a service's store"
            raise MachineError(f"no feedback log ({FILE}) in this folder", where=store, remedy=remedy)
    if store:
        open_store(store).close()
    return store
