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
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from roadseg import runtime
from roadseg.classes import LabelSet
from roadseg.files import DatasetError
from roadseg.measures import (
    REACH,
    Measures,
    border_figure,
    clearness,
    edge_figure,
    estimate_shift,
    lost_figure,
    measure,
    pair_figures,
)
from roadseg.pairs import LAYOUTS, Problems, find_layout, find_pairs
from roadseg.report import Report, Table, plural
from roadseg.scenes import read_labels

MAX_FIGURES = 3
"""Images that the page shows for a finding."""

HALF_A_PIXEL = 0.4
"""Estimated shift of all masks from which it is reported; half a pixel exceeds it."""

MIN_PEAK = 5.0
"""How far a peak of the correlation must stand out, in standard deviations.

On dataset1 9 of 10 frames are above 6.5, masks of other frames below 4.4.
"""

INVENTED, MAYBE_INVENTED = 0.4, 0.2
"""Share of thin borders (see `border_labels`) of masks that were blended, and of masks
that may have been. Right masks have 0.06 (dataset1) to 0.14 (at 120 x 160), those
scaled by bilinear interpolation 0.5, those mapped from anti-aliased colors 0.26.
"""

SAME, ALIKE = 0.97, 0.85
"""Correlation of small images that are copies (recompressed, brightened), and of ones
a few video frames apart. Between the splits of dataset1 the largest is 0.62.
"""

RARE = 0.001
"""Share of the pixels below which a class is called rare."""


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
    scenes = _read(folder, splits, labels, input_size, report)
    if "train" not in splits or "test" not in splits:
        report.add(
            "note",
            "splits",
            f"there is {' and '.join(splits)}; roadseg train needs train and test",
        )
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
    return sorted(found, key=lambda s: (s not in ("train", "test"), s != "train", s))


def _read(
    folder: Path,
    splits: Sequence[str],
    labels: LabelSet,
    input_size: tuple[int, int] | None,
    report: Report,
) -> list[Measures]:
    """Return what is known of each scene that can be read; report the others."""
    scenes, unpaired, unreadable = [], Problems(), Problems()
    for split in splits:
        try:
            found = find_pairs(folder, split, problems=unpaired)
        except DatasetError as error:
            report.add("error", "pairs", str(error))
            continue
        for note in found.notes:
            report.add("note", "files", note)
        work = partial(measure, split, labels, input_size, unreadable)
        with ThreadPoolExecutor() as pool:
            done = pool.map(work, found.images, found.masks)
            try:
                total = len(found.names)
                for scene in runtime.progress(done, f"checking {split}", total):
                    scenes += [scene] if scene else []
            finally:
                pool.shutdown(cancel_futures=True)
    for kind, problems in (("pairs", unpaired), ("files", unreadable)):
        for reason, names in problems.by_reason.items():
            count = plural(len(names), "file")
            report.add("error", kind, f"{count}: {reason}", names)
    return scenes


# ---- Findings ---------------------------------------------------------------------


def _check_sizes(scenes: list[Measures], report: Report) -> None:
    sizes = defaultdict(int)
    for scene in scenes:
        sizes[scene.size] += 1
    most = sorted(sizes.items(), key=lambda item: -item[1])
    words = [f"{h} x {w} ({n})" for (h, w), n in most[:4]]
    more = f" and {len(most) - 4} other sizes" if len(most) > 4 else ""
    report.add("note", "sizes", f"images are {', '.join(words)}{more}")


