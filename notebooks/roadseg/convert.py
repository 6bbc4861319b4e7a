"""Convert masks of any coding to class ids: numbers, palettes, colors."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from roadseg.classes import Color, LabelError, LabelSet
from roadseg.files import DatasetError
from roadseg.images import decoded, lossy_format
from roadseg.scenes import LABELS_FILE

EDGE_WIDTH = 2
"""How far from a class a pixel of an anti-aliased edge can be, in pixels."""

OFF_LINE = 16.0
"""How far the color of such a pixel may be from the line between two colors."""

MAX_MIXED = 0.5
"""Share of unknown pixels above which they can't be edges alone."""


# ---- Which code stands for which class --------------------------------------------


@dataclass(frozen=True)
class SourceClass:
    """A class as the source describes it; None for what it does not say."""

    name: str
    value: int | None = None
    color: Color | None = None


def read_source_classes(folder: Path) -> list[SourceClass]:
    """Return the classes that a folder describes in a file; none if there is no file.

    The file is labels.json, or CVAT's labelmap.txt.
    """
    for name, read in ((LABELS_FILE, _from_labels), ("labelmap.txt", _from_labelmap)):
        if (folder / name).is_file() and (found := read(folder / name)):
            return found
    return []


def _from_labels(path: Path) -> list[SourceClass]:
    labels = LabelSet.load(path)
    found = [
        SourceClass(name, i, color)
        for i, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True))
    ]
    if labels.ignore_index >= labels.num_classes:
        found.append(SourceClass("ignored", labels.ignore_index))
    return found


def _from_labelmap(path: Path) -> list[SourceClass]:
    pattern = r"([^:#]+):(\d+),(\d+),(\d+):.*"
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    matches = filter(None, (re.fullmatch(pattern, line.strip()) for line in lines))
    return [
        SourceClass(m[1].strip(), i, (int(m[2]), int(m[3]), int(m[4])))
        for i, m in enumerate(matches)
    ]


def labels_of_source(classes: Sequence[SourceClass]) -> LabelSet:
    """Return the label set that a source's own classes make up."""
    classes = [c for c in classes if c.name != "ignored"]
    colors = [c.color for c in classes]
    return LabelSet(
        tuple(c.name for c in classes), () if None in colors else tuple(colors)
    )


@dataclass
class Codes:
    """Which number, color and name in a source stands for which class id."""

    labels: LabelSet
    values: dict[int, int] = field(default_factory=dict)
    colors: dict[Color, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)  # casefolded
    source: Sequence[SourceClass] = ()
    assumed: set[int] = field(default_factory=set)  # taken for ignored, unasked

    @classmethod
    def build(
        cls,
        labels: LabelSet,
        source: Sequence[SourceClass] = (),
        mapping: Iterable[str] = (),
    ) -> "Codes":
        """Return the codes of a source.

        Args:
            labels: The classes to convert to.
            source: The classes of the source, which are matched by name.
            mapping: ``FROM=TO``, which goes before everything else. FROM is a number,
                a color such as #ff8000, or a name of the source; TO is a class, by
                name or id, or "ignore".

        Raises:
            DatasetError: If a mapping can't be understood.
        """
        codes = cls(labels, source=source)
        ignored = labels.ignore_index
        for i, name in enumerate(labels.names):
            codes.names[name.casefold()] = i
        codes.names.setdefault("ignored", ignored)
        for known in source:
            target = codes.names.get(known.name.casefold())
            if target is not None:
                codes._add(known, target)
        if not source:
            codes.values |= {i: i for i in labels.ids}
        for value in (255, 65535):  # ignored in most datasets, in 8 bits and in 16
            if value not in codes.values:
                codes.values[value] = ignored
                codes.assumed.add(value)
        shown = {c.color for c in source}
        for i, color in enumerate(labels.colors):
            if color not in shown:
                codes.colors.setdefault(color, i)
        if (0, 0, 0) not in shown:
            codes.colors.setdefault((0, 0, 0), ignored)
        for entry in mapping:
            codes._map(entry)
        return codes

    def _add(self, known: SourceClass, target: int) -> None:
        self.names[known.name.casefold()] = target
        if known.value is not None:
            self.values[known.value] = target
        if known.color is not None:
            self.colors[known.color] = target

    def _map(self, entry: str) -> None:
        code, equals, target = (part.strip() for part in entry.rpartition("="))
        if not equals or not code:
            raise DatasetError(f"a mapping is FROM=TO, such as 255=ignore: {entry!r}")
        if target.casefold() == "ignore":
            new = self.labels.ignore_index
        elif target.isdigit() and int(target) in self.labels.ids:
            new = int(target)
        else:
            try:
                new = self.labels.class_id(target)
            except LabelError as error:
                raise DatasetError(f"{entry}: {error}") from None
        named = [c for c in self.source if c.name.casefold() == code.casefold()]
        if code.isdigit():
            self.assumed.discard(int(code))
            known = next((c for c in self.source if c.value == int(code)), None)
            self._add(known or SourceClass(code, int(code)), new)
        elif re.fullmatch("#[0-9a-fA-F]{6}", code):
            self.colors[tuple(bytes.fromhex(code[1:]))] = new
        elif named:
            self._add(named[0], new)
        else:
            there = ", ".join(c.name for c in self.source) or "no names"
            raise DatasetError(
                f"{entry}: {code!r} is not a number, a color such as #ff8000, or a "
                f"class of the source (which has {there})"
            )


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


