"""Ranks the blocks of an offline run with the runtime that also serves; lives in an actor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from app.bundle.request.json_lines import read_line
from app.bundle.request.limits import Limits
from app.bundle.request.requests import Answer, RankRequest
from app.bundle.runtime import PreparedRequest, Ranker
from app.errors import RequestError
from app.lists.parts import SCHEMA, Parts
from app.serving.feedback.user_events import LENGTH
from app.stores.open import open_store

Json = dict[str, Any]
CANDIDATES = 10_000  # of a user
_REQUESTS, _TOGETHER = 64, 16_384  # requests and candidates scored in one go
_encode = msgspec.json.Encoder().encode_lines


class Rankings:
    """Callable with the number of a block: ranks it, writes its part and tells of it.

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
            users += [question.request.user for question in batch]
            answers += self.ranker.answer(batch)
        report["users"] = len(users)
        report["rows"] = sum(len(answer.items) for answer in answers)
        report["cold_start"] = sum(answer.cold_start for answer in answers)
        make = _table if self.parts.suffix == ".parquet" else _json_lines
        self.parts.write(number, make(users, answers), report)
        return report

    def _batches(self, block: Path, report: Json) -> Iterator[list[PreparedRequest]]:
        batch: list[PreparedRequest] = []
        candidates = 0
        for line in block.read_bytes().split(b"\n"):
            request = read_line(line)
            try:
                stored = self.store.recent(request.user, LENGTH) if self.store else None
                question = self.ranker.read(request, stored)
            except RequestError as error:
                report["rejected"] += 1
                report["fault"] = report["fault"] or f"user {request.user[:80]!r}: {error}"
                continue
            batch.append(question)
            candidates += len(request.items) if isinstance(request, RankRequest) else 0
            if len(batch) == _REQUESTS or candidates >= _TOGETHER:
                yield batch
                batch, candidates = [], 0
        if batch:
            yield batch


def _table(users: list[str], answers: list[Answer]) -> pa.Table:
    rows = [
        (user, place, one.item, one.score)
        for user, answer in zip(users, answers, strict=True)
        for place, one in enumerate(answer.items, 1)
    ]
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def _json_lines(users: list[str], answers: list[Answer]) -> bytes:
    return _encode(
        [
            {"user": user, "rank": place, "item": one.item, "score": one.score}
            for user, answer in zip(users, answers, strict=True)
            for place, one in enumerate(answer.items, 1)
        ]
    )
