"""Measure the course's training beside two others, on this machine.

Contestants, all with the same pictures, encoder weights and seeds:

  original  the recipe the course descends from: files decoded and masks resized
            (bilinear) every epoch, 224 x 224, batches of 4, Adam 1e-3, float32,
            a look at the device every step, VGG16 cut where VGG13's poolings are,
            void learnt as a twelfth class; 20 epochs
  smp       Unet("vgg16_bn") of segmentation_models_pytorch in a plain loop:
            pictures decoded once, 224 x 224, batches of 8, AdamW, float32, void
            left out of the loss; 20 epochs (needs requirements-benchmark.txt)
  ours      roadseg.training with the profile's recipe

Each measurement runs in a process of its own, the contestants in turn. It is kept
as soon as it is finished: the same command, started again, measures only what is
missing. Results: benchmark.md, benchmark.json and benchmark.png.
scripts/BENCHMARK.md says how to read them.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

import torch

from benchmarking.contestants import CONTESTANTS, Files
from benchmarking.measuring import BenchmarkError, measure, tell
from benchmarking.results import KINDS, Results
from roadseg import dataset1, runtime, synthetic, training, unet
from roadseg.recipes import Recipe, Stage

SIZES = ((96, 128), (224, 224), (352, 480))
START = 10.0  # seconds to start a process, for the estimate
SMP = "segmentation_models_pytorch"


# --- the plan -----------------------------------------------------------------


def plan(options: argparse.Namespace) -> list[dict]:
    """Return the measurements in their order: the contestants take turns."""
    names, jobs = options.contestants, []
    if "throughput" in options.only:
        jobs += [
            _job("throughput", name, r, size=list(size), pictures=options.pictures)
            for r in range(options.repeats)
            for size in options.sizes
            for name in names
        ]
    if "cost" in options.only:
        jobs.append({"kind": "cost", "contestants": names})
    if "accuracy" in options.only:
        for seed in range(options.seeds):
            for name in names:
                # one-cycle's epochs in between are no results: a run for each budget
                for budget in [None, *(options.budget if name == "ours" else [])]:
                    until = 2.0 if name == "ours" else options.until
                    more = {"cap": 60 * options.cap, "until": until, "budget": budget}
                    jobs.append(_job("accuracy", name, seed, **more))
    return jobs


def _job(kind: str, name: str, seed: int, **more) -> dict:
    return {"kind": kind, "contestant": name, "seed": seed, **more}


def title(job: dict) -> str:
    """Return what a measurement is called."""
    if job["kind"] == "cost":
        return "cost"
    words = f"{job['kind']}, {job['contestant']}"
    if job["kind"] == "throughput":
        return f"{words}, {job['size'][0]} x {job['size'][1]}, repeat {job['seed'] + 1}"
    budget = f", within {job['budget']:g} s" if job["budget"] else ""
    return f"{words}, seed {job['seed']}{budget}"


def estimate(job: dict, rate: float, results: list[dict], train: int) -> float:
    """Estimate the seconds of a measurement.

    Args:
        job: The measurement.
        rate: Seconds of training a pixel in this machine's precision.
        results: What is measured already: the same under another seed tells best.
        train: How many training pictures there are.
    """
    kin = [r["took"] for r in results if r["job"] | {"seed": 0} == job | {"seed": 0}]
    if kin:
        return statistics.mean(kin)
    if job["kind"] == "cost":
        return START
    recipe = CONTESTANTS[job["contestant"]].recipe()
    slow = 2 if recipe.precision == "no" and runtime.precision() != "no" else 1
    if job["kind"] == "throughput":  # two epochs, and two predictions at a third
        pixels = job["size"][0] * job["size"][1] * job["pictures"] * 8 / 3
        return START + slow * rate * pixels
    pixels = sum(s.epochs * s.height * s.width for s in recipe.stages) * train
    seconds = min(slow * rate * pixels, job["budget"] or job["cap"])
    return START + 1.25 * seconds  # scoring comes on top


def pixel_rate() -> float:
    """Return the seconds that training on one pixel takes, roughly."""
    recipe = replace(CONTESTANTS["ours"].recipe(), stages=(Stage(1, 96, 128),))
    model = CONTESTANTS["ours"].network(unet.RANDOM)
    step = training.estimate_seconds(model, recipe, recipe.batch_size)
    return step / (recipe.batch_size * 96 * 128)


# --- the command --------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line and fill in what depends on the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("contestants", nargs="*", metavar="CONTESTANT", help="without any: all three")
    add("--only", choices=KINDS, action="append", help="without it: all")
    add("--quick", action="store_true", help="drawn scenes, seconds: tries the script")
    add("--sizes", nargs="+", type=_size, metavar="HxW", help="for throughput")
    add("--repeats", type=int, default=3, help="of throughput (default: 3)")
    add("--pictures", type=int, help="a throughput epoch (default: 16; on a GPU all)")
    add("--seeds", type=int, default=1, help="of accuracy: 0, 1, ... (default: 1)")
    add("--budget", nargs="+", type=float, metavar="SECONDS", help="one or several")
    add("--cap", type=float, default=40, metavar="MIN", help="end each training then")
    add(
        "--until",
        type=float,
        default=2.0,
        metavar="ACC12",
        help="end original and smp as soon as they score this",
    )
    add("--output", type=Path, help="folder (default: build/<profile>/benchmark)")
    add("--plan", action="store_true", help="say what would be done, and how long")
    add("--job", help=argparse.SUPPRESS)
    add("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.contestants) - set(CONTESTANTS)
    if unknown:
        parser.error(f"no contestant {', '.join(unknown)}: {', '.join(CONTESTANTS)}")
    if min(options.repeats, options.seeds) < 1:
        parser.error("--repeats and --seeds are at least 1")
    return options


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    size = (int(height), int(width))
    if any(side < 32 or side % unet.STRIDE for side in size):
        raise argparse.ArgumentTypeError(f"{text}: sides are multiples of 32")
    return size


def complete(options: argparse.Namespace) -> None:
    """Fill in what was not said: less under --quick, more on a GPU."""
    quick, gpu = options.quick, runtime.device().type == "cuda"
    options.only = options.only or list(KINDS)
    options.sizes = options.sizes or ([(64, 96)] if quick else list(SIZES))
    options.pictures = options.pictures or (4 if quick else 10**6 if gpu else 16)
    options.budget = options.budget or ([15.0] if quick else [300.0, 900.0])
    options.repeats = 1 if quick else options.repeats
    options.output = options.output or runtime.output_dir() / "benchmark"
    wanted = [n for n in CONTESTANTS if n in options.contestants]
    options.contestants = wanted or list(CONTESTANTS)
    if "smp" in options.contestants and importlib.util.find_spec(SMP) is None:
        options.contestants.remove("smp")
        tell(
            f"smp is left out, for {SMP} is not installed: "
            "pip install -r scripts/requirements-benchmark.txt"
        )


def find_data(options: argparse.Namespace) -> Path:
    """Return the folder of the pictures; under --quick they are drawn into it.

    Raises:
        DatasetError: If dataset1 cannot be had.
    """
    if not options.quick:
        return dataset1.fetch()
    folder = options.output / "drawn"
    for seed, (split, count) in enumerate((("train", 12), ("test", 4))):
        scenes = synthetic.draw_scenes(count, (96, 128), seed)
        dataset1.write(folder, split, scenes)
    return folder


def describe(folder: Path) -> dict:
    """Return what all measurements have in common."""
    counts = [
        len(list((folder / dataset1.folders(split)[0]).glob("*.png")))
        for split in ("train", "test")
    ]
    name = "dataset1 (CamVid)" if runtime.profile().real_data else dataset1.DRAWN
    packages = ("torch", "torchvision", "accelerate", SMP)
    return {
        "machine": f"{runtime.machine()}, {torch.get_num_threads()} threads",
        "versions": runtime.versions(packages),
        "data": "{}, {} training and {} test pictures".format(name, *counts),
        "weights": unet.find_encoder_weights().origin,
        "recipe": str(Recipe.for_profile()),
    }


def run_apart(job: dict, folder: Path) -> dict:
    """Take a measurement in a process of its own.

    Raises:
        BenchmarkError: If it fails; what it said went to standard error.
    """
    command = [
        sys.executable,
        __file__,
        "--job",
        json.dumps(job),
        "--data",
        str(folder),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise BenchmarkError(f"{title(job)} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def run(options: argparse.Namespace) -> int:
    """Take all measurements that are missing; return the exit status."""
    Recipe.for_profile()  # a wrong setting is told before anything is downloaded
    folder = find_data(options)
    facts = describe(folder)
    tell("\n".join(f"{k:<10}{v}" for k, v in facts.items()))
    results = Results(options.output, facts)
    pictures = len(Files(folder))
    options.pictures = min(options.pictures, pictures)
    jobs = [job for job in plan(options) if not results.has(job)]
    rate = pixel_rate() if jobs else 0.0

    def left(jobs: list[dict]) -> str:
        known = [estimate(job, rate, results.rows, pictures) for job in jobs]
        return training.in_words(sum(known))

    tell(f"{len(jobs)} measurements to take: at most about {left(jobs)}")
    failed = 0
    for i, job in enumerate([] if options.plan else jobs):
        tell(f"[{i + 1} of {len(jobs)}, about {left(jobs[i:])} left] {title(job)}")
        start = time.perf_counter()
        try:
            values = run_apart(job, folder)
        except BenchmarkError as error:
            tell(f"error: {error}")
            failed += 1
            continue
        results.add(job, values, time.perf_counter() - start)
    if results.rows:
        results.report()
        print(results.path.with_suffix(".md").read_text())
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, or take one measurement for the process that started this one."""
    options = parse(arguments)
    if options.quick:
        os.environ["ROADSEG_PROFILE"] = "quick"
    try:
        if options.job:
            with contextlib.redirect_stdout(io.StringIO()):
                values = measure(json.loads(options.job), options.data)
            print(json.dumps(values))
            return 0
        complete(options)
        return run(options)
    # roadseg says with a ValueError what is wrong with weights or a setting
    except (
        *(BenchmarkError, dataset1.DatasetError, training.TrainingError),
        *(ValueError, OSError),
    ) as error:
        tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        tell("stopped: what is finished is kept, the same command goes on from there")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
