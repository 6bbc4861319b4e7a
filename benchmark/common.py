"""What the benchmark and the ablation share: data, result files, processes."""

import csv
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

import torch

from roadseg import dataset1, files, runtime, scenes, weights
from roadseg.classes import CAMVID, RoadsegError
from roadseg.metrics import Scores
from roadseg.recipes import Phase, Recipe
from roadseg.weights import RANDOM_INIT, EncoderWeights

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "accelerate", "segmentation_models_pytorch")

CONDITIONS = ("hardware", "versions", "weights", "data")
"""Columns that say under which conditions a row was measured."""

SCORES = (
    *("acc", "miou"),
    *(f"iou_{CAMVID.names[i].lower()}" for i in CAMVID.scored),
)


def load_train() -> scenes.RoadScenes:
    """Return the training scenes of dataset1; its test images play no part.

    Raises:
        RoadsegError: If dataset1 is unavailable, unless the profile is quick.
    """
    train, _ = dataset1.load()
    if runtime.profile().real_data and not train.is_real:
        raise RoadsegError(
            "results on synthetic scenes say nothing about dataset1: get dataset1 "
            "first (data/README.md), or try the script with --quick"
        )
    return train


def load_data() -> tuple[scenes.RoadScenes, scenes.RoadScenes, EncoderWeights]:
    """Return training scenes, held-out scenes, and encoder weights.

    Both parts are from the training images of dataset1.

    Raises:
        RoadsegError: As `load_train`.
    """
    train = load_train()
    kept, held_out = scenes.split_by_block(train)
    if not runtime.profile().real_data:
        kept, held_out = kept.subset(range(4)), held_out.subset(range(2))
    return kept, held_out, weights.load_encoder_weights()


def conditions(train: scenes.RoadScenes, encoder: EncoderWeights) -> dict[str, str]:
    """Return the values of `CONDITIONS`."""
    threads = torch.get_num_threads()
    return {
        "hardware": f"{runtime.hardware_info()}, PyTorch threads: {threads}",
        "versions": runtime.versions(PACKAGES),
        "weights": f"{encoder.source} ({encoder.fingerprint})",
        "data": f"{train.description} ({scenes.fingerprint(train)})",
    }


def score_columns(scores: Scores) -> dict[str, float | str]:
    """Return the values of `SCORES`; empty for a class without any pixel."""
    found = scores.as_dict()
    by_class = {f"iou_{name.lower()}": v for name, v in found["iou"].items()}
    return {
        k: "" if v is None else round(v, 4)
        for k, v in {"acc": found["acc"], "miou": found["miou"], **by_class}.items()
    }


def shrink(recipe: Recipe) -> Recipe:
    """Return a recipe that takes seconds: two small images per step, one epoch."""
    phases = tuple(Phase(1, 32, 32 * (1 + i)) for i, _ in enumerate(recipe.phases))
    return replace(recipe, phases=phases, input_size=(32, 32), batch_size=2)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, object]) -> None:
    """Add a row to a CSV file, which is replaced by a complete one."""
    with files.locked(runtime.output_dir() / "benchmark.lock", str(path)):
        rows = [*read_rows(path), row]
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(path) as draft, draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def check_same_conditions(path: Path, found: dict[str, str]) -> None:
    """Raise a RoadsegError if a file has results from other conditions."""
    random = RANDOM_INIT.source  # a row of the ablation, whatever the others have
    for row in read_rows(path):
        for column in CONDITIONS:
            if row[column] != found[column] and not row[column].startswith(random):
                raise RoadsegError(
                    f"{path} has results with other {column}: {row[column]}, not "
                    f"{found[column]}. Choose another file with --output"
                )


def run_missing(
    script: str, jobs: Iterable[dict[str, object]], path: Path, options: list[str]
) -> int:
    """Run each job that has no row yet in a process of its own; return the status.

    Args:
        script: The script; it is called with the options and ``--job KEY=VALUE ...``.
        jobs: What to do. Its values are those of the columns that identify a row.
        path: The CSV file.
        options: Further arguments.
    """
    failed = 0
    for job in jobs:
        job = {k: str(v) for k, v in job.items()}
        key = {k: v for k, v in job.items() if k != "kind"}
        if any(key.items() <= row.items() for row in read_rows(path)):
            continue
        print("===", ", ".join(f"{k} {v}" for k, v in job.items()), flush=True)
        given = [f"{k}={v}" for k, v in job.items()]
        status = subprocess.call([sys.executable, script, *options, "--job", *given])
        if status in (130, -2):  # Ctrl-C
            return 130
        failed += bool(status)
    return 1 if failed else 0


def main(run: Callable[[], int]) -> int:
    """Call a script's function; turn its errors into one line and an exit status."""
    try:
        return run()
    except RoadsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(str(error) or "stopped; the same command continues", file=sys.stderr)
        return 130
