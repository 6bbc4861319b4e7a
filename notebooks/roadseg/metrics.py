"""Scores from one confusion matrix, baselines, calibration and uncertainty.

The rules, the same everywhere in the course:

* Predictions are scored at the size of the masks: logits are upsampled, never labels.
* Ignored pixels of the truth count in no score but `acc12`, where they are always
  wrong. `acc12` exists for CamVid alone, because older work reports it.
* A class that is neither in the truth nor predicted has no IoU (NaN) and is left out
  of the mean. A class that is predicted but not in the truth has an IoU of 0, which
  counts in the mean.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from roadseg.classes import CAMVID, LabelError, LabelSet, RoadsegError, is_camvid
from roadseg.scenes import pixel_counts


class ScoreError(RoadsegError, ValueError):
    """There is nothing that could be scored."""


class Scenes(Protocol):
    """Images (3, H, W) and their masks (H, W), both uint8, with a label set."""

    images: Sequence[Tensor]
    masks: Sequence[Tensor]
    labels: LabelSet


# ---- Scores -----------------------------------------------------------------------


def confusion_matrix(
    truth: Tensor, predicted: Tensor, labels: LabelSet = CAMVID
) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        truth: Ids of classes or `ignore_index`, integers of any shape.
        predicted: Ids of classes, the same shape.
        labels: The classes.

    Returns:
        (C, C) int64: row = true class, column = predicted class. Ignored pixels are
        dropped unless the ignored id is that of a class: then they have a row.

    Raises:
        ValueError: If the shapes differ.
        LabelError: If there is an id that the label set does not have.
    """
    truth, predicted = _plain(truth).cpu(), _plain(predicted).cpu()
    if truth.shape != predicted.shape:
        raise ValueError(
            f"the truth has shape {tuple(truth.shape)}, but the prediction "
            f"{tuple(predicted.shape)}: upsample the logits to the size of the truth"
        )
    count = labels.num_classes
    if labels.ignore_index >= count:
        kept = truth != labels.ignore_index
        truth, predicted = truth[kept], predicted[kept]
    for what, ids in (("truth", truth), ("prediction", predicted)):
        if ids.numel() and not (ids.min() >= 0 and ids.max() < count):
            raise LabelError(
                f"the {what} holds ids from {ids.min()} to {ids.max()}, but the "
                f"{count} classes have the ids 0 to {count - 1}"
            )
    pairs = truth.long().flatten() * count + predicted.long().flatten()
    return torch.bincount(pairs, minlength=count**2).view(count, count)


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of the course, from one confusion matrix.

    Attributes:
        confusion: (C, C) int64 pixel counts; row = true class, column = prediction.
        labels: The classes.
        acc: Pixel accuracy without ignored pixels, 0 to 1.
        acc12: Pixel accuracy with ignored pixels, which are always wrong, 0 to 1;
            None unless the classes are CamVid's.
        iou: (num_scored,) float64 intersection over union of each scored class, 0 to
            1; NaN for a class neither in the truth nor predicted.
        miou: Mean of `iou` over the classes that have one, 0 to 1.
        precision: (num_scored,) float64 share of the pixels predicted as a class that
            are of that class; NaN for a class that is never predicted.
        recall: (num_scored,) float64 share of the pixels of a class that are predicted
            as that class; NaN for a class that is not in the truth.
    """

    confusion: Tensor
    labels: LabelSet
    acc: float
    acc12: float | None
    iou: Tensor
    miou: float
    precision: Tensor
    recall: Tensor

    @classmethod
    def from_confusion(cls, matrix: Tensor, labels: LabelSet = CAMVID) -> "Scores":
        """Compute the scores.

        Args:
            matrix: (C, C) counts; row = true class, column = prediction.
            labels: The classes.

        Raises:
            ValueError: If the shape is wrong.
            ScoreError: If no pixel is labeled.
        """
        if tuple(matrix.shape) != (labels.num_classes,) * 2:
            raise ValueError(
                f"the confusion matrix of {labels.num_classes} classes has shape "
                f"{(labels.num_classes,) * 2}, not {tuple(matrix.shape)}"
            )
        counts = matrix.double()
        scored = list(labels.scored)
        labeled = counts[scored]  # without the row of ignored pixels
        if labeled.sum() == 0:
            raise ScoreError(
                "no pixel is labeled, so there is nothing to score: every mask holds "
                f"only {labels.ignored_name!r} (id {labels.ignore_index})"
            )
        right = counts.diagonal()[scored]
        in_truth, predicted = labeled.sum(1), labeled.sum(0)[scored]
        iou = right / (in_truth + predicted - right)  # 0 / 0 is NaN: absent
        return cls(
            confusion=matrix,
            labels=labels,
            acc=(right.sum() / labeled.sum()).item(),
            acc12=(right.sum() / counts.sum()).item() if is_camvid(labels) else None,
            iou=iou,
            miou=iou.nanmean().item(),
            precision=right / predicted,
            recall=right / in_truth,
        )

    def as_dict(self) -> dict:
        """Return what a JSON file holds; classes by name, None where there is none."""
        whole = {"acc": self.acc, "acc12": self.acc12, "miou": self.miou}
        names = [self.labels.names[i] for i in self.labels.scored]
        by_class = {
            key: {
                name: None if math.isnan(value) else round(value, 6)
                for name, value in zip(names, getattr(self, key).tolist(), strict=True)
            }
            for key in ("iou", "precision", "recall")
        }
        return {k: round(v, 6) for k, v in whole.items() if v is not None} | by_class

    def __str__(self) -> str:
        """Return the scores of all classes together in one line."""
        acc12 = "" if self.acc12 is None else f"   acc12 {self.acc12:.3f}"
        return f"acc {self.acc:.3f}{acc12}   mIoU {self.miou:.3f}"


def compute_scores(
    truths: Iterable[Tensor],
    predictions: Iterable[Tensor],
    labels: LabelSet = CAMVID,
) -> Scores:
    """Score predictions.

    Args:
        truths: Masks (H, W).
        predictions: As many, of the same sizes.
        labels: The classes.

    Returns:
        Scores over all pixels of all images together.

    Raises:
        ValueError: If numbers or shapes differ. Also what `confusion_matrix` and
            `Scores.from_confusion` raise.
    """
    matrix = torch.zeros(labels.num_classes, labels.num_classes, dtype=torch.long)
    for truth, predicted in zip(truths, predictions, strict=True):
        matrix += confusion_matrix(truth, predicted, labels)
    return Scores.from_confusion(matrix, labels)


def boundary_iou(
    truths: Iterable[Tensor],
    predictions: Iterable[Tensor],
    labels: LabelSet = CAMVID,
    distance: int | None = None,
) -> Tensor:
    """Return the IoU of each class near its boundaries only.

    Of each class, true and predicted, only the pixels within `distance` of the
    region's edge are compared, so the inside of large regions no longer hides a
    coarse outline. Ignored pixels belong to no region, true or predicted. Pixels are
    summed over all images before dividing. Cheng, Girshick, Dollár, Berg and Kirillov
    2021, Boundary IoU, https://arxiv.org/abs/2103.16562.

    Args:
        truths: Masks (H, W).
        predictions: As many, of the same sizes.
        labels: The classes.
        distance: Pixels, counted along rows, columns and diagonals; without it, 2% of
            each image's diagonal, as in the paper.

    Returns:
        (num_scored,) float64, 0 to 1; NaN for a class that occurs nowhere.
    """
    both = torch.zeros(labels.num_scored, dtype=torch.float64)
    either = both.clone()
    for truth, predicted in zip(truths, predictions, strict=True):
        truth, predicted = _plain(truth).cpu(), _plain(predicted).cpu()
        ignored = truth == labels.ignore_index
        width = distance or max(1, round(0.02 * math.hypot(*truth.shape)))
        for i, class_id in enumerate(labels.scored):
            a = _boundary(truth == class_id, width)
            b = _boundary((predicted == class_id) & ~ignored, width)
            both[i] += (a & b).sum()
            either[i] += (a | b).sum()
    return both / either


def _boundary(region: Tensor, width: int) -> Tensor:
    """Return the pixels of a region within `width` of its edge or of the image's."""
    outside = F.pad((~region).float(), (width,) * 4, value=1)[None]
    for kernel in ((2 * width + 1, 1), (1, 2 * width + 1)):
        outside = F.max_pool2d(outside, kernel, stride=1)
    return region & (outside[0] > 0)


