"""Several models in one service: loaded when called, within a limit, and out of each other's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.artifact import publish
from app.bundle.request.requests import RankRequest
from app.errors import ArtifactError, RecipeError
from app.recipe import Serve
from app.serving import replica as module
from app.serving.http.calls import RANK as RANK_CALL
from app.serving.replica import Replica
from app.serving.scoring import registry
from app.serving.scoring.call import Call
from tests.fakes import FakeRanker, fake_replica, sample, transport

RANK = {"user": "u1", "items": ["a", "ccc", "bb"]}
MIB = 1 << 20


class Opener:
    """Opens bundles by name and keeps count; one in `damaged` is refused, a closed `gate` holds all up."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.damaged: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, path: Path, **_: Any) -> FakeRanker:
        self.gate.wait(10)
        self.opened.append(path.name)
        if path.name in self.damaged:
            raise ArtifactError("the file is missing", where=str(path / "model.onnx"))
        ranker = FakeRanker()
        ranker.name = path.name  # type: ignore[misc]
        return ranker


Client = httpx.AsyncClient
Talk = Callable[[Replica, Client, Opener], Awaitable[None]]


@pytest.fixture
def bundles(tmp_path: Path) -> dict[str, str]:
    """Manifests of three bundles, of 1, 1 and 3 MiB."""
    for name, size in (("news", 1), ("films", 1), ("large", 3)):
        with publish(tmp_path / name, "bundle", {"of": name}, {}) as draft:
            (draft.path / "rows").write_bytes(bytes(size * MIB))
    return {name: str(tmp_path / name) for name in ("news", "films", "large")}


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundles: dict[str, str]) -> Callable[[Talk], None]:
    """Runs a conversation with a replica of all three, of which 2 MiB may be loaded."""
    opener = Opener()

    async def run(converse: Talk) -> None:
        settings = Serve(models=bundles, models_mb=2.0, request_timeout_s=5)
        replica = fake_replica(monkeypatch, tmp_path, settings)
        monkeypatch.setattr(module.Ranker, "open", opener)
        async with Client(transport=transport(replica), base_url="http://test") as client:
            await converse(replica, client, opener)

    return lambda converse: asyncio.run(run(converse))


async def rank(client: Client, name: str) -> httpx.Response:
    return await client.post(f"/v1/models/{name}/rank", json=RANK)


