"""`rayrec rank BUNDLE --users FILE --out FILE`: nightly lists, ranked by Ray Data's actors.

An interrupted run goes on where it stopped when it is started again with the same input, bundle
and settings; every user is in the output once for each row of the input. All lists are of the
moment at which the run began. On a cluster the bundle and the output must be on storage that all
nodes share.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from app.artifact import cache_key, open_artifact
from app.data.input.form.files import digests, find
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
        store: folder of a service's feedback, or redis://…, whose events count as the users' history;
            empty: no feedback is used.
        block_rows: users ranked and written in one go.

    Returns:
        Counts of users, rows, unknown users (`cold_start`) and rows left out (`rejected`, and
        why the first was: `fault`); `resumed`, parts that an earlier run ranked; seconds and users_per_s.

    Raises:
        DataError: the users cannot be read, or there are none.
        ArtifactError: the bundle is damaged or absent.
        RequestError: the output cannot be written in the format that its name asks for.
        MachineError: the disk is full, the store cannot be used, or another run makes this output.
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
            cut = parts.cut(read_users(names), k, block_rows)
        waiting = parts.waiting(cut["blocks"])
        resumed = cut["blocks"] - len(waiting)
        if resumed:
            say(f"{resumed} of {cut['blocks']} parts were ranked by an earlier run")
        speed = _rank(parts, waiting, (bundle.absolute(), parts, k, store), cut["blocks"])
        summary = _summary(parts, cut)
        parts.join(out, cut["blocks"])
    return summary | {
        "out": str(out),
        "resumed": resumed,
        "users_per_s": speed,
        "seconds": round(time.monotonic() - start, 1),
    }


def _rank(parts: Parts, waiting: list[int], arguments: tuple[Any, ...], blocks: int) -> float:
    """Rank the blocks; returns users per second, with the start of the actors in it."""
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


def _summary(parts: Parts, cut: Json) -> Json:
    """Sums over the reports of all parts, with the rows that were rejected when the input was read."""
    total: Counter[str] = Counter(rejected=cut["rejected"])
    fault = cut["fault"]
    for report in parts.reports(cut["blocks"]):
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
    """The location of the store as an actor finds it too; "" for none.

    A store that cannot be used is refused here, once, and not by every actor; a new one is never created.

    Raises:
        MachineError: there is no store, or it cannot be used.
    """
    if store and "://" not in store:
        store = str(Path(store).absolute())
        if not (Path(store) / FILE).is_file():
            remedy = "name a service's store"
            raise MachineError(f"no feedback log ({FILE}) in this folder", where=store, remedy=remedy)
    if store:
        open_store(store).close()
    return store
