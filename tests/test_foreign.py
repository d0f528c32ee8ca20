"""The machines behind every reader of pickles and MATLAB files: what a reader may choose."""

import io
import pickle
import pickletools
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from rmacjax.foreign import Damage, Refusal
from rmacjax.foreign.arrays import array_names
from rmacjax.foreign.matlab import read_variables
from rmacjax.foreign.pickles import Constructor, Unfinished, UnknownName, is_shape, run_pickle


def run(data, names=None, persistent=None, most_instructions=1000):
    stream = io.BytesIO(data)
    return run_pickle(
        stream, names or {}, most_instructions=most_instructions, persistent=persistent
    )


def test_instructions_are_counted():
    data = pickle.dumps(list(range(100)), 2)
    needed = sum(1 for _ in pickletools.genops(data))
    assert run(data, most_instructions=needed) == list(range(100))
    with pytest.raises(Refusal, match="a pickle of more than 50 instructions"):
        run(data, most_instructions=50)


def test_the_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps([2]) + b"rest")
    assert [run_pickle(stream, {}, most_instructions=9) for _ in range(2)] == [1, [2]]
    assert stream.read() == b"rest"


@pytest.mark.parametrize("protocol", range(6))
def test_what_lies_outside_the_pickle(protocol):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return "17" if isinstance(obj, complex) else None

    written = io.BytesIO()
    Pickler(written, protocol).dump([1j])
    if protocol:
        assert run(written.getvalue(), persistent=lambda key: f"found {key}") == ["found 17"]
    instruction = "BINPERSID" if protocol else "PERSID"
    with pytest.raises(Refusal, match=f"uses the pickle instruction {instruction}, which"):
        run(written.getvalue())


def test_names_are_the_readers_to_allow():
    """A name alone is what stands for it; only constructors are called, and completed later."""
    names = {"a.b": "a word", "a.c": Constructor(lambda x: Unfinished([x], lambda state: [state]))}
    assert run(b"ca\nb\n.", names) == "a word"
    assert run(b"(ca\nc\n(K\x01tRt.", names) == ([1],)
    assert run(b"(ca\nc\n(K\x01tRK\x02bt.", names) == ([2],)
    with pytest.raises(Refusal, match="calls something that is no constructor"):
        run(b"ca\nb\n(tR.", names)
    with pytest.raises(UnknownName, match=r"asks for 'a.d', which is refused"):
        run(b"ca\nd\n.", names)
    # What a file says is shown in a way that cannot steer a terminal, and not all of it.
    with pytest.raises(UnknownName) as caught:
        run(b"\x80\x04\x8c\x05\x1b[2J\n\x8c\x01x\x93.")
    assert str(caught.value) == r"asks for '\x1b[2J\n.x', which is refused"
    with pytest.raises(UnknownName) as caught:
        run(b"c" + b"x" * 5000 + b"\ny\n.")
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("data", [b"0.", b"1.", b"K\x01K\x02.", b"(K\x01.", b"\x85.", b"K\x01R."])
def test_a_stack_that_runs_out_is_damage(data):
    with pytest.raises(Damage, match="holds a damaged pickle"):
        run(data)


def test_what_is_dropped_is_gone():
    assert run(b"]K\x010.") == []
    assert run(b"](K\x01K\x021.") == []


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_texts_are_the_readers_to_allow(protocol):
    words = pickle.dumps([np.asarray(["a", "bc"])], protocol)
    read = array_names(lambda array: array.tolist(), texts=True)
    assert run(words, read) == [["a", "bc"]]
    with pytest.raises(Refusal, match=r"holds an array of something else than numbers$"):
        run(words, array_names(lambda array: array, texts=False))
    things = pickle.dumps(np.asarray([None, 3], object), protocol)
    with pytest.raises(Refusal, match=r"holds an array of something else than numbers$"):
        run(things, array_names(lambda array: array, texts=False))
    numbers = np.arange(6, dtype=">i4").reshape(2, 3)
    made = run(pickle.dumps(numbers, protocol), array_names(lambda array: array, texts=False))
    assert made.dtype == numbers.dtype
    np.testing.assert_array_equal(made, numbers)


def test_arrays_are_as_large_as_their_bytes():
    data = pickle.dumps(np.arange(200, dtype=np.uint8).reshape(2, 100), 2)
    names = array_names(lambda array: array, texts=False)
    assert run(data, names).shape == (2, 100)
    assert b"K\x02Kd" in data
    for lie in (b"K\x02Ke", b"Kd\x4b\xff"):
        with pytest.raises(Refusal, match=r"an array of \d+ elements without its bytes"):
            run(data.replace(b"K\x02Kd", lie), names)
    with pytest.raises(Refusal, match="impossible shape"):
        run(data.replace(b"K\x02Kd", b"K\x02J\xff\xff\xff\xff"), names)
    with pytest.raises(Refusal, match="an unusual kind"):
        run(b"cnumpy.core.multiarray\n_reconstruct\n(K\x01tR.", names)
    with pytest.raises(Refusal, match="an unusual way"):
        run(b"cnumpy\nndarray\n(K\x01tR.", names)


