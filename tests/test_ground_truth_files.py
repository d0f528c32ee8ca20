"""Pickles and MATLAB files of ground truth: equal to their makers' readers, and never run."""

import builtins
import json
import os
import pickle
import re
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from dataset_layouts import classic_content, write_indexed, write_mat
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmacjax.datasets import parse_indexed
from rmacjax.datasets.matlab import read_mat
from rmacjax.datasets.pickles import read_pickle

plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()
)
kinds = st.sampled_from(
    [np.int8, np.int64, np.uint16, np.float32, np.float64, np.bool_, ">i4", "U3"]
)
arrays = hnp.arrays(
    dtype=kinds,
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    elements={"allow_nan": False},
)
keys = st.one_of(st.text(), st.integers(), st.binary())
values = st.recursive(
    st.one_of(plain, arrays),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


def equal(a, b):
    if isinstance(a, np.ndarray):
        same = (
            isinstance(b, np.ndarray) and a.shape == b.shape and a.dtype.str[1:] == b.dtype.str[1:]
        )
        return same and np.array_equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def written(folder, data, name="gnd_x.pkl"):
    file = Path(folder) / name
    file.write_bytes(data)
    return file


@given(value=values, protocol=st.integers(0, 5))
def test_pickles_are_what_pickle_makes_of_them(tmp_path_factory, value, protocol):
    data = pickle.dumps(value, protocol=protocol)
    file = written(tmp_path_factory.getbasetemp(), data)
    assert equal(read_pickle(file), pickle.loads(data))


def test_scalars_texts_and_fortran_order(tmp_path):
    value = {
        "scalar": np.int64(-7),
        "share": np.float32(0.25),
        "names": np.asarray(["a", None, [1, 2]], object),
        "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "strided": np.arange(10)[::3],
    }
    for protocol in range(6):
        found = read_pickle(written(tmp_path, pickle.dumps(value, protocol=protocol)))
        assert found["scalar"] == -7
        assert found["share"] == 0.25
        assert found["names"].tolist() == ["a", None, [1, 2]]
        np.testing.assert_array_equal(found["turned"], value["turned"])
        np.testing.assert_array_equal(found["strided"], [0, 3, 6, 9])


# {'a': numpy.array([1, 200], '<i4'), 'n': 'x'} as Python 2 and its NumPy write it: texts are bytes.
PYTHON_2 = (
    b"\x80\x02}q\x00(U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
    b"K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02i4q\nK\x00"
    b"K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08"
    b"\x01\x00\x00\x00\xc8\x00\x00\x00q\x0ftq\x10bU\x01nq\x11U\x01xq\x12u."
)


def test_pickles_of_python_2(tmp_path):
    found = read_pickle(written(tmp_path, PYTHON_2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.4.0 warns of what it does by itself
        assert equal(pickle.loads(PYTHON_2, encoding="latin1"), found)
    assert found["a"].tolist() == [1, 200]


class Evil:
    """Pickled, it asks the reader to call something."""

    def __init__(self, function, *arguments):
        self.asks = function, arguments

    def __reduce__(self):
        return self.asks


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.system, "touch {}"),
        Evil(builtins.eval, "open('{}', 'w')"),
        Evil(getattr, "x", "upper"),
        Evil(np.load, "{}"),
        Evil(np.ndarray, (10**12,)),
        Evil(bytearray, 10**12),
        re.compile("x"),
        {1, 2},
        complex(1, 2),
    ],
)
def test_other_names_are_refused_and_not_called(tmp_path, evil, protocol):
    touched = tmp_path / "touched"
    if isinstance(evil, Evil):
        function, arguments = evil.asks
        evil = Evil(function, *[str(touched) if a == "{}" else a for a in arguments])
        evil.asks = (
            function,
            tuple(a.replace("{}", str(touched)) if isinstance(a, str) else a for a in arguments),
        )
    file = written(tmp_path, pickle.dumps({"gnd": [evil]}, protocol=protocol))
    with pytest.raises(ValueError, match=r"is refused|no constructor|only lists"):
        read_pickle(file)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "damaged or no pickle"),
        (b"]" * 10, "damaged or no pickle"),
        (b"not a pickle", "damaged or no pickle"),
        (b"\x80\x02]q\x00.extra"[:5], "damaged or no pickle"),
        (b"}(]K\x01u.", "keys that are no texts or numbers"),
        (b"}(K\x01u.", "dictionary that makes no sense"),
        (b"K\x01K\x02a.", "list that makes no sense"),
        (b"]K\x01b.", "sets attributes"),
        (b"(K\x01K\x02o.", "instruction OBJ"),
        (b"K\x01Q.", "instruction BINPERSID"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"(((.", "damaged"),
        (b"h\x07.", "damaged"),
        (b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "damaged"),
        (b"cnumpy\ndtype\n(U\x05U9999tR.", "holds what is no data"),
        (b"]cnumpy\nndarray\na.", "holds what is no data"),
        (b"cnumpy\ndtype\n(U\x02i4tR\x85.", "holds what is no data"),
        (b"cnumpy\ndtype\n(U\x01VtR.", "something else than numbers"),
        (b"cos\nsystem\n(U\x04truetR.", "asks for 'os.system', which is refused"),
        (b"U\x06systemU\x02os\x93.", "refused"),
        (b"U\x0bnumpy dtype(tR.", "no constructor"),
        # A tuple of itself twice, 64 times, and one 3,000 deep: to write either never ends well.
        (b")" + b"q\x00h\x00\x86" * 64 + b"U\x01a\x93.", "no text, which is refused"),
        (b")" + b"\x85" * 3_000 + b"U\x01a\x93.", "no text, which is refused"),
    ],
)
def test_damaged_pickles_are_one_sentence(tmp_path, data, sentence):
    file = written(tmp_path, data)
    with pytest.raises(ValueError, match=sentence) as caught:
        value = read_pickle(file)
        raise ValueError(f"read as {value!r}")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def only_sentences(read, data, file, rng, rounds):
    """Damage a file in many ways; what comes of it is a value or one sentence, nothing else."""
    failures = 0
    for _ in range(rounds):
        broken = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(len(broken))] = rng.integers(256)
        if rng.random() < 0.3:
            broken = broken[: rng.integers(len(broken))]
        file.write_bytes(broken)
        try:
            read(file)
        except ValueError as error:
            failures += 1
            assert str(file) in str(error)
    assert failures > rounds // 4


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_any_damage_to_a_pickle_is_a_sentence(tmp_path, rng, protocol):
    write_indexed(tmp_path / "gnd_x.pkl", classic_content(), protocol=protocol)
    data = (tmp_path / "gnd_x.pkl").read_bytes()
    only_sentences(parse_indexed, data, tmp_path / "gnd_x.pkl", rng, 400)


