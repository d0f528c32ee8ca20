"""Generated scenes: nothing is read and nothing stored, the seed is all there is to the images."""

from typing import Literal, NamedTuple

import numpy as np

from rmacjax.finetune.sources.protocols import Drawing
from rmacjax.scenes import search_batch, texture_bank, training_batch

__all__ = ["STAGES", "GeneratedScenes", "Stage", "parse_stages"]

QUERY_SHAPES = ((1.0, 1.0), (0.75, 1.25), (1.25, 0.75))
"""Height and width of a query as parts of two thirds of a photo's side, one after the other."""

_RENEWED = 500
"""After so many steps other textures are made: a hundred take a second or two."""

_TEXTURES = 96


class Stage(NamedTuple):
    """What is drawn for some steps.

    Attributes:
        steps: how many steps it lasts; the last stage goes on for ever.
        kind: "views" (the same scene twice) or "searches" (a thing, and a photo that shows it).
        size: side of a view or a photo in pixels.
        n: pairs per step.
    """

    steps: int
    kind: Literal["views", "searches"]
    size: int
    n: int


STAGES = (
    Stage(400, "views", 96, 96),
    Stage(300, "views", 128, 64),
    Stage(2800, "searches", 224, 28),
)
"""Some hours of two cores for a small network that starts from nothing, see weights/README.md."""


class GeneratedScenes:
    """Generated images, stage after stage.

    Attributes:
        name: "scenes".
        stages: one after the other.
    """

    name = "scenes"

    def __init__(
        self,
        stages: tuple[Stage, ...] = STAGES,
        *,
        strength: float = 0.8,
        gray: float = 0.4,
        reach: tuple[float, float] = (0.45, 1.5),
        relatives: int = 4,
        extreme: float = 0.15,
        several: float = 0.3,
        prints: float = 0.25,
        mishaps: float = 0.4,
    ) -> None:
        """Say what is drawn when; nothing is drawn yet.

        Args:
            stages: one after the other, one at least.
            strength: of the camera's changes, see `rmacjax.scenes.photograph`.
            gray: how often colours are lost, times `strength`.
            reach: least and greatest side of a view as a part of the scene's.
            relatives: scenes in a row that share colours and textures.
            extreme: how often a thing to find is tiny, or larger than the photo, and aslant.
            several: how often other things stand beside it.
            prints: how often it is a poster, a painting or a package in a room or a street.
            mishaps: how much goes wrong when photos are taken, see `rmacjax.scenes.spoil`.

        Raises:
            ValueError: there is no stage, or one of an unknown kind or without steps or pairs.
        """
        if not stages:
            raise ValueError("generated scenes need one stage at least")
        for stage in stages:
            known = stage.kind in ("views", "searches")
            if not known or stage.steps < 1 or stage.n < 2 or stage.size < 32:
                raise ValueError(
                    "a stage is 'views' or 'searches' with steps >= 1, size >= 32 pixels and "
                    f"n >= 2 pairs, not {tuple(stage)}"
                )
        self.stages = tuple(stages)
        self.strength = strength
        self.gray = gray
        self.reach = reach
        self.relatives = relatives
        self.extreme = extreme
        self.several = several
        self.prints = prints
        self.mishaps = mishaps

    def stage_of(self, step: int) -> Stage:
        """The stage that a step belongs to.

        Args:
            step: number of the step, from 0 on.
        """
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def reached(self, steps: int) -> list[tuple[range, Stage]]:
        """The stages that a run gets to, each with its steps.

        Args:
            steps: of the run.
        """
        found, first = [], 0
        for number, stage in enumerate(self.stages, 1):
            end = steps if number == len(self.stages) else min(first + stage.steps, steps)
            if first < end:
                found.append((range(first, end), stage))
            first += stage.steps
        return found

    def largest(self, steps: int) -> int:
        """The first step with as many pixels as any of a run, which takes the most memory.

        Args:
            steps: of the run.
        """
        return max(self.reached(steps), key=lambda part: part[1].n * part[1].size ** 2)[0][0]

    def shapes(self, steps: int) -> int:
        """How many sizes of images and queries the steps of a run have.

        Args:
            steps: of the run.
        """
        found: set[tuple[str, int, int, int]] = set()
        for part, stage in self.reached(steps):
            # Queries of all shapes come within the first few steps; views have one shape.
            few = part[: len(QUERY_SHAPES)] if stage.kind == "searches" else range(1)
            found |= {(stage.kind, stage.size, stage.n, step % len(QUERY_SHAPES)) for step in few}
        return len(found)

    def smallest(self, steps: int) -> list[tuple[int, int]]:
        """Height and width in pixels of the smallest images of each stage of a run.

        Args:
            steps: of the run.
        """
        found = []
        for part, stage in self.reached(steps):
            sizes = [(stage.size, stage.size)]
            if stage.kind == "searches":
                sizes = [_query_size(stage, step) for step in part[: len(QUERY_SHAPES)]]
            found.append(min(sizes, key=min))
        return found

    def draw(self, seed: int, step: int) -> Drawing:
        """Draw a step's pairs, which depend on seed and step alone.

        Args:
            seed: the run's.
            step: number of the step.

        Returns:
            Labels count from 0 in every step. Searches come with boxes.
        """
        stage = self.stage_of(step)
        rng = np.random.default_rng([seed, step])
        textures = texture_bank(seed + 1000 * (step // _RENEWED), _TEXTURES)
        labels = np.arange(stage.n, dtype=np.int32)
        if stage.kind == "views":
            first, second = training_batch(
                rng,
                stage.n,
                stage.size,
                strength=self.strength,
                gray=self.gray,
                reach=self.reach,
                relatives=self.relatives,
                textures=textures,
                mishaps=self.mishaps,
            )
            return Drawing(first, second, labels)
        found = search_batch(
            rng,
            stage.n,
            _query_size(stage, step),
            (stage.size, stage.size),
            strength=self.strength,
            gray=self.gray,
            relatives=self.relatives,
            textures=textures,
            extreme=self.extreme,
            several=self.several,
            prints=self.prints,
            mishaps=self.mishaps,
        )
        return Drawing(found.queries, found.photos, labels, found.boxes, found.overlaps)


def _query_size(stage: Stage, step: int) -> tuple[int, int]:
    """Height and width in pixels of the queries of a step of searches."""
    height, width = QUERY_SHAPES[step % len(QUERY_SHAPES)]
    return int(height * stage.size * 2 / 3), int(width * stage.size * 2 / 3)


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read stages as people write them: ``views:96:96:900,searches:256:24:3000``.

    Args:
        text: for each stage its kind, side in pixels, pairs per step and steps.

    Raises:
        ValueError: it is not like that.

    >>> parse_stages("views:96:32:900,searches:192:24:1000")[1]
    Stage(steps=1000, kind='searches', size=192, n=24)
    """
    stages = []
    for words in text.split(","):
        parts = words.strip().split(":")
        kind, numbers = parts[0], parts[1:]
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f"{words!r} is no stage: write KIND:PIXELS:PAIRS:STEPS, such as views:96:96:900"
            )
        if kind not in ("views", "searches"):
            raise ValueError(f"a stage draws 'views' or 'searches', not {kind!r}")
        size, n, steps = map(int, numbers)
        stages.append(Stage(steps, "views" if kind == "views" else "searches", size, n))
    return tuple(stages)
