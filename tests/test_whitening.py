"""Whitening: laws, independent oracles, streaming, gradients, and each error by its sentence."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles_whitening as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmacjax.whitening import (
    Whitening,
    check_options,
    fit_pair_whitening,
    fit_pca_whitening,
    pair_whitening_from_moments,
    pca_whitening_from_moments,
    power_normalize,
    update_moments,
    update_pair_moments,
    whiten,
)


def correlated(n, c, seed=0):
    """Vectors with a mean far from zero and variances from 1 to 1/c^2, along mixed directions."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(c, c)))
    return ((rng.normal(size=(n, c)) / np.arange(1, c + 1)) @ turn + 2.0).astype(np.float32)


def project(w, vectors):
    x = np.asarray(vectors, np.float64) - np.asarray(w.mean, np.float64)
    return x @ np.asarray(w.projection, np.float64).T


def test_whitened_training_data_has_identity_covariance():
    vectors = correlated(400, 12)
    y = project(fit_pca_whitening(vectors), vectors)
    np.testing.assert_allclose(y.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(12), atol=2e-5)


def test_half_whitened_data_keeps_the_square_root_of_the_variances():
    vectors = correlated(400, 6)
    plain = project(fit_pca_whitening(vectors, shrinkage=0.0), vectors).var(axis=0)
    half = project(fit_pca_whitening(vectors, shrinkage=0.25), vectors).var(axis=0)
    assert (np.diff(plain) < 0).all()  # decreasing order
    np.testing.assert_allclose(half, np.sqrt(plain), rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 30),
    c=st.integers(1, 8),
    shrinkage=st.sampled_from([0.0, 0.2, 0.5]),
    seed=st.integers(0, 10**6),
)
def test_pca_equals_the_oracle(n, c, shrinkage, seed):
    vectors = correlated(n, c, seed)
    w = fit_pca_whitening(vectors, shrinkage=shrinkage)
    mean, projection = oracle.pca_whitening(vectors, shrinkage=shrinkage)
    np.testing.assert_allclose(w.mean, mean, rtol=1e-6, atol=1e-6)
    # Neighbouring variances can be close, and then the directions differ: compare what is the same.
    got = np.asarray(w.projection, np.float64)
    scale = np.abs(projection).max()
    np.testing.assert_allclose(
        got.T @ got / scale**2, projection.T @ projection / scale**2, atol=1e-5
    )
    assert not np.isnan(got).any()


def test_pca_equals_the_oracle_row_for_row():
    vectors = correlated(300, 10)
    for dimensions in (None, 4):
        w = fit_pca_whitening(vectors, dimensions, 0.4)
        mean, projection = oracle.pca_whitening(vectors, dimensions, 0.4)
        assert w.projection.shape == projection.shape
        assert w.mean.dtype == w.projection.dtype == jnp.float32
        np.testing.assert_allclose(w.projection, projection, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(w.mean, mean, rtol=1e-6)


def test_fewer_dimensions_are_the_first_rows():
    vectors = correlated(50, 6)
    full, part = fit_pca_whitening(vectors), fit_pca_whitening(vectors, 2)
    np.testing.assert_array_equal(part.projection, np.asarray(full.projection)[:2])


def test_null_directions_get_weight_zero():
    vectors = correlated(5, 9)  # five points span four directions
    projection = np.asarray(fit_pca_whitening(vectors).projection)
    norms = np.linalg.norm(projection, axis=1)
    assert (norms[:4] > 0).all()
    np.testing.assert_array_equal(norms[4:], 0.0)
    dead = correlated(60, 4)
    dead[:, 2] = 0.0  # a channel that never fires
    projection = np.asarray(fit_pca_whitening(dead).projection)
    assert np.isfinite(projection).all()
    np.testing.assert_array_equal(projection[-1], 0.0)
    np.testing.assert_allclose(projection[:, 2], 0.0, atol=1e-6)


def test_rows_have_a_positive_largest_entry_and_the_fit_repeats_itself():
    vectors = correlated(80, 7)
    w = fit_pca_whitening(vectors)
    rows = np.asarray(w.projection)
    assert (rows[np.arange(7), np.abs(rows).argmax(axis=1)] > 0).all()
    # Mirrored data has the same directions, and so the same whitening but for the mean.
    mirrored = fit_pca_whitening(-vectors)
    np.testing.assert_allclose(mirrored.projection, rows, rtol=1e-5, atol=1e-6)
    again = fit_pca_whitening(vectors.copy())
    np.testing.assert_array_equal(again.projection, rows)


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 200), max_size=5), offset=st.sampled_from([0.0, 1e4]))
def test_streaming_equals_batch(cuts, offset):
    vectors = correlated(200, 5).astype(np.float64) + offset
    moments = None
    for part in np.split(vectors, sorted(cuts)):
        moments = update_moments(moments, part)
    assert moments.total == 200
    np.testing.assert_allclose(moments.mean, vectors.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        moments.scatter / 200, np.cov(vectors.T, bias=True), rtol=1e-7, atol=1e-9
    )
    streamed = pca_whitening_from_moments(moments, dimensions=3, shrinkage=0.3)
    batch = fit_pca_whitening(vectors, 3, 0.3)
    np.testing.assert_allclose(streamed.projection, batch.projection, rtol=1e-4, atol=1e-5)