@pytest.mark.parametrize("deflated", [True, False])
def test_any_damage_to_a_matlab_file_is_a_sentence(tmp_path, rng, deflated):
    write_mat(tmp_path / "gnd_x.mat", classic_content())
    data = (tmp_path / "gnd_x.mat").read_bytes()
    if not deflated:
        variables = scipy.io.loadmat(tmp_path / "gnd_x.mat")
        kept = {key: value for key, value in variables.items() if not key.startswith("__")}
        scipy.io.savemat(tmp_path / "gnd_x.mat", kept)
        data = (tmp_path / "gnd_x.mat").read_bytes()
    # The text of the head says nothing and may be anything.
    head, body = data[:128], data[128:]
    failures = 0
    for _ in range(400):
        broken = bytearray(body)
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(len(broken))] = rng.integers(256)
        if rng.random() < 0.3:
            broken = broken[: rng.integers(len(broken))]
        (tmp_path / "gnd_x.mat").write_bytes(head + broken)
        try:
            parse_indexed(tmp_path / "gnd_x.mat")
        except ValueError as error:
            failures += 1
            assert str(tmp_path / "gnd_x.mat") in str(error)
    assert failures > 100


def same_as_scipy(mine, theirs):
    """Compare with SciPy's reader, which gives arrays of objects for cells and structures."""
    if isinstance(mine, list) and theirs.dtype.names:
        flat = theirs.reshape(-1, order="F")
        assert len(mine) == len(flat)
        for a, b in zip(mine, flat, strict=True):
            assert tuple(a) == theirs.dtype.names
            for field in a:
                same_as_scipy(a[field], b[field])
    elif isinstance(mine, list):
        flat = theirs.reshape(-1, order="F")
        assert len(mine) == len(flat)
        for a, b in zip(mine, flat, strict=True):
            same_as_scipy(a, b)
    elif isinstance(mine, str):
        assert mine == "".join(theirs.reshape(-1).tolist())
    else:
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("deflated", [True, False])
def test_matlab_files_are_what_scipy_makes_of_them(tmp_path, rng, deflated):
    cells = np.empty((2, 3), object)
    for i, value in enumerate(
        ["a", "", "müll", np.arange(3), np.zeros((0, 2)), rng.random((2, 2))]
    ):
        cells.flat[i] = value
    structure = np.zeros((2, 2), [("first", object), ("b", object)])
    for i in range(4):
        structure.flat[i] = (np.asarray([[i, 300]], np.uint16), f"name{i}")
    numbers = {
        f"x_{np.dtype(kind).name}": rng.integers(0, 100, (2, 3, 2)).astype(kind)
        for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    }
    variables = {"cells": cells, "structure": structure, "word": "hello", "one": 3.5, **numbers}
    file = tmp_path / "some.mat"
    scipy.io.savemat(file, variables, do_compression=deflated)
    mine = read_mat(file)
    theirs = scipy.io.loadmat(file, chars_as_strings=True)
    assert set(mine) == set(variables)
    for name, value in mine.items():
        same_as_scipy(value, theirs[name])


