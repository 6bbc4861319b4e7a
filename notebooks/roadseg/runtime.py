"""Where the course runs: profile, device, seeds, folders, progress, a description.

Settings come from the environment, so that a notebook never branches on them:

* ``ROADSEG_PROFILE``: quick, cpu or gpu. Without it: gpu with CUDA, else cpu.
* ``ROADSEG_DEVICE``: cpu, cuda, cuda:1, mps. Without it: cuda if there, else cpu.
* ``ROADSEG_DATA``: the folder that downloads go to. Without it: ``data/``.
* ``ROADSEG_OUTPUT``: where checkpoints and scores go. Without it: ``build/``, and in
  Colab Google Drive if it is mounted.
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
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

DRIVE = Path("/content/drive/MyDrive")
"""Where Google Drive is in Colab, once it is mounted."""


@dataclass(frozen=True)
class Profile:
    """How much of everything a run of the course does.

    Attributes:
        name: quick, cpu or gpu.
        real_data: Whether dataset1 is read; if not, scenes are drawn, whatever
            lies on the disk.
        pretrained: Whether pretrained encoder weights are looked for.
        drawn_size: Height and width of drawn scenes, in pixels.
        drawn_counts: How many scenes are drawn for training and for testing.
        demo_size: Height and width in the small trainings that illustrate a
            point, in pixels.
        demo_pictures: How many pictures these use.
        demo_steps: How many optimiser steps these take.
    """

    name: str
    real_data: bool
    pretrained: bool
    drawn_size: tuple[int, int]
    drawn_counts: tuple[int, int]
    demo_size: tuple[int, int]
    demo_pictures: int
    demo_steps: int


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("quick", False, False, (96, 128), (24, 12), (32, 64), 4, 16),
        Profile("cpu", True, True, (360, 480), (60, 20), (96, 128), 8, 80),
        Profile("gpu", True, True, (360, 480), (60, 20), (224, 320), 16, 200),
    )
}
"""The three sizes in which the course runs: for checks, for a CPU, for a GPU."""


def profile(name: str | None = None) -> Profile:
    """Return the profile of this run.

    Args:
        name: quick, cpu or gpu. Without it the environment variable
            ``ROADSEG_PROFILE`` decides, and without that the device.

    Raises:
        ValueError: If there is no such profile.
    """
    name = name or os.environ.get("ROADSEG_PROFILE")
    if not name:
        name = "gpu" if device().type == "cuda" else "cpu"
    if name not in PROFILES:
        raise ValueError(
            f"there is no profile {name!r}: set ROADSEG_PROFILE to one of "
            f"{', '.join(PROFILES)}"
        )
    return PROFILES[name]


def device() -> torch.device:
    """Return the device that networks run on: CUDA when there is one, else the CPU.

    Of processes that a launcher started together each has a GPU of its own, whose
    number is in ``LOCAL_RANK``.

    The environment variable ``ROADSEG_DEVICE`` overrides it (``mps`` included,
    which is not chosen by itself because the course is not tested on it).

    Raises:
        ValueError: If ``ROADSEG_DEVICE`` names a device that is not here.
    """
    wanted = os.environ.get("ROADSEG_DEVICE")
    if not wanted:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        own = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(own)) if own else torch.device("cuda")
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"ROADSEG_DEVICE={wanted!r} cannot be used here ({error}); "
            "unset it, or set it to cpu"
        ) from None
    return torch.device(wanted)


def seed_everything(seed: int = 0) -> None:
    """Seed the random numbers of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def in_colab() -> bool:
    """Return whether this is a notebook in Google Colab (not Kaggle)."""
    return "google.colab" in sys.modules


def checkout() -> Path | None:
    """Return the folder of the course's checkout, or None if roadseg is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else None


def data_dir() -> Path:
    """Return the folder that data sets and encoder weights are kept in."""
    if folder := os.environ.get("ROADSEG_DATA"):
        return Path(folder).expanduser().resolve()
    return (checkout() or Path.cwd()) / "data"


def output_dir() -> Path:
    """Return this profile's folder for checkpoints, logs and scores; it is made.

    In Colab this is on Google Drive if that is mounted, so that a run survives
    the machine it ran on.
    """
    if folder := os.environ.get("ROADSEG_OUTPUT"):
        base = Path(folder).expanduser().resolve()
    elif in_colab() and DRIVE.is_dir():
        base = DRIVE / "roadseg"
    else:
        base = (checkout() or Path.cwd()) / "build"
    folder = base / profile().name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def short(path: str | os.PathLike) -> str:
    """Return a path as people should see it: from the checkout on, or its name."""
    path = Path(path).resolve()
    for base in (checkout(), Path.cwd()):
        if base and path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def progress(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """Pass items on under a progress bar, which shows only if it takes seconds.

    The bar goes to standard output and is wiped at the end: a notebook keeps no
    trace of it. It is for people, so neither a pipe nor a log file gets one.
    ``ROADSEG_PROGRESS=0`` hides it everywhere.
    """
    watched = sys.stdout.isatty() or "ipykernel" in sys.modules
    hidden = os.environ.get("ROADSEG_PROGRESS") == "0" or profile().name == "quick"
    return tqdm(
        items,
        desc=what,
        total=total,
        leave=False,
        delay=1,
        mininterval=0.5,
        file=sys.stdout,
        disable=hidden or not watched,
    )


def banner(text: str, width: int = 72) -> str:
    """Return a text in a frame that nobody misses, for what changes every score.

    Args:
        text: One paragraph, or several with a blank line between them.
        width: Columns inside the frame.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines += textwrap.wrap(paragraph, width) or [""]
    edge = "!" * (width + 6)
    return "\n".join([edge, *(f"!! {line:<{width}} !!" for line in lines), edge])


