"""The rule by which a gradient changes what is trained; optax does the work."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

__all__ = ["Rates", "apply", "follow", "optimizer", "rate_at", "steepness"]


@dataclass(frozen=True)
class Rates:
    """How fast is learned.

    Attributes:
        rate: the highest learning rate.
        steps: of the whole run; the rate falls to `last` of the highest by then, as a cosine.
        warmup: steps in which the rate rises to its highest.
        last: the rate of the last step, as a part of the highest.
        decay: weight decay of kernels; biases, the whitening and the exponent have none.
        clip: longest gradient; a longer one is shortened.
        average: how much of the average of the weights (EMA) each step keeps; 0 for no average.

    Raises:
        ValueError: naming the rate and what it may be.
    """

    rate: float = 1e-4
    steps: int = 1000
    warmup: int = 50
    last: float = 0.01
    decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.0

    def __post_init__(self) -> None:
        if not self.rate > 0 or not self.clip > 0:
            raise ValueError(
                f"rate and clip must lie above 0, but are {self.rate} and {self.clip}."
            )
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(
                f"steps must be at least 1 and warmup at least 0, but are {self.steps} and "
                f"{self.warmup}."
            )
        if not 0 <= self.last <= 1 or not 0 <= self.average < 1 or not self.decay >= 0:
            raise ValueError(
                "last must lie in 0..1, average in 0..1 and below 1, and decay be at least 0, but "
                f"are {self.last}, {self.average} and {self.decay}."
            )


def _schedule(rates: Rates) -> optax.Schedule:
    warmup = min(rates.warmup, max(rates.steps - 1, 0))
    falling = optax.cosine_decay_schedule(rates.rate, max(rates.steps - warmup, 1), rates.last)
    if warmup == 0:
        return falling
    # The first step already moves: a rate of zero would be a step for nothing.
    rising = optax.linear_schedule(rates.rate / warmup, rates.rate, max(warmup - 1, 1))
    return optax.join_schedules([rising, falling], [warmup])


def rate_at(rates: Rates, step: int | Array) -> Float[Array, ""]:
    """The learning rate of a step, counted from 0: a linear rise, then a cosine's fall."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(_schedule(rates)(step), jnp.float32)


def optimizer(rates: Rates) -> optax.GradientTransformation:
    """AdamW with clipped gradients, whose decay spares whatever is not a kernel.

    References:
        Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """
    return optax.chain(
        optax.clip_by_global_norm(rates.clip),
        optax.scale_by_adam(b1=0.9, b2=0.98),
        optax.add_decayed_weights(rates.decay, mask=_kernels),
        optax.scale_by_learning_rate(_schedule(rates)),
    )


def apply(rates: Rates, gradient: Any, state: Any, trained: Any) -> tuple[Any, Any]:
    """Change what is trained by one step of `optimizer`.

    Returns:
        What is trained now, and the optimizer's state.
    """
    # Optax multiplies numbers of its own types; what comes out has ours.
    with jax.numpy_dtype_promotion("standard"):
        change, inner = optimizer(rates).update(gradient, state, trained)
    return optax.apply_updates(trained, change), inner


def steepness(gradient: Any) -> Float[Array, ""]:
    """Length of a gradient, all its arrays together."""
    return optax.tree.norm(gradient)


def follow(average: Any, now: Any, step: Array, share: float) -> Any:
    """Move an average of the weights (EMA) a little toward the weights of now.

    Early averages keep less, ``min(share, (1 + step) / (10 + step))``, so that the start, which is
    far from what is learned, is soon forgotten.
    """
    steps = step.astype(jnp.float32)
    kept = jnp.minimum(share, (1.0 + steps) / (10.0 + steps))
    return jax.tree.map(
        lambda old, new: old + (1.0 - kept).astype(old.dtype) * (new - old), average, now
    )


def _kernels(tree: Any) -> Any:
    def is_kernel(path: tuple[Any, ...], _: Array) -> bool:
        return str(getattr(path[-1], "key", "")).endswith(".kernel")

    return jax.tree_util.tree_map_with_path(is_kernel, tree)