def test_what_is_no_number_is_none(tmp_path):
    scipy.io.savemat(tmp_path / "c.mat", {"c": np.asarray([1 + 2j]), "x": np.asarray([2.0])})
    found = read_mat(tmp_path / "c.mat")
    assert found["c"] is None
    assert found["x"].tolist() == [[2.0]]


def test_matlab_files_that_lie(tmp_path):
    file = tmp_path / "gnd_x.mat"
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no MATLAB file of version 5 to 7"):
        read_mat(file)
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"version 7\.3; save it with -v7"):
        read_mat(file)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"

    def element(kind, data):
        return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    def array(kind, shape, rest):
        flags, sizes = struct.pack("<II", kind, 0), np.asarray(shape, "<i4").tobytes()
        return element(14, element(6, flags) + element(5, sizes) + element(1, b"gnd") + rest)

    # A cell array, a structure and numbers that claim more than the machine has.
    lies = {
        "fewer values than it says": array(1, (2**31 - 1, 2**31 - 1), b""),
        "fewer values": array(
            2, (2**30, 2**30), element(5, struct.pack("<i", 4)) + element(1, b"a\0\0\0")
        ),
        "bytes for an array of shape": array(6, (2**30, 2**30), element(9, b"\0" * 8)),
        "has no shape": array(6, (-1, 5), element(9, b"")),
        "fields without names": array(
            2, (1, 1), element(5, struct.pack("<i", 0)) + element(1, b"")
        ),
        "middle of an element": struct.pack("<II", 14, 2**31) + b"x",
        "incorrect header": element(15, b"no zlib"),
    }
    for sentence, content in lies.items():
        file.write_bytes(head + content)
        with pytest.raises(ValueError, match=f"is damaged: .*{sentence}"):
            read_mat(file)
    # 300 MB of zeros deflate to 300 kB.
    bomb = zlib.compressobj(9)
    packed = b"".join(bomb.compress(b"\0" * 2**20) for _ in range(300)) + bomb.flush()
    file.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    most = 64 * file.stat().st_size + 2**20
    with pytest.raises(ValueError, match=f"inflate to more than {most} bytes"):
        read_mat(file)


