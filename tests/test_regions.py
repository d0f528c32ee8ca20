"""R-MAC's grid against exact fractions, and the way between cells and pixels."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmacjax.regions import (
    box_iou,
    boxes_to_px,
    check_box_px,
    max_regions,
    px_to_cells,
    rmac_regions,
)

sides = st.integers(1, 64)


@pytest.mark.parametrize(
    ("h", "w", "count"),
    [(24, 24, 14), (24, 32, 20), (32, 24, 20), (24, 36, 20), (24, 48, 26), (24, 96, 44)],
)
def test_the_published_numbers_of_regions(h, w, count):
    assert rmac_regions(h, w).shape == (count, 4)


def test_the_grid_of_a_small_map_by_hand():
    # 4 x 6: overlaps for m = 2, 3, .. are 1 - 2/4, 1 - 1/4, ..: m = 2. Sides 4, 2 (floor 8/3), 2.
    expected = [[0, 0, 4, 4], [0, 2, 4, 6]]
    expected += [[y, x, y + 2, x + 2] for y in (0, 2) for x in (0, 2, 4)]
    expected += [[y, x, y + 2, x + 2] for y in (0, 1, 2) for x in (0, 1, 2, 4)]
    assert rmac_regions(4, 6).tolist() == expected


@given(sides, sides, st.integers(1, 5))
def test_the_grid_equals_exact_fractions(h, w, levels):
    assert rmac_regions(h, w, levels).tolist() == oracles.rmac_regions(h, w, levels).tolist()


def test_ties_and_floors_are_decided_by_exact_arithmetic():
    # Overlaps of 0.2 and 0.6 are equally far from 0.4, so the first m wins; 20 x 36 is 5 : 9.
    for h, w in [(5, 9), (20, 36), (36, 20), (30, 54)]:
        assert len(rmac_regions(h, w)) == 20
    # In floats 7 * (61 / 7) falls short of 61, and the last region of scale 2 short of the border.
    assert rmac_regions(2, 62)[7 : 7 + 16, 3].max() == 62


@given(sides, sides)
def test_every_map_has_regions_inside_it_that_reach_its_borders(h, w):
    boxes = rmac_regions(h, w)
    assert boxes.dtype == np.int32
    assert 1 <= len(boxes) <= max_regions(3)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes[:, 2].max() == h and boxes[:, 3].max() == w
    assert boxes[:, :2].min(axis=0).tolist() == [0, 0]
    heights = boxes[:, 2] - boxes[:, 0]
    assert (heights == boxes[:, 3] - boxes[:, 1]).all()
    assert (np.diff(heights) <= 0).all(), "coarse to fine"


@given(sides, sides)
def test_a_portrait_map_has_the_landscape_grid_turned(h, w):
    turned = rmac_regions(w, h)[:, [1, 0, 3, 2]]
    assert sorted(turned.tolist()) == sorted(rmac_regions(h, w).tolist())


@given(st.integers(1, 8))
def test_the_largest_grid_is_reached_by_long_maps_and_never_exceeded(levels):
    assert len(rmac_regions(64, 64 * 9, levels)) == max_regions(levels)
    assert max_regions(3) == 50


def test_the_grid_is_remembered_and_cannot_be_changed():
    assert rmac_regions(6, 8) is rmac_regions(6, 8, 3)
    with pytest.raises(ValueError, match="read-only"):
        rmac_regions(6, 8)[0, 0] = 1


@given(sides, sides, st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_cells_to_pixels_and_back_is_the_same_box(h, w, height, width, data):
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    bottom, right = data.draw(st.integers(top + 1, h)), data.draw(st.integers(left + 1, w))
    box = np.array([[top, left, bottom, right]])
    px = boxes_to_px(box, (h, w), (height, width))
    expected = [top * height / h, left * width / w, bottom * height / h, right * width / w]
    assert px.dtype == np.float64
    np.testing.assert_allclose(px[0], expected, rtol=1e-12)
    cells = px_to_cells(px, (h, w), (height, width))
    assert cells.dtype == np.int32
    assert cells.tolist() == box.tolist()


def test_the_whole_map_is_the_whole_image():
    boxes = np.array([[0, 0, 24, 32], [0, 0, 30, 40]])
    assert boxes_to_px(boxes, (24, 32), (768, 1000)).tolist() == [[0, 0, 768, 1000]] * 2


def test_pixels_become_the_cells_they_touch():
    size, image = (4, 8), (128, 256)
    assert px_to_cells(np.array([33, 0, 64, 65]), size, image).tolist() == [1, 0, 2, 3]
    assert px_to_cells(np.array([127.5, 255, 128, 256]), size, image).tolist() == [3, 7, 4, 8]
    assert px_to_cells(np.array([-9, -9, 900, 900]), size, image).tolist() == [0, 0, 4, 8]
    empty = np.array([[64, 64, 64, 64], [128, 256, 128, 256], [500, 500, 600, 600]])
    assert px_to_cells(empty, size, image).tolist() == [[2, 2, 3, 3], [3, 7, 4, 8], [3, 7, 4, 8]]


small = st.integers(0, 6)


@given(st.tuples(small, small, small, small), st.tuples(small, small, small, small))
def test_intersection_over_union_counts_cells(a, b):
    expected = oracles.iou(a, b)
    assert box_iou(np.array(a), np.array(b)) == pytest.approx(expected)
    both = box_iou(np.array([a, b])[:, None], np.array([a, b])[None])
    assert both.shape == (2, 2)
    np.testing.assert_allclose(both, both.T)


def test_a_good_box_is_rounded_outward():
    assert check_box_px((1.5, 2, 3.2, 4), (10, 20)) == (1, 2, 4, 4)
    assert check_box_px(np.array([0.0, 0.0, 10.0, 20.0]), (10, 20)) == (0, 0, 10, 20)
    assert all(type(edge) is int for edge in check_box_px(np.array([1, 2, 3, 4]), (10, 20)))


@pytest.mark.parametrize(
    ("box", "sentence"),
    [
        ((3, 2, 3, 4), "top 3, left 2, bottom 3 and right 4 is empty or upside down"),
        ((3, 4, 5, 2), "is empty or upside down; its top must lie above its bottom"),
        ((0, 0, 11, 4), "outside the image, which is 10 pixels high and 20 wide"),
        ((-1, 0, 5, 4), "outside the image"),
        ((0, 0, 5, 20.01), "outside the image"),
        (
            (0, 0, 5),
            r"four numbers, top, left, bottom and right, in pixels; this one is \[0",
        ),
        ((0, 0, float("nan"), 1), "four numbers"),
    ],
)
def test_a_bad_box_is_refused_with_a_sentence(box, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_box_px(box, (10, 20))


def test_bad_sizes_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="at least 1 x 1 cells, but this one is 0 x 5"):
        rmac_regions(0, 5)
    with pytest.raises(ValueError, match="at least one level, but levels is 0"):
        rmac_regions(5, 5, 0)
    with pytest.raises(ValueError, match="at least one level"):
        max_regions(0)
    with pytest.raises(ValueError, match="both are \\(height, width\\) and at least 1 x 1"):
        boxes_to_px(np.array([0, 0, 1, 1]), (0, 3), (100, 100))
    with pytest.raises(ValueError, match="NaN or infinite edges"):
        px_to_cells(np.array([0, 0, np.inf, 1]), (3, 3), (100, 100))
