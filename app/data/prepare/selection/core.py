"""The k-core: users and items with enough training events, counted among those kept.

One task a bucket and round. What is kept after a step is in bucket-K.reason-STEP.npy, for each row
of bucket-K.rows 0 or the code of the reason to drop it; a task reads the file of the step before and
writes its own, so that it may run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.data.prepare.dedupe_sort import read_batch
from app.data.prepare.plan import Plan
from app.data.prepare.selection.splits import Splitter

Array = npt.NDArray[Any]
Json = dict[str, Any]
ITEMS_LEFT = "items_left.npy"  # (items,) bool: those that have not fallen


def reasons_after(plan: Plan, bucket: int, step: int, count: int) -> Array:
    """(count,) uint8: the reason to drop each row of a bucket so far, 0 where it is kept."""
    path = Path(plan.scratch) / f"bucket-{bucket}.reason-{step}.npy"
    return np.load(path) if step else np.zeros(count, np.uint8)


def core_round(bucket: int, plan: Plan, step: int, splitter: Splitter) -> Json:
    """Drop the rows of items that fell, and users who then have too few events to train on.

    Returns:
        dropped: how many rows; rows: rows left; users: with rows left; items: rows left of each;
        trained: training rows left of each.
    """
    path = Path(plan.scratch) / f"bucket-{bucket}"
    batch = read_batch(path.with_suffix(".rows"))
    reason = reasons_after(plan, bucket, step - 1, len(batch))
    items_left = np.load(path.with_name(ITEMS_LEFT))
    fixed = batch["test"].to_numpy() > 0  # what the files say is tested stays
    before = reason == 0
    left = before & (items_left[batch["item"].to_numpy()] | fixed)
    rows = {name: batch[name].to_numpy()[left] for name in splitter.columns}
    hashes = read_batch(path.with_suffix(".users"))["hash"].to_numpy()
    for_user, for_item = splitter.counted(rows, hashes)
    user, item = rows["user"], rows["item"]
    kept = _enough(user[for_user], len(hashes), plan.data.min_user_events)[user] | fixed[left]
    left[np.flatnonzero(left)[~kept]] = False
    reason[before & ~left] = plan.code("core")
    np.save(path.with_suffix(f".reason-{step}.npy"), reason)
    return {
        "dropped": int((before & ~left).sum()),
        "rows": int(kept.sum()),
        "users": int(np.count_nonzero(np.bincount(user[kept]))),
        "items": np.bincount(item[kept]),
        "trained": np.bincount(item[kept & for_item]),
    }


def _enough(user: Array, users: int, least: int) -> Array:
    """(users,) bool: those who occur at least `least` times; with 1 there is no such rule."""
    if least == 1:
        return np.ones(users, bool)
    return np.bincount(user, minlength=users) >= least
