"""Ranking from a bundle: order, duplicates, cold starts, histories, moments, neighbours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from app.bundle.export.from_dataset import popularity_of
from app.bundle.request.limits import Limits
from app.bundle.request.requests import Context, RankRequest, RecommendRequest, SimilarRequest
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.errors import ArtifactError, RequestError
from app.events import HistoryEvent
from tests.bundles import NOW, bundle_of, random_model
from tests.tiny import tiny_dataset

MOMENT = Context(timestamp=float(NOW))
ALL = [f"i{i}" for i in range(1, 41)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("runtime") / "dataset", users=40, items=40, events=500)


@pytest.fixture(scope="module")
def ranker(dataset: Dataset) -> Ranker:
    return bundle_of(random_model("two_tower", dataset), dataset, dataset.path.with_name("bundle"))


def scores(
    ranker: Ranker, request: RankRequest, stored: list[HistoryEvent] | None = None
) -> dict[str, float]:
    (answer,) = ranker.rank([request], [stored])
    return {one.item: one.score for one in answer.items}


def ranking_of(user: str = "u3", **changes: object) -> RankRequest:
    return RankRequest(**{"user": user, "items": ALL, "context": MOMENT, **changes})  # type: ignore[arg-type]


def test_best_first_and_cut_at_k(ranker: Ranker) -> None:
    (full,) = ranker.rank([ranking_of()])
    values = [one.score for one in full.items]
    assert values == sorted(values, reverse=True)
    assert {one.item for one in full.items} == set(ALL)
    (cut,) = ranker.rank([ranking_of(k=3)])
    assert cut.items == full.items[:3]
    assert (cut.model, cut.version, cut.cold_start) == ("tiny", ranker.artifact.digest[:12], False)


def test_a_duplicate_is_scored_and_returned_once(ranker: Ranker) -> None:
    (answer,) = ranker.rank([ranking_of(items=["i2", "i1", "i2", "new", "new"])])
    assert sorted(one.item for one in answer.items) == ["i1", "i2", "new"]


def test_unknown_items_are_returned_with_the_score_of_row_0(ranker: Ranker) -> None:
    (answer,) = ranker.rank([ranking_of(items=["new", "newer", "i1"])])
    by_item = {one.item: one.score for one in answer.items}
    assert by_item["new"] == pytest.approx(by_item["newer"]) and by_item["new"] != by_item["i1"]
    assert answer.cold_start
    (equal,) = ranker.rank([ranking_of(items=["b", "a", "c"])])
    assert [one.item for one in equal.items] == ["b", "a", "c"], "equal scores keep their order"


def test_an_unknown_user_with_nothing_known_still_gets_items(ranker: Ranker) -> None:
    (answer,) = ranker.recommend([RecommendRequest("stranger", k=5, context=MOMENT)])
    assert len(answer.items) == 5 and answer.cold_start


def test_no_requests_give_no_answers(ranker: Ranker) -> None:
    assert ranker.rank([]) == ranker.recommend([]) == ranker.similar([]) == []


def test_stored_feedback_follows_what_training_knew(ranker: Ranker) -> None:
    feedback = [HistoryEvent("i9", "buy", NOW - 100.0)]
    plain, more = scores(ranker, ranking_of()), scores(ranker, ranking_of(), feedback)
    assert plain != more
    (answer,) = ranker.recommend([RecommendRequest("u3", k=40, context=MOMENT)], [feedback])
    assert "i9" not in {one.item for one in answer.items}, "just bought"
    assert scores(ranker, ranking_of(history=[]), feedback) == scores(ranker, ranking_of(history=[])), (
        "replaced"
    )


def test_feedback_that_training_knew_already_counts_once(ranker: Ranker, dataset: Dataset) -> None:
    part = dataset.test
    row = int(part.indptr[4]) - 1  # the last event of user 3
    again = HistoryEvent(
        dataset.items[int(part.item[row])], dataset.schema.events[part.event[row]], int(part.time[row]) / 1e6
    )
    assert scores(ranker, ranking_of(), [again]) == scores(ranker, ranking_of())


def test_stored_feedback_of_an_unknown_type_or_item_does_no_harm(ranker: Ranker) -> None:
    odd = [HistoryEvent("gone", "view", NOW - 5.0), HistoryEvent("i1", "hugged", NOW - 5.0)]
    assert scores(ranker, ranking_of(), odd) == scores(ranker, ranking_of())


def test_a_moment_hides_what_came_later(ranker: Ranker) -> None:
    past = Context(timestamp=NOW - 1000.0)
    later = [HistoryEvent("i9", "buy", NOW - 100.0)]
    assert scores(ranker, ranking_of(context=past), later) == scores(ranker, ranking_of(context=past))


def test_history_without_times_keeps_its_order(ranker: Ranker) -> None:
    def with_history(*items: str) -> dict[str, float]:
        return scores(ranker, ranking_of(history=[HistoryEvent(i) for i in items]))

    assert with_history("i1", "i2") != with_history("i2", "i1")
    timed = [HistoryEvent("i1", "", float(NOW)), HistoryEvent("i2", "", float(NOW))]
    assert with_history("i1", "i2") == scores(ranker, ranking_of(history=timed))


def test_only_the_last_events_of_a_long_history_count(ranker: Ranker, dataset: Dataset) -> None:
    events = [HistoryEvent(f"i{1 + i % 40}", "view", NOW - 1000.0 + i) for i in range(100)]
    last = events[-dataset.schema.history :]
    assert scores(ranker, ranking_of(history=events)) == scores(ranker, ranking_of(history=last))


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (HistoryEvent("i1", "hugged"), "history[1].event"),
        (HistoryEvent("i1", "view", float("nan")), "history[1].timestamp"),
        (HistoryEvent(True), "history[1].item"),  # type: ignore[arg-type]
        (HistoryEvent("\ud800"), "history[1].item"),
    ],
)
def test_a_bad_history_names_its_event(ranker: Ranker, event: HistoryEvent, field: str) -> None:
    with pytest.raises(RequestError) as error:
        ranker.rank([ranking_of(history=[HistoryEvent("i2"), event])])
    assert error.value.where == field


def test_limits_are_the_rankers(dataset: Dataset) -> None:
    narrow = Ranker.open(dataset.path.with_name("bundle"), limits=Limits(max_candidates=3, max_k=2))
    with pytest.raises(RequestError, match="at most 3"):
        narrow.rank([ranking_of()])
    with pytest.raises(RequestError, match="k is 1 to 2"):
        narrow.recommend([RecommendRequest("u1", k=3)])


def test_recommending_more_than_there_is_gives_what_there_is(ranker: Ranker) -> None:
    (answer,) = ranker.recommend([RecommendRequest("u3", k=100, context=MOMENT, exclude_seen=False)])
    assert {one.item for one in answer.items} == set(ALL)


def test_blocks_of_items_change_nothing(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    request = RecommendRequest("u3", k=10, context=MOMENT)
    whole = ranker.recommend([request, request])
    monkeypatch.setattr("app.bundle.ranking.rows.BLOCK", 7)
    monkeypatch.setattr("app.bundle.ranking.rows.MATRIX_BYTES", 0)
    monkeypatch.setattr("app.bundle.retrieval.two_stage.SCORES_AT_ONCE", 1)
    fresh = Ranker.open(ranker.artifact.path)
    for one, other in zip(whole, fresh.recommend([request, request]), strict=True):
        assert [s.item for s in one.items] == [s.item for s in other.items]
    assert fresh.similar([SimilarRequest("i5")]) == ranker.similar([SimilarRequest("i5")])


def test_similar_is_the_cosine_of_item_rows(ranker: Ranker, dataset: Dataset) -> None:
    with torch.no_grad():
        rows = random_model("two_tower", dataset).item_rows(torch.arange(41)).numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit @ unit[5]
    order = [i for i in np.argsort(-cosine) if i not in (0, 5)][:4]
    (answer,) = ranker.similar([SimilarRequest("i5", k=4)])
    assert [one.item for one in answer.items] == [f"i{i}" for i in order]
    np.testing.assert_allclose([one.score for one in answer.items], cosine[order], atol=1e-5)


def test_similar_to_an_unknown_item_is_what_is_popular(ranker: Ranker, dataset: Dataset) -> None:
    (answer,) = ranker.similar([SimilarRequest("new", k=1)])
    assert answer.cold_start
    assert answer.items[0].item == f"i{popularity_of(dataset)[1:].argmax() + 1}"


def test_a_model_without_vectors_has_nothing_similar(dataset: Dataset, tmp_path: Path) -> None:
    ranker = bundle_of(random_model("popularity", dataset), dataset, tmp_path / "bundle")
    with pytest.raises(RequestError, match="popularity has no item vectors"):
        ranker.similar([SimilarRequest("i1")])


def test_explaining_names_at_most_three_of_the_history(ranker: Ranker, dataset: Dataset) -> None:
    (answer,) = ranker.rank([ranking_of(explain=True, k=2)])
    (plain,) = ranker.rank([ranking_of(k=2)])
    assert [one.item for one in answer.items] == [one.item for one in plain.items]
    for one in answer.items:
        assert one.because and len(one.because) <= 3
        effects = [abs(value) for value in one.because.values()]
        assert effects == sorted(effects, reverse=True)
    (nothing,) = ranker.rank([ranking_of(explain=True, k=2, history=[])])
    assert all(one.because == {} for one in nothing.items)


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    heavy = ("torch", "ray", "pandas", "pyarrow", "sklearn", "scipy", "pydantic")
    code = f"import sys, app.bundle.runtime; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bundle_with_another_encoding_of_the_moment_is_refused(ranker: Ranker, tmp_path: Path) -> None:
    """As an older version exports it, whose context features have fewer floats."""
    older = tmp_path / "bundle"
    shutil.copytree(ranker.artifact.path, older)
    info = msgspec.json.decode((older / "bundle.json").read_bytes())
    (older / "bundle.json").write_bytes(msgspec.json.encode(info | {"context": ["hour", "weekday"]}))
    with pytest.raises(ArtifactError, match=r"8 floats of context, this version makes 4.*export"):
        Ranker.open(older, verify=False)