def test_more_vectors_than_one_block():
    vectors = correlated(40_000, 3)
    moments = update_moments(update_moments(None, vectors[:1]), jnp.asarray(vectors[1:]))
    assert moments.total == 40_000
    np.testing.assert_allclose(
        moments.scatter / 40_000, np.cov(vectors.T.astype(np.float64), bias=True), rtol=1e-9
    )


def pairs(objects, c, seed=0):
    """Two noisy views of each object: vectors, queries, positives."""
    rng = np.random.default_rng(seed)
    things = rng.normal(size=(objects, c)) * np.linspace(2, 0.5, c) + 1.0
    noise = np.linspace(0.05, 0.8, c)
    views = [things + rng.normal(size=things.shape) * noise for _ in range(2)]
    index = np.arange(objects)
    return np.concatenate(views).astype(np.float32), index, index + objects


def test_pair_whitening_equals_the_oracle():
    vectors, queries, positives = pairs(200, 8)
    for dimensions in (None, 3):
        w = fit_pair_whitening(vectors, queries, positives, dimensions=dimensions)
        mean, projection = oracle.pair_whitening(vectors, queries, positives, dimensions)
        assert w.projection.shape == projection.shape
        np.testing.assert_allclose(w.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(w.projection, projection, rtol=1e-4, atol=1e-4)


def moments_of_pairs(vectors, queries, positives):
    """What pair moments hold, all at once."""
    x = vectors.astype(np.float64)
    differences = x[queries] - x[positives]
    return x[queries].mean(axis=0), differences.T @ differences


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 60), max_size=6))
def test_streamed_pairs_equal_all_at_once(cuts):
    vectors, queries, positives = pairs(60, 5)
    streamed, others = None, None
    for part in np.split(np.arange(60), sorted(cuts)):
        streamed = update_pair_moments(streamed, vectors[queries[part]], vectors[positives[part]])
        others = update_moments(others, vectors[positives[part]])
        others = update_moments(others, vectors[queries[part]])
    mean, scatter = moments_of_pairs(vectors, queries, positives)
    assert streamed.total == 60
    np.testing.assert_allclose(streamed.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(streamed.scatter, scatter, rtol=1e-10)
    learned = pair_whitening_from_moments(others, streamed, dimensions=4)
    mean, projection = oracle.pair_whitening(vectors, queries, positives, 4)
    np.testing.assert_allclose(learned.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(learned.projection, projection, rtol=2e-5, atol=1e-5)
    whole = fit_pair_whitening(vectors, queries, positives, dimensions=4)
    np.testing.assert_allclose(learned.projection, whole.projection, rtol=1e-6, atol=1e-6)


def test_moments_take_no_more_memory_however_many_vectors_come():
    vectors, _, _ = pairs(64, 6)

    def size(moments):
        return sum(np.asarray(part).nbytes for part in moments)

    first = update_moments(None, vectors), update_pair_moments(None, vectors[:64], vectors[64:])
    many = first
    for _ in range(300):
        many = (
            update_moments(many[0], vectors),
            update_pair_moments(many[1], vectors[:64], vectors[64:]),
        )
    assert many[0].total == 301 * 128 and many[1].total == 301 * 64
    assert [size(moments) for moments in many] == [size(moments) for moments in first]
    # The same vectors again and again have the same whitening.
    once, again = (pair_whitening_from_moments(*moments) for moments in (first, many))
    np.testing.assert_allclose(again.projection, once.projection, rtol=1e-5, atol=1e-6)


def test_more_pairs_than_one_block():
    vectors = correlated(40_000, 3)
    first, second = vectors[:20_000], vectors[20_000:]
    moments = update_pair_moments(None, first, second)
    difference = first.astype(np.float64) - second
    np.testing.assert_allclose(moments.scatter, difference.T @ difference, rtol=1e-10)
    np.testing.assert_allclose(moments.mean, first.mean(axis=0, dtype=np.float64), rtol=1e-10)


def test_pair_differences_become_white_and_objects_uncorrelated():
    vectors, queries, positives = pairs(300, 6)
    y = project(fit_pair_whitening(vectors, queries, positives), vectors)
    differences = y[queries] - y[positives]
    np.testing.assert_allclose(differences.T @ differences / 300, np.eye(6), atol=1e-4)
    spread = y.T @ y / len(y)
    np.testing.assert_allclose(spread - np.diag(np.diag(spread)), 0.0, atol=1e-3)
    assert (np.diff(np.diag(spread)) < 0).all()


def test_pair_whitening_finds_matches_that_plain_vectors_miss():
    rng = np.random.default_rng(3)
    objects, c = 60, 12
    things = rng.normal(size=(objects, c)) * np.r_[np.full(4, 0.3), np.full(8, 0.02)]
    loud = np.r_[np.full(4, 0.02), np.full(8, 1.0)]  # what differs between two views is loud

    def view():
        return things + rng.normal(size=things.shape) * loud

    train = np.concatenate([view(), view()]).astype(np.float32)
    w = fit_pair_whitening(train, np.arange(60), np.arange(60, 120), dimensions=4)
    a, b = view().astype(np.float32), view().astype(np.float32)

    def first_places(x, y):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
        return ((x @ y.T).argmax(axis=1) == np.arange(60)).mean()

    assert first_places(a, b) < 0.3
    assert first_places(np.asarray(whiten(w, a)), np.asarray(whiten(w, b))) > 0.9


def test_singular_pairs_are_regularized():
    vectors, queries, positives = pairs(20, 6)
    w = fit_pair_whitening(vectors, queries[:3], positives[:3])
    assert np.isfinite(np.asarray(w.projection)).all()
    # The rule in the documentation, by hand: S + trace(S) / c / 1000 whitens to the identity.
    differences = (vectors[queries[:3]] - vectors[positives[:3]]).astype(np.float64)
    within = differences.T @ differences / 3
    within += 1e-3 * np.trace(within) / 6 * np.eye(6)
    projection = np.asarray(w.projection, np.float64)
    np.testing.assert_allclose(projection @ within @ projection.T, np.eye(6), atol=1e-4)


def test_whiten_equals_the_oracle_and_treats_bad_rows_as_zero():
    vectors = correlated(60, 6)
    w = fit_pca_whitening(vectors, 4)
    rows = vectors[:7].copy()
    rows[1] = 0.0
    rows[2, 3] = np.nan
    rows[3, 0] = np.inf
    rows[4] = np.asarray(w.mean)
    got = whiten(w, rows)
    assert got.shape == (7, 4)
    assert got.dtype == jnp.float32
    wanted = oracle.whiten(np.asarray(w.mean), w.projection, rows)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(got)[1:5], 0.0)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(got)[[0, 5, 6]], axis=1), 1.0, rtol=1e-6)


