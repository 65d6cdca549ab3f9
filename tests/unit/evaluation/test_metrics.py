"""Metrics against scikit-learn, hand-worked cases and properties that hold for any ranking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from app.evaluation import metrics

RNG = np.random.default_rng(0)
KS = [1, 3, 5, 10]


def counted(scores, relevant):
    """owner, higher, equal, candidates of dense scores (U, N) and relevance (U, N)."""
    owner, items = np.nonzero(relevant)
    own = scores[owner, items][:, None]
    return (
        owner,
        (scores[owner] > own).sum(1),
        (scores[owner] == own).sum(1),
        np.full(len(scores), scores.shape[1]),
    )


def ranked(scores, relevant, seed=0):
    owner, higher, equal, _ = counted(scores, relevant)
    return owner, metrics.break_ties(owner, higher, equal, np.random.default_rng(seed))


@pytest.fixture
def random_case():
    """40 requests over 25 items with 1 to 6 targets each, no ties."""
    scores = RNG.permuted(np.tile(np.arange(25.0), (40, 1)), axis=1)
    relevant = np.zeros((40, 25), int)
    for row in relevant:
        row[RNG.choice(25, RNG.integers(1, 7), replace=False)] = 1
    return scores, relevant


class TestAgainstScikitLearn:
    @pytest.mark.parametrize("k", KS)
    def test_ndcg(self, random_case, k):
        scores, relevant = random_case
        ours = metrics.at_k(*ranked(scores, relevant), 40, [k])[f"ndcg@{k}"]
        assert ours.mean() == pytest.approx(sk.ndcg_score(relevant, scores, k=k))

    def test_auc_without_ties(self, random_case):
        scores, relevant = random_case
        expected = [sk.roc_auc_score(r, s) for r, s in zip(relevant, scores, strict=True)]
        np.testing.assert_allclose(metrics.auc(*counted(scores, relevant)), expected)

    def test_auc_with_ties(self, random_case):
        scores, relevant = random_case
        coarse = scores // 6
        expected = [sk.roc_auc_score(r, s) for r, s in zip(relevant, coarse, strict=True)]
        np.testing.assert_allclose(metrics.auc(*counted(coarse, relevant)), expected)

    def test_average_precision_over_the_whole_list(self, random_case):
        scores, relevant = random_case
        expected = [sk.average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
        np.testing.assert_allclose(metrics.at_k(*ranked(scores, relevant), 40, [25])["map@25"], expected)

    def test_reciprocal_rank_is_label_ranking_average_precision_of_single_targets(self, random_case):
        scores, _ = random_case
        relevant = np.eye(25, dtype=int)[RNG.integers(0, 25, 40)]
        ours = metrics.at_k(*ranked(scores, relevant), 40, [25])["mrr@25"].mean()
        assert ours == pytest.approx(sk.label_ranking_average_precision_score(relevant, scores))

    @pytest.mark.parametrize("k", KS)
    def test_recall_and_precision_of_the_first_k(self, random_case, k):
        scores, relevant = random_case
        figures = metrics.at_k(*ranked(scores, relevant), 40, [k])
        chosen = (np.argsort(np.argsort(-scores, 1), 1) < k).astype(int)
        for name, score in (("recall", sk.recall_score), ("precision", sk.precision_score)):
            assert figures[f"{name}@{k}"].mean() == pytest.approx(score(relevant, chosen, average="samples"))

    def test_log_loss(self):
        logits, label = RNG.normal(0, 3, 200), RNG.integers(0, 2, 200)
        expected = sk.log_loss(label, metrics.sigmoid(logits))
        assert metrics.log_loss(logits, label).mean() == pytest.approx(expected)


class TestByHand:
    def test_two_targets_at_the_second_and_fourth_rank(self):
        figures = metrics.at_k(np.array([0, 0]), np.array([4.0, 2.0]), 1, [3, 5])
        ideal = 1 + 1 / np.log2(3)
        expected = {
            "recall@3": 0.5,
            "precision@3": 1 / 3,
            "hit_rate@3": 1.0,
            "ndcg@3": (1 / np.log2(3)) / ideal,
            "mrr@3": 0.5,
            "map@3": (1 / 2) / 2,
            "recall@5": 1.0,
            "precision@5": 0.4,
            "hit_rate@5": 1.0,
            "ndcg@5": (1 / np.log2(3) + 1 / np.log2(5)) / ideal,
            "mrr@5": 0.5,
            "map@5": (1 / 2 + 2 / 4) / 2,
        }
        assert {name: float(v[0]) for name, v in figures.items()} == pytest.approx(expected)

    def test_a_target_that_is_never_ranked_is_a_miss(self):
        figures = metrics.at_k(np.array([0, 0]), np.array([1.0, np.inf]), 1, [2])
        assert figures["recall@2"] == 0.5
        assert figures["ndcg@2"] == pytest.approx(1 / (1 + 1 / np.log2(3)))
        assert figures["map@2"] == 0.5

    def test_a_target_that_is_never_ranked_loses_every_pair_of_the_auc(self):
        # Four candidates, the one known target first of them: 3 pairs won, 3 lost.
        area = metrics.auc(np.array([0, 0]), np.array([0, 0]), np.array([1, 0]), np.array([4]))
        assert area == [0.5]

    def test_auc_without_a_pair_is_not_a_number(self):
        assert np.isnan(metrics.auc(np.array([0]), np.array([0]), np.array([1]), np.array([1]))).all()

    def test_log_loss_of_extreme_logits_is_finite(self):
        loss = metrics.log_loss(np.array([1e4, -1e4, 1e4]), np.array([1.0, 0.0, 0.0]))
        assert loss == pytest.approx([0, 0, 1e4])

    def test_calibration(self):
        probability = np.array([0.1, 0.1, 0.9, 0.9])
        bins = metrics.calibration(probability, np.array([0, 1, 1, 1]), bins=2)
        assert bins == [
            {"predicted": pytest.approx(0.1), "observed": 0.5, "count": 2},
            {"predicted": pytest.approx(0.9), "observed": 1.0, "count": 2},
        ]
        assert metrics.calibration_error(bins) == pytest.approx((0.4 + 0.1) / 2)

    def test_a_probability_of_one_falls_into_the_last_bin(self):
        assert metrics.calibration(np.array([1.0]), np.array([1]))[0]["count"] == 1

    def test_coverage_does_not_count_empty_places(self):
        assert metrics.coverage(np.array([[1, 2], [2, 0]]), items=4) == 0.5

    def test_self_information_is_in_bits(self):
        assert metrics.self_information(np.array([0, 0, 1])) == pytest.approx([2, 2, 1])


class TestTies:
    def test_a_constant_scorer_gets_the_random_figure_not_a_perfect_one(self):
        users, items = 4000, 50
        relevant = np.eye(items, dtype=int)[RNG.integers(0, items, users)]
        figures = metrics.at_k(*ranked(np.zeros((users, items)), relevant), users, [10])
        expected = (1 / np.log2(np.arange(2, 12))).sum() / items  # over a uniform rank
        assert figures["hit_rate@10"].mean() == pytest.approx(10 / items, abs=0.03)
        assert figures["ndcg@10"].mean() == pytest.approx(expected, abs=0.015)
        assert metrics.auc(*counted(np.zeros((users, items)), relevant)).mean() == 0.5

    def test_tied_targets_of_a_request_take_distinct_ranks(self):
        relevant = np.ones((300, 4), int)
        relevant[:, 3] = 0
        owner, rank = ranked(np.zeros((300, 4)), relevant)
        ranks = rank.reshape(300, 3)
        assert all(len(set(row)) == 3 for row in ranks)
        # Each of the four ranks is taken by three targets out of four, within chance.
        assert np.bincount(rank.astype(int))[1:] / 300 == pytest.approx([0.75] * 4, abs=0.1)
        assert metrics.at_k(owner, rank, 300, [4])["recall@4"].min() == 1

    def test_the_same_seed_breaks_ties_the_same_way(self):
        scores, relevant = np.zeros((20, 9)), np.eye(9, dtype=int)[RNG.integers(0, 9, 20)]
        assert (ranked(scores, relevant, 3)[1] == ranked(scores, relevant, 3)[1]).all()
        assert (ranked(scores, relevant, 3)[1] != ranked(scores, relevant, 4)[1]).any()


@st.composite
def cases(draw):
    """Few distinct scores, so that ties are common; at least one target a request."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(2, 12)))
    scores = draw(hnp.arrays(float, shape, elements=st.integers(0, 6).map(float)))
    relevant = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 1)))
    relevant[:, 0] = 1
    return scores, relevant


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(cases(), st.integers(1, 12))
    def test_every_figure_is_between_0_and_1(self, case, k):
        figures = metrics.at_k(*ranked(*case), len(case[0]), [k])
        assert all(((v >= 0) & (v <= 1 + 1e-12)).all() for v in figures.values())

    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_ranks_are_distinct_places_that_respect_the_scores(self, case):
        scores, relevant = case
        owner, higher, equal, candidates = counted(scores, relevant)
        rank = metrics.break_ties(owner, higher, equal, np.random.default_rng(0))
        assert ((higher < rank) & (rank <= higher + equal)).all()
        for user in range(len(scores)):
            mine = rank[owner == user]
            assert len(set(mine)) == len(mine)
            assert mine.max() <= candidates[user]

    @settings(max_examples=60, deadline=None)
    @given(cases(), st.randoms(use_true_random=False))
    def test_the_order_of_the_items_does_not_matter(self, case, random):
        scores, relevant = case
        order = list(range(scores.shape[1]))
        random.shuffle(order)
        distinct = scores + np.arange(scores.shape[1]) / 100
        moved = metrics.at_k(*ranked(distinct[:, order], relevant[:, order]), len(scores), [3])
        for name, values in metrics.at_k(*ranked(distinct, relevant), len(scores), [3]).items():
            np.testing.assert_allclose(moved[name], values, err_msg=name)

    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_only_the_order_of_the_scores_matters(self, case):
        scores, relevant = case
        bent = metrics.auc(*counted(np.exp(scores) * 3 - 1, relevant))
        np.testing.assert_allclose(bent, metrics.auc(*counted(scores, relevant)))

    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_a_target_that_moves_up_never_hurts(self, case):
        scores, relevant = case
        distinct = scores + np.arange(scores.shape[1]) / 100
        before = metrics.at_k(*ranked(distinct, relevant), len(scores), [2, 5])
        distinct[:, 0] += 0.5 + distinct.max()
        after = metrics.at_k(*ranked(distinct, relevant), len(scores), [2, 5])
        assert all((after[name] >= before[name] - 1e-12).all() for name in before)

    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_recall_and_hit_rate_grow_with_k(self, case):
        figures = metrics.at_k(*ranked(*case), len(case[0]), [2, 4])
        for name in ("recall", "hit_rate", "mrr"):
            assert (figures[f"{name}@4"] >= figures[f"{name}@2"]).all()

    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_turning_the_scores_round_turns_the_auc_round(self, case):
        scores, relevant = case
        total = metrics.auc(*counted(scores, relevant)) + metrics.auc(*counted(-scores, relevant))
        np.testing.assert_allclose(total[np.isfinite(total)], 1)

    @settings(max_examples=60, deadline=None)
    @given(
        hnp.arrays(float, st.integers(1, 50), elements=st.floats(0, 1)),
        st.integers(0, 2**32 - 1),
    )
    def test_calibration_error_is_bounded_and_loses_no_point(self, probability, seed):
        label = np.random.default_rng(seed).integers(0, 2, len(probability))
        bins = metrics.calibration(probability, label)
        assert sum(b["count"] for b in bins) == len(probability)
        assert 0 <= metrics.calibration_error(bins) <= 1 + 1e-12
