"""Generated photos: repeatable, of the promised sizes, and right about where things are."""

from functools import partial

import numpy as np
import pytest

from rmacjax import scenes
from rmacjax.regions import box_iou
from rmacjax.scenes import mishaps, photos, searches


@pytest.fixture(scope="module")
def collection():
    return scenes.render_collection(seed=3, objects=2, views=3, distractors=2, size=(96, 128))


def test_power_noise_has_the_spectrum_it_is_asked_for():
    size, exponent = 128, 1.5
    noise = scenes.power_noise(np.random.default_rng(0), size, exponent)
    assert noise.dtype == np.float32
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=1e-4)
    power = np.abs(np.fft.fft2(noise.astype(np.float64))) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size) * size] * 2))
    rings = [(4, 8), (8, 16), (16, 32), (32, 64)]
    means = [power[(frequency >= a) & (frequency < b)].mean() for a, b in rings]
    slopes = np.diff(np.log2(means))
    np.testing.assert_allclose(slopes, -2 * exponent, atol=0.5)


def test_textures_are_periodic_in_size_and_kept_from_harm():
    bank = scenes.texture_bank(5, 3)
    assert bank.shape == (3, 256, 256, 3) and bank.dtype == np.uint8
    assert not bank.flags.writeable
    assert (bank[0] != bank[1]).any()
    np.testing.assert_array_equal(bank, scenes.texture_bank.__wrapped__(5, 3))


def test_homography_takes_corners_where_they_should_go():
    source = np.array([[0, 0], [10, 1], [12, 9], [-1, 8]], np.float64)
    target = np.array([[3, 2], [40, 5], [33, 30], [1, 28]], np.float64)
    m = scenes.homography(source, target)
    for (x, y), wanted in zip(source, target, strict=True):
        u, v, w = m @ [x, y, 1]
        np.testing.assert_allclose([u / w, v / w], wanted, atol=1e-9)


def test_sample_by_whole_pixels_is_slicing():
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    shift = np.array([[1, 0, 4], [0, 1, 6], [0, 0, 1]], np.float64)
    seen, alpha = scenes.sample(image, shift, (10, 12))
    np.testing.assert_allclose(seen, image[6:16, 4:16], atol=1e-3)
    np.testing.assert_array_equal(alpha, 1)


def test_sample_says_what_lies_outside():
    image = np.full((20, 30, 3), 200, np.uint8)
    shift = np.array([[1, 0, -5], [0, 1, 0], [0, 0, 1]], np.float64)
    _, alpha = scenes.sample(image, shift, (20, 40))
    np.testing.assert_array_equal(alpha[:, :4], 0)
    np.testing.assert_array_equal(alpha[:, 6:34], 1)
    np.testing.assert_array_equal(alpha[:, 36:], 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_sample_of_a_single_row_or_column_has_nothing_beside_it(rng, size):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    doubled = np.diag([0.5, 0.5, 1.0])
    seen, _ = scenes.sample(image, doubled, (2 * size[0], 2 * size[1]))
    wanted = image.astype(np.float64)
    for axis, n in enumerate(size):
        places = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
        along = partial(np.interp, places, np.arange(n))
        wanted = np.apply_along_axis(along, axis, wanted)
    np.testing.assert_allclose(seen, wanted, atol=0.3)


def test_sample_halfway_is_the_mean_of_neighbours():
    image = np.random.default_rng(2).integers(0, 256, (9, 9, 1), dtype=np.uint8)
    shift = np.array([[1, 0, 1.5], [0, 1, 2.0], [0, 0, 1]], np.float64)
    seen, _ = scenes.sample(image, shift, (5, 5))
    wanted = (image[2:7, 1:6].astype(float) + image[2:7, 2:7]) / 2
    np.testing.assert_allclose(seen, wanted, atol=1e-3)


def test_blur_of_a_point_is_the_binomial_kernel():
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4] = 16
    kernel = np.outer([1, 2, 1], [1, 2, 1])
    blurred = scenes.blur(image, 1)
    np.testing.assert_allclose(blurred[3:6, 3:6, 0], kernel)
    assert blurred.sum() == pytest.approx(16)
    np.testing.assert_allclose(scenes.blur(np.full((5, 7, 2), 3, np.float32), 4), 3, rtol=1e-6)


