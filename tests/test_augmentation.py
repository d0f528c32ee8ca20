"""Database-side augmentation against a slow transcription with a sort per row, and its laws."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmacjax import search
from rmacjax.augmentation import augment


def unit(rows):
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return rows / np.where(lengths > 0, lengths, 1)


def slow_augment(descriptors, neighbours, alpha):
    """Row by row in float64: sort all others, add the first ones, by rank or by similarity."""
    x = descriptors.astype(np.float64)
    result = []
    for i, row in enumerate(x):
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: (-float(row @ x[j]), j))
        chosen = others[:neighbours]
        total = row.copy()
        for rank, j in enumerate(chosen, start=1):
            published = (len(chosen) + 1 - rank) / (len(chosen) + 1)
            total += x[j] * (published if alpha is None else max(float(row @ x[j]), 0) ** alpha)
        result.append(total if row.any() else row)
    return unit(np.array(result))


@given(
    n=st.integers(2, 40),
    neighbours=st.integers(0, 50),
    alpha=st.sampled_from([None, 0.0, 1.0, 3.0]),
    dtype=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_transcription(n, neighbours, alpha, dtype, seed):
    rng = np.random.default_rng(seed)
    rows = unit(rng.normal(size=(n, 6))).astype(dtype)
    got = augment(rows, neighbours=neighbours, alpha=alpha)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_augment(rows, neighbours, alpha), atol=3e-6)


def test_equals_the_transcription_over_many_blocks(rng, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_ROWS", 320)
    rows = unit(rng.normal(size=(700, 8))).astype(np.float32)
    np.testing.assert_allclose(augment(rows), slow_augment(rows, 10, None), atol=3e-6)


def test_no_neighbours_change_nothing_and_zero_rows_stay_zero(rng):
    rows = unit(rng.normal(size=(9, 4))).astype(np.float32)
    np.testing.assert_allclose(augment(rows, neighbours=0), rows, rtol=1e-6)
    np.testing.assert_allclose(augment(rows[:1], neighbours=5), rows[:1], rtol=1e-6)
    assert augment(rows[:0]).shape == (0, 4)
    holed = np.concatenate([rows, np.zeros((2, 4), np.float32)])
    np.testing.assert_array_equal(augment(holed, neighbours=3)[9:], 0)


def test_twins_stay_what_they_are(rng):
    """Each row's nearest are its own copies, however many, and never the row itself twice."""
    rows = np.repeat(unit(rng.normal(size=(6, 5))).astype(np.float32), 4, axis=0)
    np.testing.assert_allclose(augment(rows, neighbours=3), rows, atol=1e-6)
    np.testing.assert_allclose(augment(rows, neighbours=2, alpha=3.0), rows, atol=1e-6)


def test_photos_of_one_thing_draw_together(rng):
    things = unit(rng.normal(size=(20, 32)))
    noisy = unit(np.repeat(things, 6, axis=0) + 0.1 * rng.normal(size=(120, 32)))
    drawn = augment(noisy.astype(np.float32), neighbours=5)
    same = np.repeat(np.arange(20), 6)
    alike = same[:, None] == same[None, :]
    assert (drawn @ drawn.T)[alike].mean() > (noisy @ noisy.T)[alike].mean() + 0.1
    assert (drawn @ drawn.T)[alike].min() > (drawn @ drawn.T)[~alike].max()


def test_errors():
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="neighbours is -1, but it is a count"):
        augment(rows, neighbours=-1)
    with pytest.raises(ValueError, match=r"alpha is -0.5, but an exponent"):
        inspect.unwrap(augment)(rows, alpha=-0.5)
