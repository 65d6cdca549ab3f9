"""Items that come or change while the service runs: PUT /v1/items/{id}, and every replica knows them.

What is said of an item goes to the store; before each batch a replica looks there, as it does
for events, so that it knows what was acknowledged before, by whichever replica. A version that
is loaded later is told of the items that its training did not know. What was said of an item
that a version knows holds for the versions that were served when it was said: a newer one
brings columns of its own.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.requests import Request

from app.bundle.request.requests import ItemAnswer, ItemRequest
from app.bundle.runtime import Ranker
from app.errors import MachineError, RequestError
from app.events import Value
from app.serving.http.guard import check_content, read_body
from app.serving.http.problems import Problem
from app.stores.base import Store

PREFIX = "/v1/items/"
_log = logging.getLogger("ray.serve")


class Said(msgspec.Struct, frozen=True):
    """What the store keeps of an item: its columns, and the digests of the bundles that knew it then."""

    columns: dict[str, Value]
    versions: list[str] = []


class StoredItems:
    """Tells the rankers of a replica what the store says of items.

    Args:
        store: keeps what is said.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._mark: Any = None
        self._rankers: weakref.WeakSet[Ranker] = weakref.WeakSet()
        self._behind: deque[tuple[Ranker, Any]] = deque()  # opened since the last look
        self._decode = msgspec.json.Decoder(Said).decode

    def introduce(self, ranker: Ranker) -> None:
        """Tell a ranker that nobody uses yet of all items; from then on `refresh` does. Any thread."""
        mark = None
        try:
            mark, items = self.store.items(None)
            self._put(ranker, items)
        except MachineError as error:  # told once the store answers again
            _log.error("a version starts without new items: %s", error)
        self._behind.append((ranker, mark))

    def refresh(self) -> None:
        """Tell all rankers what is new; on the event loop, after the store was asked for changes.

        Raises:
            MachineError: the store does not answer.
        """
        while self._behind:
            ranker, mark = self._behind[0]
            self._put(ranker, self.store.items(mark)[1])
            self._rankers.add(ranker)
            self._behind.popleft()
        self._mark, items = self.store.items(self._mark)
        if items:
            for ranker in self._rankers:
                self._put(ranker, items)

    def versions(self, item: str) -> list[str]:
        """Digests of the bundles here whose training knew an item."""
        rankers = (*self._rankers, *(ranker for ranker, _ in tuple(self._behind)))
        return [ranker.artifact.digest for ranker in rankers if ranker.trained_on(item)]

    def _put(self, ranker: Ranker, items: list[tuple[str, bytes]]) -> None:
        told = {}
        for name, content in items:
            said = self._decode(content)
            if not ranker.trained_on(name) or ranker.artifact.digest in said.versions:
                told[name] = said.columns
        if told and (left := ranker.put_items(told)):
            _log.error("%s new items are not known to %s: raise serve.max_new_items", left, ranker.version)


async def put(request: Request, items: StoredItems, ranker: Ranker, limit: int) -> ItemAnswer:
    """Store what a request says of an item.

    Args:
        request: PUT /v1/items/{id}.
        items: of the replica.
        ranker: that says what the item is ranked by, and which columns there are.
        limit: bytes of a body.

    Raises:
        Problem, RequestError, msgspec.DecodeError: it cannot be used.
        MachineError: it cannot be stored.
    """
    name = _id(request)
    check_content(request)
    columns = msgspec.json.decode(await read_body(request, limit), type=ItemRequest).columns
    await asyncio.to_thread(ranker.check_item, name, columns)
    if not ranker.has_room_for(name):
        raise Problem(507, "no room for another new item: train again, or raise serve.max_new_items")
    said = msgspec.json.encode(Said(columns, items.versions(name)))
    await asyncio.to_thread(items.store.put_item, name, said)
    return ItemAnswer(name, ranker.basis_of(name))


def _id(request: Request) -> str:
    # As it was sent, because an id may hold "/" or "?".
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    try:
        return unquote(raw.decode("ascii")[len(PREFIX) :], errors="strict")
    except UnicodeDecodeError:
        raise RequestError(
            "not UTF-8", where="item", remedy="percent-encode the UTF-8 bytes of the id"
        ) from None
