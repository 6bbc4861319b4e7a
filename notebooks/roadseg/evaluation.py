"""Predictions at native size, and three scores from one confusion matrix.

The rules, the same everywhere in the course:

* Scores are taken at the size of the masks (360 x 480 for dataset1). The logits
  are resized to it, never the labels.
* A prediction is one of the eleven scored classes; void is never predicted.
* Void pixels of the truth are left out of `acc` and of every IoU. In `acc12`
  they count, always as wrong.
* A class that is neither in the truth nor predicted has no IoU (NaN) and is left
  out of the mean. One that is predicted but not in the truth has an IoU of 0 and
  is in the mean.
"""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.transforms import v2

from roadseg import runtime
from roadseg.classes import NAMES, NUM_CLASSES, NUM_SCORED, VOID
from roadseg.unet import STRIDE, normalise, predict_logits

MOST_FED = 2**20
"""Pixels of a picture that the network is fed with unless a size is asked for.

The network needs about 1.3 kB for each. More than this is scaled down first: a
photograph of 4000 x 3000 would take 15 GB, and shows everything many times larger
than what the network has learnt.
"""

MEMORY = 2 * 2**30
"""Bytes that `predict` takes at most for one picture of 4000 x 3000 on a CPU."""


Feed = tuple[int, int] | Callable[[tuple[int, int]], tuple[int, int]] | None
"""What to feed a network with: a height and width, or what says it for a picture's."""


class Scenes(Protocol):
    """What is scored: pictures (3, H, W) and masks (H, W), both uint8."""

    images: Sequence[Tensor]
    masks: Sequence[Tensor]


# --- scores -------------------------------------------------------------------


def confusion(truth: Tensor, predicted: Tensor) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        truth: Integers 0 to 11, any shape.
        predicted: Integers 0 to 11, the same shape.

    Returns:
        (12, 12) int64: row = truth, column = prediction.

    Raises:
        ValueError: If the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"truth {tuple(truth.shape)} and prediction {tuple(predicted.shape)} "
            "must have one shape: score at the size of the truth"
        )
    # the functional form resizes nothing and keeps every class, void too
    return multiclass_confusion_matrix(
        predicted.long(), truth.long(), num_classes=NUM_CLASSES
    ).long()


@dataclass(frozen=True)
class Scores:
    """The three scores of the course, from one confusion matrix.

    Attributes:
        confusion: (12, 12) int64 pixel counts; row = truth, column = prediction.
        acc: Pixel accuracy over pixels that are not void, 0 to 1.
        acc12: Pixel accuracy over all pixels, void always wrong, 0 to 1.
        iou: (11,) float64 intersection over union of classes 0 to 10, 0 to 1;
            NaN for a class neither in the truth nor predicted.
        miou: Mean of `iou` over the classes that have one, 0 to 1.
    """

    confusion: Tensor
    acc: float
    acc12: float
    iou: Tensor
    miou: float

    @classmethod
    def from_confusion(cls, matrix: Tensor) -> "Scores":
        """Compute the scores.

        Args:
            matrix: (12, 12) counts; row = truth, column = prediction.

        Raises:
            ValueError: If the shape is another, or no pixel is labelled.
        """
        if matrix.shape != (NUM_CLASSES, NUM_CLASSES):
            raise ValueError(f"the confusion matrix is 12 x 12, not {matrix.shape}")
        counts = matrix.double()
        labelled = counts[:VOID]  # (11, 12): rows of void truth are left out
        if labelled.sum() == 0:
            raise ValueError("no pixel is labelled, so there is nothing to score")
        right = labelled.diagonal()  # (11,)
        union = labelled.sum(1) + labelled.sum(0)[:NUM_SCORED] - right
        iou = right / union  # 0 / 0 is NaN: absent
        return cls(
            confusion=matrix,
            acc=(right.sum() / labelled.sum()).item(),
            acc12=(right.sum() / counts.sum()).item(),
            iou=iou,
            miou=iou.nanmean().item(),
        )

    def as_dict(self) -> dict:
        """Return what a JSON file holds: the scores, IoU by name, None if absent."""
        iou = [None if v != v else round(v, 6) for v in self.iou.tolist()]
        return {
            "acc": round(self.acc, 6),
            "acc12": round(self.acc12, 6),
            "miou": round(self.miou, 6),
            "iou": dict(zip(NAMES[:NUM_SCORED], iou, strict=True)),
        }

    def __str__(self) -> str:
        """Return the three scores in one line."""
        return f"acc {self.acc:.3f}   acc12 {self.acc12:.3f}   mIoU {self.miou:.3f}"


