"""Convert masks of any coding to class ids: numbers, palettes, colors, outlines."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np

from roadseg.classes import Color, LabelSet
from roadseg.files import DatasetError
from roadseg.images import decoded, lossy_format
from roadseg.scenes import LABELS_FILE

EDGE_WIDTH = 2
"""How far from a class a pixel of an anti-aliased edge can be, in pixels."""

OFF_LINE = 16.0
"""How far the color of such a pixel may be from the line between two colors."""

MAX_MIXED = 0.5
"""Share of unknown pixels above which they can't be edges alone."""

BACKGROUND = "background"
"""The class of pixels without COCO annotation, if there is one of this name."""


# ---- Which code stands for which class --------------------------------------------


@dataclass(frozen=True)
class SourceClass:
    """A class as the source describes it; None for what it does not say."""

    name: str
    value: int | None = None
    color: Color | None = None


def read_source_classes(folder: Path) -> list[SourceClass]:
    """Return the classes that a folder describes, none if it does not.

    They are in labels.json, or in CVAT's labelmap.txt.
    """
    if (folder / LABELS_FILE).is_file():
        labels = LabelSet.load(folder / LABELS_FILE)
        pairs = zip(labels.names, labels.colors, strict=True)
        found = [SourceClass(name, i, color) for i, (name, color) in enumerate(pairs)]
        if labels.ignore_index >= labels.num_classes:
            found.append(SourceClass("ignored", labels.ignore_index))
        return found
    if not (path := folder / "labelmap.txt").is_file():
        return []
    line = r"^\s*([^:#\n]+):(\d+),(\d+),(\d+):"
    found = re.findall(line, path.read_text(encoding="utf-8-sig"), re.M)
    return [
        SourceClass(name.strip(), i, tuple(map(int, color)))
        for i, (name, *color) in enumerate(found)
    ]


def labels_of_source(classes: Sequence[SourceClass]) -> LabelSet:
    """Return the label set that a source's own classes make up."""
    classes = [c for c in classes if c.name != "ignored"]
    colors = [c.color for c in classes]
    return LabelSet(
        tuple(c.name for c in classes), () if None in colors else tuple(colors)
    )


class Codes:
    """Which number, color and name in a source stands for which class id.

    Args:
        labels: The classes to convert to.
        source: The classes of the source, which are matched by name.
        mapping: ``FROM=TO``, which goes before everything else. FROM is a number, a
            color such as #ff8000, or a name of the source; TO is a class, by name or
            id, or "ignore".

    Raises:
        DatasetError: If a mapping can't be understood.
        LabelError: If it leads to a class that there is not.
    """

    def __init__(
        self,
        labels: LabelSet,
        source: Sequence[SourceClass] = (),
        mapping: Iterable[str] = (),
    ) -> None:
        self.labels, self.source, ignored = labels, source, labels.ignore_index
        self.names = {name.casefold(): i for i, name in enumerate(labels.names)}
        self.names.setdefault("ignored", ignored)
        self.values = {} if source else {i: i for i in labels.ids}
        self.colors: dict[Color, int] = {}
        for known in source:
            if (target := self.names.get(known.name.casefold())) is not None:
                self._add(known, target)
        # most datasets mean ignored pixels by these, in 8 bits and in 16
        self.assumed = {255, 65535} - self.values.keys()
        self.values |= dict.fromkeys(self.assumed, ignored)
        shown = {c.color for c in source}
        for i, color in [*enumerate(labels.colors), (ignored, (0, 0, 0))]:
            if color not in shown:
                self.colors.setdefault(color, i)
        for entry in mapping:
            self._map(entry)

    def _add(self, known: SourceClass, target: int) -> None:
        self.names[known.name.casefold()] = target
        if known.value is not None:
            self.values[known.value] = target
        if known.color is not None:
            self.colors[known.color] = target

    def _map(self, entry: str) -> None:
        code, _, target = (part.strip() for part in entry.rpartition("="))
        if not code:
            raise DatasetError(f"a mapping is FROM=TO, such as 255=ignore: {entry!r}")
        if target.casefold() == "ignore":
            new = self.labels.ignore_index
        elif target.isdigit() and int(target) in self.labels.ids:
            new = int(target)
        else:
            new = self.labels.class_id(target)
        if re.fullmatch("#[0-9a-fA-F]{6}", code):
            self.colors[tuple(bytes.fromhex(code[1:]))] = new
            return
        if code.isdigit():
            value = int(code)
            self.assumed.discard(value)
            known = [c for c in self.source if c.value == value]
            known = known or [SourceClass(code, value)]
        else:
            known = [c for c in self.source if c.name.casefold() == code.casefold()]
        if not known:
            there = ", ".join(c.name for c in self.source) or "no names"
            raise DatasetError(
                f"{entry}: {code!r} is not a number, a color such as #ff8000, or a "
                f"class of the source (which has {there})"
            )
        self._add(known[0], new)


