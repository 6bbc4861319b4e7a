"""Convert the images and masks that people have to a dataset that `roadseg` reads.

`prepare` finds pairs in what annotation tools and other datasets write (folders of
images and masks, with subfolders, suffixes and splits; Pascal VOC; Cityscapes; COCO),
converts the masks to class ids (see `roadseg.convert`), splits the scenes, and writes
dataset1's layout with a labels.json.
"""

import re
import shutil
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from roadseg import files
from roadseg.classes import CAMVID, LabelSet
from roadseg.convert import (
    CocoImage,
    Codes,
    Converted,
    convert_mask,
    draw_annotations,
    find_annotations,
    labels_of_source,
    read_annotations,
    read_source_classes,
)
from roadseg.doctor import check
from roadseg.files import DatasetError
from roadseg.images import (
    OrientationError,
    image_size,
    image_suffixes,
    load_image,
    read_image,
)
from roadseg.pairs import (
    IMAGE_SUFFIX,
    MASK_SUFFIXES,
    Problems,
    in_threads,
    match_names,
    sequence_of,
)
from roadseg.report import Figure, Report, plural
from roadseg.scenes import DATASET1_LAYOUT, LABELS_FILE, held_out_blocks

SPLITS = {
    **dict.fromkeys(("train", "training", "train2017", "default"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "val2017"), "val"),
    **dict.fromkeys(("test", "testing", "test2017"), "test"),
}
IMAGE_FOLDERS = {
    *("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "rgb", "frames"),
    *("photos", "pictures", "input", "inputs"),
}
MASK_FOLDERS = {
    *("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "gtfine"),
    *("groundtruth", "ground_truth", "segmentationclass", "segmentation", "semantic"),
}
LEFT_OUT = {"segmentationobject", "gtcoarse", "instances"}

MAX_KINDS = 5  # numbers or colors without a class that a report lists


class PrepareError(DatasetError):
    """Nothing was written; `report` has all that was found."""

    def __init__(self, report: Report) -> None:
        self.report = report
        errors = [f for f in report.findings if f.severity == "error"]
        super().__init__("; ".join(f"{f.message} ({f.named(3)})" for f in errors))


@dataclass(frozen=True)
class Item:
    """A scene to convert: its split if the source has one, and its name to be."""

    split: str | None
    name: str
    image: Path
    mask: Path | CocoImage


def prepare(
    source: Path,
    out: Path,
    *,
    labels: LabelSet | None = None,
    mapping: Sequence[str] = (),
    tolerance: float = 0,
    unknown: str = "refuse",
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
        mapping: ``FROM=TO`` pairs, see `Codes`.
        tolerance: Largest distance in RGB between a color and that of its class.
        unknown: Whether to "refuse" or to "ignore" what stands for no class.
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
    is_file = source.is_file()
    found = [] if is_file else find_scenes(source, images, masks, mask_suffix, report)
    if found:
        classes = read_source_classes(source)
    elif report.failed():
        advice = "name the folders with --images and --masks if they are others"
        report.add("error", "layout", f"no image has a mask; {advice}")
        raise PrepareError(report)
    elif outlines := find_annotations(source):
        drawn, classes = read_annotations(
            outlines, source.parent if is_file else source
        )
        found = [Item(split_of(c.source), _name_of(c.path), c.path, c) for c in drawn]
    else:
        raise DatasetError(
            f"{source} has no masks in folders with a usual name; give the names with "
            "--images and --masks"
        )
    labels = labels or (labels_of_source(classes) if classes else CAMVID)
    codes = Codes(labels, classes, mapping)
    items = _split(sorted(found, key=lambda item: item.name), split)
    convert = partial(_read_mask, codes=codes, tolerance=tolerance)
    with files.atomic_dir(out) as new:
        done = _write(items, convert, new, report)
        _describe(done, labels, report)
        _describe_unknown(done, unknown, convert, report)
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


# ---- Find -------------------------------------------------------------------------


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)


def _name_of(path: Path) -> str:
    """Return the name of a scene: that of its image, without ending and suffix."""
    return _stem(path).removesuffix(IMAGE_SUFFIX)


def split_of(annotations: Path) -> str | None:
    """Return the split that the name or the folder of COCO annotations tells."""
    words = re.split(r"[^a-z0-9]+", annotations.stem.lower())
    names = (SPLITS.get(word) for word in (*words, annotations.parent.name.lower()))
    return next(filter(None, names), None)


def _place(parts: Sequence[str]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Return what folders tell: image or mask, the split, and the other names."""
    role, split, others = None, None, []
    for part in parts:
        low = part.casefold()
        if found := re.fullmatch("(images|annotations)_prepped_(.+)", part):
            role, split = "image" if found[1] == "images" else "mask", found[2]
        elif low in LEFT_OUT:
            role = "left out"
        elif low in MASK_FOLDERS:
            role = role or "mask"
        elif low in IMAGE_FOLDERS:
            role = role or "image"
        elif split is None and low.removesuffix("annot") in SPLITS:
            role = role if low in SPLITS else "mask"
            split = SPLITS[low.removesuffix("annot")]
        else:
            others.append(part)
    return role, split, tuple(others)


def find_scenes(
    source: Path,
    images: Path | None,
    masks: Path | None,
    suffix: str | None,
    report: Report,
) -> list[Item]:
    """Return the pairs of a folder, none if there are no masks.

    Args:
        source: The folder.
        images, masks, suffix: See `prepare`.
        report: Gets what can't be paired, and what is left out.
    """
    if bool(images) != bool(masks):
        raise DatasetError("--images and --masks belong together")
    roots = [(source / images, "image"), (source / masks, "mask")] if images else []
    groups: dict[tuple, tuple[dict, dict]] = defaultdict(lambda: ({}, {}))
    problems, dropped, alone, found = Problems(), [], [], []
    for root, given in roots or [(source, None)]:
        if not root.is_dir():
            raise DatasetError(f"there is no folder {root}")
        paths = _image_files(root)
        there = {(path.parent, _stem(path)) for path in paths}
        for path in paths:
            role, split, others = _place(path.relative_to(root).parts[:-1])
            role, stem = given or role, _stem(path)
            bases = [
                stem[: -len(ending)]
                for ending in ([suffix] if suffix else MASK_SUFFIXES)
                if stem.lower().endswith(ending.lower())
            ]
            partners = [base + end for base in bases for end in ("", IMAGE_SUFFIX)]
            if any((path.parent, partner) in there for partner in partners):
                role = role or "mask"
            if role == "mask" and suffix:
                role, stem = ("mask", bases[0]) if bases else ("left out", stem)
            if role == "left out":
                dropped.append(path)
                continue
            group = groups[split, others][role == "mask"]
            if stem in group:
                problems.add(path, f"has the same name as {group[stem].name}")
            group[stem] = path
    if not any(of_masks for _, of_masks in groups.values()):
        return []
    lists = _voc_lists(source)
    names = zip(*(others for _, others in groups), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, names)))
    for (split, others), (of_images, of_masks) in groups.items():
        partner = match_names(of_images, of_masks)[0]
        alone += [of_images[stem] for stem in of_images.keys() - partner.keys()]
        for stem in of_masks.keys() - partner.values():
            if any(stem.startswith(s.removesuffix(IMAGE_SUFFIX)) for s in partner):
                dropped.append(of_masks[stem])
            else:
                problems.add(of_masks[stem], "has no image")
        for stem, mask in partner.items():
            name, own = _name_of(of_images[stem]), others[shared:]
            if own and not name.startswith(own[-1]):
                name = "_".join([*own, name])
            listed = lists.get(name, lists.get(stem, split))
            if lists and listed is None:
                dropped.append(of_images[stem])
            else:
                found.append(Item(listed, name, of_images[stem], of_masks[mask]))
    report.add_files("pairs", problems.by_reason)
    for severity, left, words in (
        ("warning", alone, "without a mask, left out"),
        ("note", dropped, "left out: another mask of an image, or in no list"),
    ):
        if left:
            names = sorted(f"{path.parent.name}/{path.name}" for path in left)
            report.add(
                severity, "pairs", f"{plural(len(left), 'image')} {words}", names
            )
    return found


def _image_files(root: Path) -> list[Path]:
    """Return the image files below a folder, hidden ones aside."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in image_suffixes()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]


def _voc_lists(source: Path) -> dict[str, str]:
    """Return the split of each name in Pascal VOC's lists."""
    lists = sorted(source.rglob("ImageSets/Segmentation/*.txt"))
    stems, found = {path.stem for path in lists}, {}
    for path in lists:
        if path.stem != "trainval" or "train" not in stems:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            names = [Path(line.split()[0]).name for line in lines if line.strip()]
            split = SPLITS.get(path.stem.lower(), path.stem)
            found |= dict.fromkeys(names, split)
    return found


def _split(items: list[Item], how: str) -> list[Item]:
    """Give each scene its split; refuse two of one name in a split."""
    kind, _, value = how.partition(":")
    sequences = [sequence_of(f"{item.name}.png") for item in items]
    if kind == "block":
        try:
            held_out = held_out_blocks(sequences, float(value or 0.2))
        except ValueError as error:
            raise DatasetError(f"{how}: {error}") from None
    elif kind == "sequence":
        held_out = [sequence == value for sequence in sequences]
        if len(set(held_out)) < 2:
            there = ", ".join(sorted(set(sequences)))
            raise DatasetError(
                f"there is no sequence {value!r} beside others; there are {there}"
            )
    elif kind != "keep":
        raise DatasetError(f"a split is keep, block:0.2 or sequence:NAME, not {how!r}")
    seen: dict[tuple, Path] = {}
    for i, item in enumerate(items):
        own = item.split or "train"
        split = own if kind == "keep" else ("test" if held_out[i] else "train")
        other = seen.setdefault((split, item.name.casefold()), item.image)
        if other != item.image:
            raise DatasetError(
                f"{item.image} and {other} would get the same name, {item.name}; "
                "rename one of them"
            )
        items[i] = replace(item, split=split)
    return items


# ---- Write ------------------------------------------------------------------------


def _read_mask(item: Item, codes: Codes, tolerance: float) -> Converted:
    if isinstance(item.mask, Path):
        return convert_mask(item.mask, codes, tolerance)
    size = item.mask.size or image_size(item.image)
    return draw_annotations(size, item.mask.annotations, codes)


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

    def work(item: Item) -> _Done | None:
        path = item.mask if isinstance(item.mask, Path) else item.image
        try:
            mask = convert(item)
            path = item.image
            to, masks = (new / part for part in DATASET1_LAYOUT.folders(item.split))
            to.mkdir(exist_ok=True)
            masks.mkdir(exist_ok=True)
            turned = _write_image(item, mask.ids.shape, to)
            Image.fromarray(mask.ids).save(masks / f"{item.name}.png")
        except DatasetError as error:
            problems.add(path, error)
            return None
        bare = replace(mask, ids=np.empty(0), left=np.empty(0))
        return _Done(item, bare, mask.ids.size, int(mask.left.sum()), turned)

    done = list(filter(None, in_threads(work, items, desc="converting")))
    report.add_files("files", problems.by_reason)
    return done


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
        raise DatasetError("is {} x {}, but its mask {} x {}".format(*shape, *size))
    return turned


# ---- Report -----------------------------------------------------------------------


def _describe(done: list[_Done], labels: LabelSet, report: Report) -> None:
    """Add to the report what was converted and what had to be decided."""
    counts = sorted(Counter(d.item.split for d in done).items())
    scenes = " and ".join(f"{n} {split}" for split, n in counts) or "none"
    names = ", ".join(labels.names)
    report.add("note", "scenes", f"{scenes}, with the classes {names}")
    if turned := [d.item.image.name for d in done if d.turned]:
        words = "with an EXIF orientation, saved as PNG: look at them"
        words = f"{plural(len(turned), 'image')} {words}"
        report.add("warning", "images", words, turned)
    codings = Counter(d.mask.coding for d in done).most_common()
    words = ", ".join(f"{n} with {coding}" for coding, n in codings) or "none"
    rare = [d.item.image.name for d in done if d.mask.coding != codings[0][0]]
    severity = "warning" if len(codings) > 1 else "note"
    report.add(severity, "masks", f"read {words}", rare)
    for kind, field, words in (
        ("values", "assumed", "the id 255 or 65535, taken for ignored unless mapped"),
        ("colors", "nearest", "a color near that of a class, which they got"),
        ("colors", "edges", "a mixture of two classes' colors, on anti-aliased edges"),
    ):
        some = [(getattr(d.mask, field), d) for d in done if getattr(d.mask, field)]
        if some:
            some.sort(key=lambda pair: -pair[0])
            share = _share(sum(n for n, _ in some), len(some), done)
            files = [d.item.image.name for _, d in some]
            report.add("note", kind, f"{share} with {words}", files)


def _describe_unknown(
    done: list[_Done], unknown: str, convert: Callable, report: Report
) -> None:
    """Add to the report what stands for no class, and what to do about it."""
    left = sorted((d for d in done if d.left), key=lambda d: -d.left)
    if not left:
        return
    pixels: Counter = Counter()
    first: dict[str, str] = {}
    for d in sorted(left, key=lambda d: d.item.name):
        pixels += d.mask.unknown
        first = dict.fromkeys(d.mask.unknown, d.item.image.name) | first
    kinds = [
        f"{code} {plural(n, 'pixel')}, first in {first[code]}"
        for code, n in pixels.most_common(MAX_KINDS)
    ]
    kinds += [f"{len(pixels) - MAX_KINDS} others"] if len(pixels) > MAX_KINDS else []
    if edges := sum(d.mask.edges_left for d in left):
        kinds.append(f"anti-aliased edges {plural(edges, 'pixel')}")
    severity, advice = ("warning", "they are ignored now")
    if unknown != "ignore":
        severity = "error"
        advice = (
            "say what they are with --map, take the nearest color with --tolerance, "
            "or ignore them with --unknown ignore"
        )
    share = _share(sum(d.left for d in left), len(left), done)
    report.add(
        severity,
        "unknown",
        f"{share} for no class ({'; '.join(kinds)}): {advice}",
        [d.item.image.name for d in left],
        lambda: [_unknown_figure(d.item, convert) for d in left[:3]],
    )


def _share(pixels: int, masks: int, done: list[_Done]) -> str:
    share = pixels / sum(d.pixels for d in done)
    return f"{plural(pixels, 'pixel')} ({share:.2%}) in {plural(masks, 'mask')}"


def _unknown_figure(item: Item, convert: Callable) -> Figure:
    mask = convert(item)
    image = read_image(item.image).permute(1, 2, 0).numpy().copy()
    if image.shape[:2] == mask.left.shape:
        image[mask.left] = (255, 0, 255)
    words = "The image with the pixels that stand for no class in magenta"
    return Figure(image, f"{words}: {item.image.name}")
