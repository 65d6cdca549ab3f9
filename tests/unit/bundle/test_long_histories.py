"""Requests of people with long pasts: bounded in time and memory, the others unhindered."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from app.bundle.format.histories import Events
from app.bundle.ranking import explain as explaining
from app.bundle.ranking import scorer as scoring
from app.bundle.ranking.explain import LOOKED_AT, explain
from app.bundle.request.encode import EncodedRequest, model_inputs, shown
from app.bundle.runtime import Ranker
from app.models.item_knn import ItemKnn
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

ITEMS = 400


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    folder = tmp_path_factory.mktemp("long")
    dataset = tiny_dataset(folder / "dataset", items=ITEMS, users=150, events=9000, content=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ItemKnn, "reads", "all")
        return bundle_of(random_model("item_knn", dataset, half_life=0), dataset, folder / "bundle")


def events(item: Sequence[int]) -> Events:
    return Events(np.array(item, np.int64), np.ones(len(item), np.int64), np.arange(len(item)) + 1)


def request(history: Sequence[int], candidates: int = 10) -> EncodedRequest:
    return EncodedRequest(0, 10**15, events(history), np.arange(1, candidates + 1))


class Noting(scoring.BatchScorer):
    """Notes the shape of every history that is gathered, and how many requests are scored."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__(ranker.artifact.path, ranker.info, 1)
        self.shapes: list[tuple[int, int]] = []
        self.scored = 0

    def score(self, requests: Sequence[EncodedRequest]) -> list[np.ndarray]:  # type: ignore[type-arg]
        self.scored += len(requests)
        return super().score(requests)

    def _feeds(self, requests):  # type: ignore[no-untyped-def]
        feeds = super()._feeds(requests)
        self.shapes.append(feeds["history"].shape[:2])
        return feeds


def test_a_short_history_is_not_padded_to_a_long_one_of_its_batch(ranker: Ranker) -> None:
    noting = Noting(ranker)
    long = list(range(1, 301))
    noting.score([request([1, 2, 3]), request(long), request([5] * 1), request([]), request(long[:30])])
    assert sorted(noting.shapes) == [(1, 300), (4, 30)]


def test_gathered_rows_of_histories_are_bounded(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    noting = Noting(ranker)
    width = noting.rows["history"].width
    monkeypatch.setattr(scoring, "FLOATS", 3 * 512 * width)
    requests = [request(range(1, 301)) for _ in range(8)]
    together = noting.score(requests)
    assert noting.shapes == [(3, 300), (3, 300), (2, 300)]
    np.testing.assert_allclose(np.stack(together), np.stack([noting.score([one])[0] for one in requests]))


def test_an_explanation_looks_at_a_bounded_number_of_items(ranker: Ranker) -> None:
    noting = Noting(ranker)
    history = [*np.random.default_rng(0).permutation(ITEMS) + 1]
    rows = np.array([7, 8, 9])
    effects = explain(noting, request(history), rows)
    assert noting.scored == LOOKED_AT + 1
    whole = noting.score([request(history, 9)])[0][6:]
    for candidate, effect in enumerate(effects):
        assert set(effect) <= set(history[-LOOKED_AT:])
        for item, change in effect.items():
            rest = [one for one in history if one != item]
            without = noting.score([request(rest, 9)])[0][6 + candidate]
            assert change == pytest.approx(whole[candidate] - without, abs=1e-5)


def test_an_explanation_finds_the_strongest_of_the_items_met_last(
    ranker: Ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = list(range(1, 61))
    every = explain(Noting(ranker), request(history), np.array([70]))
    monkeypatch.setattr(explaining, "LOOKED_AT", 60)
    assert explain(Noting(ranker), request(history), np.array([70])) == every
    monkeypatch.setattr(explaining, "LOOKED_AT", 1)
    (effect,) = explain(Noting(ranker), request(history), np.array([70]))
    assert set(effect) <= {60}


@pytest.mark.parametrize("reads", ["all", "events"])
def test_an_empty_history_is_one_column_of_padding(ranker: Ranker, reads: str) -> None:

    info = msgspec.structs.replace(ranker.info, reads=reads)
    inputs = model_inputs([request([])], info, {"history", "history_mask", "context"})
    assert inputs["history"].tolist() == [[0]] and inputs["history_mask"].tolist() == [[0.0]]
    assert inputs["context"].shape == (1, info.moments.width)


def test_what_is_shown_of_a_history(ranker: Ranker) -> None:

    def of(reads: str, length: int, item: Sequence[int]) -> list[int]:
        info = msgspec.structs.replace(ranker.info, reads=reads, history=length)
        return shown(events(item), info).item.tolist()  # type: ignore[no-any-return]

    assert of("all", 5, [1, 2, 9, 3, 2, 3, 4]) == [9, 2, 3, 4]
    assert of("events", 5, [1, 2, 9, 3, 2, 3, 4]) == [9, 3, 2, 3, 4]
    assert of("recent", 5, [1, 2, 9, 3, 2, 3, 4]) == [1, 2, 9, 3, 2, 3, 4], "the batch is cut later"
    assert of("all", 5, []) == of("events", 5, []) == []
