"""A call from its body to its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from app.serving.http.calls import JSON
from app.serving.http.problems import CONTENT_TYPE, from_error
from app.serving.http.protocol import Reply
from app.serving.versions.traffic_split import Variant

_encode = msgspec.json.Encoder().encode
_HEADERS = {"content-type": JSON}
_PROBLEM_HEADERS = {"content-type": CONTENT_TYPE}


class Call:
    """One call that waits for its answer, and gets exactly one: the first.

    Args:
        path: of the call.
        request_id: named by problem documents and the log.
        reply: where the answer goes.
        on_answer: called once, with the call and the status, before the answer goes out.
        body: of the call; empty: no other call is equal to it.
    """

    __slots__ = ("_on_answer", "_reply", "answered", "body", "path", "request_id", "started", "variant")

    def __init__(
        self,
        path: str,
        request_id: str,
        reply: Reply,
        on_answer: Callable[[Call, int], None],
        body: bytes = b"",
    ) -> None:
        self.path, self.request_id, self.started, self.body = path, request_id, time.perf_counter(), body
        self._reply, self._on_answer = reply, on_answer
        self.variant: Variant | None = None  # that the user is assigned to
        self.answered = False

    def answer(self, content: Any, status: int = 200) -> None:
        """Answer with a structure, as JSON."""
        self.answer_json(_encode(content), status)

    def answer_json(self, content: bytes, status: int = 200) -> None:
        """Answer with JSON as it is."""
        self._send(status, content, _HEADERS)

    def fail(self, error: Exception) -> None:
        """Answer with the problem document of an error; nothing where the call is answered."""
        if not self.answered:
            problem = from_error(error, self.request_id)
            headers = {**problem.headers, **_PROBLEM_HEADERS}
            self._send(problem.status, problem.document(self.request_id), headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        if self.answered:
            return
        self.answered = True
        try:
            self._on_answer(self, status)
        finally:
            self._reply(status, content, headers)