def test_photograph_hardly_changes_a_photo_at_strength_zero():
    image = np.random.default_rng(4).integers(0, 256, (40, 50, 3)).astype(np.float32)
    taken = scenes.photograph(np.random.default_rng(0), image, strength=0.0)
    assert taken.dtype == np.uint8
    # Contrast may still differ by the fixed tenth that keeps highlights from clipping.
    contrast = np.exp(-0.1)
    wanted = 255 * (0.5 + contrast * (image / 255 - 0.5))
    assert np.abs(taken - wanted).max() <= 3


@pytest.mark.parametrize("quad", [
    [(10, 20), (10, 90), (60, 90), (60, 20)],
    [(15, 22), (8, 95), (71, 88), (58, 12)],
])  # fmt: skip
def test_the_box_of_a_placed_thing_is_that_of_its_corners(quad):
    background = np.zeros((80, 110, 3), np.uint8)
    front = np.full((64, 48, 3), 255, np.uint8)
    quad = np.array(quad, np.float64)
    photo, alpha = scenes.place(background, front, quad)
    assert photo.shape == background.shape and photo.dtype == np.uint8
    box = scenes.mask_box(alpha)
    wanted = np.concatenate([quad.min(0), quad.max(0)])
    # A slanted corner covers less than half of its outermost pixels.
    np.testing.assert_allclose(box, wanted, atol=3)
    white = np.argwhere(photo[..., 0] >= 128)
    np.testing.assert_array_equal(box, [*white.min(0), *(white.max(0) + 1)])
    assert not background.any(), "the background was painted over"


def test_mask_box_is_half_open_and_none_for_nothing():
    mask = np.zeros((10, 12), np.uint8)
    assert scenes.mask_box(mask) is None
    mask[3:5, 7:11] = 255
    mask[0, 0] = 127
    assert scenes.mask_box(mask) == (3, 7, 5, 11)


def test_objects_and_places_differ_by_seed_alone():
    for render in (scenes.render_object, scenes.render_place):
        one, again, other = (render(np.random.default_rng(s), (90, 80)) for s in (1, 1, 2))
        assert one.shape == (90, 80, 3) and one.dtype == np.uint8
        np.testing.assert_array_equal(one, again)
        assert np.abs(one.astype(int) - other).mean() > 10


def test_every_kind_of_object_and_place_can_be_drawn():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        assert scenes.render_object(rng, (70, 50)).std() > 5
        assert scenes.render_place(rng, (64, 80)).std() > 3


def test_scene_has_as_many_things_as_leaves_ask_for():
    few, many = (
        scenes.render_scene(np.random.default_rng(0), (96, 96), leaves=n, contrast=0.0)
        for n in (3, 80)
    )
    colors = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in (few, many)]
    assert colors[0] <= 7 < colors[1]


def test_collection_is_complete(collection):
    n = 2 * 3 + 2
    assert [len(column) for column in collection[:4]] == [n] * 4
    assert len(set(collection.names)) == n
    assert collection.labels == [0, 0, 0, 1, 1, 1, -1, -1]
    for image, label, box in zip(
        collection.images, collection.labels, collection.boxes, strict=True
    ):
        assert image.shape == (96, 128, 3) and image.dtype == np.uint8
        assert (box is None) == (label == -1)
        if box is not None:
            top, left, bottom, right = box
            assert 0 <= top < bottom <= 96 and 0 <= left < right <= 128
    assert [collection.labels[i] for i, _ in collection.queries] == [0, 1]
    assert all(collection.boxes[i] == box for i, box in collection.queries)


