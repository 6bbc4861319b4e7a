"""Try changes of the recipe on scenes held out of the training pictures.

What a recipe keeps is chosen here, never on the 101 test pictures: a fifth of the
blocks of training frames is held out (`dataset1.split_by_block`), the network is
trained on the rest, and the blocks are scored. Each trial is one training; its result
is kept in a file of its own as soon as it is there, so several can run side by side
(seconds then mean little, scores do not suffer) and the same command goes on from
where it was stopped. All results in a folder come from the same data, encoder weights
and base recipe, or they could not be compared; drawn scenes are for the profile quick.

    python scripts/try_recipe.py --list
    python scripts/try_recipe.py "as it is" "as it is, seed 1" "no crop"
    python scripts/try_recipe.py --recipe cpu "batches of 4" "batches of 8"
    python scripts/try_recipe.py --table          # what is there, as Markdown

The changes are made to a short recipe of its own, or to the one that --recipe names:
what pays in five epochs need not pay in a whole training.

Without names: all of them. scripts/BENCHMARK.md holds the table.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import doors
from roadseg import dataset1, evaluation, runtime, training, unet
from roadseg.classes import NUM_SCORED, VOID
from roadseg.recipes import RECIPES, Recipe, Stage

BASE = Recipe("trial", (Stage(3, 96, 128), Stage(2, 160, 224)), (160, 224))
"""What the trials change: shorter than `cpu`, with `cpu-long`'s class weights."""

FACTS = ("data", "encoder", "base")
"""What results must have in common to be compared; kept with each."""


