"""What a run is: how it goes through its source, where it is, what it comes to, what it is of."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rmacjax.descriptors import Params, Settings
from rmacjax.finetune.sources.generated import GeneratedScenes
from rmacjax.finetune.sources.protocols import Drawn, Source, is_labelled
from rmacjax.finetune.sources.views import PhotoViews
from rmacjax.finetune.validation import EarlyStop

__all__ = [
    "Diverged",
    "Finished",
    "Place",
    "Run",
    "Stopped",
    "identity",
    "images_of_a_step",
    "plain",
]

REGIONS = Settings(pool="rgem")


@dataclass(frozen=True)
class Run:
    """How a run goes through its source.

    Attributes:
        seed: decides all that is drawn by chance.
        settings: how photos are described when negatives are mined, and in the end.
        objects: of each step, where a source has photos with labels.
        images: of each object.
        negatives: hard negatives of each object, or of each photo that views are made of, mined
            before every epoch with the network as it is then; 0 for none.
        workers: processes that load images; 0 for none.
        validate_every: steps between validations; 0 for none.
        patience: validations in a row without a new best score after which the run ends; 0: never.
        save_every: steps between checkpoints.
        measured_on: what validations are made of, so that a run is not gone on with another.

    Raises:
        ValueError: a number that is out of range.
    """

    seed: int = 0
    settings: Settings = REGIONS
    objects: int = 16
    images: int = 2
    negatives: int = 0
    workers: int = 2
    validate_every: int = 0
    patience: int = 0
    save_every: int = 200
    measured_on: str = ""

    def __post_init__(self) -> None:
        for name in ("save_every", "seed", "validate_every", "patience", "negatives", "workers"):
            least = 1 if name == "save_every" else 0
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


class Finished(NamedTuple):
    """What a run came to.

    Attributes:
        last: what has been learned in the end.
        best: that of the best validation; None without any.
        step: steps taken.
        best_step: those that the best validation's network had; None without any.
        score: the best validation's; None without any.
        start: the score before the first step; None without validation.
        early: whether it ended because validations got no better.
    """

    last: Params
    best: Params | None
    step: int
    best_step: int | None
    score: float | None
    start: float | None
    early: bool


class Stopped(KeyboardInterrupt):
    """Someone pressed Ctrl-C.

    Attributes:
        done: what the run came to until its last checkpoint.
    """

    done: Finished


class Diverged(RuntimeError):
    """The loss, its gradient or the weights are no numbers any more.

    Attributes:
        done: what the run had come to before; None where it had not taken a step.
    """

    done: Finished | None = None


@dataclass
class Place:
    """Where a run is in its source.

    Attributes:
        epoch: number of the epoch.
        state: of the epoch's batches; None at its beginning.
        negatives: (m, k) what was mined before it; None where nothing was.
        stop: what validations have come to.
        start: the score before the first step; None where nothing was measured.
        due: whether the last step is still to be measured.
    """

    epoch: int = 0
    state: dict[str, int] | None = None
    negatives: Int[np.ndarray, "m k"] | None = None
    stop: EarlyStop = field(default_factory=lambda: EarlyStop(0))
    start: float | None = None
    due: bool = False

    def extras(self) -> dict[str, object]:
        """As a checkpoint keeps it."""
        return {
            "epoch": self.epoch,
            "state": self.state,
            "negatives": self.negatives,
            "stop": list(self.stop),
            "start": self.start,
            "due": self.due,
        }

    @classmethod
    def of(cls, extras: Mapping[str, Any]) -> "Place":
        """As a checkpoint kept it."""
        stop = EarlyStop(*extras["stop"])
        known = {name: extras[name] for name in ("epoch", "state", "negatives", "start")}
        return cls(**known, stop=stop, due=extras.get("due", False))


def identity(source: Source | Drawn) -> dict[str, object]:
    """What makes a source the same: its photos' names, labels and pairs, or what it draws.

    Where the photos lie does not count, nor how the folder is spelled.
    """
    if not is_labelled(source):
        facts = {name: value for name, value in vars(source).items() if not name.startswith("_")}
        files = facts.pop("files", ())
        if isinstance(source, PhotoViews):
            del facts["name"], facts["problems"]
        return {"drawn": plain(facts), "files": len(files), "digest of names": _digest(files)}
    names = [source.name_of(index) for index in range(len(source))]
    pairs = () if source.pairs is None else (source.pairs,)
    known = _digest(names, source.labels, source.clusters, *pairs)
    return {
        "photos": len(source),
        "digest of names, labels and pairs": known,
        "long side": getattr(source, "long_side", None),
    }


def _digest(names: Sequence[str], *numbers: np.ndarray) -> str:
    """A short text that is another one for other names or numbers."""
    paths = [os.path.abspath(name) for name in names]
    if paths and os.path.isdir(os.path.dirname(paths[0])):  # files have places, other images do not
        common = os.path.commonpath(paths)
        names = [os.path.relpath(path, common) for path in paths]
    digest = hashlib.sha256(os.fsencode("\n".join(names)))
    for array in numbers:
        digest.update(np.ascontiguousarray(array, np.int64).data)
    return digest.hexdigest()[:16]


def images_of_a_step(source: Source | Drawn, run: Run, steps: int) -> set[int]:
    """How many images each block of a step has; several numbers where stages differ.

    Args:
        source: what is learned from.
        run: how.
        steps: of the whole run, which may end before some stages.
    """
    if isinstance(source, GeneratedScenes):
        return {stage.n for _, stage in source.reached(steps)}
    if not is_labelled(source):
        return {source.n * (1 + run.negatives)} if isinstance(source, PhotoViews) else set()
    images = run.images if source.pairs is None else 2
    return {run.objects * (images + run.negatives)}


def plain(options: Any) -> Any:
    """Options as JSON has them."""
    if isinstance(options, Mapping):
        return {str(name): plain(value) for name, value in options.items()}
    if isinstance(options, list | tuple):
        return [plain(value) for value in options]
    return options
