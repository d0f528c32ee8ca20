"""What is done to a network that ships after its training, without gradients.

Channels of its last convolution that never answer, or in much of every photo, get fresh kernels,
all of its channels are made alike, its whitening is learned, and the scale of its four-bit maps is
found, all on generated photos that it was not trained on.

    python weights/finish_default.py TRAINED.safetensors weights/default.safetensors
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro

import rmacjax
from rmacjax import scenes, weights
from rmacjax.backbones import Network
from rmacjax.backbones.layers import Convolution
from rmacjax.cli.terminal import check_writable
from rmacjax.descriptors import Params
from rmacjax.integral import quantize
from rmacjax.normalization import l2_normalize
from rmacjax.pooling import region_maxima
from rmacjax.regions import rmac_regions
from rmacjax.whitening import fit_pca_whitening

MUTE = 0.004
"""A channel that answers in less than this part of all cells has nothing to say."""

FEWEST = 14
"""So many generated photos are needed: two of each kind."""

LEVELS = 3
"""Scales of the grid of regions."""

DIRECTIONS = 20
"""So many directions of patches are made about equally strong, the weaker ones less and less."""


def photo_of(seed: int, number: int) -> np.ndarray:
    """A generated photo to learn kernels, units, whitening and scale on, and none to train on.

    Seven kinds take turns: sharp and soft, coarse and fine, abstract and with things in places. No
    kind alone has the statistics of photos, and what is learned on one of them transfers less well.
    """
    rng = np.random.default_rng([seed, 999, number])
    kind, size = number % 7, (384, 512)
    if kind <= 1:
        reach, strength = ((0.3, 1.1), 0.8) if kind == 0 else ((0.15, 0.6), 0.5)
        views, _ = scenes.training_batch(rng, 2, 320, strength=strength, gray=0.3, reach=reach)
        return views[0]
    if kind == 2:
        one, other = (scenes.power_noise(rng, 512, rng.uniform(0.9, 1.6)) for _ in range(2))
        tints = rng.normal([[1], [0]], 0.3, (2, 3))
        pixels = one[:384, :, None] * tints[0] + other[:384, :, None] * tints[1]
        return np.clip(120 + rng.uniform(25, 60) * pixels, 0, 255).astype(np.uint8)
    if kind == 3:
        image = scenes.render_collection(int(rng.integers(2**31)), 1, 2, 0, size).images[1]
    else:
        fewest, most, smallest, largest = ((20, 90, 0.05, 0.9), (150, 600, 0.01, 0.5))[kind > 4]
        image = scenes.render_scene(
            rng,
            size,
            leaves=int(np.exp(rng.uniform(np.log(fewest), np.log(most)))),
            smallest=smallest,
            largest=largest,
            tilt=float(rng.choice([0.03, 0.2, 1.0])),
            contrast=float(rng.uniform(0.3, 1.3)),
        )
    soft = scenes.blur(image.astype(np.float32), 2 if kind == 6 else 0)
    return scenes.photograph(rng, soft, strength=0.5)


def last_convolution(network: Network) -> str:
    """The name of the convolution whose ReLU ends a network.

    Raises:
        ValueError: it ends with something else.
    """
    layer = network.layers[-1]
    if not isinstance(layer, Convolution) or (layer.kernel, layer.groups) != (3, 1):
        raise ValueError(
            f"{network.name} ends with something else than a convolution of 3 x 3 cells that sees "
            "all channels: give an alexnet or a vgg16 without its last pool."
        )
    return layer.name


def _kernel_and_bias(params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Those of the last convolution."""
    last = last_convolution(params.network)
    kernel, bias = (np.array(params.weights[f"{last}.{part}"]) for part in ("kernel", "bias"))
    return kernel, bias


