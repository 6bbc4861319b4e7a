"""Where the course runs: settings, device, precision, seeds, folders, progress.

Settings are read from the environment, once, at the first call of `settings`:

* ``ROADSEG_PROFILE``: quick, cpu, or gpu. Default: gpu with CUDA, else cpu.
* ``ROADSEG_DEVICE``: cpu, cuda, cuda:1, mps. Default: cuda if there is one, else cpu.
* ``ROADSEG_RECIPE``: how to train. Default: the profile's recipe.
* ``ROADSEG_DATA``: the folder for downloads. Default: ``data/``.
* ``ROADSEG_OUTPUT``: the folder for checkpoints and scores. Default: ``build/``.
  In Colab, both are in a folder on Google Drive if that is mounted.
* ``ROADSEG_DATASET1``, ``ROADSEG_CAMVID_TEST``: local copies of the datasets.
* ``ROADSEG_VGG16_BN``: a local file with pretrained encoder weights.
* ``ROADSEG_PROGRESS``: 0 hides progress bars.
"""

import functools
import math
import os
import platform
import random
import re
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
    """How much of everything a run of the course does; sizes are in pixels.

    Attributes:
        name: quick, cpu, or gpu.
        real_data: Whether dataset1 is used. If not, scenes are synthetic, whatever
            is on the disk.
        pretrained: Whether to look for pretrained encoder weights.
        deterministic: Whether a run repeats exactly: fp32, and no progress bars.
        recipe: Name of the training recipe.
        synthetic_size: Height and width of synthetic scenes.
        synthetic_counts: Number of synthetic scenes for training and for testing.
        demo_size, demo_images, demo_steps: Height and width, number of images, and
            number of optimizer steps in the small trainings that illustrate a point.
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
        profile, profile_source: How much of everything to do, and why, in words.
        device: The device that models run on.
        data_dir, output_dir: Folder of datasets and encoder weights, and this profile's
            folder for results; they may not exist yet.
        recipe: Name of the training recipe; None for the profile's own.
        dataset1, camvid_test, vgg16_bn: Local copies of the datasets, zip files or
            folders, and of pretrained encoder weights.
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
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings from environment variables; empty ones don't count.

        Raises:
            SettingsError: If ``ROADSEG_PROFILE`` or ``ROADSEG_DEVICE`` has a value
                that can't be used.
        """

        def path(name: str) -> Path | None:
            value = environ.get(f"ROADSEG_{name}")
            return Path(value).expanduser().resolve() if value else None

        chosen = _device(environ.get("ROADSEG_DEVICE"), environ.get("LOCAL_RANK"))
        if wanted := environ.get("ROADSEG_PROFILE"):
            here, source = _profile_named(wanted), "set by ROADSEG_PROFILE"
        else:
            here, source = _default_profile(chosen)
        home = repo_root() or Path.cwd()
        data, output = home / "data", home / "build"
        if in_colab() and DRIVE.is_dir():
            data, output = DRIVE / "roadseg" / "data", DRIVE / "roadseg"
        return cls(
            profile=here,
            profile_source=source,
            device=chosen,
            data_dir=path("DATA") or data,
            output_dir=(path("OUTPUT") or output) / here.name,
            recipe=environ.get("ROADSEG_RECIPE") or None,
            dataset1=path("DATASET1"),
            camvid_test=path("CAMVID_TEST"),
            vgg16_bn=path("VGG16_BN"),
            progress=environ.get("ROADSEG_PROGRESS") != "0",
        )


def _profile_named(name: str) -> Profile:
    if name not in PROFILES:
        known = ", ".join(PROFILES)
        raise SettingsError(
            f"there is no profile {name!r}: set ROADSEG_PROFILE to one of {known}"
        )
    return PROFILES[name]


def _default_profile(device: torch.device) -> tuple[Profile, str]:
    if device.type == "cuda":
        return PROFILES["gpu"], "the default with CUDA"
    return PROFILES["cpu"], "the default on CPU"


def _device(wanted: str | torch.device | None, rank: str | None) -> torch.device:
    """Return a device that works here: the wanted one, else CUDA, else the CPU.

    Of several processes started by a launcher, the one with this rank has the GPU of
    this number. MPS is never the default, because the course isn't tested on it.
    """
    if wanted:
        try:
            device = torch.device(wanted)
            problem = _gpu_problem(device)
            if not problem:
                torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            problem = error
        if problem:
            raise SettingsError(
                f"ROADSEG_DEVICE={str(wanted)!r} can't be used here ({problem}); "
                "unset it, or set it to cpu"
            )
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(rank)) if rank else torch.device("cuda")
    if problem := _gpu_problem(device):
        print(
            f"The GPU can't be used, so everything runs on the CPU: {problem}. On "
            "Kaggle, choose the accelerator GPU T4 x2; elsewhere, install a PyTorch "
            "for this GPU (https://pytorch.org/get-started/locally/)."
        )
        return torch.device("cpu")
    return device


