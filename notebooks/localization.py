# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Localization, step by step
#
# An outlined detail of a photograph is looked for in another photo of the same subject: how the
# map is pooled over boxes, which boxes AML tries, how it refines the best one, what it misses, and
# what the approximation of the maximum costs. The photograph comes with matplotlib (Grace Hopper,
# U.S. Navy, public domain).

# %%
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cbook
from matplotlib.patches import Rectangle

import rmacjax
from rmacjax.integral import box_generalized_mean, integral_image, quantize
from rmacjax.preprocessing import load_image
from rmacjax.scenes import homography, sample


def outline(axis, box, color, **style):
    """Draw a box (top, left, bottom, right)."""
    top, left, bottom, right = (float(edge) for edge in box)
    patch = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, **style)
    axis.add_patch(patch)


def photo_axis(axis, image, title=""):
    """Show a photo without ticks."""
    axis.imshow(image)
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)


# %% [markdown]
# ## A query and a photo
#
# The query is the cap, cut out of the photograph. The photo it is looked for in is the same
# picture, taken askew and darker, so that the true box is known.

# %%
original = load_image(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False), 1024).pixels
cap = (20, 130, 175, 400)
corners = np.array([[cap[1], cap[0]], [cap[3], cap[0]], [cap[3], cap[2]], [cap[1], cap[2]]], float)

height, width = 640, 720
whole = np.array([[0, 0], [512, 0], [512, 606], [0, 606]], float)
placed = np.array([[150, 60], [560, 20], [610, 560], [120, 600]], float)
view, alpha = sample(original, homography(placed, whole), (height, width))
photo = (0.75 * view * alpha[..., None] + 60 * (1 - alpha[..., None])).astype(np.uint8)


def carried(points):
    """Where points (x, y) of the original lie in the photo."""
    x, y, z = homography(whole, placed) @ np.c_[points, np.ones(len(points))].T
    return np.stack([x / z, y / z], -1)


lows, highs = carried(corners).min(0), carried(corners).max(0)
true_box = (lows[1], lows[0], highs[1], highs[0])

figure, axes = plt.subplots(1, 2, figsize=(9, 4.5))
photo_axis(axes[0], original, "the query is outlined")
outline(axes[0], cap, "deepskyblue", lw=2)
photo_axis(axes[1], photo, "where is it?")
plt.show()

# %% [markdown]
# ## Maps
#
# The photo becomes a map of activations, which is all that localization sees of it. The crop
# goes through the network by itself; its channel-wise maximum (MAC) is what is looked for.

# %%
params = rmacjax.load("default")
a1 = rmacjax.activations(params, photo[None])[0]
crop = original[cap[0] : cap[2], cap[1] : cap[3]]
query = rmacjax.mac(rmacjax.activations(params, crop[None])[0])
ratio = np.float32(crop.shape[0] / crop.shape[1])
h, w, c = a1.shape
print(f"{h} x {w} cells, {c} channels, height / width of the query {ratio:.2f}")

strongest = np.argsort(-np.asarray(query))[:4]
figure, axes = plt.subplots(1, 4, figsize=(12, 2.8))
for axis, channel in zip(axes, strongest, strict=True):
    photo_axis(axis, np.asarray(a1[..., channel]), f"channel {channel}, strong in the query")
plt.show()

# %% [markdown]
# ## Pooling boxes
#
# The score of a box is the cosine of its channel-wise maxima with the query. The maximum is
# approximated by a generalized mean, a *sum* of tenth powers, because sums over boxes come from a
# table. Textbook tables hold prefix sums and subtract four of them, and in float32 what is small
# drowns in the difference. The table of `integral_image` never subtracts. How the two err, on
# quantised levels (0 to 8), for boxes all over the map:

# %%
levels = np.asarray(quantize(a1, params.network.activation_scale))
random = np.random.default_rng(0)
edges = np.sort(random.integers(0, [h + 1, w + 1], (400, 2, 2)), axis=1)
boxes = edges[(edges[:, 1] > edges[:, 0]).all(1)].reshape(-1, 4)