def convert_mask(
    path: Path, codes: Codes, tolerance: float = 0, palette: str = "auto"
) -> Converted:
    """Read a mask of any coding.

    Args:
        path: The file: numbers of 1 to 16 bits, a palette, or colors.
        codes: What stands for which class.
        tolerance: Largest distance of a color from that of its class, in RGB.
        palette: Whether masks with a palette are read by "color" or "index"; "auto"
            takes the colors if those in use are all classes' colors.

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
            entries = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            entries = np.concatenate([entries, np.zeros((256 - len(entries), 3))])
            entries, indices = entries.astype(np.uint8), np.array(image)
            if palette == "color" or (entries != entries[:, :1]).any():
                return _by_palette(indices, entries, codes, tolerance, palette)
            # gray levels, not colors; only through a palette can a GIF hold them
            values = entries[indices, 0] if image.format == "GIF" else indices
            return _by_value(values.astype(np.int64), codes)
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
        found = _by_value(rgb[..., 0].astype(np.int64), codes)
        known = _packed(np.array(list(codes.colors)))
        if not found.unknown and not np.isin(_packed(rgb), known).all():
            return found
    return _by_color(rgb, codes, tolerance)


def _by_value(values: np.ndarray, codes: Codes) -> Converted:
    unique, inverse = np.unique(values, return_inverse=True)
    ids = [codes.values.get(int(v), -1) for v in unique]
    ids = np.array(ids, np.int16)[inverse].reshape(values.shape)
    left, names = ids < 0, {c.value: f" ({c.name})" for c in codes.source}
    found, counts = np.unique(values[left], return_counts=True)
    unknown = Counter(
        {
            f"id {v}{names.get(v, '')}": n
            for v, n in zip(found.tolist(), counts.tolist(), strict=True)
        }
    )
    ids[left] = codes.labels.ignore_index
    assumed = int(np.isin(values, list(codes.assumed)).sum())
    return Converted(ids.astype(np.uint8), unknown, left, assumed=assumed)


def _by_palette(
    indices: np.ndarray, entries: np.ndarray, codes: Codes, tolerance: float, how: str
) -> Converted:
    used = np.unique(indices)
    beyond = used >= codes.labels.num_classes
    colored = [tuple(entries[i].tolist()) in codes.colors for i in used]
    void = (used == 255) & beyond & np.isin(255, list(codes.values))
    by_color = how == "color" or (how == "auto" and (colored | void).all())
    if not by_color:
        return _by_value(indices.astype(np.int64), codes)
    found = _by_color(entries[indices], codes, tolerance)
    if void.any():  # an outline that is ignored has a color of its own
        left = found.left & (indices == 255)
        found.unknown = _count_colors(entries[indices], found.left & ~left)
        found.left &= ~left
    found.coding = "palette colors"
    return found


def _packed(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _count_colors(rgb: np.ndarray, where: np.ndarray) -> Counter:
    found, counts = np.unique(_packed(rgb[where]), return_counts=True)
    return Counter(
        {f"#{c:06x}": n for c, n in zip(found.tolist(), counts.tolist(), strict=True)}
    )


def _by_color(rgb: np.ndarray, codes: Codes, tolerance: float) -> Converted:
    palette = np.array(list(codes.colors), float)
    targets = np.array(list(codes.colors.values()), np.uint8)
    unique, inverse = np.unique(_packed(rgb), return_inverse=True)
    colors = np.stack([unique >> 16, unique >> 8 & 255, unique & 255], -1).astype(float)
    distance = np.full(len(unique), np.inf)
    owner = np.zeros(len(unique), np.int16)
    for k, color in enumerate(palette):
        own = np.linalg.norm(colors - color, axis=1)
        owner[own < distance] = k
        distance = np.minimum(distance, own)
    owner, distance = (x[inverse].reshape(rgb.shape[:2]) for x in (owner, distance))
    off = distance > 0
    edge = np.zeros(off.shape, bool)
    if 0 < off.mean() <= MAX_MIXED:
        mixed, nearer, far = _mixtures(np.where(off, -1, owner), rgb, palette)
        edge[off], owner[off] = mixed, np.where(mixed, nearer, owner[off])
        distance[off] = np.where(mixed, far, distance[off])
    left = distance > tolerance
    ids = np.where(left, codes.labels.ignore_index, targets[owner]).astype(np.uint8)
    return Converted(
        ids,
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
    for dy in range(2 * EDGE_WIDTH + 1):
        for dx in range(2 * EDGE_WIDTH + 1):
            beside = padded[rows + dy, columns + dx]
            (there,) = np.nonzero(beside >= 0)
            near[there, beside[there]] = True
    off = np.full(len(rows), np.inf)
    for a, b in combinations(np.flatnonzero(near.any(0)), 2):
        (both,) = np.nonzero(near[:, a] & near[:, b])
        line, part = palette[b] - palette[a], colors[both] - palette[a]
        t = np.clip(part @ line / max(line @ line, 1), 0, 1)
        off[both] = np.minimum(
            off[both], np.linalg.norm(part - t[:, None] * line, axis=1)
        )
    # where three classes meet, the mixture lies in no line
    off[near.sum(1) > 2] = 0
    distance = np.full(near.shape, np.inf)
    for k in np.flatnonzero(near.any(0)):
        (there,) = np.nonzero(near[:, k])
        distance[there, k] = np.linalg.norm(colors[there] - palette[k], axis=1)
    nearer = distance.argmin(1)
    return off <= OFF_LINE, nearer, distance.min(1, initial=np.inf)
