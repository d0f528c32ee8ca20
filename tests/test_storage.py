"""Tables on disk: nothing acknowledged is lost, nothing is stored twice, every bit comes back."""

import inspect
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmacjax.storage import (
    PackedLevels,
    Snapshot,
    StoredImage,
    Table,
    derived,
    derived_key,
    durability,
    regions,
    rows,
    table,
)
from rmacjax.storage import pack_levels as pack

ROOT = Path(__file__).resolve().parents[1]
D, C = 6, 5


def unpack(data):
    return PackedLevels(data).unpack()


def read_levels(opened, snapshot, indices):
    return [packed.unpack() for packed in opened.read_packed(snapshot, indices)]


def make_levels(seed, height=4, width=3, channels=C):
    return np.random.default_rng(seed).integers(0, 9, (height, width, channels), np.uint8)


def make_image(path, seed, **shape):
    rng = np.random.default_rng([seed, 1])
    return StoredImage(
        path=path,
        height_px=100 + seed,
        width_px=200 + seed,
        file_bytes=2**40 + seed,
        file_mtime_ns=1_700_000_000_123_456_789 + seed,
        descriptor=rng.standard_normal(D).astype(np.float32),
        levels=make_levels(seed, **shape),
    )


def make_images(*names_and_seeds):
    return [make_image(name, seed) for name, seed in names_and_seeds]


def new_table(folder, images=()):
    made = Table.create(folder / "table", dimensions=D, channels=C)
    if images:
        made.append(images)
    return made


def check(opened, expected):
    """Compare all that is stored with the images it was made from, in order and bit for bit."""
    snapshot = opened.snapshot()
    assert snapshot.paths == [image.path for image in expected]
    assert len(opened) == len(expected)
    assert snapshot.version == opened.version
    assert (np.diff(snapshot.row_ids) > 0).all()
    assert snapshot.sizes_px.tolist() == [[i.height_px, i.width_px] for i in expected]
    assert snapshot.map_sizes.tolist() == [list(i.levels.shape[:2]) for i in expected]
    half = [image.descriptor.astype(np.float16) for image in expected]
    assert snapshot.descriptors.dtype == np.float16
    assert snapshot.descriptors.tobytes() == b"".join(row.tobytes() for row in half)
    for read, image in zip(
        read_levels(opened, snapshot, np.arange(len(expected))), expected, strict=True
    ):
        assert read.shape == image.levels.shape and read.dtype == np.uint8
        assert read.tobytes() == image.levels.tobytes()
    assert opened.signatures() == {i.path: (i.file_bytes, i.file_mtime_ns) for i in expected}


def unchecked(function):
    """Return a function as users call it, without the tests' checks of types."""
    return inspect.unwrap(function)


def manifests(opened):
    """List the manifests, the newest first, by Lance's own naming."""
    return sorted(Path(opened.location, "_versions").glob("*.manifest"))


# Maps as bytes


def packed_by_hand(levels):
    """Write the documented format value by value."""
    height, width, channels = levels.shape
    together = math.gcd(channels, 4)
    plain = bytearray()
    for group in range(0, channels, together):
        for y in range(0, height, 2):
            for x in range(width):
                for channel in range(group, group + together):
                    below = levels[y + 1, x, channel] if y + 1 < height else 0
                    plain.append(int(levels[y, x, channel]) + 16 * int(below))
    return struct.pack("<BIII", 2, height, width, channels), bytes(plain)


def packed_by_hand_earlier(levels):
    """The format of the first collections: the map's two halves share bytes."""
    height, width, channels = levels.shape
    pixels = [levels[y, x] for y in range(height) for x in range(width)]
    half = -(-len(pixels) // 2)
    plain = bytearray()
    for channel in range(channels):
        for k in range(half):
            high = pixels[half + k][channel] if half + k < len(pixels) else 0
            plain.append(int(pixels[k][channel]) + 16 * int(high))
    return struct.pack("<BIII", 1, height, width, channels) + pa.compress(
        bytes(plain), codec="zstd", asbytes=True
    )


shapes = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9))


@given(shape=shapes, top=st.integers(0, 15), seed=st.integers(0, 2**32 - 1))
def test_levels_come_back_bit_for_bit_in_the_documented_format(shape, top, seed):
    levels = np.random.default_rng(seed).integers(0, top + 1, shape, np.uint8)
    packed = pack(levels)
    back = unpack(packed)
    np.testing.assert_array_equal(back, levels)
    assert back.flags.c_contiguous and back.flags.writeable
    header, plain = packed_by_hand(levels)
    body = pa.compress(plain, codec="lz4_raw", asbytes=True)
    checksum = struct.pack("<I", zlib.crc32(header + body))
    np.testing.assert_array_equal(unpack(header + checksum + body), levels)
    assert packed[:13] == header  # and the other way round, up to the compressor's choices
    assert pa.decompress(packed[17:], len(plain), codec="lz4_raw", asbytes=True) == plain
    np.testing.assert_array_equal(unpack(packed_by_hand_earlier(levels)), levels)