def test_collection_is_the_same_for_the_same_seed(collection):
    again = scenes.render_collection(seed=3, objects=2, views=3, distractors=2, size=(96, 128))
    for one, other in zip(collection.images, again.images, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.boxes == collection.boxes and again.queries == collection.queries
    different = scenes.render_collection(seed=4, objects=1, views=1, distractors=0, size=(96, 128))
    assert (different.images[0] != collection.images[0]).mean() > 0.5


def test_more_views_leave_the_first_ones_as_they_were(collection):
    fewer = scenes.render_collection(seed=3, objects=1, views=2, distractors=1, size=(96, 128))
    np.testing.assert_array_equal(fewer.images[1], collection.images[1])
    np.testing.assert_array_equal(fewer.images[2], collection.images[6])


def test_an_empty_collection_and_one_of_distractors_only():
    assert scenes.render_collection(objects=0, distractors=0).images == []
    only = scenes.render_collection(objects=0, distractors=1, size=(64, 64))
    assert only.labels == [-1] and only.queries == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": -1}, "objects >= 0"),
        ({"views": 0}, "views >= 1"),
        ({"distractors": -2}, "distractors >= 0"),
        ({"size": (63, 200)}, "at least 64 pixels"),
    ],
)
def test_impossible_collections_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scenes.render_collection(**options)


def test_training_batch_depends_on_the_seed_alone():
    first, second = scenes.training_batch(np.random.default_rng([0, 5]), 3, 48)
    again = scenes.training_batch(np.random.default_rng([0, 5]), 3, 48)
    other = scenes.training_batch(np.random.default_rng([0, 6]), 3, 48)
    assert first.shape == second.shape == (3, 48, 48, 3)
    assert first.dtype == second.dtype == np.uint8
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert (first != other[0]).mean() > 0.5
    assert (first != second).mean() > 0.5


def test_training_pair_is_two_views_of_one_scene():
    one, other = scenes.training_pair(np.random.default_rng(0), 40)
    assert one.shape == other.shape == (40, 40, 3)
    assert one.dtype == other.dtype == np.uint8


def coloured_scenes(_rng, n, side, *_, **__):
    """Scenes whose colours tell where (red, green) in which scene (blue) a pixel lies."""
    y, x = np.mgrid[:side, :side]
    return [np.stack([y, x, np.full_like(x, 6 * i)], -1).astype(np.uint8) for i in range(n)]


def scene_shown(image):
    """Which scene most of a picture of `coloured_scenes` shows, by its blue."""
    return int(np.median(image[..., 2]))


@pytest.mark.parametrize(("n", "relatives"), [(1, 4), (2, 1), (5, 4), (12, 4), (30, 3)])
def test_no_photo_shows_what_another_query_outlines(n, relatives, monkeypatch):
    """Or it would be a negative of a query whose thing it shows."""
    monkeypatch.setattr(searches, "related_scenes", coloured_scenes)
    monkeypatch.setattr(searches, "photograph", lambda rng, image, **_: image.round())
    batch = scenes.search_batch(
        np.random.default_rng(n), n, (80, 80), (160, 160), relatives=relatives, several=1.0
    )
    own = [scene_shown(query) for query in batch.queries]
    assert len(set(own)) == n
    strangers = 0
    for i, photo in enumerate(batch.photos):
        shown, counts = np.unique(photo[..., 2], return_counts=True)
        # Where two scenes meet, colours mix, in a few pixels only.
        whole = set(shown[counts > 0.01 * photo[..., 2].size].tolist())
        assert own[i] in whole and not (whole - {own[i]}) & set(own), (i, whole)
        strangers += len(whole) > 1
    assert strangers > 0.5 * n, "hardly a photo shows anything beside its thing"