# ---- Masks to ids -----------------------------------------------------------------


@dataclass
class Converted:
    """A mask as ids, and what had to be decided.

    Attributes:
        ids: (H, W) uint8; unknown pixels are ignored ones.
        unknown: Pixels of each number, color or category that stands for no class.
        left: (H, W) bool, these pixels and those of edges that are too far from both
            colors.
        nearest: Pixels with another color than that of their class.
        edges: Pixels with a mixture of the colors of classes beside them.
        assumed: Pixels of numbers such as 255 that were taken for ignored, unasked.
        coding: What the mask held: "ids", "colors", "palette colors", or "outlines".
    """

    ids: np.ndarray
    unknown: Counter
    left: np.ndarray
    nearest: int = 0
    edges: int = 0
    edges_left: int = 0
    assumed: int = 0
    coding: str = "ids"


def _count(codes: np.ndarray, name: Callable[[int], str]) -> Counter:
    """Count the pixels of each code under its name."""
    found, counts = np.unique(codes, return_counts=True)
    return Counter(dict(zip(map(name, found.tolist()), counts.tolist(), strict=True)))


def convert_mask(path: Path, codes: Codes, tolerance: float = 0) -> Converted:
    """Read a mask of any coding.

    A mask with a palette is read by its colors if those in use are all classes'
    colors, else by its indices.

    Args:
        path: The file: numbers of 1 to 16 bits, a palette, or colors.
        codes: What stands for which class.
        tolerance: Largest distance of a color from that of its class, in RGB.

    Raises:
        DatasetError: If it can't be read; the message doesn't name the file.
    """
    with decoded(path, upright=True) as (image, depth):
        lossy, mode = lossy_format(image), image.mode
        if lossy and not (tolerance and mode == "RGB"):
            raise DatasetError(
                f"is compressed as {lossy}, which changes ids and colors; take the "
                "original masks, or for masks in colors a --tolerance"
            )
        if mode == "P":
            entries = np.zeros((256, 3), np.uint8)
            given = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            entries[: len(given)], indices = given, np.array(image)
            if (entries != entries[:, :1]).any():
                return _by_palette(indices, entries, codes, tolerance)
            # gray levels, not colors; only through a palette can a GIF hold them
            is_gif = image.format == "GIF"
            return _by_value(entries[indices, 0] if is_gif else indices, codes)
        if mode in ("1", "L") or mode.startswith("I"):
            values = np.array(image).astype(np.int64)
            if mode == "L" and depth < 8:  # Pillow scales them to 255
                values = values * (2**depth - 1) // 255
            return _by_value(values, codes)
        if mode not in ("RGB", "RGBA", "LA"):
            raise DatasetError(f"has mode {mode}; save it as ids or in RGB")
        rgba = np.array(image.convert("RGBA"))
    rgb = np.where(rgba[..., 3:] == 0, 0, rgba[..., :3]).astype(np.uint8)
    if (rgb == rgb[..., :1]).all():  # gray: ids in three equal channels, or colors?
        found = _by_value(rgb[..., 0], codes)
        known = _packed(np.array(list(codes.colors)))
        if not found.unknown and not np.isin(_packed(rgb), known).all():
            return found
    return _by_color(rgb, codes, tolerance)


def _by_value(values: np.ndarray, codes: Codes) -> Converted:
    unique, inverse = np.unique(values, return_inverse=True)
    ids = np.array([codes.values.get(v, -1) for v in unique.tolist()], np.int16)
    ids = ids[inverse].reshape(values.shape)
    left, names = ids < 0, {c.value: f" ({c.name})" for c in codes.source}
    unknown = _count(values[left], lambda v: f"id {v}{names.get(v, '')}")
    ids[left] = codes.labels.ignore_index
    assumed = int(np.isin(values, list(codes.assumed)).sum())
    return Converted(ids.astype(np.uint8), unknown, left, assumed=assumed)


