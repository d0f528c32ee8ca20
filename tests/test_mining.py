"""Mining against brute force, with ties, crowded clusters and images that belong nowhere."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmacjax import mining
from rmacjax.mining import hard_negatives


def brute_force(descriptors, clusters, queries, count, candidates):
    found = []
    for query in queries:
        chosen, met = [], {clusters[query], -1}
        scores = [float(descriptors[query] @ row) for row in descriptors]
        for image in sorted(set(candidates), key=lambda image: (-scores[image], image)):
            if clusters[query] >= 0 and clusters[image] not in met and len(chosen) < count:
                chosen.append(image)
                met.add(clusters[image])
        found.append(chosen + [-1] * (count - len(chosen)))
    return found


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), crowded=st.booleans(), some=st.booleans())
def test_hard_negatives_equal_brute_force(seed, crowded, some):
    rng = np.random.default_rng(seed)
    n = 90
    # Few small numbers: products are exact, and many are equal.
    descriptors = rng.integers(-2, 3, (n, 4)).astype(np.float32)
    clusters = rng.integers(-1, 3 if crowded else 40, n)
    if crowded:
        clusters[rng.random(n) < 0.7] = 1
    queries = rng.integers(0, n, 7)
    candidates = rng.integers(0, n, 50) if some else None
    found = hard_negatives(descriptors, clusters, queries, count=3, candidates=candidates)
    everyone = range(n) if candidates is None else candidates.tolist()
    assert found.tolist() == brute_force(descriptors, clusters, queries, 3, everyone)


def test_blocks_of_queries_and_half_precision_change_nothing(rng, monkeypatch):
    descriptors = rng.integers(-3, 4, (60, 5)).astype(np.float16)
    clusters = np.arange(60) // 3
    queries = np.arange(60)
    expected = brute_force(descriptors.astype(np.float32), clusters, queries, 4, range(60))
    assert hard_negatives(descriptors, clusters, queries, count=4).tolist() == expected
    monkeypatch.setattr(mining, "ASKED_AT_ONCE", 7)
    assert hard_negatives(descriptors, clusters, queries, count=4).tolist() == expected


def test_images_without_a_descriptor_are_nobodys_negatives(rng):
    descriptors = rng.normal(size=(6, 3)).astype(np.float32)
    descriptors[4] = np.nan
    found = hard_negatives(descriptors, np.arange(6), np.array([0, 4]), count=5)
    assert sorted(found[0].tolist()) == [-1, 1, 2, 3, 5]
    assert found[1].tolist() == [-1] * 5
    nobody = hard_negatives(descriptors, np.full(6, -1), np.array([0]))
    assert nobody.tolist() == [[-1] * 5]
    assert hard_negatives(descriptors, np.arange(6), np.zeros(0, int)).shape == (0, 5)


def test_bad_arguments_are_refused_with_a_sentence():
    descriptors, clusters = np.eye(4, dtype=np.float32), np.arange(4)
    with pytest.raises(ValueError, match="count is 0"):
        hard_negatives(descriptors, clusters, np.array([0]), count=0)
    with pytest.raises(ValueError, match="3 clusters for 4 descriptors"):
        inspect.unwrap(hard_negatives)(descriptors, clusters[:3], np.array([0]))
    with pytest.raises(ValueError, match="queries holds the number 4"):
        hard_negatives(descriptors, clusters, np.array([0, 4]))
    with pytest.raises(ValueError, match="candidates holds the number -1"):
        hard_negatives(descriptors, clusters, np.array([0]), candidates=np.array([-1, 2]))
