"""Whitening: the linear map that makes the channels of region vectors uncorrelated, equally loud.

Two ways to learn one. *PCA-whitening* (`principal`) needs nothing but vectors of another
collection; *pair whitening* (`pairs`) needs pairs of vectors that show the same object and makes
what differs between them quiet. Both give a `Whitening`, and `whiten` (`applying`) applies it:
``l2(projection @ (x - mean))``.

Fitting happens once, on the host, in float64 NumPy; the result is float32. Running moments let both
run over any number of vectors in the memory of one covariance matrix. Applying is JAX: pure, for
jit, vmap and grad.
"""

from rmacjax.whitening.applying import Whitening, power_normalize, whiten
from rmacjax.whitening.fitting import check_options
from rmacjax.whitening.pairs import (
    PairMoments,
    fit_pair_whitening,
    pair_whitening_from_moments,
    update_pair_moments,
)
from rmacjax.whitening.principal import (
    Moments,
    fit_pca_whitening,
    pca_whitening_from_moments,
    update_moments,
)

__all__ = [
    "Moments",
    "PairMoments",
    "Whitening",
    "check_options",
    "fit_pair_whitening",
    "fit_pca_whitening",
    "pair_whitening_from_moments",
    "pca_whitening_from_moments",
    "power_normalize",
    "update_moments",
    "update_pair_moments",
    "whiten",
]
