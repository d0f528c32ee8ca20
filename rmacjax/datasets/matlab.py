"""Reading the MATLAB files (version 5 to 7) that ground truth is distributed in.

See `rmacjax.foreign.matlab` for why a damaged file is a sentence and not an allocation.
"""

from pathlib import Path
from typing import Any

from rmacjax.foreign import Damage, Refusal, Stored
from rmacjax.foreign.matlab import read_variables

__all__ = ["read_mat"]

_LARGEST = 1 << 28
"""Bytes of all arrays; the ground truth of a million images takes a tenth."""

_GROWTH = 64
"""What is deflated may grow so often; names that are numbered in order grow 25 times."""

_SPARE = 1 << 20
"""And by so many bytes beside."""

_DEEPEST = 8

_MOST_VALUES = 1 << 21
"""Names and lists in cells and structures, all together; a million images have half as many."""


def read_mat(path: Path) -> dict[str, Any]:
    """Read the variables of a MATLAB file.

    Args:
        path: the file.

    Returns:
        Value by name: arrays of numbers as NumPy arrays of MATLAB's shape, texts as strings, cell
        arrays as lists and structures as lists of dictionaries, both in MATLAB's order (down the
        first column first); None for anything else.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, too large, or of another version.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no ground truth: it is larger than {_LARGEST >> 20} MB.")
    content = memoryview(path.read_bytes())
    if b"HDF" in bytes(content[:8]) or b"MATLAB 7.3" in bytes(content[:16]):
        raise ValueError(f"{path} is a MATLAB file of version 7.3; save it with -v7 in MATLAB.")
    try:
        found = read_variables(
            content,
            most_bytes=min(_LARGEST, _GROWTH * len(content) + _SPARE),
            deepest=_DEEPEST,
            most_values=_MOST_VALUES,
        )
        return {name: _with_numbers(value) for name, value in found.items()}
    except Damage as error:
        raise ValueError(f"{path} {error}; copy or download it again.") from error
    except Refusal as error:
        raise ValueError(f"{path} {error}.") from error


def _with_numbers(value: object) -> Any:
    """Read every array that lies in a value."""
    if isinstance(value, Stored):
        return value.read()
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    return value
