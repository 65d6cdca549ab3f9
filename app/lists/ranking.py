"""Ranks the blocks of an offline run with the runtime that also serves; lives in an actor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from app.bundle.request.json_lines import read_line
from app.bundle.request.limits import Limits
from app.bundle.request.prepare import PreparedRequest
from app.bundle.request.requests import Answer, RankRequest
from app.bundle.request.seen import SeenItems
from app.bundle.runtime import Ranker
from app.errors import RequestError
from app.events import HistoryEvent
from app.lists.parts import SCHEMA, Parts
from app.stores.open import open_store

Json = dict[str, Any]
CANDIDATES = 10_000  # most candidates that a line of the input may list
STORED = 200  # newest stored events that are read for a user's history, of which a model sees fewer
_REQUESTS, _TOGETHER = 64, 16_384  # most requests, and candidates, that are scored in one go
_encode = msgspec.json.Encoder().encode_lines


class Rankings:
    """Callable with the number of a block: ranks it, writes its part and returns a report.

    Args:
        bundle: folder of a bundle that was verified.
        parts: of the run.
        k: length of a list.
        store: folder or URL of the stored feedback; empty: lists go without.

    Raises:
        MachineError: the store cannot be used.
    """

    def __init__(self, bundle: Path, parts: Parts, k: int, store: str) -> None:
        self.ranker = Ranker.open(bundle, verify=False, limits=Limits(max_candidates=CANDIDATES, max_k=k))
        self.parts = parts
        self.store = open_store(store) if store else None

    def __call__(self, number: int) -> Json:
        """The report: users and rows of the part, users or items unknown to training, faults."""
        report: Json = {"users": 0, "rows": 0, "cold_start": 0, "rejected": 0, "fault": ""}
        users: list[str] = []
        answers: list[Answer] = []
        for batch in self._batches(self.parts.block(number), report):
            users += [prepared.request.user for prepared in batch]
            answers += self.ranker.answer(batch)
        report["users"] = len(users)
        report["rows"] = sum(len(answer.items) for answer in answers)
        report["cold_start"] = sum(answer.cold_start for answer in answers)
        encode = _table if self.parts.suffix == ".parquet" else _json_lines
        self.parts.write(number, encode(users, answers), report)
        return report

    def _batches(self, block: Path, report: Json) -> Iterator[list[PreparedRequest]]:
        batch: list[PreparedRequest] = []
        candidates = 0
        for line in block.read_bytes().split(b"\n"):
            request = read_line(line)
            try:
                stored, seen = self._feedback(request.user)
                prepared = self.ranker.read(request, stored, seen=seen)
            except RequestError as error:
                report["rejected"] += 1
                report["fault"] = report["fault"] or f"user {request.user[:80]!r}: {error}"
                continue
            batch.append(prepared)
            candidates += len(request.items) if isinstance(request, RankRequest) else 0
            if len(batch) == _REQUESTS or candidates >= _TOGETHER:
                yield batch
                batch, candidates = [], 0
        if batch:
            yield batch

    def _feedback(self, user: str) -> tuple[list[HistoryEvent] | None, SeenItems | None]:
        """The user's newest stored events, and the items of all of them where there are more."""
        if self.store is None:
            return None, None
        limit = max(STORED, self.ranker.info.history)
        stored = self.store.recent(user, limit)
        if len(stored) < limit:
            return stored, None  # these are all
        seen = SeenItems()
        for items in self.store.seen(user):
            seen.add(items)
        return stored, seen


def _table(users: list[str], answers: list[Answer]) -> pa.Table:
    rows = [
        (user, rank, scored.item, scored.score)
        for user, answer in zip(users, answers, strict=True)
        for rank, scored in enumerate(answer.items, 1)
    ]
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def _json_lines(users: list[str], answers: list[Answer]) -> bytes:
    return _encode(
        [
            {"user": user, "rank": rank, "item": scored.item, "score": scored.score}
            for user, answer in zip(users, answers, strict=True)
            for rank, scored in enumerate(answer.items, 1)
        ]
    )
