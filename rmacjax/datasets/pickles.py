"""Reading the pickles that ground truth is distributed in, without running them.

A pickle is a program for a small stack machine. The instructions that build lists, tuples,
dictionaries, texts, numbers and NumPy arrays are carried out here, one by one; every other
instruction, and every name but those by which NumPy writes its arrays, is refused. Nothing is
imported and nothing is called by name. Python 2's pickles of arrays (bytes written as text in
latin-1; protocol 2) are read as well.
"""

import io
import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["read_pickle"]

_LARGEST = 1 << 28
"""Bytes of a file; the ground truth of a million images takes a tenth."""

_LONGEST_QUOTE = 100
"""So many characters of a file are said again in a message."""

_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_DTYPE = re.compile(r"[fiu][1248]|b1|[US][1-9]\d{0,3}|O8?")


class _Refusal(ValueError):
    """What a pickle holds that is not read; the sentence goes on after the file's name."""


class _Dtype:
    """The type of an array's elements; the byte order comes by a second instruction."""

    def __init__(self, code: object, *_: object) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin-1")
        if not isinstance(code, str) or not _DTYPE.fullmatch(code.lstrip("<>|=")):
            raise _Refusal("holds an array of something else than numbers and texts")
        self.code = code.lstrip("<>|=")
        self.order = code[0] if code[0] == ">" else "<"

    def set_state(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise _Refusal("holds an array of no known type")
        self.order = ">" if state[1] == ">" else "<"

    def dtype(self) -> np.dtype:
        return np.dtype(object) if self.code[0] == "O" else np.dtype(self.order + self.code)


class _Array:
    """An array on its way: one instruction makes it, the next fills it."""

    def __init__(self, *_: object) -> None:
        self.content = np.zeros(0)

    def set_state(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
            raise _Refusal("holds an array that makes no sense")
        _, shape, kind, fortran, data = state
        self.content = _filled(data, kind, shape, "F" if fortran is True or fortran == 1 else "C")


def _filled(data: object, kind: object, shape: object, order: object) -> np.ndarray:
    if isinstance(data, str):  # Python 2 knew no difference
        data = data.encode("latin-1")
    if not isinstance(kind, _Dtype) or order not in ("C", "F") or not isinstance(shape, tuple):
        raise _Refusal("holds an array that makes no sense")
    if len(shape) > 8 or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise _Refusal("holds an array of impossible shape")
    count, dtype = math.prod(shape), kind.dtype()
    if dtype.hasobject and isinstance(data, list) and len(data) == count:
        array = np.empty(count, object)
        for i, value in enumerate(data):
            array[i] = value
    elif isinstance(data, bytes) and not dtype.hasobject and len(data) == count * dtype.itemsize:
        array = np.frombuffer(data, dtype)
    else:
        raise _Refusal(f"holds an array of {count} elements without its bytes")
    return array.reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: object, data: object) -> object:
    return _filled(data, kind, (1,), "C").tolist()[0]


def _encoded(text: object, coding: object) -> bytes:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise _Refusal("holds bytes that make no sense")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


_CALLS: dict[str, Callable[..., object]] = {
    "numpy dtype": _Dtype,
    "_codecs encode": _encoded,
    "__builtin__ bytes": _no_bytes,  # how Python 3 spells no bytes for Python 2
    "builtins bytes": _no_bytes,
    **{f"numpy.{core}.multiarray _reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": _filled for core in ("core", "_core")},
}
_NAMES = {*_CALLS, "numpy ndarray"}


class _Name(NamedTuple):
    """A name that the pickle refers to; of its own kind, so that no data passes for it."""

    text: str


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
    try:
        return _run(path.read_bytes())
    except _Refusal as error:
        raise ValueError(
            f"{path} {error}; only lists, dictionaries and arrays are read."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} is no ground truth: it is nested too deeply.") from error
    except (ValueError, TypeError, IndexError, KeyError, ArithmeticError) as error:
        why = str(error)[:_LONGEST_QUOTE]
        raise ValueError(f"{path} is damaged or no pickle: {why}.") from error


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return [_finished(item) for item in items]

    for code, argument, _ in pickletools.genops(io.BytesIO(data)):
        name = code.name
        if name in _VALUES:
            stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _PUTS:
            memo[int(str(argument))] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(str(argument))])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [_finished(stack.pop()) for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name in ("TUPLE", "LIST"):
            items = since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = since_mark()
            stack.append(_put({}, items))
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [_finished(stack.pop())]
            if type(stack[-1]) is not list:
                raise _Refusal("appends to something that is no list")
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = (
                since_mark() if name == "SETITEMS" else [_finished(stack.pop()), stack.pop()][::-1]
            )
            _put(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise _Refusal("asks for a name that is no text, which is refused")
                argument = f"{module} {attribute}"
            if argument not in _NAMES:
                asked = str(argument).replace(" ", ".")[:_LONGEST_QUOTE]
                raise _Refusal(f"asks for {asked!r}, which is refused")
            stack.append(_Name(argument))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            call = _CALLS.get(function.text) if type(function) is _Name else None
            if call is None or type(arguments) is not tuple:
                raise _Refusal("calls what is no function")
            stack.append(call(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Array | _Dtype):
                raise _Refusal("sets attributes, which is refused")
            stack[-1].set_state(state)
        elif name == "STOP":
            if below or len(stack) != 1:
                raise _Refusal("is a damaged pickle")
            return _checked(_finished(stack[0]))
        elif name not in ("PROTO", "FRAME"):
            raise _Refusal(f"uses the instruction {name}, which is refused")
    raise _Refusal("is a pickle without an end")


def _put(target: object, items: list[Any]) -> object:
    if type(target) is not dict or len(items) % 2:
        raise _Refusal("holds a dictionary that makes no sense")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes):  # hashing a deep tuple never ends
            raise _Refusal("holds a dictionary whose keys are no texts or numbers")
        target[key] = value
    return target


def _checked(value: Any) -> Any:
    """Refuse what is no data: the means of making arrays, left somewhere unused."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, _Name | _Dtype | _Array):
            raise _Refusal("holds what is no data")
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, np.ndarray) and item.dtype.hasobject:
            waiting.extend(item.reshape(-1))
    return value


def _finished(value: Any) -> Any:
    """Give an array that has been filled for what it was while it was made."""
    return value.content if isinstance(value, _Array) else value