def test_whiten_under_jit_vmap_and_with_host_arrays():
    vectors = correlated(24, 5)
    w = fit_pca_whitening(vectors, 3)
    plain = whiten(w, vectors)
    np.testing.assert_allclose(jax.jit(whiten)(w, vectors), plain, atol=1e-6)
    blocks = vectors.reshape(4, 6, 5)
    mapped = jax.vmap(whiten, in_axes=(None, 0))(w, blocks)
    np.testing.assert_allclose(mapped, plain.reshape(4, 6, 3), atol=1e-6)
    on_host = Whitening(np.asarray(w.mean), np.asarray(w.projection))
    np.testing.assert_allclose(whiten(on_host, jnp.asarray(vectors)), plain, atol=1e-6)
    assert whiten(w, vectors[:0]).shape == (0, 3)


def test_whiten_gradient_is_right_and_finite_at_zero_and_nan():
    vectors = correlated(30, 4)
    w = fit_pca_whitening(vectors, 3)
    target = jnp.asarray([0.5, -1.0, 2.0])

    def loss(x):
        return jnp.sum(whiten(w, x) * target[None, :])

    x = np.asarray(vectors[:3]).copy()
    x[1] = 0.0
    x[2, 0] = np.nan
    got = np.asarray(jax.grad(loss)(jnp.asarray(x)))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[1:], 0.0)
    for channel in range(4):
        step = np.zeros(4)
        step[channel] = 1e-5
        up, down = (
            oracle.whiten(np.asarray(w.mean, np.float64), w.projection, [x[0] + s]) @ target
            for s in (step, -step)
        )
        np.testing.assert_allclose(got[0, channel], ((up - down) / 2e-5)[0], rtol=2e-3, atol=1e-3)


