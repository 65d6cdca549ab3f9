"""HTTP client of the service, sync and async.

    with Client("http://127.0.0.1:8000") as client:
        client.rank(RankRequest(user="1", items=["a", "b"])).items

Each call is written once, as a generator that yields what is to be done (send a request, or
wait) and receives the outcome; the two clients differ only in how it is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from app.bundle.request.requests import (
    Answer,
    FeedbackRequest,
    ItemAnswer,
    ItemList,
    ItemQuery,
    ItemRequest,
    KnownItem,
    KnownUser,
    ListQuery,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
    UserQuery,
)
from app.errors import MachineError, RayRecError, RequestError
from app.events import Event, Value
from app.serving.http import calls
from app.serving.http.calls import Endpoint
from app.serving.http.problems import ProblemDocument

RETRIES = 3  # after a 429
# Lines sent at a time, in bytes: so few that the service takes them in before its answers are read.
BATCH_BYTES = 1 << 16
LONGEST_WAIT_S = 10.0

T = TypeVar("T")
P = ParamSpec("P")
Steps = Generator[httpx.Request | float, httpx.Response | None, T]
Ranked = Answer | RayRecError


def _call(base: _Base, endpoint: Endpoint[T], body: Any = None, /, **ids: str) -> Steps[T]:
    """Make any call of the table app.serving.http.calls.

    Args:
        endpoint: the row of the call.
        body: as the row says, of its body or query; None: there is none.
        ids: the texts that its path names in braces, where they are not in the query.
    """
    if not isinstance(body, endpoint.body or endpoint.query or type(None)):
        raise RequestError(
            f"{type(body).__name__} is not the body of {endpoint.path}",
            where="body",
            remedy="see app.serving.http.calls",
        )
    if endpoint.query is not None:
        response = yield from _send(base, endpoint, None, msgspec.to_builtins(body))
    else:
        content = None if body is None else msgspec.json.encode(body)
        response = yield from _send(base, endpoint, content, ids)
    try:
        return msgspec.json.decode(response.content, type=endpoint.answer)
    except msgspec.DecodeError as error:
        raise _foreign(response, error) from error


def _send(
    base: _Base, endpoint: Endpoint[Any], content: bytes | None, values: Mapping[str, Any]
) -> Steps[httpx.Response]:
    """Send a call whose path names some of `values`; the others are query parameters."""
    headers = {} if content is None else {"Content-Type": endpoint.media}
    in_path = {name: value for name, value in values.items() if f"{{{name}}}" in endpoint.path}
    path = endpoint.path.format(**{name: quote(str(value), safe="") for name, value in in_path.items()})
    # An empty list is sent as an empty text; None is left to the service.
    query = {n: v or "" if isinstance(v, list) else v for n, v in values.items() if v is not None}
    parameters = {name: value for name, value in query.items() if name not in in_path}
    attempts = 0
    while True:
        attempts += 1
        response = yield base.http.build_request(
            endpoint.method, path, content=content, headers=headers, params=parameters or None
        )
        assert response is not None  # to a request, the answer
        if response.status_code != 429 or attempts > RETRIES:
            break
        yield _wait(response)
    if not response.is_success:
        raise _error(response)
    return response


def _rank(base: _Base, request: RankRequest) -> Steps[Answer]:
    """Score the request's items, best first."""
    return (yield from _call(base, calls.RANK, request))


def _recommend(base: _Base, request: RecommendRequest) -> Steps[Answer]:
    """The best k items for a user."""
    return (yield from _call(base, calls.RECOMMEND, request))


def _similar(base: _Base, request: SimilarRequest) -> Steps[Answer]:
    """The nearest k items to an item."""
    return (yield from _call(base, calls.SIMILAR, request))


def _feedback(base: _Base, events: Sequence[Event]) -> Steps[int]:
    """Store events; returns how many, once they are durable."""
    accepted = yield from _call(base, calls.FEEDBACK, FeedbackRequest(list(events)))
    return accepted.accepted


