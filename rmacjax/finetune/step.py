"""One step of training: pure, compiled once per set of padded sizes, the same on every device.

A loss over pairs needs all descriptors of the batch at once, but not all activations. So a batch
may be cut into chunks: descriptors first, chunk by chunk, keeping nothing else; then the loss and
its gradient in them; then each chunk once more, for its share of the gradient. The result is that
of the whole batch, not of smaller ones. Where the batch lies on several devices (`spread`), XLA
splits the work, and the loss still sees every pair.

References:
    Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021;
    Revaud et al., "Learning with average precision", ICCV 2019 (the two passes).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from rmacjax import losses
from rmacjax.backbones import input_means
from rmacjax.backbones.layers import output_size
from rmacjax.descriptors import Params, embed_batch
from rmacjax.finetune.batches import Batch, Block
from rmacjax.finetune.optimizer import Means, Rates, apply, follow, steepness
from rmacjax.finetune.state import (
    Forward,
    Moments,
    Trained,
    TrainState,
    running_whitening,
    update_moments,
)
from rmacjax.normalization import l2_normalize
from rmacjax.pooling import mac, region_maxima, region_vectors

LISTENED = 8
"""Images of a step that tell what convolutions see on average, where steps are centred."""

LossName = Literal["contrastive", "triplet", "multi-similarity", "info-nce", "smooth-ap"]
Boxes = Literal["none", "latent", "known"]


@dataclass(frozen=True)
class Objective:
    """What is made small.

    Attributes:
        loss: of the descriptors, see `rmacjax.losses`.
        margin: of "contrastive" and "triplet"; None for the loss's own.
        temperature: of "info-nce" and "smooth-ap"; None for the loss's own.
        plain: weight of the same loss on the descriptors before whitening, which keeps a "running"
            whitening from doing all the work.
        boxes: localization in the loss, what AML maximises: the cosine of the plain maxima of the
            first block's images with those of a box of the last block's. "latent": AML's own box;
            "known": boxes whose overlap with the truth the source knows, in the batches that have
            them; "none": left out.
        box_weight: weight of that term.
        box_temperature: of its cosines.

    Raises:
        ValueError: a weight below 0, a margin or temperature that is not above it, or a margin of
            "contrastive" above 2.
    """

    loss: LossName = "contrastive"
    margin: float | None = None
    temperature: float | None = None
    plain: float = 0.0
    boxes: Boxes = "none"
    box_weight: float = 1.0
    box_temperature: float = 0.05

    def __post_init__(self) -> None:
        for name in ("plain", "box_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a weight, 0 or more, not {getattr(self, name)}.")
        for name in ("margin", "temperature", "box_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must lie above 0, but is {value}.")
        if self.loss == "contrastive" and self.margin is not None and self.margin > 2:
            raise ValueError(
                "margin of contrastive is a distance of unit vectors, so at most 2, not "
                f"{self.margin}."
            )


@dataclass(frozen=True)
class Plan:
    """Everything static of a step.

    Attributes:
        forward: how descriptors are made.
        objective: what is made small.
        rates: how fast.
        chunk: images that go through the network at once, of each block; None: all. A block's
            images are a multiple of it.
    """

    forward: Forward
    objective: Objective
    rates: Rates
    chunk: int | None = None


class _Seen(NamedTuple):
    """What the loss is computed from, of one block; float arrays only.

    Attributes:
        descriptors: (n, d), whitened.
        plain: (n, c), the same before whitening.
        queries: (n, c), the unit plain maxima of each image.
        maps: (n, h, w, c); without rows where no loss asks for maps.
    """

    descriptors: Float[Array, "n d"]
    plain: Float[Array, "n c"]
    queries: Float[Array, "n c"]
    maps: Float[Array, "_ h w c"]


@contextmanager
def compiled_anew() -> Iterator[None]:
    """Read no compiled program back from JAX's cache on disk where several CPU devices share steps.

    Such a program, read back, waits for ever in a sum over the devices, until XLA ends the process
    (jaxlib 0.10.2).
    """
    if jax.default_backend() != "cpu" or jax.device_count() == 1:
        yield
        return
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # what it found out first, it goes by to the end
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def spread(batch: Batch, devices: int | None = None) -> Batch:
    """Lay the images of a batch out over the devices, evenly.

    Args:
        batch: each block's number of images a multiple of the devices'.
        devices: how many of `jax.devices`; None for all.

    Raises:
        ValueError: a number of images that the devices cannot share evenly.
    """
    chosen = jax.devices()[:devices]
    for block in batch.blocks:
        if len(block.images) % len(chosen):
            raise ValueError(
                f"{len(block.images)} images cannot be shared evenly by {len(chosen)} devices; "
                "choose a multiple."
            )
    by_row = NamedSharding(_mesh(chosen), PartitionSpec("data"))
    blocks = tuple(jax.device_put(block, by_row) for block in batch.blocks)
    return Batch(blocks, *everywhere(tuple(batch[1:]), devices))


def everywhere(arrays: PyTree, devices: int | None = None) -> PyTree:
    """Lay a copy of every array out on each of the devices.

    Args:
        arrays: a pytree, such as a `TrainState`.
        devices: how many of `jax.devices`; None for all.
    """
    mesh = _mesh(jax.devices()[:devices])
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))


def _mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), ("data",))


def embed(
    trained: Trained, moments: Moments | None, block: Block, forward: Forward, keep_maps: bool
) -> tuple[_Seen, Moments | None]:
    """Send images through the network and the pooling of `describe`, and follow the moments."""
    whitening = trained.whitening
    if moments is not None:
        whitening = jax.lax.stop_gradient(running_whitening(moments))
    exponent = jnp.exp(trained.log_exponent)
    if not forward.learn_exponent:
        exponent = jax.lax.stop_gradient(exponent)
    seen = embed_batch(
        Params(forward.network, trained.weights, None),
        jnp.asarray(block.images),
        jnp.asarray(block.sizes),
        jnp.asarray(block.regions),
        pool=forward.pool,
        gem_p=exponent,
        recompute=forward.recompute,
    )
    descriptors = seen.descriptors
    if whitening is not None:
        whiten = partial(region_vectors, whitening=whitening)
        descriptors = l2_normalize(jnp.sum(jax.vmap(whiten)(seen.regions), axis=1))
    now = None
    if moments is not None:
        rows = jax.lax.stop_gradient(seen.regions).reshape(-1, seen.regions.shape[-1])
        counted = jnp.sum(jnp.any(rows != 0, axis=1)).astype(jnp.float32)
        now = Moments(counted, jnp.sum(rows, axis=0), rows.T @ rows)
    queries = l2_normalize(jax.vmap(mac)(seen.maps))
    maps = seen.maps if keep_maps else seen.maps[:0]
    return _Seen(descriptors, seen.descriptors, queries, maps), now


def _objective(
    seen: tuple[_Seen, ...], batch: Batch, plan: Plan
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss, and what else is worth a column."""
    goal = plan.objective
    positives, negatives = losses.pair_masks(batch.labels, batch.clusters)
    joined = jnp.concatenate([block.descriptors for block in seen])
    main = _loss(goal)(joined, positives, negatives)
    facts = {"descriptors": main, "found": _found(joined, positives, negatives)}
    total = main
    if goal.plain:
        plain = jnp.concatenate([block.plain for block in seen])
        facts["plain"] = _loss(goal)(plain, positives, negatives)
        total = total + goal.plain * facts["plain"]
    if goal.boxes != "none":
        localized = _boxes(seen, batch, plan)
        total = total + goal.box_weight * localized.get("boxes", jnp.zeros(()))
        facts |= localized
    return total, {"loss": total} | facts


