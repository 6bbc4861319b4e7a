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
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal cannot show must not cost the results
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    options = parser.parse_args(argv)
    return _exit_status(options)


def _exit_status(options: argparse.Namespace) -> int:
    """Run the command; turn errors that users can do something about into a line."""
    try:
        from roadseg import commands  # here, because it imports PyTorch

        status = getattr(commands, options.command)(options)
        sys.stdout.flush()  # a full disk shows only now
        return status
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return 1
    except (RoadsegError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            return 1
        _discard_output()
        return 1
    except (RuntimeError, MemoryError) as error:
        from roadseg import runtime

        if not runtime.is_oom_error(error):
            raise
        print("error: out of memory: try a smaller --input-size", file=sys.stderr)
        return 1


def _discard_output() -> None:
    """Let nothing more be written to a standard output that takes nothing."""
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
Segment images and videos.

For street.jpg it writes street_mask.png, whose pixels are class ids, shown in the
colors of the label set, and street_overlay.jpg, the image under these colors. For
drive.mp4 it writes drive_overlay.mp4, with the same frame times, and a folder
drive_masks with a mask of each frame. Animated GIF and PNG images are treated as
videos. Any size works, and images are rotated upright first.

Of a folder, all images and videos are taken, whatever their endings; with
--recursive also those in its subfolders, and the results lie in the same subfolders.
A file that cannot be read is reported and does not stop the others. The last line
counts what was done and what was left out.

examples:
  roadseg predict street.jpg
  roadseg predict my_images/ drive.mp4 --every 5 --out results"""

EXPORT = """\
Export a trained network as ONNX and check it against PyTorch.

The file takes float32 images (N, 3, H, W), any N, H and W multiples of 32, normalized
with the mean and standard deviation in its metadata, and returns logits
(N, classes, H, W). The largest difference from PyTorch over several sizes is printed;
one above 0.001 of the largest logit is an error.

--int8 N also writes an 8-bit file (static quantization, with ranges from 16 training
images) and scores both on N test images: of dataset1, or of --data.

examples:
  roadseg export --out unet.onnx
  roadseg export --out unet.onnx --int8 101"""

PREPARE = """\
Convert images and masks of other layouts and codings to a dataset for training.

SOURCE is a folder: images and masks in two folders or in one with suffixes such as
_mask, with subfolders and splits or without; Pascal VOC; Cityscapes; or a file of COCO
annotations (with pycocotools). Masks may hold ids of 1 to 16 bits, a palette, or
colors. Nothing is guessed: what stands for no class is counted, shown and refused,
unless --map, --tolerance or --unknown ignore says what to do with it.

OUT, a new folder, gets images (copied as they are, or saved as PNG if they have to be
turned upright), masks of ids as PNG, and labels.json. It is checked as by `roadseg
check`, and one report tells about both.

examples:
  roadseg prepare my_annotations my_roads --labels labels.json --tolerance 8
  roadseg prepare instances.json my_roads --split block:0.2
  roadseg prepare cityscapes my_roads --map 7=road --map 26=car --unknown ignore"""

CHECK = """\
Check a dataset for faults that training doesn't report.

It looks for missing partners and damaged files, wrong sizes and ids, labels along
borders that come from scaling or anti-aliasing, masks that are shifted against their
images (from half a pixel on), images that are in two splits or nearly so, classes that
are missing or rare, and masks without a label. With --input-size it also computes the
best score that labels of this size can reach.

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

    train = _add(commands, "train", TRAIN)
    train.add_argument(
        "--profile", choices=("quick", "cpu", "gpu"), help="how much to compute"
    )
    _add_recipe(train, "how to train (default: the profile's recipe)")
    _add_data(train, "your own scenes (default: dataset1)")
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="where the results go: DIR/RECIPE"
    )

    evaluate = _add(commands, "evaluate", EVALUATE)
    _add_network(evaluate)
    _add_data(evaluate, "a folder with images and masks (default: dataset1)")
    evaluate.add_argument(
        "--split", metavar="NAME", help="which split of that folder (default: test)"
    )
    _add_hflip(evaluate)
    evaluate.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the scores to this file"
    )

    predict = _add(commands, "predict", PREDICT)
    predict.add_argument(
        "inputs", nargs="+", type=Path, metavar="PATH", help="image, video or folder"
    )
    predict.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the results go (default: build/PROFILE/predictions)",
    )
    predict.add_argument(
        "--every",
        type=_positive,
        default=1,
        metavar="N",
        help="of a video, take every Nth frame (default: all)",
    )
    predict.add_argument(
        "--recursive", action="store_true", help="also look into subfolders"
    )
    _add_hflip(predict)
    _add_network(predict)

    export = _add(commands, "export", EXPORT)
    export.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the .onnx file to write (default: build/PROFILE/unet.onnx)",
    )
    export.add_argument(
        "--int8",
        type=_positive,
        metavar="N",
        help="also write an 8-bit file, and score both on N test images",
    )
    _add_data(export, "scenes for --int8 (default: dataset1)")
    _add_network(export)

    prepare = _add(commands, "prepare", PREPARE)
    prepare.add_argument("source", type=Path, metavar="SOURCE", help="what you have")
    prepare.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    prepare.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="labels.json with the classes to convert to (default: what SOURCE "
        "describes in labels.json, labelmap.txt or COCO categories, or CamVid's)",
    )
    prepare.add_argument(
        "--map",
        action="append",
        metavar="FROM=TO",
        help="an id, a name or a color (#ff8000) of the source, and its class, or "
        "ignore; may be repeated",
    )
    prepare.add_argument(
        "--tolerance",
        type=_distance,
        default=0,
        metavar="N",
        help="take the nearest class's color up to this distance in RGB (default: 0)",
    )
    prepare.add_argument(
        "--unknown",
        choices=("refuse", "ignore"),
        default="refuse",
        help="what to do with pixels that stand for no class (default: refuse)",
    )
    prepare.add_argument(
        "--palette",
        choices=("auto", "color", "index"),
        default="auto",
        help="how to read masks with a palette (default: by color if all are classes')",
    )
    prepare.add_argument(
        "--split",
        default="keep",
        metavar="HOW",
        help="keep that of the source, block:0.2 or sequence:NAME (default: keep)",
    )
    for name in ("images", "masks"):
        text = f"the folder of {name} in SOURCE, if its name doesn't tell"
        prepare.add_argument(f"--{name}", type=Path, metavar="DIR", help=text)
    prepare.add_argument(
        "--mask-suffix", metavar="TEXT", help="take only masks with this suffix"
    )
    _add_html(prepare)

    check = _add(commands, "check", CHECK)
    check.add_argument("dataset", type=Path, metavar="DATASET", help="its folder")
    check.add_argument(
        "--input-size",
        type=_size,
        metavar="HxW",
        help="height and width that a network will be fed, such as 256x352",
    )
    check.add_argument(
        "--strict", action="store_true", help="status 1 also if there are warnings"
    )
    _add_html(check)
    return parser


def _add_html(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with images"
    )


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


def _add_recipe(parser, text: str) -> None:
    parser.add_argument("--recipe", choices=("quick", "cpu", "full"), help=text)


def _add_data(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help=text)


def _add_hflip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hflip",
        action="store_true",
        help="average with the mirrored image: slightly better, twice the time",
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="a trained network, .safetensors (default: the one that `roadseg train` "
        "trained; without one, the network that ships with roadseg)",
    )
    _add_recipe(network, "instead: the network trained with this recipe")
    parser.add_argument(
        "--input-size",
        type=_size,
        metavar="HxW",
        help="height and width that the network is fed, such as 256x352 (default: "
        "what it was trained for)",
    )


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a height and width in pixels, such as 256x352"
        )
    return int(found[1]), int(found[2])


def _distance(text: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a distance, such as 8")
    return float(text)


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
