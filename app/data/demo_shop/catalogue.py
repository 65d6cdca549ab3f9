"""The demo shop's catalogue and users, as files: attributes that tell something of the planted structure."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from app.data.demo_shop.world import World

COUNTRIES = ["DE", "FR", "GB", "ES", "IT", "NL", "PL", "SE"]
# fmt: off
NOUNS = [
    "lamp", "chair", "table", "mug", "plate", "bowl", "vase", "clock", "rug",
    "cushion", "blanket", "curtain", "bench", "basket", "candle", "mirror", "frame", "kettle",
    "teapot", "knife", "spoon", "pan", "tray", "jar", "bottle", "tin", "box",
    "bag", "purse", "belt", "scarf", "hat", "glove", "sock", "shoe", "boot",
    "coat", "shirt", "dress", "skirt", "ring", "watch", "bracelet", "necklace", "book",
    "pen", "card", "kite", "puzzle", "doll", "train", "ball", "drum",
]
# fmt: on
TIER_WORDS = [
    ["basic", "simple", "budget", "plain"],
    ["classic", "family", "everyday", "solid"],
    ["luxury", "handmade", "deluxe", "designer"],
]
COLOURS = ["red", "blue", "green", "white", "black", "cream", "silver", "café-brown"]


def write_items(path: Path, world: World, seed: int) -> None:
    """Attributes of the catalogue; one in fifty lacks its price, one in a hundred its category."""
    rng = np.random.default_rng([seed, 4])
    categories = [_category(number) for number in range(len(world.complement))]
    words = rng.integers(0, 4, len(world.item_tier))
    colours = rng.integers(0, len(COLOURS), len(world.item_tier))
    lacks = rng.random((2, len(world.item_tier))) < [[0.01], [0.02]]
    with path.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream, lineterminator="\n")
        out.writerow(["item_id", "category", "price", "title"])
        for row in np.argsort(world.item_number):
            name, category = f"i{world.item_number[row]:05d}", categories[world.item_category[row]]
            title = f"{TIER_WORDS[world.item_tier[row]][words[row]]} {category}, {COLOURS[colours[row]]}"
            shown = "" if lacks[0, row] else category
            price = "" if lacks[1, row] else f"{world.item_price[row] / 100:.2f}"
            out.writerow([name, shown, price, title.capitalize()])


def _category(number: int) -> str:
    """A noun for each of the first categories, then nouns with a series: lamp, chair ... lamp 2."""
    series, noun = divmod(number, len(NOUNS))
    return f"{NOUNS[noun]} {series + 1}" if series else NOUNS[noun]


def write_users(path: Path, world: World, seed: int) -> None:
    """Country leans on the late taste, age on the preferred tier; one in twenty gives no age."""
    rng = np.random.default_rng([seed, 5])
    count = len(world.user_tier)
    own = rng.random(count) < 0.6
    country = np.where(own, world.user_late, rng.integers(0, len(COUNTRIES), count)) % len(COUNTRIES)
    age = np.clip(rng.normal(22 + 18 * world.user_tier, 6), 16, 90).astype(np.int64)
    silent = rng.random(count) < 0.05
    with path.open("w", newline="", encoding="utf-8") as stream:
        stream.write("user_id,country,age\n")
        for row in range(count):
            stream.write(f"u{row + 1:06d},{COUNTRIES[country[row]]},{'' if silent[row] else age[row]}\n")
