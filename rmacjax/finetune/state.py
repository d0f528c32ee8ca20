"""What is trained and what a run remembers between steps, as pytrees."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from rmacjax.backbones import Network, Weights
from rmacjax.descriptors import Params, Pool
from rmacjax.whitening import Whitening

__all__ = ["Forward", "Moments", "Trained", "TrainState", "initial_state", "to_params"]

WhiteningKind = Literal["layer", "running", "none"]


@dataclass(frozen=True)
class Forward:
    """How descriptors are made while training: static, and the same as in `describe`.

    Attributes:
        network: the static facts; `compute_dtype` "bfloat16" computes in bfloat16 with float32
            weights.
        pool: how a vector is made of a map.
        learn_exponent: whether GeM's exponent (of "gem" and "rgem") is trained.
        whitening: "layer" trains the params' whitening with the rest; "running" takes the moments
            of the vectors seen lately, for a network that has still to change a lot; "none".
        recompute: spare memory, see `rmacjax.backbones.forward`.
    """

    network: Network
    pool: Pool = "rgem"
    learn_exponent: bool = False
    whitening: WhiteningKind = "layer"
    recompute: bool = False


class Trained(NamedTuple):
    """What gradients change.

    Attributes:
        weights: the backbone's, float32.
        whitening: the whitening as a layer; None where it is none of the trained ones.
        log_exponent: () float32, logarithm of GeM's exponent, so that no step makes it negative.
    """

    weights: Weights
    whitening: Whitening | None
    log_exponent: Float[Array, ""]


class Moments(NamedTuple):
    """Running moments of the vectors that are whitened.

    Attributes:
        seen: () float32, batches so far.
        mean: (c,) float32.
        second: (c, c) float32, mean of the outer products.
    """

    seen: Float[Array, ""]
    mean: Float[Array, " c"]
    second: Float[Array, "c c"]


class TrainState(NamedTuple):
    """All that a run needs to go on from.

    Attributes:
        step: () int32, steps taken.
        trained: what gradients change.
        optimizer: the optimizer's own state.
        average: the running average of `trained` (EMA); None where there is none.
        moments: of "running" whitening; None with the others.
    """

    step: Int[Array, ""]
    trained: Trained
    optimizer: Any
    average: Trained | None
    moments: Moments | None


def initial_state(
    params: Params, forward: Forward, rule: optax.GradientTransformation, *, average: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
        params: what training starts from.
        forward: how descriptors are made.
        rule: the optimizer.
        average: whether an average of the weights is kept.

    Raises:
        ValueError: the whitening is to be trained but the params have none.
    """
    if forward.whitening == "layer" and params.whitening is None:
        raise ValueError(
            "The whitening is to be trained with the rest, but the weights hold none: learn one "
            "first (rmacjax whiten), or choose another kind of whitening."
        )
    # Copies, because a step writes over the state it was given.
    weights = {name: jnp.array(value, jnp.float32) for name, value in params.weights.items()}
    layer = None
    if forward.whitening == "layer" and params.whitening is not None:
        layer = Whitening(*(jnp.array(part, jnp.float32) for part in params.whitening))
    exponent = jnp.asarray(math.log(forward.network.gem_p), jnp.float32)
    trained = Trained(weights, layer, exponent)
    moments = None
    if forward.whitening == "running":
        c = forward.network.channels
        moments = Moments(jnp.zeros(()), jnp.zeros((c,)), jnp.zeros((c, c)))
    copy = jax.tree.map(jnp.array, trained) if average else None
    return TrainState(jnp.zeros((), jnp.int32), trained, rule.init(trained), copy, moments)


def to_params(state: TrainState, forward: Forward) -> Params:
    """What has been trained, as `describe` takes it; the average of the weights where there is one.

    The whitening is the trained layer, or that of the running moments, which are of vectors that
    the weights themselves gave, not their average.
    """
    trained = state.trained if state.average is None else state.average
    network = replace(forward.network, compute_dtype="float32")
    if forward.learn_exponent:
        network = replace(network, gem_p=float(jnp.exp(trained.log_exponent)))
    whitening = trained.whitening
    if state.moments is not None:
        whitening = running_whitening(state.moments)
    return Params(network, trained.weights, whitening)


def update_moments(moments: Moments, now: Moments, *, share: float = 0.05) -> Moments:
    """Follow the moments of a batch; the last ``1 / share`` batches count most."""
    moved = jnp.maximum(share, 1.0 / (moments.seen + 1.0))
    return Moments(
        moments.seen + 1.0,
        moments.mean + moved * (now.mean - moments.mean),
        moments.second + moved * (now.second - moments.second),
    )


def running_whitening(moments: Moments, *, ridge: float = 0.02) -> Whitening:
    """A whitening of the running moments, by the inverse of the covariance's Cholesky factor.

    Any whitening of the same covariance gives the same cosines; this is the cheapest. Before the
    first batch it is the identity.

    Args:
        moments: of unit vectors.
        ridge: added to the covariance's diagonal, as a part of its mean.
    """
    c = moments.mean.shape[0]
    identity = jnp.eye(c)
    covariance = moments.second - moments.mean[:, None] * moments.mean[None, :]
    covariance = covariance + (ridge * jnp.trace(covariance) / c + 1e-12) * identity
    factor = jnp.linalg.cholesky(jnp.where(moments.seen > 0, covariance, identity))
    return Whitening(moments.mean, solve_triangular(factor, identity, lower=True))
