"""Recipes: published tables as settings, with the scores to expect and how far off a run may be.

A recipe fixes everything that decides a score: the data, the network, its last pooling, how
queries, regions and whitening are made. What remains is where the photos and the weights lie.
Scores are mean average precisions in percent, as published; a run need not meet them to the digit,
because decoding and shrinking of photos and the source of the weights differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["RECIPES", "Recipe"]

Published = Mapping[str, Mapping[str, float]]

PAPER = "Tolias, Sicre and Jégou, ICLR 2016"
REVISITED = "Radenović et al., CVPR 2018"
FINE_TUNED = "Radenović, Tolias and Chum, PAMI 2018, and Radenović et al., CVPR 2018"


@dataclass(frozen=True)
class Recipe:
    """One row of a published table.

    Attributes:
        dataset: a name that `rmacjax.datasets.read_dataset` knows.
        expected: by row, then by score, what was published, in percent.
        tolerance: how many points a run may be off in its first row; re-ranked rows may be off
            by twice as many, since every difference goes through them again.
        source: where the figures were published.
        weights: the network's name; None where it has to be given as a file.
        architecture: of that network.
        source_sha256: of such a file, how the checksum of what it was converted from begins.
        whitening_origin: and how that of its whitening does.
        whiten: the dataset whose regions whitening is learned on; None: that of the weights.
        last_pool: whether the network ends with its last pooling; None: as the weights say.
        pool: how a descriptor is made.
        levels: scales of the grid of regions; None where there is none.
        scales: of each photo.
        rerank: how many of the best photos are re-ranked.
        expand: how many of the best boxes join the query.
        long_side: of the photos, pixels.
    """

    dataset: str
    expected: Published
    tolerance: float
    source: str
    weights: str | None = "vgg16"
    whiten: str | None = None
    last_pool: bool | None = True
    pool: Literal["rmac", "mac", "gem"] = "rmac"
    levels: int | None = 3
    scales: tuple[float, ...] = (1.0,)
    rerank: int = 1000
    expand: int = 5
    long_side: int = 1024
    architecture: str = "vgg16"
    source_sha256: str = ""
    whitening_origin: str = ""


def _paper(
    dataset: str,
    whiten: str,
    scores: tuple[float, float, float],
    *,
    pool: Literal["rmac", "mac"] = "rmac",
    weights: str = "vgg16",
) -> Recipe:
    rows = dict(zip(("filter", "+ AML", "+ AML + QE"), scores, strict=True))
    expected = {row: {"mAP": score} for row, score in rows.items()}
    return Recipe(
        dataset,
        expected,
        1.5,
        PAPER,
        weights,
        whiten,
        pool=pool,
        levels=3 if pool == "rmac" else None,
        architecture=weights,
    )


def _revisited(dataset: str, whiten: str, medium: float, hard: float) -> Recipe:
    expected = {"filter": {"mAP M": medium, "mAP H": hard}}
    return Recipe(dataset, expected, 2.0, REVISITED, whiten=whiten, rerank=0, expand=0)


def _fine_tuned(dataset: str, scores: Mapping[str, float]) -> Recipe:
    return Recipe(
        dataset,
        {"filter": scores},
        1.5,
        FINE_TUNED,
        weights=None,
        last_pool=None,
        pool="gem",
        levels=None,
        scales=(1.0, 0.5**0.5, 0.5),
        rerank=0,
        expand=0,
        source_sha256="b4dcdc6",  # as the file's published name has it
        whitening_origin="retrieval-SfM-120k, multi scale",
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "paper-oxford5k": _paper("oxford5k", "paris6k", (66.7, 74.5, 77.3)),
        "paper-paris6k": _paper("paris6k", "oxford5k", (83.0, 85.2, 86.5)),
        "paper-oxford5k-mac": _paper("oxford5k", "paris6k", (55.0, 70.6, 74.2), pool="mac"),
        "paper-paris6k-alexnet": _paper(
            "paris6k", "oxford5k", (73.0, 77.6, 80.6), weights="alexnet-caffe"
        ),
        "revisited-roxford5k": _revisited("roxford5k", "rparis6k", 42.5, 12.0),
        "revisited-rparis6k": _revisited("rparis6k", "roxford5k", 66.2, 40.9),
        "sfm-gem-oxford5k": _fine_tuned("oxford5k", {"mAP": 87.9}),
        "sfm-gem-paris6k": _fine_tuned("paris6k", {"mAP": 87.7}),
        "sfm-gem-roxford5k": _fine_tuned("roxford5k", {"mAP M": 61.9, "mAP H": 33.7}),
        "sfm-gem-rparis6k": _fine_tuned("rparis6k", {"mAP M": 69.3, "mAP H": 44.3}),
    }
)
"""Recipes by name. The networks fine-tuned on SfM-120k are given as a converted file."""
