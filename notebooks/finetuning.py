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
# # Training, in two minutes
#
# A network with random weights learns to tell generated scenes from each other, seen twice each
# from different places and in different light. It never sees the scenes that it is measured on,
# before, while and after it learns. `rmacjax finetune` does the same from the command line, with
# checkpoints of the same kind; here each part is in sight.

# %%
import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import rmacjax
from rmacjax import scenes
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.finetune.loop import fit
from rmacjax.finetune.optimizer import Rates
from rmacjax.finetune.runs import Run
from rmacjax.finetune.sources import FolderOfFolders, GeneratedScenes, parse_stages
from rmacjax.finetune.state import Forward
from rmacjax.finetune.step import Objective, Plan
from rmacjax.finetune.validation import label_validator

LOOKS = {"strength": 0.6, "gray": 0.2, "relatives": 2}
work = Path(tempfile.mkdtemp(prefix="rmacjax-finetuning-"))

# %% [markdown]
# ## What it is measured on
#
# Forty scenes, two views of each, in a folder for each scene: as `--data` and `--validate` take
# photos of one's own. Two scenes in a row share colours and textures, so that neither tells them
# apart.

# %%
first, second = scenes.training_batch(np.random.default_rng(2026), 40, 96, **LOOKS)
for number, views in enumerate(zip(first, second, strict=True)):
    folder = work / "held out" / f"scene{number:02d}"
    folder.mkdir(parents=True)
    for name, view in zip("ab", views, strict=True):
        Image.fromarray(view).save(folder / f"{name}.png")

held_out = FolderOfFolders(work / "held out")
figure, axes = plt.subplots(2, 8, figsize=(10, 2.6))
for column in range(8):
    for row, views in enumerate((first, second)):
        axes[row, column].imshow(views[column])
        axes[row, column].set_axis_off()
figure.suptitle("Two views of each of eight scenes; every two neighbours are relatives")
plt.show()

# %% [markdown]
# ## What is trained, and how
#
# `Forward` says how descriptors are made: the same forward pass as `rmacjax.describe`, regions
# pooled by generalized means with the exponent 10, which is learned too. The whitening follows
# the moments of what the network has seen lately, because a network with random weights has none
# worth training. `Objective` is InfoNCE over all views of a step; `Rates` a warm-up and a cosine,
# and steps that are `centred`, without which channels of such a network fall silent.

# %%
network = Network("alexnet", last_pool=False, convention=TORCHVISION_CONVENTION, gem_p=10.0)
untrained = rmacjax.Params(network, initialize("alexnet", 0))
settings = rmacjax.Settings(long_side=96, pool="rgem")
plan = Plan(
    Forward(network, pool="rgem", learn_exponent=True, whitening="running"),
    Objective("info-nce", temperature=0.1, plain=1.0),
    Rates(rate=1e-3, steps=160, warmup=20, decay=0.02, centred=True),
)
source = GeneratedScenes(parse_stages("views:96:40:160"), mishaps=0.0, **LOOKS)
validate = label_validator(held_out, settings=settings, watch="mAP")
finished = fit(
    untrained,
    source,
    work / "run",
    plan=plan,
    run=Run(settings=settings, workers=2, validate_every=40),
    validate=validate,
)

# %% [markdown]
# ## Curves
#
# The records are CSV files (TensorBoard reads the same numbers in `run/tensorboard`).


# %%
def column(file, name):
    """The numbers of a column that are there, and their steps."""
    with open(work / "run" / file, newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get(name)]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
left.plot(*column("steps.csv", "loss"), label="loss")
left.set_xlabel("step")
left.legend()
right.plot(*column("validation.csv", "mAP"), "o-", label="mAP, held out")
right.plot(*column("validation.csv", "recall@1"), "o-", label="first place right, held out")
right.set_xlabel("step")
right.set_ylim(0, 1)
right.legend()
plt.show()

# %% [markdown]
# ## Before and after
#
# The three held-out scenes that gained most: the five most similar views, by the network as it was
# and as it is. The other view of the same scene has a green frame.


# %%
views = np.concatenate([first, second])


def ranked(params):
    """For each first view, the others by similarity."""
    descriptors = np.asarray(rmacjax.describe(params, views, settings=settings))
    similarities = descriptors @ descriptors.T
    np.fill_diagonal(similarities, -2)
    return np.argsort(-similarities, axis=1)


before, after = ranked(untrained), ranked(finished.last)
places = [
    [int(np.flatnonzero(order[i] == i + 40)[0]) for i in range(40)] for order in (before, after)
]
first_now = np.flatnonzero(np.asarray(places[1]) == 0)
moved = sorted(first_now, key=lambda scene: -places[0][scene])[:3]
figure, axes = plt.subplots(6, 6, figsize=(9, 9.5))
for row, (query, order) in enumerate((q, order) for q in moved for order in (before, after)):
    for place, axis in enumerate(axes[row]):
        shown = query if place == 0 else order[query][place - 1]
        axis.imshow(views[shown])
        axis.set_xticks([])
        axis.set_yticks([])
        right_one = place > 0 and shown == query + 40
        for side in axis.spines.values():
            side.set(
                color="limegreen" if right_one else "lightgray", linewidth=3 if right_one else 1
            )
    axes[row, 0].set_ylabel("after" if row % 2 else "before")
plt.show()

# %%
share = [np.mean(np.asarray(which) == 0) for which in places]
print(f"other view first: {share[0]:.0%} before, {share[1]:.0%} after")
print(f"exponent: {finished.last.network.gem_p:.2f}")
assert share[1] > share[0]

# %% [markdown]
# What was learned serves as any other network does: `rmacjax.weights.save` writes it, and
# `Collection.create` takes it. Run `fit` again with the same folder and it has nothing left to
# do; with a run that was killed it goes on where that stopped.

# %%
again = fit(
    untrained,
    source,
    work / "run",
    plan=plan,
    run=Run(settings=settings, workers=0, validate_every=40),
    validate=validate,
)
print(again.step, again.score == finished.score)