def _item(base: _Base, item: str | int) -> Steps[KnownItem]:
    """What the service knows of an item, with its columns; a RequestError (404) where it knows nothing."""
    return (yield from _call(base, calls.ITEM, ItemQuery(str(item))))


def _user(base: _Base, user: str | int) -> Steps[KnownUser]:
    """What the service knows of a user, with the last 50 events; a RequestError (404) as for `item`."""
    return (yield from _call(base, calls.USER, UserQuery(str(user))))


def _popular(base: _Base, k: int = 10, columns: Sequence[str] | None = None) -> Steps[ItemList]:
    """The k items with the most events; `columns` None: those that the service shows."""
    return (yield from _call(base, calls.POPULAR, ListQuery(k, None if columns is None else list(columns))))


def _latest(base: _Base, k: int = 10, columns: Sequence[str] | None = None) -> Steps[ItemList]:
    """The k items that came last; `columns` as for `popular`."""
    return (yield from _call(base, calls.LATEST, ListQuery(k, None if columns is None else list(columns))))


def _put_item(base: _Base, item: str | int, /, **columns: Value) -> Steps[ItemAnswer]:
    """Say all that is known of an item, new or changed; the next ranking knows it.

    A client for this call needs the service's RAYREC_ADMIN_KEY, if it has one.
    """
    return (yield from _call(base, calls.PUT_ITEM, ItemRequest(columns), id=str(item)))


def _ready(base: _Base) -> Steps[dict[str, Any]]:
    """Which model is served, once it is loaded: `ready`, `model` and `version`."""
    return msgspec.structs.asdict((yield from _call(base, calls.READY)))


def _batch(base: _Base, lines: Sequence[bytes]) -> Steps[list[Ranked]]:
    """Answers to some lines of a batch, or their errors."""
    response = yield from _send(base, calls.BATCH_RANK, b"\n".join(lines), {})
    answers = response.content.splitlines()
    if len(answers) != len(lines):
        raise MachineError(
            f"{len(lines)} lines were sent and {len(answers)} answered",
            where=str(response.url),
            remedy="send them again; see the log of the service",
        )
    return [_line(line, response) for line in answers]


def _line(line: bytes, response: httpx.Response) -> Ranked:
    try:
        return msgspec.json.decode(line, type=Answer)
    except msgspec.DecodeError:
        pass
    try:
        return _problem(msgspec.json.decode(line, type=ProblemDocument), str(response.url))
    except msgspec.DecodeError as error:
        raise _foreign(response, error) from error


def _portions(requests: Iterable[RankRequest | RecommendRequest]) -> Iterator[list[bytes]]:
    """Lines of about BATCH_BYTES together; a longer one alone."""
    lines: list[bytes] = []
    length = 0
    for request in requests:
        line = msgspec.json.encode(request)
        if lines and length + len(line) >= BATCH_BYTES:
            yield lines
            lines, length = [], 0
        lines.append(line)
        length += len(line) + 1
    if lines:
        yield lines


class _Base:
    http: httpx.Client | httpx.AsyncClient


