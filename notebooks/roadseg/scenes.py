"""Images with label masks: read, verify, write and split any folder of them.

An image and its mask have the same file name, endings aside. Two layouts are
recognized, dataset1's and that of SegNet's copy of CamVid::

    images_prepped_train/town_0001.jpg         train/town_0001.png
    annotations_prepped_train/town_0001.png    trainannot/town_0001.png

A mask holds one class id per pixel. The classes are those of ``labels.json`` in the
folder, or CamVid's without that file; see `roadseg.classes.LabelSet`.
"""

import copy
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from roadseg import files, runtime
from roadseg.classes import CAMVID, LabelSet
from roadseg.files import DatasetError
from roadseg.images import load_image, load_mask
from roadseg.images import read_image as read_image
from roadseg.images import read_mask as read_mask
from roadseg.pairs import DATASET1_LAYOUT as DATASET1_LAYOUT
from roadseg.pairs import SEGNET_LAYOUT as SEGNET_LAYOUT
from roadseg.pairs import (
    Layout,
    LazyFiles,
    available_memory,
    decoded_bytes,
    find_pairs,
    header_sizes,
    read_pairs,
    sequence_of,
)
from roadseg.pairs import find_layout as find_layout

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]

BLOCK = 20  # frames in split_by_block: about 20 seconds of a CamVid sequence
LABELS_FILE = "labels.json"


class SplitError(DatasetError, ValueError):
    """Scenes cannot be split as asked."""


# ---- Read and verify --------------------------------------------------------------


def read_labels(folder: str | os.PathLike) -> LabelSet:
    """Return the classes of a dataset: its labels.json, or CamVid's without one."""
    path = Path(folder) / LABELS_FILE
    return LabelSet.load(path) if path.is_file() else CAMVID


@contextmanager
def _about(folder: Path) -> Iterator[None]:
    """Put a dataset's folder, and how to restore it, into the message of an error."""
    try:
        yield
    except DatasetError as error:
        hint = ""
        if (folder / files.MANIFEST).exists():
            hint = "; delete the whole folder and run this again to restore it"
        raise DatasetError(f"{folder}: {error}{hint}") from None


def _has_labels(mask: Tensor, labels: LabelSet) -> bool:
    return bool((mask != labels.ignore_index).any())


def _require(labeled: bool, split: str, labels: LabelSet) -> None:
    """Refuse a split that nothing can be learned from or scored on."""
    if not labeled:
        raise DatasetError(
            f"no mask of the split {split!r} has a labeled pixel; all hold nothing but "
            f"{labels.ignore_index}, the id of ignored pixels"
        )


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        counts: Pairs of image and mask in each split.
        sizes: The heights and widths that occur, in pixels.
        changed: Files whose SHA-256 is not the one expected.
        checksums_match: Whether all files have the expected SHA-256; None where none
            are expected, or the files are others altogether.
        notes: What was left out or inferred, in sentences.
    """

    counts: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    changed: tuple[str, ...] = ()
    checksums_match: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The findings on one line."""
        pairs = " and ".join(f"{n} {split}" for split, n in self.counts.items())
        checked = {
            True: "bytes as in SegNet's copy",
            False: f"{len(self.changed)} files with other bytes than SegNet's copy",
            None: "no checksums to compare",
        }[self.checksums_match]
        sizes = ", ".join(f"{h} x {w}" for h, w in self.sizes)
        return "; ".join(
            [f"{pairs} images with masks, {sizes}, {checked}", *self.notes]
        )


