"""What names of columns and files say: words that logs use for users, items, times, events and values."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# In the order of preference: of two names that mean the same the earlier is taken.
WORDS: dict[str, tuple[str, ...]] = {
    "user": (
        "user", "visitor", "customer", "reviewer", "member", "client", "account", "uid", "person", "profile",
        "buyer", "shopper", "subscriber", "viewer", "listener", "reader", "player", "patient", "student",
        "cookie", "device", "household", "cust",
    ),
    "session": ("session", "visit", "basket", "sid", "order", "invoice", "transaction", "cart", "playlist"),
    "item": (
        "item", "product", "asin", "sku", "stock", "article", "movie", "film", "track", "song", "artist",
        "album", "book", "isbn", "game", "business", "venue", "poi", "location", "place", "news", "video",
        "content", "listing", "hotel", "course", "app", "recipe", "restaurant", "show", "anime", "beer",
        "post", "story", "page", "merchant", "material", "offer", "ad", "iid", "prod", "tag",
    ),
    "time": (
        "timestamp", "datetime", "time", "date", "ts", "created", "when", "occurred", "unixtime", "at",
        "day",
    ),
    "order": ("timeframe", "time", "position", "sequence", "seq", "step", "index", "hour", "order", "rank"),
    "event": (
        "event", "action", "behavior", "behaviour", "interaction", "activity", "type", "kind", "feedback",
    ),
    "value": (
        "rating", "stars", "overall", "score", "quantity", "qty", "hours", "plays", "playcount", "playtime",
        "weight", "count", "duration", "minutes", "watched", "amount", "value", "listens", "freq", "units",
    ),
}  # fmt: skip
EVENT_WORDS = (
    "view", "click", "cart", "purchase", "buy", "order", "transaction", "like", "favorite", "favourite",
    "wish", "save", "share", "play", "listen", "rating", "review", "impression", "download", "install",
    "bookmark", "follow", "search", "return", "checkin", "read", "watch", "collect", "pv", "fav",
)  # fmt: skip
TITLES = ("title", "name", "headline", "label")
PICTURES = ("image", "img", "picture", "photo", "poster", "thumbnail", "cover")
_IDENTIFIER = ("id", "code", "key", "no", "number", "uuid", "guid", "hash", "sha1", "idx", "ref", "mboxsha1")
_DESCRIBES = (
    *TITLES, *PICTURES, "description", "text", "url", "link", "summary", "body", "author", "publisher",
    "category", "genre", "brand", "price", "country", "city", "age", "gender", "type", "email", "language",
)  # fmt: skip


def words(name: str) -> list[str]:
    """The words of a name in small letters: "unixReviewTime" gives unix, review and time."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name.replace("ID", "Id"))
    return [part.lower() for part in parts]


def likeness(name: str, role: str) -> int:
    """How much a column's name means a role: 0 not at all, more is more.

    A name that is the word itself, with "id" or the like, counts more than one that has it among others;
    of users, sessions and items a name that describes ("Game Name", "user age") is none.
    """
    parts = words(name)
    joined = "".join(parts)
    entity = role in ("user", "session", "item")
    if entity and any(part in _DESCRIBES for part in parts):
        return 0
    best = 0
    for rank, word in enumerate(WORDS[role]):
        preference = len(WORDS[role]) - rank
        spellings = {word, f"{word}s", *(word + end for end in _IDENTIFIER)}
        if joined in spellings or (word == "time" and joined.endswith("time")):
            best = max(best, 200 + preference)
        elif entity and word in parts and parts[-1] in _IDENTIFIER:
            best = max(best, 150 + preference)
        elif word in parts or (
            len(word) > 3 and joined.startswith(word) and joined[len(word) :] in _IDENTIFIER
        ):
            best = max(best, 100 + preference)
        elif not entity and len(word) > 3 and word in joined:
            best = max(best, 50 + preference)
    return best


def has_word(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether one of the words stands in a name, with or without a plural's s."""
    return any(part in wanted or part.removesuffix("s") in wanted for part in words(name))


def event_word(file: str) -> str:
    """The type of events that a file's name says: "add_to_cart_shop.dat" gives "cart"; "" where none."""
    stem = PurePosixPath(file).name.split(".")[0]
    for part in words(stem):
        for word in EVENT_WORDS:
            if part in (word, f"{word}s", f"{word}ed", f"{word}es"):
                return word
    return ""