def test_power_normalize():
    x = np.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    root = np.array([2.0, -3.0, 0.0]) / np.sqrt(13.0)
    got = power_normalize(x)
    np.testing.assert_allclose(got[0], root, rtol=1e-6)
    np.testing.assert_array_equal(got[1], 0.0)
    np.testing.assert_allclose(
        power_normalize(x, exponent=1.0)[0], x[0] / np.linalg.norm(x[0]), rtol=1e-6
    )
    gradient = jax.grad(lambda x: power_normalize(x).sum())(jnp.asarray(x))
    assert np.isfinite(np.asarray(gradient)).all()
    for wrong in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(ValueError, match="exponent"):
            power_normalize(x, exponent=wrong)


def test_errors_say_what_to_do():
    vectors = correlated(10, 4)
    w = fit_pca_whitening(vectors)
    index = np.arange(3)
    with pytest.raises(ValueError, match="needs at least 2"):
        fit_pca_whitening(vectors[:1])
    with pytest.raises(ValueError, match="All 5 vectors are the same"):
        fit_pca_whitening(np.full((5, 4), 0.1, np.float32))
    with pytest.raises(ValueError, match="All 4 vectors are the same"):
        fit_pca_whitening(np.zeros((4, 4), np.float32))
    for wrong in (-0.1, 0.6, float("nan")):
        with pytest.raises(ValueError, match="exponent lies between 0"):
            fit_pca_whitening(vectors, shrinkage=wrong)
    for dimensions in (0, 5):
        with pytest.raises(ValueError, match=r"reduced to 1\.\.4"):
            fit_pca_whitening(vectors, dimensions)
        with pytest.raises(ValueError, match=r"reduced to 1\.\.4"):
            fit_pair_whitening(vectors, index, index + 3, dimensions=dimensions)
    bad = vectors.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 10 vectors hold NaN"):
        fit_pca_whitening(bad)
    with pytest.raises(ValueError, match="3 channels but the moments were begun with 4"):
        update_moments(update_moments(None, vectors), vectors[:, :3])
    with pytest.raises(ValueError, match="3 channels but the whitening was learned on 4"):
        whiten(w, vectors[:, :3])
    with pytest.raises(ValueError, match="3 queries but 2 positives"):
        # Without the tests' own shape checks, which would speak first.
        inspect.unwrap(fit_pair_whitening)(vectors, index, index[:2])
    with pytest.raises(ValueError, match="no pairs"):
        fit_pair_whitening(vectors, index[:0], index[:0])
    with pytest.raises(ValueError, match=r"positives names vector 10, but there are 10"):
        fit_pair_whitening(vectors, index, index + 8)
    with pytest.raises(ValueError, match="queries names vector -1"):
        fit_pair_whitening(vectors, index - 1, index)
    plain = inspect.unwrap(update_pair_moments)
    with pytest.raises(ValueError, match="give as many of one as of the other"):
        plain(None, vectors[:2], vectors[:3])
    some = plain(None, vectors[:2], vectors[2:4])
    with pytest.raises(ValueError, match="NaN"):
        plain(None, vectors[:3], bad[:3])
    with pytest.raises(ValueError, match="3 channels but the moments were begun with 4"):
        plain(some, vectors[:2, :3], vectors[2:4, :3])
    with pytest.raises(ValueError, match="no pairs"):
        pair_whitening_from_moments(update_moments(None, vectors), plain(None, *[vectors[:0]] * 2))
    assert check_options(4) == 4 and check_options(4, dimensions=2, shrinkage=0.0) == 2
    with pytest.raises(ValueError, match="exponent lies between 0"):
        check_options(4, shrinkage=0.7)
    with pytest.raises(ValueError, match="None of the 3 pairs differ"):
        fit_pair_whitening(vectors, index, index)
