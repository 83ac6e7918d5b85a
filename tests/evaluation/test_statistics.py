"""Intervals cover the truth, and tests keep their level and find what is there."""

from importlib.util import find_spec

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, v_measure_score

from embedlm.errors import InputError
from embedlm.evaluation.measures import (
    average_precision_rows,
    best_thresholds,
    matched_f1,
    spearman_rows,
    v_measure_rows,
)
from embedlm.evaluation.statistics import (
    bootstrap,
    clustered_error,
    clusters_of,
    detectable,
    holm,
    jackknife,
    mean_of,
    sign_flip,
    standard_error,
    swap_test,
    wilson,
)

RNG = np.random.default_rng(0)


def test_the_interval_is_scipy_s():
    values = RNG.exponential(size=80)
    found = bootstrap(mean_of(values), 80, resamples=3000, seed=7)
    theirs = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=3000, rng=np.random.default_rng(7)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_the_interval_of_a_correlation_is_scipy_s():
    gold = RNG.normal(size=60)
    scores = gold + RNG.normal(size=60)

    def rows(index_RN):
        return spearman_rows(scores[index_RN], gold[index_RN])

    found = bootstrap(rows, 60, resamples=1000, seed=7)
    theirs = stats.bootstrap(
        (np.arange(60),),
        lambda index, axis: rows(np.atleast_2d(index)),
        method="BCa",
        n_resamples=1000,
        vectorized=True,
        rng=np.random.default_rng(7),
    ).confidence_interval
    wanted = (float(theirs.low[0]), float(theirs.high[0]))
    assert (found.low, found.high) == pytest.approx(wanted)
    assert found.estimate == pytest.approx(stats.spearmanr(scores, gold).statistic)


def test_intervals_cover_the_truth():
    """Exponential values, whose mean is 1: 95 % of 500 intervals, give or take 3 errors."""
    inside = [
        (found := bootstrap(mean_of(values), 80, resamples=600, seed=i)).low <= 1 <= found.high
        for i, values in enumerate(RNG.exponential(size=(500, 80)))
    ]
    assert 0.91 <= np.mean(inside) <= 0.98


def test_clusters_are_drawn_whole_and_cover():
    """Units of a cluster share an effect: drawing units alone would be far too sure."""
    inside, alone = [], []
    for i in range(60):
        effects = RNG.normal(size=30)
        clusters = np.repeat(np.arange(30), 5)
        values = effects[clusters] + 0.3 * RNG.normal(size=150)
        found = bootstrap(mean_of(values), 150, clusters=clusters.tolist(), resamples=300, seed=i)
        plain = bootstrap(mean_of(values), 150, resamples=300, seed=i)
        inside.append(found.low <= 0 <= found.high)
        alone.append(plain.low <= 0 <= plain.high)
    assert np.mean(inside) >= 0.85
    assert np.mean(alone) < 0.8


def test_the_test_keeps_its_level_and_finds_an_effect():
    """2,000 runs without an effect: at most 6 % are called significant at 5 %."""
    null = RNG.exponential(size=(2000, 40)) * RNG.choice([-1, 1], size=(2000, 40))
    p = np.array([sign_flip(row, permutations=400) for row in null])
    assert 0.035 <= (p <= 0.05).mean() <= 0.06
    assert np.mean([sign_flip(row + 0.8, permutations=400) <= 0.05 for row in null[:200]]) > 0.9


def test_few_differences_are_counted_exactly():
    differences = RNG.normal(size=9) + 0.3
    theirs = stats.permutation_test(
        (differences, np.zeros(9)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert sign_flip(differences) == pytest.approx(theirs.pvalue)
    assert sign_flip([0.0, 0.0]) == 1
    assert sign_flip([1.0] * 6) == 2 / 2**6


def test_swaps_keep_their_level_and_find_an_effect():
    gold = RNG.normal(size=60)

    def p_of(noise_a, noise_b, seed):
        a, b = gold + noise_a * RNG.normal(size=60), gold + noise_b * RNG.normal(size=60)

        def difference(swap_RN):
            golds = np.broadcast_to(gold, swap_RN.shape)
            return spearman_rows(np.where(swap_RN, a, b), golds) - spearman_rows(
                np.where(swap_RN, b, a), golds
            )

        return swap_test(difference, 60, permutations=100, seed=seed)

    null = [p_of(1, 1, i) <= 0.05 for i in range(150)]
    assert np.mean(null) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
    assert np.mean([p_of(2, 0.3, i) <= 0.05 for i in range(20)]) > 0.8


def test_holm_is_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.5])
    if find_spec("statsmodels"):
        from statsmodels.stats.multitest import multipletests

        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_the_clustered_error():
    clusters = RNG.integers(0, 20, 100)
    values = RNG.normal(size=100) + RNG.normal(size=20)[clusters]
    sums = np.bincount(clusters, weights=values - values.mean())
    count = len(np.unique(clusters))
    wanted = np.sqrt((sums**2).sum() * count / (count - 1)) / 100
    assert clustered_error(values, [[c] for c in clusters]) == pytest.approx(wanted)
    assert clustered_error(values, [[i] for i in range(100)]) == pytest.approx(
        standard_error(values)
    )
    # A chain of shared documents is one cluster, and only neighbours depend on each other.
    chain = [[i, i + 1] for i in range(100)]
    assert len(set(clusters_of(chain))) == 1
    smooth = np.convolve(RNG.normal(size=101), [1, 1], "valid")
    assert clustered_error(smooth, chain) > 1.15 * standard_error(smooth)
    assert clusters_of([["a"], ["b"], ["b", "a"], ["c"]]).count(clusters_of([["a"]])[0]) == 3


def test_the_detectable_effect_is_found_four_times_in_five():
    error = 1 / np.sqrt(50)
    differences = RNG.normal(detectable(error), 1, size=(400, 50))
    found = np.mean([sign_flip(row, permutations=300) <= 0.05 for row in differences])
    assert found == pytest.approx(0.8, abs=0.07)


def test_wilson_stays_open_at_the_ends():
    low, high = wilson(1.0, 20)
    assert (low, high) == pytest.approx(
        tuple(stats.binomtest(20, 20).proportion_ci(method="wilson"))
    )
    with pytest.raises(InputError, match="2 units or clusters at least"):
        bootstrap(mean_of([1.0]), 1)


def test_the_jackknife_s_error_of_a_mean_is_its_standard_error():
    values = RNG.normal(size=50)
    found = jackknife(mean_of(values), 50)
    assert found.high - found.estimate == pytest.approx(1.959964 * standard_error(values))


def test_measures_are_scikit_learn_s_with_ties():
    scores, labels = RNG.integers(0, 6, (20, 40)), RNG.integers(0, 2, (20, 40))
    wanted = [average_precision_score(*row) for row in zip(labels, scores, strict=True)]
    np.testing.assert_allclose(average_precision_rows(scores, labels), wanted)
    a, b = RNG.integers(0, 4, 40), RNG.integers(0, 5, 40)
    index = RNG.integers(0, 40, (10, 40))
    wanted = [v_measure_score(a[row], b[row]) for row in index]
    np.testing.assert_allclose(v_measure_rows(a, b, index), wanted)
    predicted = RNG.integers(0, 30, 30)
    assert matched_f1(predicted).mean() == pytest.approx(
        f1_score(np.arange(30), predicted, average="weighted", zero_division=0)
    )
    assert best_thresholds([3, 2, 1], [1, 1, 0]) == {"accuracy": 1.0, "f1": 1.0}
    assert best_thresholds([1, 1, 1], [1, 0, 0]) == {"accuracy": 0.0, "f1": 0.0}
