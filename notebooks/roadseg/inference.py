"""Predictions at an image's own size, from any network and for images of any size.

A network is any `nn.Module` that turns normalized images (N, 3, H, W) into logits
(N, C, H, W), one channel for each class of its label set; H and W are multiples of
`unet.STRIDE`. Logits are upsampled to the image's size, never labels. The ignored
class is never predicted.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from roadseg import runtime
from roadseg.classes import CAMVID, LabelError, LabelSet
from roadseg.metrics import Scenes, Scores, compute_scores
from roadseg.unet import STRIDE, forward_padded, normalize

MAX_INPUT_PIXELS = 2**20
"""Pixels that a network gets unless an input size is asked for.

Our U-Net needs about 1.3 kB for each. A larger image is scaled down first: a photo of
4000 x 3000 would take 15 GB, and show everything many times larger than in training.
"""

STRIP_VALUES = 2**23
"""Probabilities that are held at a time at an image's own size (32 MB in float32)."""


def input_size_for(
    image_size: Sequence[int], input_size: Sequence[int] | None = None
) -> tuple[int, int]:
    """Return the height and width at which a network gets an image.

    A network recognizes objects best at the size at which it learned them. Therefore
    an image is scaled to the area of the network's input size. Where the proportions
    differ by less than a tenth, it gets exactly that size, otherwise the image keeps
    its own proportions.

    Args:
        image_size: Height and width of the image, in pixels.
        input_size: Height and width at which the network was trained, in pixels.
            None takes the image's own size, scaled down to `MAX_INPUT_PIXELS`.

    Raises:
        ValueError: If a side is not positive.
    """
    if min(image_size) < 1 or (input_size is not None and min(input_size) < 1):
        raise ValueError(
            f"sides must be positive, but the image is {tuple(image_size)} and the "
            f"input size {input_size}"
        )
    height, width = image_size
    own = width / height
    area = min(height * width, MAX_INPUT_PIXELS)
    if input_size is not None:
        area = input_size[0] * input_size[1]
        if 0.9 < own / (input_size[1] / input_size[0]) < 1.1:
            return int(input_size[0]), int(input_size[1])
    elif area == height * width and max(image_size) <= MAX_INPUT_PIXELS // STRIDE:
        return int(height), int(width)
    # a strip one pixel high is padded to STRIDE: keep its padded area bounded too
    longest = max(1, max(area, MAX_INPUT_PIXELS) // STRIDE)
    sides = ((area / own) ** 0.5, (area * own) ** 0.5)
    return tuple(min(max(1, round(side)), longest) for side in sides)


@torch.no_grad()
def predict_probabilities(
    model: nn.Module,
    images: Tensor,
    input_size: Sequence[int] | None = None,
    hflip_tta: bool = False,
    labels: LabelSet = CAMVID,
) -> Tensor:
    """Return the probability of each scored class at each pixel.

    Args:
        model: A network; it predicts on the device of its weights.
        images: (N, 3, H, W) uint8, or float 0 to 1.
        input_size: See `input_size_for`, which decides at what size the network gets
            the images.
        hflip_tta: Test-time augmentation: also predict the images flipped
            horizontally, and average the probabilities.
        labels: The network's classes.

    Returns:
        (N, num_scored, H, W) float32 at the images' own size, on the model's device.
        Channel k is class `labels.scored[k]`; each pixel sums to 1.

    Raises:
        ValueError: If the images or the network's output have a wrong shape.
        LabelError: If the network has another number of classes than `labels`.
    """
    height, width = images.shape[-2:]
    logits = _logits(model, images, input_size, hflip_tta, labels)
    shape = (len(images), labels.num_scored, height, width)
    out = torch.empty(shape, device=logits[0].device)
    for top, rows in _strips(logits, (height, width), labels, softmax=True):
        out[:, :, top : top + rows.shape[2]] = rows
    return out


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    input_size: Sequence[int] | None = None,
    hflip_tta: bool = False,
    labels: LabelSet = CAMVID,
) -> Tensor:
    """Return the most probable class at each pixel.

    Logits are upsampled in horizontal strips, so the memory does not grow with the
    size of the images, except for the images and masks themselves. The result does not
    depend on the height of the strips (with `hflip_tta`, but for ties by rounding).

    Args:
        model, images, input_size, hflip_tta, labels: See `predict_probabilities`.

    Returns:
        (N, H, W) uint8 ids of scored classes, on the CPU, at the images' own size.
    """
    height, width = images.shape[-2:]
    logits = _logits(model, images, input_size, hflip_tta, labels)
    masks = torch.empty(len(images), height, width, dtype=torch.uint8)
    for top, rows in _strips(logits, (height, width), labels, softmax=False):
        masks[:, top : top + rows.shape[2]] = _most_probable(rows, labels)
    return masks


