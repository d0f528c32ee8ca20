"""Reading MATLAB's files (version 5 to 7) as far as networks need them.

See `rmacjax.foreign.matlab` for how; numbers stay unread until asked for.
"""

from collections.abc import Collection
from pathlib import Path

from rmacjax.foreign.matlab import read_variables

START = b"MATLAB 5.0 MAT-file"

_DEEPEST = 16
# A network's layers have some thousands, its classes' names some ten thousands.
_MOST_VALUES = 1 << 18
# Numbers of a network hardly shrink; what grows a hundredfold is no network.
_MOST_GROWTH = 100


def read_mat(path: Path, wanted: Collection[str]) -> dict[str, object]:
    """Read some variables of a MATLAB file.

    Args:
        path: the file.
        wanted: names of variables; others are passed over.

    Returns:
        Value by name. Arrays of numbers come as `Stored` (with MATLAB's shape), text as a string,
        a cell array as a list in MATLAB's order, a structure as a dictionary (an array of them as
        a list), and anything else as None.

    Raises:
        Refusal: if the file is damaged or lies about sizes.
    """
    content = memoryview(path.read_bytes())
    most_bytes = _MOST_GROWTH * len(content)
    found = read_variables(
        content, most_bytes=most_bytes, deepest=_DEEPEST, most_values=_MOST_VALUES, wanted=wanted
    )
    return {name: _single(value) for name, value in found.items()}


def _single(value: object) -> object:
    """Take what is one structure, and no list of them, out of the array that MATLAB makes of it."""
    if isinstance(value, dict):
        return {key: _single(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [_single(item) for item in value]
    return items[0] if len(value) == 1 and isinstance(value[0], dict) else items
