"""Check a dataset for faults that no error message reports during training.

`check` reads every image and mask of a dataset and returns a `Report`:

* files that can't be used: without partner, damaged, of other sizes, with other ids
* labels along borders that nobody has drawn: masks that were scaled or drawn with
  anti-aliasing
* masks that are shifted against their images, from half a pixel on, and masks that
  don't follow their images at all
* images that are in two splits, or nearly so
* classes that are missing or rare, and masks without a label
* the best score that an input size allows
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from roadseg import paint
from roadseg.classes import LabelSet
from roadseg.files import DatasetError
from roadseg.images import load_image, load_mask
from roadseg.measures import (
    REACH,
    clearness,
    estimate_shift,
    kept_at,
    miniature,
    resized_mask,
    shift_correlation,
    thin_borders,
)
from roadseg.pairs import LAYOUTS, Problems, find_layout, find_pairs, in_threads
from roadseg.report import Figure, Report, Table, plural
from roadseg.scenes import read_labels

MAX_FIGURES = 3
"""Images that the page shows for a finding."""

HALF_A_PIXEL = 0.4
"""Estimated shift of all masks from which it is reported; half a pixel exceeds it."""

MIN_PEAK = 5.0
"""How far a peak of the correlation must stand out, in standard deviations.

On dataset1 9 of 10 frames are above 6.5, masks of other frames below 4.4.
"""

INVENTED, MAYBE_INVENTED, FEW, OUTLYING = 0.4, 0.2, 0.05, 5
"""Share of thin borders (see `thin_borders`) of masks that were blended, and of masks
that may have been. Right masks have 0.06 (dataset1) to 0.14 (at 120 x 160), those
scaled by bilinear interpolation 0.5, those mapped from anti-aliased colors 0.26.
With three classes, right masks have up to 0.02, scaled ones 0.27 to 0.38: therefore a
mask is also reported above `FEW` if it has `OUTLYING` times the median of all masks.
"""

SAME, ALIKE = 0.97, 0.85
"""Correlation of small images that are copies (recompressed, brightened), and of ones
a few video frames apart. Between the splits of dataset1 the largest is 0.62.
"""

RARE = 0.001
"""Share of the pixels below which a class is called rare."""


@dataclass
class Measures:
    """What is kept of an image and its mask."""

    split: str
    image: Path
    mask: Path
    size: tuple[int, ...]
    counts: np.ndarray  # (256,) pixels of each id
    thin: np.ndarray  # (256,) those in thin borders
    borders: tuple[int, int]  # thin ones, and all changes of the label
    shift: np.ndarray | None  # (2 * REACH + 1,) * 2 correlations
    small: np.ndarray  # (768,) the image at 24 x 32
    kept: np.ndarray  # (3, 256) pixels right, true, and predicted at the input size

    @property
    def name(self) -> str:
        """The image's file, with its folder."""
        return f"{self.image.parent.name}/{self.image.name}"

    def load(self, labels: LabelSet) -> tuple[np.ndarray, np.ndarray]:
        """Return image (H, W, 3) and mask (H, W) as arrays."""
        image = load_image(self.image).permute(1, 2, 0).numpy()
        return image, load_mask(self.mask, labels).numpy()


def check(
    folder: str | os.PathLike,
    input_size: tuple[int, int] | None = None,
    labels: LabelSet | None = None,
) -> Report:
    """Check a dataset in a layout that `roadseg` reads.

    Args:
        folder: The dataset's folder, with one or more splits.
        input_size: Height and width at which a network gets the images; with it,
            the best score is computed that masks of this size allow.
        labels: The classes; without them, those of `read_labels`.

    Returns:
        All findings. None of the faults of a dataset is raised as an error, except
        for a labels.json that can't be read.

    Raises:
        LabelError: If labels.json is not valid.
    """
    folder = Path(folder)
    report = Report(f"Check of {folder.resolve().name}")
    splits = _splits(folder)
    if not splits:
        try:
            find_layout(folder, "train")
        except DatasetError as error:
            advice = "; roadseg prepare converts other layouts"
            report.add("error", "layout", f"{folder}: {error}{advice}")
        return report
    report.labels = labels = labels or read_labels(folder)
    scenes = _measure_all(folder, splits, labels, input_size, report)
    if "train" not in splits or "test" not in splits:
        words = f"there is {' and '.join(splits)}; roadseg train needs train and test"
        report.add("note", "splits", words)
    if scenes:
        _check_sizes(scenes, report)
        _check_borders(scenes, labels, report)
        _check_shift(scenes, labels, report)
        _check_duplicates(scenes, report)
        _check_classes(scenes, labels, report)
        if input_size:
            _check_input_size(scenes, labels, input_size, report)
    return report