class Client(_Base):
    """Calls the service and waits for its answers.

    Args:
        base_url: as `rayrec serve` prints it.
        api_key: the service's RAYREC_API_KEY, if it has one.
        timeout_s: longest wait for an answer, in seconds.
        transport: of httpx, for tests.

    Raises (every call):
        RequestError: the service refused the request (4xx); the text says why.
        MachineError: it cannot be reached, or failed (5xx).
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.http: httpx.Client = httpx.Client(
            base_url=base_url, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )

    def run(self, steps: Steps[T]) -> T:
        """Do what the steps ask for, one after the other."""
        outcome: httpx.Response | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, httpx.Request):
                try:
                    outcome = self.http.send(step)
                except httpx.TransportError as error:
                    raise _unreachable(step, error) from error
            else:
                time.sleep(step)
                outcome = None

    def batch_rank(self, requests: Iterable[RankRequest | RecommendRequest]) -> Iterator[Ranked]:
        """Answers in the order of the requests, of which there may be any number.

        A request that cannot be answered gets its error instead. Requests are taken, sent
        and answered some at a time.
        """
        for lines in _portions(requests):
            yield from self.run(_batch(self, lines))

    def close(self) -> None:
        """Release the connections to the service."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _waiting(plan: Callable[Concatenate[_Base, P], Steps[T]]) -> Callable[Concatenate[Client, P], T]:
        def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(plan(self, *args, **kwargs))

        call.__doc__ = plan.__doc__
        return call

    rank = _waiting(_rank)
    recommend = _waiting(_recommend)
    similar = _waiting(_similar)
    feedback = _waiting(_feedback)
    item = _waiting(_item)
    user = _waiting(_user)
    popular = _waiting(_popular)
    latest = _waiting(_latest)
    put_item = _waiting(_put_item)
    ready = _waiting(_ready)
    call = _waiting(_call)


class AsyncClient(_Base):
    """Calls the service as Client does, for asyncio."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.http: httpx.AsyncClient = httpx.AsyncClient(
            base_url=base_url, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )

    async def run(self, steps: Steps[T]) -> T:
        """Do what the steps ask for, one after the other."""
        outcome: httpx.Response | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, httpx.Request):
                try:
                    outcome = await self.http.send(step)
                except httpx.TransportError as error:
                    raise _unreachable(step, error) from error
            else:
                await asyncio.sleep(step)
                outcome = None

    async def batch_rank(self, requests: Iterable[RankRequest | RecommendRequest]) -> AsyncIterator[Ranked]:
        """Answers in the order of the requests; see Client.batch_rank."""
        for lines in _portions(requests):
            for answer in await self.run(_batch(self, lines)):
                yield answer

    async def close(self) -> None:
        """Release the connections to the service."""
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @staticmethod
    def _awaited(
        plan: Callable[Concatenate[_Base, P], Steps[T]],
    ) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
        async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return await self.run(plan(self, *args, **kwargs))

        call.__doc__ = plan.__doc__
        return call

    rank = _awaited(_rank)
    recommend = _awaited(_recommend)
    similar = _awaited(_similar)
    feedback = _awaited(_feedback)
    item = _awaited(_item)
    user = _awaited(_user)
    popular = _awaited(_popular)
    latest = _awaited(_latest)
    put_item = _awaited(_put_item)
    ready = _awaited(_ready)
    call = _awaited(_call)


def _headers(api_key: str | None) -> dict[str, str]:
    return {"X-API-Key": api_key} if api_key else {}


def _wait(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers.get("Retry-After", 1)), 0.0), LONGEST_WAIT_S)
    except ValueError:  # a date: not what our service sends
        return 1.0


def _unreachable(request: httpx.Request, error: httpx.TransportError) -> MachineError:
    return MachineError(
        f"the service cannot be reached ({type(error).__name__})",
        where=str(request.url),
        remedy="check the address and that `rayrec serve` runs",
    )


def _foreign(response: httpx.Response, error: Exception) -> MachineError:
    return MachineError(
        f"the answer is not RayRec's ({error})", where=str(response.url), remedy="check the address"
    )


def _error(response: httpx.Response) -> RayRecError:
    try:
        return _problem(msgspec.json.decode(response.content, type=ProblemDocument), str(response.url))
    except msgspec.DecodeError:
        kind = RequestError if response.is_client_error else MachineError
        return kind(f"HTTP {response.status_code}", where=str(response.url), remedy="check the address")


def _problem(problem: ProblemDocument, url: str) -> RayRecError:
    kind = RequestError if problem.status < 500 else MachineError
    findings = [f"{finding.field}: {finding.detail}" for finding in problem.errors]
    return kind("; ".join([problem.detail, *findings]), where=f"{url} ({problem.status})")
