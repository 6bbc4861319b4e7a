"""Ablation study: what does each part of the recipe contribute?

Every row of the table changes one thing in a baseline, a shortened recipe `cpu`. Each
is trained on 284 of CamVid's training images with the same number of images, and
scored on the 83 that `split_by_block` holds out; the rows "at equal time" are trained
about as long as the baseline instead.

    python benchmark/ablate.py --list
    python benchmark/ablate.py --seeds 0 1                 # everything
    python benchmark/ablate.py --rows baseline "no skips" --seeds 2
    python benchmark/ablate.py --quick --rows baseline     # tries the script

Each result is added to benchmark/results/ablation.csv as soon as it is there. The same
command continues an interrupted study: finished rows are skipped, and an interrupted
training resumes from its checkpoints in build/. Two cores do more with two trainings of
one thread each than with one of two threads: set OMP_NUM_THREADS=1, and start
`--seeds 0` and `--seeds 1` side by side.
"""

import argparse
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from roadseg import inference, recipes, runtime, training, weights
from roadseg.classes import CAMVID
from roadseg.recipes import Phase, Recipe
from roadseg.unet import UNet

BASELINE = replace(
    recipes.RECIPES["cpu"],
    name="ablation",
    phases=(Phase(3, 96, 128), Phase(2, 160, 224)),
)


# --- what a row can change ----------------------------------------------------


def zero_skip(conv: nn.Sequential, inputs: tuple[Tensor]) -> Tensor:
    """Replace the skip connection in the input of a decoder's block by zeros."""
    (x,) = inputs
    below = conv[0].out_channels  # as many as come from below
    return torch.cat([x[:, :below], torch.zeros_like(x[:, below:])], dim=1)


class SkipUNet(UNet):
    """The U-Net without some of its skip connections.

    Args:
        kept: Numbers of those that are kept, from 1 (full resolution) to 5 (deepest).
        arguments: Those of `UNet`.
    """

    def __init__(self, kept: tuple[int, ...], **arguments: Any) -> None:
        super().__init__(**arguments)
        for number, conv in zip((5, 4, 3, 2, 1), self.convs, strict=True):
            if number not in kept:
                conv.register_forward_pre_hook(zero_skip)


def torchvisions_crop(recipe: Recipe, phase: Phase) -> v2.Compose:
    """Return our augmentation with torchvision's crop, half a pixel off in masks."""
    ours = recipes.train_transform(recipe, phase).transforms
    crop = v2.RandomResizedCrop(
        ours[0].size, scale=ours[0].scale, ratio=ours[0].ratio, antialias=True
    )
    return v2.Compose([crop, *ours[1:]])


def no_augmentation(recipe: Recipe, phase: Phase) -> v2.Transform:
    """Return a crop that always is the whole image, which is 4:3 in CamVid."""
    return recipes.AlignedRandomResizedCrop(
        (phase.height, phase.width), scale=(1, 1), ratio=(4 / 3, 4 / 3), antialias=True
    )


