"""Extras: what comes back is what was kept, whatever it was."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rmacjax.finetune.extras import from_json, to_json

ARRAYS = arrays.arrays(
    st.sampled_from([np.uint8, np.int64, np.float16, np.float64, np.bool_, np.dtype(">i4")]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | ARRAYS
KEYS = st.text() | st.sampled_from(["dict", "bytes", "array", "dtype", "shape"])
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12
)


def same(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
            and right.flags.writeable
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or (left != left and right != right))


@given(VALUES)
def test_any_value_survives_a_file(value):
    assert same(value, from_json(json.loads(json.dumps(to_json(value)))))


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {3}, np.asarray([None]), [{"deep": 1j}], ({"a": range(3)},)]
)
def test_what_has_no_place_is_refused(value):
    with pytest.raises(TypeError, match="extras hold JSON's types with names as keys, bytes and"):
        to_json(value)