def _check_borders(scenes: list[Measures], labels: LabelSet, report: Report) -> None:
    def share(scene: Measures) -> float:
        invented, changes = scene.borders
        return invented / changes if changes >= 50 else 0.0

    thin, changes = np.sum([s.borders for s in scenes], axis=0)
    total = thin / max(1, changes)
    worst = sorted(scenes, key=share, reverse=True)
    certain = [scene for scene in worst if share(scene) > INVENTED]
    if not certain and (total <= MAYBE_INVENTED or changes < 50):
        return
    pixels = sum(s.counts for s in scenes)
    shares = sum(s.thin for s in scenes) / np.maximum(pixels, 1)
    classes = sorted(labels.scored, key=lambda i: -shares[i])[:4]
    named = [f"{labels.names[i]} {shares[i]:.0%}" for i in classes if shares[i] > 0.2]
    most = f", most of all {', '.join(named)} of their pixels" if named else ""
    shown = certain or worst[:MAX_FIGURES]
    count = f"in {len(certain)} of {len(scenes)} masks" if certain else "overall"
    report.add(
        "error" if certain else "warning",
        "borders",
        f"{count} a third label lies between two others along "
        f"{np.mean([share(s) for s in certain]) if certain else total:.0%} of the "
        f"borders (usual are up to 15%){most}: the masks were probably scaled or "
        "drawn with anti-aliasing, which invents labels; make them anew with "
        "nearest-neighbor interpolation",
        [s.name for s in shown],
        lambda: [border_figure(s, labels) for s in shown[:MAX_FIGURES]],
    )


def _check_shift(scenes: list[Measures], labels: LabelSet, report: Report) -> None:
    known = [scene for scene in scenes if scene.shift is not None]
    if not known:
        return
    shift, clear = estimate_shift(sum(scene.shift for scene in known))
    if clear < MIN_PEAK:
        report.add(
            "note",
            "shift",
            "the borders of the masks follow the edges of the images too little to "
            "measure whether they are shifted",
        )
        return
    groups = [known[i::6] for i in range(min(6, len(known)))]
    each = [estimate_shift(sum(s.shift for s in group))[0] for group in groups]
    spread = np.std(each, axis=0).max() if len(groups) > 1 else 1.0
    found = f"{_direction(shift)} (parts of the dataset differ by {spread:.1f})"
    if np.abs(shift).max() < HALF_A_PIXEL:
        report.add(
            "note",
            "shift",
            f"all masks together: {found}; half a pixel or more would be a warning",
        )
    else:
        report.add(
            "error" if np.abs(shift).max() >= 1 else "warning",
            "shift",
            f"the masks are shifted against the images: {found}; scale images and "
            "masks with the same alignment of pixel centers",
            draw=lambda: [edge_figure(s, labels, True) for s in known[:MAX_FIGURES]],
        )
    _check_single_shifts(known, shift, labels, report)


def _check_single_shifts(
    known: list[Measures], shift: np.ndarray, labels: LabelSet, report: Report
) -> None:
    """Report masks that are shifted otherwise than the others, or don't fit."""
    at = np.rint(shift).astype(int).clip(-REACH, REACH) + REACH
    off, strange = [], []
    for scene in known:
        own, clear = estimate_shift(scene.shift)
        distance = np.abs(own - shift).max()
        if clear > MIN_PEAK and distance >= 1.5:
            off.append((-distance, scene, own))
        elif (level := clearness(scene.shift, at)) < 1.5:
            strange.append((level, scene))
    off.sort(key=lambda item: item[0])
    strange.sort(key=lambda item: item[0])
    if off:
        report.add(
            "error",
            "shift",
            f"{plural(len(off), 'mask')} shifted against the image; the worst: "
            f"{_direction(off[0][2])}",
            [scene.name for _, scene, _ in off],
            lambda: [edge_figure(s, labels) for _, s, _ in off[:MAX_FIGURES]],
        )
    if strange:
        report.add(
            "warning",
            "fit",
            f"{plural(len(strange), 'mask')} with borders that don't follow the edges "
            "of the image: look whether it is the mask of another one",
            [scene.name for _, scene in strange],
            lambda: [edge_figure(s, labels) for _, s in strange[:MAX_FIGURES]],
        )


def _direction(shift: np.ndarray) -> str:
    down, right = shift
    vertical = f"{abs(down):.1f} pixels {'too low' if down > 0 else 'too high'}"
    side = "right" if right > 0 else "left"
    return f"{vertical}, {abs(right):.1f} too far {side}"


