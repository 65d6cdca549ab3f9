"""Requests that nobody should send: good ones of every call, mutated at every level.

Levels: the bytes of the body, the structure of the JSON, the headers, the request line, the
framing of HTTP. The same seed gives the same requests.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

JSON, LINES = "application/json", "application/x-ndjson"
READS = ("/", "/docs", "/openapi.json", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/tiny")
# Asks the server to close, so that whatever came before it is over when the connection ends.
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
# "@@text@@" in a structure is written as the text alone: JSON that Python does not write, or no JSON.
TOKENS = (
    *("@@1e999@@", "@@-1E400@@", "@@NaN@@", "@@01@@", "@@-@@", "@@@@", "@@'a'@@", "@@{@@", "@@\\u0000@@"),
    *(f"@@{'[' * deep}{']' * deep}@@" for deep in (10, 3000)),
    '@@{"a":1,"a":2}@@',
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**9, 2**63, 2**64, 10**400, -(10**30), 0.5, -0.0, 1e308, 5e-324, 4e12),
    *("", " ", "\0", "\x1b[2J", "\ud800", "a\udc00", "\U0001f600" * 70, "x" * 256, "x" * 257, "i1", "u1"),
    *("9999-12-31T23:59:59", "1900-01-01", "2024-02-30", "2024-05-01T10:00:00+99:00", "../../etc/passwd"),
    *("title == 'a'", "nothing < 3", "price <", "(" * 500, "not " * 500, "title in ['" + "a','" * 300 + "']"),
    *([], {}, [[]], [None], [{}], {"": ""}, ["i1"] * 1001, ["i1", "i1"], {"a": {"b": {"c": [1]}}}),
    *TOKENS,
)
NAMES = ("user", "items", "item", "k", "history", "context", "events", "timestamp", "filter", "", "\ud800")
VALUES = (
    *b"gzip chunked 0 -1 +5 0x10 1e3 application/json text/plain multipart/form-data 100-continue".split(),
    *b"h2c close \xff\xfe \x01 ?1 Bearer */* bytes=0-1 evil.example null %00%ff".split(),
    *(b"", b"identity, chunked", b"5, 5", b"a\tb", b"keep-alive, upgrade", b"9" * 30, b"a" * 5000),
    *(b"application/json; charset=utf-16", b"Basic YTpi"),
)
HEADERS = (
    *b"Content-Type Content-Length Content-Encoding Transfer-Encoding Expect Upgrade Connection".split(),
    *b"Host Authorization X-API-Key X-Request-ID Accept Range Cookie X-Forwarded-For Trailer TE".split(),
    *b"X-Request-Timeout-Seconds X-Request-Disconnect-Disabled serve_multiplexed_model_id".split(),
    *(b"Origin", b"Access-Control-Request-Method", b"", b"A B", b"\xe9"),
)
METHODS = (*b"GET HEAD PUT DELETE OPTIONS TRACE CONNECT PATCH post P\x00".split(), b"")
PATHS = (
    *b"* // /v1 /v1/rank/ /v1/rank?a=b /v1/rank#x /V1/RANK /v1/%72ank /v1/../v1/rank /v1/rank%00".split(),
    *b"/\xff\xfe http://h/v1/rank /-/routes /-/healthz /metrics?x=% /v2/models/%2e%2e".split(),
    *(b"", b"/" + b"a" * 9000, b"/v2/models/" + b"b" * 300),
)
CHUNKS = (
    *(
        b"5\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"zz\r\n",
        b"-1\r\n\r\n",
        b"ffffffffffffffff\r\nx",
        b"5\r\nhel",
    ),
    *(
        b"1;a=b\r\n{\r\n0\r\nX: y\r\n\r\n",
        b"1\n{\n0\n\n",
        b"2\r\n{}\r\n0\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"",
    ),
)


@dataclass(frozen=True)
class Case:
    """Bytes to send. `framed`: surely one request, so one answer comes; else the server may close."""

    level: str
    content: bytes
    framed: bool


class Fuzzer:
    """Draws requests.

    Args:
        seed: the same one gives the same requests.
        users, items: ids that the service knows.
    """

    def __init__(self, seed: int, users: Sequence[str], items: Sequence[str]) -> None:
        self.random = random.Random(seed)
        self.users, self.items = users, items
        self._levels: list[tuple[int, str, Callable[[], Case]]] = [
            (10, "good", self._good),
            (25, "bytes", self._bytes),
            (35, "structure", self._structure),
            (12, "headers", self._headers),
            (6, "line", self._line),
            (12, "framing", self._framing),
        ]

    def draw(self) -> Case:
        """One more."""
        weights = [weight for weight, _, _ in self._levels]
        return self.random.choices(self._levels, weights)[0][2]()

    def good(self) -> tuple[str, Any]:
        """Path and body of a request that can be answered."""
        pick, user = self.random, self.random.choice(self.users)
        some = pick.sample(self.items, pick.randint(1, 20))
        history = [{"item": item, "event": "view", "timestamp": 1_700_000_000} for item in some[:3]]
        event = {"user": user, "item": some[0], "event": "view", "timestamp": 1_700_000_000, "value": 1.5}
        rank = {"user": user, "items": some, "k": 5, "history": history, "context": {"timestamp": 1.8e9}}
        recommend = {"user": user, "k": 7, "exclude": some, "filter": "title != 'a'", "diversity": 0.5}
        return pick.choice(
            [
                ("/v1/rank", rank),
                ("/v1/rank", {"user": user, "items": some, "explain": True}),
                ("/v1/recommend", {**recommend, "caps": {"title": 2}, "explore": 0.2}),
                ("/v1/recommend", {"user": user, "boost": [{"filter": "title == 'b'", "add": 1.5}]}),
                ("/v1/similar", {"item": some[0], "k": 3}),
                ("/v1/feedback", {"events": [event] * pick.randint(1, 3)}),
                ("/v1/batch_rank", {"user": user, "items": some}),
            ]
        )

    def _good(self) -> Case:
        if self.random.random() < 0.3:
            return Case("good", head(b"GET", self.random.choice(READS).encode()) + b"\r\n", True)
        path, body = self.good()
        return Case("good", post(path, encoded(body)), True)

    def _bytes(self) -> Case:
        path, body = self.good()
        return Case("bytes", post(path, self._spoilt(encoded(body))), True)

    def _spoilt(self, content: bytes) -> bytes:
        pick, spoilt = self.random, bytearray(content)
        for _ in range(pick.choice((1, 1, 2, 5, 20))):
            start = pick.randrange(len(spoilt) + 1)
            end = min(len(spoilt), start + pick.randint(1, 10))
            piece = pick.choice(
                (b"", spoilt[start:end] * 2, pick.randbytes(2), b'"', b"{", b"]", b"\x00", b"\n")
            )
            spoilt[start:end] = piece
        return bytes(spoilt[: pick.randrange(len(spoilt) + 1)] if pick.random() < 0.1 else spoilt)

    def _structure(self) -> Case:
        path, body = self.good()
        for _ in range(self.random.choice((1, 1, 2, 4))):
            body = self._changed(body)
        content = encoded(body)
        if self.random.random() < 0.1:  # a key twice
            content = content.replace(b"{", b'{"user":"u2","k":2,', 1)
        return Case("structure", post(path, content), True)

    def _changed(self, node: Any) -> Any:
        """A copy with one node replaced, or one field or element added or gone."""
        pick = self.random
        if not isinstance(node, dict | list) or not node or pick.random() < 0.2:
            return pick.choice(ODD)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key, deed = pick.choice(keys), pick.random()
        copy: Any = dict(node) if isinstance(node, dict) else list(node)
        if deed < 0.7:
            copy[key] = self._changed(node[key])
        elif deed < 0.85:
            del copy[key]
        elif isinstance(copy, dict):
            copy[pick.choice(NAMES)] = pick.choice(ODD)
        else:
            copy.insert(key, pick.choice(ODD))
        return copy

    def _headers(self) -> Case:
        path, body = self.good()
        pick, content = self.random, encoded(body)
        lines = [pick.choice(HEADERS) + b": " + pick.choice(VALUES) for _ in range(pick.choice((1, 1, 2, 5)))]
        if pick.random() < 0.05:
            lines += [b"X-%d: y" % number for number in range(pick.choice((90, 200, 2000)))]
        own = b"Content-Type: application/json\r\nContent-Length: %d" % len(content)
        joined = b"\r\n".join([*lines, own] if pick.random() < 0.5 else [own, *lines])
        return Case("headers", head(b"POST", path.encode()) + joined + b"\r\n\r\n" + content, False)

    def _line(self) -> Case:
        pick, content = self.random, encoded(self.good()[1])
        method, path = pick.choice((b"POST", *METHODS)), pick.choice((b"/v1/rank", *PATHS))
        version = pick.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 ", b"", b"ICY"))
        further = b"Host: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        return Case("line", b" ".join((method, path, version)) + b"\r\n" + further + content, False)

    def _framing(self) -> Case:
        pick = self.random
        path, body = self.good()
        content = encoded(body)
        whole = post(path, content)
        length = b"Content-Length: %d" % len(content)
        chunked = (
            head(b"POST", path.encode()) + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        )
        sent = pick.choice(
            (
                whole.replace(
                    length, b"Content-Length: %d" % pick.choice((0, 1, len(content) - 1, len(content) + 9))
                ),
                whole.replace(
                    length,
                    pick.choice((b"X: y", length + b"\r\n" + length, length + b"\r\nContent-Length: 3")),
                ),
                whole.replace(length, length + b"\r\nTransfer-Encoding: chunked"),
                whole.replace(b"\r\n", pick.choice((b"\n", b"\r", b"\r\n ", b"\r\n\r\n"))),
                whole * pick.randint(2, 8),
                whole + b"\r\n\r\n" + whole,
                whole[: pick.randrange(len(whole))],
                self._spoilt(whole[: whole.index(b"\r\n\r\n")]) + whole[whole.index(b"\r\n\r\n") :],
                pick.randbytes(pick.randint(1, 2000)),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + pick.randbytes(200),  # TLS
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + pick.randbytes(30),
                chunked + b"\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content),
                chunked + b"\r\n" + pick.choice(CHUNKS),
                chunked + b"Content-Length: 4\r\n\r\n" + pick.choice(CHUNKS),
            )
        )
        return Case("framing", sent, False)


def encoded(body: Any) -> bytes:
    """JSON, and the tokens in it as they are."""
    text = json.dumps(body)
    return re.sub(r'"@@(.*?)@@"', lambda match: match[1].replace('\\"', '"'), text).encode()


def head(method: bytes, path: bytes) -> bytes:
    """Request line and Host."""
    return method + b" " + path + b" HTTP/1.1\r\nHost: h\r\n"


def post(path: str, content: bytes) -> bytes:
    """A request whose framing is right."""
    kind = LINES if path == "/v1/batch_rank" else JSON
    return head(b"POST", path.encode()) + (
        f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    )


@dataclass(frozen=True)
class Slow:
    """A sender without end: `piece` again and again, with a pause between."""

    start: bytes
    piece: bytes
    pause_s: float


def _body(kind: str, framing: str, path: str = "/v1/rank") -> bytes:
    return head(b"POST", path.encode()) + f"Content-Type: {kind}\r\n{framing}\r\n\r\n".encode()


_LONG, _CHUNKED = "Content-Length: 100000", "Transfer-Encoding: chunked"
_CHUNK, _MORE = b"1\r\n \r\n", b"10000\r\n" + b" " * 0x10000 + b"\r\n"
SLOW_KINDS = (
    Slow(b"", b"", 1.0),
    Slow(b"POST /v1/rank HTTP/1.1\r\n", b"X-A: b\r\n", 0.5),
    Slow(head(b"GET", b"/" + b"a" * 3000), b"", 1.0),
    Slow(_body(JSON, _LONG), b"", 1.0),
    Slow(_body(JSON, _LONG), b" ", 0.5),
    Slow(_body(JSON, _LONG) + b" " * 50_000, b" ", 0.5),  # more than a proxy holds back
    Slow(_body("text/plain", _LONG) + b" " * 50_000, b" ", 0.5),
    Slow(_body(JSON, _CHUNKED), _CHUNK, 0.5),
    Slow(_body(JSON, _CHUNKED) + _CHUNK * 20_000, _CHUNK, 0.5),
    Slow(_body(JSON, _CHUNKED), _MORE, 0.01),
    Slow(_body(JSON, "Content-Length: 10000000"), b" " * 0x10000, 0.01),
    Slow(_body(JSON, _CHUNKED, "/v1/nothing"), _MORE, 0.01),
    Slow(_body(LINES, _CHUNKED, "/v1/batch_rank"), b"1\r\n\n\r\n", 0.5),
    Slow(_body(LINES, _CHUNKED, "/v1/batch_rank"), _MORE, 0.01),
)
