"""Convert the images and masks that people have to a dataset that `roadseg` reads.

`prepare` finds pairs in what annotation tools and other datasets write (folders of
images and masks, with subfolders, suffixes and splits; Pascal VOC; Cityscapes; COCO),
converts the masks to class ids (see `roadseg.convert`), splits the scenes, and writes
dataset1's layout with a labels.json.
"""

import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from roadseg import files, runtime
from roadseg.classes import CAMVID, LabelSet
from roadseg.coco import draw_annotations, find_annotations, read_annotations
from roadseg.convert import (
    Codes,
    Converted,
    convert_mask,
    labels_of_source,
    read_source_classes,
)
from roadseg.doctor import check
from roadseg.files import DatasetError
from roadseg.images import OrientationError, image_size, load_image, read_image
from roadseg.pairs import Problems, sequence_of
from roadseg.report import Figure, Report, Table, plural
from roadseg.scenes import DATASET1_LAYOUT, LABELS_FILE, split_by_block
from roadseg.sources import Item, find_scenes, name_of, split_of


class PrepareError(DatasetError):
    """Nothing was written; `report` has all that was found."""

    def __init__(self, report: Report) -> None:
        self.report = report
        errors = [f for f in report.findings if f.severity == "error"]
        super().__init__("; ".join(f"{f.message} ({f.named(3)})" for f in errors))


def prepare(
    source: Path,
    out: Path,
    *,
    labels: LabelSet | None = None,
    mapping: Sequence[str] = (),
    tolerance: float = 0,
    unknown: str = "refuse",
    palette: str = "auto",
    split: str = "keep",
    images: Path | None = None,
    masks: Path | None = None,
    mask_suffix: str | None = None,
) -> Report:
    """Convert a dataset.

    Args:
        source: A folder, or a file of COCO annotations.
        out: The folder to write, which must not exist.
        labels: The classes to convert to. Without them, those that the source
            describes, or CamVid's.
        mapping: ``FROM=TO`` pairs, see `Codes.build`.
        tolerance: Largest distance in RGB between a color and that of its class.
        unknown: Whether to "refuse" or to "ignore" what stands for no class.
        palette: How to read masks with a palette, see `convert_mask`.
        split: "keep" that of the source, "block:FRACTION", or "sequence:NAME"; what
            the latter two hold out becomes the split "test".
        images, masks: Folders in `source`, if their names don't tell what they hold.
        mask_suffix: Take the masks whose names end like this, and no others.

    Returns:
        What was converted and decided, and what `roadseg.doctor.check` finds.

    Raises:
        PrepareError: If files can't be converted, or hold what stands for no class.
        DatasetError: If the arguments or the layout can't be used.
    """
    source, out = Path(source), Path(out)
    _check_paths(source, out)
    report = Report(f"Conversion of {source.resolve().name} to {out.resolve().name}")
    outlines = [source] if source.is_file() else []
    found = [] if outlines else find_scenes(source, images, masks, mask_suffix, report)
    if not found and report.failed():
        advice = "name the folders with --images and --masks if they are others"
        report.add("error", "layout", f"no image has a mask; {advice}")
        raise PrepareError(report)
    if not found:
        outlines = outlines or find_annotations(source)
        if not outlines:
            raise DatasetError(
                f"{source} has no masks in folders with a usual name; give the names "
                "with --images and --masks"
            )
        root = source.parent if source.is_file() else source
        drawn, classes = read_annotations(outlines, root)
        found = [Item(split_of(c.source), name_of(c.path), c.path, c) for c in drawn]
    else:
        classes = read_source_classes(source)
    labels = labels or (labels_of_source(classes) if classes else CAMVID)
    codes = Codes.build(labels, classes, mapping)
    items = _split(sorted(found, key=lambda item: item.name), split)
    _refuse_same_names(items)
    convert = partial(_read_mask, codes=codes, tolerance=tolerance, palette=palette)
    with files.atomic_dir(out) as new:
        done = _write(items, convert, new, report)
        _describe(done, labels, unknown, convert, report)
        if report.failed():
            raise PrepareError(report)
        labels.save(new / LABELS_FILE)
    checked = check(out)
    report.labels = labels
    report.findings += checked.findings
    report.tables += checked.tables
    return report


def _check_paths(source: Path, out: Path) -> None:
    if not source.exists():
        raise DatasetError(f"{source}: there is no such folder")
    if source.is_file() and zipfile.is_zipfile(source):
        raise DatasetError(f"{source} is a zip file; unpack it and give the folder")
    if source.is_file() and source.suffix.lower() != ".json":
        raise DatasetError(f"{source} is neither a folder nor COCO annotations (.json)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists already; give a new folder")
    if out.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{out} is inside {source}; give a folder outside of it")


