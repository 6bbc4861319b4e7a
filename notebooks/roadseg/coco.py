"""Read COCO annotations: polygons and run lengths to masks."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from roadseg.convert import Codes, Converted, SourceClass
from roadseg.files import DatasetError

BACKGROUND = "background"
"""The class of pixels without annotation, if there is one of this name."""


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
    found = (p for depth in ("*.json", "*/*.json") for p in sorted(source.glob(depth)))
    return [path for path in found if "annotations" in (_read(path, True) or {})]


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
        data = _read(file)
        try:
            found = {int(c["id"]): str(c["name"]) for c in data["categories"]}
            by_image = defaultdict(list)
            for item in data["annotations"]:
                by_image[item["image_id"]].append({"area": 0, **item})
            listed = [(i["id"], str(i["file_name"]), i) for i in data["images"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{file.name} is no file of COCO annotations (it lacks {error})"
            ) from None
        if categories and found != categories:
            raise DatasetError(f"{file.name} has other categories than {files[0].name}")
        categories = found
        for key, name, item in listed:
            path = _find(Path(name), file, everywhere)
            if path is None:
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


def _read(path: Path, tolerant: bool = False) -> dict | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(data, dict):
            return data
        reason = "it holds no object"
    except (ValueError, RecursionError) as error:
        reason = error
    if tolerant:
        return None
    raise DatasetError(f"{path.name} is no file of COCO annotations ({reason})")


def _find(name: Path, file: Path, everywhere: dict[str, list[Path]]) -> Path | None:
    """Return an image: beside its annotations if there are several of the name."""
    found = everywhere[name.name]
    exact = [p for p in found if p.as_posix().endswith(f"/{name.as_posix()}")]
    near = [p for p in exact or found if p.is_relative_to(file.parent)]
    words = file.stem.replace("_", " ").split()
    split = [p for p in exact or found if p.parent.name in words]
    return next(iter(near or split or exact or found), None)


def draw_annotations(
    size: tuple[int, int], annotations: Sequence[dict], names: dict, codes: Codes
) -> Converted:
    """Draw the annotations of an image, large ones first, so that none is covered.

    Args:
        size: Height and width of the image.
        annotations: COCO's annotations of it.
        names: The name of each category, by its id.
        codes: Of these, the names. Pixels without annotation become `BACKGROUND` if
            that is the name of a class, else they are ignored.

    Raises:
        DatasetError: If an outline is wrong, or pycocotools is missing.
    """
    api = load_pycocotools()
    ignored = codes.labels.ignore_index
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
        target = codes.names.get(names[key].casefold()) if key in names else None
        ids[inside] = ignored if target is None else target
        left[inside], category[inside] = target is None, key
    found, counts = np.unique(category[left], return_counts=True)
    unknown = Counter(
        {
            f"category {names.get(k, k)}": n
            for k, n in zip(found.tolist(), counts.tolist(), strict=True)
        }
    )
    return Converted(ids, unknown, left, coding="outlines")


def load_pycocotools():
    """Return pycocotools' module of masks.

    Raises:
        DatasetError: If it is not installed.
    """
    try:
        return import_module("pycocotools.mask")
    except ImportError as error:
        raise DatasetError(
            f"COCO annotations need the package pycocotools ({error}): "
            "pip install pycocotools"
        ) from None
