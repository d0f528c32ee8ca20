"""Train the network that ships, from nothing but generated images.

First by views: two views of the same generated scene shall have similar descriptors, views of
different scenes dissimilar ones (InfoNCE). The descriptor is R-MAC as it is deployed, whitening
included: region maxima, l2, whitening, l2, sum, l2. The whitening follows the network while it is
trained (running moments of the regions it sees); the one that ships is learned afterwards on
further generated photos. Any whitening of the same moments gives the same cosines, so here the
cheapest is used.

Then by searches: an outlined thing and a photo that shows it somewhere take the place of the two
views, and one term is added that is what AML maximises. The plain maxima of the query are compared
with those of many boxes of all photos in the batch; the better a box of the query's own photo
overlaps the thing, the more of the target it gets. What answers at the edges of an image, where the
padding is, answers in every query and in no box, and so is unlearned. Before that the last
convolution is made sparse (`awake`).

    python weights/train_default.py --work /tmp/rmacjax-training

Batches depend on the seed and the step alone, and a run that was stopped goes on where its last
checkpoint was. With `--minutes` the clock takes part (the run is annealed to end in time), so only
runs without it are repeatable.

References:
    van den Oord, Li and Vinyals, "Representation learning with contrastive predictive coding",
    2018 (InfoNCE). Chen et al., "A simple framework for contrastive learning of visual
    representations", ICML 2020 (two views, temperature).
"""

import argparse
import math
import multiprocessing
import os
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

PAIR = ("first", "second")


QUERY_SHAPES = ((1.0, 1.0), (0.75, 1.25), (1.25, 0.75))
"""Height and width of a query as parts of two thirds of a photo's side; one per step."""


class Stage(NamedTuple):
    """What is trained from one part of the run on.

    Attributes:
        start: the part of the run, 0..1.
        kind: "views" or "searches".
        size: side of a view or a photo in pixels.
        n: pairs per step.
    """

    start: float
    kind: str
    size: int
    n: int


