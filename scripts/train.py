"""Train the course's network from the command line, as chapter 4 does.

Results go to build/<profile>/<recipe>/: checkpoints, and unet.safetensors with the
finished network. An interrupted training goes on where it stopped.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

from roadseg import dataset1, evaluation, runtime, training, unet


def main() -> int:
    """Read the arguments, train, print the scores; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", choices=runtime.PROFILES, help="how much to do")
    parser.add_argument("--recipe", choices=training.RECIPES, help="how to train")
    arguments = parser.parse_args()
    if arguments.profile:
        os.environ["ROADSEG_PROFILE"] = arguments.profile
    if arguments.recipe:
        os.environ["ROADSEG_RECIPE"] = arguments.recipe
    try:
        train, test = dataset1.load()
        weights = unet.find_encoder_weights()
        runtime.describe(data=train.origin, weights=weights.origin)
        recipe = training.Recipe.for_profile()
        model, facts = training.trained_model(
            train, weights, recipe, test.subset([0, len(test) // 2, len(test) - 1])
        )
    except (dataset1.DatasetError, unet.WeightsError, training.TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except training.TrainingInterrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    scores = evaluation.evaluate(model, test, recipe.feed)
    took = training.in_words(facts["seconds"])
    print(f"{scores}   after {took} of training on {facts['machine']}")
    if not train.real:
        print("drawn scenes: NOT COMPARABLE with any score for dataset1")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
