"""Describing: any mix of sizes, exactly, in a bounded number of programs."""

import subprocess
import sys
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from rmacjax import extraction
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.descriptors import Params, Settings
from rmacjax.extraction import Extracted, Failed, activations, batch_size, describe, describing
from rmacjax.integral import quantize
from rmacjax.preprocessing import SIDES as LADDER
from rmacjax.preprocessing import bucket_side, encode_png
from rmacjax.regions import rmac_regions
from rmacjax.whitening import Whitening

RANDOM = np.random.default_rng(0)
SIZES = [(64, 64), (70, 131), (128, 96), (33, 190), (150, 64), (97, 97), (190, 40)]


def images(sizes, seed=1):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def params():
    network = Network("alexnet", False, TORCHVISION_CONVENTION, name="random")
    projection = RANDOM.standard_normal((48, 256)).astype(np.float32)
    mean = RANDOM.standard_normal(256).astype(np.float32) / 32
    return Params(network, initialize("alexnet", 0), Whitening(mean, projection))


@pytest.fixture(scope="module")
def one_by_one(params):
    return np.concatenate([describe(params, image[None]) for image in images(SIZES)])


def test_a_mixed_list_equals_one_by_one(params, one_by_one):
    together = describe(params, images(SIZES))
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_descriptors_do_not_depend_on_company_or_order(params, one_by_one):
    order = [4, 0, 6, 2]
    some = describe(params, [images(SIZES)[i] for i in order])
    np.testing.assert_allclose(some, one_by_one[order], atol=1e-5)


def test_paths_equal_arrays(params, one_by_one, tmp_path):
    paths = []
    for i, image in enumerate(images(SIZES)):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(encode_png(image))
    np.testing.assert_allclose(describe(params, paths), one_by_one, atol=1e-5)
    np.testing.assert_allclose(describe(params, [str(p) for p in paths]), one_by_one, atol=1e-5)


def test_float_images_equal_uint8(params, one_by_one):
    floats = [image.astype(np.float32) for image in images(SIZES)]
    np.testing.assert_allclose(describe(params, floats), one_by_one, atol=1e-5)


def test_activations_of_a_list_are_cut_to_each_image(params):
    maps = activations(params, images(SIZES))
    for image, a1 in zip(images(SIZES), maps, strict=True):
        alone = activations(params, image[None])[0]
        assert a1.shape == alone.shape
        np.testing.assert_allclose(a1, alone, atol=1e-5 * float(np.max(alone)))
    assert activations(params, np.stack(images([(64, 80)] * 3))).shape == (3, 3, 4, 256)


def test_five_hundred_sizes_compile_a_bounded_number_of_programs(params):
    random = np.random.default_rng(5)
    sizes = {tuple(size) for size in random.integers(40, 193, (520, 2)).tolist()}
    sizes = sorted(sizes)[:500]
    assert len(sizes) == 500
    describing._describe_batch.clear_cache()
    described = list(extraction.extract(params, images(sizes)))
    assert sorted(item.index for item in described) == list(range(500))
    buckets = {(bucket_side(h), bucket_side(w)) for h, w in sizes}
    assert len(buckets) == 9
    assert describing._describe_batch._cache_size() <= 2 * len(buckets)


def test_networks_that_differ_in_loudness_alone_share_a_program(params):
    describing._describe_batch.clear_cache()
    for scale in (1.0, 2.5, 40.0):
        network = replace(params.network, activation_scale=scale)
        (found,) = extraction.extract(params._replace(network=network), images([(64, 80)]))
        (map_,) = activations(params, images([(64, 80)]))
        np.testing.assert_array_equal(found.levels, quantize(map_, scale))
    assert describing._describe_batch._cache_size() == 1


def test_the_ladder_holds_every_side_and_wastes_little():
    for side in range(1, 3000):
        padded = bucket_side(side)
        assert padded >= side
        assert padded - side < max(64, side // 2 + 1)
    assert len({bucket_side(side) for side in range(1, 1025)}) == len(LADDER)
    assert batch_size(4096, 4096) == 1


def test_large_images_are_shrunk_and_small_ones_never_enlarged(params):
    (large,) = images([(300, 200)])
    assert activations(params, [large], settings=Settings(long_side=150))[0].shape[:2] == (8, 5)
    assert activations(params, [large])[0].shape[:2] == (17, 11)


def test_scales_average_unit_vectors(params):
    photos = images([(190, 150)])
    both = describe(params, photos, settings=Settings(scales=(1.0, 0.5)))
    whole = describe(params, photos)
    half = describe(params, photos, settings=Settings(long_side=95))
    mean = np.asarray(whole + half)
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_scale_too_small_for_the_network_is_left_out(params):
    photos = images([(60, 60)])
    both = describe(params, photos, settings=Settings(scales=(1.0, 0.25)))
    np.testing.assert_allclose(both, describe(params, photos), atol=1e-6)


def test_whitening_can_be_left_out(params):
    plain = describe(params, images(SIZES[:1]), settings=Settings(whiten=False))
    assert plain.shape == (1, 256)


def test_describe_works_inside_jit_and_grad(params, one_by_one):
    image = images(SIZES)[1][None]
    inside = jax.jit(describe)(params, jnp.asarray(image))
    np.testing.assert_allclose(inside[0], one_by_one[1], atol=1e-5)

    with pytest.raises(ValueError, match="resize before"):
        jax.jit(lambda i: describe(params, i, settings=Settings(long_side=64)))(jnp.asarray(image))
    slopes = jax.grad(lambda p: describe(p, image)[0, 0])(params).weights
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes.values())
    assert float(jnp.abs(slopes["conv1.kernel"]).max()) > 0