def score(truths: Iterable[Tensor], predictions: Iterable[Tensor]) -> Scores:
    """Score predictions.

    Args:
        truths: Masks (H, W), integers 0 to 11.
        predictions: As many, of the same sizes.

    Returns:
        Scores over all pixels of all pictures together.

    Raises:
        ValueError: If numbers or shapes differ, or nothing is labelled.
    """
    matrix = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.long)
    for truth, predicted in zip(truths, predictions, strict=True):
        matrix += confusion(truth.as_subclass(Tensor).cpu(), predicted.cpu())
    return Scores.from_confusion(matrix)


# --- predictions --------------------------------------------------------------


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module,
    images: Tensor,
    size: tuple[int, int] | None = None,
    flip: bool = False,
) -> Tensor:
    """Return the probability of each scored class at each pixel.

    Args:
        model: A U-Net; it predicts where its weights lie.
        images: (N, 3, H, W) uint8, or float 0 to 1.
        size: Height and width to feed the network with, in pixels; without it the
            pictures' own, scaled down to `MOST_FED` pixels if they have more. Any
            size will do: `predict_logits` pads and crops.
        flip: Also predict the mirrored picture and average the probabilities.

    Returns:
        (N, 11, H, W) float32 at the pictures' own size; each pixel sums to 1.
    """
    where = next(model.parameters()).device
    was_training = model.training
    model.eval()
    x = images.as_subclass(Tensor).to(where)
    size = size or _affordable(images.shape[-2:])
    if tuple(size) != tuple(images.shape[-2:]):
        x = v2.functional.resize(x, list(size), antialias=True)
    x = normalise(x).to(memory_format=torch.channels_last)
    p = _probabilities(model, x, images.shape[-2:])
    if flip:
        p = (p + _probabilities(model, x.flip(-1), images.shape[-2:]).flip(-1)) / 2
    model.train(was_training)
    return p


def _affordable(size: Sequence[int]) -> list[int]:
    """Return a height and width of at most `MOST_FED` pixels, sides in proportion."""
    shrink = max(1.0, (size[0] * size[1] / MOST_FED) ** 0.5)
    longest = MOST_FED // STRIDE  # predict_logits pads the other side to a STRIDE
    return [min(max(1, int(side / shrink)), longest) for side in size]


def _probabilities(model: nn.Module, x: Tensor, size: Sequence[int]) -> Tensor:
    with runtime.autocast():
        logits = predict_logits(model, x)
    logits = logits[:, :NUM_SCORED].float()  # void is never predicted
    if logits.shape[-2:] != tuple(size):
        logits = F.interpolate(logits, tuple(size), mode="bilinear")
    return logits.softmax(1)


def predict(
    model: nn.Module,
    images: Tensor,
    size: tuple[int, int] | None = None,
    flip: bool = False,
) -> Tensor:
    """Return the most probable scored class at each pixel.

    Args:
        model: See `predict_probabilities`, as for the other arguments.
        images: (N, 3, H, W) uint8, or float 0 to 1.
        size: Height and width to feed the network with, in pixels.
        flip: Average with the mirrored picture.

    Returns:
        (N, H, W) uint8 labels, 0 to 10, on the CPU, at the pictures' own size.
    """
    return predict_probabilities(model, images, size, flip).argmax(1).byte().cpu()


def read_picture(path: str | os.PathLike) -> Tensor:
    """Read any picture that Pillow can read, the right way up, as red, green, blue.

    Cameras often store a picture lying and note in the file (EXIF) how to turn it;
    the note is followed. Transparency is dropped, grey and CMYK become RGB.

    Args:
        path: The file.

    Returns:
        (3, H, W) uint8, 0 to 255.

    Raises:
        ValueError: If the file is missing or no readable picture.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"there is no file {path.name} in {runtime.short(path.parent)}"
        )
    try:
        # from memory: Pillow garbles a turned grey TIFF that it maps from the disk
        with Image.open(BytesIO(path.read_bytes())) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode == "F":
                raise ValueError("it holds fractions: save it with 8 bits a channel")
            if picture.mode.startswith("I"):
                picture = _to_8_bits(picture)
            pixels = np.array(picture.convert("RGB"))
    except (
        *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
        *(struct.error, TypeError, LookupError),  # the EXIF note
    ) as error:
        reason = "no picture" if "cannot identify" in str(error) else str(error)
        raise ValueError(
            f"{path.name} cannot be read as a picture ({reason}): "
            "take a PNG, JPEG or another format that Pillow reads"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Scale 16 bits a pixel to 8, which Pillow would clip."""
    values = np.asarray(picture, dtype=np.float64)
    most = 65535 if values.max() > 255 else 255
    return Image.fromarray((values / most * 255).clip(0, 255).round().astype(np.uint8))


