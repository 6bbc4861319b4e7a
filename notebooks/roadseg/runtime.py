"""Where the course runs: settings, device, precision, seeds, folders, progress.

Settings are read from the environment, once, at the first call of `settings`:

* ``ROADSEG_PROFILE``: quick, cpu, or gpu. Default: gpu with CUDA, else cpu.
* ``ROADSEG_DEVICE``: cpu, cuda, cuda:1, mps. Default: cuda if there is one, else cpu.
* ``ROADSEG_RECIPE``: how to train. Default: the profile's recipe.
* ``ROADSEG_DATA``: the folder for downloads. Default: ``data/``.
* ``ROADSEG_OUTPUT``: the folder for checkpoints and scores. Default: ``build/``, in
  Colab a folder on Google Drive if that is mounted.
* ``ROADSEG_DATASET1``, ``ROADSEG_CAMVID_TEST``: local copies of the datasets.
* ``ROADSEG_VGG16_BN``: a local file with pretrained encoder weights.
* ``ROADSEG_PROGRESS``: 0 hides progress bars.
"""

import functools
import math
import os
import platform
import random
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from roadseg.classes import RoadsegError

DRIVE = Path("/content/drive/MyDrive")
"""Where Google Drive is in Colab, once it is mounted."""


class SettingsError(RoadsegError, ValueError):
    """A setting is not valid; the message names the environment variable."""


# ---- Settings ---------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """How much of everything a run of the course does.

    Attributes:
        name: quick, cpu, or gpu.
        real_data: Whether dataset1 is used. If not, scenes are synthetic, whatever
            is on the disk.
        pretrained: Whether to look for pretrained encoder weights.
        deterministic: Whether a run repeats exactly: fp32, and no progress bars.
        recipe: Name of the training recipe.
        synthetic_size: Height and width of synthetic scenes, in pixels.
        synthetic_counts: Number of synthetic scenes for training and for testing.
        demo_size: Height and width in the small trainings that illustrate a point,
            in pixels.
        demo_images: Number of images in these trainings.
        demo_steps: Number of optimizer steps in these trainings.
    """

    name: str
    real_data: bool
    pretrained: bool
    deterministic: bool
    recipe: str
    synthetic_size: tuple[int, int]
    synthetic_counts: tuple[int, int]
    demo_size: tuple[int, int]
    demo_images: int
    demo_steps: int


_QUICK = (False, False, True, "quick", (96, 128), (24, 12), (32, 64), 4, 16)
_CPU = (True, True, False, "cpu", (360, 480), (60, 20), (96, 128), 8, 80)
_GPU = (True, True, False, "full", (360, 480), (60, 20), (224, 320), 16, 200)
PROFILES: dict[str, Profile] = {
    name: Profile(name, *values)
    for name, values in (("quick", _QUICK), ("cpu", _CPU), ("gpu", _GPU))
}
"""The three sizes in which the course runs: for the checks, on a CPU, on a GPU."""


@dataclass(frozen=True)
class Settings:
    """All settings of a run; get them from `settings`, change them by `configure`.

    Attributes:
        profile: How much of everything to do.
        profile_source: Where the profile comes from, in words.
        device: The device that models run on.
        data_dir: Folder of datasets and encoder weights; it may not exist yet.
        output_dir: This profile's folder for results; it may not exist yet.
        recipe: Name of the training recipe; None for the profile's own.
        dataset1, camvid_test: Local copies of the datasets, zip files or folders.
        vgg16_bn: Local file of pretrained encoder weights.
        progress: Whether progress bars may be shown.
    """

    profile: Profile
    profile_source: str
    device: torch.device
    data_dir: Path
    output_dir: Path
    recipe: str | None = None
    dataset1: Path | None = None
    camvid_test: Path | None = None
    vgg16_bn: Path | None = None
    progress: bool = True

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings from variables, or the environment; empty ones don't count.

        Raises:
            SettingsError: If ``ROADSEG_PROFILE`` or ``ROADSEG_DEVICE`` has a value
                that can't be used.
        """

        environ = os.environ if environ is None else environ

        def path(name: str) -> Path | None:
            value = environ.get(f"ROADSEG_{name}")
            return Path(value).expanduser().resolve() if value else None

        chosen = _device(environ.get("ROADSEG_DEVICE"), environ.get("LOCAL_RANK"))
        wanted, source = environ.get("ROADSEG_PROFILE"), "set by ROADSEG_PROFILE"
        here = _profile_named(wanted) if wanted else None
        if here is None:
            here, source = _default_profile(chosen)
        home = repo_root() or Path.cwd()
        on_drive = DRIVE / "roadseg" if in_colab() and DRIVE.is_dir() else None
        return cls(
            profile=here,
            profile_source=source,
            device=chosen,
            data_dir=path("DATA") or home / "data",
            output_dir=(path("OUTPUT") or on_drive or home / "build") / here.name,
            recipe=environ.get("ROADSEG_RECIPE") or None,
            dataset1=path("DATASET1"),
            camvid_test=path("CAMVID_TEST"),
            vgg16_bn=path("VGG16_BN"),
            progress=environ.get("ROADSEG_PROGRESS") != "0",
        )


