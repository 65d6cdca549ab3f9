"""The planted structure of the demo shop: what its users want next, as an exact distribution.

An item lies in a cell (category, price tier); within a cell popularity is Zipf. A user has
two tastes over categories, an early and a late one, and drifts from the first to the second
over the log; a preferred tier; and follows the previous item with one of the category that
complements it. No user meets an item twice. With c and s the category and tier of item i,

    taste_u(c, t) = (1 - E) ((1 - w_t) early_u(c) + w_t late_u(c)) + E / C
    P(i | u, t, previous) ∝ ((1 - F) taste_u(c, t) + F [c complements previous])
                            * tier_u(s) * share(i in its cell)          for items not met yet

where w grows with time, E is EXPLORE, and F is FOLLOW, or 0 for a user's first event.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
TIERS = 3
SLOTS = 64  # a taste is a multiset of so many categories: drawn by index, known exactly
FAVOURITES = (28, 14, 8)  # slots of a taste's best categories
FOLLOW = 0.35
EXPLORE = 0.05  # any category, so that nobody ever runs out of items
FAITHFUL = 0.8  # probability of the preferred tier
ZIPF = 1.0
SPAN = 180 * 86_400  # seconds that the log covers
DRIFT = (0.15, 0.65)  # shares of the span where the drift begins and ends
TRIES = 6


@dataclass(frozen=True)
class World:
    """I items sorted by cell, G tastes over C categories, U users; all numbered from 0."""

    item_category: Array  # (I,) int64
    item_tier: Array  # (I,) int64
    item_share: Array  # (I,) share of its cell
    item_price: Array  # (I,) list price in cents
    item_number: Array  # (I,) the number in the item's id: a permutation of 1..I
    taste: Array  # (G, SLOTS) categories
    complement: Array  # (C,) the category that follows each one
    user_early: Array  # (U,) taste at the beginning
    user_late: Array  # (U,) taste at the end
    user_tier: Array  # (U,) preferred tier

    @property
    def item_cell(self) -> Array:
        """(I,) category and tier in one number, ascending."""
        return self.item_category * TIERS + self.item_tier

    def save(self, folder: Path) -> None:
        """Write each array as NAME.npy."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> World:
        """Read the arrays that `save` wrote."""
        return cls(**{f.name: np.load(folder / f"{f.name}.npy", allow_pickle=False) for f in fields(cls)})

    def weights(self, users: Array, time: Array, previous: Array) -> Array:
        """Unnormalised probability (B, I) of every item as the next one.

        Args:
            users: (B,) users.
            time: (B,) seconds since the start of the log.
            previous: (B,) the user's item before; -1 for none.
        """
        count = len(self.complement)
        tastes = np.stack([np.bincount(row, minlength=count) for row in self.taste]) / SLOTS
        drift = drifted(time)[:, None]
        wanted = (1 - drift) * tastes[self.user_early[users]] + drift * tastes[self.user_late[users]]
        wanted = (1 - EXPLORE) * wanted + EXPLORE / count
        follows = np.where(previous >= 0, FOLLOW, 0.0)
        wanted *= 1 - follows[:, None]
        wanted[np.arange(len(users)), self.complement[self.item_category[previous]]] += follows
        tier = np.full((len(users), TIERS), (1 - FAITHFUL) / (TIERS - 1))
        tier[np.arange(len(users)), self.user_tier[users]] = FAITHFUL
        cells = (wanted[:, :, None] * tier[:, None, :]).reshape(len(users), count * TIERS)
        return np.asarray(cells[:, self.item_cell] * self.item_share)


def drifted(time: Array) -> Array:
    """How far tastes have moved from early (0) to late (1) at `time`, seconds since the start."""
    begin, end = DRIFT
    return np.clip((time / SPAN - begin) / (end - begin), 0.0, 1.0)


def build_world(users: int, items: int, seed: int) -> World:
    """A world of that size; the same seed gives the same one."""
    rng = np.random.default_rng([seed, 1])
    categories = max(2, min(round(math.sqrt(items)), items // (2 * TIERS)))
    cell = np.sort(np.arange(items) % (categories * TIERS))
    order = rng.permutation(categories)
    complement = np.empty(categories, np.int64)
    complement[order] = np.roll(order, -1)
    early, late = rng.choice(categories, (2, users), p=_zipf(categories))
    late = np.where(late == early, (late + 1) % categories, late)
    return World(
        item_category=cell // TIERS,
        item_tier=cell % TIERS,
        item_share=_cell_shares(rng, cell),
        item_price=_prices(rng, cell % TIERS),
        item_number=rng.permutation(items) + 1,
        taste=np.stack([_taste(rng, first, categories) for first in range(categories)]),
        complement=complement,
        user_early=early,
        user_late=late,
        user_tier=rng.permutation(users) % TIERS,
    )


def walk(world: World, users: Array, time: Array, lengths: Array, rng: np.random.Generator) -> Array:
    """Draw what each user meets, one step of all users at a time.

    Args:
        world: the structure to draw from.
        users: (B,) users, by falling number of events.
        time: (B, T) seconds since the start of the log.
        lengths: (B,) events of each user, falling, at most T.
        rng: the source of chance.

    Returns:
        (B, T) items; what lies beyond a user's length is undefined.
    """
    met = np.full(time.shape, -1, np.int32)
    bounds = world.item_cell + np.minimum(_cumulative(world), 1.0)
    for step in range(time.shape[1]):
        pending = np.arange(np.searchsorted(-lengths, -step, "left"))
        for _ in range(TRIES):
            before = met[pending, step - 1] if step else np.full(len(pending), -1)
            drawn = _draw(world, bounds, users[pending], time[pending, step], before, rng)
            new = (met[pending, :step] != drawn[:, None]).all(1)
            met[pending[new], step] = drawn[new]
            pending = pending[~new]
        for part in np.array_split(pending, len(pending) * len(bounds) // (1 << 22) + 1):
            met[part, step] = _draw_unmet(world, users[part], time[part, step], met[part, :step], rng)
    return met


def _draw(
    world: World, bounds: Array, users: Array, time: Array, previous: Array, rng: np.random.Generator
) -> Array:
    """One draw a row from the mixture; rows that meet an item again are drawn anew by the caller."""
    chance = rng.random((6, len(users)))
    taste = np.where(chance[0] < drifted(time), world.user_late[users], world.user_early[users])
    category = world.taste[taste, (chance[1] * SLOTS).astype(np.int64)]
    anywhere = chance[5] / EXPLORE * len(world.complement)
    category = np.where(chance[5] < EXPLORE, anywhere.astype(np.int64), category)
    follows = (chance[2] < FOLLOW) & (previous >= 0)
    category = np.where(follows, world.complement[world.item_category[previous]], category)
    # Below FAITHFUL: the preferred tier; the rest is shared evenly by the others.
    other = np.maximum(chance[3] - FAITHFUL, 0.0) / (1 - FAITHFUL) * (TIERS - 1)
    away = np.where(chance[3] < FAITHFUL, 0, 1 + np.minimum(other.astype(np.int64), TIERS - 2))
    cell = category * TIERS + (world.user_tier[users] + away) % TIERS
    item = np.searchsorted(bounds, cell + chance[4], "right")
    return np.asarray(np.minimum(item, len(bounds) - 1))


def _draw_unmet(world: World, users: Array, time: Array, met: Array, rng: np.random.Generator) -> Array:
    """The same distribution, written out over all items: for users who have met most of what they like."""
    previous = met[:, -1] if met.shape[1] else np.full(len(users), -1)
    weights = world.weights(users, time, previous)
    np.put_along_axis(weights, met.astype(np.int64), 0.0, 1)
    sums = np.cumsum(weights, 1)
    wanted = rng.random(len(users)) * sums[:, -1]
    return np.asarray((sums <= wanted[:, None]).sum(1))


def _cumulative(world: World) -> Array:
    """(I,) share of the cell up to and with each item; exactly 1 at the last of a cell."""
    cell, running = world.item_cell, np.cumsum(world.item_share)
    last = np.append(cell[1:] != cell[:-1], True)
    starts = np.concatenate([[0.0], running[last][:-1]])
    return np.where(last, 1.0, running - starts[np.cumsum(last) - last])


def _cell_shares(rng: np.random.Generator, cell: Array) -> Array:
    starts = np.searchsorted(cell, cell)
    weight = (np.arange(len(cell)) - starts + 1.0) ** -ZIPF * rng.uniform(0.8, 1.25, len(cell))
    return np.asarray(weight / np.bincount(cell, weight)[cell])


def _prices(rng: np.random.Generator, tier: Array) -> Array:
    """List prices in cents; a tier shows in the price. Bounds: see the outlier bounds in log."""
    low, high = np.array([1000, 1600, 2400]), np.array([1400, 2100, 3000])
    return rng.integers(low[tier], high[tier] + 1)


def _taste(rng: np.random.Generator, first: int, categories: int) -> Array:
    """Slots of one taste: its favourites, led by category `first`, and a sprinkle of others."""
    fame = _zipf(categories)
    fame[first] = 0
    others = rng.choice(categories, min(2, categories - 1), replace=False, p=fame / fame.sum())
    slots = np.repeat([first, *others], FAVOURITES[: 1 + len(others)])
    return np.concatenate([slots, rng.choice(categories, SLOTS - len(slots), p=_zipf(categories))])


def _zipf(kinds: int) -> Array:
    weight = np.arange(1, kinds + 1) ** -ZIPF
    return np.asarray(weight / weight.sum())
