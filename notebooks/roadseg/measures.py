"""What is measured of an image and its mask, from which `doctor` makes its report."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from roadseg import inference
from roadseg.classes import LabelSet

REACH = 8
"""The largest shift that is looked for, in pixels."""


def thin_borders(mask: np.ndarray, labels: LabelSet) -> tuple[np.ndarray, int, int]:
    """Find thin borders of a third label between two others.

    Interpolation between the ids 3 and 9 gives ids in between, and so does a color
    that is a mixture of two. Right masks have few: poles are thin, but have the same
    label on both sides. Borders of ignored pixels are left out, because they are drawn
    on purpose.

    Returns:
        The pixels (H, W) bool in runs of one or two, along a row or a column, between
        two labels that differ from them and from each other; the number of these
        runs; and the number of neighboring pixels with different labels.
    """
    pixels, invented, changes = np.zeros(mask.shape, bool), 0, 0
    for m, out in ((mask, pixels), (mask.T, pixels.T)):
        changes += int((m[:, 1:] != m[:, :-1]).sum())
        for length in (1, 2):
            end = max(0, m.shape[1] - length - 1)
            before, first, after = m[:, :end], m[:, 1 : end + 1], m[:, length + 1 :]
            run = (before != after) & (first != before) & (first != after)
            run &= first == m[:, length : end + length]
            run &= first != labels.ignore_index
            invented += int(run.sum())
            for i in range(1, length + 1):
                out[:, i : end + i] |= run
    return pixels, invented, changes


def shift_correlation(gray: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Correlate the edges of an image with the borders of its mask, for all shifts.

    Returns:
        (2 * REACH + 1, 2 * REACH + 1) correlations; the entry in the middle is that
        of no shift, those further down and right of masks that are too low and too
        far right. None if image or mask is too small or has no edges.
    """
    if min(mask.shape) < 4 * REACH:
        return None
    window = tuple(
        slice(max(0, side // 2 - 512), side // 2 + 512) for side in mask.shape
    )
    level = np.sqrt(gray[window].astype(np.float32))
    mask = mask[window].astype(np.int16)
    total = np.zeros((2 * REACH + 1,) * 2)
    for axis in (0, 1):  # between neighbors in a column, and in a row
        edges = np.abs(np.diff(level, axis=axis))
        edges = np.minimum(edges, np.quantile(edges, 0.95))
        borders = (np.diff(mask, axis=axis) != 0).astype(np.float32)
        if edges.std() < 1e-3 or not borders.any():
            return None
        edges = (edges - edges.mean()) / edges.std()
        borders = (borders - borders.mean()) / borders.std()
        padded = [side + 2 * REACH for side in edges.shape]
        spectrum = np.fft.rfft2(borders, padded) * np.conj(np.fft.rfft2(edges, padded))
        around = np.arange(-REACH, REACH + 1)
        total += np.fft.irfft2(spectrum, padded)[np.ix_(around, around)] / edges.size
    return total / 2


def estimate_shift(correlation: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the shift, rows down and columns right, and how clear its peak is.

    The peak's position between pixels is that of a parabola through its neighbors; its
    height is in standard deviations of the correlations farther away.
    """
    top = np.unravel_index(correlation.argmax(), correlation.shape)
    shift = []
    for axis, at in enumerate(top):
        line, part = np.moveaxis(correlation, axis, 0)[:, top[1 - axis]], 0.0
        if 0 < at < 2 * REACH:
            a, b, c = line[at - 1 : at + 2]
            part = (a - c) / (2 * (a - 2 * b + c) or 1)
        shift.append(at + part - REACH)
    return np.array(shift), clearness(correlation, top)


def clearness(correlation: np.ndarray, at: Sequence[int]) -> float:
    """Return how far a correlation stands out from those 4 pixels away and more."""
    rows, columns = np.indices(correlation.shape)
    far = np.maximum(abs(rows - at[0]), abs(columns - at[1])) > 3
    rest = correlation[far]
    return float((correlation[tuple(at)] - rest.mean()) / (rest.std() or 1))


def miniature(gray: Image.Image) -> np.ndarray:
    """Return an image at 24 x 32 without its coarse brightness, of length one."""
    image = gray.resize((32, 24), Image.Resampling.BOX).convert("F")
    coarse = image.resize((4, 3), Image.Resampling.BOX).resize((32, 24))
    small = (np.asarray(image) - np.asarray(coarse)).ravel()
    small = small - small.mean()
    return small / max(np.linalg.norm(small), 1e-6)


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask scaled to an input size and back, by its nearest pixels."""
    image = Image.fromarray(mask)
    for height, width in (inference.input_size_for(mask.shape, size), mask.shape):
        image = image.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image)


def kept_at(mask: np.ndarray, labels: LabelSet, size: tuple[int, int]) -> np.ndarray:
    """Return (3, 256) counts after `resized_mask`: right, true and predicted pixels."""
    labeled = mask != labels.ignore_index
    truth, back = mask[labeled], resized_mask(mask, size)[labeled]
    kinds = (truth[truth == back], truth, back)
    return np.array([np.bincount(kind, minlength=256) for kind in kinds])