@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_levels_are_unpacked_into_a_part_of_a_batch(shape, seed):
    levels = np.random.default_rng(seed).integers(0, 16, shape, np.uint8)
    for packed in (pack(levels), packed_by_hand_earlier(levels)):
        batch = np.full((2, 9, 9, shape[2]), 99, np.uint8)
        PackedLevels(packed).unpack(batch[1, : shape[0], : shape[1]])
        expected = np.full_like(batch, 99)
        expected[1, : shape[0], : shape[1]] = levels
        np.testing.assert_array_equal(batch, expected)


def test_levels_may_be_a_view_and_are_not_changed():
    levels = make_levels(0, 7, 9, 4)
    view = levels[::2, ::-1].transpose(1, 0, 2)
    before = view.copy()
    np.testing.assert_array_equal(unpack(pack(view)), before)
    np.testing.assert_array_equal(view, before)


def test_a_sparse_map_takes_a_fraction_of_half_a_byte_per_value():
    rng = np.random.default_rng(0)
    levels = np.where(rng.random((24, 32, 64)) < 0.1, rng.integers(1, 9, (24, 32, 64)), 0)
    assert len(pack(levels.astype(np.uint8))) < 0.6 * levels.size / 2


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        (np.full((2, 2, 2), 16, np.uint8), ValueError, "at most 15, got 16"),
        (np.zeros((2, 0, 2), np.uint8), ValueError, r"none of them 0, got \(2, 0, 2\)"),
        (np.zeros((2, 2), np.uint8), ValueError, r"must be \(h, w, c\)"),
        (np.zeros((2, 2, 2), np.int32), TypeError, "must be uint8, got int32"),
    ],
)
def test_what_is_no_map_is_refused(levels, error, message):
    with pytest.raises(error, match=message):
        unchecked(pack)(levels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:13], "13 bytes are too few"),
        (lambda data: b"\3" + data[1:], "format 3, this version of rmacjax reads up to 2"),
        (lambda data: data[:-3], "damaged"),
        (lambda data: data[:15], "damaged"),
        (lambda data: data[:17] + bytes(20), "damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: struct.pack("<BIII", 2, 4, 3, C + 1) + data[13:], "damaged"),
        (lambda data: struct.pack("<BIII", 2, 4, 3, C - 1) + data[13:], "damaged"),
        (lambda data: struct.pack("<BIII", 2, 2**31, 2**31, 2**31) + data[13:], "damaged"),
    ],
)
def test_damaged_bytes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        unpack(change(pack(make_levels(0))))


# In and out


def test_rows_come_back_bit_for_bit_in_order(tmp_path):
    images = [
        make_image("one", 1, height=1, width=1),
        make_image("zwei", 2, height=7, width=3),
        make_image("a", 3, height=2, width=9),
    ]
    made = new_table(tmp_path)
    check(made, [])
    assert made.append(images[:2]) == 2
    assert made.append(images[2:]) == 1
    check(made, images)
    check(Table.open(made.location), images)


def test_many_rows_are_read_in_the_order_asked_for(tmp_path):
    images = [make_image(str(k), k, height=1 + k % 5, width=2) for k in range(100)]
    made = new_table(tmp_path)
    for start in range(0, 100, 30):
        made.append(images[start : start + 30])
    snapshot = made.snapshot()
    wanted = np.random.default_rng(0).permutation(100).tolist()
    wanted += [7, 7, 99, 0]
    for read, k in zip(read_levels(made, snapshot, wanted), wanted, strict=True):
        np.testing.assert_array_equal(read, images[k].levels)
    for bad in ([-1], [0, 100]):
        with pytest.raises(ValueError, match=r"rows must lie in 0\.\.99, got"):
            read_levels(made, snapshot, bad)


def test_half_precision_descriptors_are_kept_and_others_rounded_once(tmp_path):
    exact = np.array([0, -0.0, 65504, 6e-8, 1 / 3, -1], np.float16)
    image = make_image("a", 0)._replace(descriptor=exact)
    made = new_table(tmp_path, [image])
    assert made.snapshot().descriptors[0].tobytes() == exact.tobytes()


def test_a_snapshot_cannot_be_written_to_and_is_kept(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1)))
    snapshot = made.snapshot()
    assert isinstance(snapshot, Snapshot) and made.snapshot() is snapshot
    for array in (snapshot.descriptors, snapshot.sizes_px, snapshot.row_ids):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    made.append(make_images(("b", 2)))
    assert made.snapshot() is not snapshot


def test_metadata_stay_as_they_were(tmp_path):
    metadata = {"fingerprint": "ab'\"\n☃", "settings": '{"a": [1, null]}', "": ""}
    made = Table.create(tmp_path / "t", dimensions=3, channels=7, metadata=metadata)
    made.append([make_image("a", 0, channels=7)._replace(descriptor=np.ones(3, np.float16))])
    made.compact()
    opened = Table.open(tmp_path / "t")
    assert opened.metadata == metadata
    assert (opened.dimensions, opened.channels, opened.recovered) == (3, 7, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"descriptor": np.ones(D + 1, np.float32)}, r"descriptor of 'x' has shape \(7,\)"),
        ({"levels": make_levels(0, channels=C + 1)}, r"map of 'x' has shape \(4, 3, 6\)"),
        ({"descriptor": np.full(D, np.nan, np.float32)}, "'x' is not finite in float16"),
        ({"descriptor": np.full(D, 1e5, np.float32)}, "'x' is not finite in float16"),
        ({"levels": np.full((1, 1, C), 99, np.uint8)}, "at most 15, got 99"),
    ],
)
def test_a_row_that_does_not_fit_changes_nothing(tmp_path, change, message):
    made = new_table(tmp_path, make_images(("a", 1)))
    with pytest.raises(ValueError, match=message):
        made.append([make_image("b", 2), make_image("x", 3)._replace(**change)])
    check(made, make_images(("a", 1)))