def verify(
    folder: str | os.PathLike,
    splits: Iterable[str] = ("train", "test"),
    labels: LabelSet | None = None,
    checksums: Mapping[str, str] | None = None,
) -> Verification:
    """Read every image and mask of a folder and report what is there.

    Args:
        folder: A folder in a layout that `find_layout` recognizes.
        splits: The splits to read.
        labels: The classes; without them, those of `read_labels`.
        checksums: The expected SHA-256 of files, by their path in the folder.

    Raises:
        DatasetError: If a file is wrong: an image without a mask or the reverse, an
            unreadable file, a mask with other ids, of another size than its image, in
            a lossy format, or with a palette that contradicts its ids; an image with
            an EXIF orientation; or a split without any label. The message names the
            first files of each kind and counts the others.
    """
    folder, checksums = Path(folder), checksums or {}
    counts: dict[str, int] = {}
    sizes: set[tuple[int, ...]] = set()
    digests: dict[str, str] = {}
    notes: list[str] = []
    with _about(folder):
        labels = labels or read_labels(folder)
        for split in splits:
            found = find_pairs(folder, split)
            counts[split] = len(found.names)
            notes += found.notes
            labeled = False
            for _, mask in read_pairs(found, labels):
                sizes.add(tuple(mask.shape))
                labeled = labeled or _has_labels(mask, labels)
            _require(labeled, split, labels)
            for path in (found.images + found.masks) if checksums else []:
                name = path.relative_to(folder).as_posix()
                digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    compared = not checksums.keys().isdisjoint(digests)
    changed = [f for f, digest in digests.items() if checksums.get(f) != digest]
    return Verification(
        counts,
        tuple(sorted(sizes)),
        tuple(changed) if compared else (),
        not changed if compared else None,
        tuple(notes),
    )


# ---- Scenes -----------------------------------------------------------------------


