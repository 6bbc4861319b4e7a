"""roadseg.measures: what is measured of one image and its mask."""

import numpy as np
import pytest
from PIL import Image

from roadseg import measures, synthetic
from roadseg.classes import CAMVID, LabelSet

SIZE = (96, 128)


@pytest.fixture(scope="module")
def drawn():
    """Gray images at half the size that is drawn, and masks at the full one."""
    return [
        (np.asarray(Image.fromarray(image).convert("L").reduce(2)), mask)
        for _, image, mask in synthetic.draw_scenes(4, (2 * SIZE[0], 2 * SIZE[1]), 3)
    ]


def shift_of(drawn, offset):
    """Return the estimate for masks moved by half pixels, down and right."""
    total = sum(
        measures.shift_correlation(gray, np.roll(mask, offset, (0, 1))[::2, ::2])
        for gray, mask in drawn
    )
    return measures.estimate_shift(total)


@pytest.mark.parametrize(
    "offset", [(1, 0), (0, 1), (-1, 0), (0, -1), (2, 2), (-4, 6), (10, -8)]
)
def test_a_shift_is_estimated_between_pixels(drawn, offset):
    zero, clear = shift_of(drawn, (0, 0))
    moved, _ = shift_of(drawn, offset)
    assert clear > 5
    assert moved - zero == pytest.approx(np.array(offset) / 2, abs=0.3)


def test_a_mask_without_borders_or_a_flat_image_has_no_shift(drawn):
    gray, mask = drawn[0]
    mask = mask[::2, ::2]
    assert measures.shift_correlation(gray, np.zeros_like(mask)) is None
    assert measures.shift_correlation(np.full_like(gray, 7), mask) is None
    assert measures.shift_correlation(gray[:20], mask[:20]) is None


def test_noise_has_no_clear_shift():
    rng = np.random.default_rng(0)
    gray, mask = (rng.integers(0, 12, SIZE, dtype=np.uint8) for _ in range(2))
    correlation = measures.shift_correlation(gray, mask)
    assert measures.estimate_shift(correlation)[1] < 5


def test_thin_borders_of_a_third_label():
    mask = np.zeros((5, 9), np.uint8)
    mask[:, 4], mask[:, 5:] = 3, 7
    pixels, invented, changes = measures.thin_borders(mask, CAMVID)
    assert (invented, changes) == (5, 10)
    np.testing.assert_array_equal(pixels, mask == 3)


@pytest.mark.parametrize(
    "row", [[0, 0, 3, 0, 0], [0, 3, 3, 3, 7], [0, 0, 11, 7, 7], [0, 0, 0, 7, 7]]
)
def test_poles_wide_regions_and_ignored_borders_are_no_invention(row):
    mask = np.array([row] * 4, np.uint8)
    assert measures.thin_borders(mask, CAMVID)[1] == 0


def test_two_pixels_wide_counts_too_also_along_columns():
    mask = np.array([[1], [1], [2], [2], [4], [4]], np.uint8)
    assert measures.thin_borders(mask, LabelSet(tuple("abcde")))[1] == 1


def test_a_mask_scaled_to_an_input_size_and_back():
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 10] = 2
    mask[:, 30:] = 5
    smaller = measures.resized_mask(mask, (20, 30))
    assert smaller.shape == mask.shape
    assert set(np.unique(smaller)) <= {0, 2, 5}
    assert (measures.resized_mask(mask, (40, 60)) == mask).all()
    mask[20:] = CAMVID.ignore_index  # these pixels count in no score
    right, true, predicted = measures.kept_at(mask, CAMVID, (10, 15))
    assert true[2] == 20
    assert right[2] in (0, 20)
    assert true.sum() == predicted.sum() == 20 * 60
