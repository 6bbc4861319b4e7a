"""Write a trained network as an ONNX file, check it, and make an 8-bit one of it.

The file takes float32 (N, 3, H, W), any N, and H and W multiples of 32: pictures
normalised as roadseg.unet.normalise does it (mean and spread are in its metadata).
It gives logits (N, 12, H, W). onnxruntime computes with it what PyTorch does: the
largest difference over several sizes is printed, and one above 0.001 of the largest
logit is an error.

--int8 N writes a second file with 8-bit weights and activations (static quantisation,
ranges from 16 training pictures), and scores both on N test pictures: dataset1's, or
those of --data.

    pip install -r scripts/requirements-export.txt
    python scripts/export_onnx.py --out unet.onnx
    python scripts/export_onnx.py --out unet.onnx --int8 101

Exit status: 0 done, 1 something cannot be read or differs, 2 wrong arguments, 130
stopped.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import doors
from roadseg import classes, dataset1, evaluation, runtime, unet

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SIZES = ((1, 64, 96), (2, 96, 64), (3, 32, 160), (1, 256, 352))
"""Pictures, height and width that are tried."""
TOLERANCE = 1e-3
"""Of the largest logit; float32 added up in another order stays far below."""
CALIBRATION = 16
"""Training pictures that the ranges of the 8-bit activations are taken from."""


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments, export, check, print; return the exit status."""
    parser = doors.parser(__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write, .onnx (without it: unet.onnx beside the profile's "
        "other results)",
    )
    parser.add_argument(
        "--int8",
        type=int,
        metavar="N",
        help="also write an 8-bit file, and score both on N test pictures",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="a folder in dataset1's layout, for --int8 (without it: dataset1)",
    )
    options = parser.parse_args(arguments)
    if options.int8 is not None and options.int8 < 1:
        parser.error("argument --int8: a whole number from 1 on")
    return doors.status(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Export, check, quantise."""
    if missing := [x for x in PACKAGES if importlib.util.find_spec(x) is None]:
        raise ValueError(
            f"{', '.join(missing)} is not installed: "
            "pip install -r scripts/requirements-export.txt"
        )
    model, facts, feed = doors.network(options)
    path = options.out or runtime.output_dir() / "unet.onnx"
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no such folder, make it first")
    model = model.cpu()
    with doors.whole(path) as draft:
        export(model, draft, {**facts, "feed": options.size or feed})
        print(f"{path.name}: {megabytes(draft)}")
        check(model, draft)
    if options.int8:
        quantised(options, path, options.size or feed)
    return 0


def export(model: unet.UNet, path: Path, facts: dict) -> None:
    """Write a network as ONNX, for any number of pictures and multiples of 32."""
    import onnx

    unit = {name: torch.export.Dim(name, min=1, max=512) for name in ("h", "w")}
    shape = {
        0: torch.export.Dim("pictures", min=1, max=4096),
        2: unet.STRIDE * unit["h"],
        3: unet.STRIDE * unit["w"],
    }
    with quiet():
        program = torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 3, 64, 96),),
            input_names=["pictures"],
            output_names=["logits"],
            dynamic_shapes=(shape,),
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    known = {
        "classes": ",".join(classes.NAMES),
        "mean": ",".join(map(str, unet.IMAGENET_MEAN)),
        "std": ",".join(map(str, unet.IMAGENET_STD)),
        **{k: str(facts[k]) for k in ("data", "encoder", "feed") if k in facts},
    }
    onnx.helper.set_model_props(proto, known)
    onnx.save(proto, path)


@contextlib.contextmanager
def quiet():
    """Keep exporters from printing what a user can do nothing about."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


class Runtime(nn.Module):
    """An ONNX file in onnxruntime on the CPU, as a network that roadseg can score."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.where = nn.Parameter(torch.zeros(()))  # says: on the CPU

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 12, H, W) of normalised pictures (N, 3, H, W)."""
        pictures = np.ascontiguousarray(x.detach().numpy())
        return torch.from_numpy(self.session.run(None, {"pictures": pictures})[0])


@torch.inference_mode()
def check(model: unet.UNet, path: Path) -> None:
    """Compare a file with PyTorch on several sizes.

    Raises:
        ValueError: If the logits differ by more than `TOLERANCE` of the largest.
    """
    other = Runtime(path)
    generator = torch.Generator().manual_seed(0)
    for count, height, width in SIZES:
        x = torch.rand(count, 3, height, width, generator=generator)
        x = unet.normalise(x)
        wanted, found = model(x), other(x)
        most = wanted.abs().max().item()
        apart = (wanted - found).abs().max().item()
        words = f"{count} x {height} x {width}: largest difference {apart:.1e}"
        print(f"{words} of logits up to {most:.1f}")
        if not apart <= TOLERANCE * most:
            raise ValueError(
                f"{path.name.split('-', 2)[-1]} does not compute what PyTorch does "
                f"({words}); it is not kept. Try other versions of {PACKAGES}"
            )


def quantised(
    options: argparse.Namespace, path: Path, size: tuple[int, int] | None
) -> None:
    """Write the 8-bit file, score both, and print what it costs and saves."""
    train, test = read(options.data)
    test = test.subset(range(min(options.int8, len(test))))
    small = path.with_name(f"{path.stem}_int8{path.suffix}")
    step = max(1, len(train) // CALIBRATION)
    with doors.whole(small) as draft:
        quantise(path, draft, train.images[::step][:CALIBRATION], size)
        print(f"{small.name}: {megabytes(draft)}")
    print(f"scores on {len(test)} of {test.origin}")
    scores = []
    for name, file in (("float32", path), ("int8", small)):
        network = Runtime(file)
        start = time.perf_counter()
        scores.append(evaluation.evaluate(network, test, size))
        seconds = (time.perf_counter() - start) / len(test)
        print(f"{name:<9}{scores[-1]}   {seconds:.2f} s a picture")
    before, after = scores
    lost = before.acc - after.acc, before.acc12 - after.acc12, before.miou - after.miou
    print("lost     acc {:+.4f}   acc12 {:+.4f}   mIoU {:+.4f}".format(*lost))
    if not test.real:
        print("drawn scenes: NOT COMPARABLE with any score for dataset1")


def read(folder: Path | None) -> tuple[dataset1.RoadScenes, dataset1.RoadScenes]:
    """Return the scenes to take ranges from, and those to score."""
    if folder is None:
        return dataset1.load()
    return tuple(dataset1.RoadScenes(folder, split) for split in ("train", "test"))


def quantise(
    path: Path, out: Path, images: list[Tensor], size: tuple[int, int] | None
) -> None:
    """Write an ONNX file with 8-bit weights and activations."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):
        """Feeds what the network is fed with when it predicts."""

        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict | None:
            image = next(self.left, None)
            if image is None:
                return None
            seen: list[Tensor] = []
            evaluation.predict(_Spy(seen), image.as_subclass(Tensor)[None], size)
            return {"pictures": seen[0].numpy()}

    with tempfile.TemporaryDirectory(dir=out.parent) as folder, quiet():
        ready = Path(folder) / "ready.onnx"
        # batch normalisation goes into the convolutions before it
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantize(
            str(ready),
            str(out),
            Pictures(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


class _Spy(nn.Module):
    """Notes what a network would be fed with."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen
        self.where = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.contiguous())
        return x.new_zeros(len(x), classes.NUM_CLASSES, *x.shape[-2:])


def megabytes(path: Path) -> str:
    """Return a file's size in words."""
    return f"{os.path.getsize(path) / 1e6:.1f} MB"


if __name__ == "__main__":
    raise SystemExit(main())
