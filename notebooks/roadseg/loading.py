"""Batches for the training loop from any dataset of images and masks."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from roadseg import runtime
from roadseg.checkpoints import TrainingError
from roadseg.classes import CAMVID, LabelSet


def labels_of(scenes: Dataset) -> LabelSet:
    """Return the label set of a dataset, CamVid's if it has none of its own."""
    return getattr(scenes, "labels", None) or CAMVID


def first_label(scenes: Dataset) -> int:
    """Return the class id of a labeled pixel.

    Raises:
        TrainingError: If there are no scenes, or none with a labeled pixel; the
            message names the dataset. Nothing can be learned or scored with these.
    """
    name = getattr(scenes, "description", None) or type(scenes).__name__
    if len(scenes) == 0:
        raise TrainingError(f"{name}: there are no scenes")
    ignored = labels_of(scenes).ignore_index
    for mask in columns_of(scenes).masks:
        labeled = mask[mask != ignored]
        if len(labeled):
            return int(labeled[0])
    raise TrainingError(
        f"{name}: none of the {len(scenes)} masks has a labeled pixel, all are "
        f"ignored (id {ignored}); check the masks, and ignore_index in labels.json"
    )


def columns_of(scenes: Dataset) -> Any:
    """Return something with ``images`` and ``masks``: RoadScenes are it already.

    Those of a dataset that only has pairs can be gone through once.
    """
    if hasattr(scenes, "images") and hasattr(scenes, "masks"):
        return scenes

    def column(part: int) -> Iterator[Tensor]:
        return (scenes[i][part] for i in range(len(scenes)))

    return SimpleNamespace(images=column(0), masks=column(1))


class _Indexed(Dataset):
    """Augmented scenes with their positions, so that a bad batch can be named."""

    def __init__(self, scenes: Dataset, transform: Callable) -> None:
        has_own = hasattr(scenes, "with_transform")
        self.scenes = scenes.with_transform(None) if has_own else scenes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        image, mask = self.scenes[i]
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor), i


def num_workers() -> int:
    """Return how many processes load images; a CPU trains slower than it loads."""
    if runtime.device().type == "cpu" or sys.platform == "win32":
        return 0
    return min(8, max(1, (os.cpu_count() or 2) - 1))


def build_loader(
    scenes: Dataset, transform: Callable, batch_size: int, drop_last: bool
):
    """Return a shuffling DataLoader of images, masks and positions in the dataset.

    (N, 3, H, W), (N, H, W) and (N,) int64.
    """
    workers = num_workers()
    return DataLoader(
        _Indexed(scenes, transform),
        batch_size=batch_size,
        shuffle=True,
        drop_last=drop_last,
        num_workers=workers,
        # from Python 3.14 on, Linux would send each worker all images, every one
        # through an open file, and run out of those; forked ones have them already
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=runtime.device().type == "cuda",
    )


def names_of(scenes: Dataset, positions: Sequence[int]) -> str:
    """Return the file names of some scenes, or their positions without names."""
    names = getattr(scenes, "filenames", None)
    return ", ".join(str(names[i]) if names else f"number {i}" for i in positions)
