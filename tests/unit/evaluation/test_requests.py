"""Who is asked for what, with which past, and against which candidates."""

from __future__ import annotations

import numpy as np
import pytest

from app.data.dataset import COLUMNS, Part
from app.evaluation.candidates import excluded_of, listed_of, sampled_of, seen_of
from app.evaluation.requests import Requests, requests_of
from app.features.context import DAY
from app.models.batch import recent_of
from tests.tiny import tiny_dataset

ALL = slice(None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("requests") / "dataset", users=30, negatives=5)


class Fixed:
    """A data set made of rows (user, item, day[, label]), for hand-worked cases."""

    def __init__(self, dataset, folder, **parts):
        self.schema, self.feature, self.popularity = dataset.schema, dataset.feature, dataset.popularity
        for name in ("train", "valid", "test"):
            self._write(folder / name, sorted(parts.get(name, []), key=lambda row: (row[0], row[2])))
            setattr(self, name, Part.load(folder / name))

    def _write(self, folder, rows):
        table = np.array([(u, i, day * DAY, 1, 1, *(label or [1])) for u, i, day, *label in rows])
        table = table.reshape(-1, len(COLUMNS)).astype(np.int64)
        Part.save(folder, dict(zip(COLUMNS, table.T, strict=True)), self.schema.users)

    def history(self, *ends_and_more):
        from app.data.dataset import Dataset

        return Dataset.history(self, *ends_and_more)

    def recent(self, users, *parts, **options):
        from app.data.dataset import Dataset

        return Dataset.recent(self, users, *parts, **options)


def padded(requests: Requests) -> list[list[int]]:
    return requests.padded(ALL, requests.target).tolist()


class TestRequests:
    def test_one_request_a_user_with_its_distinct_positive_items(self, dataset, tmp_path):
        test = [(1, 7, 30), (1, 5, 31), (1, 7, 32), (1, 9, 33, 0), (2, 4, 40)]
        requests = requests_of(Fixed(dataset, tmp_path, train=[(1, 1, 1), (2, 1, 1)], test=test), "test")
        assert requests.user.tolist() == [1, 2]
        assert padded(requests) == [[5, 7], [4, -1]]
        assert requests.now.tolist() == [30 * DAY, 40 * DAY]

    def test_an_unknown_item_counts_once_an_event(self, dataset, tmp_path):
        test = [(1, 0, 30), (1, 0, 31), (1, 3, 32)]
        requests = requests_of(Fixed(dataset, tmp_path, train=[(1, 1, 1)], test=test), "test")
        assert sorted(padded(requests)[0]) == [0, 0, 3]

    def test_unknown_users_events_of_a_moment_are_one_request_without_history(self, dataset, tmp_path):
        fixed = Fixed(
            dataset,
            tmp_path,
            train=[(1, 1, 1)],
            valid=[(0, 2, 5)],
            test=[(0, 3, 30), (0, 6, 30), (0, 4, 31), (1, 5, 30)],
        )
        requests = requests_of(fixed, "test")
        assert requests.user.tolist() == [0, 0, 1]
        assert padded(requests) == [[3, 6], [4, -1], [5, -1]]
        assert not recent_of(fixed, requests.user, requests.past)[0][:2].any()
        assert set(seen_of(requests, ALL)[0]) == {2}

    def test_the_past_of_test_includes_valid_and_that_of_valid_does_not(self, dataset, tmp_path):
        fixed = Fixed(dataset, tmp_path, train=[(1, 1, 1)], valid=[(1, 2, 5)], test=[(1, 3, 9)])
        for part, met in (("test", [1, 2]), ("valid", [1])):
            batch = requests_of(fixed, part).batch(fixed, ALL, np.zeros((1, 0), np.int64))
            item = batch.history.item[0]
            assert item[item > 0].tolist() == met

    def test_a_request_is_not_made_before_its_history(self, dataset, tmp_path):
        fixed = Fixed(dataset, tmp_path, train=[(1, 1, 10), (1, 2, 50)], test=[(1, 3, 20)])
        batch = requests_of(fixed, "test").batch(fixed, ALL, np.zeros((1, 0), np.int64))
        assert batch.history.age[0, -2:].tolist() == pytest.approx([np.log1p(40 * 24), 0])

    def test_sampling_is_seeded_and_keeps_whole_requests(self, dataset):
        requests = requests_of(dataset, "test")
        sample, again = requests.sample(7, 3), requests.sample(7, 3)
        assert len(sample) == 7
        assert (sample.user == again.user).all()
        everything = dict(zip(requests.user.tolist(), padded(requests), strict=True))
        assert padded(sample) == [everything[user] for user in sample.user.tolist()]
        assert requests.sample(0, 3) is requests
        assert len(requests.sample(1000, 3)) == len(requests)


class TestCandidates:
    def test_all_that_a_user_did_before_is_excluded(self, dataset):
        requests = requests_of(dataset, "test")
        rows, items = excluded_of(requests, ALL, requests.padded(ALL, requests.target))
        for row, user in enumerate(requests.user):
            met = [np.asarray(part.item)[np.asarray(part.user) == user] for part in requests.past]
            assert sorted(items[rows == row]) == sorted(np.concatenate(met))

    def test_nothing_is_excluded_for_who_returns_to_an_item(self, dataset, tmp_path):
        train = [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)]
        requests = requests_of(Fixed(dataset, tmp_path, train=train, test=[(1, 2, 9), (2, 3, 9)]), "test")
        rows, items = excluded_of(requests, ALL, requests.padded(ALL, requests.target))
        assert rows.tolist() == [1, 1]
        assert items.tolist() == [1, 2]

    def test_listed_negatives_are_those_of_the_target_events(self, dataset):
        requests = requests_of(dataset, "test")
        listed = listed_of(requests, ALL, requests.padded(ALL, requests.target))
        np.testing.assert_array_equal(listed, np.sort(dataset.test.negatives[requests.row], 1))

    def test_sampled_negatives_are_distinct_unmet_and_no_targets(self, dataset):
        requests = requests_of(dataset, "valid")
        targets = requests.padded(ALL, requests.target)
        drawn = sampled_of(requests, ALL, targets, dataset.schema.items, 20, np.random.default_rng(0))
        rows, met = seen_of(requests, ALL)
        for row, negatives in enumerate(drawn):
            assert len(set(negatives)) == 20
            assert not set(negatives) & {0, *met[rows == row], *targets[row]}

    def test_who_has_met_almost_everything_gets_fewer(self, dataset, tmp_path):
        count = dataset.schema.items
        train = [(1, item, item) for item in range(1, count - 3)]
        requests = requests_of(Fixed(dataset, tmp_path, train=train, valid=[(1, count - 3, 99)]), "valid")
        targets = requests.padded(ALL, requests.target)
        drawn = sampled_of(requests, ALL, targets, count, 9, np.random.default_rng(0))
        assert sorted(set(drawn[0])) == [0, count - 2, count - 1]