# Replacing and deleting


def test_a_row_replaces_the_one_of_the_same_path_in_one_commit(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1), ("b", 2), ("c", 3)))
    version = made.version
    assert made.append(make_images(("b", 4), ("d", 5))) == 2
    assert made.version == version + 1
    check(Table.open(made.location), make_images(("a", 1), ("c", 3), ("b", 4), ("d", 5)))
    made.append(make_images(("a", 6), ("c", 7)))  # empties the first fragment
    check(Table.open(made.location), make_images(("b", 4), ("d", 5), ("a", 6), ("c", 7)))


def test_the_last_of_two_rows_given_counts(tmp_path):
    made = new_table(tmp_path)
    assert made.append(make_images(("a", 1), ("b", 2), ("a", 3))) == 2
    check(made, make_images(("a", 3), ("b", 2)))


def test_without_replace_a_known_path_is_refused_and_nothing_changes(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1)))
    with pytest.raises(ValueError, match=r"'a' is already in the collection at .*table; remove"):
        made.append(make_images(("b", 2), ("a", 3)), replace=False)
    check(made, make_images(("a", 1)))
    assert made.append(make_images(("b", 2)), replace=False) == 1
    check(made, make_images(("a", 1), ("b", 2)))


def test_nothing_to_do_makes_no_version(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1)))
    version = made.version
    assert made.append([]) == made.delete([]) == made.delete(["unknown"]) == 0
    assert made.version == version == Table.open(made.location).version


def test_deleted_rows_are_gone_and_counted(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1), ("b", 2)))
    made.append(make_images(("c", 3)))
    assert made.delete(["b", "b", "unknown", "c"]) == 2
    check(Table.open(made.location), make_images(("a", 1)))
    assert made.delete(iter(["a"])) == 1
    check(Table.open(made.location), [])
    made.append(make_images(("b", 4)))
    check(Table.open(made.location), make_images(("b", 4)))


STRANGE = [
    "it's.jpg",
    "it''s.jpg",
    'say "cheese".jpg',
    "two\nlines.jpg",
    "back\\slash\t%20 *?.jpg",
    "photo 📷 ünï.jpg",
    "u\u0308.jpg",
    "ü.jpg",
    "latin1-\udce9.jpg",
    "' OR 1=1 --",
    "x" * 3000,
    " ",
]


def test_strange_names_are_names_like_others(tmp_path):
    images = make_images(*((name, k) for k, name in enumerate(STRANGE)))
    made = new_table(tmp_path, images)
    check(made, images)
    for k in range(len(images)):
        made.append([images[k]])  # replaces itself and nothing else
    check(made, images)
    for k, name in enumerate(STRANGE):
        assert made.delete([name]) == 1
        check(made, images[k + 1 :])


# Places


def test_places_may_be_written_in_many_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = make_images(("a", 1))
    odd = "a b#c%20d é?x=1&y"
    for create, reopen in [
        ("plain", tmp_path / "plain"),
        (tmp_path / odd, odd),
        ((tmp_path / "uri é").as_uri(), "uri é"),
        ("not/yet/there", tmp_path / "not" / "yet" / "there"),
    ]:
        Table.create(create, dimensions=D, channels=C).append(images)
        opened = Table.open(reopen)
        assert opened.location == str(tmp_path / reopen)
        check(opened, images)
    assert sorted(os.listdir(tmp_path)) == sorted(["plain", odd, "uri é", "not"])


def test_an_object_store_takes_the_same_calls():
    place = "memory://bucket/tables/one"
    with pytest.raises(FileNotFoundError, match="no collection at memory://bucket/tables/one"):
        Table.open(place)
    made = Table.create(place, dimensions=D, channels=C)
    with pytest.raises(FileExistsError, match="already; open it instead"):
        Table.create(place, dimensions=D, channels=C)
    made.append(make_images(("a", 1), ("b", 2)))
    made.append(make_images(("a", 3)))
    assert made.delete(["b"]) == 1
    made.compact()
    check(Table.open(place), make_images(("a", 3)))


def test_a_place_that_is_taken_is_refused(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1)))
    photos = tmp_path / "photos"
    photos.mkdir()
    Table.create(photos, dimensions=D, channels=C)  # an empty folder will do
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("x")
    for place, message in [
        (made.location, "there is a collection at .*table already; open it instead"),
        (tmp_path / "file", "file is a file; name a new or empty folder"),
        (tmp_path / "full", "full is not empty; name a new or empty folder"),
    ]:
        with pytest.raises(FileExistsError, match=message):
            Table.create(place, dimensions=D, channels=C)
    check(made, make_images(("a", 1)))
    assert os.listdir(tmp_path / "full") == ["photo.jpg"]