def _loss(goal: Objective) -> Callable[[Array, Array, Array], Float[Array, ""]]:
    """The loss of descriptors and masks; what is left out is the loss's own default."""
    margin, temperature = goal.margin, goal.temperature
    match goal.loss:
        case "contrastive":
            return (
                losses.contrastive if margin is None else partial(losses.contrastive, margin=margin)
            )
        case "triplet":
            return losses.triplet if margin is None else partial(losses.triplet, margin=margin)
        case "multi-similarity":
            return losses.multi_similarity
        case "info-nce":
            chosen = losses.info_nce
        case "smooth-ap":
            chosen = losses.smooth_ap
    return chosen if temperature is None else partial(chosen, temperature=temperature)


def _found(
    descriptors: Float[Array, "m d"], positives: Bool[Array, "m m"], negatives: Bool[Array, "m m"]
) -> Float[Array, ""]:
    """Share of the images with positives whose nearest other image of the batch is one."""
    cosines = jnp.where(positives | negatives, descriptors @ descriptors.T, -2.0)
    nearest = jnp.argmax(cosines, axis=1)
    asked = jnp.any(positives, axis=1)
    right = jnp.take_along_axis(positives, nearest[:, None], axis=1)[:, 0]
    return jnp.sum(asked & right) / jnp.maximum(jnp.sum(asked), 1)


