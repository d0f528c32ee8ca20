"""Two views of each photo of a folder: what to learn from where nobody said what photos show."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from rmacjax.finetune.sources.plans import Planned
from rmacjax.finetune.sources.protocols import Drawing
from rmacjax.preprocessing import find_images, load_image
from rmacjax.scenes import homography, photograph, sample

__all__ = ["PhotoViews"]

_DETAIL = 2.0
"""Photos are decoded with a long side of so many sides of a view."""

_LEAST = 16
"""Least side in pixels, of views and of what they are cut from."""


class PhotoViews:
    """Photos that are each seen twice, by another camera in another light.

    Both views are perspective cuts around one point, so that they share a part of the photo. Every
    photo comes once before any comes again.

    Attributes:
        name: the folder.
        files: the photos.
        problems: a sentence for each folder that could not be looked into.
        n: photos of a step.
        size: side of a view in pixels.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        n: int = 32,
        size: int = 256,
        strength: float = 0.8,
        gray: float = 0.2,
        reach: tuple[float, float] = (0.4, 1.0),
    ) -> None:
        """List the photos; none is read yet.

        Args:
            folder: photos, also in folders in it.
            n: photos of a step; where the folder has fewer, all of them.
            size: side of a view in pixels.
            strength: of the camera's changes, see `rmacjax.scenes.photograph`.
            gray: how often colours are lost, times `strength`.
            reach: least and greatest side of a view as a part of the photo's short side.

        Raises:
            FileNotFoundError: there are not two photos.
            ValueError: a number is out of range.
        """
        if n < 2:
            raise ValueError(f"views are told from those of other photos: take two a step, not {n}")
        if size < _LEAST:
            raise ValueError(f"views have {_LEAST} pixels along each side at least, not {size}")
        if not 0 < reach[0] <= reach[1] <= 1:
            raise ValueError(f"views reach over 0 to 1 of the short side, not {tuple(reach)}")
        self.name = os.fsdecode(folder)
        found = find_images(self.name)
        self.files = found.files
        self.problems = [sentence for _, sentence in found.problems]
        if len(self.files) < 2:
            raise FileNotFoundError(
                f"{self.name!r} has too few photos ({len(self.files)}): views are told from those "
                "of other photos, so give a folder with more"
            )
        self.n = min(n, len(self.files))
        self.size = size
        self.strength = strength
        self.gray = gray
        self.reach = reach

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode a photo, as large as views need it."""
        pixels = load_image(self.files[index], round(_DETAIL * self.size)).pixels
        if min(pixels.shape[:2]) < _LEAST:
            raise ValueError(
                f"{self.files[index]} has {pixels.shape[0]} x {pixels.shape[1]} pixels, and views "
                f"are cut from {_LEAST} along each side: leave it out"
            )
        return pixels

    def name_of(self, index: int) -> str:
        """The photo's path."""
        return self.files[index]

    def draw(self, seed: int, step: int, photos: Sequence[int] | None = None) -> Drawing:
        """Make two views of each of the step's photos, which depend on what is given alone.

        Args:
            seed: the run's.
            step: number of the step.
            photos: their numbers; None: those whose turn it is.

        Returns:
            Labels are the photos' numbers; those of photos that cannot be read are -1, their views
            black.
        """
        chosen = self._chosen(seed, step) if photos is None else photos
        views = np.zeros((2, len(chosen), self.size, self.size, 3), np.uint8)
        labels = np.asarray(chosen, np.int32)
        unreadable = []
        for row, index in enumerate(chosen):
            rng = np.random.default_rng([seed, 1, step, row])
            try:
                photo = self.read(index)
            except (OSError, ValueError) as error:
                unreadable.append(str(error))
                labels[row] = -1
                continue
            views[:, row] = self._pair(rng, photo)
        files = tuple(self.files[index] for index in chosen)
        return Drawing(views[0], views[1], labels, files=files, unreadable=tuple(unreadable))

    def plan(
        self, generator: np.random.Generator, negatives: Int[np.ndarray, "m k"] | None
    ) -> list[Planned]:
        """Choose the photos of every step of an epoch, those that are hard to tell apart together.

        Each photo comes once by itself (a last step that would not be full is left out), and
        brings its hard negatives along. Where they are missing, or there already, others come.

        Args:
            generator: decides.
            negatives: for each photo the numbers of its hard negatives, -1 where there are no more;
                None: no hard negatives.

        Returns:
            The steps, each of ``n * (1 + k)`` photos.

        Raises:
            ValueError: there are fewer photos than that.
        """
        if negatives is None:
            negatives = np.zeros((len(self.files), 0), np.int64)
        total = self.n * (1 + negatives.shape[1])
        if len(self.files) < total:
            raise ValueError(
                f"{self.name} has {len(self.files)} photos, and a step takes {total}: give more "
                "photos or choose fewer objects or negatives for a step"
            )
        order = generator.permutation(len(self.files))
        plan = []
        for start in range(0, len(order) - self.n + 1, self.n):
            first = order[start : start + self.n]
            mined = negatives[first].ravel()
            others = generator.permutation(len(self.files))
            wanted = np.concatenate([first, mined[mined >= 0], others])
            chosen = tuple(dict.fromkeys(wanted.tolist()))[:total]
            plan.append(Planned(chosen, chosen, chosen))
        return plan

    def _chosen(self, seed: int, step: int) -> list[int]:
        """The step's photos: one pass after the other, each in another order."""
        per_pass = len(self.files) // self.n
        passed, place = divmod(step, per_pass)
        order = np.random.default_rng([seed, 2, passed]).permutation(len(self.files))
        return [int(index) for index in order[place * self.n : (place + 1) * self.n]]

    def _pair(
        self, rng: np.random.Generator, photo: UInt8[np.ndarray, "H W 3"]
    ) -> UInt8[np.ndarray, "2 s s 3"]:
        """Two perspective cuts around one point, photographed."""
        size = np.array(photo.shape[1::-1], np.float64)  # width, height
        anchor = rng.uniform(0.3, 0.7, 2) * size
        frame = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
        found = []
        for _ in range(2):
            side = np.exp(rng.uniform(*np.log(self.reach))) * size.min()
            corners = (frame - 0.5 + rng.normal(0, 0.05, (4, 2))) * side
            angle = rng.normal(0, 0.15)
            cos, sin = np.cos(angle), np.sin(angle)
            corners = corners @ np.array([[cos, sin], [-sin, cos]])
            low, high = -corners.min(0), size - corners.max(0)
            center = anchor + rng.uniform(-0.25, 0.25, 2) * side
            center = np.clip(center, np.minimum(low, high), np.maximum(low, high))
            matrix = homography(frame * self.size, corners + center)
            image, _ = sample(photo, matrix, (self.size, self.size))
            found.append(photograph(rng, image, strength=self.strength, gray=self.gray))
        return np.stack(found)
