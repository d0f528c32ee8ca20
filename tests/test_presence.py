"""ROC curves and thresholds against counting pairs and trying every line one could draw."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmacjax.evaluation import learn_thresholds, roc, threshold_at

# Few different values, so that most lists hold ties.
scores = st.lists(st.integers(-3, 4).map(lambda i: i / 4), min_size=1, max_size=20)


@given(present=scores, absent=scores)
def test_the_curve_counts_and_its_area_is_the_share_of_pairs_won(present, absent):
    curve = roc(present, absent)
    assert curve.thresholds[0] == np.inf
    assert curve.thresholds[1:].tolist() == sorted({*present, *absent}, reverse=True)
    for t, false_alarm, hit in zip(*curve[:3], strict=True):
        assert false_alarm == sum(s >= t for s in absent) / len(absent)
        assert hit == sum(s >= t for s in present) / len(present)
    pairs = [Fraction((p > a) - (p < a) + 1, 2) for p in present for a in absent]
    assert curve.auc == float(sum(pairs) / len(pairs))
    trapezoids = np.trapezoid(curve.hits, curve.false_alarms)
    assert trapezoids == pytest.approx(curve.auc, abs=1e-12)


def test_the_ends_of_the_curve():
    assert roc([2, 3], [0, 1]).auc == 1.0
    assert roc([0], [1, 2]).auc == 0.0
    same = roc([0.5, 0.5], [0.5])
    assert same.auc == 0.5
    assert (same.false_alarms.tolist(), same.hits.tolist()) == ([0, 1], [0, 1])


@given(absent=scores, percent=st.integers(0, 100))
def test_the_threshold_is_the_least_that_keeps_the_promise(absent, percent):
    allowed = Fraction(percent, 100)
    threshold = threshold_at(absent, false_alarm=percent / 100)

    def kept(line):
        return Fraction(sum(s >= line for s in absent), len(absent)) <= allowed

    assert kept(threshold)
    if threshold == -np.inf:
        assert allowed == 1
    else:
        assert not kept(np.nextafter(threshold, -np.inf))


def test_with_few_queries_the_threshold_is_just_above_the_largest():
    absent = np.linspace(0, 0.7, 99)
    assert threshold_at(absent) == np.nextafter(0.7, 1)
    hundred = np.append(absent, 0.9)
    assert threshold_at(hundred) == np.nextafter(0.7, 1)
    tied = np.append(absent, [0.9, 0.9])
    assert threshold_at(tied) == np.nextafter(0.9, 1)
    assert threshold_at(np.arange(100.0), false_alarm=0.29) == np.nextafter(70.0, 100)


def test_thresholds_are_learned_kind_by_kind():
    learned = learn_thresholds({"filter": [0.5, 0.25], "expand": [0.125]}, false_alarm=0.5)
    assert learned == (("filter", np.nextafter(0.25, 1)), ("expand", np.nextafter(0.125, 1)))
    with pytest.raises(ValueError, match="threshold of 'rerank' cannot be learned: The absent"):
        learn_thresholds({"rerank": []})


def test_errors():
    with pytest.raises(ValueError, match="present scores are a list of at least one number"):
        roc([], [1.0])
    with pytest.raises(ValueError, match="absent scores hold a nan"):
        roc([1.0], [float("nan")])
    with pytest.raises(ValueError, match=r"false_alarm is a share and lies in 0..1, not 1.5"):
        threshold_at([1.0], false_alarm=1.5)
    with pytest.raises(ValueError, match=r"not of shape \(1, 1\)"):
        inspect.unwrap(threshold_at)(np.ones((1, 1)))
