"""The check cells of chapter 2 notice when the cells before them are wrong."""

import pytest

import chapter

CELLS = chapter.code_cells("02_vgg16_bn_unet.ipynb")

# what is right, and what is put in its place
MUTATIONS = [
    ("dense.weight[:, order]", "dense.weight"),
    ("dense.weight[:, :, None", "dense.weight.flip(0)[:, :, None"),
    ("*find_pools(features), len", "6, 13, 20, 27, 34, len"),
    ("*find_pools(features), len", "*(p + 1 for p in find_pools(features)), len"),
    ("field += 2 * jump", "field += 3 * jump"),
    ("field + jump, 2 * jump", "field + jump, jump"),
    ("F.avg_pool2d(x, 2)", "F.avg_pool2d(x, 3, stride=2)"),
    ("        nn.BatchNorm2d(out_channels),\n", ""),
    ("kernel_size=3, padding=1),\n        nn.B", "kernel_size=3),\n        nn.B"),
    ("out_channels, 2, stride=2)", "out_channels, 3, stride=2)"),
    ("dim=1)\nassert both.shape", "dim=2)\nassert both.shape"),
    ("head = nn.Conv2d(32, 21", "head = nn.Conv2d(32, 12"),
    ("cat([up(x), skip], dim=1))  # d5", "cat([skip, up(x)], dim=1))  # d5"),
    ("self.encoder = nn.ModuleList(stages)", "self.encoder = stages"),
    (
        "self.encoder = nn.ModuleList(stages)",
        "self.encoder = nn.ModuleList(stages); self.features = features",
    ),
    (
        "ours.load_state_dict(theirs.state_dict())",
        "ours = UNet(unet.vgg16_bn_features()).eval()",
    ),
    ("storages = [", "storages = [0, 0] + ["),
    ("values()) for name in names) // 2", "values()) for name in names)"),
    ("weigh = sum(", "weigh = 2 * sum("),
    ("/ 255 - mean) / std", "/ 255 - std) / mean"),
    (
        "cat([up(x), skip], dim=1))\n    return model",
        "cat([skip, up(x)], dim=1))\n    return model",
    ),
    ("with_cuts([6, 13, 20, 27, 34])", "with_cuts(pools)"),
    ('"MaxPool2d" in kinds[1:]', '"MaxPool2d" in kinds'),
    ("return 9 * i * o + 3 * o", "return 9 * i * o + o"),
    ("return 4 * i * o + o", "return 9 * i * o + o"),
    (
        "out_channels, kernel_size=1),\n        nn.ReLU",
        "out_channels, kernel_size=3, padding=1),\n        nn.ReLU",
    ),
    ("cuts = [6, 13, third, 33, 43]", "cuts = pools"),
]


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> list[dict]:
    """The notebook's names before each cell, run unchanged."""
    return chapter.names_before_each_cell(CELLS, tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("right", "wrong"), MUTATIONS)
def test_a_check_cell_notices(states, right, wrong):
    chapter.assert_noticed(CELLS, states, right, wrong)
