"""The network: a U-Net whose encoder is VGG16 with batch normalisation.

The U is that of Ronneberger, Fischer and Brox 2015
(https://doi.org/10.1007/978-3-319-24574-4_28); the encoder that of Simonyan and
Zisserman 2015 (https://arxiv.org/abs/1409.1556) with the batch normalisation of
Ioffe and Szegedy 2015 (https://arxiv.org/abs/1502.03167), as in torchvision.
"""

import contextlib
import http.client
import json
import os
import socket
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights
from torchvision.models.vgg import cfgs, make_layers
from torchvision.transforms import v2

from roadseg import runtime
from roadseg.classes import NUM_CLASSES

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Mean and spread of ImageNet's red, green and blue, in units of 0 to 1."""

STRIDE: int = 32
"""Five poolings halve a picture five times: sides must be multiples of 2 ** 5."""

TIMEOUT: float = 30
"""Seconds to wait for a server of weights: to connect, and for each further piece."""

normalise = v2.Compose(
    [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)
"""Pictures (..., 3, H, W), uint8 or float 0 to 1, to what the encoder expects."""


def denormalise(images: Tensor) -> Tensor:
    """Undo `normalise`.

    Args:
        images: (..., 3, H, W) float32, normalised.

    Returns:
        (..., 3, H, W) float32, 0 to 1.
    """
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images * std + mean).clamp(0, 1)


# --- encoder weights ----------------------------------------------------------


