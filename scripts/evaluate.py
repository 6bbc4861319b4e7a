"""Score a trained network on pictures with masks.

Without --data these are dataset1's 101 test pictures; with it, a folder in the same
layout (images_prepped_test, annotations_prepped_test: see data/README.md), pictures
of any size. They are fed as scripts/predict.py feeds them: at the size that the
network was trained for, upright and wide ones in their own proportions; with --size
at that very size. Prints the three scores of the course and the IoU of each class.

    python scripts/evaluate.py
    python scripts/evaluate.py --model mine.safetensors --data my_roads --json s.json

Exit status: 0 done, 1 something cannot be read, 2 wrong arguments, 130 stopped.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import doors
from roadseg import classes, dataset1, evaluation, runtime

MOST_NAMED = 4
"""Sizes that are named one by one in what is printed and written."""


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments, evaluate, print the scores; return the exit status."""
    parser = doors.parser(__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="a folder in dataset1's layout"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="of that folder: the end of the names of its two folders (test)",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="average with the mirrored picture: a little better, twice the time",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the scores here"
    )
    options = parser.parse_args(arguments)
    if options.split and not options.data:
        parser.error("argument --split: only with --data, whose folder it is of")
    return doors.status(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Evaluate, print and write the scores."""
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f"{options.json}: there is no such folder, make it first")
    model, facts, feed = doors.network(options)
    scenes = read(options.data, options.split or "test")

    def fed(picture: tuple[int, int]) -> tuple[int, int]:
        return options.size or evaluation.feed_size(picture, feed)

    start = time.perf_counter()
    scores = evaluation.evaluate(model, scenes, fed, options.flip)
    seconds = time.perf_counter() - start
    sizes = Counter(fed(tuple(image.shape[-2:])) for image in scenes.images)
    record = {
        "data": scenes.origin,
        "trained_on": facts.get("data", "not noted"),
        "encoder": model.origin,
        "fed_at": in_words(sizes) + (", and mirrored" if options.flip else ""),
        "machine": f"{runtime.machine()}, {runtime.precision()}",
    }
    for name, value in record.items():
        print(f"{name.replace('_', ' '):<12}{value}")
    print(f"{'time':<12}{seconds:.1f} s\n\n{scores}\n")
    for name, iou in zip(classes.NAMES, scores.iou.tolist(), strict=False):
        print(f"{name:<12}{'  -' if iou != iou else f'{iou:.3f}'}")
    if not scenes.real:
        print("drawn scenes: NOT COMPARABLE with any score for dataset1")
    if options.json:
        record |= {"real_data": scenes.real, "seconds": round(seconds, 2)}
        with doors.whole(options.json) as draft:
            draft.write_text(json.dumps(scores.as_dict() | record, indent=1) + "\n")
    return 0


def in_words(sizes: Counter[tuple[int, int]]) -> str:
    """Return sizes (height, width) and how many pictures have each: commonest first."""
    if len(sizes) == 1:
        return "{} x {}".format(*next(iter(sizes)))
    most = [f"{h} x {w} ({n})" for (h, w), n in sizes.most_common(MOST_NAMED)]
    rest = len(sizes) - len(most)
    return ", ".join(most) + (f" and {rest} other sizes" if rest else "")


def read(folder: Path | None, split: str) -> dataset1.RoadScenes:
    """Return the scenes of a folder; without one, the course's own for testing."""
    if folder is None:
        return dataset1.load()[1]
    return dataset1.RoadScenes(folder, split)


if __name__ == "__main__":
    raise SystemExit(main())
