"""The check cells of chapter 2 notice when the cells before them are wrong.

Each case changes one place in one cell, runs it and the cells after it up to a check
cell, and wants an AssertionError there.
"""

import contextlib
import io
import os
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "02_vgg16_bn_unet.ipynb"


def code_cells() -> list[str]:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return [c.source for c in cells if c.cell_type == "code" and c.source.strip()]


def slow(source: str) -> bool:
    """The trainings of section 7, what is made of them, and maps as figures."""
    marks = "= overfit(", "predicted[", "found", "summary(", "plots.feature_maps("
    return any(mark in source for mark in marks)


CELLS = [source for source in code_cells() if not slow(source)]


def execute(source: str, names: dict) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, "cell", "exec"), names)


def execute_all(sources: list[str], names: dict) -> None:
    for source in sources:
        execute(source, names)


@pytest.fixture(scope="module")
def after() -> list[dict]:
    """The notebook's names before each of the cells, run unchanged."""
    before = os.environ.get("ROADSEG_PROFILE")
    os.environ["ROADSEG_PROFILE"] = "quick"
    names: dict = {"__name__": "__main__"}
    states = []
    try:
        for source in CELLS:
            states.append(dict(names))
            execute(source, names)
        yield states
    finally:
        os.environ.pop("ROADSEG_PROFILE")
        if before is not None:
            os.environ["ROADSEG_PROFILE"] = before


def cell_with(text: str) -> int:
    found = [i for i, source in enumerate(CELLS) if text in source]
    assert len(found) == 1, f"{text!r} stands in {len(found)} cells, not in one"
    return found[0]


# What is right, what is made of it, and words of the check that must notice.
MUTATIONS = [
    # 1. from a label per picture to a label per pixel
    ("dense.weight[:, order]", "dense.weight", "ok: shuffled pixels"),
    ("dense.weight[:, :, None", "dense.weight.flip(0)[:, :, None", "ok: a 1 x 1"),
    ("logits.argmax(dim=1)", "logits.argmax(dim=2)", "ok: one label per pixel"),
    # 2. the stages and what they see
    ("isinstance(x, nn.MaxPool2d)]", "isinstance(x, nn.ReLU)]", "its only pooling"),
    ("*find_pools(features), len", "6, 13, 20, 27, 34, len", "its only pooling"),
    ("*find_pools(features), len", "*(p + 1 for p in find_pools(features)), len",
     "its only pooling"),
    ("field += 2 * jump", "field += 3 * jump", "ok: formula and gradient"),
    ("field + jump, 2 * jump", "field + jump, jump", "ok: formula and gradient"),
    ("F.avg_pool2d(x, 2)", "F.avg_pool2d(x, 3, stride=2)", "ok: formula and gradient"),
    # 3. blocks and steps
    ("        nn.BatchNorm2d(out_channels),\n", "", "ok: shapes, mean 0"),
    ("kernel_size=3, padding=1),\n        nn.B", "kernel_size=3),\n        nn.B",
     "ok: shapes, mean 0"),
    ("out_channels, 2, stride=2)", "out_channels, 3, stride=2)", "ok: shapes, mean 0"),
    ("dim=1)\nassert both.shape", "dim=2)\nassert both.shape", "torch.cat([u5, e5]"),
    ("head = nn.Conv2d(32, 21", "head = nn.Conv2d(32, 12", "ok: 3 x 96 x 128 in"),
    # 4. the whole network
    ("cat([up(x), skip], dim=1))  # d5", "cat([skip, up(x)], dim=1))  # d5",
     "ok: equal output"),
    ("self.encoder = nn.ModuleList(stages)", "self.encoder = stages", " names, "),
    ("self.encoder = nn.ModuleList(stages)",
     "self.encoder = nn.ModuleList(stages); self.features = features", " names, "),
    ("ours.load_state_dict(theirs.state_dict())",
     "ours = UNet(unet.vgg16_bn_features()).eval()", "ok: equal output"),
    ("storages = [", "storages = [0, 0] + [", "ok: each tensor once"),
    # 5. what flows
    ("outputs[part] = output", "outputs[part] = output[..., ::2]", "its own size"),
    ("values()) for name in names) // 2", "values()) for name in names)", "forgotten"),
    ("weigh = sum(", "weigh = 2 * sum(", "ok: nothing forgotten"),
    # 6. the pretrained encoder
    ("/ 255 - mean) / std", "/ 255 - std) / mean", "ok: normalise is the formula"),
    ("picture[None] / 255", "unet.normalise(picture)[None]", "says something else"),
    ("loaded = unet.UNet(encoder_weights=file)", "loaded = unet.UNet()", "ok: float16"),
    # 7. what the skips do
    ("smallest = -F.max_pool2d(-y", "smallest = F.max_pool2d(y", "tiny = torch"),
    ("skip = torch.zeros_like(skip)", "pass", "ok: all skips is the U-Net"),
    ("cat([up(x), skip], dim=1))\n    return model", "cat([skip, up(x)], dim=1))"
     "\n    return model", "ok: all skips is"),
    ("predicted != masks, masks", "predicted == masks, masks", "edge == inside == 0"),
    # 8. sizes and cuts
    ('mode="replicate"', 'mode="constant"', "ok: padded by"),
    ("with_cuts([6, 13, 20, 27, 34])", "with_cuts(pools)", "[*wrong.state_dict()]"),
    ('"MaxPool2d" in kinds[1:]', '"MaxPool2d" in kinds', "[*faults(right.encoder)]"),
    # exercises
    ("return 9 * i * o + 3 * o", "return 9 * i * o + o", "parameters outside"),
    ("return 4 * i * o + o", "return 9 * i * o + o", "parameters outside"),
    ("out_channels, kernel_size=1),\n        nn.ReLU",
     "out_channels, kernel_size=3, padding=1),\n        nn.ReLU", "parameters fewer"),
    ("cuts = [6, 13, third, 33, 43]", "cuts = pools", "right by accident"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "check"), MUTATIONS)
def test_a_check_cell_notices(after, right, wrong, check):
    first = cell_with(right)
    last = cell_with(check)
    names = dict(after[first])
    mutated = CELLS[first].replace(right, wrong)
    with pytest.raises(AssertionError):
        execute_all([mutated, *CELLS[first + 1 : last + 1]], names)


def test_unchanged_cells_pass(after):
    assert len(after) == len(CELLS)
