"""The page, the documentation and its examples: what they show, to whom, and what they let run."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.recipe import Serve
from app.serving.http.calls import CALLS, Endpoint
from app.serving.replica import Replica
from tests.fakes import FakeRanker, fake_replica, transport

KEY = "sesame"
BODIES: list[Endpoint[Any]] = [endpoint for endpoint in CALLS if endpoint.body]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Replica:
    return fake_replica(monkeypatch, tmp_path, Serve())


@pytest.fixture(autouse=True, scope="module")
def one_loop() -> Iterator[None]:
    """Serve's batching lives on one event loop, as a replica has it."""
    global _runner
    with asyncio.Runner() as _runner:
        yield


_runner: asyncio.Runner


def call(replica: Replica, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return _runner.run(send())


def example(replica: Replica, endpoint: Endpoint[Any]) -> tuple[str, bytes]:
    """The path and the body of the documented example of a call."""
    operation = call(replica, "GET", "/openapi.json").json()["paths"][endpoint.path][endpoint.method.lower()]
    path = endpoint.path
    for parameter in operation.get("parameters", []):
        path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
    content = operation.get("requestBody", {"content": {}})["content"]
    return path, json.dumps(content[endpoint.media]["example"]).encode() if content else b""


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.path)
def test_every_call_has_an_example_that_is_answered(replica: Replica, endpoint: Endpoint[Any]) -> None:
    path, body = example(replica, endpoint)
    answer = call(replica, endpoint.method, path, content=body, headers={"Content-Type": endpoint.media})
    assert answer.status_code == endpoint.status, answer.text


def test_examples_are_about_what_the_model_knows(replica: Replica) -> None:
    bodies = {endpoint.path: json.loads(example(replica, endpoint)[1]) for endpoint in BODIES}
    assert bodies["/v1/rank"] == {"user": "a", "items": ["a", "bb", "ccc"], "k": 5}
    assert bodies["/v1/feedback"] == {"events": [{"user": "a", "item": "a", "event": "view"}]}
    described = call(replica, "GET", "/v2/models/fake").json()["example"]
    assert described["users"] == ["a", "bb", "ccc"]
    assert described["events"] == ["view", "buy"]  # the most frequent first
    assert bodies["/v1/items/{id}"] == {"columns": described["columns"]} == {"columns": {"kind": "lamp"}}


def test_ids_are_shown_to_those_alone_who_have_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replica = fake_replica(monkeypatch, tmp_path, Serve(), KEY)
    for path in ("/docs", "/openapi.json"):
        public = call(replica, "GET", path)
        assert public.status_code == 200
        assert "ccc" not in public.text
        assert "ccc" in call(replica, "GET", path, headers={"X-API-Key": KEY}).text
    assert call(replica, "GET", "/v2/models/fake").status_code == 401


def test_the_documentation_has_a_form_and_a_line_for_a_shell_for_each_call(replica: Replica) -> None:
    page = call(replica, "GET", "/docs").text
    document = call(replica, "GET", "/openapi.json").json()
    count = sum(map(len, document["paths"].values()))
    assert page.count(">Send</button>") == page.count('class="curl"') == count
    areas = [html.unescape(text) for text in re.findall(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)]
    assert {"user": "a", "k": 5} in map(json.loads, areas)
    line = "curl -s 127.0.0.1:8000/v1/similar -H 'content-type: application/json' --data-binary "
    assert f"""{line}'{{"item": "a", "k": 5}}'""" in html.unescape(page)
    assert "curl -s '127.0.0.1:8000/v1/popular?k=5'" in html.unescape(page)
    assert ">curl -s 127.0.0.1:8000/v1/items/a<" in page


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_runs_its_own_script_alone(replica: Replica, path: str) -> None:
    page = call(replica, "GET", path)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert not re.search(r"<[^>]+\s(on\w+|style)=", page.text)  # which the policy would not let run


def test_hostile_ids_are_text_in_the_documentation(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "</textarea><script>alert(1)</script>'\"<!--calls-->\\1"
    monkeypatch.setattr(FakeRanker, "users", ("", hostile))
    monkeypatch.setattr(FakeRanker, "items", ("", hostile))
    page = call(replica, "GET", "/docs").text
    assert page.count("<script>") == 1
    assert hostile not in page
    assert "<!--calls-->" not in page
    assert json.dumps({"user": hostile, "k": 5}) in html.unescape(page)