def _splits(folder: Path) -> list[str]:
    """Return the splits that a folder has: train and test first."""
    found = set()
    names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    for layout in LAYOUTS:
        pattern = re.escape(layout.masks).replace(r"\{split\}", "(.+)")
        for match in filter(None, (re.fullmatch(pattern, name) for name in names)):
            if layout.folders(match[1])[0] in names:
                found.add(match[1])
    return sorted(found, key=lambda s: (s != "train", s != "test", s))


def _measure_all(
    folder: Path,
    splits: Sequence[str],
    labels: LabelSet,
    input_size: tuple[int, int] | None,
    report: Report,
) -> list[Measures]:
    """Measure each scene that can be read; report the others."""
    scenes, unpaired, unreadable = [], Problems(), Problems()
    for split in splits:
        try:
            found = find_pairs(folder, split, problems=unpaired)
        except DatasetError as error:
            report.add("error", "pairs", str(error))
            continue
        for note in found.notes:
            report.add("note", "files", note)
        work = partial(_measure, split, labels, input_size, unreadable)
        done = in_threads(work, found.images, found.masks, desc=f"checking {split}")
        scenes += filter(None, done)
    report.add_files("pairs", unpaired.by_reason)
    report.add_files("files", unreadable.by_reason)
    return scenes


def _measure(
    split: str,
    labels: LabelSet,
    input_size: tuple[int, int] | None,
    problems: Problems,
    image_path: Path,
    mask_path: Path,
) -> Measures | None:
    """Measure a scene; None if a file is wrong, which is added to `problems`."""
    image = problems.attempt(image_path, load_image)
    mask = problems.attempt(mask_path, load_mask, labels)
    if image is None or mask is None:
        return None
    if image.shape[1:] != mask.shape:
        problems.add(mask_path, "has another size than its image")
        return None
    mask = mask.numpy()
    gray = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
    thin, invented, changes = thin_borders(mask, labels)
    return Measures(
        split,
        image_path,
        mask_path,
        mask.shape,
        np.bincount(mask.ravel(), minlength=256),
        np.bincount(mask[thin], minlength=256),
        (invented, changes),
        shift_correlation(np.asarray(gray), mask),
        miniature(gray),
        kept_at(mask, labels, input_size) if input_size else np.zeros((3, 256)),
    )


# ---- Findings ---------------------------------------------------------------------


def _check_sizes(scenes: list[Measures], report: Report) -> None:
    most = Counter(scene.size for scene in scenes).most_common()
    words = ", ".join(f"{h} x {w} ({n})" for (h, w), n in most[:4])
    more = f" and {len(most) - 4} other sizes" if len(most) > 4 else ""
    report.add("note", "sizes", f"images are {words}{more}")


def _check_borders(scenes: list[Measures], labels: LabelSet, report: Report) -> None:
    def share(scene: Measures) -> float:
        invented, changes = scene.borders
        return invented / changes if changes >= 50 else 0.0

    thin, changes = np.sum([s.borders for s in scenes], axis=0)
    total = thin / max(1, changes)
    worst = sorted(scenes, key=share, reverse=True)
    usual = float(np.median([share(scene) for scene in scenes]))
    limit = min(INVENTED, max(FEW, OUTLYING * usual))
    certain = [scene for scene in worst if share(scene) > limit]
    if not certain and (total <= MAYBE_INVENTED or changes < 50):
        return
    shares = sum(s.thin for s in scenes) / np.maximum(sum(s.counts for s in scenes), 1)
    classes = sorted(labels.scored, key=lambda i: -shares[i])[:4]
    named = [f"{labels.names[i]} {shares[i]:.0%}" for i in classes if shares[i] > 0.2]
    most = f", most of all {', '.join(named)} of their pixels" if named else ""
    where = f"in {len(certain)} of {len(scenes)} masks" if certain else "overall"
    part = np.mean([share(s) for s in certain]) if certain else total
    report.add(
        "error" if certain else "warning",
        "borders",
        f"{where} a third label lies between two others along {part:.0%} of the "
        f"borders (usual are up to 15%){most}: the masks were probably scaled or "
        "drawn with anti-aliasing, which invents labels; make them anew with "
        "nearest-neighbor interpolation",
        [s.name for s in certain or worst[:MAX_FIGURES]],
        partial(_figures, "thin", certain or worst, labels),
    )


