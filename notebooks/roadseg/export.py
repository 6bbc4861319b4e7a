"""Export a trained network as ONNX, check it against PyTorch, quantize it to int8.

An exported file takes float32 images (N, 3, H, W), normalized as `unet.normalize`
does, for any N and for H and W that are multiples of 32, and returns logits
(N, C, H, W). Its metadata hold the label set, mean, standard deviation and input size.
`export_web` writes the file that the site's page "Try it" runs in a browser.
The packages all this needs are optional dependencies (``roadseg[export]``).
"""

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from roadseg import inference
from roadseg.classes import CAMVID, LabelSet, RoadsegError
from roadseg.unet import IMAGENET_MEAN, IMAGENET_STD, STRIDE, normalize
from roadseg.weights import SavedModel, quantize_state

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

CHECKED_SHAPES = ((1, 64, 96), (2, 96, 64), (3, 32, 160), (1, 256, 352))
"""Images, height and width that `check_onnx` tries."""

TOLERANCE = 1e-3
"""Largest difference allowed, as a share of the largest logit.

Sums in float32 taken in another order differ far less.
"""


class ExportError(RoadsegError, ValueError):
    """A network that cannot be exported, or whose export computes something else."""


def require_packages() -> None:
    """Raise an `ExportError` that says what to install, if a package is missing."""
    if missing := [x for x in PACKAGES if importlib.util.find_spec(x) is None]:
        raise ExportError(
            f"exporting needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}"
        )


def export_onnx(saved: SavedModel, path: str | os.PathLike) -> None:
    """Write a network as ONNX, for any number of images and multiples of 32.

    Args:
        saved: A network with its label set, as `weights.load_model` returns it.
        path: The file to write.

    Raises:
        ExportError: If a package is missing.
    """
    require_packages()
    import onnx

    unit = {name: torch.export.Dim(name, min=1, max=512) for name in ("h", "w")}
    shape = {
        0: torch.export.Dim("images", min=1, max=4096),
        2: STRIDE * unit["h"],
        3: STRIDE * unit["w"],
    }
    model = copy.deepcopy(saved.model).cpu().float().eval()
    with _quiet():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, 64, 96),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(shape,),
            dynamo=True,
            verbose=False,
        )
    known = {
        "labels": json.dumps(saved.labels.to_dict()),
        "mean": json.dumps(list(IMAGENET_MEAN)),
        "std": json.dumps(list(IMAGENET_STD)),
        "input_size": json.dumps(saved.input_size),
        **{
            k: str(saved.metadata[k])
            for k in ("data", "encoder")
            if k in saved.metadata
        },
    }
    proto = program.model_proto  # made anew at each access
    for part in (proto.graph, *proto.graph.node, *proto.graph.input):
        del part.metadata_props[:]  # the exporter notes paths of this machine there
    onnx.helper.set_model_props(proto, known)
    onnx.save(proto, path)


class OnnxModel(nn.Module):
    """An ONNX file run by onnxruntime on the CPU, used like any other module."""

    def __init__(self, path: str | os.PathLike) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        # parameters tell inference on which device a model runs
        self.on_cpu = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C, H, W) of normalized images (N, 3, H, W)."""
        images = np.ascontiguousarray(x.detach().float().numpy())
        return torch.from_numpy(self.session.run(None, {"images": images})[0])


@torch.inference_mode()
def check_onnx(
    model: nn.Module, path: str | os.PathLike
) -> list[tuple[tuple[int, int, int], float, float]]:
    """Compare an exported file with PyTorch on random images of several shapes.

    Args:
        model: The network that was exported.
        path: The ONNX file.

    Returns:
        For each of `CHECKED_SHAPES`: the shape, the largest difference of a logit,
        and the largest logit.

    Raises:
        ExportError: If a difference exceeds `TOLERANCE` of the largest logit.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    exported = OnnxModel(path)
    generator = torch.Generator().manual_seed(0)
    found = []
    for count, height, width in CHECKED_SHAPES:
        x = normalize(torch.rand(count, 3, height, width, generator=generator))
        expected, actual = model(x), exported(x)
        largest = expected.abs().max().item()
        difference = (expected - actual).abs().max().item()
        found.append(((count, height, width), difference, largest))
        if not difference <= TOLERANCE * largest:
            raise ExportError(
                "the exported network does not compute what PyTorch computes: for "
                f"{count} x 3 x {height} x {width}, logits up to {largest:.1f} differ "
                f"by {difference:.1e}. Try other versions of {', '.join(PACKAGES)}"
            )
    return found


