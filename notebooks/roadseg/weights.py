"""Weights on disk: of the encoder, of whole networks, of the network that ships."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights

from roadseg import files, runtime
from roadseg.classes import LabelSet, RoadsegError
from roadseg.unet import UNet, vgg16_bn_features

PRETRAINED = Path(__file__).parent / "pretrained" / "unet_camvid.safetensors"
"""The network that ships; see `load_pretrained`."""

IMAGENET = (
    ("torchvision", VGG16_BN_Weights.IMAGENET1K_V1.url, "6c64b313"),
    (
        "the Hugging Face hub",
        "https://huggingface.co/timm/vgg16_bn.tv_in1k/resolve/"
        "e00c01e7cee168262dcba6428dc4a8f41e27e965/model.safetensors",
        "88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129",
    ),
)
"""Where torchvision's ImageNet weights are: name, address, first digits of the SHA-256.

The second file is timm's copy: the same features under the same names, next to a
classifier of another form. We could not download it, so its SHA-256 is the one that the
hub shows for it, and the tests serve a file of that form themselves.
"""

ARCHITECTURE = "roadseg.UNet"
"""How a saved `UNet` is marked; other networks are marked with their class's name."""


class WeightsError(RoadsegError, ValueError):
    """A file of weights that cannot be used; the message names it and says why."""


