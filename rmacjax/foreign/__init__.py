"""Other programs' formats, taken apart by machines of our own that build data and nothing else.

`matlab` reads the elements of MATLAB's files (version 5 to 7), `pickles` carries out the few
instructions of a pickle that make data, and `arrays` has the names by which NumPy pickles arrays.
Bytes come in and values go out: which file, how much of it, and what more a pickle may name are
its reader's to say. No size that a file states is believed before the bytes are there, no
instruction and no name outside a fixed table is carried out.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Damage", "Refusal", "Stored"]


class Refusal(ValueError):
    """A file holds what is not read; the sentence goes on after the file's name."""


class Damage(Refusal):
    """A file is not what its maker wrote; likewise."""


class Stored(NamedTuple):
    """An array in a file: its shape is known, its numbers are read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