exact_sums = np.stack(
    [(levels[t:b, le:r].astype(np.float64) ** 10).sum((0, 1)) ** 0.1 for t, le, b, r in boxes]
)
prefix = np.pad(
    (levels.astype(np.float32) ** 10).cumsum(0, dtype=np.float32), ((1, 0), (0, 0), (0, 0))
)
prefix = np.pad(prefix.cumsum(1, dtype=np.float32), ((0, 0), (1, 0), (0, 0)))
t, le, b, r = boxes.T
differences = prefix[b, r] - prefix[t, r] - prefix[b, le] + prefix[t, le]
by_prefix = np.maximum(differences, 0) ** 0.1
table = integral_image(levels, 10)
by_table = np.asarray(jax.vmap(box_generalized_mean, in_axes=(None, 0))(table, jnp.asarray(boxes)))
for name, values in (("prefix sums, float32", by_prefix), ("integral_image", by_table)):
    print(f"{name}: largest error {np.abs(values - exact_sums).max():.2g} levels")

worst, channel = np.unravel_index(np.abs(by_prefix - exact_sums).argmax(), exact_sums.shape)
top, left, bottom, right = boxes[worst]
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
axes[0].imshow(levels[..., channel], extent=(0, w, h, 0), vmax=8)
axes[0].set_title(f"levels of channel {channel}, and a box", fontsize=9)
outline(axes[0], boxes[worst], "orange", lw=2)
shown = axes[1].imshow(
    np.log10(np.maximum(prefix[..., channel], 1)), extent=(-0.5, w + 0.5, h + 0.5, -0.5)
)
figure.colorbar(shown, ax=axes[1], shrink=0.8)
axes[1].plot([left, right, left, right], [top, top, bottom, bottom], "o", color="orange")
axes[1].set_title(
    "log10 of its table of tenth powers, and the box's four look-ups:\n"
    f"{by_prefix[worst, channel]:.2f} in float32, {exact_sums[worst, channel]:.2f} exactly",
    fontsize=9,
)
plt.show()

# %% [markdown]
# The generalized mean itself errs too, always upwards: many cells at the maximum count for more
# than one. The larger the exponent the closer it comes, which is the paper's figure 3.

# %%
maxima = np.stack([levels[t:b, le:r].max((0, 1)) for t, le, b, r in boxes]).astype(np.float64)


def unit(x):
    """Rows of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


exponents = [1, 2, 3, 5, 7, 10, 15, 20, 30]
cosines = []
for exponent in exponents:
    table = integral_image(levels, exponent)
    pooled = jax.vmap(box_generalized_mean, in_axes=(None, 0))(table, jnp.asarray(boxes))
    cosines.append((unit(np.asarray(pooled)) * unit(maxima)).sum(1))
plt.figure(figsize=(6, 3))
plt.plot(exponents, [np.mean(values) for values in cosines], "o-", label="mean")
plt.plot(exponents, [np.min(values) for values in cosines], "o--", label="worst box")
plt.xlabel("alpha")
plt.ylabel("cosine with the exact maxima")
plt.legend()
plt.show()

# %% [markdown]
# ## Candidates
#
# AML looks at a coarse grid: boxes that begin at every third cell, are 2, 5, 8, ... cells high and
# wide, and have about the query's shape. All of them are drawn at the place of their middle,
# coloured by their score.


# %%
def score_of(box):
    """Cosine of a box's exact maxima with the query."""
    top, left, bottom, right = box
    pooled = np.asarray(a1)[top:bottom, left:right].max((0, 1))
    return float(unit(pooled) @ unit(np.asarray(query)))


grid = [
    (top, left, top + tall, left + wide)
    for tall in range(2, h + 1, 3)
    for wide in range(2, w + 1, 3)
    if abs(np.log(ratio / (tall / wide))) <= np.log(1.1)
    for top in range(0, h - tall + 1, 3)
    for left in range(0, w - wide + 1, 3)
]
scores = np.array([score_of(box) for box in grid])
best = grid[int(scores.argmax())]
print(f"{len(grid)} candidates of {h * (h + 1) * w * (w + 1) // 4:,} boxes; best {best}")


