"""The demo shop: a seeded event log of any size whose truth is known.

`generate` writes events.csv, items.csv, users.csv, recipe.toml, truth.json and truth/*.npy.
The structure is in world, the log and its dirt in log, and what is known in the end
in truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.data.demo_shop.catalogue import write_items, write_users
from app.data.demo_shop.log import EVENT, HEADER, MIN_EVENTS, Bins, LogWriter, planted
from app.data.demo_shop.recipe import RECIPE
from app.data.demo_shop.truth import Truth, attainable
from app.data.demo_shop.world import SPAN, World, build_world, walk
from app.errors import DataError, disk_errors
from app.terminal.console import Progress, progress

__all__ = ["Truth", "attainable", "generate"]

Array = npt.NDArray[Any]
BLOCK = 1 << 14  # users that walk at a time
LARGEST = 0.8  # of all items, that a user meets at most


def generate(
    out: Path, *, users: int = 2000, items: int = 500, events: int = 100_000, seed: int = 42
) -> Truth:
    """Write a shop into the folder `out`; the same arguments give the same bytes.

    Args:
        out: folder, made if absent; files of an earlier shop are replaced.
        users: users with at least MIN_EVENTS clean events.
        items: items of the catalogue, at least 12.
        events: rows of events.csv, dirt included; its header not counted.
        seed: of everything drawn.

    Raises:
        DataError: sizes at odds (too few or too many events for so many users and items), or
            `out` is a file.
        MachineError: the disk is full or not writable.
    """
    dirt = planted(events)
    clean = events - sum(dirt.values())
    _check_sizes(users, items, clean)
    if out.exists() and not out.is_dir():
        raise DataError("exists and is no folder", where=str(out), remedy="choose another output folder")
    world = build_world(users, items, seed)
    rejected = {reason: count for reason, count in dirt.items() if count}
    truth = Truth(users, items, seed, rows_in=events, rows_kept=clean, rejected=rejected)
    with disk_errors(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        (out / "truth.json").unlink(missing_ok=True)  # written last: a shop with a truth is whole
        world.save(out / "truth")
        write_items(out / "items.csv", world, seed)
        write_users(out / "users.csv", world, seed)
        with progress("generate", events) as bar:
            _write_events(out, world, dirt, clean, seed, bar)
        (out / "recipe.toml").write_text(RECIPE.format(seed=seed))
        truth.save(out)
    return truth


def _check_sizes(users: int, items: int, clean: int) -> None:
    least, most = MIN_EVENTS * users, users * int(LARGEST * items)
    if users < 1 or items < 12:
        raise DataError(
            f"a shop of {users} users and {items} items", where="demo shop", remedy="1 and 12 at least"
        )
    if not least <= clean <= most:
        raise DataError(
            f"{clean} clean events for {users} users and {items} items",
            where="demo shop",
            remedy=f"ask for events such that {least} to {most} are clean (about 97 %)",
        )


def _write_events(
    out: Path, world: World, dirt: dict[str, int], clean: int, seed: int, bar: Progress
) -> None:
    rng = np.random.default_rng([seed, 2])
    users = len(world.user_tier)
    lengths = _lengths(rng, users, clean, int(LARGEST * len(world.item_tier)))
    bins = Bins(out, clean)
    for path in bins.paths:
        path.unlink(missing_ok=True)
    for events in _walks(out / "truth", world, lengths, seed):
        bins.add(events)
        bar.advance(len(events) // 2)
    writer = LogWriter(users, world.item_number, dirt, clean, rng)
    with (out / "events.csv").open("wb") as stream:
        stream.write((",".join(HEADER) + "\n").encode())
        for events in bins.drain():
            writer.write(stream, events)
            bar.advance(len(events) // 2)


def _lengths(rng: np.random.Generator, users: int, total: int, most: int) -> Array:
    """(U,) events of each user: log-normal, between MIN_EVENTS and `most`, `total` in all."""
    weight = rng.lognormal(0.0, 0.5, users)
    lengths = np.clip((weight / weight.sum() * total).astype(np.int64), MIN_EVENTS, most)
    while missing := total - int(lengths.sum()):
        open_ = np.flatnonzero(lengths < most if missing > 0 else lengths > MIN_EVENTS)
        lengths[rng.permutation(open_)[: abs(missing)]] += 1 if missing > 0 else -1
    return np.asarray(lengths)


def _walks(folder: Path, world: World, lengths: Array, seed: int) -> Iterator[Array]:
    """Clean events of blocks of users, dtype EVENT; leaves the walks themselves in `folder`."""
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    np.save(folder / "indptr.npy", indptr)
    kept = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int32, (int(indptr[-1]),))
        for name in ("item", "time")
    }
    for start in range(0, len(lengths), BLOCK):
        rng = np.random.default_rng([seed, 3, start])
        events = _block(world, np.arange(start, min(start + BLOCK, len(lengths))), lengths, rng)
        for name, column in kept.items():
            column[indptr[start] : indptr[start] + len(events)] = events[name]
        yield events
    for column in kept.values():
        column.flush()


def _block(world: World, users: Array, lengths: Array, rng: np.random.Generator) -> Array:
    """Clean events of `users`, sorted by user and time."""
    users = users[np.argsort(-lengths[users], kind="stable")]
    length = lengths[users]
    time = _moments(rng, length)
    item = walk(world, users, time, length, rng)
    present = np.arange(time.shape[1]) < length[:, None]
    events = np.zeros(int(length.sum()), EVENT)
    events["user"], events["time"], events["item"] = np.repeat(users, length), time[present], item[present]
    _dress(world, events, rng)
    return events[np.argsort(events["user"], kind="stable")]


def _moments(rng: np.random.Generator, length: Array) -> Array:
    """(B, T) seconds, rising strictly along a row: uniform order statistics within a user's own stay."""
    gaps = rng.standard_exponential((len(length), int(length[0]) + 1))
    gaps[np.arange(gaps.shape[1]) > length[:, None]] = 0
    running = np.cumsum(gaps, 1)
    share = running[:, :-1] / running[:, -1:]
    begin, end = rng.uniform(0, 0.2, len(length)) * SPAN, rng.uniform(0.8, 1, len(length)) * SPAN
    room = end - begin - length
    step = np.arange(share.shape[1])
    return np.asarray((begin[:, None] + share * room[:, None]).astype(np.int64) + step)


def _dress(world: World, events: Array, rng: np.random.Generator) -> None:
    """Event type, quantity and price, which tell how well the item suits the user's tier."""
    chance = rng.random((3, len(events)))
    suits = world.item_tier[events["item"]] == world.user_tier[events["user"]]
    events["type"] = (chance[0] > np.where(suits, 0.6, 0.85)).astype(np.uint8) + (chance[0] > 0.92)
    events["quantity"] = 1 + (chance[1] > 0.8) + (chance[1] > 0.95)
    list_price = world.item_price[events["item"]]
    events["cents"] = np.rint(list_price * (1 - chance[2] / 2))
