"""Fixed arithmetic of the metrics, and the statistics behind intervals and tests."""

import math

import numpy as np
import pytest
from scipy import stats

from litsearch.metrics import gold_ranks, lexical_overlap, mrr, ndcg, ndcg_graded, ndcg_released, recall_at_k
from litsearch.significance import bootstrap_means, holm, interval, paired_difference, paired_t_p, randomization_p


@pytest.mark.parametrize(
    ("retrieved", "gold", "recall"),
    [([1, 1, 2], [1, 3], 0.5), ([], [], 0), ([5], [5, 5], 0.5), ([1, 2], [2], 1), ([], [1], 0)],
)
def test_recall_is_the_releases(retrieved, gold, recall):
    assert recall_at_k(retrieved, gold) == recall


def test_recall_at_k_cuts_the_list():
    assert [recall_at_k([9, 1, 8, 2], [1, 2], k) for k in (1, 2, 3, 4, 100)] == [0, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("retrieved", "gold", "value"),
    [([1, 2, 3], [2], 0.5), ([2, 2, 3], [2], 1.5), ([9, 2, 7, 4], [2, 4], 0.5), ([1], [], 0), ([4, 2], [2, 4], 1)],
)
def test_the_released_ndcg_discounts_by_the_rank(retrieved, gold, value):
    assert ndcg_released(retrieved, gold) == pytest.approx(value)


def test_the_released_ndcg_is_the_reciprocal_rank_for_one_answer():
    ranked = list(range(30))
    assert [ndcg_released(ranked, [paper]) for paper in ranked] == [mrr(ranked, [paper], None) for paper in ranked]


def test_ndcg_has_the_standard_discount_and_cut_off():
    assert ndcg([9, 2, 7, 4], [2, 4]) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))
    assert ndcg([1, 2], [2], k=1) == 0
    assert ndcg([3, 2, 1], [1, 2, 3], k=2) == 1  # the ideal is cut too
    assert ndcg([1], []) == 0


def test_graded_ndcg_prefers_later_answers_and_equals_ndcg_for_one():
    assert ndcg_graded([2, 1], [1, 2]) == 1 > ndcg_graded([1, 2], [1, 2])
    assert ndcg_graded([5, 1], [1]) == ndcg([5, 1], [1])


def test_mrr_counts_the_first_answer_within_k():
    assert mrr([9, 8, 1, 2], [1, 2]) == pytest.approx(1 / 3)
    assert mrr([9, 8, 1], [1], k=2) == 0


def test_ranks_of_answers_are_from_one_and_none_where_not_found():
    assert gold_ranks([7, 8, 7, 9], [9, 7, 5]) == [4, 1, None]


def test_lexical_overlap_is_of_distinct_words_with_their_case():
    assert lexical_overlap("the cat the dog", "the Cat and the dog") == pytest.approx(2 / 3)
    assert lexical_overlap(" ", "text") == 0


def test_bootstrap_means_scatter_as_theory_says():
    values = np.random.default_rng(0).random(400)
    means = bootstrap_means(values, resamples=4000, seed=1)
    assert means.mean() == pytest.approx(values.mean(), abs=0.002)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.05)
    low, high = interval(means)
    assert low < values.mean() < high


def test_bootstrap_is_repeatable_and_resamples_columns_together():
    values = np.random.default_rng(0).random((50, 2))
    values = np.column_stack([values, values[:, 0]])
    means = bootstrap_means(values)
    assert means.shape == (1000, 3)
    assert np.allclose(means[:, 0], means[:, 2])
    assert np.array_equal(means, bootstrap_means(values, seed=0))
    with pytest.raises(ValueError, match="no questions"):
        bootstrap_means(np.zeros(0))


def test_the_randomization_test_is_exact_in_the_limit():
    differences = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert randomization_p(differences, 100_000) == pytest.approx(2 / 2**5, abs=0.003)
    assert randomization_p(np.zeros(5)) == 1
    assert randomization_p(np.array([1.0, -1.0])) == 1


def test_the_t_test_is_scipys():
    rng = np.random.default_rng(5)
    first, second = rng.random(30), rng.random(30)
    assert paired_t_p(first - second) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert (paired_t_p(np.zeros(4)), paired_t_p(np.ones(4))) == (1.0, 0.0)


def test_a_paired_difference_sees_what_unpaired_ones_miss():
    rng = np.random.default_rng(1)
    hard = rng.random(100) * 100
    found = paired_difference(hard + 1 + rng.normal(0, 0.5, 100), hard)
    assert 0.8 < found.low < found.difference < found.high < 1.2
    assert found.p_randomization < 0.001 and found.n == 100
    with pytest.raises(ValueError, match="not pairs"):
        paired_difference([1], [1, 2])


def test_holm_adjusts_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