def test_of_two_that_create_at_once_one_succeeds(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_refuse_occupied", lambda place: None)
    new_table(tmp_path)
    with pytest.raises(FileExistsError, match="already; open it instead"):
        new_table(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dimensions": 0}, ValueError, "at least 1, got 0 and 5"),
        ({"channels": -1}, ValueError, "at least 1, got 6 and -1"),
        ({"metadata": {"a": 1}}, TypeError, "strings to strings, got 'a': 1"),
    ],
)
def test_a_table_is_not_made_of_nonsense(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        unchecked(Table.create.__func__)(
            Table, tmp_path / "t", **({"dimensions": D, "channels": C} | options)
        )
    assert not (tmp_path / "t").exists()


def test_opening_says_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("missing", "empty", "file"):
        with pytest.raises(FileNotFoundError, match=f"no collection at .*{name}; create it first"):
            Table.open(tmp_path / name)
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "other"))
    with pytest.raises(ValueError, match="other is not a collection of rmacjax"):
        Table.open(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(table, "FORMAT_VERSION", 2)
        Table.create(tmp_path / "newer", dimensions=D, channels=C)
    with pytest.raises(RuntimeError, match=r"newer has format 2, .* up to 1; upgrade rmacjax"):
        Table.open(tmp_path / "newer")


def test_a_new_table_in_the_place_of_a_removed_one_is_new(tmp_path):
    check(new_table(tmp_path, make_images(("a", 1))), make_images(("a", 1)))
    shutil.rmtree(tmp_path / "table")
    with pytest.raises(FileNotFoundError):
        Table.open(tmp_path / "table")
    check(new_table(tmp_path, make_images(("b", 2))), make_images(("b", 2)))


def test_a_lost_file_is_one_sentence(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1)))
    snapshot = made.snapshot()
    shutil.rmtree(Path(made.location, "data"))
    with pytest.raises(RuntimeError, match="could not be read") as caught:
        read_levels(made, snapshot, [0])
    assert re.fullmatch(
        r"the collection at .* could not be read .*: [^'].*\.lance", str(caught.value)
    )


# Regions


def with_regions(*names_and_seeds):
    """Images with 1 to 5 region vectors each; every seventh has none at all."""
    return [
        image._replace(
            regions=np.random.default_rng([seed, 2])
            .standard_normal((0 if seed % 7 == 6 else 1 + seed % 5, D))
            .astype(np.float32)
        )
        for image, (_, seed) in zip(make_images(*names_and_seeds), names_and_seeds, strict=True)
    ]


def new_region_table(folder, images=()):
    made = Table.create(folder / "regions", dimensions=D, channels=C, regions=True)
    if images:
        made.append(images)
    return made


def check_regions(opened, expected, snapshot=None):
    """Compare all region vectors of a snapshot with those of the images, bit for bit."""
    if snapshot is None:
        check(opened, expected)
        snapshot = opened.snapshot()
    found = {}
    for part in opened.read_regions(snapshot):
        assert part.vectors.dtype == np.float16
        assert part.counts.sum() == len(part.vectors)
        split = np.split(part.vectors, np.cumsum(part.counts)[:-1])
        for index, own in zip(part.indices.tolist(), split, strict=True):
            assert index not in found
            found[index] = own.tobytes()
    half = [image.regions.astype(np.float16).tobytes() for image in expected]
    assert found == dict(enumerate(half))


