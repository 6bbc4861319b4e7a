"""Images and masks as arrays: checked, blended, and compared pixel by pixel.

Images are uint8 (0 to 255) or float (0 to 1), (3, H, W) or (H, W, 3). Masks are
integer (H, W) ids of a label set, CamVid's unless `labels` is given. Both can be
tv_tensors, tensors on any device or arrays. Every function raises a ValueError if a
shape or a value is wrong.
"""

import numpy as np
import torch

from roadseg.classes import CAMVID, LabelSet, colorize

RIGHT, WRONG = (208, 212, 216), (213, 94, 0)
"""Colors of an error map; ignored pixels keep the color that they have in a mask."""

OUTCOMES: dict[str, tuple[tuple[int, int, int], str]] = {
    "True positive": ((0, 158, 115), ""),
    "False positive": ((213, 94, 0), "////"),
    "False negative": ((0, 114, 178), "\\\\\\\\"),
}
"""Color and hatching of what `tp_fp_fn` distinguishes; pass it to `legend`."""


def as_array(values) -> np.ndarray:
    """Return a tensor or a sequence as an array, bf16 as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        values = values.as_subclass(torch.Tensor).numpy()
    return np.asarray(values)


def as_rgb(image) -> np.ndarray:
    """Return an image as (H, W, 3) uint8."""
    rgb = as_array(image)
    if rgb.ndim != 3 or 3 not in (rgb.shape[0], rgb.shape[2]):
        raise ValueError(
            f"an image has the shape (3, H, W) or (H, W, 3), this one {rgb.shape}"
        )
    if rgb.shape[0] == 3:
        rgb = rgb.transpose(1, 2, 0)
    if rgb.dtype == np.uint8:
        return rgb
    if rgb.dtype.kind != "f" or rgb.min() < -1e-3 or rgb.max() > 1 + 1e-3:
        raise ValueError(
            "an image is uint8, or float between 0 and 1; this one is "
            f"{rgb.dtype}, {rgb.min():g} to {rgb.max():g} "
            "(if it is normalized, use unet.denormalize first)"
        )
    return np.round(rgb.clip(0, 1) * 255).astype(np.uint8)


def as_ids(mask, labels: LabelSet, size: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a mask as (H, W) uint8, checked to have a size if one is given."""
    ids = as_array(mask)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(
            "a mask holds integers and has the shape (H, W), this one "
            f"{ids.dtype} and {ids.shape}"
        )
    if size is not None and ids.shape != tuple(size):
        raise ValueError(f"the mask is {ids.shape}, what it belongs to {tuple(size)}")
    colorize(np.unique(ids), labels)  # raises for an id that is not in the set
    return ids.astype(np.uint8)


def overlay(image, mask, alpha: float = 0.55, labels: LabelSet = CAMVID) -> np.ndarray:
    """Blend the colors of a mask with an image.

    Args:
        image: An image.
        mask: Its mask, of the same height and width. Ignored pixels get darker.
        alpha: Weight of the mask's colors, 0 to 1.
        labels: The classes.

    Returns:
        (H, W, 3) uint8.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is between 0 and 1, not {alpha}")
    rgb = as_rgb(image)
    paint = colorize(as_ids(mask, labels, rgb.shape[:2]), labels)
    return np.round((1 - alpha) * rgb + alpha * paint).astype(np.uint8)


def error_map(truth, predicted, labels: LabelSet = CAMVID) -> np.ndarray:
    """Color each pixel by whether its prediction is right.

    Args:
        truth: A mask.
        predicted: A mask of the same size.
        labels: The classes.

    Returns:
        (H, W, 3) uint8: `WRONG` where they differ, `RIGHT` where they agree, and the
        color of ignored pixels where the truth is ignored.
    """
    truth = as_ids(truth, labels)
    wrong = as_ids(predicted, labels, truth.shape) != truth
    paint = np.where(wrong[..., None], WRONG, RIGHT)
    ignored = (truth == labels.ignore_index)[..., None]
    color = labels.palette()[labels.ignore_index]
    return np.where(ignored, color, paint).astype(np.uint8)


def tp_fp_fn(
    image, truth, predicted, class_id: int, labels: LabelSet = CAMVID
) -> np.ndarray:
    """Mark the true positives, false positives and false negatives of one class.

    The IoU of the class is the area of the first, over the area of all three. They
    are told apart by color and by hatching, as in `OUTCOMES`:

        plots.panel(ax, plots.tp_fp_fn(image, truth, predicted, 8), "Car")
        plots.legend(fig, plots.OUTCOMES)

    Args:
        image: An image, which is drawn in pale gray below.
        truth: Its mask. Ignored pixels are marked as none of the three.
        predicted: The predicted mask.
        class_id: The id of the class.
        labels: The classes.

    Returns:
        (H, W, 3) uint8.
    """
    if class_id not in labels.scored:
        raise ValueError(f"{class_id} is not the id of a scored class: {labels.scored}")
    rgb = as_rgb(image)
    truth = as_ids(truth, labels, rgb.shape[:2])
    predicted = as_ids(predicted, labels, truth.shape) == class_id
    known, true = truth != labels.ignore_index, truth == class_id
    gray = rgb @ np.array([0.299, 0.587, 0.114])
    out = np.repeat(110 + 0.55 * gray[..., None], 3, axis=2)
    y, x = np.indices(truth.shape)
    period = max(6, round(max(truth.shape) / 60))  # of the hatching, in pixels
    stripes = {"": x < 0, "/": (x + y) % period < period / 3,
               "\\": (x - y) % period < period / 3}  # fmt: skip
    regions = (true & predicted, known & ~true & predicted, true & ~predicted)
    for region, (color, hatch) in zip(regions, OUTCOMES.values(), strict=True):
        out[region] = color
        out[region & stripes[hatch[:1]]] = 255
    return np.round(out).astype(np.uint8)


def connected_components(mask: np.ndarray) -> np.ndarray:
    """Return (H, W) ids of the connected components (of 4 neighbors) of a mask."""
    ids = np.arange(mask.size).reshape(mask.shape)
    while True:
        before = ids
        ids = _largest_of_run(ids, mask)
        ids = _largest_of_run(ids.T, mask.T).T
        if (ids == before).all():
            return ids


def _largest_of_run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Give each row's runs of one class the largest id in them."""
    new = np.ones(mask.shape, bool)
    new[:, 1:] = mask[:, 1:] != mask[:, :-1]
    starts = np.flatnonzero(new)
    largest = np.maximum.reduceat(ids.ravel(), starts)
    lengths = np.diff(starts, append=mask.size)
    return np.repeat(largest, lengths).reshape(mask.shape)


def center(region: np.ndarray) -> tuple[int, int]:
    """Return the row and column of a region's pixel that is farthest from its edge."""
    inner = np.pad(region, 1)
    while inner.any():
        last = inner
        inner = inner & np.roll(inner, 1, 0) & np.roll(inner, -1, 0)
        inner = inner & np.roll(inner, 1, 1) & np.roll(inner, -1, 1)
    pixels = np.argwhere(last) - 1
    return tuple(pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()])
