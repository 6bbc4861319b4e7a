"""Segment image and video files: masks and overlays for what people have on disk."""

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from roadseg import images, inference, plots, runtime, video
from roadseg.classes import LabelSet
from roadseg.files import DatasetError, atomic_dir, atomic_write
from roadseg.weights import SavedModel

VIDEO_ENDINGS = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
"""Files of these endings count as videos even if nothing here can read them."""

STRIP_PIXELS = 2**22
"""Pixels of an image that are colored at a time, to bound the memory."""

MAX_JPEG_SIDE = 65_500
"""Height and width above which the overlay is a PNG, because JPEG ends there."""


class Input(NamedTuple):
    """A file to segment.

    Attributes:
        path: Where it is.
        kind: How to read it.
        folder: Its folder, relative to the folder that was searched.
    """

    path: Path
    kind: Literal["image", "video"]
    folder: Path = Path()

    @property
    def result(self) -> Path:
        """The name that its results begin with, relative to the output folder."""
        return self.folder / self.path.stem


@dataclass
class Inputs:
    """What was found under some paths.

    Attributes:
        files: What to segment.
        left_out: How many other files and subfolders there were, by kind.
        errors: Paths under which there is nothing to segment, in words.
    """

    files: list[Input] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


def find_inputs(paths: Iterable[str | os.PathLike], recursive: bool = False) -> Inputs:
    """Find the images and videos under some paths, by their content.

    Args:
        paths: Files, which are taken whatever they are, and folders, of which all
            images and videos are taken. Hidden files are ignored.
        recursive: Also search the subfolders.
    """
    found = Inputs()
    for path in map(Path, paths):
        if path.is_file():
            found.files.append(Input(path, kind_of(path) or "image"))
        elif not path.is_dir():
            wrong = "is no ordinary file" if path.exists() else "does not exist"
            found.errors.append(f"{path} {wrong}: give an image, video or folder")
        else:
            before = len(found.files)
            _search(path, path, recursive, found)
            if len(found.files) == before:
                found.errors.append(f"{path} holds no images or videos")
    return found


def _search(folder: Path, root: Path, recursive: bool, found: Inputs) -> None:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if recursive and not path.is_symlink():
                _search(path, root, recursive, found)
            else:
                found.left_out["subfolder"] += 1
        elif kind := kind_of(path):
            found.files.append(Input(path, kind, folder.relative_to(root)))
        else:
            found.left_out["other file"] += 1


def kind_of(path: Path) -> Literal["image", "video"] | None:
    """Return whether a file is an image or a video, judged by its content.

    What Pillow reads is an image, unless it is an animation that PyAV reads. What only
    PyAV reads, with more than one frame, is a video. Of the rest, the ending decides;
    None if it is neither.
    """
    if path.exists() and not path.is_file():  # a pipe or a device
        return None
    try:
        images.image_size(path)
        is_image = True
    except DatasetError:
        is_image = False
    if is_image and _pages(path) == 1:
        return "image"
    try:
        if video.is_video(path):
            return "video"
    except video.VideoError:  # PyAV is not installed
        pass
    ending = path.suffix.lower()
    if not is_image and ending in VIDEO_ENDINGS:
        return "video"
    return "image" if is_image or ending in images.image_suffixes() else None


def find_conflict(files: Iterable[Input], out: Path) -> str | None:
    """Return why results would overwrite each other or the inputs, or None."""
    seen: dict[tuple, Path] = {}
    out = out.resolve()
    for file in files:
        folder = file.path.parent.resolve()
        if folder == out or out in folder.parents:
            return f"{file.path} is inside the output folder; choose another one"
        key = (str(file.result).lower(), file.kind)
        other = seen.setdefault(key, file.path)
        # unlike resolve(), realpath() takes a link that leads to itself
        if os.path.realpath(other) != os.path.realpath(file.path):
            return (
                f"{other} and {file.path} would have results of the same name; "
                "segment them separately, with different output folders"
            )
    return None