def _boxes(seen: tuple[_Seen, ...], batch: Batch, plan: Plan) -> dict[str, Float[Array, ""]]:
    goal, first, last = plan.objective, seen[0], seen[-1]
    block = batch.blocks[-1]
    cells = output_cells(plan.forward, jnp.asarray(block.sizes))
    if goal.boxes == "known":
        if batch.boxes is None or batch.overlaps is None:
            return {}
        pooled = l2_normalize(jax.vmap(region_maxima)(last.maps, batch.boxes.astype(jnp.int32)))
        loss, overlap = losses.placed(
            first.queries, pooled, jnp.asarray(batch.overlaps), temperature=goal.box_temperature
        )
        return {"boxes": loss, "overlap": overlap}
    n = len(last.queries)
    labels, clusters = jnp.asarray(batch.labels), jnp.asarray(batch.clusters)
    positives, negatives = losses.pair_masks(labels, clusters)
    rows, columns = slice(0, len(first.queries)), slice(len(labels) - n, None)
    sizes = batch.blocks[0].sizes.astype(jnp.float32)
    cosines = losses.box_cosines(first.queries, last.maps, cells, sizes[:, 0] / sizes[:, 1])
    loss = losses.localized(
        cosines,
        positives[rows, columns],
        negatives[rows, columns],
        temperature=goal.box_temperature,
    )
    return {"boxes": loss}


def output_cells(forward: Forward, sizes: Int[Array, "n 2"]) -> Int[Array, "n 2"]:
    """Valid cells of maps, of the valid sizes of their images in pixels."""
    for layer in forward.network.layers:
        sizes = output_size(layer, sizes)
    return jnp.maximum(jnp.asarray(sizes, jnp.int32), 0)


def gradients(
    state: TrainState, batch: Batch, plan: Plan
) -> tuple[Trained, dict[str, Float[Array, ""]], Moments | None]:
    """The gradient of the loss, scalars worth a column, and the batch's moments.

    Args:
        state: from `initial_state`.
        batch: NumPy or JAX arrays.
        plan: what is static.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    keep = plan.objective.boxes != "none"

    def see(trained: Trained, block: Block) -> tuple[_Seen, Moments | None]:
        return embed(trained, state.moments, block, plan.forward, keep)

    if plan.chunk is None:

        def whole(trained: Trained) -> tuple[Array, tuple[dict[str, Array], list[Moments | None]]]:
            parts = [see(trained, block) for block in batch.blocks]
            loss, facts = _objective(tuple(part[0] for part in parts), batch, plan)
            return loss, (facts, [part[1] for part in parts])

        gradient, (facts, sums) = jax.grad(whole, has_aux=True)(state.trained)
        return gradient, facts, _summed(sums)

    chunked = [_cut(block, plan.chunk) for block in batch.blocks]
    seen, sums = [], []
    for blocks in chunked:
        outputs, moments = jax.lax.map(partial(see, state.trained), blocks)
        seen.append(jax.tree.map(_joined, outputs))
        sums.append(jax.tree.map(lambda x: jnp.sum(x, axis=0), moments))
    backward, facts = jax.grad(_objective, has_aux=True)(tuple(seen), batch, plan)
    gradient = jax.tree.map(jnp.zeros_like, state.trained)
    for blocks, outputs in zip(chunked, backward, strict=True):
        pieces = jax.tree.map(partial(_pieces, n=len(blocks.images)), outputs)

        def add(total: Trained, item: tuple[Block, _Seen]) -> tuple[Trained, None]:
            block, pulled = item
            _, pull = jax.vjp(lambda trained: see(trained, block)[0], state.trained)
            return jax.tree.map(jnp.add, total, pull(pulled)[0]), None

        gradient, _ = jax.lax.scan(add, gradient, (blocks, pieces))
    return gradient, facts, _summed(sums)


def _cut(block: Block, chunk: int) -> Block:
    n = len(block.images)
    if n % chunk:
        raise ValueError(f"{n} images of a block do not make whole chunks of {chunk}.")
    return jax.tree.map(partial(_pieces, n=n // chunk), block)


def _pieces(x: Array, *, n: int) -> Array:
    """Deal rows out to n chunks, one by one: of rows on several devices, each chunk gets some."""
    return jnp.swapaxes(x.reshape(-1, n, *x.shape[1:]), 0, 1)


def _joined(x: Array) -> Array:
    """The rows that `_pieces` dealt out."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def _summed(sums: list[Moments | None]) -> Moments | None:
    total = [part for part in sums if part is not None]
    if not total:
        return None
    seen, mean, second = (sum(parts[1:], parts[0]) for parts in zip(*total, strict=True))
    seen = jnp.maximum(seen, 1.0)
    return Moments(seen, mean / seen, second / seen)