@pytest.mark.parametrize("at_once", [1, 3, 512])
def test_regions_come_back_bit_for_bit_and_line_up_with_the_snapshot(
    tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(regions, "ROWS_AT_ONCE", at_once)
    images = with_regions(*((str(k), k) for k in range(10)))
    made = new_region_table(tmp_path)
    check_regions(made, [])
    made.append(images[:7])
    made.append(images[7:])
    check_regions(made, images)
    check_regions(Table.open(made.location), images)
    before = made.snapshot()
    made.delete(["0", "3", "9"])
    anew = with_regions(("5", 55), ("1", 51))
    made.append(anew)  # replaces
    rest = [images[k] for k in (2, 4, 6, 7, 8)] + anew
    check_regions(made, rest)
    check_regions(made, images, before)  # the old version, by a table that has moved on
    made.append(with_regions(("x", 6)))
    made.compact(keep_seconds=0)
    assert made.fragments == 1
    check_regions(made, rest + with_regions(("x", 6)))
    with pytest.raises(RuntimeError, match="a new snapshot may help"):
        check_regions(made, images, before)


def test_regions_of_older_doubles_are_passed_over(tmp_path, monkeypatch):
    first = new_region_table(tmp_path)
    second = Table.open(first.location)
    assert second.regions
    meanwhile(monkeypatch, lambda: first.append(with_regions(("a", 1), ("b", 2))))
    with monkeypatch.context() as patch:
        patch.setattr(table, "_older_doubles", lambda found: found.addresses[:0])
        second.append(with_regions(("c", 3), ("a", 4)))
    opened = Table.open(first.location)
    assert len(opened) == 4
    check_regions(opened, with_regions(("b", 2), ("c", 3), ("a", 4)), opened.snapshot())


def test_regions_beside_a_compaction_keep_their_rows(tmp_path, monkeypatch):
    made = new_region_table(tmp_path)
    for k in range(4):
        made.append(with_regions((str(k), k)))
    writer = Table.open(made.location)
    real, left = durability.sync_fragments, [1]

    def sync_fragments(*arguments):
        real(*arguments)
        if left:
            left.pop()
            writer.append(with_regions(("1", 9), ("new", 10)))

    monkeypatch.setattr(table, "sync_fragments", sync_fragments)
    made.compact()
    made.refresh()
    check_regions(made, with_regions(("0", 0), ("2", 2), ("3", 3), ("1", 9), ("new", 10)))


def test_a_table_without_regions_has_no_column_for_them(tmp_path):
    made = new_table(tmp_path, with_regions(("a", 1)))  # passed over
    assert not made.regions and not Table.open(made.location).regions
    dataset = lance.dataset(made.location)
    assert "regions" not in dataset.schema.names
    assert b'"regions"' not in dataset.schema.metadata[b"rmacjax"]
    with pytest.raises(ValueError, match=r"keeps no region vectors.*index .* again with --regions"):
        next(made.read_regions(made.snapshot()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "'x' has no region vectors"),
        (np.ones((2, D + 1), np.float32), r"'x' has region vectors of shape \(2, 7\)"),
        (np.ones(D, np.float32), r"'x' has region vectors of shape \(6,\)"),
        (np.full((2, D), np.nan, np.float32), "of 'x' is not finite in float16"),
        (np.full((2, D), 1e5, np.float32), "of 'x' is not finite in float16"),
    ],
)
def test_regions_that_do_not_fit_change_nothing(tmp_path, monkeypatch, change, message):
    made = new_region_table(tmp_path, with_regions(("a", 1)))
    monkeypatch.setattr(rows, "half_regions", unchecked(rows.half_regions))
    with pytest.raises(ValueError, match=message):
        made.append([*with_regions(("b", 2)), make_image("x", 3)._replace(regions=change)])
    check_regions(made, with_regions(("a", 1)))


# Versions


def test_a_reader_keeps_its_version_while_others_write(tmp_path):
    reader = new_table(tmp_path, make_images(("a", 1), ("b", 2), ("c", 3)))
    before = reader.snapshot()
    writer = Table.open(reader.location)
    writer.append(make_images(("b", 4), ("d", 5)))
    writer.delete(["c"])
    check(reader, make_images(("a", 1), ("b", 2), ("c", 3)))
    assert reader.snapshot() is before
    assert reader.refresh() and not reader.refresh()
    check(reader, make_images(("a", 1), ("b", 4), ("d", 5)))
    for one in (reader, writer):  # the old version, by tables that have moved on
        for read, seed in zip(read_levels(one, before, [2, 1, 0]), (3, 2, 1), strict=True):
            np.testing.assert_array_equal(read, make_levels(seed))


def test_compaction_keeps_rows_order_and_numbers(tmp_path):
    made = new_table(tmp_path)
    for k in range(8):
        made.append(make_images((f"p{k}", k), (f"q{k}", 50 + k)))
    made.delete(["p3", "q3", "p5"])
    made.append(make_images(("p0", 90)))
    expected = [
        image
        for k in range(8)
        for image in make_images((f"p{k}", k), (f"q{k}", 50 + k))
        if image.path not in ("p0", "p3", "q3", "p5")
    ] + make_images(("p0", 90))
    check(made, expected)
    before = made.snapshot()
    fragments = made.fragments
    made.compact()
    assert fragments >= 8 and made.fragments == 1
    check(made, expected)
    check(Table.open(made.location), expected)
    np.testing.assert_array_equal(made.snapshot().row_ids, before.row_ids)
    np.testing.assert_array_equal(read_levels(made, before, [3])[0], expected[3].levels)
    version = made.version
    made.compact()  # nothing left to do
    assert made.version == version


