"""The network: a U-Net whose encoder is VGG16 with batch normalization.

The architecture follows Ronneberger, Fischer and Brox 2015
(https://doi.org/10.1007/978-3-319-24574-4_28), with these differences: the encoder
is that of Simonyan and Zisserman 2015 (https://arxiv.org/abs/1409.1556) with batch
normalization (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167), as in
torchvision; there are five poolings instead of four; convolutions are padded, so
that skip connections need no cropping; and each decoder level has one convolution
instead of two.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers
from torchvision.transforms import v2

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, on a 0 to 1 scale."""

STRIDE: int = 32
"""Five poolings halve an image five times: sides must be multiples of 2 ** 5."""

normalize = v2.Compose(
    [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)
"""Images (..., 3, H, W), uint8 or float 0 to 1, to what the encoder expects."""


def denormalize(images: Tensor) -> Tensor:
    """Undo `normalize`.

    Args:
        images: (..., 3, H, W) float32, normalized.

    Returns:
        (..., 3, H, W) float32, 0 to 1.
    """
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images * std + mean).clamp(0, 1)


def vgg16_bn_features() -> nn.Sequential:
    """Return the 44 layers of ``torchvision.models.vgg16_bn().features``, random.

    VGG's classifier, which holds almost 90% of its parameters, is not created.
    """
    features = make_layers(cfgs["D"], batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.Conv2d):  # initialized as in torchvision's VGG
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return features


def encoder_stages(features: nn.Sequential) -> list[nn.Sequential]:
    """Split VGG's layers in front of each pooling.

    Args:
        features: ``vgg16_bn().features``, or any sequence with `nn.MaxPool2d`.

    Returns:
        One stage more than there are poolings. Each but the first begins with its
        pooling; the last one of VGG16 is a pooling alone. Layers keep their names.

    Raises:
        ValueError: If there is no pooling.
    """
    layers = list(features.named_children())
    pools = [i for i, (_, x) in enumerate(layers) if isinstance(x, nn.MaxPool2d)]
    if not pools:
        raise ValueError("cannot split these layers: none of them is a MaxPool2d")
    edges = [0, *pools, len(layers)]
    return [
        nn.Sequential(OrderedDict(layers[a:b]))
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a 3 x 3 convolution, batch normalization and ReLU.

    (N, in_channels, H, W) => (N, out_channels, H, W).
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def up_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a 2 x 2 transposed convolution with stride 2, and ReLU.

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
        encoder_weights: A state dict of ``vgg16_bn().features``, such as the
            ``state_dict`` of what `weights.load_encoder_weights` returns; None for
            random weights.

    Attributes:
        encoder: The five stages of VGG, split at the poolings.
        bottleneck: The last pooling and one convolution block.
        ups: Five `up_block`, from the bottleneck up.
        convs: Five `conv_block`; each takes the output of an `up_block`,
            concatenated with the skip connection of the same size.
        head: A 1 x 1 convolution to the logits.

    Raises:
        RuntimeError: If the encoder weights are not those of ``vgg16_bn().features``.

    Example:
        >>> UNet(21)(torch.rand(1, 3, 96, 128)).shape
        torch.Size([1, 21, 96, 128])
    """

    def __init__(
        self,
        num_classes: int = 12,
        encoder_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        features = vgg16_bn_features()
        if encoder_weights is not None:
            features.load_state_dict(encoder_weights)
        *stages, last_pool = encoder_stages(features)
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
        """Return the logits of a batch of normalized images.

        Args:
            x: (N, 3, H, W) float; H and W are multiples of 32.

        Returns:
            (N, num_classes, H, W) float: logits, not probabilities.

        Raises:
            ValueError: If the input has another shape.
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


def check_input(x: Tensor) -> None:
    """Raise a ValueError unless x is (N, 3, H, W) with H and W multiples of 32."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(
            f"the U-Net takes images of shape (N, 3, H, W), not {tuple(x.shape)}"
        )
    height, width = x.shape[-2:]
    if height % STRIDE or width % STRIDE or 0 in (height, width):
        raise ValueError(
            f"the U-Net halves an image five times, so height and width must be "
            f"multiples of {STRIDE}; {height} x {width} is not. Resize the image, or "
            "use roadseg.unet.forward_padded, which pads it and crops the output"
        )


def forward_padded(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images of any size: pad, predict, crop.

    The right and lower edges are repeated up to the next multiple of 32, which
    disturbs the network less than a black border.

    Args:
        model: A network that takes multiples of 32.
        images: (N, 3, H, W) float, normalized.

    Returns:
        (N, C, H, W) float logits.

    Raises:
        ValueError: If the network's output is no tensor of its input's size.
    """
    height, width = images.shape[-2:]
    pad = (0, -width % STRIDE, 0, -height % STRIDE)  # left, right, top, bottom
    padded = F.pad(images, pad, mode="replicate") if any(pad) else images
    logits = model(padded)
    if not isinstance(logits, Tensor) or logits.shape[-2:] != padded.shape[-2:]:
        found = tuple(getattr(logits, "shape", ())) or type(logits).__name__
        raise ValueError(
            f"for images of {tuple(padded.shape)} the network must return logits "
            f"(N, C, H, W) of the same H and W, not {found}; wrap it in a module that "
            "selects its logits and upsamples them to the size of its input"
        )
    return logits[..., :height, :width]
