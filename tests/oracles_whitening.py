"""The two whitenings by another road: float64 loops and the singular value decomposition."""

import numpy as np


def pca_whitening(vectors, dimensions=None, shrinkage=0.5):
    """(mean, projection): directions from the SVD of the centred data, never from a covariance."""
    x = np.asarray(vectors, np.float64)
    n, c = x.shape
    mean = np.zeros(c)
    for row in x:
        mean += row / n
    _, singular, directions = np.linalg.svd(x - mean, full_matrices=True)
    variances = np.zeros(c)
    variances[: len(singular)] = singular**2 / n
    rows = []
    for variance, direction in zip(variances, directions, strict=True):
        if variance <= 1e-10 * variances[0]:
            rows.append(np.zeros(c))
            continue
        sign = -1.0 if direction[np.argmax(np.abs(direction))] < 0 else 1.0
        rows.append(sign * direction * variance**-shrinkage)
    return mean, np.array(rows[:dimensions])


def pair_whitening(vectors, queries, positives, dimensions=None):
    """(mean, projection): the generalized eigenproblem ``C v = lambda S v`` solved by SciPy.

    With ``S = L L^T`` its solutions, scaled so that ``v^T S v = 1``, are the rows ``e^T L^-1`` of
    the learned whitening, for the eigenvectors e of ``L^-1 C L^-T``.
    """
    from scipy.linalg import eigh

    x = np.asarray(vectors, np.float64)
    c = x.shape[1]
    mean = np.zeros(c)
    within = np.zeros((c, c))
    for q, p in zip(queries, positives, strict=True):
        mean += x[q] / len(queries)
        within += np.outer(x[q] - x[p], x[q] - x[p]) / len(queries)
    between = np.zeros((c, c))
    for row in x:
        between += np.outer(row - mean, row - mean) / len(x)
    _, solutions = eigh(between, within)
    rows = solutions.T[::-1]
    signs = [-1.0 if row[np.argmax(np.abs(row))] < 0 else 1.0 for row in rows]
    return mean, (rows * np.array(signs)[:, None])[:dimensions]


def whiten(mean, projection, vectors):
    """Unit rows of ``projection @ (x - mean)``; rows that are zero or not finite give zeros."""
    out = []
    for x in np.asarray(vectors, np.float64):
        if not np.isfinite(x).all() or not x.any():
            out.append(np.zeros(len(projection)))
            continue
        y = np.asarray(projection, np.float64) @ (x - mean)
        size = np.sqrt((y * y).sum())
        out.append(y / size if size > 0 else y)
    return np.array(out)
