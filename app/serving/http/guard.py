"""What every request must keep to: content type, body limit, key; and errors as problem documents."""

from __future__ import annotations

import asyncio
import hmac
from hashlib import sha256
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from app.serving.http.calls import JSON
from app.serving.http.problems import CONTENT_TYPE, Finding, Problem

BODY_S = 10.0  # for a body to arrive
UNREAD = frozenset((401, 404, 405, 408, 413, 415))  # statuses of a request whose body was not read to its end


def key_digest(key: str) -> bytes:
    """The digest of a key, which replicas are given; the key itself stays with the driver."""
    return sha256(key.encode()).digest()


def media_of(request: Request) -> str:
    """The media type of a request's body, in lower case and without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_content(request: Request) -> None:
    """Refuse (415) a body that does not say it is plain JSON."""
    if media_of(request) != JSON or "content-encoding" in request.headers:
        raise Problem(415, "send plain JSON with the header Content-Type: application/json")


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused (413) once it is known to be longer than `limit` bytes, and (408) when late."""
    too_long = Problem(413, f"the body may have at most {limit} bytes; split the request")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_long
    parts, length = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                length += len(part)
                if length > limit:
                    raise too_long
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "the body took too long to arrive; send it at once") from None
    return b"".join(parts)


def key_holds(authorization: bytes, x_api_key: bytes, digest: bytes) -> bool:
    """Whether one of the headers carries the key of `digest`; takes the same time whatever it is."""
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() != b"bearer":
        given = x_api_key
    return hmac.compare_digest(sha256(given.strip()).digest(), digest)


def check_key(request: Request, digest: bytes) -> None:
    """Refuse (401) a request without the key of `digest`."""
    authorization, given = (
        request.headers.get(name, "").encode("latin-1") for name in ("authorization", "x-api-key")
    )
    if not key_holds(authorization, given, digest):
        raise Problem(
            401,
            "this service needs its API key: send Authorization: Bearer KEY or X-API-Key: KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )


def path_id(request: Request, prefix: str) -> str:
    """The id behind a prefix of the path, as it was sent: it may hold "/" or "?".

    Raises:
        Problem: (422) it is not UTF-8, (404) the prefix is written in another way.
    """
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    parts = raw.decode("ascii").split("/", prefix.count("/"))
    if len(parts) <= prefix.count("/"):
        raise Problem(404, "no such path; /docs lists all calls")
    try:
        return unquote(parts[-1], errors="strict")
    except UnicodeDecodeError:
        text = "not UTF-8; percent-encode the UTF-8 bytes of the id"
        raise Problem(422, f"id: {text}", findings=[Finding("id", text)]) from None


def request_id(request: Request) -> str:
    """The request's id, cut to 64 characters."""
    # Serve makes one where the caller sends none, and puts it into the answer's headers.
    return request.headers.get("x-request-id", "")[:64]


def response_of(problem: Problem, request: Request) -> Response:
    """A problem as an answer to the request."""
    headers = problem.headers
    body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if body and problem.status in UNREAD:
        # A sender without end goes on until the connection is closed.
        headers = {**headers, "Connection": "close"}
    return Response(problem.document(request_id(request)), problem.status, headers, media_type=CONTENT_TYPE)
