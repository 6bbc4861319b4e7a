"""Find the images and masks of a dataset, whatever its layout, for `prepare`."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roadseg.coco import CocoImage
from roadseg.files import DatasetError
from roadseg.images import image_suffixes
from roadseg.pairs import IMAGE_SUFFIX, MASK_SUFFIXES, Problems, match_names
from roadseg.report import Report, plural

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


@dataclass(frozen=True)
class Item:
    """A scene to convert: its split if the source has one, and its name to be."""

    split: str | None
    name: str
    image: Path
    mask: Path | CocoImage


def name_of(path: Path) -> str:
    """Return the name of a scene: that of its image, without ending and suffix."""
    return _stem(path).removesuffix(IMAGE_SUFFIX)


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)


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
    """Return the pairs of a folder, none if there are no masks."""
    roots = [(source, None)]
    if images or masks:
        if not (images and masks):
            raise DatasetError("--images and --masks belong together")
        roots = [(source / images, "image"), (source / masks, "mask")]
    groups: dict[tuple, tuple[dict, dict]] = defaultdict(lambda: ({}, {}))
    problems, dropped = Problems(), []
    for root, given in roots:
        if not root.is_dir():
            raise DatasetError(f"there is no folder {root}")
        paths = _image_files(root)
        there = {(path.parent, _stem(path)) for path in paths}
        for path in paths:
            role, split, others = _place(path.relative_to(root).parts[:-1])
            role, stem = given or role, _stem(path)
            for ending in [suffix] if suffix else MASK_SUFFIXES:
                bases = (stem[: -len(ending)] + end for end in ("", IMAGE_SUFFIX))
                suffixed = stem.lower().endswith(ending.lower())
                if suffixed and any((path.parent, base) in there for base in bases):
                    role = role or "mask"
            if role == "mask" and suffix:
                if not stem.lower().endswith(suffix.lower()):
                    role = "left out"
                stem = stem[: -len(suffix)]
            if role == "left out":
                dropped.append(path)
                continue
            files = groups[split, others][role == "mask"]
            if stem in files:
                problems.add(path, f"has the same name as {files[stem].name}")
            files[stem] = path
    if not any(masks for _, masks in groups.values()):
        return []
    lists = _voc_lists(source)
    shared = len(_common([others for _, others in groups]))
    found, alone = [], []
    for (split, others), (of_images, of_masks) in groups.items():
        partner = match_names(of_images, of_masks)[0]
        alone += [of_images[stem] for stem in of_images.keys() - partner.keys()]
        for stem in of_masks.keys() - partner.values():
            if any(stem.startswith(s.removesuffix(IMAGE_SUFFIX)) for s in partner):
                dropped.append(of_masks[stem])
            else:
                problems.add(of_masks[stem], "has no image")
        for stem, mask in partner.items():
            name, own = name_of(of_images[stem]), others[shared:]
            if own and not name.startswith(own[-1]):
                name = "_".join([*own, name])
            listed = lists.get(name, lists.get(stem, split))
            if lists and listed is None:
                dropped.append(of_images[stem])
            else:
                found.append(Item(listed, name, of_images[stem], of_masks[mask]))
    for reason, names in problems.by_reason.items():
        report.add("error", "pairs", f"{plural(len(names), 'file')}: {reason}", names)
    for severity, paths, words in (
        ("warning", alone, "without a mask, left out"),
        ("note", dropped, "left out: another mask of an image, or in no list"),
    ):
        if paths:
            names = sorted(f"{path.parent.name}/{path.name}" for path in paths)
            report.add(
                severity, "pairs", f"{plural(len(paths), 'image')} {words}", names
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
    stems = {path.stem for path in lists}
    found = {}
    for path in lists:
        if path.stem == "trainval" and "train" in stems:
            continue
        for line in path.read_text(encoding="utf-8-sig").split("\n"):
            if line.strip():
                split = SPLITS.get(path.stem.lower(), path.stem)
                found[Path(line.split()[0]).name] = split
    return found


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names that all paths begin with."""
    first, last = min(paths), max(paths)
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: (same + [False]).index(False)]