# ---- Baselines --------------------------------------------------------------------


def baseline_majority(train: Scenes, test: Scenes) -> Scores:
    """Score predicting the most frequent class of the training pixels everywhere."""
    labels = train.labels
    counts = pixel_counts(train.masks, labels)[list(labels.scored)]
    majority = labels.scored[int(counts.argmax())]
    guesses = (torch.full_like(_plain(mask), majority) for mask in test.masks)
    return compute_scores(test.masks, guesses, labels)


def spatial_prior(train: Scenes) -> Tensor:
    """Return how often each scored class occurs at each position.

    Args:
        train: Scenes of one size.

    Returns:
        (num_scored, H, W) float32, the share of training images, 0 to 1.

    Raises:
        ValueError: If the masks differ in size, or there are none.
    """
    sizes = {tuple(mask.shape) for mask in train.masks}
    if len(sizes) != 1:
        raise ValueError(f"the spatial prior needs masks of one size, not {sizes}")
    total = torch.zeros(train.labels.num_scored + 1, *sizes.pop())
    for mask in train.masks:
        channels = _channels(mask, train.labels)[None]
        total.scatter_add_(0, channels, torch.ones(channels.shape))
    return total[:-1] / len(train.masks)


def spatial_prior_baseline(train: Scenes, test: Scenes) -> Scores:
    """Score predicting, at each position, its most frequent class in training."""
    ids = torch.tensor(train.labels.scored, dtype=torch.uint8)
    guess = ids[spatial_prior(train).argmax(0)]  # (H, W)
    return compute_scores(test.masks, (guess for _ in test.masks), train.labels)


