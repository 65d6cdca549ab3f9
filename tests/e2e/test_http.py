"""The service over real Ray Serve, HAProxy and a real bundle: one start for the whole module."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.bundle.request.requests import Answer, RankRequest, RecommendRequest, SimilarRequest
from app.bundle.runtime import Ranker
from app.client import Client
from app.errors import ArtifactError, MachineError, RecipeError, RequestError
from app.events import Event, HistoryEvent
from app.recipe import Serve
from app.serving.listen import API_KEY
from app.serving.service import running, store_folder
from tests import conformance
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

KEY = "sesame"
ITEMS = [f"i{row}" for row in range(1, 41)]


@dataclass
class Service:
    bundle: Path
    settings: Serve
    url: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("http")
    dataset = tiny_dataset(folder / "dataset", users=60, items=40, events=900)
    bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle", precision="int8")
    return folder / "bundle"


@pytest.fixture(scope="module")
def service(ray_local: None, bundle: Path) -> Iterator[Service]:
    settings = Serve(port=free_port(), max_body_bytes=200_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY, KEY)
        with running(bundle, settings) as url:
            yield Service(bundle, settings, url)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, KEY) as client:
        yield client


def test_rank_gives_the_scores_of_the_bundle(service: Service, client: Client) -> None:
    request = RankRequest("u1", ITEMS, history=[HistoryEvent("i3", "view", 1_700_000_000)])
    [expected] = Ranker.open(service.bundle).rank([request])
    answer = client.rank(request)
    assert [s.item for s in answer.items] == [s.item for s in expected.items]
    scores = [s.score for s in expected.items]
    assert [s.score for s in answer.items] == pytest.approx(scores, abs=1e-5)
    assert (answer.model, answer.version, answer.cold_start) == (expected.model, expected.version, False)


def test_a_batch(client: Client) -> None:
    wanted = [RankRequest("u1", ITEMS), RecommendRequest("u2", k=3), RankRequest("", ITEMS)]
    ranked, recommended, wrong, last = client.batch_rank([*wanted, RankRequest("u2", ITEMS)])
    assert isinstance(ranked, Answer) and [s.item for s in ranked.items] == [
        s.item for s in client.rank(RankRequest("u1", ITEMS)).items
    ]
    assert isinstance(wrong, RequestError) and "user" in wrong.what
    assert isinstance(recommended, Answer) and len(recommended.items) == 3
    assert isinstance(last, Answer) and len(last.items) == len(ITEMS)


def test_recommend_and_similar(client: Client) -> None:
    answer = client.recommend(RecommendRequest("u2", k=5, exclude=["i1"]))
    assert len({s.item for s in answer.items} - {"i1"}) == 5
    assert client.recommend(RecommendRequest("nobody", k=5)).cold_start
    nearest = client.similar(SimilarRequest("i7", k=3)).items
    assert len({s.item for s in nearest} - {"i7"}) == 3


def test_feedback_changes_the_next_answer_of_that_user_alone(client: Client) -> None:
    before, other = (client.rank(RankRequest(user, ITEMS)) for user in ("u5", "u6"))
    wanted = RecommendRequest("u5", k=37)
    assert client.recommend(wanted) == client.recommend(wanted)
    assert client.feedback([Event("u5", item, "view") for item in ("i30", "i31", "i32")]) == 3
    assert client.rank(RankRequest("u5", ITEMS)) != before
    seen = client.recommend(wanted).items
    assert not {"i30", "i31", "i32"} & {s.item for s in seen}
    again = client.rank(RankRequest("u6", ITEMS))
    assert [s.item for s in again.items] == [s.item for s in other.items]


def test_a_new_item_is_known_at_once(service: Service, client: Client) -> None:
    assert client.put_item("new/1").ranked_by in ("content", "nothing")
    best = client.recommend(RecommendRequest("u5", k=41, exclude_seen=False)).items
    (new,) = [scored for scored in best if scored.item == "new/1"]
    answer = client.rank(RankRequest("u5", ["new/1"]))
    assert answer.cold_start and answer.items[0].score == pytest.approx(new.score, abs=1e-4)
    nearest = client.similar(SimilarRequest("new/1", k=3))
    assert nearest.cold_start and len(nearest.items) == 3  # found by its content, which is not training
    with Client(service.url, "wrong") as stranger, pytest.raises(RequestError, match="401"):
        stranger.put_item("new/2")


def test_many_at_once_are_answered_alike(client: Client) -> None:
    request = RankRequest("u9", ITEMS, history=[HistoryEvent("i2", "view", 1_700_000_000)])
    alone = client.rank(request)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.rank(request), range(64)))
    for answer in answers:
        assert [s.item for s in answer.items] == [s.item for s in alone.items]
        assert [s.score for s in answer.items] == pytest.approx([s.score for s in alone.items], abs=1e-5)


JSON = {"Content-Type": "application/json", "X-API-Key": KEY}
BOMB = gzip.compress(b" " * 10_000_000)  # 10 kB
LINES = {**JSON, "Content-Type": "application/x-ndjson"}
RANK_BODIES = {  # a body of /v1/rank, the status it gets and the field that is named
    "empty": (400, b"", ""),
    "not json": (400, b"user=u1", ""),
    "nan": (400, b'{"user":"u1","items":["i1"],"k":NaN}', ""),
    "lone surrogate": (400, b'{"user":"u1","items":["\\ud800"]}', ""),
    "not utf-8": (400, b'{"user":"u1","items":["\xff\xfe"]}', ""),
    "a control character": (400, b'{"user":"u\x001","items":["i1"]}', ""),
    "null": (422, b"null", ""),
    "an array": (422, b"[]", ""),
    "wrong type": (422, b'{"user":"u1","items":[true]}', "items[0]"),
    "k = 0": (422, b'{"user":"u1","items":["i1"],"k":0}', "k"),
    "huge number": (422, b'{"user":"u1","items":["i1"],"context":{"timestamp":1e999}}', "context.timestamp"),
    "1,001 candidates": (422, b'{"user":"u1","items":["a"' + b',"a"' * 1000 + b"]}", "items"),
    "an id of 257 bytes": (422, b'{"user":"u1","items":["i1","' + b"a" * 257 + b'"]}', "items[1]"),
    "ten megabytes": (413, b'{"user":"u1","items":["a"' + b',"a"' * 2_500_000 + b"]}", ""),
    "deep": (422, b'{"user":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "user"),
}
FUTURE, PAST = (b'{"events":[{"user":"u1","item":"i1","timestamp":%s}]}' % t for t in (b"9e9", b"-9e9"))
PROBLEMS: dict[str, tuple[int, str, str, bytes, dict[str, str], str]] = {
    **{
        n: (status, "POST", "/v1/rank", body, JSON, field) for n, (status, body, field) in RANK_BODIES.items()
    },
    "k = 10**9": (422, "POST", "/v1/recommend", b'{"user":"u1","k":1000000000}', JSON, "k"),
    "a filter": (422, "POST", "/v1/recommend", b'{"user":"u1","filter":"nothing < 3"}', JSON, "filter"),
    "the future": (422, "POST", "/v1/feedback", FUTURE, JSON, "events[0].timestamp"),
    "the past": (422, "POST", "/v1/feedback", PAST, JSON, "events[0].timestamp"),
    "wrong method": (405, "PUT", "/v1/rank", b"{}", JSON, ""),
    "wrong path": (404, "POST", "/v1/rnk", b"{}", JSON, ""),
    "no key": (401, "POST", "/v1/rank", b"{}", {"Content-Type": "application/json"}, ""),
    "wrong key": (401, "POST", "/v1/rank", b"{}", {**JSON, "X-API-Key": "sesam"}, ""),
    "plain text": (415, "POST", "/v1/rank", b"{}", {"X-API-Key": KEY}, ""),
    "a gzip bomb": (415, "POST", "/v1/rank", BOMB, {**JSON, "Content-Encoding": "gzip"}, ""),
    "a bomb in a batch": (415, "POST", "/v1/batch_rank", BOMB, {**LINES, "Content-Encoding": "gzip"}, ""),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_bad_input_is_a_problem_document(service: Service, name: str) -> None:
    status, method, path, body, headers, field = PROBLEMS[name]
    answer = httpx.request(method, service.url + path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["detail"]
    if status == 422:
        (finding,) = document["errors"]
        assert finding["field"] == field
        assert finding["detail"]
    assert len(answer.content) < 2048
    assert "Traceback" not in answer.text


def test_what_is_odd_but_harmless_is_answered(service: Service, client: Client) -> None:
    ids = ["i1", "\x1b[2J", "a\0b", "\U0001f600" * 64]
    answer = client.rank(RankRequest("\n", [*ids, *ids, "i1"], k=10**9))
    assert sorted(scored.item for scored in answer.items) == sorted(ids)  # each once
    assert answer.cold_start
    twice = b'{"user":"u2","items":["i1"],"user":"u1","items":["i2","i3"]}'
    response = httpx.post(f"{service.url}/v1/rank", content=twice, headers=JSON)
    assert {scored["item"] for scored in response.json()["items"]} == {"i2", "i3"}  # the last one counts


def test_it_keeps_to_its_openapi_document(service: Service) -> None:
    statuses = conformance.check(service.url, {"X-API-Key": KEY}, examples=20)
    for path in ("/v1/rank", "/v1/recommend", "/v1/similar", "/v1/feedback"):
        assert statuses[path, 202 if path == "/v1/feedback" else 200], "good ones were sent"
        assert statuses[path, 422], "and bad ones"


@pytest.mark.parametrize(("path", "status"), [("/v1/rank", 413), ("/v1/nothing", 404)])
def test_a_chunked_body_without_end_is_refused(service: Service, path: str, status: int) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 10_000
            yield b" " * 10_000

    # The connection may be closed before the client has looked for the answer.
    with contextlib.suppress(httpx.TransportError):
        assert httpx.post(service.url + path, content=endless(), headers=JSON).status_code == status
    assert sent < 100_000_000


def test_the_client_says_what_is_wrong(service: Service, client: Client) -> None:
    with pytest.raises(RequestError, match="items"):
        client.rank(RankRequest("u1", []))
    with pytest.raises(RequestError, match="API key"), Client(service.url, "wrong") as stranger:
        stranger.rank(RankRequest("u1", ITEMS))


def test_health_model_metrics_and_pages(service: Service, client: Client) -> None:
    ready = client.ready()
    assert ready["ready"] is True
    with httpx.Client(base_url=service.url) as http:
        assert http.get("/v2/health/live").status_code == 200
        assert "Recommend" in http.get("/").text
        assert "/v1/rank" in http.get("/docs").text
        assert http.get("/metrics").status_code == 401
        model = http.get(f"/v2/models/{ready['model']}", headers=JSON).json()
        assert model["versions"] == [ready["version"]]
        client.rank(RankRequest("u1", ITEMS))
        text = http.get("/metrics", headers=JSON).text
    assert 'route="/v1/rank",status="200"' in text
    assert "rayrec_batch_size_bucket" in text
    assert 'cache="users"' in text and 'cache="recommendations"' in text


def test_a_request_id_comes_back(service: Service) -> None:
    answer = httpx.post(f"{service.url}/v1/rank", content=b"?", headers={**JSON, "X-Request-ID": "id-7"})
    assert answer.headers["x-request-id"] == "id-7"
    assert answer.json()["request_id"] == "id-7"
    assert httpx.get(f"{service.url}/v2/health/live").headers["x-request-id"]


def test_haproxy_opens_no_port_but_the_service(service: Service) -> None:
    import psutil

    from app.ray.processes import of_run, run_mark

    mine = [psutil.Process(pid) for pid in of_run(run_mark())]
    [haproxy] = [process for process in mine if process.name() == "haproxy"]
    listening = [c.laddr for c in haproxy.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", service.settings.port)]


def test_no_acknowledged_event_is_lost_when_the_replica_dies(service: Service, client: Client) -> None:
    import psutil

    from app.ray.processes import of_run, run_mark
    from app.stores.sqlite_store import SqliteStore

    [replica] = [pid for pid in of_run(run_mark()) if "ServeReplica" in psutil.Process(pid).cmdline()[0]]
    acknowledged = []
    for count in range(20):
        assert client.feedback([Event("u20", f"x{count}", timestamp=count)]) == 1
        acknowledged.append(f"x{count}")
    os.kill(replica, signal.SIGKILL)
    store = SqliteStore(store_folder(service.bundle, service.settings))
    assert [event.item for event in store.recent("u20", 100)] == acknowledged
    store.close()
    _wait_until_served(client)
    assert replica not in of_run(run_mark())


def _wait_until_served(client: Client) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.ready()
            return
        except MachineError:  # a 503 of HAProxy while the new replica starts
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_port_in_use_is_refused_before_anything_starts(service: Service) -> None:
    refusal = pytest.raises(MachineError, match=rf"{service.settings.port}.*used by haproxy.*--port")
    with refusal, running(service.bundle, service.settings):
        pass


def test_others_may_call_only_with_a_key(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    with pytest.raises(RecipeError, match=API_KEY), running(bundle, Serve(host="0.0.0.0")):
        pass


def test_a_damaged_bundle_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = Serve(port=free_port())
    with pytest.raises(ArtifactError, match="no such folder"), running(tmp_path / "nothing", settings):
        pass