def test_a_search_shows_what_its_query_outlines_in_its_own_box(monkeypatch, rng):
    n = 12
    monkeypatch.setattr(searches, "related_scenes", coloured_scenes)
    monkeypatch.setattr(searches, "photograph", lambda rng, image, **_: image.round())
    batch = scenes.search_batch(rng, n, (80, 120), (160, 160), candidates=9)
    for i in range(n):
        low, high = (
            batch.queries[i, 3:-3, 3:-3, :2].min((0, 1)),
            batch.queries[i, ..., :2].max((0, 1)),
        )
        photo = batch.photos[i].astype(int)
        thing = ((photo[..., :2] >= low) & (photo[..., :2] <= high)).all(-1)
        thing &= photo[..., 2] == scene_shown(batch.queries[i])
        seen = scenes.mask_box(np.where(thing, 255, 0).astype(np.uint8))
        assert box_iou(np.asarray(seen), batch.boxes[i, 0]) > 0.7
        np.testing.assert_array_equal(batch.boxes[i, 1], [0, 0, 160, 160])
    assert (batch.boxes >= 0).all() and (batch.boxes <= 160).all()
    assert (batch.boxes[..., 2:] - batch.boxes[..., :2] > 1).all()
    np.testing.assert_allclose(batch.overlaps, box_iou(batch.boxes, batch.boxes[:, :1]), rtol=1e-5)
    assert (batch.overlaps[:, 2:] < 1).all() and batch.overlaps[:, 0].min() == 1


def test_pictures_of_a_seed_stay_as_they_were():
    """Mean brightness tells one picture from another; decoders of JPEG differ by less."""
    first, second = scenes.training_batch(np.random.default_rng([3, 1]), 3, 64)
    means = [*first.mean((1, 2, 3)), *second.mean((1, 2, 3))]
    np.testing.assert_allclose(means, [137.3, 101.3, 108.4, 115.6, 55.3, 123.0], atol=0.5)
    batch = scenes.search_batch(
        np.random.default_rng([3, 2]), 3, (64, 80), (112, 112), candidates=3
    )
    means = [*batch.queries.mean((1, 2, 3)), *batch.photos.mean((1, 2, 3))]
    np.testing.assert_allclose(means, [127.1, 72.1, 120.1, 111.2, 93.1, 109.4], atol=0.5)
    wanted = [[2.0, 0.0, 83.8, 112.0], [0.0, 0.0, 110.5, 112.0], [43.1, 15.8, 95.0, 79.0]]
    np.testing.assert_allclose(batch.boxes[:, 0], wanted, atol=0.1)


LOOKS = ("extreme", "several", "prints", "mishaps")


@pytest.mark.parametrize("look", LOOKS)
def test_every_look_changes_pictures_and_keeps_the_boxes_true(look, monkeypatch):
    """Prints have colours of their own."""
    n = 10
    monkeypatch.setattr(searches, "related_scenes", coloured_scenes)
    monkeypatch.setattr(searches, "photograph", lambda rng, image, **_: image.round())
    monkeypatch.setattr(searches, "hide_parts", lambda *_: None)
    monkeypatch.setattr(
        searches, "render_object", lambda rng, size: np.full((*size, 3), (0, 0, 255), np.uint8)
    )
    monkeypatch.setattr(searches, "render_place", lambda rng, size: np.zeros((*size, 3), np.uint8))
    rng = np.random.default_rng(8)
    batch = scenes.search_batch(rng, n, (80, 120), (160, 160), candidates=4, **{look: 1.0})
    plain = scenes.search_batch(np.random.default_rng(8), n, (80, 120), (160, 160), candidates=4)
    assert (batch.photos != plain.photos).any()
    sides = (batch.boxes[:, 0, 2:] - batch.boxes[:, 0, :2]) / 160
    if look == "extreme":
        assert (sides.max(1) < 0.4).any() and (sides.max(1) > 0.95).any()
    if look == "mishaps":  # Colours do not tell any more, and boxes are drawn as before.
        return
    hits = []
    for i in range(n):
        photo = batch.photos[i].astype(int)
        if look == "prints":
            thing = (photo[..., 2] > 200) & (photo[..., :2] < 30).all(-1)
        else:
            query = batch.queries[i].astype(int)
            low, high = query[3:-3, 3:-3, :2].min((0, 1)), query[..., :2].max((0, 1))
            thing = ((photo[..., :2] >= low) & (photo[..., :2] <= high)).all(-1)
            thing &= photo[..., 2] == scene_shown(query)
        seen = scenes.mask_box(np.where(thing, 255, 0).astype(np.uint8))
        hits.append(0.0 if seen is None else box_iou(np.asarray(seen), batch.boxes[i, 0]))
    assert np.mean(np.asarray(hits) > 0.7) >= 0.9, hits