# ---- Calibration ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often predictions of each confidence are right.

    Attributes:
        confidence: (bins,) float64 mean confidence in each bin; NaN if it is empty.
        accuracy: (bins,) float64 share of right predictions; NaN if it is empty.
        share: (bins,) float64 share of all labeled pixels.
        ece: Expected calibration error: the mean over all pixels of the distance
            between the confidence and the accuracy of their bin, 0 to 1.
    """

    confidence: Tensor
    accuracy: Tensor
    share: Tensor
    ece: float


def reliability(
    probabilities: Iterable[Tensor],
    truths: Iterable[Tensor],
    labels: LabelSet = CAMVID,
    bins: int = 15,
) -> Reliability:
    """Compare confidence with accuracy, in bins of equal width.

    Guo, Pleiss, Sun and Weinberger 2017, On Calibration of Modern Neural Networks,
    https://arxiv.org/abs/1706.04599, equations 2 and 3.

    Args:
        probabilities: (num_scored, H, W) each; one after the other will do.
        truths: As many masks (H, W).
        labels: The classes.
        bins: The number of bins between 0 and 1.

    Raises:
        ScoreError: If no pixel is labeled.
    """
    count, confidence, right = torch.zeros(3, bins, dtype=torch.float64)
    for p, truth in zip(probabilities, truths, strict=True):
        channels = _channels(truth, labels)
        known = channels < labels.num_scored
        best, predicted = _plain(p).cpu().float().max(0)
        best, hits = best[known].double(), (predicted == channels)[known].double()
        which = (best * bins).ceil().long().sub(1).clamp(0, bins - 1)  # (low, high]
        count += torch.bincount(which, minlength=bins)
        confidence += torch.bincount(which, best, bins)
        right += torch.bincount(which, hits, bins)
    if not count.sum():
        raise ScoreError("no pixel is labeled, so there is no calibration to measure")
    ece = (confidence - right).abs().sum() / count.sum()
    return Reliability(
        confidence / count, right / count, count / count.sum(), ece.item()
    )


def fit_temperature(
    logits: Iterable[Tensor],
    truths: Iterable[Tensor],
    labels: LabelSet = CAMVID,
    max_pixels: int = 500_000,
) -> float:
    """Return the temperature T for which softmax(logits / T) fits best.

    It minimizes the cross-entropy on held-out scenes. No prediction changes, only the
    confidence: above 1 it falls, below 1 it rises. Guo et al. 2017, section 4.2.

    Args:
        logits: (num_scored, H, W) each. Logarithms of probabilities will do, because
            they differ from logits by a constant at each pixel.
        truths: As many masks (H, W).
        labels: The classes.
        max_pixels: Take about so many pixels of each list, evenly spaced.

    Returns:
        T, between 0.01 and 100.

    Raises:
        ScoreError: If no pixel is labeled.
    """
    logits, truths = list(logits), list(truths)
    step = math.ceil(sum(mask.numel() for mask in truths) / max_pixels) or 1
    rows, targets = [], []
    for z, truth in zip(logits, truths, strict=True):
        channels = _channels(truth, labels).flatten()[::step]
        known = channels < labels.num_scored
        rows.append(_plain(z).cpu().flatten(1)[:, ::step].T[known].double())
        targets.append(channels[known])
    z, y = torch.cat(rows).clamp(min=-1e4), torch.cat(targets)  # log(0) is -inf
    if not len(y):
        raise ScoreError("no pixel is labeled, so there is no temperature to fit")
    true = z.gather(1, y[:, None]).mean()
    low, high = math.log(0.01), math.log(100)
    while high - low > 1e-6:
        middle = (low + high) / 2
        # the cross-entropy is convex in 1 / T; this is its derivative there
        mean = ((z / math.exp(middle)).softmax(1) * z).sum(1).mean()
        lower = mean < true or (mean == true and middle > 0)  # a tie: leave T at 1
        low, high = (low, middle) if lower else (middle, high)
    return math.exp((low + high) / 2)


# ---- Uncertainty ------------------------------------------------------------------


def block_bootstrap(
    confusions: Tensor,
    block_length: int,
    samples: int = 500,
    labels: LabelSet = CAMVID,
    statistic: Callable[[Scores], float] = attrgetter("miou"),
    seed: int = 0,
) -> np.ndarray:
    """Return a score of resampled sequences, drawn in blocks of neighboring frames.

    Neighboring frames are alike, so drawing single frames would make the score look
    far more certain than it is: draw blocks that are longer than the frames stay
    alike. Künsch 1989, https://doi.org/10.1214/aos/1176347265; blocks wrap around the
    end (Politis and Romano 1992), so each frame is drawn equally often.

    Args:
        confusions: (frames, C, C), one confusion matrix a frame, in order.
        block_length: Frames of a block. 1 is the ordinary bootstrap.
        samples: Sequences to draw, each as long as the original.
        labels: The classes.
        statistic: Which score to take; mIoU without it.
        seed: Of the drawing.

    Returns:
        (samples,) float64.

    Raises:
        ValueError: If the block is longer than the sequence.
    """
    n = len(confusions)
    if not 1 <= block_length <= n:
        raise ValueError(f"block_length is {block_length}, not between 1 and {n}")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(n, (samples, -(-n // block_length), 1), generator=generator)
    drawn = (starts + torch.arange(block_length)).flatten(1)[:, :n] % n
    counts = torch.zeros(samples, n, dtype=torch.float64)  # how often each is drawn
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    sums = torch.einsum("sf,fij->sij", counts, _plain(confusions).double())
    return np.array([statistic(Scores.from_confusion(s, labels)) for s in sums])


def paired_bootstrap(
    confusions: Tensor,
    others: Tensor,
    block_length: int,
    samples: int = 500,
    labels: LabelSet = CAMVID,
    statistic: Callable[[Scores], float] = attrgetter("miou"),
    seed: int = 0,
) -> np.ndarray:
    """Return by how much one network beats another on the same resampled sequences.

    Both networks are scored on the same frames each time, so that what makes a
    sequence easy or hard for both cancels out.

    Args:
        confusions: (frames, C, C) of one network.
        others: (frames, C, C) of the other, on the same frames.
        block_length, samples, labels, statistic, seed: See `block_bootstrap`.

    Returns:
        (samples,) float64: the score of the first minus that of the second. The share
        above 0 is how often the first is ahead.
    """
    if confusions.shape != others.shape:
        raise ValueError(
            "both networks must be scored on the same frames, but the shapes are "
            f"{tuple(confusions.shape)} and {tuple(others.shape)}"
        )
    rest = (block_length, samples, labels, statistic, seed)
    return block_bootstrap(confusions, *rest) - block_bootstrap(others, *rest)


def _plain(values: Tensor) -> Tensor:
    """Return a tensor without its subclass, such as tv_tensors.Mask."""
    return torch.as_tensor(values).as_subclass(Tensor)


def _channels(mask: Tensor, labels: LabelSet) -> Tensor:
    """Return (H, W) int64 positions in `labels.scored`; num_scored where ignored."""
    lookup = torch.full((256,), -1)
    lookup[list(labels.scored)] = torch.arange(labels.num_scored)
    lookup[labels.ignore_index] = labels.num_scored
    channels = lookup[_plain(mask).cpu().long()]
    if channels.numel() and channels.min() < 0:
        unknown = int(_plain(mask).flatten()[channels.flatten().argmin()])
        raise LabelError(f"the mask holds the id {unknown}, which no class has")
    return channels
