"""Problem documents (RFC 9457): what was wrong and what to do, and never the input itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec

from app.errors import MachineError, RequestError

CONTENT_TYPE = "application/problem+json"
MAX_FINDINGS = 10
# Characters; together they keep a document of ten findings under 2 kB.
MAX_DETAIL, MAX_FINDING, MAX_FIELD = 300, 80, 40
_log = logging.getLogger("ray.serve")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?", re.DOTALL)


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong with one field."""

    field: str
    detail: str


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer that is an error; `line`, from 1, of a batch."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    request_id: str = ""
    errors: list[Finding] = []
    line: int = 0


class Problem(Exception):
    """A request that gets an error answer.

    Args:
        status: HTTP status, 4xx or 5xx.
        detail: what was wrong and what to do, without the input.
        findings: per field; the first ten are sent.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        findings: Sequence[Finding] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.findings = status, detail, findings
        self.headers = dict(headers or {})

    def document(self, request_id: str = "", line: int = 0) -> bytes:
        """The body, JSON of less than 2 kB."""
        shown = [Finding(f.field[:MAX_FIELD], f.detail[:MAX_FINDING]) for f in self.findings[:MAX_FINDINGS]]
        return msgspec.json.encode(
            ProblemDocument(
                title=HTTPStatus(self.status).phrase,
                status=self.status,
                detail=self.detail[:MAX_DETAIL],
                request_id=request_id,
                errors=shown,
                line=line,
            )
        )


def from_decoding(error: Exception) -> Problem:
    """The problem of a body that does not decode.

    Args:
        error: what msgspec raised: ValidationError for JSON of another shape (422), else 400.
    """
    if not isinstance(error, msgspec.ValidationError):
        return Problem(
            400,
            "the body is not JSON: check for NaN, for text that is cut off or not UTF-8 (a lone surrogate"
            " is not), and for a missing quote or bracket",
        )
    match = _MESSAGE.fullmatch(str(error))
    what, field = (match["what"], match["field"] or "") if match else ("is not as documented", "")
    named = re.search(r" field `(.*)`$", what, re.DOTALL)
    if named:
        kind = "unknown field" if "unknown" in what else "required field is missing"
        # The name of an unknown field is the caller's text: shown only where it is a plain word.
        name = named[1] if _WORD.fullmatch(named[1]) else ""
        finding = Finding(".".join(part for part in (field, name) if part), kind)
    else:
        finding = Finding(field, what)
    return Problem(422, "a field is not as documented at /docs", findings=[finding])


def from_ranker(error: RequestError) -> Problem:
    """The problem of a well-formed request that the ranker cannot answer."""
    text = f"{error.what}; {error.remedy}" if error.remedy else error.what
    if not error.where:
        return Problem(422, text)
    return Problem(422, f"{error.where}: {text}", findings=[Finding(error.where, text)])


def from_error(error: Exception, request_id: str) -> Problem:
    """The problem of whatever went wrong with a request; a fault of ours is logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestError):
        return from_ranker(error)
    if isinstance(error, msgspec.DecodeError | UnicodeDecodeError | RecursionError):
        return from_decoding(error)
    _log.error("request %s failed", request_id, exc_info=error)
    if isinstance(error, MachineError):  # the store: its disk is full, say
        return Problem(503, "the service cannot store or read feedback now; see its log")
    return Problem(500, "the service failed; see its log under the request id")