class BalancedCrop(recipes.AlignedRandomResizedCrop):
    """Of four random crops, take the one with the highest weight of its classes.

    Args:
        weight: (C,) weight of a pixel of each class.
        arguments: Those of `AlignedRandomResizedCrop`.
    """

    def __init__(self, weight: Tensor, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.weight = weight

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw four crops and return the parameters of the best."""
        (mask,) = (x for x in flat_inputs if isinstance(x, tv_tensors.Mask))

        def worth(box: dict[str, Any]) -> float:
            top, left, height, width = (
                box[k] for k in ("top", "left", "height", "width")
            )
            ids = mask[top : top + height, left : left + width].long()
            return float(self.weight[ids].mean())

        return max(
            (super(BalancedCrop, self).make_params(flat_inputs) for _ in range(4)),
            key=worth,
        )


def balanced_crops(recipe: Recipe, phase: Phase) -> v2.Compose:
    """Return our augmentation with crops that favor rare classes."""
    ours = recipes.train_transform(recipe, phase).transforms
    weight = recipes.class_weights(common.load_data()[0].masks, power=1.0)
    crop = BalancedCrop(
        weight,
        size=ours[0].size,
        scale=ours[0].scale,
        ratio=ours[0].ratio,
        antialias=True,
    )
    return v2.Compose([crop, *ours[1:]])


def constant(share: float) -> Callable:
    """Return a scheduler that keeps the rates at a share of their peaks."""

    def build(optimizer, recipe: Recipe, total_steps: int):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share)

    return build


def plus(loss: Callable) -> Callable:
    """Return a builder of cross-entropy plus another loss."""

    def build(recipe: Recipe, masks: list[Tensor]) -> Callable:
        cross_entropy = recipes.build_criterion(recipe, masks).to(runtime.device())
        return lambda logits, masks: cross_entropy(logits, masks) + loss(logits, masks)

    return build


def first_stages_frozen(**arguments: Any) -> UNet:
    """Return a U-Net whose first two encoder stages keep their weights."""
    model = UNet(**arguments)
    for stage in model.encoder[:2]:
        stage.requires_grad_(False)
    return model


def learn_ignored(recipe: Recipe, masks: list[Tensor]) -> nn.Module:
    """Return cross-entropy for which unlabeled pixels are one more class."""
    labels = replace(CAMVID, ignore_index=255)
    return recipes.build_criterion(recipe, masks, labels)


@dataclass(frozen=True)
class Ablation:
    """One change of the baseline.

    Attributes:
        changes: Fields of the recipe.
        model: Called with num_classes and encoder_weights.
        pretrained: Whether the encoder is.
        criterion: Called with recipe and training masks; None for the recipe's.
        scheduler, transform: See `training.fit`.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    model: Callable[..., UNet] = UNet
    pretrained: bool = True
    criterion: Callable | None = None
    scheduler: Callable | None = None
    transform: Callable | None = None


ONE_SIZE = Phase(5, 160, 224)
ROWS: dict[str, Ablation] = {
    "baseline": Ablation(),
    "masks half a pixel off": Ablation(transform=torchvisions_crop),
    "encoder not pretrained": Ablation(pretrained=False),
    "one rate for encoder and decoder": Ablation(
        {"lr_encoder": BASELINE.lr_decoder},
    ),
    "constant rates, 0.5 of the peaks": Ablation(scheduler=constant(0.5)),
    "constant rates, 0.2 of the peaks": Ablation(scheduler=constant(0.2)),
    "no augmentation": Ablation(transform=no_augmentation),
    "crops that favor rare classes": Ablation(transform=balanced_crops),
    "first two encoder stages frozen": Ablation(model=first_stages_frozen),
    "two encoder stages frozen, at equal time": Ablation(
        {"phases": (Phase(4, 96, 128), Phase(3, 160, 224))}, model=first_stages_frozen
    ),
    "more small images, at equal time": Ablation(
        {"phases": (Phase(5, 96, 128), Phase(1, 160, 224))}
    ),
    "one image size": Ablation({"phases": (ONE_SIZE,)}),
    "one image size, at equal time": Ablation(
        {"phases": (replace(ONE_SIZE, epochs=3),)}
    ),
    "fp32": Ablation({"precision": "fp32"}),
    "fp32, at equal time": Ablation(
        {"precision": "fp32", "phases": (Phase(2, 96, 128), Phase(1, 160, 224))}
    ),
    "unlabeled pixels as a class": Ablation(criterion=learn_ignored),
    "no class weights": Ablation({"class_weight_power": 0.0}),
    "class weights to the power 1": Ablation({"class_weight_power": 1.0}),
    "batches of 8": Ablation({"batch_size": 8}),
    "batches of 16": Ablation({"batch_size": 16}),
    "no skips": Ablation(model=lambda **given: SkipUNet((), **given)),
    "only skip 3": Ablation(model=lambda **given: SkipUNet((3,), **given)),
    "cross-entropy plus Dice": Ablation(criterion=plus(recipes.dice_loss)),
    "cross-entropy plus Lovász": Ablation(criterion=plus(recipes.lovasz_softmax)),
    "focal loss": Ablation(criterion=lambda recipe, masks: recipes.focal_loss),
    "moving average of the weights": Ablation({"ema_decay": 0.98}),
}


# --- one row ------------------------------------------------------------------


def train_row(
    name: str, seed: int, data: tuple, folder: Path, quick: bool = False
) -> dict[str, object]:
    """Train and score one row.

    Args:
        name: Of the row.
        seed: Of initialization, shuffling and augmentation.
        data: What `common.load_data` returns.
        folder: Where its checkpoints go; it is deleted at the end.
        quick: Train for seconds.

    Returns:
        The row of the CSV file, by column.
    """
    ablation, (train, held_out, encoder) = ROWS[name], data
    recipe = replace(BASELINE, **ablation.changes, seed=seed)
    recipe = common.shrink(recipe) if quick else recipe
    encoder = encoder if ablation.pretrained else weights.RANDOM_INIT
    runtime.seed_everything(seed)
    model = ablation.model(
        num_classes=train.labels.num_classes, encoder_weights=encoder.state_dict
    )
    build, began = ablation.criterion, time.process_time()
    result = training.fit(
        model.to(runtime.device()),
        train,
        recipe,
        folder=folder,
        criterion=build(recipe, train.masks) if build else None,
        scheduler=ablation.scheduler,
        transform=ablation.transform,
        config={"row": name, "encoder": encoder.fingerprint},
    )
    cpu_seconds = round(time.process_time() - began)
    scores = inference.evaluate(
        result.averaged or result.model, held_out, recipe.input_size
    )
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}, seed {seed}: {scores}", flush=True)
    return {
        "row": name,
        "seed": seed,
        **common.score_columns(scores),
        "cpu_seconds": cpu_seconds,
        # the last, incomplete batch of an epoch is dropped
        "images": recipe.epochs * (len(train) - len(train) % recipe.batch_size),
        "precision": result.precision,
        **common.conditions(train, encoder),
    }


# --- the command --------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Run the rows that are missing, or the one that the parent process names."""
    if options.quick:
        runtime.configure(profile="quick")
    build = runtime.output_dir() / "ablation"
    output = options.output or (
        build / "ablation.csv" if options.quick else common.RESULTS / "ablation.csv"
    )
    if options.job:
        job = dict(pair.split("=", 1) for pair in options.job)
        name, seed = job["row"], int(job["seed"])
        folder = build / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"
        row = train_row(name, seed, common.load_data(), folder, options.quick)
        common.append_row(output, row)
        return 0

    train, _, encoder = common.load_data()
    common.check_same_conditions(output, common.conditions(train, encoder))
    jobs = [
        {"row": name, "seed": seed}
        for seed in options.seeds
        for name in options.rows or ROWS
    ]
    given = ["--output", str(output), *(["--quick"] if options.quick else [])]
    return common.run_missing(__file__, jobs, output, given)


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and run; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", nargs="+", metavar="ROW", choices=ROWS, help="default: all")
    add("--seeds", nargs="+", type=int, default=[0, 1], help="default: 0 1")
    add("--output", type=Path, help="CSV file (default: results/ablation.csv)")
    add("--quick", action="store_true", help="synthetic scenes, seconds per row")
    add("--list", action="store_true", help="print the rows")
    add("--job", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(ROWS))
        return 0
    return common.main(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
