"""How many annotated images does a new task need? The curve of chapter 6.

The task is to find drivable ground, road users, and everything else in one sequence
of CamVid, 0006R0, of which 25 frames in two blocks are held out for scoring. With 0 to
64 of the other 76 as annotated images, two networks are fine-tuned with the same
number of steps:

    road network   a U-Net that recipe `cpu` has trained on the other two sequences
    encoder        the pretrained encoder with a new decoder, which never saw a road

    python benchmark/how_many.py              # 31 points, about a minute each
    python benchmark/how_many.py --seeds 0    # a third of them
    python benchmark/how_many.py --ways       # what to train, and how fast (5 rows)
    python benchmark/how_many.py --quick      # tries the script

The road network is trained first, once (about 10 minutes), and kept in build/. Each
point is added to benchmark/results/how_many.csv as soon as it is there, and the same
command continues with the missing ones. To measure a point again, delete its row.
"""

import argparse
import copy
import random
import time
from dataclasses import replace
from pathlib import Path

import common
import torch
from torch import nn
from torchvision import tv_tensors

from roadseg import inference, recipes, runtime, scenes, trained, training, weights
from roadseg.classes import CAMVID, LabelSet
from roadseg.recipes import Phase, Recipe
from roadseg.unet import UNet

SEQUENCE = "0006R0"
LABELS = LabelSet(
    names=("drivable", "road user", "everything else"),
    colors=((235, 215, 60), (215, 70, 60), (20, 40, 120)),
    ignore_index=255,
)
CLASS_OF = {"Road": 0, "Car": 1, "Pedestrian": 1, "Bicyclist": 1}
"""The class of each of CamVid's classes; the others are everything else."""

HELD_OUT, VALIDATION = 0.25, 0.2
"""Share of the sequence that is scored; share of the rest for the choices of --ways."""

IMAGES = (4, 8, 16, 32, 64)
STEPS, BATCH = 120, 4
RECIPE = Recipe("how-many", (Phase(1, 96, 128),), (96, 128), BATCH, precision="bf16")
LR = {"road network": (1e-4, 4e-4, 1e-2), "encoder": (5e-4, 2e-3, 2e-3)}
"""Highest rates of encoder, decoder, and head for each start."""

WAYS = {
    "new head only": (0.0, 0.0, 1e-2),
    "everything, rates of the first training": (5e-4, 2e-3, 2e-3),
    "everything, a fifth of these rates": (1e-4, 4e-4, 4e-4),
    "everything, a fifth, new head at 1e-2": (1e-4, 4e-4, 1e-2),
    "the same, batch-norm statistics fixed": (1e-4, 4e-4, 1e-2),
}
WAY_IMAGES = 16


# --- data and networks --------------------------------------------------------


def three_classes(part: scenes.RoadScenes) -> scenes.RoadScenes:
    """Return scenes with CamVid's classes merged to three."""
    ids = torch.full((256,), LABELS.ignore_index, dtype=torch.uint8)
    for i in CAMVID.scored:
        ids[i] = CLASS_OF.get(CAMVID.names[i], LABELS.class_id("everything else"))
    merged = copy.copy(part)
    merged.masks = [tv_tensors.Mask(ids[mask.long()]) for mask in part.masks]
    merged.labels = LABELS
    return merged


def load_parts() -> tuple[scenes.RoadScenes, scenes.RoadScenes, scenes.RoadScenes]:
    """Return the other sequences, the frames to annotate, and those held out."""
    train = common.load_train()
    real = SEQUENCE in train.sequences
    others, mine = scenes.split_by_sequence(
        train, SEQUENCE if real else train.sequences[-1]
    )
    return others, *scenes.split_by_block(three_classes(mine), HELD_OUT)


def road_network(others: scenes.RoadScenes, encoder, quick: bool) -> nn.Module:
    """Return the network trained on the other sequences, trained now if necessary."""
    recipe = recipes.RECIPES["quick" if quick else "cpu"]
    recipe = replace(recipe, name=f"{recipe.name}-without-{SEQUENCE}")
    return trained.load_or_train(others, encoder, recipe).model


def replace_head(model: UNet) -> UNet:
    """Return a copy with a new head, for our three classes."""
    model = copy.deepcopy(model)
    model.head = nn.Conv2d(model.head.in_channels, LABELS.num_classes, 1)
    return model


def pick(pool: scenes.RoadScenes, count: int, seed: int) -> scenes.RoadScenes:
    """Return frames evenly spaced over the pool; the seed moves all of them."""
    start = random.Random(seed).random()
    count = min(count, len(pool))
    return pool.subset(int((k + start) * len(pool) / count) for k in range(count))


def prepare_model(model: UNet, start: str, way: str | None) -> UNet:
    """Return the network with the layers and statistics that are to be trained."""
    if start == "road network":
        model = replace_head(model)
    if way == "new head only":
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    if way == "new head only" or "statistics" in (way or ""):
        freeze_statistics(model)
    return model.to(runtime.device())


