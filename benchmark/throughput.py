"""Throughput: images per second, and the share of the machine's peak they reach.

For each method of run.py, a training step (forward, backward, optimizer) and a
prediction are timed on random images in memory, in the method's batch size, precision
and memory layout; decoding and augmentation are left out. The peak is the fastest
multiplication of two large square matrices in the same precision.

    python benchmark/throughput.py           # about five minutes; on an idle machine
    python benchmark/throughput.py --quick   # tries the script

The rows go to benchmark/results/throughput.csv, which is replaced.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import common
import run
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from roadseg import runtime, training, weights
from roadseg.classes import CAMVID

SIZES = ((96, 128), (224, 224), (352, 480))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of some calls; one more warms up."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        if runtime.device().type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def gflop_per_image(model: nn.Module, x: torch.Tensor) -> float:
    """Return GFLOP (1e9 operations) of a training step, per image; no optimizer."""
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops() / 1e9 / len(x)


def peak(precision: str, side: int) -> float:
    """Return GFLOP/s of multiplying two square matrices, the fastest of five."""
    a = torch.ones(side, side, dtype=DTYPES[precision], device=runtime.device())
    return 2 * side**3 / fastest(lambda: a @ a, 5) / 1e9


def measure(name: str, size: tuple[int, int], repeats: int, side: int) -> dict:
    """Time one method at one image size; return the row of the CSV file."""
    method, device = run.METHODS[name], runtime.device()
    precision = training.resolve_precision(method.recipe)
    layout = torch.contiguous_format if name == "original" else torch.channels_last
    runtime.seed_everything(0)
    model = method.network(weights.RANDOM_INIT, CAMVID.num_classes)
    model = model.to(device, memory_format=layout)
    batch = method.recipe.batch_size
    x = torch.rand(batch, 3, *size, device=device).contiguous(memory_format=layout)
    gflop = gflop_per_image(model, x)
    masks = torch.randint(CAMVID.num_classes, (batch, *size), device=device)
    optimizer = torch.optim.AdamW(model.parameters())
    autocast = torch.autocast(
        device.type, DTYPES[precision], enabled=precision != "fp32"
    )

    def train() -> None:
        optimizer.zero_grad()
        with autocast:
            logits = model(x)
        nn.functional.cross_entropy(logits.float(), masks).backward()
        optimizer.step()

    @torch.inference_mode()
    def predict() -> torch.Tensor:
        with autocast:
            return model(x).argmax(1).cpu()

    trained = batch / fastest(train, repeats)
    model.eval()
    predicted = batch / fastest(predict, repeats)
    return {
        "method": name,
        "size": f"{size[0]} x {size[1]}",
        "batch_size": batch,
        "precision": precision,
        "train_images_per_s": round(trained, 3),
        "predict_images_per_s": round(predicted, 3),
        "gflop_per_image": round(gflop, 2),
        "share_of_peak": round(trained * gflop / peak(precision, side), 3),
        "hardware": f"{runtime.hardware_info()}, PyTorch threads: "
        f"{torch.get_num_threads()}",
        "versions": runtime.versions(common.PACKAGES),
    }


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and measure; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=run.METHODS, default=list(run.METHODS))
    add("--output", type=Path, help="CSV file (default: results/throughput.csv)")
    add("--quick", action="store_true", help="small images, seconds in all")
    options = parser.parse_args(arguments)
    sizes, repeats, side = SIZES, 5, 2048
    folder = common.RESULTS
    if options.quick:
        sizes, repeats, side = ((32, 32),), 1, 128
        folder = runtime.output_dir() / "benchmark"
    output = options.output or folder / "throughput.csv"
    names = options.methods
    if "smp" in names and not importlib.util.find_spec("segmentation_models_pytorch"):
        print("smp is left out: pip install -r benchmark/requirements.txt")
        names = [name for name in names if name != "smp"]
    rows = [measure(name, s, repeats, side) for s in sizes for name in names]
    output.unlink(missing_ok=True)
    for row in rows:
        common.append_row(output, row)
        print(*list(row.values())[:8], sep="  ", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
