"""The command line: ``roadseg train``, `evaluate`, `predict`, and the others.

Thin: each command reads its arguments, calls the package and prints what came of it.
PyTorch is imported only once a command runs, so ``--help`` answers at once.
"""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from roadseg import __version__
from roadseg.classes import RoadsegError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells define it."""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; without them, those of the process.

    Returns:
        The exit status: 0 done, 1 something failed, 130 interrupted.

    Raises:
        SystemExit: With status 2 if the arguments are wrong, 0 after ``--help``.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as with >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal cannot show must not cost the results
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(argv)
    try:
        from roadseg import commands  # here, because it imports PyTorch

        status = getattr(commands, options.command)(options)
        sys.stdout.flush()  # a full disk shows only now
        return status
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except (RoadsegError, OSError) as error:
        if not isinstance(error, BrokenPipeError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # let nothing more be written to what takes nothing
            with contextlib.suppress(OSError, io.UnsupportedOperation):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RuntimeError, MemoryError) as error:
        from roadseg import runtime

        if not runtime.is_oom_error(error):
            raise
        print("error: out of memory: try a smaller --input-size", file=sys.stderr)
        return 1


# --- arguments ----------------------------------------------------------------

DESCRIPTION = """\
Prepare data for, train, evaluate, use and export a U-Net that segments road scenes.

Exit status: 0 done, 1 something failed, 2 wrong arguments, 130 interrupted."""

TRAIN = """\
Train a network, as chapter 4 does, and score it on the test split.

The results go to build/PROFILE/RECIPE/: checkpoints, and unet.safetensors with the
trained network. An interrupted training continues where it stopped. With --data the
network is trained on your own images; data/README.md describes the layouts that are
understood, and a file labels.json names your classes.

examples:
  roadseg train
  roadseg train --recipe cpu --data my_roads --out runs
  torchrun --nproc_per_node 4 -m roadseg train       (several GPUs or processes)"""

EVALUATE = """\
Score a trained network on images with masks: pixel accuracy, mean IoU, IoU per class.

Without --data these are the 101 test images of dataset1 (CamVid, SegNet's split).

examples:
  roadseg evaluate
  roadseg evaluate --model mine.safetensors --data my_roads --json scores.json"""

PREDICT = """\
Segment images and videos of any size.

For street.jpg it writes street_mask.png, whose pixels are class ids, shown in the
colors of the label set, and street_overlay.jpg, the image under these colors. For
drive.mp4 it writes drive_overlay.mp4, with the same frame times, and a folder
drive_masks with a mask of each frame. Animated GIF and PNG images are treated as
videos.

Of a folder, all images and videos are taken, whatever their endings. A file that
cannot be read is reported and does not stop the others. The last line counts what was
done and what was left out.

examples:
  roadseg predict street.jpg
  roadseg predict my_images/ drive.mp4 --every 5 --out results"""

EXPORT = """\
Export a trained network as ONNX and check it against PyTorch.

The file takes float32 images (N, 3, H, W), any N, H and W multiples of 32, normalized
with the mean and standard deviation in its metadata, and returns logits
(N, classes, H, W). A difference from PyTorch above 0.001 of the largest logit is an
error. --int8 N also writes an 8-bit file (static quantization, with ranges from 16
training images) and scores both on N test images. --web writes the file for the page
"Try it" of the course's site instead: 8-bit weights, float arithmetic. On that page,
choose it under "Use your own network".

examples:
  roadseg export --out unet.onnx --int8 101
  roadseg export --model mine.safetensors --web --out my_network.onnx"""

PREPARE = """\
Convert images and masks of other layouts and codings to a dataset for training.

SOURCE is a folder: images and masks in two folders or in one with suffixes such as
_mask, with subfolders and splits or without; Pascal VOC; Cityscapes; or a file of COCO
annotations (with pycocotools). Masks may hold ids of 1 to 16 bits, a palette, or
colors. Nothing is guessed: what stands for no class is counted, shown and refused,
unless --map, --tolerance or --unknown ignore says what to do with it.

OUT, a new folder, gets images, masks of ids as PNG, and labels.json. It is checked as
by `roadseg check`, and one report tells about both.

examples:
  roadseg prepare my_annotations my_roads --labels labels.json --tolerance 8
  roadseg prepare instances.json my_roads --split block:0.2
  roadseg prepare cityscapes my_roads --map 7=road --map 26=car --unknown ignore"""

CHECK = """\
Check a dataset for faults that training doesn't report.

It looks for missing partners and damaged files, wrong sizes and ids, labels along
borders that come from scaling or anti-aliasing, masks that are shifted against their
images (from half a pixel on), images that are in two splits or nearly so, classes that
are missing or rare, and masks without a label.

Exit status: 1 if there are errors, with --strict also if there are warnings.

examples:
  roadseg check my_roads
  roadseg check my_roads --input-size 256x352 --html report.html --strict"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="roadseg",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"roadseg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "train", TRAIN)
    add = command.add_argument
    add("--profile", choices=("quick", "cpu", "gpu"), help="how much to compute")
    _add_recipe(add, "how to train (default: the profile's recipe)")
    _add_path(add, "--data", "DIR", "your own scenes (default: dataset1)")
    _add_path(add, "--out", "DIR", "where the results go: DIR/RECIPE")

    command = _add(commands, "evaluate", EVALUATE)
    add = command.add_argument
    _add_network(command)
    _add_path(add, "--data", "DIR", "images with masks (default: dataset1)")
    add("--split", metavar="NAME", help="a split of that folder (default: test)")
    _add_hflip(add)
    _add_path(add, "--json", "FILE", "also write the scores to this file")

    command = _add(commands, "predict", PREDICT)
    add = command.add_argument
    _add_path(add, "inputs", "PATH", "image, video or folder", nargs="+")
    results = "where the results go (default: build/PROFILE/predictions)"
    _add_path(add, "--out", "DIR", results)
    every = "of a video, take every Nth frame (default: all)"
    add("--every", type=_positive, default=1, metavar="N", help=every)
    add("--recursive", action="store_true", help="also look into subfolders")
    _add_hflip(add)
    _add_network(command)

    command = _add(commands, "export", EXPORT)
    add = command.add_argument
    _add_path(add, "--out", "FILE", "the .onnx file (default: build/PROFILE/unet.onnx)")
    kind = command.add_mutually_exclusive_group().add_argument
    int8 = "also write an 8-bit file, and score both on N test images"
    kind("--int8", type=_positive, metavar="N", help=int8)
    web = 'write the file for the page "Try it" (default: build/PROFILE/unet_web.onnx)'
    kind("--web", action="store_true", help=web)
    _add_path(add, "--data", "DIR", "scenes for --int8 (default: dataset1)")
    _add_network(command)

    command = _add(commands, "prepare", PREPARE)
    add = command.add_argument
    _add_path(add, "source", "SOURCE", "what you have")
    _add_path(add, "out", "OUT", "the folder to write")
    text = "labels.json with the classes to convert to (default: what SOURCE describes "
    text += "in labels.json, labelmap.txt or COCO categories, or CamVid's)"
    _add_path(add, "--labels", "FILE", text)
    text = (
        "an id, a name or a color (#ff8000) of the source, and its class, or ignore; "
    )
    add("--map", action="append", metavar="FROM=TO", help=f"{text}may be repeated")
    text = "take the nearest class's color up to this distance in RGB (default: 0)"
    add("--tolerance", type=_distance, default=0, metavar="N", help=text)
    text = "what to do with pixels that stand for no class (default: refuse)"
    add("--unknown", choices=("refuse", "ignore"), default="refuse", help=text)
    text = "keep that of the source, block:0.2 or sequence:NAME (default: keep)"
    add("--split", default="keep", metavar="HOW", help=text)
    for name in ("images", "masks"):
        text = f"the folder of {name} in SOURCE, if its name doesn't tell"
        _add_path(add, f"--{name}", "DIR", text)
    add("--mask-suffix", metavar="TEXT", help="take only masks with this suffix")
    _add_path(add, "--html", "FILE", "also write a page with images")

    command = _add(commands, "check", CHECK)
    add = command.add_argument
    _add_path(add, "dataset", "DATASET", "its folder")
    text = "compute the best score that labels of this size can reach"
    add("--input-size", type=_size, metavar="HxW", help=text)
    add("--strict", action="store_true", help="status 1 also if there are warnings")
    _add_path(add, "--html", "FILE", "also write a page with images")
    return parser