def make_batch(seed: int, step: int, stage: Stage, looks: dict) -> dict[str, np.ndarray]:
    """Step's pairs; runs in a worker process that knows no JAX."""
    from rmacjax import scenes

    rng = np.random.default_rng([seed, step])
    textures = scenes.texture_bank(seed + 1000 * (step // 500), 96)
    n, size = stage.n, stage.size
    if stage.kind == "views":
        first, second = scenes.training_batch(rng, n, size, textures=textures, **looks)
        return {"first": first, "second": second}
    looks = {name: value for name, value in looks.items() if name != "reach"}
    height, width = (int(part * size * 2 / 3) for part in QUERY_SHAPES[step % len(QUERY_SHAPES)])
    batch = scenes.search_batch(rng, n, (height, width), (size, size), textures=textures, **looks)
    return {
        "first": batch.queries,
        "second": batch.photos,
        "boxes": batch.boxes,
        "overlaps": batch.overlaps,
    }


def in_cells(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with its boxes, where it has any, in cells of the photos' maps."""
    from default_losses import network

    from rmacjax.backbones import map_size
    from rmacjax.regions import px_to_cells

    if "boxes" not in batch:
        return batch
    size = batch["second"].shape[1:3]
    return batch | {"boxes": px_to_cells(batch["boxes"], map_size(network(), *size), size)}


def initial_state(seed: int, start: str | None = None) -> dict:
    """Weights, Adam's moments, and the running moments of region vectors."""
    import jax.numpy as jnp
    from default_losses import ARCHITECTURE, network

    from rmacjax.backbones import initialize
    from rmacjax.weights import load

    weights = dict(load(start).weights) if start else initialize(ARCHITECTURE, seed)
    c = network().channels
    moments = {"seen": jnp.zeros(()), "mean": jnp.zeros(c), "second": jnp.zeros((c, c))}
    return {"weights": weights, "optimizer": optimizer(0.0).init(weights), "moments": moments}


def optimizer(decay: float):
    """AdamW without its learning rate, which the loop multiplies in; biases do not decay."""
    import optax

    def kernels(tree):
        return {name: name.endswith(".kernel") for name in tree}

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.98),
        optax.add_decayed_weights(decay, mask=kernels),
    )


def make_step(options):
    """One step of training: pure, compiled once per kind and image size."""
    import default_losses as losses
    import jax
    import jax.numpy as jnp

    from rmacjax.backbones import forward
    from rmacjax.normalization import l2_normalize

    rule = optimizer(options.decay)

    def loss_of(weights, moments, batch):
        first, second = (forward(losses.network(), weights, batch[name])[0] for name in PAIR)
        regions = [losses.region_vectors(maps, options.levels) for maps in (first, second)]
        moments = jax.lax.stop_gradient(losses.follow(moments, regions))
        plain = [l2_normalize(r.sum(1)) for r in regions]
        white = [l2_normalize(l2_normalize(losses.whitened(moments, r)).sum(1)) for r in regions]
        loss, found = losses.contrast(*white, options.temperature)
        if "boxes" in batch:
            query = l2_normalize(first.max((1, 2)))
            boxes = losses.box_vectors(second, batch["boxes"])
            other, fact = losses.placed(query, boxes, batch["overlaps"], options.box_temperature)
            total = loss + options.boxes * other
        else:
            other, fact = losses.contrast(*plain, options.temperature)
            total = loss + options.plain * other
        return total, (moments, jnp.stack([loss, found, other, fact]))

    @jax.jit
    def step(state, batch, rate):
        weights = state["weights"]
        gradient, (moments, facts) = jax.grad(loss_of, has_aux=True)(
            weights, state["moments"], batch
        )
        change, inner = rule.update(gradient, state["optimizer"], weights)
        weights = jax.tree.map(lambda p, c: p - rate * c, weights, change)
        return {"weights": weights, "optimizer": inner, "moments": moments}, facts

    return step


def save_checkpoint(path: Path, state: dict, step: int) -> None:
    """Write the whole state; a reader sees the old file or the new one, never half of one."""
    import jax

    leaves = {f"leaf{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, step=step, **leaves)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path, state: dict) -> tuple[dict, int]:
    """The state and the step that a checkpoint holds, in the structure of ``state``."""
    import jax

    with np.load(path) as file:
        leaves = [jax.numpy.asarray(file[name]) for name in sorted(file.files) if name != "step"]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), int(file["step"])


def train(options) -> dict:
    """Run the whole training; returns the trained weights."""
    import jax
    from default_finish import awake

    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.work / "checkpoint.npz"
    state, first = initial_state(options.seed, options.start), 0
    if checkpoint.exists():
        state, first = load_checkpoint(checkpoint, state)
        print(f"going on at step {first}", flush=True)
    step = make_step(options)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    started = saved = time.monotonic()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        coming = deque()
        asked = first
        facts, begun = np.zeros(4), 0
        searched = first > 0 and batch_of(options, first / options.steps)[0].kind == "searches"
        for i in range(first, options.steps):
            while asked < min(i + 6, options.steps):
                stage, looks = batch_of(options, progress(options, asked, started))
                coming.append(pool.submit(make_batch, options.seed, asked, stage, looks))
                asked += 1
            batch = in_cells(coming.popleft().result())
            if "boxes" in batch and not searched:
                ready = {"weights": awake(state["weights"], options.seed)}
                state, searched, begun = initial_state(options.seed) | ready, True, i
            part = progress(options, i, started)
            rate = options.rate * min(1.0, (i + 1 - begun) / options.warmup)
            rate *= 0.5 * (1 + math.cos(math.pi * part)) + 0.002
            state, now = step(state, batch, np.float32(rate))
            facts = 0.9 * facts + 0.1 * np.asarray(now)
            if (i + 1) % 20 == 0:
                speed = (time.monotonic() - started) / (i + 1 - first)
                left = speed * (options.steps - i - 1) / 60
                print(
                    f"step {i + 1}/{options.steps}  loss {facts[0]:.3f}  found {facts[1]:.3f}  "
                    f"plain {facts[2]:.3f} {facts[3]:.3f}  rate {rate:.1e}  "
                    f"{len(batch['first']) / speed:.0f} pairs/s  {left:.1f} min left",
                    flush=True,
                )
            over = part >= 1.0
            if time.monotonic() - saved > 120 or over:
                save_checkpoint(checkpoint, state, i + 1)
                saved = time.monotonic()
            if over:
                break
        for job in coming:
            job.cancel()
    save_checkpoint(checkpoint, state, i + 1)
    return jax.tree.map(np.asarray, state["weights"])


def progress(options, step: int, started: float) -> float:
    """The part of the run that is over, 0..1: by steps, or by time where that is more."""
    elapsed = (time.monotonic() - started) / 60
    by_time = elapsed / options.minutes if options.minutes else 0.0
    return min(1.0, max(step / options.steps, by_time))


def batch_of(options, part: float) -> tuple[Stage, dict]:
    """The stage, and how its pairs look, when this part (0..1) of the run is over."""
    names = ("strength", "gray", "reach", "relatives")
    stage = max(stage for stage in options.stages if stage.start <= part)
    return stage, {name: getattr(options, name) for name in names}


def stages_of(text: str) -> list[Stage]:
    """Read "start:kind:size:pairs,..."."""
    stages = []
    for stage in text.split(","):
        start, kind, size, n = stage.split(":")
        if kind not in ("views", "searches"):
            raise argparse.ArgumentTypeError(f"{kind!r} is neither 'views' nor 'searches'")
        stages.append(Stage(float(start), kind, int(size), int(n)))
    return stages


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for checkpoints and the result")
    add("--steps", type=int, default=6000)
    add("--minutes", type=float, default=0.0, help="end, annealed, by then at the latest")
    add("--seed", type=int, default=0)
    add(
        "--stages",
        type=stages_of,
        default="0:views:96:96,0.15:views:128:64,0.35:searches:192:32,0.5:searches:256:24",
        help="part of the run : views or searches : side in pixels : pairs per step, ...",
    )
    add("--rate", type=float, default=8e-4)
    add("--warmup", type=int, default=100, help="steps")
    add("--decay", type=float, default=0.02)
    add("--temperature", type=float, default=0.1)
    add("--plain", type=float, default=0.2, help="weight of the views' loss without whitening")
    add("--boxes", type=float, default=1.0, help="weight of the loss over boxes in searches")
    add("--box-temperature", type=float, default=0.05)
    add(
        "--start",
        help="weights to start from, a file or a name, instead of random ones",
    )
    add("--levels", type=int, default=3, help="of the region grid")
    add("--strength", type=float, default=0.8, help="of the camera's changes")
    add(
        "--quiet",
        type=float,
        help="in the end make channels equally loud, and silent in this share of regions",
    )
    add("--gray", type=float, default=0.4, help="how often a view loses its colours")
    add("--reach", type=float, nargs=2, default=(0.45, 1.5), help="of views, in scenes' sides")
    add("--relatives", type=int, default=4, help="scenes that share colours and textures")
    add("--chroma", type=float, default=1.0, help="share of the color that the result still sees")
    add("--photos", type=int, default=490, help="generated photos that the whitening sees")
    add("--activation-scale", type=float, default=0.0, help="0: measured")
    add("--finish-only", action="store_true", help="only whiten and write what was trained before")
    options = parser.parse_args()
    from default_finish import finish

    result = options.work / "trained.npz"
    if not options.finish_only:
        np.savez(result, **train(options))
    with np.load(result) as file:
        print(finish(options, dict(file)))


if __name__ == "__main__":
    main()
