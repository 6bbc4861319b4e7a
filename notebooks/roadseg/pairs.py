"""Find the images and masks of a dataset, pair them by name, and decode them."""

import math
import os
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from roadseg import runtime
from roadseg.classes import LabelSet
from roadseg.files import DatasetError
from roadseg.images import image_size, image_suffixes, load_image, load_mask

IMAGE_SUFFIX = "_leftImg8bit"  # Cityscapes
MASK_SUFFIXES = (
    *("_gtFine_labelIds", "_gtFine_labelTrainIds", "_labelIds", "_labelTrainIds"),
    *("_labels", "_label", "_masks", "_mask", "_gt", "_L"),
)
"""What other datasets append to the name of an image to get that of its mask."""


# ---- Layouts ----------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where a dataset's folder has its files.

    Attributes:
        images: The folder of images, in which ``{split}`` stands for the split.
        masks: The folder of masks, likewise.
    """

    images: str
    masks: str

    def folders(self, split: str) -> tuple[str, str]:
        """Return the folders of a split: of its images, of its masks."""
        return self.images.format(split=split), self.masks.format(split=split)


DATASET1_LAYOUT = Layout("images_prepped_{split}", "annotations_prepped_{split}")
SEGNET_LAYOUT = Layout("{split}", "{split}annot")
LAYOUTS = (DATASET1_LAYOUT, SEGNET_LAYOUT)


def find_layout(folder: str | os.PathLike, split: str) -> Layout:
    """Return the layout in which a folder has a split.

    Raises:
        DatasetError: If the folder does not exist, is a zip file, or has neither.
    """
    folder = Path(folder)
    if folder.is_file():
        is_zip = zipfile.is_zipfile(folder)
        todo = "a zip file; unpack it and give the folder" if is_zip else "no folder"
        raise DatasetError(f"this is {todo}")
    if not folder.is_dir():
        raise DatasetError("there is no such folder")
    for layout in LAYOUTS:
        if all((folder / sub).is_dir() for sub in layout.folders(split)):
            return layout
    wanted = " or ".join(" and ".join(known.folders(split)) for known in LAYOUTS)
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    there = f"there are {', '.join(inside[:8])}" if inside else "there are none"
    for name in inside:
        if any((folder / name / la.folders(split)[0]).is_dir() for la in LAYOUTS):
            there += f"; the dataset is probably {folder / name}"
    raise DatasetError(f"the split {split!r} needs the folders {wanted}; {there}")


# ---- Pairs of files ---------------------------------------------------------------


class Problems:
    """What is wrong with files, gathered to be reported in one error."""

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = defaultdict(list)

    def add(self, path: Path, reason: object) -> None:
        """Add a file and its reason, which continues a sentence: "is empty"."""
        self._files[str(reason)].append(f"{path.parent.name}/{path.name}")

    @property
    def by_reason(self) -> dict[str, list[str]]:
        """The files, each with its folder, of each reason."""
        return {reason: sorted(names) for reason, names in self._files.items()}

    def attempt(self, path: Path, load: Callable, *args: object) -> Any:
        """Return what a file holds; None if it is wrong, which is added."""
        try:
            return load(path, *args)
        except DatasetError as error:
            self.add(path, error)
            return None

    def raise_if_any(self, notes: Iterable[str] = ()) -> None:
        """Raise a DatasetError of one line: the first files of each kind, counts."""
        if not self._files:
            return
        parts = []
        for reason, names in sorted(self._files.items(), key=lambda item: item[1]):
            first, *others = sorted(names)
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            same = f" (the same for {', '.join(others[:3])}{more})" if others else ""
            parts.append(f"{first} {reason}{same}")
        count = len({name for names in self._files.values() for name in names})
        start = f"{count} files cannot be used: " if count > 1 else ""
        end = f"; and {len(parts) - 5} other problems" if len(parts) > 5 else ""
        raise DatasetError("; ".join([start + "; ".join(parts[:5]) + end, *notes]))


@dataclass(frozen=True)
class Pairs:
    """The files of a split: of each scene its name, its image and its mask."""

    split: str
    names: list[str]
    images: list[Path]
    masks: list[Path]
    notes: list[str]


def find_pairs(
    folder: Path,
    split: str,
    layout: Layout | None = None,
    problems: Problems | None = None,
) -> Pairs:
    """Pair the images and masks of a split.

    Endings don't count, nor how accents are encoded (Unicode NFC or NFD).

    Args:
        folder: The dataset's folder.
        split: The split.
        layout: Where the files are; without it, `find_layout` looks.
        problems: Takes the files that have no partner, in place of an error.

    Raises:
        DatasetError: If a folder is missing or empty, or files have no partner; the
            message names them.
    """
    layout = layout or find_layout(folder, split)
    strict, notes = problems is None, []
    problems = Problems() if strict else problems
    subs = layout.folders(split)
    images, masks = (_by_stem(folder / sub, problems, notes) for sub in subs)
    if not images:
        raise DatasetError("; ".join([f"{subs[0]} holds no images", *notes]))
    stems, suffixes = match_names(images, masks)
    if suffixes:
        notes.append(f"{subs[1]}: mask names end in {' or '.join(suffixes)}")
    for stem in images.keys() - stems.keys():
        problems.add(images[stem], f"has no mask in {subs[1]}")
    for stem in masks.keys() - stems.values():
        problems.add(masks[stem], f"has no image in {subs[0]}")
    if strict:
        problems.raise_if_any(notes)
    names = {_nfc(images[stem].name): stem for stem in stems}
    order = [names[name] for name in sorted(names)]
    return Pairs(
        split,
        sorted(names),
        [images[stem] for stem in order],
        [masks[stems[stem]] for stem in order],
        notes,
    )


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _by_stem(folder: Path, problems: Problems, notes: list[str]) -> dict[str, Path]:
    """Return the image files of a folder by their names without ending."""
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder.name}")
    found: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini"):
            continue
        if path.suffix.lower() not in image_suffixes() or path.is_dir():
            others.append(path.name)
        elif (stem := _nfc(path.stem)) in found:
            problems.add(path, f"has the same name as {found[stem].name}")
        else:
            found[stem] = path
    if others:
        more = ", ..." if len(others) > 3 else ""
        notes.append(
            f"{folder.name}: left out {len(others)} that are not image files "
            f"({', '.join(others[:3])}{more})"
        )
    return found


def match_names(
    images: Iterable[str], masks: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the mask of each image: one of the same name, else with a suffix."""
    found = {stem: stem for stem in images if stem in masks}
    left = {s.removesuffix(IMAGE_SUFFIX): s for s in images if s not in found}
    used = set()
    for mask in masks:
        for suffix in ("", *MASK_SUFFIXES) if mask not in found else ():
            start = mask[: len(mask) - len(suffix)]
            if mask.lower() == (start + suffix).lower() and start in left:
                found[left.pop(start)] = mask
                used.add(mask[len(start) :])
                break
    return found, sorted(used - {""})