# --- encoder weights ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """Weights for the encoder, and where they come from.

    Attributes:
        state_dict: State dict of ``vgg16_bn().features`` (keys ``0.weight``, ...),
            float32; None for random weights.
        source: Where they come from, in words, to be printed beside every score.
        pretrained: False for random weights.
        fingerprint: 16 hexadecimal digits computed from the weights, or "random".
    """

    state_dict: dict[str, Tensor] | None
    source: str
    pretrained: bool
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self.state_dict))


def _fingerprint(state: Mapping[str, Tensor] | None) -> str:
    if state is None:
        return "random"
    digest = hashlib.sha256()
    for k, v in sorted(state.items()):
        digest.update(f"{k} {tuple(v.shape)} {v.dtype}".encode())
        digest.update(v.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


RANDOM_INIT = EncoderWeights(None, "random encoder weights (nothing pretrained)", False)


def load_encoder_weights(profile: runtime.Profile | None = None) -> EncoderWeights:
    """Return the best encoder weights that are available.

    In this order: the file that the environment variable ``ROADSEG_VGG16_BN`` names;
    ImageNet weights kept from an earlier download; ImageNet weights downloaded now,
    see `IMAGENET`; random ones, with a banner. The quick profile takes random weights
    at once.

    Raises:
        WeightsError: If ``ROADSEG_VGG16_BN`` names a file that cannot be used.
    """
    settings = runtime.settings()
    if not (profile or settings.profile).pretrained:
        return RANDOM_INIT
    if settings.vgg16_bn:
        return read_encoder_weights(settings.vgg16_bn)
    try:
        return imagenet_weights()
    except WeightsError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error}: free disk space, or set ROADSEG_DATA to another folder"
    print(
        runtime.banner(
            "RANDOM ENCODER. The ImageNet weights could not be downloaded. Scores will "
            "be far lower than with them: run this again with a network connection, or "
            "set ROADSEG_VGG16_BN to a file of torchvision's vgg16_bn weights.\n\n"
            + reason
        )
    )
    return RANDOM_INIT


def imagenet_weights() -> EncoderWeights:
    """Return torchvision's ImageNet weights, downloaded once (553 MB).

    Only the features (59 MB) are kept, in `runtime.data_dir`.

    Raises:
        WeightsError: If they are not kept and cannot be downloaded.
        OSError: If they cannot be written.
    """
    kept = runtime.data_dir() / "vgg16_bn_imagenet_features.safetensors"
    source = "ImageNet (torchvision VGG16_BN_Weights.IMAGENET1K_V1)"
    if kept.exists():
        with contextlib.suppress(WeightsError):  # damaged: download it again
            return EncoderWeights(_read_features(kept), source, True)
    reasons = []
    for name, url, digest in IMAGENET:
        try:
            state = _download_features(url, digest, kept.parent)
        except (files.DatasetError, WeightsError) as error:
            reasons.append(f"- {name}: {error}\n{url}")
        else:
            for reason in reasons:
                print(f"encoder weights from {name}, because of\n{reason}")
            _write_safetensors(kept, state, {"source": source})
            return EncoderWeights(state, source, True)
    raise WeightsError("\n".join(reasons))


def _download_features(url: str, sha256: str, folder: Path) -> dict[str, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / url.rsplit("/", 1)[-1]
        files.download(url, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(sha256):
            raise WeightsError("the download is damaged, its SHA-256 is wrong")
        return _read_features(path)


def read_encoder_weights(path: str | os.PathLike) -> EncoderWeights:
    """Read encoder weights from a file.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote (read with
            ``weights_only=True``: a file with code in it is refused). It holds a
            state dict of torchvision's ``vgg16_bn``, complete or its features only,
            of any float type; perhaps nested under ``state_dict`` or ``model``, with
            the prefixes of DataParallel, torch.compile, or a network's ``encoder``.

    Raises:
        WeightsError: If the file is missing, unreadable, or of another network.
    """
    state = _read_features(Path(path))
    return EncoderWeights(state, f"the local file {Path(path).name}", True)


def _read_features(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"there is no file {path}: check ROADSEG_VGG16_BN")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path.name} cannot be read as plain weights ({reason}). It is damaged or "
            "holds more than weights; use a state dict of torchvision's vgg16_bn"
        ) from None
    return _select_features(state, path.name)


def _select_features(state: object, name: str) -> dict[str, Tensor]:
    """Return the features of a VGG16-BN state dict under torchvision's names."""
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(k, str) for k in state):
        raise WeightsError(f"{name} holds no state dict but a {type(state).__name__}")
    prefixes = re.compile(r"^((module|_orig_mod|encoder|features)\.)+")
    plain = {prefixes.sub("", k): v for k, v in state.items()}
    with torch.device("meta"):  # names and shapes, no numbers
        wanted = vgg16_bn_features().state_dict()
    # files from before batch normalization had this counter lack it; it is not used
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}
    missing = [k for k in wanted if k not in plain and k not in counters]
    if missing:
        shown = ", ".join(str(k)[:60] for k in list(state)[:3]) or "none"
        raise WeightsError(
            f"{name} is not a state dict of torchvision's vgg16_bn: it lacks "
            f"{len(missing)} of {len(wanted) - len(counters)} entries, "
            f"features.{missing[0]} the first. It has {len(state)} entries: {shown}"
            f"{', ...' if len(state) > 3 else ''}"
        )
    for k, v in wanted.items():
        found = plain.get(k, v)
        if not isinstance(found, Tensor) or found.shape != v.shape:
            shape = tuple(getattr(found, "shape", ()))
            raise WeightsError(
                f"{name} is not of vgg16_bn: features.{k} has the shape {shape}, "
                f"not {tuple(v.shape)}"
            )
    plain |= {k: torch.zeros(wanted[k].shape) for k in counters - plain.keys()}
    features = {k: plain[k].to(v.dtype).contiguous() for k, v in wanted.items()}
    for k, v in features.items():
        if not torch.isfinite(v).all():
            raise WeightsError(f"{name} is damaged: features.{k} is not finite")
    return features


# --- whole networks -----------------------------------------------------------


@dataclass(eq=False)
class SavedModel:
    """A network from a file, and what is known about it.

    Attributes:
        model: The network, in evaluation mode, on the CPU after `load_model`.
        labels: The classes of its output channels.
        input_size: Height and width that images are resized to for prediction; None
            for their own size.
        metadata: What else was saved: data, encoder, recipe, seconds, ...
    """

    model: nn.Module
    labels: LabelSet
    input_size: tuple[int, int] | None
    metadata: dict[str, Any]


