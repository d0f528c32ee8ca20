"""Extras: what a training remembers beside its arrays, as JSON and back.

Bytes and NumPy arrays are kept as text (base64) among the rest, whatever the rest is called.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["from_json", "to_json"]


def to_json(value: object) -> object:
    """Make JSON's types of a value: a new structure that shares nothing with the value.

    Args:
        value: JSON's types with names as keys, tuples (which become lists), and at any depth bytes
            and NumPy arrays.

    Raises:
        TypeError: for anything else.

    >>> from_json(to_json({"a": [1, b"two"]}))
    {'a': [1, b'two']}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {"array": data, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: to_json(each) for key, each in value.items()}}
    raise TypeError(
        f"extras hold JSON's types with names as keys, bytes and NumPy arrays, not "
        f"{type(value).__name__}"
    )


def from_json(value: Any) -> Any:
    """The value that `to_json` was given.

    Args:
        value: what `to_json` made of it.

    Raises:
        KeyError, TypeError, ValueError: where it is not what that makes.
    """
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: from_json(each) for key, each in value["dict"].items()}
    if "bytes" in value:
        return base64.b64decode(value["bytes"])
    array = np.frombuffer(base64.b64decode(value["array"]), np.dtype(value["dtype"]))
    return array.reshape(value["shape"]).copy()
