"""Reading pickles without running them: a small machine that knows data and nothing else.

A pickle is a program for a stack machine. `pickletools` takes it apart; the few instructions that
build lists, tuples, dictionaries, texts and numbers are carried out here, one by one, and every
other instruction and every name outside a table that the caller gives is refused. Nothing is
imported and nothing is called by name, so a hostile file can only fail.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, Protocol, cast, runtime_checkable

from rmacjax.foreign import Damage, Refusal

__all__ = [
    "LONGEST_KEY",
    "LONGEST_QUOTE",
    "Constructor",
    "Stream",
    "Unfinished",
    "UnknownName",
    "check_key",
    "is_shape",
    "run_pickle",
]

LONGEST_KEY = 1000
"""Characters of a text or bits of a number; names join those of what they lie in."""

LONGEST_QUOTE = 100
"""So many characters of a file are said again in a message."""

_MOST_GROWTH = 8
"""Bytes that constructors may be given for each that was read; an item counts as 8 of them."""

_SPARE_BYTES = 1 << 20
"""And so many beside."""

_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_KEY_TYPES = (str, int, float, bytes, type(None))


@runtime_checkable
class Stream(Protocol):
    """What is read of a file: an open file and a memory map both do."""

    def read(self, size: int, /) -> bytes:
        """Read at most so many bytes."""

    def readline(self) -> bytes:
        """Read to the end of a line."""

    def tell(self) -> int:
        """Say how far reading has come."""


class UnknownName(Refusal):
    """A pickle asks for a name outside the table."""


class Constructor(NamedTuple):
    """A name that a pickle may call; `build` sees the arguments, which it must not trust."""

    build: Callable[..., object]


class Unfinished:
    """A value that a later instruction completes: what lies in other values is `value`."""

    def __init__(self, value: object, complete: Callable[[object], object]) -> None:
        """Take the value as it is so far, and what makes the whole one of the later argument."""
        self.value, self.complete = value, complete


def is_shape(value: object) -> bool:
    """Whether a value is a tuple or list of at most 8 sizes that are integers and not negative."""
    return (
        isinstance(value, tuple | list)
        and len(value) <= 8
        and all(type(size) is int and 0 <= size < 2**62 for size in value)
    )


def check_key(key: object) -> None:
    """Refuse what is no plain key, before it is hashed: hashing a deep tuple never ends.

    Raises:
        Refusal: if it is neither a text nor a number, or a long one.
    """
    if not isinstance(key, _KEY_TYPES):
        raise Refusal("holds a dictionary with keys that are no texts or numbers")
    size = key.bit_length() if isinstance(key, int) else 0
    if max(size, len(key) if isinstance(key, str | bytes) else 0) > LONGEST_KEY:
        raise Refusal("holds a dictionary with keys that are too long")


def run_pickle(
    stream: Stream,
    names: Mapping[str, object],
    *,
    most_instructions: int,
    persistent: Callable[[object], object] | None = None,
) -> object:
    """Read one pickle; the stream is left behind its last byte.

    Args:
        stream: an open binary file, or a memory map.
        names: what the pickle may name, `"module.name"` and what stands for it: a `Constructor`
            where it may be called.
        most_instructions: how many it may have; what constructors are given, and lies in lists
            that they are given, counts as well.
        persistent: what an object kept outside the pickle stands for; None: there are none.

    Returns:
        Dictionaries, lists, tuples, texts, bytes, numbers, what the constructors return (of
        `Unfinished` the value), and what stands for names that were not called.

    Raises:
        UnknownName: if the pickle asks for another name.
        Damage: if it is damaged.
        Refusal: if it asks for anything else.

    >>> import io, pickle
    >>> run_pickle(io.BytesIO(pickle.dumps({"a": [1, 2.5]})), {}, most_instructions=20)
    {'a': [1, 2.5]}
    """
    try:
        return _run(stream, names, most_instructions, persistent)
    except Refusal:
        raise
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise Damage(f"holds a damaged pickle ({str(error)[:LONGEST_QUOTE]})") from error


def _run(
    stream: Stream,
    names: Mapping[str, object],
    most_instructions: int,
    persistent: Callable[[object], object] | None,
) -> object:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, object] = {}
    start, given, extra = stream.tell(), 0, 0

    def charge(arguments: tuple[object, ...]) -> None:
        """Count what a constructor is given: what was read once can be given again and again."""
        nonlocal given, extra
        letters, items = _size(arguments)
        given, extra = given + letters + 8 * items, extra + items
        if given > _MOST_GROWTH * (stream.tell() - start) + _SPARE_BYTES:
            raise Refusal("holds a pickle that makes far more than was written, which is refused")

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return [_finished(item) for item in items]

    for count, (code, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
        if count + extra > most_instructions:
            raise Refusal(f"holds a pickle of more than {most_instructions} instructions")
        name = code.name
        if name in _LITERALS:
            stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):  # the oldest protocol numbers in text
            memo[int(str(argument))] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [_finished(stack.pop()) for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            items = since_mark()
            stack.append(tuple(items))
        elif name == "LIST":
            items = since_mark()
            stack.append(items)
        elif name == "DICT":
            items = since_mark()
            stack.append({})
            _put(stack[-1], items)
        elif name == "APPEND":
            item = _finished(stack.pop())
            _extend(stack[-1], [item])
        elif name == "APPENDS":
            items = since_mark()
            _extend(stack[-1], items)
        elif name == "SETITEM":
            value, key = _finished(stack.pop()), stack.pop()
            _put(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = since_mark()
            _put(stack[-1], items)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            since_mark()
        elif name == "GLOBAL":
            stack.append(_look_up(names, *str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_look_up(names, module, attribute))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, Constructor) or type(arguments) is not tuple:
                raise Refusal("calls something that is no constructor")
            charge(arguments)
            stack.append(function.build(*arguments))
        elif name == "BUILD":
            state, target = _finished(stack.pop()), stack[-1]
            if isinstance(target, Unfinished):
                charge(state if isinstance(state, tuple) else (state,))
                target.value = target.complete(state)
            elif type(target) is not dict:  # attributes of an ordered dictionary are dropped
                raise Refusal("sets attributes, which is refused")
        elif name == "BINPERSID" and persistent is not None:
            stack.append(persistent(_finished(stack.pop())))
        elif name == "STOP":
            if below or len(stack) != 1:
                raise Damage("holds a damaged pickle")
            return _finished(stack[0])
        elif name not in ("PROTO", "FRAME"):
            raise Refusal(f"uses the pickle instruction {name}, which is refused")
    raise Damage("holds a damaged pickle")


def _size(arguments: tuple[object, ...]) -> tuple[int, int]:
    """How many letters the texts among arguments have; how many items they and the lists have."""
    letters, items = 0, len(arguments)
    for value in arguments:
        if isinstance(value, str | bytes):
            letters += len(value)
        elif isinstance(value, list | tuple | dict):
            items += len(value)
    return letters, items


def _look_up(names: Mapping[str, object], module: object, attribute: object) -> object:
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise UnknownName("asks for a name that is no text, which is refused")
    name = f"{module}.{attribute}"
    if name not in names:
        raise UnknownName(f"asks for {name[:LONGEST_QUOTE]!r}, which is refused")
    return names[name]


def _put(target: object, flat: list[Any]) -> None:
    if type(target) is not dict or len(flat) % 2:
        raise Refusal("holds a dictionary that makes no sense")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        check_key(key)
        target[key] = value


def _extend(target: object, items: list[Any]) -> None:
    if type(target) is not list:
        raise Refusal("holds a list that makes no sense")
    target.extend(items)


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, Unfinished) else value
