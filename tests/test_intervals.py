"""Intervals by resampling: against all resamples that exist, the normal law, and their promise."""

import inspect
import itertools

import numpy as np
import pytest

from rmacjax.evaluation import bootstrap_interval, intervals, paired_difference


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_equals_all_resamples_of_a_few_queries(level):
    """Five queries can be drawn in 5 ** 5 ways, all of them equally likely."""
    scores = [0.1, 0.25, 0.6, 0.61, 0.97]
    means = np.sort([np.mean(drawn) for drawn in itertools.product(scores, repeat=5)])
    found = bootstrap_interval(scores, level=level, resamples=200_000)
    assert found.mean == pytest.approx(np.mean(scores))
    for end, share in ((found.low, (1 - level) / 2), (found.high, (1 + level) / 2)):
        below, upto = (np.searchsorted(means, end, side) / len(means) for side in ("left", "right"))
        assert below - 0.005 <= share <= upto + 0.005


def test_many_queries_give_the_normal_interval(rng):
    scores = rng.random(2_000)
    found = bootstrap_interval(scores, resamples=4_000)
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    np.testing.assert_allclose(found[1:], [found.mean - half, found.mean + half], atol=half / 15)


def test_the_interval_holds_the_truth_about_as_often_as_it_says(rng):
    held = 0
    for seed in range(300):
        found = bootstrap_interval(rng.beta(2, 1, size=40), resamples=400, seed=seed)
        held += found.low <= 2 / 3 <= found.high
    assert 0.88 <= held / 300 <= 0.99


def test_queries_without_a_score_are_left_out_and_seeds_repeat(rng, monkeypatch):
    there = rng.random(25)
    scores = np.insert(there, [3, 25], np.nan)
    found = bootstrap_interval(scores, seed=3)
    assert found == bootstrap_interval(there, seed=3)
    assert found != bootstrap_interval(scores, seed=4)
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 51)  # two draws at a time
    assert bootstrap_interval(scores, seed=3) == found, "memory must not decide what is drawn"
    assert np.isnan(bootstrap_interval([float("nan")])).all()
    assert bootstrap_interval([0.25]) == (0.25, 0.25, 0.25)


def test_a_small_steady_difference_is_real_and_a_large_unsteady_one_is_not(rng):
    hard = rng.random(30)
    steady = paired_difference(hard + 0.01 + 0.002 * rng.normal(size=30), hard)
    assert steady.excludes_zero and steady.mean == pytest.approx(0.01, abs=0.002)
    unsteady = paired_difference(rng.permutation(hard) + 0.02, hard)
    assert not unsteady.excludes_zero
    # Not paired, the queries' own spread hides the first difference.
    apart = bootstrap_interval(hard)
    assert apart.high - apart.low > 10 * (steady.high - steady.low)
    swapped = paired_difference(hard, hard + 0.125)
    assert swapped.excludes_zero and swapped.high < 0
    assert not paired_difference(hard, hard).excludes_zero


def test_what_has_no_score_on_both_sides_is_left_out():
    nan = float("nan")
    assert paired_difference([0.5, nan, 0.75], [0.25, nan, 0.5]) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="Query 1 has a score on one side only"):
        paired_difference([0.5, nan], [0.5, 0.5])


def test_errors():
    with pytest.raises(ValueError, match="level is a share between 0 and 1"):
        bootstrap_interval([0.5], level=1.0)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_interval([0.5], resamples=0)
    with pytest.raises(ValueError, match=r"not of shape \(1, 1\)"):
        inspect.unwrap(bootstrap_interval)(np.ones((1, 1)))
    with pytest.raises(ValueError, match="2 scores on one side and 1 on the other"):
        inspect.unwrap(paired_difference)([0.5, 0.5], [0.5])