def save_model(
    model: nn.Module,
    path: str | os.PathLike,
    labels: LabelSet,
    metadata: Mapping[str, Any] | None = None,
    *,
    int8: bool = False,
) -> None:
    """Write a network to a safetensors file, complete or not at all.

    Args:
        model: The network.
        path: The file, ``.safetensors``.
        labels: The classes of its output channels.
        metadata: What else to save, as JSON can hold it: input_size, recipe, data, ...
        int8: Save a quarter of the bytes, see `quantize_state`.

    Raises:
        OSError: If the file cannot be written.
    """
    # copies, because safetensors refuses tensors that share memory, or channels_last
    state = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in model.state_dict().items()
    }
    plain = type(model) is UNet
    known = {
        **(metadata or {}),
        "labels": labels.to_dict(),
        "architecture": ARCHITECTURE if plain else type(model).__qualname__,
        "int8": int8,
    }
    state = quantize_state(state) if int8 else state
    _write_safetensors(Path(path), state, {"roadseg": json.dumps(known)})


def load_model(path: str | os.PathLike, model: nn.Module | None = None) -> SavedModel:
    """Read a network that `save_model` wrote, in evaluation mode.

    Args:
        path: The file.
        model: A network of the architecture that was saved, whose weights are
            replaced; without it, a `UNet` with the right number of classes.

    Raises:
        WeightsError: If the file is missing, damaged, or of another architecture.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            known = json.loads((file.metadata() or {}).get("roadseg", "{}"))
        state = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{path.name} cannot be read as a network: {reason}"
        ) from None
    try:
        labels = LabelSet.from_dict(known["labels"])
        size = known.get("input_size")
        input_size = (int(size[0]), int(size[1])) if size else None
        architecture = str(known["architecture"])
    except (RoadsegError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path.name} holds no network saved by roadseg: its metadata lack the "
            f"classes or are damaged ({type(error).__name__}: {error})"
        ) from None
    if model is None:
        if architecture != ARCHITECTURE:
            raise WeightsError(
                f"{path.name} holds a {architecture}, not the U-Net of roadseg: call "
                "load_model(path, model=...) with an untrained network of that kind"
            )
        model = UNet(labels.num_classes)
    try:
        model.load_state_dict(dequantize_state(state) if known.get("int8") else state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path.name}, a {architecture}, does not fit: {reason}"
        ) from None
    return SavedModel(model.eval(), labels, input_size, known)


def load_pretrained() -> SavedModel:
    """Return the network that ships with roadseg, a U-Net trained on CamVid.

    Its model card is beside its file. Its weights are under CC BY-NC 4.0, like the
    images it was trained on.

    Raises:
        WeightsError: If this installation lacks the file.
    """
    if not PRETRAINED.is_file():
        raise WeightsError(
            f"this installation of roadseg lacks its network, "
            f"{runtime.display_path(PRETRAINED)}: install it from a complete checkout, "
            "or train a network with `roadseg train`"
        )
    return load_model(PRETRAINED)


def quantize_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict to about a quarter of its bytes.

    Each kernel becomes 8-bit integers from -127 to 127 and, under its name plus
    ``.scale``, one float32 factor per entry of its first dimension (Jacob et al.
    2018, https://arxiv.org/abs/1712.05877, section 3, with zero point 0). Vectors
    such as biases become float16. Integers are kept.
    """
    small: dict[str, Tensor] = {}
    for k, v in state.items():
        if not v.is_floating_point():
            small[k] = v.clone()
        elif v.ndim < 2:
            half = v.half()
            small[k] = half if half.isfinite().all() else v.float()  # out of range
        else:
            dims = tuple(range(1, v.ndim))
            scale = v.float().abs().amax(dims, keepdim=True).clamp_min(1e-30) / 127
            small[k] = (v.float() / scale).round().to(torch.int8).contiguous()
            small[f"{k}.scale"] = scale
    return small


def dequantize_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 state dict that `quantize_state` converted."""
    full: dict[str, Tensor] = {}
    for k, v in state.items():
        if f"{k}.scale" in state:
            full[k] = v.float() * state[f"{k}.scale"]
        elif not k.endswith(".scale") or k.removesuffix(".scale") not in state:
            full[k] = v.float() if v.is_floating_point() else v
    return full


def _write_safetensors(path: Path, state: dict, metadata: dict[str, str]) -> None:
    try:
        with files.atomic_write(path) as draft:
            save_file(state, draft, metadata=metadata)
    except SafetensorError as error:  # a full disk, mostly
        path_shown = runtime.display_path(path)
        raise OSError(f"{path_shown} cannot be written: {error}") from None
