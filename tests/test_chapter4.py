"""The check cells of chapter 4 fail when what they check is broken.

The network is replaced by one of two layers, so that whole sections run in seconds.
"""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

import chapter
from roadseg import dataset1, plots, runtime, unet

CELLS = chapter.code_cells("04_training.ipynb")


class Small(nn.Module):
    """The U-Net's interface in a few weights."""

    def __init__(self, num_classes=12, encoder_weights=None):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.head = nn.Conv2d(24, num_classes, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


def between(first: str, last: str) -> list[str]:
    """Return the cells from one that contains a text to one that contains another."""
    start = CELLS.index(chapter.cell_with(CELLS, first))
    return CELLS[start : CELLS.index(chapter.cell_with(CELLS, last)) + 1]


SETUP = between("import contextlib", "plots.use_style()")
DATA = [
    chapter.cell_with(CELLS, "start = unet.UNet("),
]
BY_HAND = SETUP + between("logits = torch.tensor(", "w = weight[mask")
OVERFIT = SETUP + DATA + between("resize = recipes.", "assert min(fault_2) > bound")
FIT = [
    *SETUP,
    *DATA,
    chapter.cell_with(CELLS, "resize = recipes."),
    *between("evenly = torch", "def losses_of"),
]
RESUME = FIT + between("resume_recipe =", "tensors of the two networks agree")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Synthetic scenes, (train, test), small enough to be drawn at once."""
    profile = replace(runtime.PROFILES["quick"], synthetic_size=(48, 64))
    runtime.configure(profile="quick", data_dir=tmp_path_factory.mktemp("data"))
    return dataset1.load(profile)


@pytest.fixture(autouse=True)
def small_world(monkeypatch, scenes):
    steps = replace(runtime.PROFILES["quick"], demo_steps=48)
    monkeypatch.setitem(runtime.PROFILES, "quick", steps)
    monkeypatch.setattr(unet, "UNet", Small)
    monkeypatch.setattr(dataset1, "load", lambda: scenes)
    monkeypatch.setattr(
        plots, "show", lambda fig, alt, jpeg=False, **live: plots.plt.close(fig)
    )


def assert_caught(cells: list[str], right: str, wrong: str) -> None:
    with pytest.raises(AssertionError):
        chapter.run(chapter.with_slip(cells, right, wrong))


def test_the_loss_by_hand_is_that_of_the_chapter():
    names = chapter.run(BY_HAND)
    assert np.isclose(names["losses"][1, 0].item(), 1.8620, atol=1e-4)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("losses[row, col] = -p[t].log()", "losses[row, col] = 1 - p[t]"),
        ("p = z.exp() / z.exp().sum()", "p = z.exp() / 3"),
        ("losses.flatten()[:3].mean()", "losses.mean()"),
        ("[[[0, 1], [2, VOID]]]", "[[[0, 1], [VOID, 2]]]"),
        ("/ w.sum()", "/ w.numel()"),
    ],
)
def test_a_slip_in_the_loss_by_hand_is_caught(right, wrong):
    assert_caught(BY_HAND, right, wrong)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stranger = torch.optim.Adam(start.", "stranger = torch.optim.Adam(patient."),
        ("lr=1.0", "lr=1e-2"),
        ("        optimizer.step()\n        optimizer.zero_grad()\n        losses",
         "        optimizer.zero_grad()\n        losses"),
    ],
)  # fmt: skip
def test_a_fault_that_is_none_is_caught(right, wrong):
    owned = chapter.cell_with(CELLS, "owned = {id(p)")
    assert_caught([*OVERFIT, owned], right, wrong)


def test_the_lower_bound_of_a_double_softmax_is_the_right_one():
    names = chapter.run(OVERFIT)
    assert names["healthy"][-1] < names["healthy"][0] / 2
    assert names["bound"] == pytest.approx(np.log(np.e + 11) - 1)


def test_the_readers_loop_trains_to_the_same_losses():
    names = chapter.run(FIT)
    assert len(names["my_history"]) == len(names["theirs"].history) == 4


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("        scheduler.step()\n        losses.append(loss.detach())",
         "        losses.append(loss.detach())"),
        ("        optimizer.step()\n        optimizer.zero_grad()\n        scheduler",
         "        optimizer.step()\n        scheduler"),
        ("x = normalize(images.to(device))", "x = images.to(device) / 255"),
    ],
)  # fmt: skip
def test_a_slip_in_the_readers_loop_is_caught(right, wrong):
    assert_caught(FIT, right, wrong)


def test_a_resumed_training_equals_an_uninterrupted_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    chapter.run(RESUME)


def test_resuming_with_other_weights_is_caught():
    with pytest.raises(AssertionError):
        chapter.run(
            chapter.with_slip(
                RESUME,
                "a, b = whole.model.state_dict(), resumed",
                "a, b = Toy(0.2).state_dict(), resumed",
            )
        )


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("void_only = torch.full((1, 4, 4), VOID)", "void_only = anything"),
        ("/ chunks).backward()", ").backward()"),
    ],
)
def test_the_solutions_check_themselves(right, wrong):
    cells = FIT + ["void_out = nn.CrossEntropyLoss(ignore_index=VOID)"]
    cells += between("flat = torch.zeros(1, 12, 4, 4)", "def gradient(net")
    chapter.run(cells)
    assert_caught(cells, right, wrong)


# base, row, verdict, with a gap of 0.01
JUDGED = [
    ([0.50, 0.51], [0.55, 0.56], "better"),
    ([0.50, 0.51], [0.45, 0.46], "worse"),
    ([0.50, 0.51], [0.52, 0.53], "noise"),  # apart, but too close
    ([0.50, 0.51], [0.49, 0.62], "noise"),  # far, but one seed says otherwise
    ([0.50, 0.51], [0.55, 0.56, 0.57], "better"),  # a third seed
]


@pytest.mark.parametrize(("base", "row", "word"), JUDGED)
def test_a_row_is_judged_by_its_seeds(base, row, word):
    verdict = chapter.run([*SETUP, chapter.cell_with(CELLS, "def verdict")])["verdict"]
    assert verdict(row, base, 0.01) == word


def test_luck_alone_hardly_passes_the_rule():
    cells = [chapter.cell_with(CELLS, "def verdict")]
    cells.append(chapter.cell_with(CELLS, "typical = median("))
    found = chapter.run([*SETUP, *cells])["found"]
    assert len(found) == 1000
    assert 0 < 1000 - found.count("noise") < 20


def ablation_of(tmp_path, monkeypatch, text: str | None) -> dict:
    """Run the cells that read and draw the study on a made-up file."""
    folder = tmp_path / "benchmark" / "results"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "ablation.csv").write_text(text)
    monkeypatch.setattr(runtime, "repo_root", lambda: tmp_path)
    cells = [chapter.cell_with(CELLS, x) for x in ("def verdict", '"ablation.csv"')]
    return chapter.run(SETUP + cells + [chapter.cell_with(CELLS, "ax.axvspan(")])


def test_the_study_is_judged_and_incomplete_rows_are_left_out(
    tmp_path, monkeypatch, capsys
):
    lines = ["row,seed,miou,cpu_seconds"]
    for row, values in {
        "baseline": (0.50, 0.51),
        "no skips": (0.30, 0.31),
        "fp32, at equal time": (0.505, 0.515),
        "unfinished": (0.9,),
    }.items():
        lines += [f'"{row}",{i},{v},100' for i, v in enumerate(values)]
    names = ablation_of(tmp_path, monkeypatch, "\n".join(lines))
    assert names["judged"] == {"no skips": "worse", "fp32, at equal time": "noise"}
    assert "worse: no skips (-0.200)" in capsys.readouterr().out


def test_without_measurements_the_command_is_printed(tmp_path, monkeypatch, capsys):
    ablation_of(tmp_path, monkeypatch, None)
    assert "python benchmark/ablate.py" in capsys.readouterr().out


def test_a_slip_in_early_stopping_is_caught():
    curve = "curve = [{'val_miou': x} for x in (0.1, 0.2, 0.15)]"
    cells = [curve, chapter.cell_with(CELLS, "def stop_epoch")]
    assert chapter.run(cells)["stop"] == 3
    assert_caught(cells, ">= patience", "> patience")