def _add(commands, name: str, text: str) -> argparse.ArgumentParser:
    summary, _, rest = text.partition("\n\n")
    rest, _, examples = rest.partition("examples:")
    command = commands.add_parser(
        name,
        help=" ".join(summary.split()),
        description=f"{summary}\n\n{rest.strip()}",
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=name, error=command.error)
    return command


def _add_path(add: Callable, name: str, metavar: str, text: str, **more) -> None:
    add(name, type=Path, metavar=metavar, help=text, **more)


def _add_recipe(add: Callable, text: str) -> None:
    add("--recipe", choices=("quick", "cpu", "full"), help=text)


def _add_hflip(add: Callable) -> None:
    text = "average with the mirrored image: slightly better, twice the time"
    add("--hflip", action="store_true", help=text)


def _add_network(command: argparse.ArgumentParser) -> None:
    one = command.add_mutually_exclusive_group().add_argument
    text = "a trained network, .safetensors (default: the one that `roadseg train` "
    text += "trained; without one, the network that ships with roadseg)"
    _add_path(one, "--model", "FILE", text)
    _add_recipe(one, "instead: the network trained with this recipe")
    text = "height and width that the network is fed, such as 256x352 (default: what "
    text += "it was trained for)"
    command.add_argument("--input-size", type=_size, metavar="HxW", help=text)


def _matching(pattern: str, text: str, wanted: str) -> re.Match:
    if not (found := re.fullmatch(pattern, text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return found


def _size(text: str) -> tuple[int, int]:
    wanted = "a height and width of 2 pixels or more, such as 256x352"
    side = r"([2-9]|[1-9]\d{1,4})"  # PyTorch fails to resize to a single pixel
    found = _matching(f"{side}x{side}", text, wanted)
    return int(found[1]), int(found[2])


def _distance(text: str) -> float:
    return float(_matching(r"\d{1,3}(\.\d+)?", text, "a distance, such as 8")[0])


def _positive(text: str) -> int:
    return int(_matching(r"0*[1-9]\d{0,8}", text, "a whole number from 1 on")[0])