def _check_duplicates(scenes: list[Measures], report: Report) -> None:
    splits = defaultdict(list)
    for scene in scenes:
        splits[scene.split].append(scene)
    found = []
    names = list(splits)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = splits[one], splits[other]
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
                partial(pair_figures, items[:2]),
            )


def _check_classes(scenes: list[Measures], labels: LabelSet, report: Report) -> None:
    splits = sorted({s.split for s in scenes}, key=lambda s: (s != "train", s))
    counts = {k: sum(s.counts for s in scenes if s.split == k) for k in splits}
    scored = list(labels.scored)
    for split, pixels in counts.items():
        if not pixels[scored].sum():
            report.add("error", "labels", f"no mask of {split} has a labeled pixel")
    empty = [s for s in scenes if not s.counts[scored].sum()]
    if empty:
        report.add(
            "warning",
            "labels",
            f"{plural(len(empty), 'mask')} without a labeled pixel, of no use for "
            "training",
            [s.name for s in empty],
            lambda: [edge_figure(s, labels) for s in empty[:MAX_FIGURES]],
        )
    total = sum(counts.values())
    there = [i for i in scored if total[i]]
    if len(there) == 1:
        report.add(
            "error",
            "classes",
            f"{labels.names[there[0]]} is the only class in all masks; if "
            f"{labels.ignore_index} is a class too and not ignored, convert the masks "
            f"with roadseg prepare --map {labels.ignore_index}=ID",
        )
    train = counts.get("train", total)
    for severity, which, words in (
        ("warning", [i for i in scored if not total[i]], "in no mask"),
        (
            "warning",
            [i for i in there if not train[i]],
            "in no mask of train, so that they can't be learned",
        ),
        (
            "note",
            [i for i in there if any(not counts[k][i] for k in splits) and train[i]],
            "not in every split, so that some scores leave them out",
        ),
        (
            "note",
            [i for i in there if total[i] < RARE * total[scored].sum()],
            f"rare (below {RARE:.1%} of the labeled pixels)",
        ),
    ):
        if which:
            names = ", ".join(labels.names[i] for i in which)
            report.add(severity, "classes", f"{words}: {names}")
    rows = []
    for i in dict.fromkeys([*scored, labels.ignore_index]):
        name = labels.names[i] if i in scored else labels.ignored_name
        name += " (ignored)" if i not in scored and name != "ignored" else ""
        cells = [f"{100 * counts[k][i] / counts[k].sum():.2f}" for k in splits]
        rows.append((name, *cells, str(sum(s.counts[i] > 0 for s in scenes))))
    columns = ("class", *(f"{k} %" for k in splits), "images")
    report.tables.append(Table("Share of pixels", columns, tuple(rows)))


def _check_input_size(
    scenes: list[Measures], labels: LabelSet, size: tuple[int, int], report: Report
) -> None:
    right, true, predicted = sum(scene.kept for scene in scenes)
    there = [i for i in labels.scored if true[i]]
    if not there:
        return
    iou = {i: right[i] / (true[i] + predicted[i] - right[i]) for i in there}
    height, width = size
    reduced = [s for s in scenes if s.kept[0].sum() < s.kept[1].sum()]
    worst = sorted(reduced, key=lambda s: s.kept[0].sum() / s.kept[1].sum())
    lost = [labels.names[i] for i in there if iou[i] < 0.5]
    report.add(
        "warning" if lost else "note",
        "input size",
        f"masks scaled to {height} x {width} and back have accuracy "
        f"{right.sum() / true.sum():.3f} and mIoU {np.mean(list(iou.values())):.3f}: "
        "labels predicted at this size can't score higher"
        + (f"; below an IoU of 0.5: {', '.join(lost)}" if lost else ""),
        [s.name for s in worst[:MAX_FIGURES]],
        lambda: [lost_figure(s, labels, size) for s in worst[:MAX_FIGURES]],
    )
    rows = tuple((labels.names[i], f"{iou[i]:.3f}") for i in there)
    title = f"Best IoU at {height} x {width}"
    report.tables.append(Table(title, ("class", "IoU"), rows))