@pytest.mark.parametrize("what", ["numbers", "structures", "letters", "zeros"])
def test_what_a_matlab_file_costs_is_in_proportion_to_it(tmp_path, monkeypatch, what):
    """What deflates to next to nothing, beside noise that makes the file itself look large."""

    def element(kind, data):
        return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    def array(kind, count, rest, name=b"x"):
        flags, shape = struct.pack("<II", kind, 0), struct.pack("<ii", count, 1)
        return element(14, element(6, flags) + element(5, shape) + element(1, name) + rest)

    monkeypatch.setattr("rmacjax.foreign.matlab._SPARE_VALUES", 1 << 12)
    many, nothing = 10_000, struct.pack("<II", 14, 0)
    fields = element(5, struct.pack("<i", 8)) + element(1, b"a".ljust(8, b"\0"))
    content = {
        "numbers": lambda: array(1, many, array(6, 1, element(9, b"1" * 8)) * many),
        "structures": lambda: array(2, many, fields + nothing * many),
        "letters": lambda: array(4, 1, element(16, "\U0001f600".encode() + b"a" * 8_000_000)),
        "zeros": lambda: array(9, 60_000_000, element(2, bytes(60_000_000))),
    }[what]()
    noise = np.random.default_rng(0).bytes(50_000)
    file = tmp_path / "x.mat"
    file.write_bytes(
        b"MATLAB 5.0 MAT-file".ljust(124)
        + struct.pack("<H", 0x0100)
        + b"IM"
        + array(9, len(noise), element(2, noise), b"noise")
        + element(15, zlib.compress(content, 9))
    )
    assert file.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"holds more than|inflate to more than"):
            read_mat(file)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"imlist": None}, "'imlist' should be a list of names"),
        ({"imlist": ["a", "a"]}, "lists a photo twice"),
        ({"imlist": ["../a", "b"]}, r"'\.\./a' is no name of a photo in its folder"),
        ({"imlist": ["/etc/passwd", "b"]}, "is no name of a photo"),
        ({"imlist": ["a", ""]}, "is no name of a photo"),
        ({"qimlist": 5}, "'qimlist' should be a list"),
        ({"qimlist": ["a", "b"]}, "has 2 queries but 1 lists of answers"),
        ({"gnd": [5]}, "query 0 has neither 'ok' nor 'easy'"),
        ({"gnd": [{"junk": []}]}, "query 0 has neither"),
        ({"gnd": [{"ok": [2]}]}, "query 0, ok should be numbers of photos, 0 to 1, not 2."),
        ({"gnd": [{"ok": [-1]}]}, "0 to 1, not -1."),
        ({"gnd": [{"ok": [0.5]}]}, "0 to 1, not 0.5."),
        ({"gnd": [{"ok": ["x"]}]}, "should be a list of numbers"),
        ({"gnd": [{"ok": [[1], [1, 0]]}]}, "should be a list of numbers"),
        ({"gnd": [{"ok": [0], "bbx": [1, 2, 3]}]}, "a box is four numbers"),
        ({"gnd": [{"ok": [0], "bbx": [1, 2, 3, "x"]}]}, "a box is four numbers"),
        ({"gnd": [{"ok": [0], "bbx": "1234"}]}, "a box is four numbers .* not '1234'"),
        ({"gnd": [{"ok": [0], "bbx": [0, 0, 10**400, 5]}]}, "not .*a number of many digits"),
        ({"gnd": [{"ok": [10**400]}]}, "0 to 1, not a number of many digits"),
        ({"imlist": ["/" * 10**6, "b"]}, "'/{100}'\\.\\.\\. is no name of a photo"),
        ({"gnd": "x"}, "'gnd' should be a list"),
    ],
)
def test_contents_that_are_no_ground_truth(tmp_path, change, sentence):
    content = {"imlist": ["a", "b"], "qimlist": ["a"], "gnd": [{"ok": [1], "bbx": [0, 0, 4, 4]}]}
    (tmp_path / "gnd_x.json").write_text(json.dumps(content))
    assert parse_indexed(tmp_path / "gnd_x.json").queries[0].ok == ["b"]
    (tmp_path / "gnd_x.json").write_text(json.dumps(content | change))
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(content | change))
    for suffix in (".json", ".pkl"):
        with pytest.raises(ValueError, match=rf"gnd_x\{suffix}.*{sentence}"):
            parse_indexed(tmp_path / f"gnd_x{suffix}")


def test_what_is_wrong_is_quoted_in_few_characters(tmp_path):
    """Tuples that lie in each other twice, 60 deep, take more letters than there is memory."""
    deep = ("x", "y")
    for _ in range(60):
        deep = (deep, deep)
    content = {"imlist": ["a", "b"], "qimlist": ["a"], "gnd": [{"ok": [1], "bbx": deep}]}
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"not \[a tuple of length 2, a tuple of") as caught:
        parse_indexed(tmp_path / "gnd_x.pkl")
    assert len(str(caught.value)) < 300
    # An integer of more digits than Python says.
    content["gnd"] = [{"ok": [10**5000]}]
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="not a number of many digits"):
        parse_indexed(tmp_path / "gnd_x.pkl")


def test_queries_of_one_photo_have_names_of_their_own(tmp_path):
    gnd = [{"ok": [1], "bbx": [0, 0, 4, 4]}, {"ok": [], "bbx": None}]
    content = {"imlist": ["a", "b"], "qimlist": ["a", "a"], "gnd": gnd}
    (tmp_path / "gnd_x.json").write_text(json.dumps(content))
    first, second = parse_indexed(tmp_path / "gnd_x.json").queries
    assert (first.name, second.name) == ("a", "a #2")
    assert (first.image, second.image) == ("a", "a")
    assert (second.box_ltrb, second.ok) == (None, [])
    with pytest.raises(FileNotFoundError, match=r"no file .*gnd_y\.pkl"):
        parse_indexed(tmp_path / "gnd_y.pkl")
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="has no 'imlist'"):
        parse_indexed(tmp_path / "gnd_x.pkl")
