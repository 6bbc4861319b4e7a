"""One measurement: throughput, cost, or accuracy over time."""

import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from benchmarking.contestants import CONTESTANTS, Contestant, Files, read_scenes
from roadseg import dataset1, evaluation, runtime, training, unet
from roadseg.classes import NUM_CLASSES, NUM_SCORED
from roadseg.recipes import Recipe, Stage

MARGIN = 0.85  # share of a budget that is planned: loading comes on top of steps


class BenchmarkError(RuntimeError):
    """A benchmark that cannot go on; the message says why and what to do."""


class Enough(Exception):
    """Ends a training that need not go on."""


def tell(text: str) -> None:
    """Say something to people; results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def measure(job: dict, folder: Path) -> dict:
    """Take one measurement.

    Args:
        job: ``kind``, and what else `plan` gives it.
        folder: The data, in dataset1's layout.

    Returns:
        What was measured, as JSON can hold it.
    """
    if job["kind"] == "cost":
        return measure_cost(job)
    who = CONTESTANTS[job["contestant"]]
    recipe = replace(who.recipe(), seed=job["seed"])
    weights = unet.find_encoder_weights()
    runtime.seed_everything(recipe.seed)
    model = who.network(weights).to(runtime.device())
    if job["kind"] == "throughput":
        found = measure_throughput(who, model, recipe, folder, job)
    else:
        found = measure_accuracy(who, model, recipe, folder, job)
    precision = runtime.precision() if recipe.precision == "auto" else recipe.precision
    return found | {"precision": precision}


def measure_throughput(
    who: Contestant, model, recipe: Recipe, folder: Path, job: dict
) -> dict:
    """Time an epoch of some pictures, then predicting them; a first one warms up.

    Returns:
        ``train`` and ``predict`` in pictures a second; ``memory``, the peak in
        MiB: of the process on a CPU, of torch's tensors on a GPU.
    """
    height, width = job["size"]
    data = who.read(folder)
    count = min(job["pictures"], len(data))
    count -= count % recipe.batch_size if count > recipe.batch_size else 0
    ends = []

    def after(epoch, model):
        settle()
        ends.append(time.perf_counter())

    once = replace(recipe, stages=(Stage(2, height, width),))
    who.train(model, data.subset(range(count)), once, after)
    memory = peak_memory()
    del data
    images = torch.stack(read_some(folder, count))
    for _ in range(2):
        start = time.perf_counter()
        for batch in images.split(recipe.batch_size):
            logits_of(model, batch, (height, width), recipe).argmax(1).byte().cpu()
        seconds = time.perf_counter() - start
    train = count / (ends[1] - ends[0])
    return {"train": train, "predict": count / seconds, "memory": memory}


def read_some(folder: Path, count: int) -> list[Tensor]:
    """Decode the first pictures of the training split."""
    paths = sorted((folder / dataset1.folders("train")[0]).glob("*.png"))[:count]
    return [evaluation.read_picture(path) for path in paths]


@torch.inference_mode()
def logits_of(model, images: Tensor, feed, recipe: Recipe) -> Tensor:
    """Return logits at the pictures' own size, in the precision of the recipe.

    Args:
        model: The network; it is put into evaluation mode.
        images: (N, 3, H, W) uint8.
        feed: Height and width to resize to first, or None.
        recipe: ours predicts in 16 bits where that is faster, the others never.

    Returns:
        (N, 12, H, W) float32.
    """
    model.eval()
    x = images.to(runtime.device())
    if feed:
        x = v2.functional.resize(x, list(feed), antialias=True)
    x = unet.normalise(x)
    if recipe.precision == "no":
        logits = unet.predict_logits(model, x)
    else:
        with runtime.autocast():
            x = x.to(memory_format=torch.channels_last)
            logits = unet.predict_logits(model, x)
    return F.interpolate(logits.float(), tuple(images.shape[-2:]), mode="bilinear")


def measure_accuracy(
    who: Contestant, model, recipe: Recipe, folder: Path, job: dict
) -> dict:
    """Train, and score the test pictures after each epoch.

    Decoding the pictures counts as training time, scoring does not.

    Returns:
        ``points``: seconds of training, epoch, acc, acc12 and miou; ``recipe``;
        ``whole``: whether it came to its end.
    """
    if job["budget"]:
        recipe = scaled(recipe, epoch_seconds(model, recipe, folder), job["budget"])
    training.new_report(1)  # it imports: nobody's training time
    test = read_scenes(folder, "test")
    points: list[dict] = []
    seconds, start = 0.0, time.perf_counter()

    def after(epoch, model):
        nonlocal seconds, start
        settle()
        seconds += time.perf_counter() - start
        points.append({"seconds": seconds, "epoch": epoch})
        points[-1] |= score(model, test, recipe, who.learns_void)
        tell(f"   epoch {epoch} of {recipe.epochs}: {_words(points[-1])}")
        if seconds >= job["cap"] or points[-1]["acc12"] >= job["until"]:
            raise Enough
        start = time.perf_counter()

    with contextlib.suppress(Enough):
        who.train(model, who.read(folder), recipe, after)
    whole = len(points) == recipe.epochs
    return {"points": points, "recipe": str(recipe), "whole": whole}


def _words(point: dict) -> str:
    scores = "   ".join(f"{k} {point[k]:.3f}" for k in ("acc", "acc12", "miou"))
    return f"{point['seconds']:.0f} s   {scores}"


def score(model, test, recipe: Recipe, learns_void: bool) -> dict:
    """Score by the course's rules, at the size of the masks.

    One rule gives way: who learns void as a class may predict it in `acc12`, and
    is right where the truth is void. In `acc` and `miou` nobody may.
    """
    matrix, right, total = torch.zeros(NUM_CLASSES, NUM_CLASSES).long(), 0, 0
    for image, mask in zip(test.images, test.masks, strict=True):
        logits = logits_of(model, image[None], recipe.feed, recipe).cpu()
        truth = mask.as_subclass(Tensor)
        matrix += evaluation.confusion(truth, logits[0, :NUM_SCORED].argmax(0))
        right += (logits[0].argmax(0) == truth).sum().item()
        total += truth.numel()
    scores = evaluation.Scores.from_confusion(matrix)
    acc12 = right / total if learns_void else scores.acc12
    return {"acc": scores.acc, "acc12": acc12, "miou": scores.miou}


def epoch_seconds(model, recipe: Recipe, folder: Path) -> list[float]:
    """Estimate how long one epoch of each stage takes."""
    pictures = len(Files(folder))
    return [
        training.estimate_seconds(
            model, replace(recipe, stages=(replace(s, epochs=1),)), pictures
        )
        for s in recipe.stages
    ]


def scaled(recipe: Recipe, seconds: list[float], budget: float) -> Recipe:
    """Return the recipe with as many epochs as a time allows, shared as before.

    Args:
        recipe: Whose stages are made longer or shorter, all by one factor.
        seconds: Of one epoch of each stage.
        budget: Seconds; only `MARGIN` of them are planned.

    Raises:
        BenchmarkError: If not even one epoch fits.
    """
    best = None
    for epochs in range(1, 50 * recipe.epochs):
        shares = [round(s.epochs * epochs / recipe.epochs) for s in recipe.stages]
        cost = sum(n * s for n, s in zip(shares, seconds, strict=True))
        if cost > MARGIN * budget:
            break
        kept = zip(recipe.stages, shares, strict=True)
        stages = tuple(replace(s, epochs=n) for s, n in kept if n)
        best = replace(recipe, stages=stages) if stages else best
    if best is None:
        raise BenchmarkError(
            f"not one epoch fits into {budget:g} s here: take a larger --budget"
        )
    return best


def measure_cost(job: dict) -> dict:
    """Count operations, and measure the machine's fastest matrix multiplication.

    Returns:
        ``peak``: GFLOP/s by number format; ``networks``: for each contestant
        ``forward`` and ``training`` in GFLOP a picture of 224 x 224 (two a
        multiplication with addition), and ``parameters`` in millions.
    """
    networks = {}
    for name in job["contestants"]:
        with torch.device("meta"):  # shapes without numbers
            model = CONTESTANTS[name].network(unet.RANDOM)
            x = torch.zeros(1, 3, 224, 224)
        with FlopCounterMode(display=False) as forward:
            logits = model(x)
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
        both = forward.get_total_flops() + backward.get_total_flops()
        networks[name] = {
            "forward": forward.get_total_flops() / 1e9,
            "training": both / 1e9,
            "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        }
    side = 8192 if runtime.device().type == "cuda" else 2048
    side = 256 if runtime.profile().name == "quick" else side
    formats = {"float32": torch.float32, "bf16": torch.bfloat16}
    if runtime.precision() == "fp16":  # a GPU that has no bf16
        formats = {"float32": torch.float32, "fp16": torch.float16}
    peak = {name: matmul_peak(dtype, side) for name, dtype in formats.items()}
    return {"peak": peak, "networks": networks}


def matmul_peak(dtype: torch.dtype, side: int) -> float:
    """Return GFLOP/s of multiplying two square matrices, the best of five."""
    a = torch.ones(side, side, dtype=dtype, device=runtime.device())
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        settle()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times[1:]) / 1e9


def settle() -> None:
    """Wait until the device has done what it was given."""
    if runtime.device().type == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> float | None:
    """Return the most memory this process has held, in MiB; None if unknown."""
    if runtime.device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError, StopIteration):
        # Linux's getrusage also counts the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes
