"""The rule by which a gradient changes what is trained; optax does the work."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from rmacjax.backbones import Weights
from rmacjax.finetune.state import Trained

__all__ = [
    "Means",
    "Rates",
    "apply",
    "centred",
    "follow",
    "optimizer",
    "rate_at",
    "steepness",
    "uncentred",
]

Means = dict[str, Float[Array, " c"]]
"""Means of what the convolutions see, from `rmacjax.backbones.input_means`."""


@dataclass(frozen=True)
class Rates:
    """How fast is learned.

    Attributes:
        rate: the highest learning rate.
        steps: of the whole run; the rate falls as a cosine, that of a step after the last would be
            `last` of the highest.
        warmup: steps in which the rate rises to its highest.
        last: what the rate falls to, as a part of the highest.
        decay: weight decay of kernels; biases, the whitening and the exponent have none. Where
            steps are centred a bias makes up for what its kernel's decay does to the mean answer.
        clip: longest gradient, centred where steps are; a longer one is shortened.
        average: how much of the average of the weights (EMA) each step keeps; 0 for no average.
        centred: whether steps are taken as if the inputs of every convolution had mean zero, see
            `centred`.

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
    centred: bool = False

    def __post_init__(self) -> None:
        for name, what, right in (
            ("rate", "be finite and above 0", 0 < self.rate < math.inf),
            ("steps", "be at least 1", self.steps >= 1),
            ("warmup", "be at least 0", self.warmup >= 0),
            ("last", "lie in 0 to 1", 0 <= self.last <= 1),
            ("decay", "be finite and at least 0", 0 <= self.decay < math.inf),
            ("clip", "be above 0", self.clip > 0),
            ("average", "be at least 0 and below 1", 0 <= self.average < 1),
        ):
            if not right:
                raise ValueError(f"{name} must {what}, but is {getattr(self, name)}")


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


def apply(
    rates: Rates, gradient: Trained, state: Any, trained: Trained, means: Means | None = None
) -> tuple[Trained, Any]:
    """Change what is trained by one step of `optimizer`.

    Args:
        rates: how fast.
        gradient: of the loss in what is trained.
        state: the optimizer's.
        trained: what is trained.
        means: of the convolutions' inputs, to be taken for zero; None: steps as they are.

    Returns:
        What is trained now, and the optimizer's state.
    """
    if means is not None:
        gradient = gradient._replace(weights=centred(gradient.weights, means))
    # Optax multiplies numbers of its own types; what comes out has ours.
    with jax.numpy_dtype_promotion("standard"):
        change, inner = optimizer(rates).update(gradient, state, trained)
    if means is not None:
        change = change._replace(weights=uncentred(change.weights, means))
    return optax.apply_updates(trained, change), inner


def centred(gradient: Weights, means: Means) -> Weights:
    """The gradient in kernels K and in biases as they would be if inputs had mean zero.

    ``K * x + b`` is ``K * (x - m) + b'`` with ``b' = b + sum(K m)``. In K and b' a step that
    changes a kernel leaves the mean answer of its channel alone. In K and b it moves it, and far:
    Adam moves all of a kernel's numbers by the rate, and all that comes out of a ReLU is positive.
    Channels fall silent then, and no gradient brings them back.

    Args:
        gradient: of all weights.
        means: of what some of the convolutions see, m.

    Returns:
        The gradient in the same weights, of K and b' where there are means.

    References:
        LeCun et al., "Efficient backprop", 1998, section 4.3;
        Schraudolph, "Centering neural network gradient factors", 1998.
    """
    moved = dict(gradient)
    for name, mean in means.items():
        kernel = gradient[f"{name}.kernel"]
        outer = _by_output(mean, kernel) * gradient[f"{name}.bias"][None, :]
        moved[f"{name}.kernel"] = kernel - outer[None, None]
    return moved


def uncentred(change: Weights, means: Means) -> Weights:
    """A change of K and b' as a change of K and b, see `centred`.

    Args:
        change: of all weights, of K and b' where there are means.
        means: those that the gradient was centred with.

    Returns:
        The change of the weights themselves.
    """
    moved = dict(change)
    for name, mean in means.items():
        kernel = change[f"{name}.kernel"]
        shift = jnp.sum(_by_output(mean, kernel)[None, None] * kernel, axis=(0, 1, 2))
        moved[f"{name}.bias"] = change[f"{name}.bias"] - shift
    return moved


def _by_output(mean: Array, kernel: Array) -> Float[Array, "i o"]:
    """The mean of what each output of a kernel (h, w, i, o) sees: of its own group's inputs."""
    groups = mean.shape[0] // kernel.shape[2]
    return jnp.repeat(mean.reshape(groups, -1), kernel.shape[3] // groups, axis=0).T


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
