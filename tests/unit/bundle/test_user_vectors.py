"""User vectors that are kept: those of the same events and about the same moment, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.format.histories import Events
from app.bundle.ranking.user_vectors import UserVectorCache
from app.bundle.request.encode import EncodedRequest
from app.bundle.request.requests import Context, RecommendRequest
from app.bundle.runtime import Ranker
from app.events import HistoryEvent
from tests.bundles import NOW, bundle_of, random_model
from tests.tiny import tiny_dataset

SECOND, LENGTH, ROOM = 1_000_000, 3, 1 << 20


def encoded(user: int, items: Sequence[int], now: int = 0, kind: int = 1, time: int = 5) -> EncodedRequest:
    rows = np.array(items, np.int64)
    history = Events(rows, np.full_like(rows, kind), np.full_like(rows, time * SECOND))
    return EncodedRequest(user, now, history, np.zeros(1, np.int64))


class Model:
    """A vector says what it was computed from; counts the users of each call."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, some: Sequence[EncodedRequest]) -> Any:
        self.batches.append(len(some))
        vectors = np.zeros((len(some), 3 * LENGTH + 2))
        for row, one in zip(vectors, some, strict=True):
            last = np.stack([one.history.item, one.history.event, one.history.time])[:, -LENGTH:].ravel()
            row[0], row[1], row[2 : 2 + len(last)] = one.now, one.user, last
        return vectors


SMALL = st.integers(1, 2)
ENCODED = st.builds(encoded, SMALL, st.lists(SMALL, max_size=5), st.integers(0, 9), SMALL, SMALL)
STEPS = st.lists(st.tuples(st.integers(1, 2), st.lists(ENCODED, min_size=1, max_size=4)), max_size=12)


@given(STEPS, st.sampled_from([0, 1500, ROOM]), st.integers(0, 5))
def test_a_vector_is_of_the_users_last_events_of_its_model_and_of_about_the_moment(
    steps: list[tuple[int, list[EncodedRequest]]], limit: int, tolerance: int
) -> None:
    states, oracle = UserVectorCache(limit, tolerance / SECOND), Model()
    for catalogue_version, some in steps:
        answers = states.vectors(
            catalogue_version,
            LENGTH,
            some,
            lambda few, catalogue_version=catalogue_version: oracle(few) * catalogue_version,
        )
        expected = oracle(some) * catalogue_version
        assert np.array_equal(answers[:, 1:], expected[:, 1:])
        apart = np.abs(answers[:, 0] / catalogue_version - [one.now for one in some])
        assert (apart < max(1, tolerance)).all()
        assert states.bytes <= limit
    assert states.hits + states.misses == sum(len(some) for _, some in steps)
    if not limit:
        assert states.hits == 0


def test_only_those_that_are_not_known_are_made_and_events_before_the_last_do_not_matter() -> None:
    states, model = UserVectorCache(ROOM, 10.0), Model()
    states.vectors(1, LENGTH, [encoded(1, [1, 2, 3])], model)
    states.vectors(1, LENGTH, [encoded(2, []), encoded(1, [9, 1, 2, 3]), encoded(1, [2, 3, 1])], model)
    assert model.batches == [1, 2]
    assert (states.hits, states.misses) == (1, 3)
    assert all(
        cached.vector.base is None for cached, _ in states._entries.values()
    )  # none holds on to its batch


OTHERS = [encoded(2, [1]), encoded(1, [2]), encoded(1, [1], kind=2), encoded(1, [1], time=6), encoded(1, [])]


@pytest.mark.parametrize("other", OTHERS, ids=["user", "item", "kind", "time", "none"])
def test_another_user_or_event_is_another_vector(other: EncodedRequest) -> None:
    states, model = UserVectorCache(ROOM, 10.0), Model()
    for one in (encoded(1, [1]), other):
        states.vectors(1, LENGTH, [one], model)
    assert (states.hits, states.misses) == (0, 2)


def test_a_failure_of_the_model_leaves_nothing_behind() -> None:
    states = UserVectorCache(ROOM, 10.0)

    def broken(some: Sequence[EncodedRequest]) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        states.vectors(1, LENGTH, [encoded(1, [1])], broken)
    assert states.bytes == 0
    assert states.vectors(1, LENGTH, [encoded(1, [1])], Model())[0, 1] == 1


def test_threads_meet_the_right_vectors_and_the_bytes_add_up() -> None:
    states, model = UserVectorCache(5000, 10.0), Model()

    def use(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        users = rng.integers(0, 20, 300).tolist()
        return all(states.vectors(1, LENGTH, [encoded(user, [user])], model)[0, 1] == user for user in users)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(use, range(4)))
    assert 0 < states.bytes <= 5000
    assert states.hits + states.misses == 1200


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    dataset = tiny_dataset(folder / "dataset", users=30, items=40, events=400)
    return bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle").artifact.path


def test_recommendations_are_the_same_with_and_without(bundle: Path) -> None:
    states = UserVectorCache(ROOM, 10.0)
    kept, plain = Ranker.open(bundle, user_vectors=states), Ranker.open(bundle)
    context = Context(timestamp=float(NOW))
    event = HistoryEvent("i7", "view", float(NOW - 5))
    for stored in ([], [], [event], [event]):
        for k in (5, 9):
            request = RecommendRequest("u3", k=k, context=context)
            (answer,), (expected,) = (one.recommend([request], [stored]) for one in (kept, plain))
            assert [one.item for one in answer.items] == [one.item for one in expected.items]
            assert [one.score for one in answer.items] == pytest.approx([one.score for one in expected.items])
    assert (states.hits, states.misses) == (6, 2)


def test_two_versions_share_a_limit_and_no_vector(bundle: Path) -> None:
    states = UserVectorCache(ROOM, 10.0)
    for _ in range(2):
        Ranker.open(bundle, user_vectors=states).recommend([RecommendRequest("u3")])
    assert (states.hits, states.misses) == (0, 2)
