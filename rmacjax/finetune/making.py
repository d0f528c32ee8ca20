"""A step's pixels, made in processes of their own: decoding, drawing, padding; no JAX here.

A process gets the source once, when it starts, and then orders: what was planned for a step, or the
number of a step to draw. It ends when the process that started it is gone, however that ended.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from rmacjax.finetune.sources.plans import Planned
from rmacjax.finetune.sources.protocols import Drawn, Photos, Source
from rmacjax.finetune.sources.views import PhotoViews
from rmacjax.preprocessing import bucket_side, padded

__all__ = ["Made", "Order", "make", "make_here", "start"]

Pixels = tuple[UInt8[np.ndarray, "n H W 3"], Int32[np.ndarray, "n 2"]]


class Order(NamedTuple):
    """What to make: the images planned for a step, or what is drawn for a seed and a step.

    Attributes:
        step: number of the step.
        seed: of what is drawn.
        planned: which photos are read, or views made of; None where the source draws what it likes.
    """

    step: int
    seed: int = 0
    planned: Planned | None = None


class Made(NamedTuple):
    """A step's pixels.

    Attributes:
        blocks: images (n, H, W, 3) uint8, padded, and their sizes (n, 2) int32.
        labels: (m,) int32 over all blocks joined, -1 for what could not be read.
        clusters: (m,) int32.
        boxes_px: (n, k, 4) float32 in pixels of the last block's images, or None.
        overlaps: (n, k) float32, or None.
        files: what the images are, or were made from.
        unreadable: a sentence for each that could not be read.
    """

    blocks: tuple[Pixels, ...]
    labels: Int32[np.ndarray, " m"]
    clusters: Int32[np.ndarray, " m"]
    boxes_px: Float32[np.ndarray, "n k 4"] | None
    overlaps: Float32[np.ndarray, "n k"] | None
    files: tuple[str, ...]
    unreadable: tuple[str, ...]


_mine: list[tuple[Source | Drawn, int]] = []
"""What `make` takes in this process, once `start` has run in it."""


def start(source: Source | Drawn, least: int, together: Barrier) -> None:
    """Make a process ready: it knows its source, leaves Ctrl-C to its parent and ends with it.

    Args:
        source: what images are made from.
        least: see `make`.
        together: of all processes: were one ready for work before the others, those would be
            started later, when there is more to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mine[:] = [(source, least)]
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    together.wait()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def make_here(order: Order) -> Made:
    """Make what is ordered in a process that was made ready."""
    source, least = _mine[0]
    return make(source, order, least)


def make(source: Source | Drawn, order: Order, least: int = 1) -> Made:
    """Make a step's pixels, which depend on source and order alone.

    Args:
        source: what images are made from.
        order: which images.
        least: sides of photos that are too short for the network, in pixels, are below this.

    Returns:
        The images, padded. What is too small or cannot be read is black, labelled -1,
        and has a sentence in `unreadable`.
    """
    if isinstance(source, PhotoViews) and order.planned is not None:
        drawing = source.draw(order.seed, order.step, order.planned.indices)
    elif order.planned is not None:
        return _read(source, order.planned, least)  # type: ignore[arg-type]  # a plan is of a Source
    else:
        drawing = source.draw(order.seed, order.step)  # type: ignore[union-attr]
    labels = np.concatenate([drawing.labels, drawing.labels])
    blocks = tuple(_filled(images) for images in (drawing.first, drawing.second))
    return Made(
        blocks,
        labels,
        labels,
        drawing.boxes_px,
        drawing.overlaps,
        drawing.files,
        drawing.unreadable,
    )


def _read(source: Source, planned: Planned, least: int) -> Made:
    """The images of a plan, in one block."""
    images: list[np.ndarray] = []
    unreadable = []
    labels = np.asarray(planned.labels, np.int32)
    for row, index in enumerate(planned.indices):
        try:
            images.append(read_photo(source, index, least))
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            labels[row] = -1
            side = bucket_side(least)
            images.append(np.zeros((side, side, 3), np.uint8))
    files = tuple(source.name_of(index) for index in planned.indices)
    clusters = np.asarray(planned.clusters, np.int32)
    return Made((padded(images),), labels, clusters, None, None, files, tuple(unreadable))


def read_photo(source: Photos, index: int, least: int) -> UInt8[np.ndarray, "H W 3"]:
    """Read a photo for a network.

    Args:
        source: photos.
        index: which one.
        least: the shortest side that the network can take, in pixels.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no photo, or too small.
    """
    image = source.read(index)
    if min(image.shape[:2]) < least:
        raise ValueError(
            f"{source.name_of(index)} has {image.shape[0]} x {image.shape[1]} pixels, and "
            f"the network needs {least} along each side: leave it out"
        )
    return image


def _filled(images: UInt8[np.ndarray, "n h w 3"]) -> Pixels:
    """Images of one size, which fill their array: what is drawn has few sizes as it is."""
    return images, np.full((len(images), 2), images.shape[1:3], np.int32)
