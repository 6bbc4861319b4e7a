"""Benchmark: the course's training beside two others, in the same time.

Three methods start from the same encoder weights and train on the same 284 images of
CamVid for the same number of seconds; each is scored once, at the end of a training
that was planned for that time, on the 83 images that `split_by_block` holds out:

  original  the recipe this course started from: files decoded and resized in every
            epoch (masks bilinear), 224 x 224, batches of 4, Adam 1e-3, fp32, VGG16 cut
            at the poolings of VGG13, unlabeled pixels learned as a class
  smp       Unet("vgg16_bn") of segmentation_models_pytorch, as well set up as ours:
            bf16, channels_last, aligned masks, our augmentation; 224 x 224, batches
            of 8, AdamW at one constant rate, the best of three on the held-out images
  ours      the recipe `cpu`, with as many epochs as the time allows

    python benchmark/run.py                       # about 3 hours
    python benchmark/run.py --methods ours smp
    python benchmark/run.py --quick               # tries the script

smp needs benchmark/requirements.txt. Run it on an idle machine. Each training has a
process of its own, and its result is added to benchmark/results/scores.csv as soon as
it is there: the same command continues where it was stopped.
"""

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from roadseg import inference, recipes, runtime, training
from roadseg.classes import RoadsegError
from roadseg.pairs import DATASET1_LAYOUT
from roadseg.recipes import Phase, Recipe
from roadseg.scenes import RoadScenes
from roadseg.unet import UNet, normalize
from roadseg.weights import EncoderWeights

BUDGETS = {600: (0, 1, 2), 900: (0,)}
"""Seconds of training, and the seeds that are trained for as long."""

QUICK_BUDGETS = {2: (0,)}

RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates of smp; the best one at the first budget and seed 0 is used."""

MARGIN = 0.95
"""Share of a budget that is planned, because the speed of a machine varies."""


# --- the original recipe ------------------------------------------------------


def original_network(encoder: EncoderWeights, num_classes: int) -> nn.Module:
    """Return the U-Net with VGG16's layers cut at 6, 13, 20, 27 and 34.

    These are the poolings of VGG13: the third and fourth skip connection are taken
    before the last convolutions of their stage, the fifth after a pooling.
    """
    model = UNet(num_classes, encoder.state_dict)
    last_pool, conv = model.bottleneck
    layers = [layer for stage in model.encoder for layer in stage] + [*last_pool]
    edges = pairwise([0, 6, 13, 20, 27, 34, len(layers)])
    parts = [nn.Sequential(*layers[a:b]) for a, b in edges]
    model.encoder = nn.ModuleList(parts[:-1])
    model.bottleneck = nn.Sequential(parts[-1], conv)
    return model


class Files(Dataset):
    """Images and masks, decoded and resized on each access.

    Masks are resized with bilinear interpolation, which invents labels between two
    classes.
    """

    def __init__(self, scenes: RoadScenes, size: tuple[int, int]) -> None:
        images, masks = DATASET1_LAYOUT.folders(scenes.split)
        self.pairs = [
            (scenes.folder / images / name, scenes.folder / masks / name)
            for name in scenes.filenames
        ]
        self.size = size[::-1]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        import cv2

        image, mask = (str(path) for path in self.pairs[i])
        rgb = cv2.cvtColor(cv2.imread(image), cv2.COLOR_BGR2RGB)
        ids = cv2.imread(mask, cv2.IMREAD_GRAYSCALE)
        rgb, ids = cv2.resize(rgb, self.size), cv2.resize(ids, self.size)
        return (
            normalize(torch.from_numpy(rgb).permute(2, 0, 1)),
            torch.from_numpy(ids).long(),
        )


def train_original(
    model: nn.Module, scenes: RoadScenes, recipe: Recipe, budget: float
) -> tuple[int, float]:
    """Train as the original does; stop in the middle of an epoch at the budget.

    Its rate is constant, so a training planned for a time is one that ends then.

    Returns:
        Images and seconds.
    """
    (phase,) = recipe.phases
    files = Files(scenes, (phase.height, phase.width))
    loader = DataLoader(files, batch_size=recipe.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr_decoder)
    criterion, device = nn.CrossEntropyLoss(), runtime.device()
    images, begin = 0, time.perf_counter()
    model.train()
    while True:
        for x, masks in loader:
            x, masks = x.to(device), masks.to(device)
            optimizer.zero_grad()
            logits = model(x)
            loss = criterion(logits, masks)
            loss.backward()
            optimizer.step()
            loss.item()  # it waits for the device after every step, twice
            (logits.argmax(1) == masks).float().mean().item()
            images += len(x)
            if (seconds := time.perf_counter() - begin) > MARGIN * budget:
                return images, seconds


# --- the other two ------------------------------------------------------------


def smp_network(encoder: EncoderWeights, num_classes: int) -> nn.Module:
    """Return segmentation_models_pytorch's U-Net with the same encoder weights."""
    import segmentation_models_pytorch as smp

    model = smp.Unet("vgg16_bn", encoder_weights=None, classes=num_classes)
    if encoder.state_dict is not None:
        model.encoder.features.load_state_dict(encoder.state_dict)
    return model


