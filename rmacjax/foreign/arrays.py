"""The names by which NumPy pickles its arrays, and what stands for them.

Pickles of Python 2 (bytes written as text in latin-1; protocol 2) and of NumPy before and since
version 2 are read. An array is made only of as many bytes as its shape and type take.
"""

import math
import re
from collections.abc import Callable

import numpy as np

from rmacjax.foreign import Refusal
from rmacjax.foreign.pickles import Constructor, Unfinished, is_shape

__all__ = ["array_names"]

_NUMBERS = re.compile(r"[<>|=]?([fiu][1248]|b1)")
_ANYTHING = re.compile(r"[<>|=]?([fiu][1248]|b1|[US][1-9]\d{0,3}|O8?)")
_CORES = ("core", "_core")  # before NumPy 2 and since


def array_names(made: Callable[[np.ndarray], object], *, texts: bool) -> dict[str, object]:
    """Return what stands for the names that arrays and bytes are pickled by.

    Args:
        made: makes of a finished array what is to stand in the result.
        texts: arrays of texts and of objects are read as well.

    Returns:
        Constructors by name, for `rmacjax.foreign.pickles.run_pickle`.
    """
    ndarray = Constructor(_ndarray)

    def dtype(code: object, *_: object) -> Unfinished:
        kind = _dtype(code, texts=texts)
        return Unfinished(kind, lambda state: _ordered(kind, state))

    def reconstruct(kind: object, *_: object) -> Unfinished:
        if kind is not ndarray:
            raise Refusal("holds an array of an unusual kind, which is refused")
        return Unfinished(made(np.zeros(0, np.float32)), lambda state: made(_array(state)))

    def filled(data: object, kind: object, shape: object, order: object) -> object:
        if order not in ("C", "F"):
            raise Refusal("holds an array that makes no sense")
        return made(_filled(data, kind, shape, fortran=order == "F"))

    return {
        "_codecs.encode": Constructor(_encoded),
        "builtins.bytes": Constructor(_no_bytes),
        "__builtin__.bytes": Constructor(_no_bytes),
        "numpy.ndarray": ndarray,
        "numpy.dtype": Constructor(dtype),
        **{f"numpy.{core}.multiarray._reconstruct": Constructor(reconstruct) for core in _CORES},
        **{f"numpy.{core}.multiarray.scalar": Constructor(_scalar) for core in _CORES},
        **{f"numpy.{core}.numeric._frombuffer": Constructor(filled) for core in _CORES},
    }


def _ndarray(*_: object) -> object:
    raise Refusal("holds an array that is made in an unusual way, which is refused")


def _dtype(code: object, *, texts: bool) -> np.dtype:
    if isinstance(code, bytes):
        code = code.decode("latin-1")
    known = (_ANYTHING if texts else _NUMBERS).fullmatch(code) if isinstance(code, str) else None
    if not isinstance(code, str) or known is None:
        what = "numbers and texts" if texts else "numbers"
        raise Refusal(f"holds an array of something else than {what}")
    if known[1].startswith("O"):
        return np.dtype(object)
    return np.dtype((">" if code[0] == ">" else "<") + known[1])


def _ordered(kind: np.dtype, state: object) -> np.dtype:
    """Take the byte order, which comes by a second instruction."""
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
        raise Refusal("holds an array of no known type")
    return kind.newbyteorder(">" if state[1] == ">" else "<")


def _array(state: object) -> np.ndarray:
    if not isinstance(state, tuple) or len(state) != 5:
        raise Refusal("holds an array that makes no sense")
    _, shape, kind, fortran, data = state
    return _filled(data, kind, shape, fortran=fortran is True or fortran == 1)


def _filled(data: object, kind: object, shape: object, *, fortran: bool) -> np.ndarray:
    if isinstance(data, str):  # Python 2 knew no difference
        data = data.encode("latin-1")
    if not isinstance(kind, np.dtype) or not isinstance(shape, tuple | list):
        raise Refusal("holds an array that makes no sense")
    if not is_shape(shape):
        raise Refusal("holds an array of impossible shape")
    count = math.prod(shape)
    if kind.hasobject and isinstance(data, list) and len(data) == count:
        array = np.empty(count, object)
        for i, value in enumerate(data):
            array[i] = value
    elif isinstance(data, bytes) and not kind.hasobject and len(data) == count * kind.itemsize:
        array = np.frombuffer(data, kind)
    else:
        raise Refusal(f"holds an array of {count} elements without its bytes")
    return array.reshape(tuple(shape), order="F" if fortran else "C")


def _scalar(kind: object, data: object = b"") -> object:
    return _filled(data, kind, (1,), fortran=False).tolist()[0]


def _encoded(text: object, coding: object) -> bytes:
    # How Python 3 spells bytes in Python 2's protocol.
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise Refusal("holds bytes that make no sense")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""