def _profile_named(name: str) -> Profile:
    if name not in PROFILES:
        raise SettingsError(
            f"there is no profile {name!r}: set ROADSEG_PROFILE to one of "
            f"{', '.join(PROFILES)}"
        )
    return PROFILES[name]


def _default_profile(device: torch.device) -> tuple[Profile, str]:
    if device.type == "cuda":
        return PROFILES["gpu"], "the default with CUDA"
    return PROFILES["cpu"], "the default on CPU"


def _device(wanted: str | torch.device | None, rank: str | None) -> torch.device:
    """Return a device that works here: the wanted one, else CUDA, else the CPU.

    Of several processes started by a launcher, each has its own GPU; rank is its
    number. MPS is never the default, because the course isn't tested on it.
    """
    if not wanted:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(rank)) if rank else torch.device("cuda")
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f"ROADSEG_DEVICE={str(wanted)!r} can't be used here ({error}); "
            "unset it, or set it to cpu"
        ) from None
    return torch.device(wanted)


_current: Settings | None = None


def settings() -> Settings:
    """Return the settings, read from the environment at the first call.

    Later calls return the same object, whatever happens to the environment.

    Raises:
        SettingsError: If an environment variable has a value that can't be used.
    """
    global _current
    if _current is None:
        _current = Settings.from_env()
    return _current


def configure(**changes: Any) -> Settings:
    """Replace settings, for command-line options and tests; return the new ones.

    Args:
        changes: Fields of `Settings` with their new values. A profile may be given
            by its name, a device or a path as a string. With another profile, an
            output folder that ends in the old profile's name changes with it.

    Raises:
        SettingsError: If there is no such profile or device.
    """
    global _current
    old = settings()
    if "device" in changes:
        changes["device"] = _device(changes["device"], None)
        if "profile" not in changes and old.profile_source.startswith("the default"):
            default, source = _default_profile(changes["device"])
            changes |= {"profile": default, "profile_source": source}
    if "profile" in changes:
        if isinstance(changes["profile"], str):
            changes["profile"] = _profile_named(changes["profile"])
        changes.setdefault("profile_source", "set by the program")
        if old.output_dir.name == old.profile.name:
            moved = old.output_dir.with_name(changes["profile"].name)
            changes.setdefault("output_dir", moved)
    for name in ("data_dir", "output_dir", "dataset1", "camvid_test", "vgg16_bn"):
        if changes.get(name) is not None:
            changes[name] = Path(changes[name]).expanduser().resolve()
    _current = replace(old, **changes)
    return _current


def reset() -> None:
    """Forget settings and measurements; `settings` reads the environment again."""
    global _current
    _current = None
    _bf16_is_faster.cache_clear()


def profile() -> Profile:
    """Return the profile of this run."""
    return settings().profile


def device() -> torch.device:
    """Return the device that models run on."""
    return settings().device


def data_dir() -> Path:
    """Return the folder of datasets and encoder weights, without creating it."""
    return settings().data_dir


def output_dir() -> Path:
    """Return this profile's folder for results, without creating it.

    In Colab it is on Google Drive if that is mounted, so that results survive when
    Colab disconnects the runtime.
    """
    return settings().output_dir


def in_colab() -> bool:
    """Return whether this is a notebook in Google Colab (not Kaggle)."""
    return "google.colab" in sys.modules


def repo_root() -> Path | None:
    """Return the root of the course's repository, or None if roadseg is installed."""
    package = Path(__file__).resolve().parent
    root = package.parents[1]
    inside = package == root / "notebooks" / "roadseg"
    return root if inside and (root / "pyproject.toml").exists() else None


