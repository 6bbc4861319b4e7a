"""What the command-line doors share: arguments, whole files, exit statuses."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

from roadseg import recipes

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser with what every door has.

    Args:
        doc: The script's docstring; its first paragraph is the description, the
            rest stands at the end of the help.
    """
    description, _, rest = doc.partition("\n\n")
    made = argparse.ArgumentParser(
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    network = made.add_mutually_exclusive_group()
    network.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="a trained network, .safetensors (without it: what scripts/train.py "
        "trained under this profile)",
    )
    network.add_argument(
        "--recipe",
        choices=recipes.RECIPES,
        help="instead: what it trained by this recipe (without it: by the profile's)",
    )
    made.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="height and width to feed the network with, such as 256x352 (without "
        "it: what the network was trained for)",
    )
    return made


def network(options: argparse.Namespace) -> tuple:
    """Return what `training.saved_model` does, for the network that is asked for."""
    from roadseg import training

    if options.recipe:
        os.environ["ROADSEG_RECIPE"] = options.recipe
    return training.saved_model(options.model)


def size(text: str) -> tuple[int, int]:
    """Read a height and width from a command line: ``256x352``."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no height and width in pixels, such as 256x352"
        )
    return int(found[1]), int(found[2])


def shown(path: Path) -> str:
    """Return a path as people should see it: from where they are, if it is there."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a file to write, which takes its place when it is whole, or not at all."""
    draft = path.with_name(f".draft-{os.getpid()}-{path.name}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def complain(error: object) -> None:
    """Print one line about what went wrong on standard error."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


def status(work: Callable[[], int]) -> int:
    """Do the work of a door; return its exit status: 1 for bad input, 130 if stopped.

    Errors that nobody foresaw pass, with their traceback.
    """
    from roadseg import dataset1, runtime, training

    try:
        return work()
    # roadseg says with a ValueError what is wrong with a picture, weights, a setting
    except (dataset1.DatasetError, training.TrainingError, ValueError, OSError) as e:
        complain(e)
        return 1
    except (RuntimeError, MemoryError) as e:
        if not runtime.out_of_memory(e):
            raise
        complain("this takes more memory than there is: try a smaller --size or batch")
        return 1
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return STOPPED
