"""Reading pickles without running them: a small machine that knows data and nothing else.

PyTorch's checkpoints are pickles, and a pickle is a program. `pickletools` takes the program apart;
the machine here carries out the few instructions that build dictionaries, lists, strings, numbers
and arrays, and refuses every other instruction and every name outside a fixed table. Nothing is
imported and nothing is called by name, so a hostile file can only fail.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

# A state dict of a hundred layers takes some thousands of instructions.
MOST_INSTRUCTIONS = 1_000_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_KEY_TYPES = (str, int, float, bytes, type(None))
LONGEST_KEY = 1000
"""Characters of a text or bits of a number; names join those of what they lie in."""

LONGEST_QUOTE = 100
"""So many characters of a file are said again in a message."""


class Stored(NamedTuple):
    """A tensor in a file: its shape is known, its numbers are read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@runtime_checkable
class Stream(Protocol):
    """What is read of a file: an open file and a memory map both do."""

    def read(self, size: int, /) -> bytes:
        """Read at most so many bytes."""

    def readline(self) -> bytes:
        """Read to the end of a line."""

    def tell(self) -> int:
        """Say how far reading has come."""


class Refusal(ValueError):
    """A pickle asks for something that is not read; the sentence goes on after a file's name."""


class Constructor(NamedTuple):
    """A name that a pickle may call; `build` sees the arguments and returns data."""

    build: Callable[..., object]


class _Dtype:
    """A NumPy dtype on its way: the second instruction adds the byte order."""

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or code not in _PLAIN_DTYPES:
            raise Refusal("refuses an array of other things than plain numbers")
        self.code = code
        self.order = "<"

    def set_state(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Refusal("holds an array type that makes no sense")
        self.order = "<" if state[1] in ("|", "=") else state[1]

    def dtype(self) -> np.dtype:
        return np.dtype(f"{self.order}{self.code}")


_PLAIN_DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))


