"""Validation: how well the network in training searches, measured as any other network is.

`validator` searches a ground truth as `rmacjax evaluate` does, `label_validator` photos that are
known by labels alone. Both take params and give a `Validation`; what they need for it they keep in
memory or in a folder that is gone afterwards. `EarlyStop` says when more training does not help.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rmacjax.collection import Collection
from rmacjax.datasets import GroundTruth
from rmacjax.descriptors import Params, Settings
from rmacjax.evaluation import first_place, mean_average_precision
from rmacjax.extraction import DEFAULTS
from rmacjax.finetune.describing import LabelledPhotos, describe_images, on_one_device
from rmacjax.measurement import KS, Way, measure
from rmacjax.search import all_scores, pad_rows

__all__ = ["EarlyStop", "Validation", "Validator", "label_validator", "validator"]

FILTER = Way(rerank=0, expand=0)


class Validation(NamedTuple):
    """What one validation measured.

    Attributes:
        score: the number that decides which state is the best, the higher the better.
        values: all that was measured, by what it is called in a table.
        seconds: how long it took.
        skipped: name and reason of each photo that could not be used.
    """

    score: float
    values: dict[str, float]
    seconds: float
    skipped: tuple[tuple[str, str], ...] = ()


Validator = Callable[[Params], Validation]


class EarlyStop(NamedTuple):
    """Whether a training has stopped getting better.

    Attributes:
        patience: so many validations in a row without a new best score are enough; 0 never stops.
        best: the best score so far; None before the first.
        waited: validations since then.
    """

    patience: int
    best: float | None = None
    waited: int = 0

    def update(self, score: float) -> "EarlyStop":
        """The same after one more validation; a NaN is no new best score.

        >>> stop = EarlyStop(2).update(0.5).update(0.4).update(0.5)
        >>> stop.stop, stop.best
        (True, 0.5)
        """
        if score > (-float("inf") if self.best is None else self.best):
            return EarlyStop(self.patience, score, 0)
        return self._replace(waited=self.waited + 1)

    @property
    def stop(self) -> bool:
        """Whether it is time to stop."""
        return 0 < self.patience <= self.waited


def validator(
    truth: GroundTruth,
    *,
    settings: Settings = DEFAULTS,
    way: Way = FILTER,
    watch: str | None = None,
) -> Validator:
    """Validate by searching for every query of a ground truth.

    Args:
        truth: photos and queries, from `rmacjax.datasets`.
        settings: how photos are described, the same as in the end.
        way: how to search; by descriptors alone unless said, re-ranking by boxes takes longer.
        watch: which value is the score, such as "filter mAP", "+ AML mAP" or "+ AML overlap";
            None: the mean average precision ("mAP M" in the revisited protocol) of the first row.

    Returns:
        A function of params; it raises OSError where a query or all photos cannot be read.

    Raises:
        ValueError: where no query has an answer, or there is no such value.
    """
    if not any(len(query.positives) for query in truth.queries):
        raise ValueError(
            f"{truth.name} has no query with an answer: validate on another ground truth"
        )
    names = _names(truth, way)
    usual = "mAP M" if truth.protocol == "revisited" else "mAP"
    watched = next((n for n in names if n.endswith(usual)), usual) if watch is None else watch
    _check_watch(watched, names)

    def validate(params: Params) -> Validation:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="rmacjax-validation-") as folder:
            collection = Collection.create(
                os.path.join(folder, "collection"),
                on_one_device(params),
                settings=settings,
                regions=way.first_stage == "regions",
            )
            added = collection.add(truth.paths)
            if not len(collection):
                raise OSError(
                    f"none of the photos of {truth.name} could be used ({added.skipped[0][1]})"
                )
            rows = measure(collection, truth, [way]).rows
        values: dict[str, float] = {}
        for row in rows:
            values |= {f"{row.name} {name}": score.mean for name, score in row.scores.items()}
            if row.boxes:
                values[f"{row.name} overlap"] = row.overlap
        score = values.get(watched, float("nan"))
        return Validation(score, values, time.perf_counter() - start, tuple(added.skipped))

    return validate


def label_validator(
    source: LabelledPhotos,
    *,
    settings: Settings = DEFAULTS,
    indices: Sequence[int] | Int[np.ndarray, " k"] | None = None,
    most_queries: int = 1000,
    watch: str = "recall@1",
) -> Validator:
    """Validate by searching for photos of the same label: each whole photo among all others.

    Values are "recall@1", how often the first photo found is of the query's label, and "mAP".

    Args:
        source: photos with labels.
        settings: how photos are described, the same as in the end.
        indices: which of its photos are held out for this; None: all.
        most_queries: where more photos have another of their label, so many of them are searched
            for, spread evenly over the source.
        watch: which value is the score.

    Returns:
        A function of params; it raises OSError where too few photos can be read.

    Raises:
        ValueError: where no two of the photos have the same label, a number is out of range, or
            there is no such value.
    """
    _check_watch(watch, ["recall@1", "mAP"])
    if most_queries < 1:
        raise ValueError(f"most_queries must be at least 1, not {most_queries}")
    held_out = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    held_out = held_out[source.labels[held_out] >= 0]
    if not _with_partner(source.labels[held_out]).any():
        raise ValueError(
            f"no two of the {len(held_out)} photos held out for validation have the same label: "
            "hold out more, or whole groups of them"
        )

    def validate(params: Params) -> Validation:
        start = time.perf_counter()
        vectors, skipped = describe_images(params, source, held_out.tolist(), settings=settings)
        kept = np.asarray(sorted(vectors), np.int64)
        labels = source.labels[kept]
        queries = np.flatnonzero(_with_partner(labels))
        if not len(queries):
            raise OSError(
                f"of the {len(held_out)} photos held out for validation too few could be used: "
                + next(iter(skipped.values()))
            )
        if len(queries) > most_queries:
            queries = queries[np.linspace(0, len(queries) - 1, most_queries).astype(int)]
        matrix = pad_rows(np.stack([vectors[index] for index in kept.tolist()]))
        orders, positives = [], []
        for query in queries.tolist():
            scores = np.asarray(all_scores(matrix[query], matrix, rows=len(kept)))
            order = np.argsort(-scores, kind="stable")
            orders.append(order[order != query])
            positives.append(np.setdiff1d(np.flatnonzero(labels == labels[query]), [query]))
        ranks = np.stack(orders, axis=1)
        found = mean_average_precision(ranks, positives, [[]] * len(queries))
        values = {"recall@1": first_place(ranks, positives), "mAP": found.map}
        reasons = tuple((source.name_of(index), skipped[index]) for index in sorted(skipped))
        return Validation(values[watch], values, time.perf_counter() - start, reasons)

    return validate


def _with_partner(labels: Int[np.ndarray, " k"]) -> np.ndarray:
    """Which photos have another of their label."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _names(truth: GroundTruth, way: Way) -> list[str]:
    """What will be measured, by name."""
    columns = ["mAP", "first place"]
    if truth.protocol == "revisited":
        kinds = ["mAP", *(f"mP@{k}" for k in KS)]
        columns = [f"{kind} {letter}" for letter in "EMH" for kind in kinds]
    ran = (True, bool(way.rerank), bool(way.rerank and way.expand))
    rows = [row for row, here in zip(way.rows, ran, strict=True) if row is not None and here]
    names = [f"{row} {column}" for row in rows for column in columns]
    if any(query.boxes for query in truth.queries):
        names += [f"{row} overlap" for row in rows if row != way.rows[0]]
    return names


def _check_watch(watch: str, names: Sequence[str]) -> None:
    if watch not in names:
        raise ValueError(f"there is no value {watch!r} to watch; there is {', '.join(names)}")