class RoadScenes(torch.utils.data.Dataset):
    """Images with masks, as uint8.

    ``scenes[i]`` is a pair ``(Image, Mask)`` of torchvision tv_tensors, after the
    transform if there is one. torchvision's v2 transforms know the two apart: they
    resize a Mask by its nearest pixel, so labels are never blended. Without a
    transform the pair is the stored one: do not change it in place.

    Example::

        train = RoadScenes("my_roads", "train")
        image, mask = train[0]      # uint8 (3, H, W) and uint8 (H, W)

    Attributes:
        images: tv_tensors.Image, uint8, (3, H, W), 0 to 255. Sizes may differ.
        masks: tv_tensors.Mask, uint8, (H, W), class ids. Like images a sequence: a
            list in memory, or one that decodes a file at each access.
        filenames: Names of the image files, in Unicode NFC, sorted.
        sequences: The part of each name before its last underscore, which in CamVid
            is the sequence: ``0001TP_006690.png`` is a frame of 0001TP. Names
            without an underscore belong to a sequence "".
        labels, is_real, folder, split, transform: The arguments.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        *,
        labels: LabelSet | None = None,
        layout: Layout | None = None,
        transform: Callable | None = None,
        description: str | None = None,
        is_real: bool = True,
        in_memory: bool | None = None,
    ) -> None:
        """Read a split.

        Args:
            folder: A dataset's folder.
            split: ``train``, ``test``, or whatever stands for it in the folders' names.
            labels: The classes; without them, those of `read_labels`.
            layout: Where the files are; without it, `find_layout` looks.
            transform: Called with (image, mask) whenever a pair is asked for.
            description: What the images are, with which `description` begins;
                without it, the folder's name.
            is_real: Whether they are photographs.
            in_memory: Whether all is decoded now and kept; if not, each file is
                decoded whenever it is asked for, by a DataLoader's workers if there
                are any. None: in memory if that takes less than half of what is free.

        Raises:
            DatasetError: If files are wrong, see `verify`. Files that are decoded
                later raise it later, unless their sizes show it.
        """
        self.folder, self.split = Path(folder), split
        self.transform, self.is_real = transform, is_real
        self._description = description or f"images of {runtime.display_path(folder)}"
        with _about(self.folder):
            self.labels = labels or read_labels(self.folder)
            found = find_pairs(self.folder, split, layout)
            self.filenames = found.names
            if in_memory is None:
                in_memory = decoded_bytes(found) < available_memory() / 2
            if in_memory:
                pairs = list(read_pairs(found, self.labels))
                self.images = [tv_tensors.Image(image) for image, _ in pairs]
                self.masks = [tv_tensors.Mask(mask) for _, mask in pairs]
                self._sizes = [tuple(mask.shape) for mask in self.masks]
            else:
                self._sizes = header_sizes(found)
                load = partial(load_mask, labels=self.labels)
                self.images = LazyFiles(found.images, load_image, tv_tensors.Image)
                self.masks = LazyFiles(found.masks, load, tv_tensors.Mask)
            labeled = any(_has_labels(mask, self.labels) for mask in self.masks)
            _require(labeled, split, self.labels)
        for note in found.notes:
            print(f"{runtime.display_path(folder)}/{note}")
        self.sequences = [sequence_of(name) for name in self.filenames]

    @property
    def description(self) -> str:
        """What these images are, how many, how large; goes beside every score."""
        sizes = sorted(set(self._sizes))
        size = " or ".join(f"{h} x {w}" for h, w in sizes[:3])
        size += " or others" if len(sizes) > 3 else ""
        kind = {"train": "training", "official": "official test"}.get(
            self.split, self.split
        )
        colon = "," if self.is_real else ":"
        return f"{self._description}{colon} {len(self)} {kind} images, {size}"

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.filenames)

    def __getitem__(self, i: int) -> Pair:
        """Return an image and its mask, after the transform if there is one."""
        pair = self.images[i], self.masks[i]
        return self.transform(*pair) if self.transform else pair

    def subset(self, indices: Iterable[int]) -> "RoadScenes":
        """Return some of the scenes, in this order; the images are shared."""
        indices = [int(i) for i in indices]
        part = copy.copy(self)
        for field in ("images", "masks", "filenames", "sequences", "_sizes"):
            values = getattr(self, field)
            lazy = isinstance(values, LazyFiles)
            picked = values.pick(indices) if lazy else [values[i] for i in indices]
            setattr(part, field, picked)
        return part

    def with_transform(self, transform: Callable | None) -> "RoadScenes":
        """Return the same scenes under another transform; the images are shared."""
        other = copy.copy(self)
        other.transform = transform
        return other


def fingerprint(scenes: RoadScenes) -> str:
    """Return a digest, 16 hexadecimal digits, of all images and masks in their order.

    What files are called and where they are does not enter it.
    """
    digest = hashlib.sha256()
    for image, mask in zip(scenes.images, scenes.masks, strict=True):
        for part in (image, mask):
            digest.update(str((tuple(part.shape), part.dtype)).encode())
            digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:16]


def pixel_counts(masks: Iterable[Tensor], labels: LabelSet = CAMVID) -> Tensor:
    """Count the pixels of each class over masks: (num_classes,) int64.

    Pixels of an ignored id that is not the position of a name are not counted.
    """
    counts = torch.zeros(256, dtype=torch.long)
    for mask in masks:
        plain = mask.as_subclass(Tensor).flatten().long()
        counts += torch.bincount(plain, minlength=256)
    return counts[: labels.num_classes]


def write_scenes(
    folder: str | os.PathLike,
    split: str,
    scenes: Iterable[tuple[str, np.ndarray, np.ndarray]],
    labels: LabelSet = CAMVID,
) -> None:
    """Write scenes as PNG files in dataset1's layout.

    Args:
        folder: Where to; it is made if necessary. If the classes are not CamVid's,
            they are saved as its labels.json.
        split: ``train``, ``test`` or another name.
        scenes: (file name, image, mask): a name ending in .png, (H, W, 3) uint8,
            and (H, W) uint8 with class ids.
        labels: The classes.

    Raises:
        DatasetError: If a scene cannot be read back, or the folder has other classes;
            scenes before it are written then.
    """
    folder = Path(folder)
    image_folder, mask_folder = (folder / s for s in DATASET1_LAYOUT.folders(split))
    image_folder.mkdir(parents=True, exist_ok=True)
    mask_folder.mkdir(parents=True, exist_ok=True)
    if labels != CAMVID and not (folder / LABELS_FILE).exists():
        labels.save(folder / LABELS_FILE)
    if read_labels(folder) != labels:
        raise DatasetError(f"{folder}/{LABELS_FILE} describes other classes than these")
    for name, image, mask in scenes:
        _check_scene(name, image, mask, labels)
        Image.fromarray(image).save(image_folder / name, compress_level=1)
        Image.fromarray(mask).save(mask_folder / name)


def _check_scene(
    name: str, image: np.ndarray, mask: np.ndarray, labels: LabelSet
) -> None:
    if Path(name).name != name or not name.lower().endswith(".png"):
        raise DatasetError(f"the file name of a scene ends in .png; {name!r} does not")
    found = (image.dtype, mask.dtype, image.shape, mask.ndim)
    if found != (np.uint8, np.uint8, (*mask.shape, 3), 2):
        raise DatasetError(
            f"{name}: wanted uint8 of the shapes (H, W, 3) and (H, W), not "
            f"{image.dtype} {image.shape} and {mask.dtype} {mask.shape}"
        )
    if unknown := set(np.unique(mask).tolist()) - set(labels.ids):
        raise DatasetError(f"{name} holds the label {min(unknown)}, which is no class")


# ---- Splits -----------------------------------------------------------------------


def split_by_sequence(
    scenes: RoadScenes, sequence: str
) -> tuple[RoadScenes, RoadScenes]:
    """Hold out a whole sequence, for choices such as a learning rate.

    Frames of a sequence are a second apart or less and nearly alike. A random split
    puts neighbors on both sides, so the score measures how well the model remembers,
    not how well it does on a road that it has not seen.

    Args:
        scenes: Two sequences or more.
        sequence: One of ``scenes.sequences``.

    Returns:
        (the rest, the sequence held out).

    Raises:
        SplitError: If there is no such sequence, or no other.
    """
    there = sorted(set(scenes.sequences))
    if sequence not in there or len(there) < 2:
        raise SplitError(f"cannot hold out sequence {sequence!r} of {', '.join(there)}")
    held_out = np.array([name == sequence for name in scenes.sequences])
    return _divide(scenes, held_out)


def split_by_block(
    scenes: RoadScenes, fraction: float = 0.2, seed: int = 0
) -> tuple[RoadScenes, RoadScenes]:
    """Hold out some contiguous blocks of frames of the sequences.

    Blocks of `BLOCK` frames (fewer in small sets) keep most neighbors on one side,
    for the reason given at `split_by_sequence`. The two frames where blocks meet are
    still alike: a whole sequence is the stricter test.

    Args:
        scenes: Frames of one or more sequences.
        fraction: Share of the blocks to hold out, between 0 and 1.
        seed: Which blocks.

    Returns:
        (the rest, the blocks held out), each in order.

    Raises:
        SplitError: If the fraction leaves either side without a block.
    """
    return _divide(scenes, held_out_blocks(scenes.sequences, fraction, seed))


def held_out_blocks(
    sequences: Sequence[str], fraction: float = 0.2, seed: int = 0
) -> np.ndarray:
    """Return (N,) bool: which frames of these sequences `split_by_block` holds out."""
    length = max(1, min(BLOCK, int(len(sequences) * fraction / 2)))
    frames = Counter(sequences)
    seen: Counter[str] = Counter()
    blocks = []
    for name in sequences:
        count = max(1, round(frames[name] / length))  # of nearly equal blocks
        blocks.append(f"{name} {seen[name] * count // frames[name]}")
        seen[name] += 1
    distinct, block_of = np.unique(blocks, return_inverse=True)
    wanted = math.ceil(fraction * len(distinct))
    if not 0 < wanted < len(distinct):
        raise SplitError(
            f"cannot hold out {fraction} of {len(distinct)} blocks: each side needs one"
        )
    # as scikit-learn's GroupShuffleSplit; NumPy keeps RandomState's numbers forever
    order = np.random.RandomState(seed).permutation(len(distinct))
    return np.isin(block_of, order[:wanted])


def _divide(scenes: RoadScenes, held_out: np.ndarray) -> tuple[RoadScenes, RoadScenes]:
    return (
        scenes.subset(np.flatnonzero(~held_out)),
        scenes.subset(np.flatnonzero(held_out)),
    )