def constant_rate(optimizer, recipe: Recipe, total_steps: int):
    """Return a schedule that changes nothing."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def train_with_fit(
    model: nn.Module, scenes: RoadScenes, recipe: Recipe, budget: float, **given: Any
) -> tuple[int, float]:
    """Train with `training.fit`, for as many epochs as a budget allows.

    Returns:
        Images and seconds.
    """
    part, seconds = scenes.subset(range(min(len(scenes), 4 * recipe.batch_size))), []
    for phase in recipe.phases:  # time an epoch of each on a few images and a copy
        short = replace(recipe, phases=(replace(phase, epochs=2),))
        last = training.fit(copy.deepcopy(model), part, short, **given).history[-1]
        seconds.append(last["seconds"] / len(part) * len(scenes))
    recipe = plan_epochs(recipe, seconds, budget)
    print("planned:", recipe.phases, flush=True)
    result = training.fit(model, scenes, recipe, **given)
    # the last, incomplete batch of an epoch is dropped
    images = len(scenes) - len(scenes) % recipe.batch_size
    return recipe.epochs * images, sum(row["seconds"] for row in result.history)


def plan_epochs(recipe: Recipe, seconds: list[float], budget: float) -> Recipe:
    """Return a recipe with as many epochs as a budget allows, in the same shares.

    Args:
        recipe: Its phases are made longer or shorter by one factor.
        seconds: Of one epoch of each phase.
        budget: Seconds.

    Raises:
        RoadsegError: If not even one epoch fits.
    """
    best = None
    for epochs in range(1, 1000):
        shares = [round(p.epochs * epochs / recipe.epochs) for p in recipe.phases]
        if sum(n * s for n, s in zip(shares, seconds, strict=True)) > MARGIN * budget:
            break
        phases = zip(recipe.phases, shares, strict=True)
        best = tuple(replace(p, epochs=n) for p, n in phases if n) or best
    if best is None:
        raise RoadsegError(f"not one epoch fits into {budget:g} s on this machine")
    return replace(recipe, phases=best)


@dataclass(frozen=True)
class Method:
    """One of the three.

    Attributes:
        recipe: Of which the original uses sizes, batch size, rate, and precision.
        network: Called with encoder weights and the number of classes.
        train: Called with network, scenes, recipe, and a budget in seconds.
        rates: Candidates for one learning rate; empty for the recipe's own.
    """

    recipe: Recipe
    network: Callable[[EncoderWeights, int], nn.Module]
    train: Callable[..., tuple[int, float]]
    rates: tuple[float, ...] = ()


def square(name: str, batch_size: int, rate: float, **more: Any) -> Recipe:
    """Return a recipe for 224 x 224 with one learning rate."""
    phases = (Phase(1, 224, 224),)
    rates = {"lr_encoder": rate, "lr_decoder": rate}
    return Recipe(name, phases, (224, 224), batch_size, **rates, **more)


METHODS: dict[str, Method] = {
    "original": Method(
        square("original", 4, 1e-3, precision="fp32"), original_network, train_original
    ),
    "smp": Method(
        square("smp", 8, RATES[0], class_weight_power=0.0),
        smp_network,
        partial(train_with_fit, scheduler=constant_rate),
        RATES,
    ),
    "ours": Method(
        recipes.RECIPES["cpu"],
        lambda encoder, num_classes: UNet(num_classes, encoder.state_dict),
        train_with_fit,
    ),
}


# --- measurements -------------------------------------------------------------


def score(job: dict[str, str], data: tuple, quick: bool) -> dict[str, object]:
    """Train for a budget and score once, at the end."""
    method, (train, held_out, encoder) = METHODS[job["method"]], data
    recipe = replace(method.recipe, seed=int(job["seed"]))
    if method.rates:
        rates = {"lr_encoder": float(job["rate"]), "lr_decoder": float(job["rate"])}
        recipe = replace(recipe, **rates)
    recipe = common.shrink(recipe) if quick else recipe
    runtime.seed_everything(recipe.seed)
    model = method.network(encoder, train.labels.num_classes).to(runtime.device())
    images, seconds = method.train(model, train, recipe, float(job["budget"]))
    scores = inference.evaluate(model.eval(), held_out, recipe.input_size)
    print(f"{job['method']}: {scores}", flush=True)
    return {
        **job,
        **common.score_columns(scores),
        "seconds": round(seconds),
        "images": images,
        "precision": training.resolve_precision(recipe),
        **common.conditions(train, encoder),
    }


# --- the command --------------------------------------------------------------


def best_rate(name: str, rows: list[dict[str, str]]) -> str:
    """Return the rate of a method with the highest mIoU at its first budget and seed.

    It is "" for a method with one rate only, or before it has trained.
    """
    own = [row for row in rows if row["method"] == name]
    first = [r for r in own if (r["budget"], r["seed"]) == (own[0]["budget"], "0")]
    return max(first, key=lambda r: float(r["miou"]))["rate"] if first else ""


def plan(names: list[str], path: Path, quick: bool) -> Iterator[dict[str, object]]:
    """Yield the trainings in their order; the methods take turns."""
    budgets = QUICK_BUDGETS if quick else BUDGETS
    for n, (budget, seed) in enumerate((b, s) for b in budgets for s in budgets[b]):
        for name in names:
            rates = METHODS[name].rates
            if rates and n:
                rates = [best_rate(name, common.read_rows(path))]
            for rate in rates or [""]:
                yield {"method": name, "budget": budget, "seed": seed, "rate": rate}


def run(options: argparse.Namespace) -> int:
    """Train what is missing, or what the parent process asks for."""
    if options.quick:
        runtime.configure(profile="quick")
    output = options.output or (
        (runtime.output_dir() / "benchmark" if options.quick else common.RESULTS)
        / "scores.csv"
    )
    data = common.load_data()
    if options.job:
        job = dict(pair.split("=", 1) for pair in options.job)
        common.append_row(output, score(job, data, options.quick))
        return 0
    names = options.methods
    if "smp" in names and not importlib.util.find_spec("segmentation_models_pytorch"):
        print("smp is left out: pip install -r benchmark/requirements.txt")
        names = [name for name in names if name != "smp"]
    common.check_same_conditions(output, common.conditions(data[0], data[2]))
    given = ["--output", str(output), *(["--quick"] if options.quick else [])]
    jobs = plan(names, output, options.quick)
    return common.run_missing(__file__, jobs, output, given)


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and run; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--output", type=Path, help="CSV file (default: results/scores.csv)")
    add("--quick", action="store_true", help="synthetic scenes, seconds per training")
    add("--job", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    return common.main(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