def sequence_of(filename: str) -> str:
    """Return the part of a file name before its last underscore, "" without one."""
    return Path(filename).stem.removesuffix(IMAGE_SUFFIX).rpartition("_")[0]


# ---- Decoding ---------------------------------------------------------------------


def read_pairs(found: Pairs, labels: LabelSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each image and mask; an error at the end reports all files at fault."""
    load = partial(load_mask, labels=labels)
    return _load(found, load_image, load, "reading")


def header_sizes(found: Pairs) -> list[tuple[int, int]]:
    """Return height and width of each scene from the headers of its files."""
    return [size for size, _ in _load(found, image_size, image_size, "listing")]


def in_threads(work: Callable, *columns: list, desc: str) -> Iterator:
    """Yield what a function returns for each row of the columns, in their order."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the GIL
        done = pool.map(work, *columns)
        try:
            yield from runtime.progress(done, desc, total=len(columns[0]))
        finally:
            pool.shutdown(cancel_futures=True)


def _load(
    found: Pairs, load_image: Callable, load_mask: Callable, what: str
) -> Iterator[list]:
    problems = Problems()

    def work(image_path: Path, mask_path: Path) -> list | None:
        pair = [
            problems.attempt(image_path, load_image),
            problems.attempt(mask_path, load_mask),
        ]
        if any(part is None for part in pair):
            return None
        image, mask = (tuple(getattr(part, "shape", part))[-2:] for part in pair)
        if image != mask:
            words = "is {} x {}, but its image {} x {}".format(*mask, *image)
            problems.add(mask_path, words)
        return pair

    desc = f"{what} {found.split}"
    yield from filter(None, in_threads(work, found.images, found.masks, desc=desc))
    problems.raise_if_any()


class LazyFiles(Sequence):
    """Files that are decoded at each access, in whatever process asks for them."""

    def __init__(self, paths: list[Path], load: Callable, kind: type) -> None:
        self._paths, self._load, self._kind = paths, load, kind

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._paths)

    def __getitem__(self, i: int | slice) -> "Tensor | LazyFiles":
        """Return what a file holds, or some of the files, not decoded yet."""
        if isinstance(i, slice):
            return self.pick(range(len(self))[i])
        problems = Problems()
        found = problems.attempt(self._paths[i], self._load)
        problems.raise_if_any()
        return self._kind(found)

    def pick(self, indices: Iterable[int]) -> "LazyFiles":
        """Return some of the files, in this order."""
        return LazyFiles([self._paths[i] for i in indices], self._load, self._kind)


def decoded_bytes(found: Pairs) -> float:
    """Estimate from up to 16 headers what all images and masks take in memory."""
    sizes = []
    for path in found.images[:: -(-len(found.images) // 16)]:
        with suppress(DatasetError):  # reading the file reports what is wrong
            sizes.append(math.prod(image_size(path)) * 4)
    return sum(sizes) / max(1, len(sizes)) * len(found.images)


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes of memory that can be taken, infinity where nothing tells."""
    free = [math.inf]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        free.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # in a container; "max" is no limit
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        cached = next((x.split()[1] for x in lines if x.startswith("inactive_file")), 0)
        free.append(limit - used + int(cached))  # files read lately don't count as used
    return min(free)
