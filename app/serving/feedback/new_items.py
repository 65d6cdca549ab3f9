"""Items that come or change while the service runs: PUT /v1/items/{id}, and every replica knows them.

The columns of an item go to the store; before each batch a replica looks there, as it does for
events, so that it knows what was acknowledged before, by whichever replica. A version that is
loaded later is given the items that its training did not know. The columns of an item that a
version knows hold for the versions that were served when they were put: a newer one brings
columns of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request

from app.bundle.request.requests import ItemAnswer, ItemRequest
from app.bundle.runtime import Ranker
from app.serving.http.guard import check_content, path_id, read_body
from app.serving.http.problems import Problem
from app.stores.base import ItemRecord, Store

PREFIX = "/v1/items/"
_log = logging.getLogger("ray.serve")
Stored = list[tuple[str, bytes]]  # ids of items and their records as JSON


class ItemChanges(NamedTuple):
    """Items that were put since the last look: for all rankers, and for those opened since."""

    mark: Any
    items: Stored
    opened: list[tuple[Ranker, Stored]]


class StoredItems:
    """Gives the rankers of a replica the items of the store.

    Args:
        store: of the items.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._mark: Any = None
        self._rankers: weakref.WeakSet[Ranker] = weakref.WeakSet()
        self._opened: deque[tuple[Ranker, Any]] = (
            deque()
        )  # since the last look, and up to which mark they know
        self._decode = msgspec.json.Decoder(ItemRecord).decode

    def introduce(self, ranker: Ranker) -> None:
        """Give a ranker that nobody uses yet all items; from then on `apply` does. Any thread."""
        mark = None
        try:
            mark, items = self.store.items(None)
            self._put(ranker, items)
        except Exception as error:  # it gets them once the store answers again
            _log.error("a version starts without new items", exc_info=error)
        self._opened.append((ranker, mark))

    def changes(self) -> ItemChanges:
        """What is new in the store, after it was asked for changes; in any thread, one at a time.

        Raises:
            MachineError: the store does not answer.
        """
        opened = [(ranker, self.store.items(mark)[1]) for ranker, mark in tuple(self._opened)]
        mark, items = self.store.items(self._mark)
        return ItemChanges(mark, items, opened)

    def refresh(self) -> None:
        """Give the rankers what is new, where the store did not change since it was asked for changes.

        That is what a ranker needs that was opened meanwhile; else it costs next to nothing. On the event
        loop, for a store on this machine.
        """
        if self._opened or self._mark is None:
            self.apply(self.changes())

    def apply(self, changes: ItemChanges) -> None:
        """Give all rankers what is new; on the event loop, in the order of the changes."""
        for ranker, items in changes.opened:
            self._put(ranker, items)
            self._rankers.add(ranker)
            self._opened.popleft()
        self._mark = changes.mark
        if changes.items:
            for ranker in self._rankers:
                self._put(ranker, changes.items)

    def versions(self, item: str) -> list[str]:
        """Digests of the bundles here whose training knew an item."""
        rankers = (*self._rankers, *(ranker for ranker, _ in tuple(self._opened)))
        return [ranker.artifact.digest for ranker in rankers if ranker.trained_on(item)]

    def _put(self, ranker: Ranker, items: Stored) -> None:
        """Give a ranker those items that concern it; one that cannot be used keeps back no other."""
        records: dict[str, ItemRecord] = {}
        for item, content in items:
            try:
                record = self._decode(content)
            except msgspec.MsgspecError as error:
                _log.error("the record of item %.80r is damaged and left aside: %s", item, error)
                continue
            if not ranker.trained_on(item) or ranker.artifact.digest in record.versions:
                records[item] = record
        try:
            self._put_records(ranker, records)
        except Exception:
            for item, record in records.items():
                try:
                    self._put_records(ranker, {item: record})
                except Exception as error:
                    _log.error("item %.80r cannot be used and is left aside", item, exc_info=error)

    def _put_records(self, ranker: Ranker, records: dict[str, ItemRecord]) -> None:
        columns = {item: record.columns for item, record in records.items()}
        times = {item: record.time for item, record in records.items()}
        if records and (left := ranker.put_items(columns, times)):
            _log.error("%s new items are not known to %s: raise serve.max_new_items", left, ranker.version)


async def put(request: Request, items: StoredItems, ranker: Ranker, limit: int) -> ItemAnswer:
    """Store the columns of an item.

    Args:
        request: PUT /v1/items/{id}.
        items: of the replica.
        ranker: knows what the item is ranked by, and which columns there are.
        limit: bytes of a body.

    Raises:
        Problem, RequestError, msgspec.DecodeError: it cannot be used.
        MachineError: it cannot be stored.
    """
    name = path_id(request, PREFIX)
    check_content(request)
    columns = msgspec.json.decode(await read_body(request, limit), type=ItemRequest).columns
    await asyncio.to_thread(ranker.check_item, name, columns)
    if not ranker.has_room_for(name):
        raise Problem(507, "no room for another new item: train again, or raise serve.max_new_items")
    record = msgspec.json.encode(ItemRecord(columns, items.versions(name), time.time()))
    await asyncio.to_thread(items.store.put_item, name, record)
    return ItemAnswer(name, ranker.basis_of(name))