def _by_palette(
    indices: np.ndarray, entries: np.ndarray, codes: Codes, tolerance: float
) -> Converted:
    used = np.unique(indices)
    colored = np.array([tuple(entries[i].tolist()) in codes.colors for i in used])
    void = (used == 255) & (255 in codes.values)
    if not (colored | void).all():
        return _by_value(indices, codes)
    found = _by_color(entries[indices], codes, tolerance)
    if void.any():  # an outline that is ignored has a color of its own
        left = found.left & (indices != 255)
        found.unknown, found.left = _count_colors(entries[indices], left), left
    found.coding = "palette colors"
    return found


def _packed(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _count_colors(rgb: np.ndarray, where: np.ndarray) -> Counter:
    return _count(_packed(rgb[where]), lambda color: f"#{color:06x}")


def _distances(colors: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return the distances (N, K) of colors (N, 3) from those of classes (K, 3)."""
    return np.stack([np.linalg.norm(colors - color, axis=1) for color in palette], 1)


def _by_color(rgb: np.ndarray, codes: Codes, tolerance: float) -> Converted:
    palette = np.array(list(codes.colors), float)
    targets = np.array(list(codes.colors.values()), np.uint8)
    unique, inverse = np.unique(_packed(rgb), return_inverse=True)
    colors = np.stack([unique >> 16, unique >> 8 & 255, unique & 255], -1)
    distances = _distances(colors, palette)
    owner, distance = (
        x[inverse].reshape(rgb.shape[:2])
        for x in (distances.argmin(1), distances.min(1))
    )
    off = distance > 0
    edge = np.zeros(off.shape, bool)
    if 0 < off.mean() <= MAX_MIXED:
        mixed, nearer, far = _mixtures(np.where(off, -1, owner), rgb, palette)
        edge[off], owner[off] = mixed, np.where(mixed, nearer, owner[off])
        distance[off] = np.where(mixed, far, distance[off])
    left = distance > tolerance
    return Converted(
        np.where(left, codes.labels.ignore_index, targets[owner]).astype(np.uint8),
        _count_colors(rgb, left & ~edge),
        left,
        nearest=int((off & ~left).sum()),
        edges=int(edge.sum()),
        edges_left=int((edge & left).sum()),
        coding="colors",
    )


def _mixtures(
    owner: np.ndarray, rgb: np.ndarray, palette: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pixels of anti-aliased edges among those without the color of a class.

    Such a pixel has the color of two classes near it, mixed. It gets the nearer of
    these two, never a third class whose color happens to be like the mixture.

    Args:
        owner: (H, W) row in the palette, -1 for the N pixels in question.
        rgb: (H, W, 3) colors.
        palette: (K, 3) colors of classes.

    Returns:
        Three arrays (N,): whether it is one, the nearer class, its color's distance.
    """
    rows, columns = np.nonzero(owner < 0)
    colors = rgb[rows, columns].astype(float)
    near = np.zeros((len(rows), len(palette)), bool)
    padded = np.pad(owner, EDGE_WIDTH, constant_values=-1)
    for dy, dx in np.ndindex(2 * EDGE_WIDTH + 1, 2 * EDGE_WIDTH + 1):
        beside = padded[rows + dy, columns + dx]
        near[beside >= 0, beside[beside >= 0]] = True
    # where three classes meet, the mixture lies in no line
    off = np.where(near.sum(1) > 2, 0, np.inf)
    for a, b in combinations(np.flatnonzero(near.any(0)), 2):
        both = near[:, a] & near[:, b]
        line, part = palette[b] - palette[a], colors[both] - palette[a]
        t = np.clip(part @ line / max(line @ line, 1), 0, 1)
        away = np.linalg.norm(part - t[:, None] * line, axis=1)
        off[both] = np.minimum(off[both], away)
    distance = np.where(near, _distances(colors, palette), np.inf)
    return off <= OFF_LINE, distance.argmin(1), distance.min(1)


# ---- COCO -------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoImage:
    """An image with its annotations."""

    path: Path
    source: Path  # the file of annotations
    size: tuple[int, int] | None  # height and width, as stated there
    annotations: tuple[dict, ...]


def find_annotations(source: Path) -> list[Path]:
    """Return the files of COCO annotations: the source itself, or those in a folder."""
    if source.is_file():
        return [source]
    found = []
    for path in [*sorted(source.glob("*.json")), *sorted(source.glob("*/*.json"))]:
        with suppress(ValueError, RecursionError, TypeError):
            if "annotations" in json.loads(path.read_text(encoding="utf-8-sig")):
                found.append(path)
    return found


def read_annotations(
    files: Sequence[Path], source: Path
) -> tuple[list[CocoImage], list[SourceClass]]:
    """Read files of annotations.

    Args:
        files: JSON files that all have the same categories.
        source: The folder in which the images are.

    Returns:
        The images, and the classes: `BACKGROUND` first, then the categories.

    Raises:
        DatasetError: If a file is not one of COCO annotations, if categories differ,
            or if an image is missing.
    """
    images, categories, missing = [], {}, []
    everywhere: dict[str, list[Path]] = defaultdict(list)
    for path in source.rglob("*"):
        everywhere[path.name].append(path)
    for file in files:
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
            found = {int(c["id"]): str(c["name"]) for c in data["categories"]}
            by_image = defaultdict(list)
            for item in data["annotations"]:
                by_image[item["image_id"]].append({"area": 0, **item})
            listed = [(i["id"], str(i["file_name"]), i) for i in data["images"]]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            words = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise DatasetError(
                f"{file.name} is no file of COCO annotations ({words})"
            ) from None
        if categories and found != categories:
            raise DatasetError(f"{file.name} has other categories than {files[0].name}")
        categories = found
        for key, name, item in listed:
            if (path := _find(Path(name), file, everywhere)) is None:
                missing.append(name)
                continue
            size = (item["height"], item["width"]) if "height" in item else None
            images.append(CocoImage(path, file, size, tuple(by_image[key])))
    if missing:
        raise DatasetError(
            f"{len(missing)} images are not in {source}, such as {missing[0]}"
        )
    classes = [SourceClass(name, key) for key, name in sorted(categories.items())]
    if all(c.name.casefold() != BACKGROUND for c in classes):
        classes.insert(0, SourceClass(BACKGROUND))
    return images, classes


def _find(name: Path, file: Path, everywhere: dict[str, list[Path]]) -> Path | None:
    """Return an image: beside its annotations if there are several of the name."""
    found = everywhere[name.name]
    exact = [p for p in found if p.as_posix().endswith(f"/{name.as_posix()}")]
    near = [p for p in exact or found if p.is_relative_to(file.parent)]
    words = file.stem.replace("_", " ").split()
    split = [p for p in exact or found if p.parent.name in words]
    return next(iter(near or split or exact or found), None)


def draw_annotations(
    size: tuple[int, int], annotations: Sequence[dict], codes: Codes
) -> Converted:
    """Draw the annotations of an image, large ones first, so that none is covered.

    Args:
        size: Height and width of the image.
        annotations: COCO's annotations of it.
        codes: Of these, the names, and the source's categories by their ids. Pixels
            without annotation become `BACKGROUND` if that is the name of a class, else
            they are ignored.

    Raises:
        DatasetError: If an outline is wrong, or pycocotools is missing.
    """
    try:
        api = import_module("pycocotools.mask")
    except ImportError as error:
        raise DatasetError(
            f"COCO annotations need the package pycocotools ({error}): "
            "pip install pycocotools"
        ) from None
    ignored, names = codes.labels.ignore_index, {c.value: c.name for c in codes.source}
    ids = np.full(size, codes.names.get(BACKGROUND, ignored), np.uint8)
    left, category = np.zeros(size, bool), np.zeros(size, np.int64)
    for item in sorted(annotations, key=lambda a: -float(a["area"])):
        try:
            key, outline = int(item["category_id"]), item["segmentation"]
            if isinstance(outline, list) or isinstance(outline["counts"], list):
                outline = api.frPyObjects(outline, *size)
            if isinstance(outline, list):
                outline = api.merge(outline)
            inside = api.decode(outline).astype(bool)
        except Exception as error:  # pycocotools raises bare ones
            words = f"{type(error).__name__}: {error}"
            raise DatasetError(f"has an annotation without outline ({words})") from None
        if inside.shape != size:
            wrong = " x ".join(map(str, inside.shape))
            raise DatasetError(f"has the size {size[0]} x {size[1]}, outlines {wrong}")
        target = codes.names.get(names.get(key, "").casefold())
        ids[inside] = ignored if target is None else target
        left[inside], category[inside] = target is None, key
    unknown = _count(category[left], lambda k: f"category {names.get(k, k)}")
    return Converted(ids, unknown, left, coding="outlines")