class WeightsError(ValueError):
    """A file of weights that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class EncoderWeights:
    """Weights for the encoder, and where they come from.

    Attributes:
        state: State dict of ``vgg16_bn().features`` (keys ``0.weight``, ...),
            float32; None for random weights.
        origin: In words, to be printed beside every score.
        pretrained: False for random weights.
    """

    state: dict[str, Tensor] | None
    origin: str
    pretrained: bool


RANDOM = EncoderWeights(None, "random encoder weights (nothing pretrained)", False)


def vgg16_bn_features() -> nn.Sequential:
    """Return the 44 layers of ``torchvision.models.vgg16_bn().features``, random.

    The classifier behind them, nine tenths of VGG's parameters, is never made.
    """
    features = make_layers(cfgs["D"], batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.Conv2d):  # as torchvision initialises VGG
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return features


def find_encoder_weights(profile: runtime.Profile | None = None) -> EncoderWeights:
    """Find the best encoder weights within reach.

    In this order: the file that the environment variable ``ROADSEG_VGG16_BN``
    names; ImageNet weights kept from an earlier download; ImageNet weights from
    torchvision; random ones, under a banner. The quick profile takes random
    weights at once.

    Args:
        profile: The profile; without it, that of this run.

    Raises:
        WeightsError: If ``ROADSEG_VGG16_BN`` names a file that cannot be used.
    """
    profile = profile or runtime.profile()
    if not profile.pretrained:
        return RANDOM
    if path := os.environ.get("ROADSEG_VGG16_BN"):
        return read_encoder_weights(path)
    try:
        return imagenet_weights()
    except OSError as error:
        print(
            runtime.banner(
                "RANDOM ENCODER. The ImageNet weights could not be downloaded "
                f"({error}). Scores will be far lower than with them: with a "
                "network run this again, or set ROADSEG_VGG16_BN to a file of "
                "torchvision's vgg16_bn weights."
            )
        )
        return RANDOM


def imagenet_weights() -> EncoderWeights:
    """Return torchvision's ImageNet weights, downloaded once (553 MB).

    Only the features (59 MB) are kept, in `runtime.data_dir`.

    Raises:
        OSError: If they are not kept and cannot be downloaded.
    """
    kept = runtime.data_dir() / "vgg16_bn_imagenet_features.safetensors"
    origin = "ImageNet (torchvision VGG16_BN_Weights.IMAGENET1K_V1)"
    if kept.exists():
        with contextlib.suppress(WeightsError):  # damaged: fetched again
            return EncoderWeights(_features(kept), origin, True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # torchvision's progress bar goes to stderr, which notebooks keep
    with (
        tempfile.TemporaryDirectory(dir=kept.parent) as folder,
        contextlib.redirect_stderr(sys.stdout),
        _impatient(),
    ):
        weights = VGG16_BN_Weights.IMAGENET1K_V1
        try:
            full = weights.get_state_dict(
                progress=True, model_dir=folder, check_hash=True
            )
        # a hash that does not match; an answer cut off, or that is no HTTP
        except (RuntimeError, ValueError, http.client.HTTPException) as error:
            kind = type(error).__name__
            raise OSError(f"the download is damaged ({kind}: {error})") from None
        state = _select_features(full, weights.url)
    _write_safetensors(kept, state, {"origin": origin})
    return EncoderWeights(state, origin, True)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Let a server that says nothing for `TIMEOUT` seconds be an OSError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub's download can be given none
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_encoder_weights(path: str | os.PathLike) -> EncoderWeights:
    """Read encoder weights from a file.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote (read with
            ``weights_only=True``: a file with code in it is refused). It holds a
            state dict of torchvision's ``vgg16_bn``, whole or its features only,
            of any float type.

    Raises:
        WeightsError: If the file is missing, unreadable, or not of this network.
    """
    state = _features(Path(path))
    return EncoderWeights(state, f"the local file {Path(path).name}", True)


def _features(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"there is no file {path}: see ROADSEG_VGG16_BN")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path.name} cannot be read as plain weights ({reason}). It is damaged, "
            "or holds more than weights; take a state dict of torchvision's vgg16_bn"
        ) from None
    return _select_features(state, path.name)


def _select_features(state: object, name: str) -> dict[str, Tensor]:
    """Return the features of a VGG16-BN state dict under their plain names."""
    if not isinstance(state, dict) or not all(isinstance(k, str) for k in state):
        raise WeightsError(f"{name} holds no state dict but a {type(state).__name__}")
    plain = {
        k.removeprefix("module.").removeprefix("features."): state[k] for k in state
    }
    with torch.device("meta"):  # names and shapes, no numbers
        wanted = vgg16_bn_features().state_dict()
    # files older than batch normalisation's counter lack it; it is not used
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}
    missing = [k for k in wanted if k not in plain and k not in counters]
    if missing:
        raise WeightsError(
            f"{name} is not a state dict of torchvision's vgg16_bn: it lacks "
            f"{len(missing)} of {len(wanted) - len(counters)} entries, "
            f"features.{missing[0]} the first"
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
    state = {k: plain[k].to(v.dtype).contiguous() for k, v in wanted.items()}
    for k, v in state.items():
        if not torch.isfinite(v).all():
            raise WeightsError(f"{name} is damaged: features.{k} is not finite")
    return state


# --- the network --------------------------------------------------------------


def vgg_stages(features: nn.Sequential) -> list[nn.Sequential]:
    """Cut VGG's layers in front of each of its poolings.

    Args:
        features: ``vgg16_bn().features``, or any sequence with `nn.MaxPool2d`.

    Returns:
        One piece more than there are poolings. Each but the first begins with
        its pooling; VGG16's last is a pooling alone. Layers keep their names.

    Raises:
        ValueError: If there is no pooling.
    """
    layers = list(features.named_children())
    pools = [i for i, (_, x) in enumerate(layers) if isinstance(x, nn.MaxPool2d)]
    if not pools:
        raise ValueError("there is no MaxPool2d among the layers to cut at")
    edges = [0, *pools, len(layers)]
    return [
        nn.Sequential(OrderedDict(layers[a:b]))
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a 3 x 3 convolution, batch normalisation and ReLU.

    (N, in_channels, H, W) => (N, out_channels, H, W).
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def up_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a 2 x 2 transposed convolution of stride 2, and ReLU.

    (N, in_channels, H, W) => (N, out_channels, 2 H, 2 W).
    """
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """A U-Net with VGG16-BN as its encoder; 29 million parameters.

    Args:
        num_classes: Channels of the output.
        encoder_weights: ``"imagenet"``, the path of a file, the `EncoderWeights`
            that `find_encoder_weights` gives, or None for random ones.

    Attributes:
        encoder: The five stages of VGG, cut at the poolings.
        bottleneck: The last pooling and one convolution block.
        ups: Five `up_block`, from the bottleneck up.
        convs: Five `conv_block`; each takes an `up_block`'s output beside the
            skip connection of the same size.
        head: A 1 x 1 convolution to the logits.
        origin: Where the encoder weights came from, in words.

    Raises:
        WeightsError: If the encoder weights cannot be used.

    Example:
        >>> UNet(21)(torch.rand(1, 3, 96, 128)).shape
        torch.Size([1, 21, 96, 128])
    """

    def __init__(
        self,
        num_classes: int = NUM_CLASSES,
        encoder_weights: EncoderWeights | str | os.PathLike | None = None,
    ) -> None:
        super().__init__()
        weights = _as_weights(encoder_weights)
        self.origin = weights.origin
        features = vgg16_bn_features()
        if weights.state is not None:
            features.load_state_dict(weights.state)
        *stages, last_pool = vgg_stages(features)
        self.encoder = nn.ModuleList(stages)
        self.bottleneck = nn.Sequential(last_pool, conv_block(512, 1024))

        skips = [512, 512, 256, 128, 64]  # channels of the stages, deepest first
        inputs = [1024, 512, 256, 128, 64]
        outputs = [512, 256, 128, 64, 32]
        self.ups = nn.ModuleList(
            up_block(i, o) for i, o in zip(inputs, outputs, strict=True)
        )
        self.convs = nn.ModuleList(
            conv_block(o + s, o) for o, s in zip(outputs, skips, strict=True)
        )
        self.head = nn.Conv2d(32, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of normalised pictures.

        Args:
            x: (N, 3, H, W) float; H and W are multiples of 32.

        Returns:
            (N, num_classes, H, W) float: logits, not probabilities.

        Raises:
            ValueError: If the shape is another.
        """
        check_input(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = self.bottleneck(x)
        for up, conv, skip in zip(self.ups, self.convs, reversed(skips), strict=True):
            x = conv(torch.cat([up(x), skip], dim=1))
        return self.head(x)


def _as_weights(given: EncoderWeights | str | os.PathLike | None) -> EncoderWeights:
    if given is None:
        return RANDOM
    if isinstance(given, EncoderWeights):
        return given
    return imagenet_weights() if given == "imagenet" else read_encoder_weights(given)


def check_input(x: Tensor) -> None:
    """Raise a ValueError unless x is (N, 3, H, W) with H and W multiples of 32."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(
            f"the U-Net takes pictures of shape (N, 3, H, W), not {tuple(x.shape)}"
        )
    height, width = x.shape[-2:]
    if height % STRIDE or width % STRIDE or 0 in (height, width):
        raise ValueError(
            f"the U-Net halves a picture five times, so height and width must be "
            f"multiples of {STRIDE}; {height} x {width} is not. Resize the picture, "
            "or let roadseg.unet.predict_logits pad and crop it"
        )


