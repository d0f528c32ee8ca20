"""Scores against slow, independent counting, examples by hand, and each error by its sentence."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import average_precision, mean, precision_at, revisited

from rmacjax.evaluation import (
    first_place,
    mean_average_precision,
    mean_overlap,
    mean_precision_at,
    revisited_protocol,
)


@st.composite
def cases(draw):
    """Rankings (perhaps cut short) and, for each query, disjoint sets of images."""
    n = draw(st.integers(1, 25))
    q = draw(st.integers(1, 4))
    length = draw(st.integers(0, n))
    columns, sets = [], []
    for _ in range(q):
        columns.append(draw(st.permutations(range(n)))[:length])
        kinds = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
        sets.append([{i for i in range(n) if kinds[i] == kind} for kind in range(3)])
    return np.array(columns, int).reshape(q, length).T, sets


def arrays(sets, kind):
    return [np.array(sorted(each[kind]), int) for each in sets]


@settings(max_examples=200)
@given(cases())
def test_equals_slow_counting(case):
    ranks, sets = case
    result = mean_average_precision(ranks, arrays(sets, 0), arrays(sets, 1))
    slow = [
        average_precision(list(column), each[0], each[1])
        for column, each in zip(ranks.T, sets, strict=True)
    ]
    np.testing.assert_allclose(
        result.per_query, [np.nan if s is None else s for s in slow], rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(result.map, mean(slow), atol=1e-9)
    for k in (1, 3, 10):
        got = mean_precision_at(ranks, arrays(sets, 0), arrays(sets, 1), k)
        wanted = [
            precision_at(list(column), each[0], each[1], k)
            for column, each in zip(ranks.T, sets, strict=True)
        ]
        np.testing.assert_allclose(got, mean(wanted), atol=1e-9)


@settings(max_examples=100)
@given(cases())
def test_revisited_equals_slow_counting(case):
    ranks, sets = case
    result = revisited_protocol(ranks, arrays(sets, 0), arrays(sets, 1), arrays(sets, 2), ks=(1, 5))
    lists = [(list(column), *each) for column, each in zip(ranks.T, sets, strict=True)]
    for name in ("easy", "medium", "hard"):
        got = getattr(result, name)
        per_query, precisions = revisited(lists, name, ks=(1, 5))
        wanted = [np.nan if ap is None else ap for ap in per_query]
        np.testing.assert_allclose(got.per_query, wanted, rtol=0, atol=1e-9)
        np.testing.assert_allclose(got.map, mean(per_query), rtol=0, atol=1e-9)
        assert set(got.precision_at) == {1, 5}
        for k, value in got.precision_at.items():
            np.testing.assert_allclose(value, mean(precisions[k]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_large_rankings_of_tied_scores_equal_slow_counting(seed):
    """As a search makes them: scores with many ties, of equals the lower index first, cut short."""
    random = np.random.default_rng(seed)
    n, q = 500, 7
    scores = np.round(random.normal(size=(n, q)), 1)
    ranks = np.argsort(-scores, axis=0, kind="stable")[: n - 100 * seed]
    for column, own in zip(ranks.T, scores.T, strict=True):
        order = sorted(range(n), key=lambda image, own=own: (-own[image], image))
        assert column.tolist() == order[: len(column)]
    # Images from n on are in the ground truth but nowhere in the collection.
    kinds = random.choice(5, size=(q, n + 50), p=(0.05, 0.05, 0.1, 0.1, 0.7))
    kinds[0][kinds[0] < 2] = 4  # the first query has no positives
    sets = [[set(np.flatnonzero(own == kind).tolist()) for kind in range(3)] for own in kinds]
    lists = [(column.tolist(), *each) for column, each in zip(ranks.T, sets, strict=True)]
    result = revisited_protocol(ranks, arrays(sets, 0), arrays(sets, 1), arrays(sets, 2))
    for name in ("easy", "medium", "hard"):
        per_query, precisions = revisited(lists, name)
        got = getattr(result, name)
        assert per_query[0] is None and np.isnan(got.per_query[0])
        np.testing.assert_allclose(got.per_query[1:], per_query[1:], rtol=0, atol=1e-9)
        np.testing.assert_allclose(got.map, mean(per_query), rtol=0, atol=1e-9)
        for k, value in got.precision_at.items():
            np.testing.assert_allclose(value, mean(precisions[k]), rtol=0, atol=1e-9)


@settings(max_examples=50)
@given(cases(), st.randoms())
def test_order_within_the_rest_and_repeats_in_the_lists_do_not_matter(case, random):
    ranks, sets = case
    before = mean_average_precision(ranks, arrays(sets, 0), arrays(sets, 1))
    shuffled = ranks.copy()
    for column, each in zip(shuffled.T, sets, strict=True):
        rest = [i for i, image in enumerate(column) if image not in each[0] | each[1]]
        values = [column[i] for i in rest]
        random.shuffle(values)
        column[rest] = values
    doubled = [np.concatenate([index, index]) for index in arrays(sets, 0)]
    after = mean_average_precision(shuffled, doubled, arrays(sets, 1))
    np.testing.assert_array_equal(after.per_query, before.per_query)


def test_examples_by_hand():
    # Ranks 0 and 2 of two positives: (1 + 1) / 2 / 2 + (1/2 + 2/3) / 2 / 2.
    ranks = np.array([[0], [1], [2], [3]])
    assert mean_average_precision(ranks, [[0, 2]], [[]]).map == pytest.approx(0.5 + 7 / 24)
    # With image 1 as junk the two are first and second: perfect.
    assert mean_average_precision(ranks, [[0, 2]], [[1]]).map == pytest.approx(1.0)
    # A single positive at rank 1 (from 0): (0 + 1/2) / 2.
    assert mean_average_precision(ranks, [[1]], [[]]).map == pytest.approx(0.25)
    # A ranking without the second positive keeps the first one's half.
    assert mean_average_precision(ranks[:2], [[0, 2]], [[]]).map == pytest.approx(0.5)
    assert mean_average_precision(ranks[:0], [[0, 2]], [[]]).map == 0.0
    # Two of two positives, all in front: 1 at 10; the second at place 4: 2 of 4; left out: 1 of 10.
    assert mean_precision_at(ranks, [[0, 1]], [[]], 10) == 1.0
    assert mean_precision_at(ranks, [[0, 3]], [[]], 10) == 0.5
    assert mean_precision_at(ranks[:2], [[0, 3]], [[]], 10) == pytest.approx(0.1)


def test_queries_without_positives_are_skipped():
    ranks = np.array([[0, 0], [1, 1]])
    result = mean_average_precision(ranks, [[0], []], [[], [0]])
    assert result.map == 1.0
    assert result.per_query[0] == 1.0
    assert np.isnan(result.per_query[1])
    assert np.isnan(mean_average_precision(ranks, [[], []], [[], []]).map)
    assert np.isnan(first_place(ranks, [[], []]))


def test_first_place():
    ranks = np.array([[0, 1, 0], [1, 0, 1]])
    assert first_place(ranks, [[0], [0], []]) == 0.5
    assert first_place(ranks, [[0], [0], []], junk=[[], [1], []]) == 1.0


def test_mean_overlap():
    found = np.array([[0, 0, 2, 2], [0, 0, 4, 4]])
    true = np.array([[0, 1, 2, 3], [0, 0, 4, 4]])
    assert mean_overlap(found, true) == pytest.approx((1 / 3 + 1) / 2)
    assert np.isnan(mean_overlap(found[:0], true[:0]))


def test_jax_arrays_and_int32_are_taken():
    import jax.numpy as jnp

    ranks = jnp.asarray([[1], [0]])
    assert mean_average_precision(ranks, [jnp.asarray([1])], [np.zeros(0, np.int32)]).map == 1.0


def test_errors():
    ranks = np.array([[0, 1], [1, 0]])
    good = [[0], [1]]
    with pytest.raises(ValueError, match="ranking of query 1 names image 1 twice"):
        mean_average_precision(np.array([[0, 1], [1, 1]]), good, [[], []])
    with pytest.raises(ValueError, match="ranks holds the index -1"):
        mean_average_precision(np.array([[0, 1], [1, -1]]), good, [[], []])
    with pytest.raises(ValueError, match="positives has 1 lists but ranks has 2 columns"):
        mean_average_precision(ranks, [[0]], [[], []])
    with pytest.raises(ValueError, match="junk has 1 lists but ranks has 2 columns"):
        mean_average_precision(ranks, good, [[]])
    with pytest.raises(ValueError, match="Image 1 is both positive and junk for query 1"):
        mean_average_precision(ranks, good, [[], [1]])
    with pytest.raises(ValueError, match="lists of query 0 hold the index -2"):
        mean_average_precision(ranks, [[-2], [1]], [[], []])
    with pytest.raises(ValueError, match="k is 0"):
        mean_precision_at(ranks, good, [[], []], 0)
    with pytest.raises(ValueError, match="easy has 1 lists"):
        revisited_protocol(ranks, [[0]], good, [[], []])


def test_runs_without_jax():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import numpy as np; from rmacjax.evaluation import mean_average_precision\n"
        "assert mean_average_precision(np.array([[0], [1]]), [[0]], [[]]).map == 1.0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