# ---- Split ------------------------------------------------------------------------


@dataclass
class _Listing:
    """Scenes by name only, as far as a split needs them."""

    names: list[str]
    items: list[Item]

    @property
    def sequences(self) -> list[str]:
        return [sequence_of(f"{name}.png") for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices) -> "_Listing":
        return _Listing(
            *([part[i] for i in indices] for part in (self.names, self.items))
        )


def _split(items: list[Item], how: str) -> list[Item]:
    kind, _, value = how.partition(":")
    if kind == "keep":
        return [replace(item, split=item.split or "train") for item in items]
    listing = _Listing([item.name for item in items], items)
    if kind == "block":
        try:
            fraction = float(value or 0.2)
        except ValueError:
            raise DatasetError(f"{value!r} is no share of the scenes: {how}") from None
        held_out = split_by_block(listing, fraction)[1].items
    elif kind == "sequence":
        there = listing.sequences
        held_out = [i for i, name in zip(items, there, strict=True) if name == value]
        if not 0 < len(held_out) < len(items):
            raise DatasetError(
                f"there is no sequence {value!r} beside others; there are "
                f"{', '.join(sorted(set(there)))}"
            )
    else:
        raise DatasetError(f"a split is keep, block:0.2 or sequence:NAME, not {how!r}")
    names = {(item.split, item.name) for item in held_out}
    return [
        replace(i, split="test" if (i.split, i.name) in names else "train")
        for i in items
    ]


def _refuse_same_names(items: list[Item]) -> None:
    seen: dict[tuple, Item] = {}
    for item in items:
        key = (item.split, item.name.casefold())
        if key in seen:
            raise DatasetError(
                f"{item.image} and {seen[key].image} would get the same name, "
                f"{item.name}; rename one of them"
            )
        seen[key] = item


# ---- Write ------------------------------------------------------------------------


def _read_mask(item: Item, codes: Codes, tolerance: float, palette: str) -> Converted:
    if isinstance(item.mask, Path):
        return convert_mask(item.mask, codes, tolerance, palette)
    names = {c.value: c.name for c in codes.source if c.value is not None}
    size = item.mask.size or image_size(item.image)
    return draw_annotations(size, item.mask.annotations, names, codes)


@dataclass(frozen=True)
class _Done:
    """What is kept of a scene that was written."""

    item: Item
    mask: Converted  # without its arrays
    pixels: int
    left: int  # pixels that stand for no class
    turned: bool  # whether the image is not a copy


def _write(
    items: list[Item], convert: Callable, new: Path, report: Report
) -> list[_Done]:
    """Write all scenes; return what is known of those that could be."""
    problems = Problems()
    for split in {item.split for item in items}:
        for folder in DATASET1_LAYOUT.folders(split):
            (new / folder).mkdir(parents=True, exist_ok=True)

    def work(item: Item) -> _Done | None:
        path = item.mask if isinstance(item.mask, Path) else item.image
        try:
            mask = convert(item)
            path = item.image
            to, masks = (new / part for part in DATASET1_LAYOUT.folders(item.split))
            turned = _write_image(item, mask.ids.shape, to)
            Image.fromarray(mask.ids).save(masks / f"{item.name}.png")
        except DatasetError as error:
            problems.add(path, error)
            return None
        bare = replace(mask, ids=np.empty(0), left=np.empty(0))
        return _Done(item, bare, mask.ids.size, int(mask.left.sum()), turned)

    with ThreadPoolExecutor() as pool:
        jobs = pool.map(work, items)
        try:
            done = list(runtime.progress(jobs, "converting", len(items)))
        finally:
            pool.shutdown(cancel_futures=True)
    for reason, names in problems.by_reason.items():
        report.add("error", "files", f"{plural(len(names), 'file')}: {reason}", names)
    return [result for result in done if result]


def _write_image(item: Item, size: tuple[int, ...], folder: Path) -> bool:
    """Copy an image, or write it upright; return whether it had to be turned."""
    turned = False
    try:
        shape = tuple(load_image(item.image).shape[1:])
    except OrientationError:
        turned = True
        pixels = read_image(item.image).permute(1, 2, 0).numpy()
        if pixels.shape[:2] != size == pixels.shape[1::-1]:  # the mask isn't turned
            pixels = np.asarray(Image.open(item.image).convert("RGB"))
        shape = pixels.shape[:2]
        Image.fromarray(pixels).save(folder / f"{item.name}.png", compress_level=1)
    else:
        shutil.copyfile(item.image, folder / f"{item.name}{item.image.suffix.lower()}")
    if shape != size:
        words = (" x ".join(map(str, side)) for side in (shape, size))
        raise DatasetError("is {}, but its mask {}".format(*words))
    return turned