@torch.no_grad()
def predict_tiled(
    model: nn.Module,
    image: Tensor,
    tile: tuple[int, int],
    overlap: int | None = None,
    input_size: Sequence[int] | None = None,
    hflip_tta: bool = False,
    labels: LabelSet = CAMVID,
) -> Tensor:
    """Predict a large image tile by tile, and blend the tiles where they overlap.

    Each tile shows its part at full resolution. In an overlap the weight of one tile
    falls linearly while that of the next rises, so no seam shows.

    Args:
        model, hflip_tta, labels: See `predict_probabilities`.
        image: (3, H, W) uint8, or float 0 to 1.
        tile: Height and width of a tile, in pixels of the image; best the size at
            which the network was trained.
        overlap: Pixels that neighboring tiles share at least; without it, a quarter of
            the smaller side of a tile.
        input_size: See `input_size_for`, here for one tile. None does not resize.

    Returns:
        (H, W) uint8 ids of scored classes, on the CPU.

    Raises:
        ValueError: If a size is wrong.
    """
    height, width = image.shape[-2:]
    overlap = min(tile) // 4 if overlap is None else overlap
    if not 0 <= overlap < min(tile):
        raise ValueError(f"the overlap {overlap} is not from 0 to the side of {tile}")
    tall, tops = _tile_weights(height, tile[0], overlap)
    wide, lefts = _tile_weights(width, tile[1], overlap)
    mask = torch.empty(height, width, dtype=torch.uint8)
    # Work goes down the image in lanes of a few tiles, which bounds the memory. A tile
    # across the border of two lanes is predicted for both.
    affordable = 8 * STRIP_VALUES // (labels.num_scored * tall.shape[1])
    step = max(1, affordable // wide.shape[1])
    for left, right in itertools.pairwise([*lefts[::step], width]):
        total = torch.zeros(labels.num_scored, tall.shape[1], right - left)
        for i, (top, bottom) in enumerate(itertools.pairwise([*tops, height])):
            for j, start in enumerate(lefts):
                a, b = max(start, left), min(start + wide.shape[1], right)
                if a >= b:
                    continue
                crop = image[:, top : top + tall.shape[1], start:][..., : wide.shape[1]]
                p = predict_probabilities(
                    model, crop[None], input_size, hflip_tta, labels
                )
                p = p[0].cpu() * (tall[i][:, None] * wide[j])
                total[..., a - left : b - left] += p[..., a - start : b - start]
            done = total[:, : bottom - top]  # no later tile reaches these rows
            mask[top:bottom, left:right] = _most_probable(done[None], labels)[0]
            total = F.pad(total[:, bottom - top :], (0, 0, 0, bottom - top))
    return mask


def _tile_weights(length: int, tile: int, overlap: int) -> tuple[Tensor, list[int]]:
    """Return the weights (tiles, pixels) of tiles along one side, and their starts.

    At each pixel, the weights of all tiles sum to 1.
    """
    tile = min(tile, length)
    steps = -(-(length - tile) // max(1, tile - overlap))
    starts = [i * (length - tile) // max(1, steps) for i in range(steps + 1)]
    ramp = torch.arange(tile) + 0.5
    tent = torch.minimum(ramp, tile - ramp)
    total = torch.zeros(length)
    for start in starts:
        total[start : start + tile] += tent
    return torch.stack([tent / total[s : s + tile] for s in starts]), starts


# ---- Scenes -----------------------------------------------------------------------


def predict_scenes(
    model: nn.Module,
    scenes: Scenes,
    input_size: Sequence[int] | None = None,
    hflip_tta: bool = False,
    batch_size: int = 4,
) -> list[Tensor]:
    """Predict all scenes, with a progress bar.

    Args:
        model, input_size, hflip_tta: See `predict_probabilities`.
        scenes: Images, and the label set of the network.
        batch_size: Images at a time; fewer if they are large.

    Returns:
        One (H, W) uint8 mask for each scene.
    """
    return list(_predictions(model, scenes, input_size, hflip_tta, batch_size))


def evaluate(
    model: nn.Module,
    scenes: Scenes,
    input_size: Sequence[int] | None = None,
    hflip_tta: bool = False,
    batch_size: int = 4,
) -> Scores:
    """Predict scenes like `predict_scenes`; score them at the size of their masks."""
    masks = _predictions(model, scenes, input_size, hflip_tta, batch_size)
    return compute_scores(scenes.masks, masks, scenes.labels)


def _predictions(
    model: nn.Module, scenes: Scenes, input_size, hflip_tta: bool, batch_size: int
) -> Iterator[Tensor]:
    images = runtime.progress(scenes.images, "predict", total=len(scenes.images))
    for batch in _batches(images, input_size, batch_size):
        yield from predict(
            model, torch.stack(batch), input_size, hflip_tta, scenes.labels
        )


def _batches(
    images: Iterable[Tensor], input_size, batch_size: int
) -> Iterator[list[Tensor]]:
    """Cut images, in their order, into batches of one shape and bounded memory."""
    batch: list[Tensor] = []
    for image in images:
        height, width = input_size_for(image.shape[-2:], input_size)
        most = min(batch_size, max(1, MAX_INPUT_PIXELS // (height * width)))
        if batch and (len(batch) >= most or image.shape != batch[0].shape):
            yield batch
            batch = []
        batch.append(image.as_subclass(Tensor))
    if batch:
        yield batch


# ---- The network ------------------------------------------------------------------


def _logits(
    model: nn.Module, images: Tensor, input_size, hflip_tta: bool, labels: LabelSet
) -> list[Tensor]:
    """Return the logits (N, C, h, w) at the input size, and those of the flipped."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images have the shape (N, 3, H, W), not {tuple(images.shape)}"
        )
    weights = itertools.chain(model.parameters(), model.buffers())
    device = next((tensor.device for tensor in weights), images.device)
    size = input_size_for(images.shape[-2:], input_size)
    x = _resize(images.as_subclass(Tensor).to(device), size)
    x = normalize(x).to(memory_format=torch.channels_last)
    with _evaluating(model), runtime.autocast(device):
        found = [_checked(forward_padded(model, x), labels)]
        if hflip_tta:
            flipped = forward_padded(model, x.flip(-1))
            found.append(_checked(flipped, labels).flip(-1))
    return found


def _checked(logits: Tensor, labels: LabelSet) -> Tensor:
    if logits.shape[1] != labels.num_classes:
        raise LabelError(
            f"the network has {logits.shape[1]} output channels, but the label set "
            f"has {labels.num_classes} classes: give the labels it was trained with"
        )
    return logits


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode; give each module its own mode back, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, 3, H, W) with antialiasing; large images in horizontal strips."""
    height, width = images.shape[-2:]
    if (height, width) == tuple(size):
        return images
    rows = max(1, STRIP_VALUES // (len(images) * 3 * width))
    if rows < height:  # first the width alone, for which rows are independent
        images = torch.cat(
            [
                v2.functional.resize(
                    strip.contiguous(), [strip.shape[-2], size[1]], antialias=True
                )
                for strip in images.split(rows, dim=-2)
            ],
            dim=-2,
        )
    return v2.functional.resize(images, list(size), antialias=True)


def _strips(
    logits: list[Tensor], size: tuple[int, int], labels: LabelSet, softmax: bool
) -> Iterator[tuple[int, Tensor]]:
    """Yield strips of (N, num_scored, rows, W), and where they start.

    They hold probabilities, or plain logits if neither `softmax` nor an average is
    asked for.
    """
    height, width = size
    rows = max(1, STRIP_VALUES // (len(logits[0]) * labels.num_scored * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        parts = [_upsample(z, top, bottom, size, labels) for z in logits]
        if softmax or len(parts) > 1:
            parts = [part.softmax(1) for part in parts]
        yield top, parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2


def _upsample(
    logits: Tensor, top: int, bottom: int, size: tuple[int, int], labels: LabelSet
) -> Tensor:
    """Return rows top to bottom of the upsampled logits of the scored classes.

    This is bilinear interpolation, in which pixel i of n has its center at
    (i + 1/2) / n of the side, as in `F.interpolate`. Rows do not depend on the strip
    in which they are computed.
    """
    height, width = logits.shape[-2:]
    at = (torch.arange(top, bottom).double() + 0.5) * height / size[0] - 0.5
    at = at.clamp(0, height - 1)
    low = at.floor().long()
    weight = (at - low).float()[:, None].to(logits.device)
    high = (low + 1).clamp(max=height - 1).to(logits.device)
    low = low.to(logits.device)
    if labels.num_scored < labels.num_classes:
        first, last = low[0], high[-1] + 1
        logits = logits[:, :, first:last][:, list(labels.scored)]
        low, high = low - first, high - first
    rows = torch.lerp(logits[:, :, low].float(), logits[:, :, high].float(), weight)
    if width == size[1]:
        return rows
    return F.interpolate(rows, (bottom - top, size[1]), mode="bilinear")


def _most_probable(probabilities: Tensor, labels: LabelSet) -> Tensor:
    """Return the (N, H, W) uint8 ids of the largest of (N, num_scored, H, W)."""
    ids = torch.tensor(labels.scored, dtype=torch.uint8)
    return ids[probabilities.argmax(1).cpu()]