def answers(params: Params, photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the last convolution answers to each photo before its ReLU: (cells, c) each.

    Its biases are lifted until the ReLU cuts nothing off, and what was added is taken away again.

    Raises:
        ValueError: an activation is no finite number.
    """
    channels = params.network.channels
    lift = max(1e-3, *(float(jnp.max(m)) for m in rmacjax.activations(params, list(photos[:8]))))
    while True:
        lift *= 8
        lifted = _with(params, bias=_kernel_and_bias(params)[1] + lift)
        maps = [np.asarray(m).reshape(-1, channels) for m in rmacjax.activations(lifted, photos)]
        if not all(np.isfinite(map_).all() for map_ in maps):
            raise ValueError(
                f"{last_convolution(params.network)} answers with activations that are no finite "
                "numbers."
            )
        if min(map_.min() for map_ in maps) > 0:
            return [map_ - lift for map_ in maps]


def patches(params: Params, photos: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
    """What the last convolution looks at in random places: 3 x 3 cells, (n, 9 c), at length 1.

    Args:
        params: the network; its last convolution takes as many channels as it gives.
        photos: to take patches from, `count` of each.
        count: patches per photo.
        seed: decides the places.
    """
    rng = np.random.default_rng([seed, 996])
    kernel, bias = (np.zeros_like(part) for part in _kernel_and_bias(params))
    kernel[1, 1] = np.eye(len(bias))
    through = _with(params, kernel, bias)
    rows = []
    for map_ in rmacjax.activations(through, list(photos)):
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(map_), (3, 3), axis=(0, 1))
        y, x = (rng.integers(0, n, count) for n in windows.shape[:2])
        rows.append(windows[y, x].transpose(0, 2, 3, 1).reshape(count, -1))
    return _unit(np.concatenate(rows).astype(np.float64))


def centroids(rows: np.ndarray, count: int, seed: int, rounds: int = 25) -> np.ndarray:
    """Kernels that tell frequent patches apart: spherical k-means of whitened rows, (d, count).

    Whitening is held back to `DIRECTIONS`. With more of them kernels become fine-grained,
    which tells photos apart a little better and the edges of things worse.

    Args:
        rows: (n, d), from `patches`.
        count: how many kernels.
        seed: decides where the search begins.
        rounds: of assigning rows and moving centroids.

    References:
        Coates and Ng, "Learning feature representations with k-means", 2012.
    """
    rng = np.random.default_rng([seed, 995])
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov((rows - mean).T))
    values, vectors = np.maximum(values[::-1][:400], 0), vectors[:, ::-1][:, :400]
    whiten = vectors / np.sqrt(values + max(values[DIRECTIONS], 1e-9 * values[0]))
    white = _unit((rows - mean) @ whiten)
    found = white[rng.choice(len(white), count, replace=False)]
    for _ in range(rounds):
        nearest = (white @ found.T).argmax(1)
        sums = np.zeros_like(found)
        np.add.at(sums, nearest, white)
        lonely = np.bincount(nearest, minlength=count) == 0
        sums[lonely] = white[rng.choice(len(white), int(lonely.sum()), replace=False)]
        found = _unit(sums)
    return whiten @ found.T


def renewed(
    params: Params, photos: Sequence[np.ndarray], share: float, most: float, seed: int
) -> Params:
    """Give the last convolution's channels that say nothing kernels that answer to what is there.

    Training leaves channels that never answer, and no gradient brings them back; others answer in
    much of every photo, and so say next to nothing about where a thing is. Both get centroids of
    what the layer before says, and thresholds at which they answer in `share` of all cells.

    Args:
        params: the network.
        photos: to listen to. A channel is mute that answers in less than `MUTE` of their cells.
        share: of the cells, between 0 and 1.
        most: of the cells, in which a channel may answer that keeps its kernel.
        seed: decides the kernels.
    """
    often = (np.concatenate(answers(params, photos)) > 0).mean(0)
    idle = (often < MUTE) | (often > most)
    if not idle.any():
        return params
    kernel, bias = _kernel_and_bias(params)
    fresh = centroids(patches(params, photos, 200, seed), int(idle.sum()), seed)
    kernel[..., idle] = fresh.reshape(*kernel.shape[:3], -1)
    bias[idle] = 0
    awake = _with(params, kernel, bias)
    threshold = np.quantile(np.concatenate(answers(awake, photos)), 1 - share, axis=0)
    return _with(awake, bias=np.where(idle, -threshold, bias))


def balanced(params: Params, photos: Sequence[np.ndarray], share: float) -> Params:
    """Make channels equally loud, and none of them thin, by changing the last convolution alone.

    Localization compares plain maxima, which no whitening has made comparable, and finds the edges
    of a thing only where channels answer near its edges. So a channel that answers in less than
    `share` of all cells gets the threshold above which it answers there, and each channel the unit
    in which the maxima of regions have the same root mean square: ``relu((x - t) / s)``. That is a
    convolution with other numbers.

    Args:
        params: the network.
        photos: to listen to.
        share: of the cells, between 0 and 1.

    Raises:
        ValueError: no channel answers anywhere.
    """
    seen = np.concatenate(answers(params, photos))
    threshold = np.minimum(np.quantile(seen, 1 - share, axis=0), 0)
    kernel, bias = (part.astype(float) for part in _kernel_and_bias(params))
    moved = _with(params, bias=bias - threshold)
    loud = np.sqrt(np.mean(np.square(region_maxima_of(moved, photos)), axis=0))
    speaks = loud > 1e-6 * loud.max()
    if not speaks.any():
        raise ValueError(
            f"No channel of {last_convolution(params.network)} answers to any of the photos."
        )
    factor = np.where(speaks, 1 / np.where(speaks, loud, 1), 0)
    return _with(moved, kernel * factor, (bias - threshold) * factor)


def _with(
    params: Params, kernel: np.ndarray | None = None, bias: np.ndarray | None = None
) -> Params:
    """The network with another last convolution."""
    last = last_convolution(params.network)
    weights = dict(params.weights)
    for part, value in (("kernel", kernel), ("bias", bias)):
        if value is not None:
            weights[f"{last}.{part}"] = jnp.asarray(value, jnp.float32)
    return params._replace(weights=weights)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def region_maxima_of(params: Params, photos: Sequence[np.ndarray]) -> np.ndarray:
    """Maxima of all photos' regions, (n r, c), as the network gives them."""
    maps = rmacjax.activations(params, list(photos))
    grids = [rmac_regions(*map_.shape[:2], LEVELS) for map_ in maps]
    pooled = [np.asarray(region_maxima(m, grid)) for m, grid in zip(maps, grids, strict=True)]
    return np.concatenate(pooled)


def faithful_scale(maxima: np.ndarray) -> float:
    """The activation scale with which region vectors keep their direction best in four bits."""

    def fidelity(scale: float) -> float:
        levels = np.asarray(quantize(maxima, scale), np.float32)
        lengths = np.linalg.norm(levels, axis=1) * np.linalg.norm(maxima, axis=1)
        return float(np.mean((levels * maxima).sum(1) / np.maximum(lengths, 1e-12)))

    loud = float(np.mean(maxima[maxima > 0]))
    return max((2 ** (k / 4) / loud for k in range(8, 33)), key=fidelity)


def finish(
    trained: str,
    out: Path,
    /,
    *,
    photos: int = 490,
    share: float = 0.15,
    most: float = 0.3,
    seed: int = 0,
) -> None:
    """Renew and balance channels, learn the whitening and the scale, write the file that ships.

    Args:
        trained: the trained network's file: alexnet in torchvision's shape, or vgg16.
        out: the file to write.
        photos: generated photos to learn on, fourteen at least.
        share: of all cells in which each channel answers at least, and a renewed one at first.
        most: of all cells in which a channel may answer that keeps what it learned; 1: in all.
        seed: decides the photos and the fresh kernels.

    Raises:
        ValueError: another end than `last_convolution` takes, fewer photos, shares or a seed that
            are none, or a folder to write to.
        OSError: where the file cannot be written.
    """
    if photos < FEWEST:
        raise ValueError(f"--photos must be at least {FEWEST}, not {photos}.")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, not {seed}.")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name the file to write.")
    check_writable(str(out))
    if not 0 < share < 1:
        raise ValueError(f"--share must lie between 0 and 1, not at {share}.")
    if not share <= most <= 1:
        raise ValueError(f"--most must lie between --share and 1, not at {most}.")
    params = rmacjax.load(trained)
    last_convolution(params.network)
    generated = [photo_of(seed, i) for i in range(photos)]
    params = renewed(params, generated[1::4], share, most, seed)
    params = balanced(params, generated[::2], share)
    # From here on with the numbers that the file can hold.
    kept = {n: jnp.asarray(v, jnp.float16).astype(jnp.float32) for n, v in params.weights.items()}
    params = params._replace(weights=kept, whitening=None)
    maxima = region_maxima_of(params, generated)
    whitening = fit_pca_whitening(np.asarray(l2_normalize(jnp.asarray(maxima))))
    # Scores of other descriptors: lines between found and not found have to be learned anew.
    network = replace(
        params.network,
        name=out.stem,
        activation_scale=faithful_scale(maxima[::7]),
        thresholds=(),
    )
    weights.save(
        out,
        params._replace(network=network, whitening=whitening),
        dtype="float16",
        origin="trained from nothing on generated images",
        licence="Apache-2.0",
        made_by="training on generated images, then weights/finish_default.py",
        whitening_origin=f"regions of {photos} generated photos, {LEVELS} levels",
    )


if __name__ == "__main__":
    try:
        tyro.cli(finish)
    except (OSError, ValueError) as error:
        print(f"finish_default.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt:
        print("Interrupted. Nothing was written.", file=sys.stderr)
        sys.exit(130)