def segment_image(
    saved: SavedModel, file: Input, out: Path, hflip_tta: bool = False
) -> str | None:
    """Write the mask and the overlay of an image.

    Args:
        saved: The network; it is fed at its `input_size`.
        file: The image.
        out: The output folder.
        hflip_tta: Average with the mirrored image.

    Returns:
        What of the file was not segmented, in words, or None.

    Raises:
        DatasetError: If it cannot be read.
    """
    image = images.read_image(file.path)
    mask = _predict(saved, image, hflip_tta)
    result = out / file.result
    result.parent.mkdir(parents=True, exist_ok=True)
    ending = "jpg" if max(mask.shape) <= MAX_JPEG_SIDE else "png"
    with atomic_write(Path(f"{result}_overlay.{ending}")) as draft:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0))
        colored = Image.fromarray(_overlay(pixels, mask, saved.labels))
        colored.save(draft, format={"jpg": "JPEG"}.get(ending, "PNG"), quality=90)
    with atomic_write(Path(f"{result}_mask.png")) as draft:
        save_mask(mask, draft, saved.labels)
    if (pages := _pages(file.path)) > 1:
        return f"{file.path.name} holds {pages} images; only the first was segmented"
    return None


def _pages(path: Path) -> int:
    """Return how many images a file holds, 1 if it cannot be read."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the size of panoramas
        with Image.open(path) as file:
            return images.count_pages(file)
    return 1


def segment_video(
    saved: SavedModel, file: Input, out: Path, every: int = 1, hflip_tta: bool = False
) -> str | None:
    """Write the masks of a video's frames, and the video with colored frames.

    Args:
        saved: The network; it is fed at its `input_size`.
        file: The video.
        out: The output folder.
        every: Take every so many frames.
        hflip_tta: Average with the mirrored image.

    Returns:
        Which frames could not be read, in words, or None.

    Raises:
        video.VideoError: If no frame can be read.
    """
    reader = video.read_frames(file.path)
    result = out / file.result
    result.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_dir(Path(f"{result}_masks")) as masks,
        video.open_writer(Path(f"{result}_overlay.mp4")) as writer,
    ):
        for frame in _every(reader, every):
            image = torch.from_numpy(frame.image).permute(2, 0, 1)
            mask = _predict(saved, image, hflip_tta)
            save_mask(mask, masks / f"{frame.index:06}.png", saved.labels)
            writer.pixel_aspect = reader.pixel_aspect
            writer.write(_overlay(frame.image, mask, saved.labels), frame.time)
    return reader.problems()


def _every(reader: video.FrameReader, every: int) -> Iterator[video.Frame]:
    """Yield the first frame, and then each that is at least `every` further on."""
    wanted = 0
    for frame in runtime.progress(reader, reader.path.name, reader.expected):
        if frame.index >= wanted:
            yield frame
            wanted = (frame.index // every + 1) * every


def save_mask(mask: np.ndarray, path: Path, labels: LabelSet) -> None:
    """Write a mask (H, W) as a PNG of ids, shown in the colors of the label set."""
    image = Image.fromarray(mask)
    image.putpalette(labels.palette().tobytes())
    image.save(path, format="PNG")


def _predict(saved: SavedModel, image: Tensor, hflip_tta: bool) -> np.ndarray:
    mask = inference.predict(
        saved.model, image[None], saved.input_size, hflip_tta, labels=saved.labels
    )
    return mask[0].numpy()


def _overlay(image: np.ndarray, mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Color an image (H, W, 3) in strips: few copies of a panorama fit in memory."""
    colored = np.empty_like(image)
    rows = max(1, STRIP_PIXELS // image.shape[1])
    for top in range(0, len(image), rows):
        strip = slice(top, top + rows)
        pixels = torch.from_numpy(image[strip]).permute(2, 0, 1)
        colored[strip] = plots.overlay(pixels, mask[strip], labels=labels)
    return colored
