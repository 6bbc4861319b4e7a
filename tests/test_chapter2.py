"""The check cells of chapter 2 notice when the cells before them are wrong."""

import pytest

import chapter

CELLS = chapter.code_cells("02_vgg16_bn_unet.ipynb")

# what is right, and what is put in its place
MUTATIONS = [
    ("dense.weight[:, order]", "dense.weight"),
    ("dense.weight[:, :, None", "dense.weight.flip(0)[:, :, None"),
    ("logits[:, :VOID].argmax(dim=1)  # (1", "logits.argmax(dim=0)  # (1"),
    ("cut_at(features, pools)\nlater", "cut_at(features, [6, 13, 20, 27, 34])\nlater"),
    (
        "cut_at(features, pools)\nlater",
        "cut_at(features, [p + 1 for p in pools])\nlater",
    ),
    ("field += 2 * jump", "field += 3 * jump"),
    ("field + jump, 2 * jump", "field + jump, jump"),
    ("F.avg_pool2d(x, 2)", "F.avg_pool2d(x, 3, stride=2)"),
    ("kernel_size=3, padding=1),\n        nn.B", "kernel_size=3),\n        nn.B"),
    ("out_channels, 2, stride=2)", "out_channels, 3, stride=2)"),
    ("dim=1)\nassert both.shape == (2, 1024", "dim=2)\nassert both.shape == (2, 1024"),
    ("torch.cat([u4, e4], dim=1)", "torch.cat([u4, u4], dim=1)"),
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
    ("output.numel() * layer.weight[0].numel()", "output.numel() * layer.in_channels"),
    ("row[0] += count(layer)", "row[0] += 2 * count(layer)"),
    ("with_cuts([6, 13, 20, 27, 34])", "with_cuts(pools)"),
    ('"MaxPool2d" in kinds[1:]', '"MaxPool2d" in kinds'),
    ("4 * i * o + o + 9 *", "4 * i * o + 9 *"),
    ("cuts = [6, 13, third, 33, 43]", "cuts = pools"),
]


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> list[dict]:
    """The notebook's names before each cell, run unchanged."""
    return chapter.names_before_each_cell(CELLS, tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("right", "wrong"), MUTATIONS)
def test_a_check_cell_notices(states, right, wrong):
    chapter.assert_noticed(CELLS, states, right, wrong)


def test_without_the_trained_network_the_chapter_says_so(
    tmp_path_factory, monkeypatch, capsys
):
    """The cell that loads the networks runs, and explains what will look different."""
    from roadseg import runtime, weights

    monkeypatch.setattr(weights, "PRETRAINED", weights.PRETRAINED / "missing")
    runtime.configure(
        profile="quick", device="cpu", data_dir=tmp_path_factory.mktemp("data")
    )
    load = CELLS.index(chapter.cell_with(CELLS, "except WeightsError"))
    names = chapter.run(CELLS[: load + 1])
    assert names["saved"] is None
    assert "no trained network" in capsys.readouterr().out