def test_what_was_written_once_is_not_made_a_thousand_times():
    """A text that is encoded again and again, an array that is built so, a list of arguments."""
    names = array_names(lambda array: array, texts=True)
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    start = b"\x80\x02]c_codecs\nencode\nq\x00" + text + b"X\x06\0\0\0latin1\x86q\x0100"
    assert [len(made) for made in run(start + b"(" + 3 * b"h\x00h\x01R" + b"e.", names)] == (
        3 * [1 << 20]
    )
    with pytest.raises(Refusal, match="makes far more than was written"):
        run(start + b"(" + 20 * b"h\x00h\x01R" + b"e.", names)
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x00(cnumpy\nndarray\nK\0\x85U\x01btq\x01"
    kind = b"cnumpy\ndtype\n(U\x02u1K\0K\x01tR"
    state = b"(K\x01J\0\0\x10\0\x85" + kind + b"\x89" + text + b"tq\x02"
    again = b"h\x00h\x01Rh\x02b"
    made = run(b"\x80\x02" + array + state + b"000](" + 3 * again + b"e.", names)
    assert [item.shape for item in made] == 3 * [(1 << 20,)]
    with pytest.raises(Refusal, match="makes far more than was written"):
        run(b"\x80\x02" + array + state + b"000](" + 20 * again + b"e.", names)
    many = b"]q\x00(" + 900 * b"K\x01" + b"e\x85q\x010](" + 40 * b"ca\nb\nh\x01R" + b"e."
    taken = {"a.b": Constructor(len)}
    assert run(many, taken, most_instructions=50_000) == 40 * [900]
    with pytest.raises(Refusal, match="more than 20000 instructions"):
        run(many, taken, most_instructions=20_000)


@pytest.mark.parametrize("protocol", range(6))
def test_what_honest_pickles_hold_is_not_too_much(monkeypatch, protocol):
    """Bytes that were written once are given to one or two constructors, in any protocol."""
    monkeypatch.setattr("rmacjax.foreign.pickles._SPARE_BYTES", 0)
    rng = np.random.default_rng(0)
    value = [rng.bytes(5000), rng.random((30, 100)), np.asarray(3000 * [None], object)]
    value += [rng.random(3) for _ in range(100)] + [np.float32(i) for i in range(100)]
    names = array_names(lambda array: array, texts=True)
    found = run(pickle.dumps(value, protocol), names, most_instructions=100_000)
    assert found[0] == value[0]
    for theirs, ours in zip(value[1:], found[1:], strict=True):
        np.testing.assert_array_equal(theirs, ours)


@given(st.one_of(st.lists(st.integers(-2, 2**63), max_size=10), st.integers(), st.just((True,))))
def test_shapes(value):
    good = isinstance(value, list) and len(value) <= 8 and all(0 <= n < 2**62 for n in value)
    assert is_shape(value) == good


# --- MATLAB ---------------------------------------------------------------------------------------


def mat(tmp_path, variables, compressed=False):
    scipy.io.savemat(tmp_path / "x.mat", variables, do_compression=compressed)
    return (tmp_path / "x.mat").read_bytes()


def read(content, most_bytes=1 << 20, deepest=8, most_values=1 << 20, wanted=None):
    return read_variables(
        memoryview(content),
        most_bytes=most_bytes,
        deepest=deepest,
        most_values=most_values,
        wanted=wanted,
    )


def test_all_variables_or_those_that_are_wanted(tmp_path):
    content = mat(tmp_path, {"a": np.ones((2, 3)), "b": "word", "c": 1j})
    assert {"a", "b", "c"} == read(content).keys()
    found = read(content, wanted=("b", "z"))
    assert found == {"b": "word"}
    stored = read(content)["a"]
    assert stored.shape == (2, 3)
    np.testing.assert_array_equal(stored.read(), np.ones((2, 3)))


def test_a_structure_is_an_array_of_structures(tmp_path):
    """So that a cell array that holds one structure is told from the structure."""
    cell = np.empty((1, 1), object)
    cell[0, 0] = {"a": "x"}
    assert read(mat(tmp_path, {"cell": cell, "alone": {"a": "x"}})) == {
        "cell": [[{"a": "x"}]],
        "alone": [{"a": "x"}],
    }


def test_how_much_may_be_inflated_is_counted_over_all_variables(tmp_path):
    rng = np.random.default_rng(0)
    content = mat(tmp_path, {name: rng.random(100) for name in "abc"}, compressed=True)
    assert len(read(content, most_bytes=3000)) == 3
    with pytest.raises(Damage, match="its arrays inflate to more than 2000 bytes"):
        read(content, most_bytes=2000)
    with pytest.raises(Damage, match="its arrays inflate to more than 2000 bytes"):
        read(content, most_bytes=2000, wanted=())


def test_how_deep_cells_may_lie_in_each_other(tmp_path):
    value = "inside"
    for _ in range(4):
        cell = np.empty((1, 1), object)
        cell[0, 0] = value
        value = cell
    content = mat(tmp_path, {"x": value})
    assert read(content, deepest=4) == {"x": [[[["inside"]]]]}
    with pytest.raises(Damage, match="nested too deeply"):
        read(content, deepest=3)


def test_values_are_counted_before_they_are_made(tmp_path):
    """Each takes hundreds of bytes, but eight in the file if empty, and hardly one deflated."""

    def cells(count, kind=1, fields=b""):
        def element(kind, data):
            return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

        head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", count, 1))
        inside = element(14, head + element(1, b"x") + fields + struct.pack("<II", 14, 0) * count)
        packed = zlib.compress(inside, 9)
        start = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"
        return start + struct.pack("<II", 15, len(packed)) + packed

    assert len(read(cells(1000), most_values=1000)["x"]) == 1000
    with pytest.raises(Damage, match="holds more than 999 values"):
        read(cells(1000), most_values=999)
    content = cells(100_000)
    with pytest.raises(Damage, match=f"holds more than {len(content) // 4 + 65536} values"):
        read(content)
    # Names of fields count as well, of one letter each; and so do cells within cells.
    names = struct.pack("<II", 1 << 2 | 1, 4) + struct.pack("<i", 1) + b"\0" * 4
    names += struct.pack("<II", 1, 100_000) + b"a" * 100_000
    with pytest.raises(Damage, match=r"holds more than \d+ values"):
        read(cells(0, kind=2, fields=names))
    cell = np.empty((1, 2), object)
    cell[:] = [["a", "b"]]
    nested = np.empty((1, 2), object)
    nested[0, 0], nested[0, 1] = cell, {"a": 1.0}
    # Two cells, two more in the first; a field's name, a structure, an array of numbers.
    assert read(mat(tmp_path, {"x": nested}), most_values=10)["x"][0] == ["a", "b"]
    with pytest.raises(Damage, match="holds more than 9 values"):
        read(mat(tmp_path, {"x": nested}), most_values=9)
    assert len(read(mat(tmp_path, {"x": "a" * 639}), most_values=9)["x"]) == 639
    with pytest.raises(Damage, match="holds more than 9 values"):
        read(mat(tmp_path, {"x": "a" * 640}), most_values=9)


def test_an_array_of_a_million_axes_is_not_looked_through():
    axes = struct.pack("<II", 5, 4_000_000) + b"\1\0\0\0" * 1_000_000
    inside = struct.pack("<IIII", 6, 8, 1, 0) + axes + struct.pack("<II", 1, 0)
    content = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"
    content += struct.pack("<II", 14, len(inside)) + inside
    tracemalloc.start()
    try:
        with pytest.raises(Damage, match="an array has no shape"):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("order", ["<", ">"])
def test_files_of_both_byte_orders(order):
    """Written by hand: SciPy writes only this machine's."""

    def element(kind, data):
        return struct.pack(f"{order}II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    def array(kind, shape, rest):
        flags, sizes = struct.pack(f"{order}II", kind, 0), np.asarray(shape, f"{order}i4").tobytes()
        return element(14, element(6, flags) + element(5, sizes) + element(1, b"") + rest)

    numbers = array(6, (2, 2), element(3, np.asarray([1, 2, 3, 300], f"{order}i2").tobytes()))
    text = array(4, (1, 2), element(17, "äb".encode({"<": "utf-16-le", ">": "utf-16-be"}[order])))
    nothing = element(14, b"")  # as MATLAB writes a cell that was never filled
    inner = numbers + text + nothing + array(4, (0, 0), b"")
    flags = struct.pack(f"{order}II", 1, 0) + struct.pack(f"{order}II", 5, 8)
    sizes = np.asarray((1, 4), f"{order}i4").tobytes()
    small_name = struct.pack(f"{order}I", 1 << 16 | 1) + b"x\0\0\0"
    cells = element(14, struct.pack(f"{order}II", 6, 8) + flags + sizes + small_name + inner)
    version = struct.pack(f"{order}H", 0x0100) + {"<": b"IM", ">": b"MI"}[order]
    head = b"MATLAB 5.0 MAT-file".ljust(124) + version
    packed = zlib.compress(cells)
    for body in (cells, struct.pack(f"{order}II", 15, len(packed)) + packed):
        first, second, third, fourth = read(head + body)["x"]
        np.testing.assert_array_equal(first.read(), [[1, 3], [2, 300]])
        assert (second, third.shape, third.read().shape, fourth) == ("äb", (0, 0), (0, 0), "")
    # Nothing is taken for whole that was cut off.
    for end in range(1, len(cells)):
        with pytest.raises(Damage, match="is damaged"):
            read(head + cells[:end])
    with pytest.raises(Refusal, match="is no MATLAB file of version 5 to 7"):
        read(head[:126] + b"XX" + cells)
    # An empty array may not have a size that nothing can have.
    odd = array(6, (0, *(2**31 - 1,) * 3), element(9, b""))
    with pytest.raises(Damage, match="an array of impossible shape"):
        read(head + odd)