# ---- Report -----------------------------------------------------------------------


def _describe(
    done: list[_Done], labels: LabelSet, unknown: str, convert: Callable, report: Report
) -> None:
    """Add to the report what was converted and what had to be decided."""
    counts = sorted(Counter(d.item.split for d in done).items())
    scenes = " and ".join(f"{n} {split}" for split, n in counts)
    names = ", ".join(labels.names)
    report.add("note", "scenes", f"{scenes or 'none'}, with the classes {names}")
    if turned := [d.item.image.name for d in done if d.turned]:
        words = "with an EXIF orientation, saved as PNG: look at them"
        report.add(
            "warning", "images", f"{plural(len(turned), 'image')} {words}", turned
        )
    codings = Counter(d.mask.coding for d in done).most_common()
    words = ", ".join(f"{n} with {coding}" for coding, n in codings)
    rare = [d.item.image.name for d in done if d.mask.coding != codings[0][0]]
    severity = "warning" if len(codings) > 1 else "note"
    report.add(severity, "masks", f"read {words or 'none'}", rare)
    for count, words in (
        (
            "assumed",
            "with the id 255 or 65535, taken for ignored unless mapped",
        ),
        (
            "nearest",
            "with a color near that of a class, which they got",
        ),
        ("edges", "on anti-aliased edges, mixtures of the colors of two classes"),
    ):
        if some := [d for d in done if getattr(d.mask, count)]:
            some.sort(key=lambda d: -getattr(d.mask, count))
            pixels = sum(getattr(d.mask, count) for d in some)
            report.add(
                "note",
                "values" if count == "assumed" else "colors",
                f"{_share(pixels, done)} in {plural(len(some), 'mask')}: {words}",
                [d.item.image.name for d in some],
            )
    left = sorted((d for d in done if d.left), key=lambda d: -d.left)
    if left:
        _describe_unknown(left, done, labels, unknown, convert, report)


def _describe_unknown(
    left: list[_Done],
    done: list[_Done],
    labels: LabelSet,
    unknown: str,
    convert: Callable,
    report: Report,
) -> None:
    codes: Counter = Counter()
    masks: Counter = Counter()
    first: dict[str, str] = {}
    for d in sorted(left, key=lambda d: d.item.name):
        codes += d.mask.unknown
        masks.update(d.mask.unknown.keys())
        first = dict.fromkeys(d.mask.unknown, d.item.image.name) | first
    edges = sum(d.mask.edges_left for d in left)
    most = codes.most_common(10)
    kinds = [
        f"{code} {plural(n, 'pixel')}, first in {first[code]}" for code, n in most[:3]
    ]
    kinds += [f"{len(codes) - 3} others"] if len(codes) > 3 else []
    kinds += [f"anti-aliased edges {plural(edges, 'pixel')}"] if edges else []
    pixels = sum(d.left for d in left)
    start = f"{_share(pixels, done)} in {plural(len(left), 'mask')} for no class"
    if unknown == "ignore":
        end = "they are ignored now"
    else:
        end = (
            "say what they are with --map, take the nearest color with --tolerance, or "
            "ignore them with --unknown ignore"
        )
    report.add(
        "warning" if unknown == "ignore" else "error",
        "unknown",
        f"{start} ({'; '.join(kinds)}): {end}",
        [d.item.image.name for d in left],
        lambda: [_unknown_figure(d.item, convert) for d in left[:3]],
    )
    rows = tuple((code, str(n), str(masks[code]), first[code]) for code, n in most)
    if rows:
        columns = ("in the masks", "pixels", "masks", "first")
        report.tables.append(Table("What stands for no class", columns, rows))


def _share(pixels: int, done: list[_Done]) -> str:
    total = sum(d.pixels for d in done)
    return f"{plural(pixels, 'pixel')} ({pixels / total:.2%})"


def _unknown_figure(item: Item, convert: Callable) -> Figure:
    mask = convert(item)
    image = read_image(item.image).permute(1, 2, 0).numpy().copy()
    if image.shape[:2] == mask.left.shape:
        image[mask.left] = (255, 0, 255)
    words = "The image with the pixels that stand for no class in magenta"
    return Figure(image, item.image.name, f"{words}: {item.image.name}")