def to_pixels(box):
    """Cells to pixels of the photo."""
    return rmacjax.boxes_to_px(np.asarray(box), (h, w), (height, width))


figure, axes = plt.subplots(1, 2, figsize=(10, 4.4))
middles = np.array([[(x[1] + x[3]) / 2, (x[0] + x[2]) / 2] for x in map(to_pixels, grid)])
photo_axis(axes[0], photo, "candidates")
dots = axes[0].scatter(*middles.T, c=scores, s=14)
figure.colorbar(dots, ax=axes[0], shrink=0.8)
photo_axis(axes[1], photo, "the best ten")
for place in np.argsort(-scores)[:10]:
    outline(axes[1], to_pixels(grid[place]), "orange", lw=1)
plt.show()

# %% [markdown]
# ## Refinement
#
# The best candidate's sides move by 3, then 2, then 1 cells, as long as that helps. `refine_steps`
# stops it on the way.

# %%
stages = [(), (3,), (3, 2), (3, 2, 1)]
path = [rmacjax.aml(a1, query, ratio, alpha=None, refine_steps=steps) for steps in stages]
every = rmacjax.localize(a1, query)
near = rmacjax.localize(a1, query, ratio, 1.1)
for steps, found in zip(stages, path, strict=True):
    print(f"{steps!s:10} {found.box.tolist()!s:18} {float(found.score):.4f}")
print(f"{'all boxes':10} {every.box.tolist()!s:18} {float(every.score):.4f}")
assert all(later.score >= earlier.score for earlier, later in pairwise(path))
assert every.score >= max(path[-1].score, near.score) - 1e-6

figure, axes = plt.subplots(1, 2, figsize=(10, 4.4))
photo_axis(axes[0], photo, "true (blue), candidate to refined (orange), best of all (green)")
outline(axes[0], true_box, "deepskyblue", lw=2)
outline(axes[0], to_pixels(every.box), "lime", lw=2, ls="--")
for i, found in enumerate(path):
    outline(axes[0], to_pixels(found.box), "orange", lw=1 + i, alpha=0.4 + 0.2 * i)

# A heat map: the best score of any candidate that covers a cell.
heat = np.full((h, w), np.nan)
for box, score in sorted(zip(grid, scores, strict=True), key=lambda item: item[1]):
    heat[box[0] : box[2], box[1] : box[3]] = score
photo_axis(axes[1], photo, "best score of a candidate that covers each cell")
axes[1].imshow(heat, extent=(0, width, height, 0), alpha=0.6, cmap="magma")
plt.show()

# %% [markdown]
# ## Many maps at once
#
# All of this is one pure function of one map, so `jax.vmap` takes it over a set of them, padded to
# one size, each with its own valid size. Here the photo, its mirror image, a part of it and other
# light:

# %%
noise = np.random.default_rng(1).normal(0, 8, photo.shape)
photos = [
    photo,
    photo[:, ::-1],
    photo[: 3 * height // 4, : 3 * width // 4],
    np.clip(1.5 * photo + noise, 0, 255).astype(np.uint8),
]
maps = [np.asarray(map_) for map_ in rmacjax.activations(params, photos)]
sizes = np.array([map_.shape[:2] for map_ in maps])
padded = np.zeros((len(maps), *sizes.max(0), maps[0].shape[2]), np.float32)
for room, map_, (rows, columns) in zip(padded, maps, sizes, strict=True):
    room[:rows, :columns] = map_


@jax.vmap
def localized(map_, size):
    return rmacjax.aml(map_, query, ratio, size=size)


found = localized(jnp.asarray(padded), jnp.asarray(sizes))
figure, axes = plt.subplots(1, 4, figsize=(14, 3.4))
for axis, image, size, box, score in zip(axes, photos, sizes, found.box, found.score, strict=True):
    photo_axis(axis, image, f"{float(score):.3f}")
    pixels = rmacjax.boxes_to_px(np.asarray(box), tuple(size.tolist()), image.shape[:2])
    outline(axis, pixels, "orange", lw=2)
plt.show()