def feed_size(
    picture: tuple[int, int], feed: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the size to feed a network with, for a picture of any proportions.

    A network sees things best as large as it has learnt them. So a picture is
    scaled to the area that the network was fed with, upright and panoramic ones in
    their own proportions; where these are within a tenth, to that very size.

    Args:
        picture: Height and width of the picture, in pixels.
        feed: What the recipe feeds; None for dataset1's own 360 x 480.
    """
    height, width = feed or (360, 480)
    wanted, own = width / height, picture[1] / picture[0]
    if 0.9 < own / wanted < 1.1:
        return height, width
    area = height * width
    return max(1, round((area / own) ** 0.5)), max(1, round((area * own) ** 0.5))


def predict_scenes(
    model: nn.Module,
    scenes: Scenes,
    size: Feed = None,
    flip: bool = False,
    batch_size: int = 4,
) -> list[Tensor]:
    """Predict all scenes, under a progress bar.

    Args:
        model: See `evaluate`, as for the other arguments.
        scenes: Pictures and masks.
        size: What to feed the network with.
        flip: Average with the mirrored picture.
        batch_size: Pictures at a time.

    Returns:
        One (H, W) uint8 mask, labels 0 to 10, for each scene.
    """
    masks: list[Tensor] = []
    batches = list(_same_size_batches(scenes.images, batch_size))
    for batch in runtime.progress(batches, "predict"):
        fed = size(tuple(batch[0].shape[-2:])) if callable(size) else size
        masks += predict(model, torch.stack(batch), fed, flip)
    return masks


def _same_size_batches(images: Sequence[Tensor], most: int) -> Iterable[list[Tensor]]:
    """Cut pictures, in their order, into batches of equal shape."""
    batch: list[Tensor] = []
    for image in images:
        if batch and (len(batch) == most or image.shape != batch[0].shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def evaluate(
    model: nn.Module,
    scenes: Scenes,
    size: Feed = None,
    flip: bool = False,
    batch_size: int = 4,
) -> Scores:
    """Predict scenes and score them at the size of their masks.

    Args:
        model: A U-Net.
        scenes: Pictures and masks.
        size: Height and width to feed the network with, in pixels, whatever the
            proportions of a picture; or a function that says it for a picture's
            height and width, as `feed_size` does; without it the pictures' own,
            scaled down to `MOST_FED` pixels if they have more.
        flip: Average with the mirrored picture.
        batch_size: Pictures at a time.
    """
    return score(scenes.masks, predict_scenes(model, scenes, size, flip, batch_size))


# --- baselines ----------------------------------------------------------------


def pixel_counts(masks: Iterable[Tensor]) -> Tensor:
    """Count the pixels of each class over masks: (12,) int64."""
    counts = torch.zeros(NUM_CLASSES, dtype=torch.long)
    for mask in masks:
        counts += torch.bincount(
            mask.as_subclass(Tensor).flatten().long(), minlength=NUM_CLASSES
        )
    return counts


def baseline_majority(train: Scenes, test: Scenes) -> Scores:
    """Score the guess that every pixel is of the commonest class in training."""
    commonest = int(pixel_counts(train.masks)[:NUM_SCORED].argmax())
    guesses = (torch.full_like(m.as_subclass(Tensor), commonest) for m in test.masks)
    return score(test.masks, guesses)


def mean_layout(train: Scenes) -> Tensor:
    """Return how often each scored class lies at each place of the picture.

    Args:
        train: Scenes of one size.

    Returns:
        (11, H, W) float32, the share of training pictures, 0 to 1.

    Raises:
        ValueError: If the masks differ in size.
    """
    shapes = {tuple(m.shape) for m in train.masks}
    if len(shapes) != 1:
        raise ValueError(f"the mean layout needs masks of one size, not {shapes}")
    total = torch.zeros(NUM_CLASSES, *shapes.pop())
    for mask in train.masks:
        total.scatter_add_(
            0, mask.as_subclass(Tensor).long()[None], torch.ones(1, *mask.shape)
        )
    return total[:NUM_SCORED] / len(train.masks)


def baseline_layout(train: Scenes, test: Scenes) -> Scores:
    """Score the guess that each pixel is what lies there most often in training."""
    guess = mean_layout(train).argmax(0).byte()  # (H, W)
    return score(test.masks, (guess for _ in test.masks))