class _Array:
    """A NumPy array on its way: `_reconstruct` makes it, the next instruction fills it."""

    def __init__(self) -> None:
        self.content = np.zeros(0, np.float32)

    def set_state(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refusal("holds an array that makes no sense")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # Python 2 had no bytes
            data = data.encode("latin-1")
        if not (isinstance(dtype, _Dtype) and isinstance(data, bytes) and is_shape(shape)):
            raise Refusal("refuses an array of other things than plain numbers")
        kind = dtype.dtype()
        if math.prod(shape) * kind.itemsize != len(data):
            raise Refusal(f"holds an array of shape {shape} with {len(data)} bytes")
        array = np.frombuffer(data, kind)
        self.content = array.reshape(shape, order="F" if fortran else "C")

    def stored(self) -> Stored:
        return Stored(self.content.shape, lambda: self.content)


def is_shape(value: object) -> bool:
    """Whether a value is a tuple or list of at most 8 sizes that are integers and not negative."""
    return (
        isinstance(value, tuple | list)
        and len(value) <= 8
        and all(type(size) is int and 0 <= size < 2**62 for size in value)
    )


def _empty_dict(*args: object) -> dict:
    if not args:
        return {}
    if len(args) != 1 or not isinstance(args[0], list | tuple):
        raise Refusal("holds a dictionary that makes no sense")
    made: dict = {}
    for pair in args[0]:  # OrderedDict([[key, value], ...])
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Refusal("holds a dictionary that makes no sense")
        check_key(pair[0])
        made[pair[0]] = _finished(pair[1])
    return made


def check_key(key: object) -> None:
    """Refuse what is no plain key, before it is hashed: hashing a deep tuple never ends.

    Raises:
        Refusal: if it is neither a text nor a number, or a long one.
    """
    if not isinstance(key, _KEY_TYPES):
        raise Refusal("holds a dictionary with keys that are no strings or numbers")
    size = key.bit_length() if isinstance(key, int) else 0
    if max(size, len(key) if isinstance(key, str | bytes) else 0) > LONGEST_KEY:
        raise Refusal("holds a dictionary with keys that are too long")


def _encode(text: str, coding: str) -> bytes:
    # How Python 3 spells bytes in Python 2's protocol.
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise Refusal("holds bytes that make no sense")
    return text.encode("latin-1")


def _scalar(dtype: object, data: object = b"") -> float:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise Refusal("refuses a NumPy scalar that is no number")
    return np.frombuffer(data, dtype.dtype(), count=1)[0].item()


def _ndarray(*_: object) -> object:
    raise Refusal("refuses an array that is made in an unusual way")


_NDARRAY = Constructor(_ndarray)


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _NDARRAY:
        raise Refusal("refuses an array of an unusual kind")
    return _Array()


# What any pickle may name. Callers add their own (a tensor's constructors).
PLAIN_NAMES: Mapping[str, object] = {
    "collections.OrderedDict": Constructor(_empty_dict),
    "builtins.dict": Constructor(_empty_dict),
    "__builtin__.dict": Constructor(_empty_dict),
    "builtins.bytes": Constructor(lambda: b""),
    "__builtin__.bytes": Constructor(lambda: b""),
    "_codecs.encode": Constructor(_encode),
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": Constructor(lambda code, *_: _Dtype(code)),
    "numpy.core.multiarray._reconstruct": Constructor(_reconstruct),
    "numpy._core.multiarray._reconstruct": Constructor(_reconstruct),
    "numpy.core.multiarray.scalar": Constructor(_scalar),
    "numpy._core.multiarray.scalar": Constructor(_scalar),
}


def read_pickle(
    stream: Stream,
    names: Mapping[str, object],
    persistent: Callable[[object], object] | None = None,
) -> object:
    """Read one pickle of plain data; the stream is left behind its last byte.

    Args:
        stream: an open binary file, or a memory map.
        names: what the pickle may name beside `PLAIN_NAMES`, `"module.name"` and what stands for
            it. A `Constructor` may be called, with arguments that it must not trust.
        persistent: what an object kept outside the pickle stands for.

    Returns:
        Dictionaries, lists, tuples, strings, bytes, numbers, and what the constructors return.
        Ordered dictionaries come back as dictionaries, arrays as `Stored`.

    Raises:
        Refusal: if the pickle is damaged or asks for anything else.

    >>> import io, pickle
    >>> read_pickle(io.BytesIO(pickle.dumps({"a": [1, 2.5]})), {})
    {'a': [1, 2.5]}
    """
    try:
        return _run(stream, {**PLAIN_NAMES, **names}, persistent)
    except Refusal:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise Refusal(f"holds a damaged pickle ({str(error)[:LONGEST_QUOTE]})") from error


def _run(
    stream: Stream,
    names: Mapping[str, object],
    persistent: Callable[[object], object] | None,
) -> object:
    stack: list = []
    marks: list[list] = []  # the stacks below each mark
    memo: dict[int, object] = {}

    def look_up(module: object, name: object) -> object:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if full not in names:
            asked = full[:LONGEST_QUOTE] or "a name that is no string"
            raise Refusal(
                f"asks for {asked}, which is refused: only tensors, "
                "arrays, dictionaries, lists, strings and numbers are read; save the network's "
                "state_dict() and nothing else"
            )
        return names[full]

    def since_mark() -> list:
        nonlocal stack
        items, stack = stack, marks.pop()
        return items

    def put_items(target: object, flat: list) -> None:
        if type(target) is not dict or len(flat) % 2:
            raise Refusal("holds a dictionary that makes no sense")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            check_key(key)
            target[key] = _finished(value)

    def extend(target: object, items: list) -> None:
        if type(target) is not list:
            raise Refusal("holds a list that makes no sense")
        target.extend(_finished(item) for item in items)

    for count, (code, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
        if count > MOST_INSTRUCTIONS:
            raise Refusal(f"holds a pickle of more than {MOST_INSTRUCTIONS} instructions")
        name = code.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[_index(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[_index(argument)])
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            if len(stack) < size:
                raise Refusal("holds a damaged pickle")
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            items = since_mark()
            stack.append(tuple(items))
        elif name == "LIST":
            items = since_mark()
            stack.append([_finished(item) for item in items])
        elif name == "DICT":
            items = since_mark()
            stack.append({})
            put_items(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            extend(stack[-1], [item])
        elif name == "APPENDS":
            items = since_mark()
            extend(stack[-1], items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            put_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = since_mark()
            put_items(stack[-1], items)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            since_mark()
        elif name == "GLOBAL":
            stack.append(look_up(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(look_up(module, attribute))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, Constructor) or type(arguments) is not tuple:
                raise Refusal("calls something that is no constructor")
            stack.append(function.build(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Array | _Dtype):
                stack[-1].set_state(state)
            elif type(stack[-1]) is not dict:  # attributes of an ordered dictionary are dropped
                raise Refusal("sets attributes, which is refused")
        elif name == "BINPERSID":
            if persistent is None:
                raise Refusal("refers to data outside the pickle")
            stack.append(persistent(stack.pop()))
        elif name == "STOP":
            if marks or len(stack) != 1:
                raise Refusal("holds a damaged pickle")
            return _finished(stack[0])
        elif name not in ("PROTO", "FRAME"):
            raise Refusal(f"uses the pickle instruction {name}, which is refused")
    raise Refusal("holds a damaged pickle")


def _finished(value: object) -> object:
    """Replace an array that has been filled by what callers see of it."""
    return value.stored() if isinstance(value, _Array) else value


def _index(argument: object) -> int:
    """Take the number of a memo, which the oldest protocol writes as text."""
    if not isinstance(argument, int | str):
        raise Refusal("holds a damaged pickle")
    return int(argument)
