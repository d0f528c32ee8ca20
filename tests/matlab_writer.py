"""Writing MATLAB's files of version 7.3 as MATLAB lays them out: HDF5 behind 512 bytes."""

import itertools

import h5py
import numpy as np

_COUNTER = itertools.count()

HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Nov 23 2026 HDF5 schema 1.00 ."


def write(path, variables, *, compress=False):
    """Write variables: arrays, text, lists (cell arrays), dictionaries (structures), and tuples of
    dictionaries (arrays of structures)."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            _put(file, file, name, value, compress)
    with open(path, "r+b") as opened:
        opened.write(HEADER.ljust(116) + bytes(8) + b"\x00\x02IM")


def _put(file, group, name, value, compress):
    match value:
        case dict():
            made = group.create_group(name)
            made.attrs["MATLAB_class"] = np.bytes_("struct")
            for key, member in value.items():
                _put(file, made, key, member, compress)
        case tuple():  # an array of structures
            made = group.create_group(name)
            made.attrs["MATLAB_class"] = np.bytes_("struct")
            for key in value[0]:
                _refer(file, made, key, [entry[key] for entry in value], compress)
        case list() if not value:
            _empty(group, name, (0, 0), "cell")
        case list():
            made = _refer(file, group, name, value, compress)
            made.attrs["MATLAB_class"] = np.bytes_("cell")
        case str() if not value:
            _empty(group, name, (0, 0), "char")
        case str():
            letters = np.frombuffer(value.encode("utf-16-le"), "<u2")[:, None]
            made = group.create_dataset(name, data=letters)
            made.attrs["MATLAB_class"] = np.bytes_("char")
            made.attrs["MATLAB_int_decode"] = np.int32(2)
        case _:
            array = np.asarray(value)
            array = array[None] if array.ndim == 1 else array
            kind = {"f4": "single", "f8": "double"}.get(array.dtype.str[1:], str(array.dtype))
            if array.size == 0:
                _empty(group, name, array.shape, kind)
                return
            options = {"compression": "gzip", "chunks": True} if compress else {}
            made = group.create_dataset(name, data=array.T, **options)
            made.attrs["MATLAB_class"] = np.bytes_(kind)


def _empty(group, name, shape, kind):
    made = group.create_dataset(name, data=np.array(shape, np.uint64))
    made.attrs["MATLAB_class"] = np.bytes_(kind)
    made.attrs["MATLAB_empty"] = np.uint8(1)


def _refer(file, group, name, values, compress):
    places = file.require_group("#refs#")
    pointers = np.empty((len(values), 1), h5py.ref_dtype)
    for i, value in enumerate(values):
        key = f"v{next(_COUNTER)}"
        _put(file, places, key, value, compress)
        pointers[i, 0] = places[key].ref
    return group.create_dataset(name, data=pointers, dtype=h5py.ref_dtype)
