"""Requests that cannot be answered are refused with the field, and nothing of the input."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.request.requests import Boost, Context, RankRequest, RecommendRequest, SimilarRequest
from app.bundle.request.validation import (
    check_ids,
    check_rank,
    check_recommend,
    check_similar,
    event_row,
    moment,
)
from app.errors import RequestError
from app.events import HistoryEvent


def rank(**changes: Any) -> RankRequest:
    return RankRequest(**{"user": "u", "items": ["a", "b"], **changes})


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (rank(items=[]), "items"),
        (rank(items="abc"), "items"),
        (rank(items=["a"] * 4), "items"),
        (rank(items=["a", ""]), "items[1]"),
        (rank(items=["a", 5]), "items[1]"),
        (rank(items=[["a"]]), "items[0]"),
        (rank(items=["x" * 257]), "items[0]"),
        (rank(items=["é" * 129]), "items[0]"),
        (rank(items=["\ud800"]), "items[0]"),
        (rank(k=0), "k"),
        (rank(k=-(10**30)), "k"),
        (rank(k=1.5), "k"),
        (rank(k=True), "k"),
        (rank(user=""), "user"),
        (rank(user=None), "user"),
        (rank(user="a\udfff"), "user"),
        (rank(user="x" * 257), "user"),
        (rank(context=Context(float("nan"))), "context.timestamp"),
    ],
)
def test_rank_refuses(request_: RankRequest, field: str) -> None:
    with pytest.raises(RequestError) as error:
        check_rank(request_, max_candidates=3)
    assert error.value.where == field
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (RecommendRequest("u", k=0), "k"),
        (RecommendRequest("u", k=11), "k"),
        (RecommendRequest("u", exclude=["a"] * 4), "exclude"),
        (RecommendRequest("u", exclude=[""]), "exclude[0]"),
        (RecommendRequest("", k=1), "user"),
        (RecommendRequest("u", k=1, diversity=1.1), "diversity"),
        (RecommendRequest("u", k=1, diversity=float("nan")), "diversity"),
        (RecommendRequest("u", k=1, explore=-0.1), "explore"),
        (RecommendRequest("u", k=1, budget_ms=0.0), "budget_ms"),
        (RecommendRequest("u", k=1, budget_ms=True), "budget_ms"),
        (RecommendRequest("u", k=1, filter="a" * 2001), "filter"),
        (RecommendRequest("u", k=1, filter=5), "filter"),  # type: ignore[arg-type]
        (RecommendRequest("u", k=1, caps={"a": 0}), "caps"),
        (RecommendRequest("u", k=1, caps=dict.fromkeys("abcde", 1)), "caps"),
        (RecommendRequest("u", k=1, boost=[Boost("a = 1", 1.0)] * 9), "boost"),
        (RecommendRequest("u", k=1, boost=[Boost("a = 1", 1.0), Boost("a = 1", 1001.0)]), "boost[1].add"),
        (RecommendRequest("u", k=1, boost=[Boost("a" * 2001, 1.0)]), "boost[0].filter"),
    ],
)
def test_recommend_refuses(request_: RecommendRequest, field: str) -> None:
    with pytest.raises(RequestError) as error:
        check_recommend(request_, max_candidates=3, max_k=10)
    assert error.value.where == field


@pytest.mark.parametrize(
    ("request_", "field"), [(SimilarRequest(""), "item"), (SimilarRequest("a", 11), "k")]
)
def test_similar_refuses(request_: SimilarRequest, field: str) -> None:
    with pytest.raises(RequestError) as error:
        check_similar(request_, max_k=10)
    assert error.value.where == field


def test_the_largest_requests_pass() -> None:
    check_rank(rank(items=["é" * 128, "x" * 256, "日本"], k=1000, user="é" * 128), max_candidates=3)
    check_recommend(RecommendRequest("u", k=10, exclude=["a"] * 3), max_candidates=3, max_k=10)
    ruled = RecommendRequest("u", k=10, filter="a = 1", caps=dict.fromkeys("abcd", 1), diversity=1, explore=1)
    check_recommend(ruled, max_candidates=3, max_k=10)


@pytest.mark.parametrize(
    "field",
    [
        '"diversity": 2', '"explore": -1', '"budget_ms": 0', '"caps": {"a": 0}', '"caps": {"a": 1.5}',
        '"boost": [{"filter": "a = 1"}]', '"boost": [{"filter": "a = 1", "add": 2000}]',
        f'"filter": "{"a" * 2001}"',
    ],
)  # fmt: skip
def test_http_refuses_what_python_does(field: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"user": "u", {field}}}', type=RecommendRequest)


@given(st.lists(st.one_of(st.text(max_size=300), st.integers(), st.none(), st.binary()), max_size=5))
def test_ids_pass_exactly_if_they_are_text_of_1_to_256_bytes(ids: list[Any]) -> None:
    def fine(value: Any) -> bool:
        return isinstance(value, str) and 0 < len(value.encode(errors="replace")) <= 256

    if all(map(fine, ids)):
        check_ids(ids, "items")
    else:
        with pytest.raises(RequestError):
            check_ids(ids, "items")


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (0, 0),
        (1.5, 1_500_000),
        ("1970-01-02", 86_400_000_000),
        ("2024-01-01T00:00:00+01:00", 1_704_063_600_000_000),
    ],
)
def test_times_are_seconds_or_iso_8601(given_: float | str, expected: int) -> None:
    assert moment(given_, "t") == expected


@pytest.mark.parametrize(
    "bad",
    [
        float("nan"),
        float("inf"),
        -1,
        1.7e12,
        1e300,
        "yesterday",
        "",
        "1969-12-31",
        True,
        None,
        [],
        "2024-13-01",
    ],
)
def test_absurd_times_are_refused_with_the_remedy(bad: Any) -> None:
    with pytest.raises(RequestError, match="not milliseconds"):
        moment(bad, "history[0].timestamp")


def test_an_unknown_event_type_names_the_known_ones() -> None:
    events = ["", "view", "buy"]
    assert event_row(HistoryEvent("a", "buy"), events, 1, "f") == 2
    assert event_row(HistoryEvent("a"), events, 1, "f") == 1
    with pytest.raises(RequestError, match="view, buy"):
        event_row(HistoryEvent("a", "sold"), events, 1, "f")
