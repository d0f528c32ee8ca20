"""Generated scenes to measure on (`evaluate`, `finetune`): rendered when asked for, never kept."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmacjax.datasets import GroundTruth

__all__ = ["forget", "is_generated", "rendered_truth"]

_FOLDERS: list[str] = []

_NAME = re.compile(r"scenes(:\d{1,9})?")


def is_generated(dataset: str) -> bool:
    """Whether a data set's name is "scenes" or "scenes:SEED", and no folder is called so."""
    return _NAME.fullmatch(dataset) is not None and not os.path.isdir(dataset)


def rendered_truth(dataset: str) -> "GroundTruth":
    """Render the photos of `rmacjax.scenes.search_set`, with the box of every thing.

    They lie in a passing folder, which goes when the program ends.

    Args:
        dataset: "scenes", or "scenes:SEED" for others of the same kind.
    """
    from rmacjax.demo import write_scenes
    from rmacjax.scenes import search_set

    seed = int(dataset.partition(":")[2] or 0)
    folder = tempfile.mkdtemp(prefix="rmacjax-scenes-")
    _FOLDERS.append(folder)
    atexit.register(forget)
    return write_scenes(search_set(seed), Path(folder), f"generated scenes, seed {seed}")


def forget() -> None:
    """Remove what was rendered: at the end of a program, also of one that was interrupted."""
    while _FOLDERS:
        shutil.rmtree(_FOLDERS.pop(), ignore_errors=True)
