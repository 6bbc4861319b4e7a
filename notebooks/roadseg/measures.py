"""Measures and figures of images with masks, from which `doctor` makes its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from roadseg import inference, paint
from roadseg.classes import LabelSet
from roadseg.files import DatasetError
from roadseg.images import load_image, load_mask
from roadseg.pairs import Problems
from roadseg.report import Figure

REACH = 8
"""The largest shift that is looked for, in pixels."""


@dataclass
class Measures:
    """What is kept of an image and its mask."""

    split: str
    image: Path
    mask: Path
    size: tuple[int, int]
    counts: np.ndarray  # (256,) pixels of each id
    thin: np.ndarray  # (256,) those in thin borders
    borders: tuple[int, int]  # thin ones, and all changes of the label
    shift: np.ndarray | None  # (2 * REACH + 1,) * 2 correlations
    small: np.ndarray  # (768,) the image at 24 x 32
    kept: np.ndarray  # (3, 256) pixels right, true, and predicted at the input size

    @property
    def name(self) -> str:
        """The image's file, with its folder."""
        return f"{self.image.parent.name}/{self.image.name}"


def measure(
    split: str,
    labels: LabelSet,
    input_size: tuple[int, int] | None,
    problems: Problems,
    image_path: Path,
    mask_path: Path,
) -> Measures | None:
    """Measure a scene; None if a file is wrong, which is added to `problems`."""
    loaded = []
    for path, load in ((image_path, load_image), (mask_path, load_mask)):
        try:
            loaded.append(load(path) if load is load_image else load(path, labels))
        except DatasetError as error:
            problems.add(path, error)
    if len(loaded) < 2:
        return None
    rgb, mask = loaded[0].permute(1, 2, 0).numpy(), loaded[1].numpy()
    if rgb.shape[:2] != mask.shape:
        problems.add(mask_path, "has another size than its image")
        return None
    gray = np.asarray(Image.fromarray(rgb).convert("L"))
    thin = border_labels(mask, labels)
    return Measures(
        split,
        image_path,
        mask_path,
        mask.shape,
        np.bincount(mask.ravel(), minlength=256),
        np.bincount(mask[thin.pixels], minlength=256),
        (thin.invented, thin.changes),
        shift_correlation(gray, mask),
        miniature(gray),
        resized(mask, labels, input_size) if input_size else np.zeros((3, 256)),
    )


@dataclass(frozen=True)
class BorderLabels:
    """Where labels change, and what is between two others.

    Attributes:
        pixels: (H, W) bool, pixels in a run of one or two pixels, along a row or a
            column, between two labels that differ from it and from each other.
        invented: Number of these runs.
        changes: Number of neighboring pixels with different labels.
    """

    pixels: np.ndarray
    invented: int
    changes: int

    @property
    def share(self) -> float:
        """Share of the changes that have a third label between, 0 to 1."""
        return self.invented / max(1, self.changes)


def border_labels(mask: np.ndarray, labels: LabelSet) -> BorderLabels:
    """Find thin borders of a third label between two others.

    Interpolation between the ids 3 and 9 gives ids in between, and so does a color
    that is a mixture of two. Right masks have few: poles are thin, but have the same
    label on both sides. Borders of ignored pixels are left out, because they are drawn
    on purpose.
    """
    pixels, invented, changes = np.zeros(mask.shape, bool), 0, 0
    for m, out in ((mask, pixels), (mask.T, pixels.T)):
        changes += int((m[:, 1:] != m[:, :-1]).sum())
        for length in (1, 2):
            end = m.shape[1] - length - 1
            if end < 1:
                continue
            before, inside, after = m[:, :end], m[:, 1 : end + 1], m[:, length + 1 :]
            run = (before != after) & (inside != before) & (inside != after)
            run &= (inside == m[:, length : end + length]) & (
                inside != labels.ignore_index
            )
            invented += int(run.sum())
            for i in range(1, length + 1):
                out[:, i : end + i] |= run
    return BorderLabels(pixels, invented, changes)


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


