"""Train the course's network from the command line, as chapter 4 does.

Results go to build/<profile>/<recipe>/: checkpoints, and unet.safetensors with the
finished network. An interrupted training goes on where it stopped.

With --data it trains on pictures of your own, which data/README.md says how to lay
out, and the results go to build/<profile>/<recipe>-<name of the folder>/.

Several processes share each batch, on GPUs or, to try it out, on a CPU:

    accelerate launch --multi_gpu --num_processes 4 scripts/train.py
    ROADSEG_DEVICE=cpu torchrun --nproc_per_node 2 scripts/train.py
"""

import argparse
import contextlib
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

from accelerate import PartialState

import doors
from roadseg import dataset1, evaluation, recipes, runtime, training, unet


def main() -> int:
    """Read the arguments, train, print the scores; return the exit status."""
    description, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", choices=runtime.PROFILES, help="how much to do")
    parser.add_argument("--recipe", choices=recipes.RECIPES, help="how to train")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="pictures of your own, in dataset1's layout (without it: dataset1)",
    )
    arguments = parser.parse_args()
    if arguments.profile:
        os.environ["ROADSEG_PROFILE"] = arguments.profile
    if arguments.recipe:
        os.environ["ROADSEG_RECIPE"] = arguments.recipe
    return doors.status(lambda: start(arguments.data))


def start(folder: Path | None) -> int:
    """Train, alone or with others; return the exit status."""
    together = training.processes()
    if alone(together):
        doors.complain(
            "accelerate starts one process on a CPU, however many it is asked for (it "
            "leaves that to MPI): use torchrun --nproc_per_node N scripts/train.py"
        )
        return 1
    if together.num_processes > 1:
        training.end_in_words()
    quiet = io.StringIO() if together.process_index else sys.stdout
    with contextlib.redirect_stdout(quiet):  # one of the processes prints
        return run(together, folder)


def alone(together: PartialState) -> bool:
    """Return whether `accelerate launch --cpu --num_processes N` started just one."""
    asked = "MASTER_ADDR" in os.environ and "ACCELERATE_USE_CPU" in os.environ
    return asked and together.num_processes == 1


def run(together: PartialState, folder: Path | None) -> int:
    """Train, print the scores; return the exit status."""
    recipe = training.Recipe.for_profile()
    if folder:
        recipe = replace(recipe, name=f"{recipe.name}-{folder.resolve().name}")
    with together.main_process_first():  # one of them downloads
        train, test = read(folder) if folder else dataset1.load()
        weights = unet.find_encoder_weights()
    runtime.describe(data=train.origin, weights=weights.origin)
    watched = test.subset([0, len(test) // 2, len(test) - 1])
    model, facts = training.trained_model(train, weights, recipe, watched)
    if not together.is_main_process:
        return 0
    path = runtime.output_dir() / recipe.name / training.MODEL
    print(f"the network is in {doors.shown(path)}")

    def feed(picture: tuple[int, int]) -> tuple[int, int]:
        return evaluation.feed_size(picture, recipe.feed)

    scores = evaluation.evaluate(model, test, feed)
    took = training.in_words(facts["seconds"])
    print(f"{scores}   after {took} of training on {facts['machine']}")
    if not train.real:
        print("drawn scenes: NOT COMPARABLE with any score for dataset1")
    return 0


def read(folder: Path) -> tuple[dataset1.RoadScenes, dataset1.RoadScenes]:
    """Return the scenes of a folder for training and for testing."""
    return tuple(dataset1.RoadScenes(folder, split) for split in ("train", "test"))


if __name__ == "__main__":
    raise SystemExit(main())