def test_a_bad_image_is_named_and_the_rest_goes_on(params, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    good.write_bytes(encode_png(images([(64, 64)])[0]))
    bad.write_text("this is no photo")
    items = {item.index: item for item in extraction.extract(params, [bad, good])}
    assert isinstance(items[0], Failed) and "bad.jpg" in str(items[0].error)
    assert isinstance(items[1], Extracted) and items[1].levels.dtype == np.uint8
    with pytest.raises(OSError, match=r"bad\.jpg"):
        describe(params, [good, bad])


def slow_regions(a1, whitening, with_global=False):
    """Each region's maxima, normalized, whitened, normalized: in float64, box by box."""
    a1 = np.asarray(a1, np.float64)
    boxes = rmac_regions(*a1.shape[:2]).tolist() + [[0, 0, *a1.shape[:2]]] * with_global
    rows = []
    for top, left, bottom, right in boxes:
        vector = a1[top:bottom, left:right].max(axis=(0, 1))
        vector /= np.linalg.norm(vector)
        if whitening is not None:
            vector = np.asarray(whitening.projection, np.float64) @ (vector - whitening.mean)
            vector /= np.linalg.norm(vector)
        rows.append(vector)
    return np.stack(rows)


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(whiten=False), Settings(with_global=True)]
)
def test_kept_regions_are_what_the_descriptor_is_the_sum_of(params, settings):
    photos = images(SIZES)
    maps = activations(params, photos)
    whitening = params.whitening if settings.whiten else None
    items = list(extraction.extract(params, photos, settings=settings, keep_regions=True))
    assert len({len(item.regions) for item in items}) > 1  # no padding is kept
    for item in items:
        expected = slow_regions(maps[item.index], whitening, settings.with_global)
        assert item.regions.shape == expected.shape and item.regions.dtype == np.float32
        np.testing.assert_allclose(item.regions, expected, atol=2e-5)
        total = item.regions.sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(item.descriptor, total / np.linalg.norm(total), atol=1e-6)


def test_keeping_regions_changes_nothing_else(params):
    def by_index(**options):
        items = extraction.extract(params, images(SIZES), **options)
        return sorted(items, key=lambda item: item.index)

    for plain, kept in zip(by_index(), by_index(keep_regions=True), strict=True):
        assert plain.regions is None
        np.testing.assert_allclose(kept.descriptor, plain.descriptor, atol=1e-6)
        np.testing.assert_array_equal(kept.levels, plain.levels)


def test_regions_of_several_scales_are_those_of_the_first(params):
    photos = images([(190, 150)])
    scales = Settings(scales=(0.5, 1.0))
    (both,) = extraction.extract(params, photos, settings=scales, keep_regions=True)
    (whole,) = extraction.extract(params, photos, keep_regions=True)
    np.testing.assert_allclose(both.regions, whole.regions, atol=1e-6)


@pytest.mark.parametrize("pool", ["mac", "spoc", "spoc_centre", "gem", "crow"])
def test_other_pools_have_one_region_the_whole(params, pool):
    photos = images(SIZES[:3])
    for item in extraction.extract(params, photos, settings=Settings(pool=pool), keep_regions=True):
        assert item.regions.shape == (1, 48)
        np.testing.assert_allclose(item.regions[0], item.descriptor, atol=1e-6)


WRONG = """
import numpy as np
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.descriptors import Params
from rmacjax.extraction import describe

params = Params(Network("alexnet", False, TORCHVISION_CONVENTION), initialize("alexnet", 0))
for imgs in (
    np.zeros((64, 64, 3), np.uint8),
    "photo.jpg",
    [np.zeros((64, 64), np.uint8)],
    [np.zeros((64, 64, 3), np.int64)],
    [np.zeros((20, 64, 3), np.uint8)],
):
    try:
        describe(params, imgs)
    except ValueError as error:
        print(error)
"""