def freeze_statistics(model: nn.Module) -> None:
    """Keep the running statistics of batch normalization, and normalize with them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module


class Merged(nn.Module):
    """A network of CamVid's classes whose logits are merged to three."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        which = [CLASS_OF.get(CAMVID.names[i], 2) for i in CAMVID.scored]
        self.register_buffer("which", torch.tensor(which))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logarithms of the summed probabilities, (N, 3, H, W)."""
        p = self.network(x).float()[:, list(CAMVID.scored)].softmax(1)
        return torch.stack([p[:, self.which == k].sum(1) for k in range(3)], 1).log()


# --- one row ------------------------------------------------------------------


def build_optimizer(model: nn.Module, rates: tuple[float, ...]) -> torch.optim.AdamW:
    """Return AdamW with the rates of encoder, decoder, and head."""
    inside, head = (set(part.parameters()) for part in (model.encoder, model.head))
    groups: list[list] = [[], [], []]
    for p in model.parameters():
        if p.requires_grad:
            groups[0 if p in inside else 2 if p in head else 1].append(p)
    return torch.optim.AdamW(
        [{"params": g, "lr": lr} for g, lr in zip(groups, rates, strict=True) if g],
        weight_decay=RECIPE.weight_decay,
    )


def fine_tune(model: nn.Module, annotated, recipe: Recipe, steps: int, rates: tuple):
    """Train for a number of steps; all images are seen equally often."""
    order = [i % len(annotated) for i in range(steps * recipe.batch_size)]
    optimizer = build_optimizer(model, rates)
    return training.fit(model, annotated.subset(order), recipe, optimizer=optimizer)


def measure(job: dict[str, str], parts: tuple, encoder, quick: bool) -> dict:
    """Fine-tune and score one row.

    Args:
        job: The columns that identify it: ``start``, ``images`` and ``seed``, or
            ``way`` and ``seed``.
        parts: What `load_parts` returns.
        encoder: Encoder weights.
        quick: Train for seconds.

    Returns:
        The row of the CSV file, by column.
    """
    others, pool, held_out = parts
    seed, way = int(job["seed"]), job.get("way")
    start = job.get("start", "road network")
    count = int(job.get("images", WAY_IMAGES))
    if way:  # choices are made on frames that no score of the curve sees
        pool, held_out = scenes.split_by_block(pool, VALIDATION)
    rates = WAYS[way] if way else LR[start]
    recipe = replace(RECIPE, seed=seed)
    recipe = common.shrink(recipe) if quick else recipe
    runtime.seed_everything(seed)
    if start == "encoder":
        model = UNet(LABELS.num_classes, encoder.state_dict)
    else:
        model = road_network(others, encoder, quick)
    began = time.process_time()
    size, steps, precision = recipe.input_size, 0, "none"
    if count == 0:  # nothing is trained: the first training's classes, merged
        size, model = (
            recipes.RECIPES["quick" if quick else "cpu"].input_size,
            Merged(model),
        )
    else:
        steps = 2 if quick else STEPS
        model = prepare_model(model, start, way)
        annotated = pick(pool, count, seed)
        precision = fine_tune(model, annotated, recipe, steps, rates).precision
    scores = inference.evaluate(model, held_out, size)
    print(f"{', '.join(job.values())}: {scores}", flush=True)
    found = scores.as_dict()
    by_class = {f"iou {name}": v for name, v in found["iou"].items()}
    return {
        **job,
        **{k: round(found[k], 4) for k in ("acc", "miou")},
        **{k: "" if v is None else round(v, 4) for k, v in by_class.items()},
        "steps": steps,
        "rates": " ".join(map(str, rates)),
        "cpu_seconds": round(time.process_time() - began),
        "precision": precision,
        **common.conditions(pool, encoder),
    }


# --- the command --------------------------------------------------------------


def jobs(options: argparse.Namespace) -> list[dict[str, object]]:
    """Return the rows to measure: a full curve with one seed, then the next seed."""
    if options.ways:
        return [{"way": w, "seed": s} for s in options.seeds for w in WAYS]
    counts = options.images or IMAGES
    starts = options.starts or list(LR)
    found = [
        {"start": start, "images": count, "seed": seed}
        for seed in options.seeds
        for count in counts
        for start in starts
    ]
    if "road network" in starts:
        found.insert(0, {"start": "road network", "images": 0, "seed": 0})
    return found


def run(options: argparse.Namespace) -> int:
    """Measure the rows that are missing, or the one that the parent process names."""
    runtime.configure(profile="quick" if options.quick else "cpu")
    name = "fine_tuning.csv" if options.ways else "how_many.csv"
    folder = runtime.output_dir() if options.quick else common.RESULTS
    output = options.output or folder / name
    encoder = weights.load_encoder_weights()
    parts = load_parts()
    if options.job:
        job = dict(pair.split("=", 1) for pair in options.job)
        common.append_row(output, measure(job, parts, encoder, options.quick))
        return 0
    given = ["--output", str(output), *(["--quick"] if options.quick else [])]
    given += ["--ways"] if options.ways else []
    return common.run_missing(__file__, jobs(options), output, given)


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and run; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", nargs="+", type=int, help="how many (default: 4 8 16 32 64)")
    add("--starts", nargs="+", choices=LR, help="from which network (default: both)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--ways", action="store_true", help="compare what to train, not how many")
    add("--output", type=Path, help="CSV file (default: in benchmark/results)")
    add("--quick", action="store_true", help="synthetic scenes, seconds per point")
    add("--job", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    return common.main(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