def test_compaction_merges_no_further_than_to_its_target(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_TARGET_ROWS", 4)
    made = new_table(tmp_path)
    images = make_images(*((str(k), k) for k in range(20)))
    for image in images:
        made.append([image])
    made.compact()
    assert made.fragments == 5
    check(made, images)


def test_old_versions_are_deleted_when_they_are_old(tmp_path):
    made = new_table(tmp_path)
    images = make_images(*((str(k), k) for k in range(5)))
    for image in images:
        made.append([image])
    before = made.snapshot()
    files = set(Path(made.location).rglob("*"))
    made.compact()
    assert files <= set(Path(made.location).rglob("*"))  # all too young
    read_levels(made, before, [0])
    made.compact(keep_seconds=0)
    assert len(manifests(made)) == 1
    assert len(list(Path(made.location, "data").glob("*.lance"))) == 1
    check(Table.open(made.location), images)
    with pytest.raises(RuntimeError, match="a new snapshot may help"):
        read_levels(made, before, [0])


def test_the_newest_versions_stay_when_asked(tmp_path):
    made = new_table(tmp_path)
    for k in range(5):
        made.append(make_images((str(k), k)))
    made.compact(keep_seconds=0, keep_versions=3)
    assert len(manifests(made)) == 3


# Several writers


def meanwhile(monkeypatch, action):
    """Let something happen once, between a writer's look at the table and its commit."""
    real, left = rows.find_rows, [action]

    def find_rows(*arguments):
        found = real(*arguments)
        if left:
            left.pop()()
        return found

    monkeypatch.setattr(table, "find_rows", find_rows)


def test_an_overtaken_writer_replaces_what_the_other_has_written(tmp_path, monkeypatch):
    first = new_table(tmp_path, make_images(("a", 1), ("b", 2)))
    second = Table.open(first.location)
    meanwhile(monkeypatch, lambda: first.append(make_images(("a", 3))))
    second.append(make_images(("a", 4)))
    check(Table.open(first.location), make_images(("b", 2), ("a", 4)))


def test_a_path_that_two_writers_add_at_once_is_there_once(tmp_path, monkeypatch):
    first = new_table(tmp_path, make_images(("z", 0)))
    second = Table.open(first.location)
    meanwhile(monkeypatch, lambda: first.append(make_images(("a", 1), ("b", 2))))
    second.append(make_images(("c", 3), ("a", 4)))
    check(Table.open(first.location), make_images(("z", 0), ("b", 2), ("c", 3), ("a", 4)))


def test_doubles_that_a_stopped_writer_has_left_count_once(tmp_path, monkeypatch):
    first = new_table(tmp_path)
    second = Table.open(first.location)
    meanwhile(monkeypatch, lambda: first.append(make_images(("a", 1), ("b", 2))))
    with monkeypatch.context() as patch:
        patch.setattr(table, "_older_doubles", lambda found: found.addresses[:0])
        second.append(make_images(("c", 3), ("a", 4)))
    opened = Table.open(first.location)
    assert len(opened) == 4
    snapshot = opened.snapshot()
    assert snapshot.paths == ["b", "c", "a"]
    assert snapshot.sizes_px[:, 0].tolist() == [102, 103, 104]
    np.testing.assert_array_equal(read_levels(opened, snapshot, [2])[0], make_levels(4))
    assert opened.signatures()["a"][0] == 2**40 + 4
    opened.append(make_images(("a", 5)))  # heals it
    check(opened, make_images(("b", 2), ("c", 3), ("a", 5)))


def test_deleting_what_another_replaces_is_tried_again(tmp_path, monkeypatch):
    first = new_table(tmp_path, make_images(("a", 1), ("b", 2)))
    second = Table.open(first.location)
    meanwhile(monkeypatch, lambda: first.append(make_images(("a", 3))))
    assert second.delete(["a"]) == 1
    check(Table.open(first.location), make_images(("b", 2)))


def test_a_writer_that_never_gets_through_says_so(tmp_path, monkeypatch):
    first = new_table(tmp_path, make_images(("a", 1), ("b", 2)))
    second = Table.open(first.location)
    monkeypatch.setattr(table, "_RETRY_SECONDS", -1.0)
    meanwhile(monkeypatch, lambda: first.append(make_images(("a", 3))))
    with pytest.raises(RuntimeError, match="others kept changing the collection"):
        second.delete(["b"])
    check(Table.open(first.location), make_images(("b", 2), ("a", 3)))


@pytest.mark.parametrize("change", ["append", "replace"])
def test_compaction_beside_a_writer_keeps_rows_and_order(tmp_path, monkeypatch, change):
    made = new_table(tmp_path)
    for k in range(4):
        made.append(make_images((str(k), k)))
    writer = Table.open(made.location)
    added = make_images(("new", 9) if change == "append" else ("1", 9))
    real, left = durability.sync_fragments, [1]

    def sync_fragments(*arguments):
        real(*arguments)
        if left:
            left.pop()
            writer.append(added)

    monkeypatch.setattr(table, "sync_fragments", sync_fragments)
    made.compact()
    kept = [(str(k), k) for k in range(4) if str(k) != added[0].path]
    made.refresh()
    check(made, [*make_images(*kept), *added])
    made.compact()
    assert made.fragments == 1
    check(made, [*make_images(*kept), *added])


def test_two_may_compact_at_once(tmp_path, monkeypatch):
    made = new_table(tmp_path)
    images = make_images(*((str(k), k) for k in range(5)))
    for image in images:
        made.append([image])
    other = Table.open(made.location)
    real, left = durability.sync_fragments, [1]

    def sync_fragments(*arguments):
        real(*arguments)
        if left:
            left.pop()
            other.compact(keep_seconds=0)

    monkeypatch.setattr(table, "sync_fragments", sync_fragments)
    made.compact(keep_seconds=0)
    assert made.fragments == 1
    check(made, images)


def test_threads_may_share_a_table(tmp_path):
    made = new_table(tmp_path)
    failures = []

    def add(thread):
        try:
            for k in range(5):
                made.append(make_images((f"{thread}-{k}", 10 * thread + k), ("shared", thread)))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    made.refresh()
    names = [f"{thread}-{k}" for thread in range(4) for k in range(5)]
    assert sorted(made.snapshot().paths) == sorted([*names, "shared"])
    assert len(made) == 21


# Processes that end badly

WRITER = """
import sys
import numpy as np
from rmacjax.storage import StoredImage, Table

location, name, mode = sys.argv[1:]
table = Table.open(location)

def image(path, generation):
    return StoredImage(
        path, 10, 20, generation, 0,
        np.full(table.dimensions, generation, np.float16),
        np.full((3, 3, table.channels), generation % 9, np.uint8),
    )

for generation in range(12 if mode == "both" else 10**6):
    paths = [f"shared-{k}" for k in range(4)]
    if mode != "replace":
        paths = (paths if mode == "both" else []) + [f"{name}-{generation}-{k}" for k in range(4)]
    table.append([image(path, generation) for path in paths])
    print(generation, flush=True)
"""


def start_writer(opened, name, mode):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, opened.location, name, mode],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def generations(opened):
    """Check that descriptor, map and signature of every row fit together; map path to it."""
    snapshot = opened.snapshot()
    signatures = opened.signatures()
    found = {}
    maps = read_levels(opened, snapshot, range(len(snapshot.paths)))
    for path, descriptor, levels in zip(snapshot.paths, snapshot.descriptors, maps, strict=True):
        generation = signatures[path][0]
        assert (descriptor == generation).all()
        assert levels.shape == (3, 3, C) and (levels == generation % 9).all()
        found[path] = generation
    assert len(found) == len(snapshot.paths) == len(opened)
    return found