def test_wrong_images_are_refused_with_a_sentence():
    """As a user sees it: in a process without the shape checks that the tests switch on."""
    sentences = subprocess.run(
        [sys.executable, "-c", WRONG], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = ["image[None]", "list of paths", "(height, width, 3)", "uint8", "at least 31 x 31"]
    assert len(sentences) == len(wanted)
    for sentence, words in zip(sentences, wanted, strict=True):
        assert words in sentence


def test_the_query_is_the_mac_of_what_is_stored(params):
    for item in extraction.extract(params, images(SIZES[:3])):
        strongest = item.levels.max((0, 1)).astype(np.float64)
        assert strongest.any()
        np.testing.assert_allclose(item.query, strongest / np.linalg.norm(strongest), atol=1e-6)


def test_an_image_too_narrow_once_shrunk_is_refused_with_its_own_size(params):
    with pytest.raises(ValueError, match=r"3000 x 40 pixels before it was shrunk"):
        describe(params, [np.zeros((3000, 40, 3), np.uint8)], settings=Settings(long_side=512))
    with pytest.raises(ValueError) as narrow:
        describe(params, [np.zeros((512, 6, 3), np.uint8)])
    assert "before" not in str(narrow.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(params, value):
    image = np.zeros((64, 64, 3), np.float32)
    image[3, 4, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        describe(params, image[None])


def test_an_array_of_paths_is_a_list_of_them(params, tmp_path):
    paths = []
    for i, image in enumerate(images(SIZES[:3])):
        paths.append(str(tmp_path / f"{i}.png"))
        (tmp_path / f"{i}.png").write_bytes(encode_png(image))
    expected = describe(params, paths)
    np.testing.assert_array_equal(describe(params, np.array(paths)), expected)
    assert [a.shape for a in activations(params, np.array(paths))] == [
        a.shape for a in activations(params, paths)
    ]


def test_no_images_give_no_rows(params):
    assert describe(params, []).shape == (0, 48)


def test_scales_of_pools_without_regions_are_joined_before_they_are_whitened(params):
    photos = images([(190, 150), (60, 60)])  # the second is too small for half its size
    network = replace(params.network, gem_p=2.5)
    settings = Settings(pool="gem", scales=(1.0, 0.5))
    whitened = params._replace(network=network)
    maps = activations(params, photos) + activations(params, photos[:1], settings=Settings(95))
    whole, small, half = (oracles.unit(oracles.gem(np.asarray(a1), 2.5)) for a1 in maps)
    items = extraction.extract(whitened, photos, settings=settings, keep_regions=True)
    found = sorted(items, key=lambda item: item.index)
    expected = oracles.join_scales([whole, half], 2.5, params.whitening)
    np.testing.assert_allclose(found[0].descriptor, expected, atol=2e-5)
    np.testing.assert_array_equal(found[0].regions, found[0].descriptor[None])
    expected = oracles.join_scales([small], 2.5, params.whitening)
    np.testing.assert_allclose(found[1].descriptor, expected, atol=2e-5)


@pytest.mark.parametrize("pool", ["spoc_centre", "crow", "rgem", "gem"])
def test_a_mixed_list_equals_the_definitions(params, pool):
    """Through the network, in padded batches: what the maps say, and the network's own exponent."""
    plain = params._replace(network=replace(params.network, gem_p=2.2), whitening=None)
    photos = images(SIZES[:2])
    described = describe(plain, photos, settings=Settings(pool=pool))
    slow = {
        "spoc_centre": oracles.spoc_centre,
        "crow": oracles.crow,
        "rgem": lambda a: oracles.rgem(a, 2.2),
        "gem": lambda a: oracles.gem(a, 2.2),
    }[pool]
    for a1, descriptor in zip(activations(plain, photos), described, strict=True):
        np.testing.assert_allclose(descriptor, oracles.unit(slow(np.asarray(a1))), atol=1e-5)
    inside = jax.jit(lambda p, i: describe(p, i, settings=Settings(pool=pool)))
    alone = inside(plain, jnp.asarray(photos[0][None]))[0]
    np.testing.assert_allclose(alone, described[0], atol=1e-5)


def test_floats_that_reach_no_further_than_one_are_warned_of(params):
    image = images([(64, 64)])[0].astype(np.float32)
    with pytest.warns(UserWarning, match=r"pixels are 0\.\.255, multiply images in 0\.\.1 by 255"):
        describe(params, (image / 255)[None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        describe(params, image[None])
        describe(params, np.zeros_like(image)[None])  # black is black
        describe(params, np.ones((1, 64, 64, 3), np.uint8))