def machine() -> str:
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
        name = names[0].strip()
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return name


def versions(packages: Iterable[str] = ("torch", "torchvision", "numpy")) -> str:
    """Return the versions of Python and of packages, in words."""
    words = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            words.append(f"{package} {version(package).split('+')[0]}")
        except PackageNotFoundError:
            words.append(f"no {package}")
    return ", ".join(words)


def describe(**facts: object) -> None:
    """Print what a notebook runs on: profile, machine, versions, and more facts.

    In Colab it also says where results go, and where to click if there is no GPU.

    Args:
        facts: Further lines, such as ``data=scenes.origin`` or
            ``weights=weights.origin``.
    """
    here = profile()
    lines = {
        "profile": f"{here.name} ({_why()})",
        "machine": machine(),
        "versions": versions(),
        **facts,
    }
    if in_colab():
        lines["results"] = _where_results_go()
    for name, value in lines.items():
        print(f"{name:<9}{value}")
    if in_colab() and device().type == "cpu":
        print(
            "No GPU here. In Colab: Runtime > Change runtime type > T4 GPU > Save, "
            "then Runtime > Run all."
        )


def _where_results_go() -> str:
    folder = output_dir()
    if folder.is_relative_to(DRIVE):
        return f"on Google Drive, where they stay: {folder.relative_to(DRIVE.parent)}"
    if os.environ.get("ROADSEG_OUTPUT"):
        return f"{folder} (set by ROADSEG_OUTPUT)"
    return "on a machine that Colab will clear; to keep them: Files > Mount Drive"


def _why() -> str:
    if os.environ.get("ROADSEG_PROFILE"):
        return "set by ROADSEG_PROFILE"
    return "the default with CUDA" if device().type == "cuda" else "the default on CPU"


@functools.cache
def precision() -> str:
    """Return the number format for training here: bf16, fp16 or no (float32).

    A GPU decides by capability: bf16 from compute capability 8.0 on, else fp16.
    A CPU is measured, once: bf16 halves the time of a convolution where the
    processor has instructions for it and doubles it where it has none. The quick
    profile is float32 for exact repetition.
    """
    here = device()
    if profile().name == "quick" or here.type == "mps":
        return "no"
    if here.type == "cuda":
        return "bf16" if has_format("bf16") else "fp16"
    formats = (torch.bfloat16, torch.float32)
    least = dict.fromkeys(formats, math.inf)
    for _ in range(6):  # in turn, so that a busy moment slows both; the first warms up
        for dtype in formats:
            least[dtype] = min(least[dtype], _seconds(dtype))
    return "bf16" if least[torch.bfloat16] < 0.8 * least[torch.float32] else "no"


@torch.inference_mode(False)
@torch.enable_grad()
def _seconds(dtype: torch.dtype) -> float:
    """Return the seconds of one training step of a convolution on the CPU."""
    weight = torch.ones(128, 128, 3, 3).to(memory_format=torch.channels_last)
    weight.requires_grad_()  # a layer would draw random numbers
    x = torch.ones(4, 128, 56, 56).to(memory_format=torch.channels_last)
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = torch.nn.functional.conv2d(x, weight, padding=1)
    y.float().sum().backward()
    return time.perf_counter() - start


def has_format(precision: str) -> bool:
    """Return whether this run's device has a number format: a T4 has no bf16."""
    here = device()
    if precision == "bf16" and here.type == "cuda":
        return torch.cuda.get_device_capability(here)[0] >= 8
    return precision != "fp16" or here.type == "cuda"


def format_name(precision: str) -> str:
    """Return the name of a number format as people say it: float32 for no."""
    return "float32" if precision == "no" else precision


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # what PyTorch raises when the system, the driver, cuBLAS or cuDNN refuses memory
    words = ("t allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)


def autocast() -> torch.autocast:
    """Return a context in which networks predict in this machine's `precision`."""
    dtype = torch.float16 if precision() == "fp16" else torch.bfloat16
    return torch.autocast(device().type, dtype, enabled=precision() != "no")