def _gpu_problem(device: torch.device) -> str | None:
    """Say why PyTorch has no code for a GPU; None if it has, or if it is no GPU.

    Machine code (sm_80) runs on GPUs of the same major version and the same or a later
    minor one, sm_90a on 9.0 alone, and PTX (compute_80) on all later GPUs.
    """
    if device.type != "cuda":
        return None
    gpu = torch.cuda.get_device_capability(device)
    built_for = ", ".join(torch.cuda.get_arch_list())
    for kind, *numbers, exact in re.findall(r"(sm|compute)_(\d+)(\d)(a?)", built_for):
        code = tuple(map(int, numbers))
        later = code < gpu and (kind == "compute" or code[0] == gpu[0])
        if code == gpu or (later and not exact):
            return None
    if "sm_" not in built_for:  # AMD's GPUs have other names
        return None
    return (
        f"the {torch.cuda.get_device_name(device)} has compute capability "
        f"{gpu[0]}.{gpu[1]}, and this PyTorch was built for {built_for}"
    )


_current: Settings | None = None


def settings() -> Settings:
    """Return the settings, read from the environment at the first call only."""
    global _current
    if _current is None:
        _current = Settings.from_env()
    return _current


def configure(**changes: Any) -> Settings:
    """Replace settings, for command-line options and tests; return the new ones.

    Profile, device and paths may be strings. With another profile, an output folder
    that ends in the old profile's name changes with it.

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
    """Return this profile's folder for results, without creating it."""
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
    fp32 for exact repetition. Device and profile default to this run's.
    """
    where = settings().device if device is None else torch.device(device)
    if (profile or settings().profile).deterministic:
        return "fp32"
    if where.type == "cuda":
        return "bf16" if supports_dtype("bf16", where) else "fp16"
    return "bf16" if where.type == "cpu" and _bf16_is_faster() else "fp32"


def supports_dtype(precision: str, device: torch.device | str | None = None) -> bool:
    """Return whether a device has bf16, fp16, or fp32 in hardware: a T4 has no bf16."""
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
    order = {"memory_format": torch.channels_last}
    # a layer would draw random numbers
    weight = torch.ones(128, 128, 3, 3).to(**order).requires_grad_()
    x = torch.ones(4, 128, 56, 56).to(**order)
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = torch.nn.functional.conv2d(x, weight, padding=1)
    y.float().sum().backward()
    return time.perf_counter() - start


def autocast(model_or_device: torch.nn.Module | torch.device | str) -> torch.autocast:
    """Return a context in which a model predicts in its device's `amp_dtype`.

    A model without parameters counts as being on this run's device.
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
    trace of it. Pipes and log files get none. Without items, it is updated by hand.
    """
    visible = sys.stdout.isatty() or "ipykernel" in sys.modules
    hidden = not (visible and settings().progress and not profile().deterministic)
    options = {"leave": False, "delay": 1, "mininterval": 0.5, "file": sys.stdout}
    return tqdm(iterable, desc=desc, total=total, disable=hidden, **options)


def banner(text: str, width: int = 72) -> str:
    """Return a text in a frame that can't be missed, for what changes every score."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        # an address stays whole, so that it can be copied
        lines += textwrap.wrap(paragraph, width, break_long_words=False) or [""]
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
    try:
        text = Path("/proc/cpuinfo").read_text()
        processor = re.search(r"model name\s*:\s*(.+)", text)[1]
    except (OSError, TypeError):
        processor = platform.processor() or platform.machine()
    cores = os.cpu_count() or 1
    words = f"{processor}, {cores} core{'s' if cores > 1 else ''}"
    if device().type == "cuda":
        gpu = torch.cuda.get_device_properties(device())
        words = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB ({words})"
    return words


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
    """
    here = settings()
    print(f"profile  {here.profile.name} ({here.profile_source})")
    print(f"machine  {hardware_info()}\nversions {versions()}")
    for name, value in facts.items():
        print(f"{name:<9}{value}")
    if not in_colab():
        return
    print(f"results  {_where_results_go(here.output_dir)}")
    if here.device.type == "cpu":
        print(
            "No GPU here. In Colab: Runtime > Change runtime type > T4 GPU > Save, "
            "then Runtime > Run all."
        )


def _where_results_go(folder: Path) -> str:
    if folder.is_relative_to(DRIVE):
        return f"on Google Drive, where they stay: {folder.relative_to(DRIVE.parent)}"
    if folder.parent != (repo_root() or Path.cwd()) / "build":
        return str(folder)
    return (
        "on a machine that Colab will clear; to keep them: Files > Mount Drive, "
        "then Runtime > Restart session and run all"
    )