def export_web(
    saved: SavedModel,
    path: str | os.PathLike,
    input_size: Sequence[int] | None = None,
) -> None:
    """Write a network for the site's page "Try it": one file, a quarter of the bytes.

    Kernels are stored as 8-bit integers with one factor per entry of their first
    dimension, as `weights.quantize_state` does, and converted back when the file is
    loaded. The arithmetic stays in float32. Therefore the network that ships, whose
    weights are stored in the same way, loses nothing; another one loses what rounding
    its kernels costs.

    Args:
        saved: A network with its label set, as `weights.load_model` returns it.
        path: The ``.onnx`` file to write.
        input_size: Height and width at which the page feeds it photos; see
            `inference.input_size_for`. By default that of the network.

    Raises:
        ExportError: If a package or the input size is missing, or if the exported
            network computes something else than PyTorch.
    """
    input_size = input_size or saved.input_size
    if input_size is None:
        raise ExportError(
            "a network for the web needs an input size, because a browser is too slow "
            "for large photos: give one, such as 256 x 352"
        )
    require_packages()
    import onnx

    known = replace(saved, input_size=(int(input_size[0]), int(input_size[1])))
    export_onnx(known, path)
    check_onnx(saved.model, path)
    proto = onnx.load(path)
    nodes = [x for x in proto.graph.node if x.op_type in ("Conv", "ConvTranspose")]
    kernels = {node.input[1] for node in nodes}
    for tensor in [x for x in proto.graph.initializer if x.name in kernels]:
        name, value = tensor.name, onnx.numpy_helper.to_array(tensor).copy()
        small = quantize_state({name: torch.from_numpy(value)})
        values = {
            f"{name}.int8": small[name].numpy(),
            f"{name}.scale": small[f"{name}.scale"].flatten().numpy(),
        }
        proto.graph.initializer.remove(tensor)
        for new, array in values.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, new))
        node = onnx.helper.make_node("DequantizeLinear", [*values], [name], axis=0)
        proto.graph.node.insert(0, node)
    onnx.save(proto, path)


def quantize_onnx(
    path: str | os.PathLike,
    out: str | os.PathLike,
    images: Iterable[Tensor],
    input_size: tuple[int, int] | None = None,
    labels: LabelSet = CAMVID,
) -> None:
    """Write an ONNX file with 8-bit weights and activations (static quantization).

    Args:
        path: An exported file.
        out: The file to write.
        images: Training images (3, H, W) uint8, from which the ranges of the
            activations are taken. The network sees them as it does in inference.
        input_size: See `inference.predict`.
        labels: The label set of the network.
    """
    require_packages()
    from onnxruntime.quantization import CalibrationDataReader, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(CalibrationDataReader):
        """Feeds the inputs that a network gets when it predicts the images."""

        def __init__(self) -> None:
            self.remaining = iter(images)

        def get_next(self) -> dict | None:
            """Return the next input, or None after the last."""
            image = next(self.remaining, None)
            if image is None:
                return None
            recorder = _Recorder(labels.num_classes)
            batch = image.as_subclass(Tensor)[None]
            inference.predict(recorder, batch, input_size, labels=labels)
            return {"images": recorder.input.numpy()}

    out = Path(out)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as folder, _quiet():
        ready = Path(folder) / "ready.onnx"
        # merges batch normalization into the convolutions before it
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantize(
            str(ready),
            str(out),
            Calibration(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


class _Recorder(nn.Module):
    """Records its input and returns zeros for logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.on_cpu = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.input = x.contiguous().float()
        return x.new_zeros(len(x), self.num_classes, *x.shape[-2:])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters print that a user can do nothing about."""
    before = logging.root.manager.disable
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
