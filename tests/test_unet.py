"""The network: normalization, stages, shapes, skip connections, wrong inputs."""

import pytest
import torch
from torch import nn
from torchvision.models import VGG16_BN_Weights, vgg16_bn
from torchvision.models.vgg import cfgs, make_layers

from roadseg import unet
from roadseg.unet import UNet

POOLS = [6, 13, 23, 33, 43]


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    torch.manual_seed(0)
    return unet.vgg16_bn_features()


@pytest.fixture(scope="module")
def model() -> UNet:
    torch.manual_seed(1)
    return UNet().eval()


# --- normalization ------------------------------------------------------------


def test_normalize_is_the_formula_and_denormalize_its_inverse():
    x = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    y = unet.normalize(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, (x / 255 - mean) / std)
    torch.testing.assert_close(unet.normalize(x / 255), y)
    torch.testing.assert_close(unet.denormalize(y), x / 255)


def test_normalize_is_what_torchvision_does_for_these_weights():
    preset = VGG16_BN_Weights.IMAGENET1K_V1.transforms()
    assert tuple(preset.mean) == unet.IMAGENET_MEAN
    assert tuple(preset.std) == unet.IMAGENET_STD


# --- stages -------------------------------------------------------------------


def test_features_equal_torchvisions(features):
    with torch.device("meta"):
        theirs = vgg16_bn().features
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert shapes == {k: v.shape for k, v in features.state_dict().items()}
    assert [type(x) for x in features] == [type(x) for x in theirs]
    assert str(features) == str(theirs)  # kernel sizes, padding, strides


def cut(features: nn.Sequential, edges: list[int]) -> list[nn.Sequential]:
    edges = [0, *edges, len(features)]
    return [features[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]


def check_stages(stages: list[nn.Sequential]) -> None:
    """Each stage but the first begins with its only pooling; each ends in a ReLU."""
    kinds = [[type(layer) for layer in stage] for stage in stages]
    assert nn.MaxPool2d not in kinds[0]
    for stage in kinds[1:]:
        assert stage[0] is nn.MaxPool2d
        assert stage.count(nn.MaxPool2d) == 1
    assert all(stage[-1] is nn.ReLU for stage in kinds[:-1])


def test_stages_are_split_at_the_pools(features):
    stages = unet.encoder_stages(features)
    check_stages(stages)
    for mine, theirs in zip(stages, cut(features, POOLS), strict=True):
        assert list(mine.named_children()) == list(theirs.named_children())


@pytest.mark.parametrize(
    "edges", [[6, 13, 20, 27, 34], [6, 13, 21, 33, 43], [7, 14, 24, 34, 44]]
)
def test_a_wrong_split_is_caught(features, edges):
    with pytest.raises(AssertionError):
        check_stages(cut(features, edges))


def test_stages_of_another_vgg():
    features = make_layers(cfgs["B"], batch_norm=True)
    stages = unet.encoder_stages(features)
    check_stages(stages)
    starts = [int(next(iter(dict(s.named_children())))) for s in stages]
    assert starts == [0, 6, 13, 20, 27, 34]


def test_no_pool_to_split_at():
    with pytest.raises(ValueError, match="none of them is a MaxPool2d"):
        unet.encoder_stages(nn.Sequential(nn.ReLU()))


# --- the network --------------------------------------------------------------


def test_blocks():
    x = torch.randn(2, 3, 4, 6)
    assert unet.conv_block(3, 8)(x).shape == (2, 8, 4, 6)
    assert unet.up_block(3, 8)(x).shape == (2, 8, 8, 12)
    assert unet.conv_block(3, 8)(x).min() == 0
    assert unet.up_block(3, 8)(x).min() == 0


def test_shapes(model):
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 64, 96)).shape == (2, 12, 64, 96)
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 12, 32, 32)
    assert len(model.encoder) == len(model.ups) == len(model.convs) == 5


def test_number_of_classes():
    assert UNet(21).head.out_channels == 21


def test_each_parameter_is_registered_once(model):
    tensors = list(model.state_dict().values())
    assert len({x.data_ptr() for x in tensors}) == len(tensors)
    named = dict(model.named_parameters(remove_duplicate=False))
    assert sum(p.numel() for p in named.values()) == 29_311_308
    assert sum(p.numel() for p in model.parameters()) == 29_311_308


def test_encoder_outputs_equal_vggs_before_each_pool(features):
    model = UNet(encoder_weights=features.state_dict()).eval()
    features.eval()
    x = torch.rand(1, 3, 64, 64)
    theirs, y = [], x
    with torch.inference_mode():
        for i, layer in enumerate(features):
            if i in POOLS:
                theirs.append(y.clone())
            y = layer(y)
        mine, y = [], x
        for stage in model.encoder:
            y = stage(y)
            mine.append(y)
    features.train()
    assert len(mine) == len(theirs) == 5
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)


def test_every_skip_and_the_bottleneck_reach_the_output(model):
    """Set each concatenated half to zero in turn: the logits change."""
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        whole = model(x)
        for conv, up in zip(model.convs, model.ups, strict=True):
            below = up[0].out_channels
            for half in (slice(0, below), slice(below, None)):

                def mute(module, args, half=half):
                    args[0][:, half] = 0

                hook = conv.register_forward_pre_hook(mute)
                assert not torch.allclose(model(x), whole)
                hook.remove()


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = UNet()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = [
        k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ]
    # batch normalization cancels a bias in front of it: rounding errors remain
    assert all(k.endswith("bias") for k in without)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 32, 32), r"\(N, 3, H, W\), not \(3, 32, 32\)"),
        ((1, 4, 32, 32), r"not \(1, 4, 32, 32\)"),
        ((1, 32, 32, 3), r"not \(1, 32, 32, 3\)"),
        ((1, 3, 360, 32), "multiples of 32; 360 x 32 is not"),
        ((1, 3, 32, 40), "multiples of 32; 32 x 40 is not"),
        ((1, 3, 0, 32), "0 x 32"),
    ],
)
def test_wrong_inputs(model, shape, words):
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(shape))


class Probe(nn.Module):
    """Remembers its input and returns its first channel as logits."""

    def forward(self, x):
        unet.check_input(x)
        self.seen = x
        return x[:, :1]


@pytest.mark.parametrize(("height", "width"), [(45, 70), (64, 33), (31, 64), (64, 96)])
def test_forward_padded_pads_and_crops_correctly(height, width):
    probe = Probe()
    x = torch.rand(2, 3, height, width)
    y = unet.forward_padded(probe, x)
    assert torch.equal(y, x[:, :1])  # each pixel still in its place
    padded = probe.seen
    assert padded.shape[-2:] == (-(-height // 32) * 32, -(-width // 32) * 32)
    assert torch.equal(padded[..., :height, :width], x)
    last_row = x[..., -1:, :].expand(-1, -1, padded.shape[-2] - height, -1)
    assert torch.equal(padded[..., height:, :width], last_row)
    last_column = x[..., -1:].expand(-1, -1, -1, padded.shape[-1] - width)
    assert torch.equal(padded[..., :height, width:], last_column)


def test_forward_padded_equals_the_model_where_sizes_fit(model):
    x = torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(unet.forward_padded(model, x), model(x))
