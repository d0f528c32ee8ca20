"""What an epoch learns from: which images meet in which step.

References:
    Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI
    2018, section 4 (tuples of a query, a positive and hard negatives of other landmarks).
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rmacjax.finetune.sources.protocols import Source

__all__ = ["Planned", "plan_epoch"]


Group = tuple[int, ...]


class Planned(NamedTuple):
    """One step's images.

    Attributes:
        indices: numbers of images of the source, each once.
        labels: of each; equal ones are positives of each other.
        clusters: of each; images of different clusters are negatives of each other.
    """

    indices: tuple[int, ...]
    labels: tuple[int, ...]
    clusters: tuple[int, ...]


def plan_epoch(
    source: Source,
    generator: np.random.Generator,
    *,
    objects: int = 8,
    images: int = 2,
    negatives: Int[np.ndarray, "m k"] | None = None,
) -> list[Planned]:
    """Choose the images of every step of an epoch.

    Each object that has two images or more comes once an epoch (each pair, where geometry names
    pairs), with other images of it every time. All steps have ``objects * (images + k)`` images;
    where an object has fewer than `images`, or hard negatives are missing, others that match
    nothing take their places, those without a label first: they are negatives of all others. The
    last step is filled with objects of other steps.

    Args:
        source: images and what is known of them.
        generator: decides; that of ``(seed, epoch)`` makes the epoch repeatable.
        objects: objects (or pairs) of a step.
        images: images of each object; of a pair always two.
        negatives: for each image of the source its hard negatives, hardest first, -1 where there
            are no more; they come with the first image of each object. None: no hard negatives.

    Returns:
        The steps, in the order in which they are taken.

    Raises:
        ValueError: no two images match, all may show the same, there are fewer images than a step
            needs, or a number is out of range.
    """
    if objects < 1 or images < 2:
        raise ValueError(f"a step needs objects >= 1 and images >= 2, not {objects} and {images}")
    if objects == 1 and (negatives is None or negatives.shape[1] == 0):
        raise ValueError(
            "a step of one object without negatives has nothing to tell it from: choose two "
            "objects at least"
        )
    if negatives is not None and len(negatives) != len(source):
        raise ValueError(
            f"negatives have a row for each of {len(source)} images, not {len(negatives)}"
        )
    hard = 0 if negatives is None else negatives.shape[1]
    images = 2 if source.pairs is not None else images
    total = objects * (images + hard)
    if len(source) < total:
        raise ValueError(
            f"{source.name} has {len(source)} images, and a step takes {total}: give more images "
            "or choose fewer objects, images or negatives for a step"
        )
    groups = _groups(source, generator, images)
    if not groups:
        raise ValueError(
            f"{source.name} has no two images that match, so there is nothing to learn from: give "
            "two photos at least of an object"
        )
    if np.all(source.clusters == source.clusters[0]) and source.clusters[0] >= 0:
        raise ValueError(
            f"all {len(source)} images of {source.name} belong to one object, so there is nothing "
            "to tell it from: give photos of other objects too"
        )
    waiting = deque(groups[i] for i in generator.permutation(len(groups)))
    fillers = _Fillers(source, generator)
    plan: list[Planned] = []
    while waiting:
        chosen = _distinct(waiting, source, objects)
        if len(chosen) < objects:
            some = generator.permutation(len(groups))[: 4 * objects]
            chosen = _distinct(deque([*chosen, *(groups[i] for i in some)]), source, objects)
        plan.append(_step(chosen, source, negatives, fillers, total))
    return plan


def _groups(source: Source, generator: np.random.Generator, images: int) -> list[Group]:
    """Images that match: some of each label, or the pairs that geometry names."""
    if source.pairs is not None:
        return [(int(query), int(other)) for query, other in source.pairs if query != other]
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels.tolist()):
        if label >= 0:
            by_label.setdefault(label, []).append(index)
    return [
        tuple(members[i] for i in generator.permutation(len(members))[:images])
        for members in by_label.values()
        if len(members) > 1
    ]


def _distinct(waiting: deque[Group], source: Source, objects: int) -> list[Group]:
    """Take the first groups of different clusters and images; the others keep their order.

    Of the first few hundred groups only; where these do not suffice, fewer are taken.
    """
    chosen: list[Group] = []
    later: list[Group] = []
    clusters: set[int] = set()
    taken: set[int] = set()
    while waiting and len(chosen) < objects and len(later) < 64 * objects:
        group = waiting.popleft()
        cluster = int(source.clusters[group[0]])
        if cluster in clusters or taken.intersection(group):
            later.append(group)
            continue
        chosen.append(group)
        clusters.add(cluster)
        taken.update(group)
    waiting.extendleft(reversed(later))
    return chosen


class _Fillers:
    """Images that match nothing in a step, in random order, those without a label first."""

    def __init__(self, source: Source, generator: np.random.Generator) -> None:
        order = generator.permutation(len(source))
        unlabelled = source.labels[order] < 0
        self._clusters = source.clusters
        self._without = deque(order[unlabelled].tolist())
        self._others = deque(order[~unlabelled].tolist())

    def take(self, count: int, taken: set[int], clusters: set[int]) -> list[int]:
        """Choose images of clusters that the step does not hold; any images where none is left."""
        found: list[int] = []
        passes = ((self._without, False), (self._others, True), (self._others, False))
        for waiting, strict in passes:
            for _ in range(len(waiting)):
                if len(found) == count:
                    return found
                index = waiting[0]
                waiting.rotate(-1)
                cluster = int(self._clusters[index])
                if index in taken or (strict and cluster in clusters):
                    continue
                found.append(index)
                taken.add(index)
                clusters.add(cluster)
        return found


def _step(
    groups: list[Group],
    source: Source,
    negatives: np.ndarray | None,
    fillers: _Fillers,
    total: int,
) -> Planned:
    """The images of a step: groups, their hard negatives, and fillers up to the number wanted."""
    indices = [index for group in groups for index in group]
    geometry = source.pairs is not None
    labels = [
        number if geometry else int(source.labels[group[0]])
        for number, group in enumerate(groups)
        for _ in group
    ]
    taken = set(indices)
    clusters = {int(source.clusters[index]) for index in indices}
    others: list[int] = []
    for group in groups:
        for index in () if negatives is None else negatives[group[0]].tolist():
            if index >= 0 and index not in taken:
                others.append(index)
                taken.add(index)
                clusters.add(int(source.clusters[index]))
    others += fillers.take(total - len(indices) - len(others), taken, clusters)
    # What has no label of its own in this step gets one that nothing else has.
    fresh = 1 + max(*labels, *(int(label) for label in source.labels[others]), 0)
    cluster_of = [int(source.clusters[index]) for index in [*indices, *others]]
    alone = 1 + max(*cluster_of, 0)
    for number, index in enumerate(others):
        label = int(source.labels[index])
        labels.append(fresh + number if geometry or label < 0 else label)
    for number, cluster in enumerate(cluster_of):
        if cluster < 0:
            cluster_of[number] = alone + number
    return Planned((*indices, *others), tuple(labels), tuple(cluster_of))