def seed_everything(seed: int = 0) -> None:
    """Seed the random numbers of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ---- Precision and memory ---------------------------------------------------------


def amp_dtype(
    device: torch.device | str | None = None, profile: Profile | None = None
) -> str:
    """Return the precision for mixed-precision training: bf16, fp16, or fp32.

    A GPU decides by its compute capability: bf16 from 8.0 on, else fp16. A CPU is
    measured, once per process: bf16 halves the time of a convolution on processors
    with instructions for it, and doubles it on others. Deterministic profiles use
    fp32 for exact repetition.

    Args:
        device: Where to train. Default: this run's device.
        profile: Default: this run's profile.
    """
    where = settings().device if device is None else torch.device(device)
    if (profile or settings().profile).deterministic:
        return "fp32"
    if where.type == "cuda":
        return "bf16" if supports_dtype("bf16", where) else "fp16"
    return "bf16" if where.type == "cpu" and _bf16_is_faster() else "fp32"


def supports_dtype(precision: str, device: torch.device | str | None = None) -> bool:
    """Return whether a device has a precision in hardware: a T4 has no bf16.

    Args:
        precision: bf16, fp16, or fp32.
        device: Default: this run's device.
    """
    where = settings().device if device is None else torch.device(device)
    if precision == "bf16" and where.type == "cuda":
        return torch.cuda.get_device_capability(where)[0] >= 8
    return precision != "fp16" or where.type == "cuda"


@functools.cache
def _bf16_is_faster() -> bool:
    """Measure whether the CPU gains from bf16."""
    least = {torch.bfloat16: math.inf, torch.float32: math.inf}
    for _ in range(6):  # in turn, so that a busy moment slows both; the first warms up
        for dtype in least:
            least[dtype] = min(least[dtype], _step_seconds(dtype))
    return least[torch.bfloat16] < 0.8 * least[torch.float32]


@torch.inference_mode(False)
@torch.enable_grad()
def _step_seconds(dtype: torch.dtype) -> float:
    """Return the seconds of one training step of a convolution on the CPU."""
    weight = torch.ones(128, 128, 3, 3).to(memory_format=torch.channels_last)
    weight.requires_grad_()  # a layer would draw random numbers
    x = torch.ones(4, 128, 56, 56).to(memory_format=torch.channels_last)
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = torch.nn.functional.conv2d(x, weight, padding=1)
    y.float().sum().backward()
    return time.perf_counter() - start


def autocast(model_or_device: torch.nn.Module | torch.device | str) -> torch.autocast:
    """Return a context in which a model predicts in its device's `amp_dtype`.

    Args:
        model_or_device: The model, wherever it is, or a device. A model without
            parameters counts as being on this run's device.
    """
    where = model_or_device
    if isinstance(where, torch.nn.Module):
        tensors = (*where.parameters(), *where.buffers())
        where = tensors[0].device if tensors else settings().device
    precision = amp_dtype(where)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    kind = torch.device(where).type
    return torch.autocast(kind, dtype, enabled=precision != "fp32")


def is_oom_error(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # what PyTorch raises when the system, the driver, cuBLAS or cuDNN refuses memory
    words = ("t allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)


# ---- What a reader sees -----------------------------------------------------------


def display_path(path: str | os.PathLike) -> str:
    """Return a path for messages: relative to the repository, or the name alone."""
    path = Path(path).resolve()
    for base in (repo_root(), Path.cwd()):
        if base and path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def progress(iterable: Iterable | None, desc: str, total: int | None = None) -> tqdm:
    """Pass items on under a progress bar, which shows only if it takes seconds.

    The bar goes to standard output and is erased at the end, so a notebook keeps no
    trace of it. Pipes and log files get none.

    Args:
        iterable: The items; None for a bar that is updated by hand.
        desc: What is going on.
        total: Number of items, where the iterable doesn't know it.
    """
    visible = sys.stdout.isatty() or "ipykernel" in sys.modules
    allowed = settings().progress and not settings().profile.deterministic
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        leave=False,
        delay=1,
        mininterval=0.5,
        file=sys.stdout,
        disable=not (visible and allowed),
    )


def banner(text: str, width: int = 72) -> str:
    """Return a text in a frame that can't be missed, for what changes every score.

    Args:
        text: One paragraph, or several with a blank line between them.
        width: Columns inside the frame.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines += textwrap.wrap(paragraph, width) or [""]
    edge = "!" * (width + 6)
    return "\n".join([edge, *(f"!! {line:<{width}} !!" for line in lines), edge])


def format_duration(seconds: float) -> str:
    """Return a duration as people write it: 48 s, 12 min 5 s, 1 h 3 min."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def hardware_info() -> str:
    """Return the processor, or the GPU and the processor, in words."""
    cores = os.cpu_count() or 1
    words = f"{_processor()}, {cores} core{'s' if cores > 1 else ''}"
    if device().type == "cuda":
        gpu = torch.cuda.get_device_properties(device())
        words = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB ({words})"
    return words


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        names = [x.split(":")[1] for x in text.splitlines() if "model name" in x]
        return names[0].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def versions(packages: Iterable[str] = ("torch", "torchvision", "numpy")) -> str:
    """Return the versions of Python and of packages, in words."""
    words = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            words.append(f"{package} {version(package).split('+')[0]}")
        except PackageNotFoundError:
            words.append(f"no {package}")
    return ", ".join(words)


def print_environment(**facts: object) -> None:
    """Print what a notebook runs on: profile, machine, versions, and more facts.

    In Colab it also says where results go, and where to click if there is no GPU.

    Args:
        facts: Further lines, such as ``data=scenes.description`` or
            ``weights=weights.source``.
    """
    here = settings()
    lines = {
        "profile": f"{here.profile.name} ({here.profile_source})",
        "machine": hardware_info(),
        "versions": versions(),
        **facts,
    }
    if in_colab():
        lines["results"] = _where_results_go()
    for name, value in lines.items():
        print(f"{name:<9}{value}")
    if in_colab() and here.device.type == "cpu":
        print(
            "No GPU here. In Colab: Runtime > Change runtime type > T4 GPU > Save, "
            "then Runtime > Run all."
        )


def _where_results_go() -> str:
    folder = output_dir()
    if folder.is_relative_to(DRIVE):
        return f"on Google Drive, where they stay: {folder.relative_to(DRIVE.parent)}"
    if folder.parent != (repo_root() or Path.cwd()) / "build":
        return str(folder)
    return (
        "on a machine that Colab will clear; to keep them: Files > Mount Drive, "
        "then Runtime > Restart session and run all"
    )