@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_what_was_acknowledged_survives_kill_9(tmp_path, mode):
    made = new_table(tmp_path)
    with start_writer(made, "w", mode) as writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(15)]
        writer.send_signal(signal.SIGKILL)  # somewhere in the next batch
        acknowledged += [int(line) for line in writer.stdout.read().split()]
    assert acknowledged == list(range(len(acknowledged)))
    opened = Table.open(made.location)
    assert opened.recovered == []
    found = generations(opened)
    if mode == "append":
        done = len(found) // 4  # a batch is there as a whole or not at all
        assert set(found) == {f"w-{k}-{i}" for k in range(done) for i in range(4)}
    else:
        assert set(found) == {f"shared-{i}" for i in range(4)}
        assert len(set(found.values())) == 1
        done = found["shared-0"] + 1
    assert len(acknowledged) <= done <= len(acknowledged) + 1
    opened.append(make_images(("after", 1)))
    opened.compact()
    assert len(opened) == len(found) + 1


def test_two_processes_write_at_once(tmp_path):
    made = new_table(tmp_path)
    with start_writer(made, "a", "both") as a, start_writer(made, "b", "both") as b:
        assert [len(one.communicate()[0].split()) for one in (a, b)] == [12, 12]
    assert a.returncode == b.returncode == 0
    made.refresh()
    found = generations(made)
    assert {path: found[path] for path in found if not path.startswith("shared")} == {
        f"{name}-{k}-{i}": k for name in "ab" for k in range(12) for i in range(4)
    }
    assert {f"shared-{i}" for i in range(4)} <= set(found)
    assert len(found) == 2 * 12 * 4 + 4


# Power cuts

TEARS = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data[:-100] + bytes(100),
    "zeros at the beginning": lambda data: bytes(len(data) - 16) + data[-16:],
    "zeros in the middle": lambda data: (
        data[: struct.unpack("<Q", data[-16:-8])[0] + 10] + bytes(60) + data[-50:]
    ),
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_a_torn_newest_version_is_set_aside(tmp_path, tear):
    made = new_table(tmp_path, make_images(("a", 1), ("b", 2)))
    made.append(make_images(("a", 3)))  # the commit nobody was told of
    newest = manifests(made)[0]
    newest.write_bytes(tear(newest.read_bytes()))
    opened = Table.open(made.location)
    assert len(opened.recovered) == 1
    assert f"version 3 of the collection at {made.location} was unreadable" in opened.recovered[0]
    assert f"{newest.name}.unreadable; version 2 is in use" in opened.recovered[0]
    assert newest.with_name(newest.name + ".unreadable").exists()
    check(opened, make_images(("a", 1), ("b", 2)))
    opened.append(make_images(("b", 4)))
    opened.compact(keep_seconds=0)
    check(opened, make_images(("a", 1), ("b", 4)))
    again = Table.open(made.location)
    assert again.recovered == []
    check(again, make_images(("a", 1), ("b", 4)))


def test_several_torn_versions_are_set_aside(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1)))
    for k in range(3):
        made.append(make_images((f"b{k}", k)))
    for path in manifests(made)[:3]:
        path.write_bytes(b"")
    opened = Table.open(made.location)
    assert len(opened.recovered) == 3
    check(opened, make_images(("a", 1)))


def test_a_table_whose_only_version_is_torn_is_left_alone(tmp_path):
    made = new_table(tmp_path)
    (path,) = manifests(made)
    path.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"its only version is unreadable .*0 bytes"):
        Table.open(made.location)
    assert path.exists()