def miniature(gray: np.ndarray) -> np.ndarray:
    """Return an image at 24 x 32 without its coarse brightness, of length one."""
    image = Image.fromarray(gray).resize((32, 24), Image.Resampling.BOX).convert("F")
    coarse = image.resize((4, 3), Image.Resampling.BOX)
    small = np.asarray(image) - np.asarray(coarse.resize((32, 24)))
    small = small.ravel() - small.mean()
    return small / max(np.linalg.norm(small), 1e-6)


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask scaled to an input size and back, by its nearest pixels."""
    image = Image.fromarray(mask)
    for height, width in (inference.input_size_for(mask.shape, size), mask.shape):
        image = image.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image)


def resized(mask: np.ndarray, labels: LabelSet, size: tuple[int, int]) -> np.ndarray:
    """Return (3, 256) counts after `resized_mask`: right, true and predicted pixels."""
    labeled = mask != labels.ignore_index
    truth, back = mask[labeled], resized_mask(mask, size)[labeled]
    kinds = (truth[truth == back], truth, back)
    return np.array([np.bincount(kind, minlength=256) for kind in kinds])


# ---- Figures of the page ----------------------------------------------------------


def load_scene(scene: Measures, labels: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """Return image (H, W, 3) and mask (H, W) as arrays."""
    image = load_image(scene.image).permute(1, 2, 0).numpy()
    return image, load_mask(scene.mask, labels).numpy()


def _magnified(image: np.ndarray, where: tuple[int, int]) -> np.ndarray:
    """Return the surroundings of a pixel, 64 x 96 pixels, six times as large."""
    starts = [
        max(0, min(at - side // 2, full - side))
        for at, side, full in zip(where, (64, 96), image.shape[:2], strict=True)
    ]
    part = image[starts[0] : starts[0] + 64, starts[1] : starts[1] + 96]
    return part.repeat(6, 0).repeat(6, 1)


def _densest(pixels: np.ndarray) -> tuple[int, int]:
    """Return the center of the part of a mask with most of some pixels."""
    step = max(1, min(pixels.shape) // 8)
    density = np.asarray(Image.fromarray(pixels.astype(np.uint8) * 255).reduce(step))
    row, column = np.unravel_index(density.argmax(), density.shape)
    return int((row + 0.5) * step), int((column + 0.5) * step)


def _edges(mask: np.ndarray) -> np.ndarray:
    edges = np.zeros(mask.shape, bool)
    edges[1:] |= mask[1:] != mask[:-1]
    edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return edges


def border_figure(scene: Measures, labels: LabelSet) -> Figure:
    """Show the part of a mask with most borders that have a third label."""
    image, mask = load_scene(scene, labels)
    colors = paint.overlay(image, mask, 1, labels)
    where = _densest(border_labels(mask, labels).pixels)
    words = "The mask magnified where most borders have a third label between"
    return Figure(_magnified(colors, where), scene.name, f"{words}: {scene.name}")


def edge_figure(scene: Measures, labels: LabelSet, closer: bool = False) -> Figure:
    """Show an image, or the part with most borders, with the borders of its mask."""
    image, mask = load_scene(scene, labels)
    image = paint.overlay(image, mask, 0.25, labels)
    if closer:
        where = _densest(_edges(mask))
        image, mask = _magnified(image, where), _magnified(mask, where)
    image[_edges(mask)] = (255, 0, 255)
    words = f"The image {'magnified ' if closer else ''}with the borders of its mask"
    return Figure(image, scene.name, f"{words} in magenta: {scene.name}")


def pair_figures(items: list[tuple[float, Measures, Measures]]) -> list[Figure]:
    """Show images beside those of another split."""
    figures = []
    for level, *pair in items:
        for scene, other in zip(pair, pair[::-1], strict=True):
            image = load_image(scene.image).permute(1, 2, 0).numpy()
            words = f"{scene.name}, correlation {level:.3f} with {other.name}"
            figures.append(Figure(image, words, f"The image {words}"))
    return figures


def lost_figure(scene: Measures, labels: LabelSet, size: tuple[int, int]) -> Figure:
    """Show which pixels an input size changes."""
    mask = load_scene(scene, labels)[1]
    image = paint.error_map(mask, resized_mask(mask, size), labels)
    words = "Pixels whose label changes, in orange"
    return Figure(image, scene.name, f"{words}: {scene.name}")