def test_things_beside_leave_the_thing_in_sight(monkeypatch):
    monkeypatch.setattr(searches, "photograph", lambda rng, image, **_: image.round())
    size = (160, 160)
    shown = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = np.full((*size, 3), 255, np.float32)
        quad = searches._quad(rng, size, 1.0, 0.3)
        searches._put_beside(rng, image, quad, [np.zeros((240, 240, 3), np.uint8)])
        x, y = quad.mean(0).astype(int)
        shown.append(image[y - 8 : y + 8, x - 8 : x + 8].mean() / 255)
        assert image.min() < 10, "nothing was put there"
    assert np.mean(shown) > 0.8


def test_spoiled_photos_differ_in_the_ways_that_were_meant():
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (40, 50, 3)).astype(np.float32)
    np.testing.assert_array_equal(scenes.spoil(np.random.default_rng(1), image, 0.0), image)
    spoiled = [scenes.spoil(np.random.default_rng(s), image, 1.0) for s in range(40)]
    assert all(each.shape == image.shape and each.dtype == np.float32 for each in spoiled)
    assert 0.6 < np.mean([(each != image).any() for each in spoiled]) < 1.0
    shaken = mishaps._shaken(image, 3, 0.0)
    columns = np.pad(image.astype(np.float64), ((0, 0), (0, 3), (0, 0)), mode="edge")
    wanted = sum(columns[:, k : k + 50] for k in range(4)) / 4
    np.testing.assert_allclose(shaken, wanted, rtol=1e-5)
    smooth = np.broadcast_to(np.linspace(20, 200, 50, dtype=np.float32)[None, :, None], (40, 50, 3))
    coarse = mishaps._coarse(np.ascontiguousarray(smooth), 2.0)
    np.testing.assert_allclose(coarse[:, 4:-4], smooth[:, 4:-4], atol=4)
    assert mishaps._coarse(image, 3.0).std() < 0.8 * image.std()


def test_the_benchmark_is_the_same_for_the_same_seed_and_its_boxes_hold_the_things(monkeypatch):
    options = {"objects": 3, "views": 3, "distractors": 4, "size": (96, 128)}
    found = scenes.search_set(5, **options)
    again = scenes.search_set(5, **options)
    for one, other in zip(found.images, again.images, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.boxes == again.boxes and len(set(found.names)) == 3 * 3 + 4
    assert found.labels == [0] * 3 + [1] * 3 + [2] * 3 + [-1] * 4
    assert [found.labels[i] for i, _ in found.queries] == [0, 1, 2]
    assert (scenes.search_set(6, **options).images[0] != found.images[0]).any()
    heights = [box[2] - box[0] for box in found.boxes if box is not None]
    assert min(heights) < 30 and max(heights) > 60
    # Red things among grey ones: what is red, where nothing hides it, reaches the box's edges.
    pure = np.array([255, 0, 0], np.uint8)

    def front(seed, number, size):
        return np.full((40, 30, 3), pure if number < 3 else (90, 90, 90), np.uint8)

    monkeypatch.setattr(photos, "_front", front)
    monkeypatch.setattr(photos, "fill", lambda *_: None)
    monkeypatch.setattr(photos, "spoil", lambda rng, image, _: image)
    monkeypatch.setattr(photos, "photograph", lambda rng, image, **_: image.astype(np.uint8))
    monkeypatch.setattr(photos, "render_place", lambda rng, size: np.zeros((*size, 3), np.uint8))
    plain = scenes.search_set(5, **options)
    for image, box in zip(plain.images, plain.boxes, strict=True):
        red = (image[..., 0] > 128) & (image[..., 1] < 64)
        seen = scenes.mask_box(np.where(red, 255, 0).astype(np.uint8))
        assert (seen is None) == (box is None)
        if box is not None:
            np.testing.assert_allclose(seen, box, atol=1)


def test_an_impossible_benchmark_is_refused():
    with pytest.raises(ValueError, match="views >= 1"):
        scenes.search_set(views=0)