def _input_means(trained: Trained, batch: Batch, plan: Plan) -> Means:
    """What convolutions see in some of the images: a step is sound whatever means it takes."""
    block = batch.blocks[-1]
    n = len(block.images)
    count = min(n, LISTENED)
    some = slice(None, None, n // count)  # of several devices' rows, some of each
    rows = tuple(jnp.asarray(array)[some][:count] for array in (block.images, block.sizes))

    def of_one(row: tuple[Array, Array]) -> Means:
        image, size = row
        return input_means(plan.forward.network, trained.weights, image[None], size[None])

    means = jax.lax.map(of_one, rows, batch_size=min(count, plan.chunk or count))
    return {name: jnp.mean(each, axis=0) for name, each in means.items()}


def _train_step(
    state: TrainState, batch: Batch, *, plan: Plan
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    gradient, facts, now = gradients(state, batch, plan)
    rates = plan.rates
    means = _input_means(state.trained, batch, plan) if rates.centred else None
    trained, inner = apply(rates, gradient, state.optimizer, state.trained, means)
    # Below 1 it is no generalized mean of maxima's kind, and no weights file may hold it.
    trained = trained._replace(log_exponent=jnp.maximum(trained.log_exponent, 0.0))
    average = state.average
    if average is not None:
        average = follow(average, trained, state.step, rates.average)
    moments = state.moments
    if moments is not None and now is not None:
        moments = update_moments(moments, now)
    moved = TrainState(state.step + 1, trained, inner, average, moments)
    length = steepness(gradient)
    # A step that is not a number is not taken: what was learned so far can still be saved.
    numbers = [leaf for leaf in jax.tree.leaves(moved) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = [jnp.all(jnp.isfinite(array)) for array in numbers]
    sound = jnp.isfinite(facts["loss"]) & jnp.isfinite(length) & jnp.all(jnp.stack(finite))
    kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), moved, state)
    return kept, facts | {"gradient": length}


train_step = jax.jit(_train_step, static_argnames=("plan",), donate_argnums=0)
"""``state, facts = train_step(state, batch, plan=plan)``: one step, compiled per padded sizes.

Args:
    state: from `initial_state`; it is written over and not to be used again.
    batch: NumPy or JAX arrays, laid out over the devices by `spread` where there are several.
    plan: what is static.

Returns:
    The next state, and scalars by name: "loss", its parts, "found" (the share of images whose
    nearest in the batch is a positive) and "gradient", the gradient's length before it is clipped,
    and before it is centred where steps are.
    Where loss, gradient or what they would make of the weights is not finite the state is what it
    was, its step included.
"""