def _check_shift(scenes: list[Measures], labels: LabelSet, report: Report) -> None:
    known = [scene for scene in scenes if scene.shift is not None]
    if not known:
        return
    shift, clear = estimate_shift(sum(scene.shift for scene in known))
    if clear < MIN_PEAK:
        words = "the borders of the masks follow the edges of the images too little to"
        report.add("note", "shift", f"{words} measure whether they are shifted")
        return
    groups = [known[i::6] for i in range(min(6, len(known)))]
    each = [estimate_shift(sum(s.shift for s in group))[0] for group in groups]
    spread = np.std(each, axis=0).max() if len(groups) > 1 else 1.0
    found = f"{_direction(shift)} (parts of the dataset differ by {spread:.1f})"
    if np.abs(shift).max() < HALF_A_PIXEL:
        words = f"all masks together: {found}; half a pixel or more would be a warning"
        report.add("note", "shift", words)
    else:
        report.add(
            "error" if np.abs(shift).max() >= 1 else "warning",
            "shift",
            f"the masks are shifted against the images: {found}; scale images and "
            "masks with the same alignment of pixel centers",
            draw=partial(_figures, "part", known, labels),
        )
    # masks that are shifted otherwise than the others, or don't fit
    at = np.rint(shift).astype(int).clip(-REACH, REACH) + REACH
    off, strange = [], []
    for scene in known:
        own, clear = estimate_shift(scene.shift)
        distance = np.abs(own - shift).max()
        if clear > MIN_PEAK and distance >= 1.5:
            off.append((-distance, scene, own))
        elif (level := clearness(scene.shift, at)) < 1.5:
            strange.append((level, scene, own))
    for severity, kind, items, words in (
        ("error", "shift", off, "shifted against the image; the worst: "),
        ("warning", "fit", strange, "with borders that don't follow the edges of the "
         "image: look whether it is shifted, or the mask of another one"),
    ):  # fmt: skip
        if items:
            items.sort(key=lambda item: item[0])
            worst, end = [s for _, s, _ in items], _direction(items[0][2])
            words = (
                f"{plural(len(items), 'mask')} {words}{end if kind == 'shift' else ''}"
            )
            draw = partial(_figures, "edges", worst, labels)
            report.add(severity, kind, words, [s.name for s in worst], draw)


def _direction(shift: np.ndarray) -> str:
    down, right = shift
    vertical = f"{abs(down):.1f} pixels {'too low' if down > 0 else 'too high'}"
    return f"{vertical}, {abs(right):.1f} too far {'right' if right > 0 else 'left'}"


def _check_duplicates(scenes: list[Measures], report: Report) -> None:
    splits = {scene.split: [] for scene in scenes}
    for scene in scenes:
        splits[scene.split].append(scene)
    found = []
    for a, b in combinations(splits.values(), 2):
        level = np.array([s.small for s in a]) @ np.array([s.small for s in b]).T
        nearest = level.argmax(0)
        for k in np.flatnonzero(level.max(0) >= ALIKE):
            found.append((float(level[nearest[k], k]), a[nearest[k]], b[k]))
    found.sort(key=lambda item: -item[0])
    same = [item for item in found if item[0] >= SAME]
    for severity, items, words in (
        ("error", same, "copied from another split"),
        ("warning", found[len(same) :], "nearly the same as in another split"),
    ):
        if items:
            report.add(
                severity,
                "duplicates",
                f"{plural(len(items), 'image')} {words}, so that scores measure "
                "memory; split by sequence or by block (roadseg prepare --split)",
                [f"{b.name} = {a.name}" for _, a, b in items],
                partial(_pair_figures, items[:2]),
            )


def _check_classes(scenes: list[Measures], labels: LabelSet, report: Report) -> None:
    splits = sorted({s.split for s in scenes}, key=lambda s: (s != "train", s))
    counts = {k: sum(s.counts for s in scenes if s.split == k) for k in splits}
    scored, total = list(labels.scored), sum(counts.values())
    for split, pixels in counts.items():
        if not pixels[scored].sum():
            report.add("error", "labels", f"no mask of {split} has a labeled pixel")
    if empty := [s for s in scenes if not s.counts[scored].sum()]:
        words = f"{plural(len(empty), 'mask')} without a labeled pixel, of no use for"
        draw = partial(_figures, "edges", empty, labels)
        files = [s.name for s in empty]
        report.add("warning", "labels", f"{words} training", files, draw)
    there, train = [i for i in scored if total[i]], counts.get("train", total)
    if len(there) == 1:
        report.add(
            "error",
            "classes",
            f"{labels.names[there[0]]} is the only class in all masks; if "
            f"{labels.ignore_index} is a class too and not ignored, convert the masks "
            f"with roadseg prepare --map {labels.ignore_index}=ID",
        )
    partly = [i for i in there if train[i] and any(not n[i] for n in counts.values())]
    rare = [i for i in there if total[i] < RARE * total[scored].sum()]
    unseen = [i for i in there if not train[i]]
    for severity, ids, words in (
        ("warning", [i for i in scored if not total[i]], "in no mask"),
        ("warning", unseen, "in no mask of train, so that they can't be learned"),
        ("note", partly, "not in every split, so that some scores leave them out"),
        ("note", rare, f"rare (below {RARE:.1%} of the labeled pixels)"),
    ):
        if ids:
            names = ", ".join(labels.names[i] for i in ids)
            report.add(severity, "classes", f"{words}: {names}")
    rows = []
    for i in dict.fromkeys([*scored, labels.ignore_index]):
        name = labels.names[i] if i in scored else labels.ignored_name
        name += " (ignored)" if i not in scored and name != "ignored" else ""
        cells = [f"{100 * n[i] / n.sum():.2f}" for n in counts.values()]
        rows.append((name, *cells, str(sum(s.counts[i] > 0 for s in scenes))))
    columns = ("class", *(f"{k} %" for k in splits), "images")
    report.tables.append(Table("Share of pixels", columns, tuple(rows)))


