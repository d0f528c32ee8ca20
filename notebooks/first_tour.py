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
# # A first tour
#
# From photos to descriptors, to a box round the object, to whitening and a search. The photos are
# generated and everything is computed here, in under a minute on a laptop.

# %%
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import rmacjax
from rmacjax import scenes
from rmacjax.normalization import l2_normalize
from rmacjax.preprocessing import encode_jpeg


def show(images, boxes=None, titles=None, color="orange"):
    """Draw images in a row, with the boxes (top, left, bottom, right) of each."""
    _, axes = plt.subplots(1, len(images), figsize=(3 * len(images), 2.6), squeeze=False)
    for i, axis in enumerate(axes[0]):
        axis.imshow(images[i])
        axis.set_axis_off()
        axis.set_title(titles[i] if titles else "", fontsize=9)
        for top, left, bottom, right in boxes[i] if boxes else []:
            corner, width, height = (left, top), right - left, bottom - top
            axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, lw=2))
    plt.tight_layout()
    plt.show()


# %% [markdown]
# ## Photos
#
# Three objects, each seen in four photos among clutter, and eight photos that show none of them.
# For each object one photo is the query, with a box round the object.

# %%
photos = scenes.render_collection(seed=7, objects=3, views=4, distractors=8, size=(384, 512))
images = np.stack(photos.images)
query_index, query_box = photos.queries[0]
print(images.shape, images.dtype)
show(images[:5])

# %% [markdown]
# ## Descriptors
#
# `load` gives the network and the whitening as one pytree. `describe` gives a unit vector for
# each image; similarity is their product.

# %%
params = rmacjax.load("default")
descriptors = np.asarray(rmacjax.describe(params, images))
print(descriptors.shape)

plt.imshow(descriptors @ descriptors.T, vmin=0)
plt.xticks(range(0, len(images), 4))
plt.yticks(range(0, len(images), 4))
plt.colorbar(label="similarity")
plt.title("Similarity of all pairs: four views of each object, then the others")
plt.show()

# %% [markdown]
# ## Activation maps and regions
#
# A descriptor is made of an activation map: one vector of channels per cell. R-MAC takes the
# channel-wise maximum in each box of a grid. Boxes are `(top, left, bottom, right)` in cells,
# half-open; `boxes_to_px` turns them into pixels.

# %%
maps = rmacjax.activations(params, images)
_, h, w, c = maps.shape
regions = rmacjax.rmac_regions(h, w, levels=3)
print(f"{h} x {w} cells of {c} channels, {len(regions)} regions")

strongest = np.asarray(maps[query_index]).max(axis=(0, 1)).argsort()[-4:]
show(
    [np.asarray(maps[query_index][..., channel]) for channel in strongest],
    titles=[f"channel {channel}" for channel in strongest],
)

in_pixels = rmacjax.boxes_to_px(regions, (h, w), images.shape[1:3])
sides = [len(rmacjax.rmac_regions(h, w, levels=levels)) for levels in (1, 2, 3)]
show(
    [images[query_index]] * 3,
    [in_pixels[start:stop] for start, stop in zip([0, *sides], sides, strict=False)],
    [f"level {level}" for level in (1, 2, 3)],
)

# %% [markdown]
# ## Where is it?
#
# The query is what lies in the box, cut out and passed through the network; its channel-wise
# maximum is what AML looks for. Every kernel takes one map, so JAX maps it over all of them. The
# ratio is an ordinary argument: another query compiles nothing.

# %%
top, left, bottom, right = query_box
crop = images[query_index][top:bottom, left:right]
query = rmacjax.mac(rmacjax.activations(params, crop[None])[0])
ratio = np.float32(crop.shape[0] / crop.shape[1])

found = jax.vmap(rmacjax.aml, in_axes=(0, None, None))(maps, query, ratio)
best = np.argsort(-np.asarray(found.score))[:4]
boxes_px = rmacjax.boxes_to_px(np.asarray(found.box), (h, w), images.shape[1:3])
show([images[query_index]], [[query_box]], ["query"], color="deepskyblue")
show(images[best], boxes_px[best, None].tolist(), [f"{found.score[i]:.3f}" for i in best])

# %% [markdown]
# AML tries a grid of boxes and moves the sides of the best one, with a generalized mean in place of
# the maximum. `localize` takes the maximum itself and knows the best of all boxes.

# %%
exact = jax.jit(jax.vmap(rmacjax.localize, in_axes=(0, None)))(maps[best], query)
exact_px = rmacjax.boxes_to_px(np.asarray(exact.box), (h, w), images.shape[1:3])
show(images[best], exact_px[:, None].tolist(), [f"{score:.3f}" for score in exact.score], "lime")

# %% [markdown]
# ## Whitening
#
# Some channels fire everywhere and say little. Whitening, learned on the region vectors of other
# photos, turns their voices down. Here it is learned on the photos that show none of the objects.

# %%
others = np.flatnonzero(np.asarray(photos.labels) == -1)
vectors = jax.vmap(rmacjax.region_maxima, in_axes=(0, None))(maps[others], regions).reshape(-1, c)
whitening = rmacjax.fit_pca_whitening(l2_normalize(vectors), dimensions=32)

plain = jax.vmap(rmacjax.rmac)(maps)
whitened = jax.vmap(lambda a: rmacjax.rmac(a, whitening=whitening))(maps)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for axis, title, rows in zip(axes, ("plain", "whitened"), (plain, whitened), strict=True):
    axis.hist(np.asarray(rows @ rows.T)[np.triu_indices(len(rows), 1)], bins=30)
    axis.set_title(f"similarities, {title}")
plt.show()

# %% [markdown]
# ## A collection
#
# On disk, all of this is one object. It ranks by descriptors, localises the query in the best,
# ranks them again by what is in their boxes, and once more with the best boxes' help.

# %%
with tempfile.TemporaryDirectory() as folder:
    paths = [Path(folder) / "photos" / f"{i:02}.jpg" for i in range(len(images))]
    paths[0].parent.mkdir()
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(encode_jpeg(image, 90))

    collection = rmacjax.Collection.create(Path(folder) / "collection", params)
    collection.add(paths[0].parent)
    hits = collection.search(paths[query_index], box_px=tuple(map(int, query_box)), top=6)

where = [int(Path(hit.path).stem) for hit in hits]
show(images[where], [[hit.box_px] for hit in hits], [f"{hit.score:.3f}" for hit in hits])