def test_a_model_is_loaded_with_its_first_call(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        before = (await client.get("/v2/models/news")).json()
        assert (before["state"], before["versions"]) == ("not loaded", [])
        answers = [(await rank(client, "news")).json() for _ in range(2)]
        assert answers[0]["model"] == "news" and answers[0] == answers[1]
        assert opener.opened == ["news"]
        assert (await client.get("/v2/models/news/ready")).json()["state"] == "loaded"
        recommended = await client.post("/v1/models/news/recommend", json={"user": "u1", "k": 2})
        assert [scored["item"] for scored in recommended.json()["items"]] == ["ccc", "bb"]
        similar = await client.post("/v1/models/news/similar", json={"item": "a"})
        assert similar.json()["model"] == "news"
        text = (await client.get("/metrics")).text
        assert sample(text, "rayrec_model_info", model="news", version="v1") == 1
        assert sample(text, "rayrec_requests_total", route="/v1/models/news/rank", status="200") == 2

    talk(converse)


def test_the_main_model_has_its_own_name_too(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        plain = (await client.post("/v1/rank", json=RANK)).json()
        assert (await rank(client, "fake")).json() == plain
        similar = await client.post("/v1/models/fake/similar", json={"item": "a"})
        assert similar.json()["model"] == "fake"
        assert (await client.get("/v2/models/fake/ready")).json()["ready"] is True
        assert opener.opened == []
        assert {b"/v1/models/fake/rank", b"/v1/models/news/rank"} <= set(replica.hot_paths)

    talk(converse)


def test_an_unknown_name_is_told_of_with_those_that_there_are(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        for answer in (await rank(client, "bogus"), await client.get("/v2/models/bogus")):
            assert answer.status_code == 404
            assert "fake, news, films, large" in answer.json()["detail"]

    talk(converse)


def test_calls_wait_for_one_load_and_the_main_model_does_not(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        opener.gate.clear()
        calls = [asyncio.create_task(rank(client, "news")) for _ in range(5)]
        while len(replica.models.models["news"].waiting) < 5:
            await asyncio.sleep(0)
        assert (await client.get("/v2/models/news")).json()["state"] == "loading"
        assert (await client.post("/v1/rank", json=RANK)).json()["model"] == "fake"
        opener.gate.set()
        assert {(await call).json()["model"] for call in calls} == {"news"}
        assert opener.opened == ["news"]

    talk(converse)


def test_a_call_that_waits_for_too_long_is_told_to_come_again(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        opener.gate.clear()
        statuses: list[int] = []
        call = Call("/v1/models/news/rank", "id", lambda status, *_: statuses.append(status), lambda *_: None)
        replica.models.start("news", RANK_CALL, call, RankRequest("u1", ["a"]))
        replica.models._time_out(replica.models.models["news"], call)  # its timer runs out
        opener.gate.set()
        assert (await rank(client, "news")).json()["model"] == "news"
        assert statuses == [503]

    talk(converse)


def test_calls_that_wait_leave_room_for_other_models(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        opener.gate.clear()
        calls = [asyncio.create_task(rank(client, "news")) for _ in range(replica.capacity + 50)]
        statuses = [(await done).status_code for done in asyncio.as_completed(calls[replica.capacity // 4 :])]
        assert set(statuses) == {503}
        assert (await client.post("/v1/rank", json=RANK)).status_code == 200
        opener.gate.set()
        assert {(await call).status_code for call in calls[: replica.capacity // 4]} == {200}

    talk(converse)


def test_the_least_used_goes_where_the_limit_is_passed(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        replica.models.settings = replica.settings.model_copy(update={"models_mb": 1.5})
        for name in ("news", "films", "films", "news"):
            assert (await rank(client, name)).json()["model"] == name
        assert opener.opened == ["news", "films", "news"]
        assert [version.model for version in replica.models.served()] == ["news"]

    talk(converse)


def test_one_that_exceeds_the_limit_alone_is_refused_and_drops_no_other(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        await rank(client, "news")
        refused = await rank(client, "large")
        assert refused.status_code == 503
        assert "3 MiB, serve.models_mb is 2" in refused.json()["detail"]
        assert opener.opened == ["news"]
        assert [version.model for version in replica.models.served()] == ["news"]

    talk(converse)


def test_a_damaged_one_is_named_rests_and_is_tried_again(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        opener.damaged = {"news"}
        for _ in range(2):
            refused = await rank(client, "news")
            assert (refused.status_code, int(refused.headers["retry-after"])) == (503, int(registry.RETRY_S))
            assert "model news cannot be loaded: the file is missing" in refused.json()["detail"]
        assert (await client.get("/v2/models/news/ready")).status_code == 503
        assert opener.opened == ["news"]
        assert (await rank(client, "films")).status_code == 200
        opener.damaged, replica.models.models["news"].retry_at = set(), 0.0
        assert (await rank(client, "news")).json()["model"] == "news"

    talk(converse)


def test_a_load_that_is_cancelled_answers_the_calls_that_wait(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        opener.gate.clear()
        model = replica.models.models["news"]
        waiting = [asyncio.create_task(rank(client, "news")) for _ in range(3)]
        while len(model.waiting) < 3:
            await asyncio.sleep(0)
        assert model.loading is not None
        model.loading.cancel()
        answers = [await call for call in waiting]
        opener.gate.set()
        assert {answer.status_code for answer in answers} == {503}
        assert model.state == "refused"
        model.retry_at = 0.0
        assert (await rank(client, "news")).json()["model"] == "news"

    talk(converse)


def test_one_who_cannot_be_answered_does_not_stop_those_that_wait_behind(
    talk: Callable[[Talk], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        def gone(*_: Any) -> None:
            raise OSError("the caller is gone")

        opener.gate.clear()
        opener.damaged = {"news"}
        lost = Call("/v1/models/news/rank", "lost", gone, lambda *_: None)
        replica.models.start("news", RANK_CALL, lost, RankRequest("u1", ["a"]))
        waiting = asyncio.create_task(rank(client, "news"))
        while len(replica.models.models["news"].waiting) < 2:
            await asyncio.sleep(0)
        opener.gate.set()
        assert (await waiting).status_code == 503
        assert "lost could not be answered" in caplog.text

    talk(converse)


def test_events_are_stored_once_for_all_models(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        event = {"user": "u1", "item": "a", "event": "view", "timestamp": 1_700_000_000}
        assert (await client.post("/v1/feedback", json={"events": [event]})).status_code == 202
        for name in ("fake", "news"):
            assert (await rank(client, name)).json()["items"][0] == {"item": "a", "score": 101.0}

    talk(converse)


def test_a_wrong_request_is_refused_as_ever(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: Client, opener: Opener) -> None:
        answer = await client.post("/v1/models/news/rank", json={"user": "u1", "items": []})
        assert answer.status_code == 422
        assert (await client.get("/v1/models/news/rank")).status_code == 405

    talk(converse)


def test_two_models_have_two_names(bundles: dict[str, str]) -> None:
    registry.check_names(Serve(models=bundles), "shop")
    with pytest.raises(RecipeError, match="news"):
        registry.check_names(Serve(models=bundles), "news")


def test_the_names_stand_in_a_path() -> None:
    with pytest.raises(ValueError, match="pattern"):
        Serve(models={"a/b": "x"})
