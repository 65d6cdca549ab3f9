"""What an answer says of users and items that training did not meet, each for itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from app.bundle.request.requests import Context, RankRequest, RecommendRequest, SimilarRequest
from app.bundle.runtime import Ranker
from app.events import HistoryEvent
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

VIEW = [HistoryEvent("i1", "view", 1.7e9)]


@pytest.fixture(scope="module", params=["two_tower", "popularity"])
def ranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    """Of a model whose scores depend on the history, and of one whose scores do not."""
    folder = tmp_path_factory.mktemp(request.param)
    dataset = tiny_dataset(folder / "dataset", users=30, items=40, events=400, untrained=3)
    return bundle_of(random_model(request.param, dataset), dataset, folder / "bundle")


def test_each_item_says_for_itself_whether_training_met_it(ranker: Ranker) -> None:
    (answer,) = ranker.rank([RankRequest("u1", ["i1", "i40", "nowhere"])])
    assert {scored.item: scored.cold_start for scored in answer.items} == {
        "i1": False,
        "i40": True,
        "nowhere": True,
    }
    assert (answer.cold_start, answer.user_cold_start) == (True, False)
    (recommended,) = ranker.recommend([RecommendRequest("u1", k=40, exclude_seen=False)])
    assert {s.item for s in recommended.items if s.cold_start} == {"i38", "i39", "i40"}
    assert (recommended.cold_start, recommended.user_cold_start) == (False, False)


def test_a_user_is_no_cold_start_once_events_are_known(ranker: Ranker) -> None:
    def cold(user: str, history: list[HistoryEvent] | None, stored: list[HistoryEvent] | None) -> bool:
        (ranked,) = ranker.rank([RankRequest(user, ["i1"], history=history)], [stored])
        (recommended,) = ranker.recommend([RecommendRequest(user, history=history)], [stored])
        assert ranked.user_cold_start == ranked.cold_start == recommended.user_cold_start
        return ranked.cold_start

    assert cold("stranger", None, None) and cold("stranger", [], None)
    assert not cold("stranger", VIEW, None)
    assert not cold("stranger", None, VIEW)
    assert not cold("u1", None, None)
    assert not cold("u30", None, None)  # whose events came after training, and are in the log


def test_similar_items_say_nothing_of_a_user(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=30, items=40, events=400, untrained=3)
    ranker = bundle_of(random_model("two_tower", dataset), dataset, tmp_path / "bundle")
    known, unknown = ranker.similar([SimilarRequest("i1"), SimilarRequest("i40")])
    assert (known.cold_start, unknown.cold_start) == (False, True)
    assert b"user_cold_start" not in msgspec.json.encode(known)


def test_where_the_log_has_one_type_every_event_is_of_it(ranker: Ranker, tmp_path: Path) -> None:
    if ranker.info.model != "two_tower":
        pytest.skip("scores do not depend on the history")
    shutil.copytree(ranker.artifact.path, tmp_path / "bundle")
    file = tmp_path / "bundle" / "bundle.json"
    one_type = {"events": ["", "view"], "default_event": 1}
    file.write_bytes(msgspec.json.encode(msgspec.json.decode(file.read_bytes()) | one_type))
    alike = Ranker.open(tmp_path / "bundle", verify=False)

    def scores(of: Ranker, *kinds: str) -> list[float]:
        request = RankRequest("stranger", ["i1", "i2", "i3"], context=Context(1.706e9))
        (answer,) = of.rank([request], [[HistoryEvent("i4", kind, 1.7e9) for kind in kinds]])
        return [scored.score for scored in answer.items]

    assert scores(alike, "teleport") == scores(alike, "view") != scores(alike)
    assert scores(ranker, "teleport") == scores(ranker)  # of several types, it is none