def _check_input_size(
    scenes: list[Measures], labels: LabelSet, size: tuple[int, int], report: Report
) -> None:
    right, true, predicted = sum(scene.kept for scene in scenes)
    iou = {
        labels.names[i]: right[i] / (true[i] + predicted[i] - right[i])
        for i in labels.scored
        if true[i]
    }
    if not iou:
        return
    reduced = [s for s in scenes if s.kept[0].sum() < s.kept[1].sum()]
    worst = sorted(reduced, key=lambda s: s.kept[0].sum() / s.kept[1].sum())
    lost = ", ".join(name for name, value in iou.items() if value < 0.5)
    words = "{} x {}".format(*size)
    report.add(
        "warning" if lost else "note",
        "input size",
        f"masks scaled to {words} and back have accuracy "
        f"{right.sum() / true.sum():.3f} and mIoU {np.mean(list(iou.values())):.3f}: "
        "labels predicted at this size can't score higher"
        + (f"; below an IoU of 0.5: {lost}" if lost else ""),
        [s.name for s in worst[:MAX_FIGURES]],
        partial(_figures, "lost", worst, labels, size),
    )
    rows = tuple((name, f"{value:.3f}") for name, value in iou.items())
    report.tables.append(Table(f"Best IoU at {words}", ("class", "IoU"), rows))


# ---- Figures of the page ----------------------------------------------------------


def _figures(
    kind: str, scenes: list[Measures], labels: LabelSet, size: tuple[int, int] = (0, 0)
) -> list[Figure]:
    """Draw the first scenes: their thin borders, lost pixels, or edges (of a part)."""
    figures = []
    for scene in scenes[:MAX_FIGURES]:
        image, mask = scene.load(labels)
        if kind == "thin":
            where = thin_borders(mask, labels)[0]
            image = _magnified(where, paint.overlay(image, mask, 1, labels))[0]
            words = "The mask magnified where most borders have a third label between"
        elif kind == "lost":
            image = paint.error_map(mask, resized_mask(mask, size), labels)
            words = "Pixels whose label changes, in orange"
        else:
            image = paint.overlay(image, mask, 0.25, labels)
            if kind == "part":
                image, mask = _magnified(_edges(mask), image, mask)
            image[_edges(mask)] = (255, 0, 255)
            words = "The image with the borders of its mask in magenta"
        figures.append(Figure(image, f"{words}: {scene.name}"))
    return figures


def _pair_figures(items: list[tuple[float, Measures, Measures]]) -> list[Figure]:
    """Show images beside those of another split."""
    return [
        Figure(
            load_image(one.image).permute(1, 2, 0).numpy(),
            f"The image {one.name}, correlation {level:.3f} with {other.name}",
        )
        for level, *pair in items
        for one, other in (pair, pair[::-1])
    ]


def _magnified(pixels: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return where most of some pixels are: 64 x 96 pixels, six times as large."""
    step = max(1, min(pixels.shape) // 8)
    density = np.asarray(Image.fromarray(pixels.astype(np.uint8) * 255).reduce(step))
    at = np.unravel_index(density.argmax(), density.shape)
    top, left = (
        max(0, min(int((k + 0.5) * step) - side // 2, full - side))
        for k, side, full in zip(at, (64, 96), pixels.shape, strict=True)
    )
    parts = [array[top : top + 64, left : left + 96] for array in arrays]
    return [part.repeat(6, 0).repeat(6, 1) for part in parts]


def _edges(mask: np.ndarray) -> np.ndarray:
    edges = np.zeros(mask.shape, bool)
    edges[1:] |= mask[1:] != mask[:-1]
    edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return edges