class Beside(nn.Module):
    """Cross-entropy with another loss beside it, both of weight 1."""

    def __init__(self, plain: nn.CrossEntropyLoss, other: nn.Module) -> None:
        super().__init__()
        self.plain, self.other = plain, other
        self.weight = plain.weight

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the sum of both losses; logits (N, 12, H, W), masks (N, H, W)."""
        return self.plain(logits, masks) + self.other(logits.float(), masks)


def second_loss(name: str) -> nn.Module:
    """Return a loss of segmentation_models_pytorch that leaves void out.

    Args:
        name: "dice" (soft Dice, Milletari et al. 2016, https://arxiv.org/abs/1606.04797)
            or "lovasz" (Lovász-softmax, Berman et al. 2018,
            https://arxiv.org/abs/1705.08790).

    Raises:
        ValueError: If the library is not installed.
    """
    try:
        from segmentation_models_pytorch import losses
    except ModuleNotFoundError as error:
        raise ValueError(
            "this trial's second loss is segmentation_models_pytorch's: pip install -r "
            "scripts/requirements-benchmark.txt, or leave the trial out"
        ) from error
    if name == "lovasz":
        return losses.LovaszLoss("multiclass", ignore_index=VOID)
    scored = list(range(NUM_SCORED))
    return losses.DiceLoss("multiclass", classes=scored, ignore_index=VOID)


@dataclass(frozen=True)
class Trial:
    """One change of the recipe.

    Attributes:
        changes: Fields of the recipe.
        beside: The `second_loss` beside cross-entropy.
        average: Decay of a moving average of the weights, which is then scored.
        frozen: Epochs in which the encoder stays as it is.
        constant: Rates that stand still instead of one-cycle, at this share of
            their peaks.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    beside: str | None = None
    average: float | None = None
    frozen: int = 0
    constant: float | None = None


TRIALS = {
    "as it is": Trial(),
    "as it is, seed 1": Trial({"seed": 1}),
    "class weights, power 1/3": Trial({"class_weights": 1 / 3}),
    "class weights, power 1/4": Trial({"class_weights": 0.25}),
    "class weights, none": Trial({"class_weights": 0.0}),
    "rates 3e-4 and 1e-3": Trial({"lr_encoder": 3e-4, "lr_decoder": 1e-3}),
    "rates 1e-3 and 4e-3": Trial({"lr_encoder": 1e-3, "lr_decoder": 4e-3}),
    "one rate, 1e-3": Trial({"lr_encoder": 1e-3, "lr_decoder": 1e-3}),
    "a tenth for the encoder": Trial({"lr_encoder": 2e-4}),
    "constant rates, 0.3 of the peaks": Trial(constant=0.3),
    # about as many pixels in all as the two sizes of the base
    "one size, 160 x 224": Trial({"stages": (Stage(3, 160, 224),)}),
    "one size, 96 x 128": Trial({"stages": (Stage(9, 96, 128),), "feed": (96, 128)}),
    "no crop": Trial({"crop": 1.0}),
    "no change of colour": Trial({"jitter": 0.0}),
    "batches of 4": Trial({"batch_size": 4}),
    "batches of 4, seed 1": Trial({"batch_size": 4, "seed": 1}),
    "batches of 8": Trial({"batch_size": 8}),
    "batches of 8, seed 1": Trial({"batch_size": 8, "seed": 1}),
    "batches of 16": Trial({"batch_size": 16}),
    "encoder frozen for 2 epochs": Trial(frozen=2),
    "Dice beside cross-entropy": Trial(beside="dice"),
    "Lovasz beside cross-entropy": Trial(beside="lovasz"),
    "moving average of the weights": Trial(average=0.98),
    "float32": Trial({"precision": "no"}),
}


@contextlib.contextmanager
def changed(trial: Trial, model: unet.UNet) -> Iterator[list[nn.Module]]:
    """Put what is no field of a recipe into the training; yield the networks to score.

    The list holds the network itself, or its moving average.
    """
    scored: list[nn.Module] = [model]
    with contextlib.ExitStack() as stack:

        def put(owner: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        make_loss, make_optimiser = training.make_loss, training.make_optimiser
        if trial.beside:
            other = second_loss(trial.beside)
            put(training, "make_loss", lambda *a: Beside(make_loss(*a), other))
        if trial.constant:
            put(
                torch.optim.lr_scheduler,
                "OneCycleLR",
                lambda optimiser, max_lr, total_steps, pct_start: (
                    torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: share)
                ),
            )
            share = trial.constant
        if trial.average:
            average = torch.optim.swa_utils.AveragedModel(
                model,
                multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(trial.average),
                use_buffers=True,
            )
            scored[0] = average.module

            def averaged(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
                optimiser = make_optimiser(model, recipe)
                optimiser.register_step_post_hook(
                    lambda *_: average.update_parameters(model)
                )
                return optimiser

            put(training, "make_optimiser", averaged)
        yield scored


def train(
    trial: Trial,
    scenes: dataset1.RoadScenes,
    weights: unet.EncoderWeights,
    base: Recipe | None = None,
) -> tuple[nn.Module, float]:
    """Train a base with a change; return the network to score and its seconds."""
    recipe = replace(base or BASE, **trial.changes)
    runtime.seed_everything(recipe.seed)
    model = unet.UNet(encoder_weights=weights)
    model.to(runtime.device())

    def thaw(epoch: int, model: unet.UNet) -> None:
        model.encoder.requires_grad_(epoch >= trial.frozen)

    with changed(trial, model) as scored:
        model.encoder.requires_grad_(trial.frozen == 0)
        done = training.fit(model, scenes, recipe, on_epoch=thaw)
    return scored[0], done.seconds


def run(options: argparse.Namespace) -> int:
    """Run the trials that are missing, then print the table.

    Raises:
        ValueError: If the scenes are drawn, but for the profile quick, or results in
            the folder were made from something else.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.table:
        with contextlib.redirect_stdout(sys.stderr):  # the table alone goes there
            base = RECIPES[options.recipe] if options.recipe else BASE
            measure(options.trials, options.output, base)
    print(table(options.output))
    return 0


def measure(names: list[str], folder: Path, base: Recipe) -> None:
    """Run the trials of a base that are missing in a folder; see `run`."""
    scenes, _ = dataset1.load()
    if not scenes.real and runtime.profile().name != "quick":
        raise ValueError(
            f"trials on {scenes.origin} say nothing about dataset1: get dataset1 "
            "first (data/README.md), or set ROADSEG_PROFILE=quick to try the script"
        )
    weights = unet.find_encoder_weights()
    facts = {"data": scenes.origin, "encoder": weights.origin, "base": str(base)}
    results(folder, facts)  # also where nothing is missing: is what is there ours?
    rest, held = dataset1.split_by_block(scenes)
    for name in [n for n in names if not kept(folder, n).exists()]:
        print(f"{name}: {len(rest)} scenes, {len(held)} held out")
        model, seconds = train(TRIALS[name], rest, weights, base)
        feed = replace(base, **TRIALS[name].changes).feed
        scores = evaluation.evaluate(model.eval(), held, feed).as_dict()
        found = {"trial": name, "seconds": seconds, "machine": runtime.machine()}
        with doors.whole(kept(folder, name)) as draft:
            draft.write_text(json.dumps(found | scores | facts, indent=1) + "\n")


def kept(folder: Path, name: str) -> Path:
    """Return the file of a trial's result."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")


def results(folder: Path, facts: dict[str, str] | None = None) -> dict[str, dict]:
    """Return the results that are there, by the name of the trial.

    Args:
        folder: Where they are.
        facts: `FACTS` that all must have; without them, those of the first.

    Raises:
        ValueError: If the facts of one are others.
    """
    found = {}
    for name in TRIALS:
        if not (path := kept(folder, name)).exists():
            continue
        result = json.loads(path.read_text())
        own = {fact: result.get(fact, "not noted") for fact in FACTS}
        facts = facts or own
        for fact in FACTS:
            if own[fact] != facts[fact]:
                raise ValueError(
                    f"{doors.shown(path)} cannot be compared with the other trials, "
                    f"its {fact} is: {own[fact]}, not: {facts[fact]}. Move it away, "
                    "or choose another folder with --output"
                )
        found[name] = result
    return found


def table(folder: Path) -> str:
    """Return the results that are there as a Markdown table, and what all are of."""
    found = results(folder)
    lines = ["| trial | acc | mIoU | seconds |", "|---|---|---|---|"]
    for name, r in found.items():
        lines.append(
            f"| {name} | {r['acc']:.3f} | {r['miou']:.3f} | {r['seconds']:.0f} |"
        )
    for result in list(found.values())[:1]:
        about = "; ".join(f"{f}: {result.get(f, 'not noted')}" for f in FACTS)
        lines += ["", f"All with {about}."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments, run the trials; return the exit status."""
    description, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help="names, see --list")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--table", action="store_true", help="only what is there")
    parser.add_argument(
        "--recipe", choices=list(RECIPES), help="what to change (default: a short one)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder (default: build/<profile>/trials, or trials-<recipe> there)",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.trials) - set(TRIALS):
        parser.error(f"no trial {', '.join(sorted(unknown))}: see --list")
    if options.list:
        print("\n".join(TRIALS))
        return 0
    options.trials = options.trials or list(TRIALS)
    folder = f"trials-{options.recipe}" if options.recipe else "trials"
    options.output = options.output or runtime.output_dir() / folder
    return doors.status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
