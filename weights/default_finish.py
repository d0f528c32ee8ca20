"""What is done to the network that ships without any gradient: its channels, whitening, scale."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from default_losses import ARCHITECTURE, network

from rmacjax import scenes, weights
from rmacjax.backbones import forward, initialize
from rmacjax.descriptors import Params
from rmacjax.integral import quantize
from rmacjax.normalization import l2_normalize
from rmacjax.pooling import region_maxima
from rmacjax.regions import rmac_regions
from rmacjax.whitening import fit_pca_whitening


def photo_of(seed: int, number: int) -> np.ndarray:
    """A generated photo to learn loudness and whitening on, none of which was trained on.

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
        few, many, smallest, largest = ((20, 90, 0.05, 0.9), (150, 600, 0.01, 0.5))[kind > 4]
        image = scenes.render_scene(
            rng,
            size,
            leaves=int(np.exp(rng.uniform(np.log(few), np.log(many)))),
            smallest=smallest,
            largest=largest,
            tilt=float(rng.choice([0.03, 0.2, 1.0])),
            contrast=float(rng.uniform(0.3, 1.3)),
        )
    soft = scenes.blur(image.astype(np.float32), 2 if kind == 6 else 0)
    return scenes.photograph(rng, soft, strength=0.5)


def region_maxima_of(weights: dict, photos, levels: int) -> np.ndarray:
    """Maxima of all photos' regions, (n r, c), as the network gives them."""

    @jax.jit
    def maxima(photo):
        maps, _ = forward(network(), weights, photo[None])
        return region_maxima(maps[0], rmac_regions(maps.shape[1], maps.shape[2], levels))

    return np.concatenate([np.asarray(maxima(photo)) for photo in photos])


def balanced(weights: dict, maxima: np.ndarray, quiet: float) -> dict:
    """Make the channels equally loud and sparse, by changing the last convolution alone.

    Localization compares plain maxima, which no whitening has made comparable. From each channel
    the `quiet` quantile of its region maxima is subtracted before the ReLU, and what is left is
    divided by its root mean square: ``relu((x - t) / s)``. That is a convolution with other
    numbers, and it commutes with every maximum.
    """
    threshold = np.quantile(maxima, quiet, axis=0) if quiet > 0 else np.zeros(maxima.shape[1])
    loud = np.sqrt(np.mean(np.maximum(maxima - threshold, 0) ** 2, axis=0))
    speaks = loud > 1e-6 * loud.max()
    factor = np.where(speaks, np.median(loud[speaks]) / np.where(speaks, loud, 1), 0)
    kernel, bias = (np.asarray(weights[f"conv5.{part}"], np.float64) for part in ("kernel", "bias"))
    changed = {"conv5.kernel": kernel * factor, "conv5.bias": (bias - threshold) * factor}
    return weights | {name: value.astype(np.float32) for name, value in changed.items()}


def awake(weights: dict, seed: int, levels: int = 3, quiet: float = 0.5) -> dict:
    """Get the last convolution ready for searches: no channel mute, all of them sparse.

    Training by views leaves channels that never answer, which get a fresh start, and others that
    answer everywhere, which tells no box from another.
    """
    photos = [photo_of(seed + 1, i) for i in range(140)]
    mute = region_maxima_of(weights, photos, levels).max(0) <= 0
    fresh = initialize(ARCHITECTURE, seed + 1)
    changed = {
        f"conv5.{part}": np.where(mute, fresh[f"conv5.{part}"], weights[f"conv5.{part}"])
        for part in ("kernel", "bias")
    }
    weights = weights | changed
    return balanced(weights, region_maxima_of(weights, photos, levels), quiet)


def less_color(kernel, chroma: float):
    """Let the first layer see only this share of what differs between the color channels."""
    std = np.asarray(network().convention.std, np.float32)[None, None, :, None]
    per_pixel = kernel / std
    gray = per_pixel.mean(2, keepdims=True)
    return (gray + chroma * (per_pixel - gray)) * std


def faithful_scale(maxima: np.ndarray) -> float:
    """The activation scale with which region vectors keep their direction best in four bits."""

    def fidelity(scale: float) -> float:
        levels = np.asarray(quantize(maxima, scale), np.float32)
        lengths = np.linalg.norm(levels, axis=1) * np.linalg.norm(maxima, axis=1)
        return float(np.mean((levels * maxima).sum(1) / np.maximum(lengths, 1e-12)))

    loud = float(np.mean(maxima[maxima > 0]))
    return max((2 ** (k / 4) / loud for k in range(8, 33)), key=fidelity)


def finish(options, trained: dict) -> Path:
    """Balance the channels, learn the whitening and the scale, and write the file that ships."""
    trained = {**trained, "conv1.kernel": less_color(trained["conv1.kernel"], options.chroma)}
    photos = [photo_of(options.seed, i) for i in range(options.photos)]
    maxima = region_maxima_of(trained, photos, options.levels)
    if options.quiet is not None:
        trained = balanced(trained, maxima, options.quiet)
    kept = {n: jnp.asarray(v, jnp.float16).astype(jnp.float32) for n, v in trained.items()}
    maxima = region_maxima_of(kept, photos, options.levels)
    whitening = fit_pca_whitening(np.asarray(l2_normalize(jnp.asarray(maxima))))
    scale = options.activation_scale or faithful_scale(maxima[::7])
    params = Params(replace(network(), activation_scale=scale), kept, whitening)
    return weights.save(
        options.work / "default.safetensors",
        params,
        dtype="float16",
        origin=f"trained from scratch on generated images, seed {options.seed}",
        licence="Apache-2.0",
        made_by="weights/train_default.py",
        whitening_origin=f"regions of {options.photos} generated photos, {options.levels} levels",
    )
