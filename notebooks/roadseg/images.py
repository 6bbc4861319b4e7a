"""Read one image or one mask, whatever format it has, or say what is wrong with it."""

import os
import re
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor

from roadseg.classes import CAMVID, LabelSet
from roadseg.files import DatasetError

MAX_PIXELS = 2**29
"""Pixels of an image that is read; more is taken for a damaged or malicious file."""

# Text in a PNG is bounded by this instead of Pillow's 1 MB, which editors exceed.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28


class OrientationError(DatasetError):
    """An image would have to be turned, and must not be."""


@contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Put what a DatasetError is about at the beginning of its message."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{prefix}{error}") from None


_NOT_IMAGES = {"EPS", "WMF", "PDF", "BUFR", "GRIB", "HDF5", "MPEG"}
_LOSSY = {"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "HEIF"}
_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC = "is a HEIC file; to read it, install the package pillow-heif"
_JXL = "is a JPEG XL file, which Pillow does not read; save it as PNG"
_OTHERS = (  # what the first bytes of a file that is no readable image say
    (rb"\Z", "is empty"),
    (rb"\0+\Z", "holds nothing but zeros"),
    (
        rb"....ftypavi[fs]",
        "is an AVIF file, which this Pillow does not read",
    ),
    (rb"....ftyp(hei[cxms]|hevc|mif1)", _HEIC),
    (rb"....ftyp", "is a video (MP4 or QuickTime)"),
    (rb"RIFF....AVI ", "is a video (AVI)"),
    (rb"\x1aE\xdf\xa3", "is a video (Matroska or WebM)"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", _JXL),
    (rb"\xff\xd8\xff", "is a JPEG file"),
    (rb"\x89PNG", "is a PNG file"),
    (rb"PK\x03\x04", "is a zip archive"),
    (rb"%PDF", "is a PDF document"),
    (rb"\x93NUMPY", "is a NumPy array"),
    (rb"version https://git-lfs", "is a Git LFS pointer; get it with git lfs pull"),
    (rb"\0\x05\x16\x07", "is a macOS resource fork, not the image itself"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype html|<html)", "is a web page"),
    (rb"(?i).*<svg", "is an SVG drawing; export it as PNG"),
)


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that Pillow reads here, HEIC too if its plugin is there."""
    Image.init()
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in Image.OPEN if name not in _NOT_IMAGES)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of files that are meant to be images.

    These are the ones that Pillow reads here, and those of HEIC, JPEG XL and raw
    files, so that such a file is reported rather than passed over.
    """
    known = Image.registered_extensions() if _formats() else {}
    readable = {ending for ending, kind in known.items() if kind in _formats()}
    return frozenset(readable | _RAW | {".heic", ".heif", ".hif", ".jxl", ".avif"})


class _PixelLimit:
    """Lifts Pillow's limit on pixels while images are read, in any thread.

    Pillow refuses 179 million pixels and warns at half of it, which a panorama of
    20000 x 10000 exceeds; `MAX_PIXELS` takes its place.
    """

    lock, readers, limit = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            if not _PixelLimit.readers:
                _PixelLimit.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _PixelLimit.readers += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            _PixelLimit.readers -= 1
            if not _PixelLimit.readers:
                Image.MAX_IMAGE_PIXELS = _PixelLimit.limit


@contextmanager
def _opened(source: Path | BytesIO, start: bytes) -> Iterator[Image.Image]:
    """Yield an image that is open but not decoded; all its errors are DatasetError."""
    try:
        with _PixelLimit(), Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DatasetError(
                    f"announces {height} x {width} pixels in its header, more than the "
                    f"{MAX_PIXELS} that are read at once; crop it or scale it down"
                )
            yield image
    except Image.UnidentifiedImageError:
        told = (words for what, words in _OTHERS if re.match(what, start, re.DOTALL))
        raise DatasetError(next(told, "is not an image that Pillow reads")) from None
    except (
        *(OSError, SyntaxError, ValueError, EOFError, OverflowError),
        *(struct.error, TypeError, LookupError),  # malformed EXIF data
    ) as error:
        # Pillow reports a damaged file in all these ways.
        words = " ".join(str(error).split())
        raise DatasetError(f"is damaged or cut off ({words})") from None


@contextmanager
def decoded(path: Path, upright: bool = False) -> Iterator[tuple[Image.Image, int]]:
    """Yield a decoded image, turned as EXIF asks for, and its bits per channel.

    With `upright`, for datasets, an image that has to be turned is refused, and so is
    a file with several images.
    """
    if not path.is_file():
        raise DatasetError("does not exist")
    if path.suffix.lower() in _RAW:
        raise DatasetError("is a camera's raw file; export it as PNG or JPEG")
    data = path.read_bytes()  # in memory: Pillow garbles rotated TIFFs that it maps
    with _opened(BytesIO(data), data[:256]) as image:
        if image.format == "PNG":
            image.verify()  # the checksum of every chunk, which load() ignores
    with _opened(BytesIO(data), data[:256]) as image:
        if upright and (pages := count_pages(image)) > 1:
            raise DatasetError(f"holds {pages} images; save each in a file of its own")
        asked = image.getexif().get(ExifTags.Base.Orientation)
        image.load()  # turns a TIFF upright, and finds what follows a PNG's pixels
        left = image.getexif().get(ExifTags.Base.Orientation)
        if upright and (turn := {asked, left} & _TRANSPOSE.keys()):
            raise OrientationError(
                f"has EXIF orientation {turn.pop()}, so it may not match its partner; "
                "save both upright, without this tag"
            )
        depth = data[24] if image.format == "PNG" else 8
        if image.format == "TIFF":
            depth = max(image.tag_v2.get(258, (1,)))  # BitsPerSample
        yield _transposed(image, left), depth


def _transposed(image: Image.Image, orientation: object) -> Image.Image:
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _to_8_bits(image: Image.Image, depth: int) -> tuple[Image.Image, int]:
    """Scale an image to 8 bits by the range of the bits in use; return both."""
    if image.mode == "F":
        raise DatasetError("holds fractions; save it with 8 bits per channel")
    if not image.mode.startswith("I"):
        # Pillow keeps the higher of two bytes, which is enough if all bits are used
        if depth > 8 and max(high for _, high in _extrema(image)) < 2**6:
            raise DatasetError(
                f"has {depth} bits per channel, but its values use the lowest only; "
                "scale it to 8 bits with the program that made it"
            )
        return image, 16
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    bits = next((b for b in (8, 10, 12, 14, 16) if high < 2**b), None)
    if bits is None or low < 0:
        raise DatasetError(f"holds values from {low} to {high}; save it with 8 bits")
    most = 2**bits - 1
    scaled = (values.astype(np.uint32) * 255 + most // 2) // most
    return Image.fromarray(scaled.astype(np.uint8)), bits


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    colors = image.convert("RGB") if image.mode in ("RGBA", "LA") else image
    extrema = colors.getextrema()
    return [extrema] if isinstance(extrema[0], int) else list(extrema)


def _pixels(image: Image.Image) -> Tensor:
    """Convert an image to (3, H, W) uint8, in strips to need little more memory."""
    pixels = torch.empty(3, image.height, image.width, dtype=torch.uint8)
    rows = max(1, 2**22 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        array = np.array(strip.convert("RGB"))
        pixels[:, top : top + rows] = torch.from_numpy(array).permute(2, 0, 1)
    return pixels


def count_pages(image: Image.Image) -> int:
    """Return how many images a file holds; previews and layers do not count."""
    count = getattr(image, "n_frames", 1)
    if image.format in ("MPO", "PSD"):
        return 1
    if image.format == "TIFF" and count > 1:  # one may hold itself at smaller sizes
        reduced = 0
        for page in range(count):
            image.seek(page)
            reduced += image.tag_v2.get(254, 0) & 1  # NewSubfileType
        image.seek(0)
        count -= reduced
    return count


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width from a file's header; its errors don't name the file."""
    if not path.is_file():
        raise DatasetError("does not exist")
    with path.open("rb") as file:
        start = file.read(256)
    with _opened(path, start) as image:
        return image.height, image.width


def read_image(path: str | os.PathLike) -> Tensor:
    """Read an image in any format and mode that Pillow reads, upright, as RGB.

    EXIF orientation is applied, transparency is dropped, and grayscale, palette and
    CMYK images become RGB. Cameras store 10, 12 or 14 bits in 16: the values are
    scaled to 8 bits by the range of the bits in use, and a line says so.

    Args:
        path: The file; its content decides, whatever its ending.

    Returns:
        (3, H, W) uint8, 0 to 255.

    Raises:
        DatasetError: If there is no such file, it is damaged, or not an image; the
            message says what it is instead.
    """
    path = Path(path)
    with prefix_errors(f"{path.name} "), decoded(path) as (image, depth):
        image, bits = _to_8_bits(image, depth)
        if bits < 16:
            print(
                f"{path.name}: {bits} of 16 bits per channel are in use; the values 0 "
                f"to {2**bits - 1} are scaled to 0 to 255"
            )
        return _pixels(image)


def load_image(path: Path) -> Tensor:
    """Read an image of a dataset: as `read_image`, but nothing is guessed.

    Returns:
        (3, H, W) uint8, 0 to 255.

    Raises:
        DatasetError: Also if the image has an EXIF orientation or more than 8 bits
            per channel. The message does not name the file: callers do.
    """
    with decoded(path, upright=True) as (image, depth):
        if depth > 8 or image.mode[0] in "IF":
            raise DatasetError(
                "has more than 8 bits per channel; scale all images of the dataset to "
                "8 bits by one factor"
            )
        return _pixels(image)


def read_mask(path: str | os.PathLike, labels: LabelSet = CAMVID) -> Tensor:
    """Read a mask: the stored class ids, never converted; a palette's indices.

    Args:
        path: A PNG file, or another lossless one such as BMP or TIFF, with one 8-bit
            channel.
        labels: Which ids may occur.

    Returns:
        (H, W) uint8.

    Raises:
        DatasetError: If it is damaged, not a mask, or holds other ids.
    """
    path = Path(path)
    with prefix_errors(f"{path.name} "):
        return load_mask(path, labels)


def lossy_format(image: Image.Image) -> str | None:
    """Return what an image is compressed as if that changes its pixels, else None."""
    if image.format == "TIFF":
        packed = image.info.get("compression")
        return packed if packed in ("jpeg", "tiff_jpeg", "webp") else None
    return image.format if image.format in _LOSSY else None


def load_mask(path: Path, labels: LabelSet) -> Tensor:
    """Read a mask as `read_mask` does; its errors do not name the file: callers do."""
    with decoded(path, upright=True) as (image, depth):
        if kind := lossy_format(image):
            raise DatasetError(
                f"is compressed as {kind}, which can change ids and invents labels "
                "along borders; make the masks anew from their source, as PNG"
            )
        # Pillow scales gray levels of 1, 2 and 4 bits; it keeps a palette's indices.
        scaled = image.mode == "L" and depth != 8
        if image.mode not in ("L", "P") or scaled:
            raise DatasetError(
                f"has mode {image.mode}, {depth} bits per channel, but a mask has one "
                "8-bit channel with the class id of each pixel; convert the masks with "
                "roadseg prepare"
            )
        mask = np.array(image)
        if image.mode == "P":
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            if image.format == "GIF" and (palette == palette[:, :1]).all():
                mask = palette[mask, 0]  # the only way for a GIF to hold gray levels
            else:
                _refuse_other_order(_ids(mask), palette, labels)
    if unknown := sorted(_ids(mask) - set(labels.ids)):
        ids = ", ".join(map(str, unknown[:5])) + (", ..." if unknown[5:] else "")
        raise DatasetError(
            f"holds the label {ids}, but the {labels.num_classes} classes have the ids "
            f"0 to {labels.num_classes - 1} (ignored: {labels.ignore_index}); "
            f"convert the masks with roadseg prepare, or if {unknown[-1]} marks "
            "ignored pixels, put "
            f'{{"names": [...], "ignore_index": {unknown[-1]}}} into labels.json in '
            "the dataset's folder"
        )
    return torch.from_numpy(mask)


def _ids(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.bincount(mask.ravel())).tolist())


def _refuse_other_order(used: set[int], palette: np.ndarray, labels: LabelSet) -> None:
    """Refuse a palette that holds the classes' colors in another order than the ids."""
    owners = defaultdict(set)
    for i, color in enumerate(labels.colors):
        owners[color].add(i)
    colors = enumerate(map(tuple, palette.tolist()))
    shown = {i: owners[color] for i, color in colors if color in owners}
    classes = range(labels.num_classes)
    wrong = sorted(i for i in used & shown.keys() & set(classes) if i not in shown[i])
    # Palettes of other datasets share a color or two with ours: look at all entries.
    entries = used | set(classes[: len(palette)])
    foreign = len(entries - shown.keys())
    if wrong and 2 * foreign < len(entries):
        other = min(shown[wrong[0]])
        raise DatasetError(
            f"has a palette that contradicts its ids: id {wrong[0]} has the color of "
            f"{labels.names[other]}, which is id {other}; convert the masks by their "
            "colors with roadseg prepare"
        )
