"""Reading the pickles that checkpoints of networks are made of, without running them.

PyTorch's checkpoints are pickles, and a pickle is a program. Of `rmacjax.foreign.pickles`' machine
only ordered dictionaries, arrays of numbers and what a caller adds (a tensor's constructors) may be
asked for.
"""

from collections.abc import Callable, Mapping

import numpy as np

from rmacjax.foreign import Refusal, Stored
from rmacjax.foreign.arrays import array_names
from rmacjax.foreign.pickles import Constructor, Stream, UnknownName, check_key, run_pickle

# A state dict of a hundred layers takes some thousands of instructions.
MOST_INSTRUCTIONS = 1_000_000


def _stored(array: np.ndarray) -> Stored:
    return Stored(array.shape, lambda: array)


def _ordered_dict(*args: object) -> dict:
    if not args:
        return {}
    if len(args) != 1 or not isinstance(args[0], list | tuple):
        raise Refusal("holds a dictionary that makes no sense")
    made: dict = {}
    for pair in args[0]:  # OrderedDict([[key, value], ...])
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Refusal("holds a dictionary that makes no sense")
        check_key(pair[0])
        made[pair[0]] = pair[1]
    return made


# What any pickle may name. Callers add their own (a tensor's constructors).
_PLAIN_NAMES: Mapping[str, object] = {
    "collections.OrderedDict": Constructor(_ordered_dict),
    "builtins.dict": Constructor(_ordered_dict),
    "__builtin__.dict": Constructor(_ordered_dict),
    **array_names(_stored, texts=False),
}


def read_pickle(
    stream: Stream,
    names: Mapping[str, object],
    persistent: Callable[[object], object] | None = None,
) -> object:
    """Read one pickle of plain data; the stream is left behind its last byte.

    Args:
        stream: an open binary file, or a memory map.
        names: what the pickle may name beside dictionaries and arrays, `"module.name"` and what
            stands for it.
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
        return run_pickle(
            stream,
            {**_PLAIN_NAMES, **names},
            most_instructions=MOST_INSTRUCTIONS,
            persistent=persistent,
        )
    except UnknownName as error:
        raise Refusal(
            f"{error}: only tensors, arrays, dictionaries, lists, strings and numbers are read; "
            "save the network's state_dict() and nothing else"
        ) from error
