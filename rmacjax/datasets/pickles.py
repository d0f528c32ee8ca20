"""Reading the pickles that ground truth is distributed in, without running them.

Of `rmacjax.foreign.pickles`' machine only NumPy's arrays may be asked for beside lists, tuples,
dictionaries, texts and numbers.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from rmacjax.foreign import Damage, Refusal
from rmacjax.foreign.arrays import array_names
from rmacjax.foreign.pickles import Constructor, run_pickle

__all__ = ["read_pickle"]

_LARGEST = 1 << 28
"""Bytes of a file, and so of instructions; the ground truth of a million images takes a tenth."""


def read_pickle(path: Path) -> Any:
    """Read a pickle of lists, tuples, dictionaries, texts, bytes, numbers and NumPy arrays.

    Args:
        path: the file, of any pickle protocol.

    Returns:
        What it holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, too large, or asks for anything else.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no ground truth: it is larger than {_LARGEST >> 20} MB.")
    names = array_names(_as_it_is, texts=True)
    try:
        stream = io.BytesIO(path.read_bytes())
        return _checked(run_pickle(stream, names, most_instructions=_LARGEST))
    except Damage as error:
        raise ValueError(f"{path} is damaged or no pickle: it {error}.") from error
    except Refusal as error:
        raise ValueError(
            f"{path} {error}; only lists, dictionaries and arrays are read."
        ) from error


def _as_it_is(array: np.ndarray) -> np.ndarray:
    return array


def _checked(value: Any) -> Any:
    """Refuse what is no data: the means of making arrays, left somewhere unused."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Constructor | np.dtype):
            raise Refusal("holds what is no data")
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, np.ndarray) and item.dtype.hasobject:
            waiting.extend(item.reshape(-1))
    return value