def predict_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of pictures of any size: pad, predict, crop.

    The right and lower edges are repeated up to the next multiple of 32, which
    disturbs the network less than a black border.

    Args:
        model: A network that wants multiples of 32.
        images: (N, 3, H, W) float, normalised.

    Returns:
        (N, num_classes, H, W) float logits.
    """
    height, width = images.shape[-2:]
    pad = (0, -width % STRIDE, 0, -height % STRIDE)  # left, right, top, bottom
    padded = F.pad(images, pad, mode="replicate") if any(pad) else images
    return model(padded)[..., :height, :width]


# --- whole networks on disk ---------------------------------------------------


def save(model: UNet, path: str | os.PathLike, facts: dict | None = None) -> None:
    """Write a network to a safetensors file, whole or not at all.

    Args:
        model: The network.
        path: The file, ``.safetensors``; its folder exists.
        facts: What to keep beside the weights, as JSON can hold it: data, scores,
            seconds.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    facts = {"encoder": model.origin, **(facts or {})}
    _write_safetensors(Path(path), state, {"roadseg": json.dumps(facts)})


def load(path: str | os.PathLike) -> tuple[UNet, dict]:
    """Read a network that `save` wrote.

    Returns:
        The network, on the CPU and in evaluation mode, and the facts beside it.

    Raises:
        WeightsError: If the file is missing, damaged, or not of this network.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("roadseg", "{}"))
        state = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path.name} cannot be read as a U-Net: {error}") from None
    if "head.bias" not in state:
        raise WeightsError(f"{path.name} holds no U-Net of roadseg: no head.bias in it")
    model = UNet(len(state["head.bias"]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path.name} does not fit the U-Net: {reason}") from None
    model.origin = facts.get("encoder", "unknown encoder weights")
    return model.eval(), facts


def _write_safetensors(path: Path, state: dict, metadata: dict[str, str]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(state, draft, metadata=metadata)
        os.replace(draft, path)
    except SafetensorError as error:  # a full disk, mostly
        raise OSError(f"{runtime.short(path)} cannot be written: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
