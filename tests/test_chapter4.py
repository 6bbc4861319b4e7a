"""The check cells of chapter 4 fail when what they check is broken.

The network is replaced by one of two layers, so that whole sections run in seconds.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import chapter
from roadseg import dataset1, plots, runtime, training, unet

NOTEBOOK = "04_training.ipynb"
CELLS = chapter.code_cells(NOTEBOOK)


class Small(nn.Module):
    """The U-Net's interface in a few weights."""

    origin = unet.RANDOM.origin

    def __init__(self, encoder_weights=None):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.head = nn.Conv2d(24, 12, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


def between(first: str | None, last: str) -> list[str]:
    """Return the cells from one that holds a text to one that holds another."""
    start = CELLS.index(chapter.cell_with(CELLS, first)) if first else 0
    return CELLS[start : CELLS.index(chapter.cell_with(CELLS, last)) + 1]


SETUP = between(None, "plots.use_style()")
BY_HAND = SETUP + between("logits = torch.tensor(", "w = weight[mask")
DATA = [chapter.cell_with(CELLS, "train, test = dataset1.load()")]
OVERFIT = SETUP + DATA + between("size = profile.demo_size", "max(fault_3[1:])")
LOOP = [
    *SETUP,
    *DATA,
    *between("size = profile.demo_size", "void_out, 2 * profile.demo_steps)"),
    *between("rest, held =", 'print(f"{steps} steps in'),
]
EXPERIMENT = LOOP + between("class Variant:", "again = run(")
TOY = [
    *between("class Toy(", "toy_recipe ="),
    *between("whole = training.fit", "tensors of the two networks agree"),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Drawn scenes, (train, test), small enough to be drawn at once."""
    profile = runtime.PROFILES["quick"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROADSEG_DATA", str(tmp_path_factory.mktemp("data")))
        return dataset1.load(replace(profile, drawn_size=(48, 64)))


@pytest.fixture(autouse=True)
def small_world(monkeypatch, scenes):
    steps = replace(runtime.PROFILES["quick"], demo_steps=48)
    monkeypatch.setitem(runtime.PROFILES, "quick", steps)
    monkeypatch.setattr(unet, "UNet", Small)
    monkeypatch.setattr(dataset1, "load", lambda: scenes)
    monkeypatch.setattr(
        plots, "show", lambda fig, alt, photo=False, **live: plots.plt.close(fig)
    )


def assert_caught(cells: list[str], right: str, wrong: str) -> None:
    with pytest.raises(AssertionError):
        chapter.run(chapter.with_slip(cells, right, wrong))


def test_the_loss_by_hand_passes_as_it_stands(capsys):
    names = chapter.run(BY_HAND)
    assert np.isclose(names["losses"][1, 0].item(), 1.8620, atol=1e-4)
    assert "ok" not in capsys.readouterr().err


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


def test_the_class_weights_are_checked(monkeypatch):
    cells = SETUP + DATA + between("class_weight = training", "ratio = class_weight")
    chapter.run(cells)
    unrooted = training.class_weights
    monkeypatch.setattr(training, "class_weights", lambda m: unrooted(m) ** 2)
    with pytest.raises(AssertionError):
        chapter.run(cells)


def test_the_faults_are_faults():
    names = chapter.run(OVERFIT)
    assert names["healthy"][-1] < names["healthy"][0] / 2


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stranger = torch.optim.Adam(start.", "stranger = torch.optim.Adam(patient."),
        ("lr=1.0", "lr=1e-2"),
        (
            "        optimiser.step()\n        optimiser.zero_grad()\n        losses",
            "x",
        ),
    ],
)
def test_a_fault_that_is_none_is_caught(right, wrong):
    if wrong == "x":  # the step itself is left out
        wrong = right.replace("optimiser.step()", "pass")
    assert_caught(OVERFIT, right, wrong)


def test_the_floor_of_a_double_softmax_is_the_right_one():
    floor = chapter.cell_with(CELLS, "floor = nn.CrossEntropyLoss()(best")
    names = chapter.run([*SETUP, "fault_2 = [1.7]", floor])
    assert names["floor"] == pytest.approx(np.log(np.e + 11) - 1)
    with pytest.raises(AssertionError):
        chapter.run([*SETUP, "fault_2 = [1.6]", floor])


def test_the_loop_passes_as_it_stands():
    names = chapter.run(LOOP)
    assert names["losses"][-1] < names["losses"][0]


def test_the_validation_loss_is_that_of_all_pixels_at_once():
    five_in_fours = (
        "held = train.subset(range(5))\n"
        "val_loader = DataLoader(held.with_transform(resize), 4)\n"
        "val_loss, _ = validate(model, criterion)"
    )
    names = chapter.run([*LOOP, five_in_fours])
    pairs = [names["resize"](*pair) for pair in names["held"]]
    images, masks = (torch.stack(list(part)) for part in zip(*pairs, strict=True))
    model, criterion = names["model"], names["criterion"]
    at_once, _ = names["validate_batch"](model, images, masks, criterion)
    assert names["val_loss"] == pytest.approx(at_once.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("rest, held = dataset1.split_by_block(train)", "rest, held = train, train"),
        ("logits[:, :NUM_SCORED].argmax(1)  # never", "logits[:, 1:].argmax(1)  #"),
        ("    loss.backward()\n    optimiser.step()\n", "    loss.backward()\n"),
    ],
)
def test_a_slip_in_the_loop_is_caught(right, wrong):
    assert_caught(LOOP, right, wrong)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("scenes, batch_size, shuffle=True)", "scenes, batch_size)"),
        ("    runtime.seed_everything(v.seed)\n", ""),
        ("-100 if v.void else VOID", "VOID"),
        ("model = copy.deepcopy(begin)", "model = unet.UNet().to(device)"),
    ],
)
def test_an_experiment_that_is_another_loop_is_caught(right, wrong):
    assert_caught(EXPERIMENT, right, wrong)


def test_all_variants_learn_and_differ_in_what_they_say():
    cells = EXPERIMENT + between("base = Variant(", "noise = spread_of(")
    cells += [chapter.cell_with(CELLS, "for name, r in results.items():\n    assert")]
    names = chapter.run(cells)
    results = names["results"]
    assert len(results["fast, 3 x steps"].losses) == 3 * names["steps"]
    assert results["16-bit"].losses != results["16-bit, seed 1"].losses
    assert results["16-bit"].losses != results["+ growing size"].losses
    assert results["+ class weights"].losses != results["+ void left out"].losses
    with pytest.raises(AssertionError):
        chapter.run([*cells[:-1], "results['16-bit'].losses.reverse()", cells[-1]])


def toy_start() -> list[str]:
    return [*SETUP, *DATA, "small_set = train"]


def test_the_toy_resumes_exactly():
    cells = toy_start() + TOY
    assert "stopped after 2 of 4 epochs" in chapter.run(cells)["message"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "runtime.seed_everything(0)\n    return Toy()",
            "torch.seed()\n    return Toy()",
        ),
        ("if epoch == 3", "if epoch == 30"),
        (
            "resumed = training.fit(toy(), small_set, toy_recipe, folder.name)",
            "resumed = training.fit(toy(), small_set, replace(toy_recipe, seed=1))",
        ),
    ],
)
def test_another_training_is_caught(right, wrong):
    with pytest.raises((AssertionError, NameError)):
        chapter.run(chapter.with_slip(toy_start() + TOY, right, wrong))


def test_a_checkpoint_without_the_optimiser_is_caught(monkeypatch):
    load = training.Checkpoints.load

    def forgetful(self, accelerator):
        moments = [o.state_dict() for o in accelerator._optimizers]
        position = load(self, accelerator)
        for optimiser, state in zip(accelerator._optimizers, moments, strict=True):
            optimiser.load_state_dict(state)
        return position

    monkeypatch.setattr(training.Checkpoints, "load", forgetful)
    with pytest.raises(AssertionError):
        chapter.run(toy_start() + TOY)


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("ignorant =", "torch.zeros(1, 12, 4, 4)", "torch.zeros(1, 11, 4, 4)"),
        ("void_only =", "(1, 4, 4), VOID", "(1, 4, 4), 0"),
    ],
)
def test_the_exercises_check_themselves(key, right, wrong):
    solution = chapter.cell_with(CELLS, key)
    start = [
        *SETUP,
        "void_out = nn.CrossEntropyLoss(ignore_index=VOID)",
        chapter.cell_with(CELLS, "ignorant ="),
    ]
    chapter.run([*start, solution])
    assert right in solution
    with pytest.raises(AssertionError):
        chapter.run([*start, solution.replace(right, wrong)])


def test_batch_normalisation_sees_the_difference_of_batches():
    toy = between("class Toy(", "toy_recipe =")
    cells = [*SETUP, *toy, chapter.cell_with(CELLS, "def gradient(")]
    cells += [chapter.cell_with(CELLS, "# in eval mode")]
    chapter.run(cells)
    for right, wrong in (("/ chunks)", "/ 1)"), ("net.train(mode)", "net.eval()")):
        slipped = chapter.with_slip(cells, right, wrong)
        if wrong == "net.eval()":  # then the last cell must put it into train mode
            slipped[-1] = slipped[-1].replace("net.train()", "net.eval()")
        with pytest.raises(AssertionError):
            chapter.run(slipped)


def test_a_damaged_checkpoint_does_no_harm(capsys):
    cells = toy_start() + TOY + [chapter.cell_with(CELLS, "mended = training.fit")]
    check = chapter.cell_with(CELLS, "ok: the damaged checkpoint")
    chapter.run([*cells, check])
    assert "is damaged" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        chapter.run([*cells, "c = None; mended.model.head[1].bias.data += 1", check])


def test_kinds_of_operators_are_told_apart():
    kind_of = chapter.run([chapter.cell_with(CELLS, "def kind_of")])["kind_of"]
    assert kind_of("aten::convolution_backward") == "convolution"
    assert kind_of("aten::native_batch_norm") == "batch normalisation"
    assert kind_of("aten::_fused_adam_") == "optimiser"
    assert kind_of("aten::mystery") == "everything else"