def test_only_a_torn_version_is_set_aside(tmp_path):
    made = new_table(tmp_path, make_images(("a", 1)))

    def fail():
        raise OSError("feature flags of a newer Lance")

    assert durability.set_torn_manifests_aside(Path(made.location), fail) == []
    assert len(manifests(made)) == 2


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux to see what is flushed")
def test_files_are_flushed_before_the_commit_and_the_commit_before_the_answer(
    tmp_path, monkeypatch
):
    home = tmp_path / "not" / "yet" / "there"
    real, flushed = os.fsync, []

    def fsync(handle):
        real(handle)
        path = os.readlink(f"/proc/self/fd/{handle}")
        flushed.append((len(list(home.glob("_versions/*.manifest"))), os.path.relpath(path, home)))

    monkeypatch.setattr(os, "fsync", fsync)
    made = Table.create(home, dimensions=D, channels=C)
    assert {path for _, path in flushed} == {
        str(manifests(made)[0].relative_to(home)),
        "_versions",
        ".",
        "..",
        "../..",
        "../../..",
    }
    made.append(make_images(("a", 1), ("b", 2)))

    def contents(*names):
        return {str(p.relative_to(home)) for name in names for p in home.joinpath(name).rglob("*")}

    def changed_by(action):
        """Act; return the new files and folders, and what was flushed before the last commit."""
        flushed.clear()
        folders = ("data", "_deletions")
        before, versions = contents(*folders), manifests(made)
        action()
        new = contents(*folders) - before
        committed = [str(path.relative_to(home)) for path in manifests(made)[: -len(versions)]]
        early = {path for count, path in flushed if count < len(manifests(made))}
        late = {path for count, path in flushed if count == len(manifests(made))}
        assert committed and {*committed, "_versions"} <= late
        assert new <= early
        return new, early

    large = make_image("c", 4, height=300, width=200)  # with a blob file of its own
    new, early = changed_by(lambda: made.append([make_image("a", 3), large]))
    assert {Path(path).suffix for path in new} == {".lance", "", ".blob", ".arrow"}
    assert {"data", "_deletions", "."} <= early

    new, early = changed_by(lambda: made.delete(["b"]))
    assert not new  # its fragment has no row left and is gone as a whole

    new, early = changed_by(lambda: made.delete(["c"]))
    assert {Path(path).suffix for path in new} == {".arrow"} and "_deletions" in early

    made.append([make_image("d", 5), large])
    new, early = changed_by(made.compact)
    assert {".lance", ".blob"} <= {Path(path).suffix for path in new} and "data" in early


# What is computed from all rows.


def test_what_is_derived_is_computed_once_for_its_key(tmp_path):
    rows = np.random.default_rng(0).random((5, 3)).astype(np.float16)
    key = derived_key(rows, "x", 3)
    assert key == derived_key(rows.copy(), "x", 3)
    others = [
        derived_key(rows, "x", 4),
        derived_key(rows[::-1], "x", 3),
        derived_key(rows.T, "x", 3),
    ]
    assert len({key, *others, derived_key(rows.view(np.int16), "x", 3)}) == 5
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(3), "b": np.float32([[len(calls)]])}

    for count, name, key_ in (
        (1, "one", key),
        (1, "one", key),
        (2, "two", key),
        (3, "one", others[0]),
        (3, "one", others[0]),
        (4, "one", key),
    ):
        found = derived(tmp_path, name, key_, compute)
        assert len(calls) == count and sorted(found) == ["a", "b"]
        assert found["b"].dtype == np.float32 and found["a"].tolist() == [0, 1, 2]
    assert derived(None, "one", key, compute)["b"] == 5
    assert sorted(path.name for path in (tmp_path / "derived").iterdir()) == ["one.npz", "two.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04N.", b"\x93NUMPY\x01\x00", None])
def test_what_is_no_whole_file_is_computed_again(tmp_path, content):
    whole = {"a": np.arange(1000)}
    derived(tmp_path, "x", "key", lambda: whole)
    file = tmp_path / "derived" / "x.npz"
    stored = file.read_bytes()
    file.write_bytes(stored[: len(stored) // 2] if content is None else content)
    assert derived(tmp_path, "x", "key", lambda: {"a": np.arange(2)})["a"].size == 2
    assert derived(tmp_path, "x", "key", dict)["a"].size == 2
    with open(file, "wb") as other:
        np.save(other, np.arange(3))
    assert derived(tmp_path, "x", "key", lambda: whole)["a"].size == 1000


def test_a_place_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "derived").write_text("in the way")
    for _ in range(2):
        assert derived(tmp_path, "x", "key", lambda: {"a": np.arange(2)})["a"].size == 2
    assert derived(tmp_path / "gone", "x", "key", lambda: {"a": np.arange(2)})["a"].size == 2
    assert not (tmp_path / "gone").exists()


def test_of_what_is_derived_the_newest_stay(tmp_path):
    folder = tmp_path / "derived"
    for number in range(12):
        derived(tmp_path, f"x{number}", "key", lambda: {"a": np.arange(2)})
        os.utime(folder / f"x{number}.npz", (number, number))
    left = {path.name for path in folder.iterdir()}
    assert left == {f"x{number}.npz" for number in range(4, 12)}
    torn, begun = folder / ".x.npz.1.unfinished", folder / ".x.npz.2.unfinished"
    torn.touch(), begun.touch()
    os.utime(torn, (1, 1))
    derived(tmp_path, "x5", "other", lambda: {"a": np.arange(2)})
    assert not torn.exists() and begun.exists() and len([*folder.glob("*.npz")]) == 8
