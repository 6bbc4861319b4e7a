"""The loop, its loss and its pictures, on a network small enough to be quick."""

import copy
import json
import math
import multiprocessing
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from roadseg import runtime, training, unet
from roadseg.classes import VOID
from roadseg.recipes import RECIPES, Recipe, Stage

RECIPE = Recipe("test", (Stage(2, 32, 32), Stage(2, 32, 64)), None, batch_size=2)


class Scenes:
    """Seven random scenes with the interface of RoadScenes."""

    def __init__(self, count=7):
        g = torch.Generator().manual_seed(1)
        self.names = [f"Test_{i:06}.png" for i in range(count)]
        self.images = [
            tv_tensors.Image(torch.randint(0, 256, (3, 48, 64), generator=g).byte())
            for _ in self.names
        ]
        self.masks = [
            tv_tensors.Mask(i[0].mul(11).div(255).byte()) for i in self.images
        ]
        self.origin, self.real, self.transform = "seven random scenes", False, None

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        pair = self.images[i], self.masks[i]
        return self.transform(*pair) if self.transform else pair

    def with_transform(self, transform):
        twin = copy.copy(self)
        twin.transform = transform
        return twin


class Small(nn.Module):
    """An encoder, a decoder, batch normalisation and dropout in a few weights."""

    origin = "random"

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, 12, 1))

    def forward(self, x):
        return self.head(self.encoder(x))


def small(seed=0):
    torch.manual_seed(seed)
    return Small()


def fit(folder=None, recipe=RECIPE, stop_in=None, model=None, scenes=None, **more):
    def on_epoch(epoch, model):
        if epoch == stop_in:
            raise KeyboardInterrupt
        return {"score": epoch / 10}

    return training.fit(
        model or small(), scenes or Scenes(), recipe, folder, on_epoch=on_epoch, **more
    )


def same_weights(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == m and torch.equal(v, w) for (k, v), (m, w) in pairs)


# --- loss and augmentation ----------------------------------------------------


@pytest.mark.parametrize(
    "stage", {s for r in RECIPES.values() for s in r.stages}, ids=str
)
def test_image_and_mask_stay_on_one_grid(stage):
    # a ramp along each axis as image, and the same ramp as mask: where a transform
    # samples both at the same place, they agree to the last quantization step
    height, width = 360, 480
    transform = training.train_transform(replace(RECIPE, jitter=0.0), stage)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    offsets = []
    for seed in range(20):
        for ramp, size, out in ((y, height, stage.height), (x, width, stage.width)):
            step = 250 / (size - 1)
            mask = tv_tensors.Mask((ramp * step).round().byte())
            image = tv_tensors.Image((ramp * step).expand(3, -1, -1).float())
            runtime.seed_everything(seed)
            image, mask = transform(image, mask)
            inner = (slice(4, -4), slice(4, -4))  # bilinear borders repeat
            difference = (mask.float() - image[0])[inner].mean()
            slope = (image[0].amax() - image[0].amin()) / (out - 1)
            offsets.append((difference / slope).item())
    assert abs(sum(offsets) / len(offsets)) < 0.05, "in pixels of the output"
    # a crop that shrinks by an even factor has no pixel at the center: up to 1 / 8
    assert max(map(abs, offsets)) < 0.2


@pytest.mark.parametrize("power", [0.5, 0])
def test_void_is_out_of_the_loss_and_its_gradient(power):
    recipe = Recipe("test", RECIPE.stages, None, class_weights=power)
    loss = training.make_loss(recipe, [torch.arange(12)[None]])
    logits = torch.randn(1, 12, 2, 2, requires_grad=True)
    masks = torch.tensor([[[3, VOID], [8, VOID]]])
    whole = loss(logits, masks)
    whole.backward()
    assert (logits.grad[..., 1] == 0).all()
    assert (logits.grad[..., 0] != 0).any()
    torch.testing.assert_close(whole, loss(logits[..., :1], masks[..., :1]))


def test_void_does_not_count_as_right():
    logits = torch.zeros(1, 12, 1, 3)
    logits[0, 3, 0, :] = 1
    logits[0, VOID] = 9  # never predicted
    right, labelled = training.count_right(logits, torch.tensor([[[3, 5, VOID]]]))
    assert (right, labelled) == (1, 2)


def test_class_weights_by_hand():
    masks = [torch.tensor([[3] * 16 + [8] * 4 + [0] * 1 + [VOID] * 50])]
    weights = training.class_weights(masks)
    assert weights[[3, 8, 0]].tolist() == [0.5, 1, 2]  # roots of 4/16, 4/4, 4/1
    assert weights.sum() == 3.5
    assert training.class_weights(masks, 1)[[3, 8, 0]].tolist() == [0.25, 1, 4]
    assert training.class_weights(masks, 0).tolist() == [
        float(i in (0, 3, 8)) for i in range(12)
    ]


def test_augmentation_never_blends_labels():
    mask = torch.zeros(48, 64, dtype=torch.uint8)
    mask[:, ::2] = 8  # blending 0 and 8 would give 1 to 7
    pair = tv_tensors.Image(torch.zeros(3, 48, 64).byte()), tv_tensors.Mask(mask)
    transform = training.train_transform(RECIPE, Stage(1, 32, 64))
    torch.manual_seed(0)
    for _ in range(20):
        image, out = transform(*pair)
        assert image.shape == (3, 32, 64)
        assert set(out.unique().tolist()) <= {0, 8}


def test_augmentation_moves_picture_and_mask_together():
    steps = torch.arange(64).expand(48, 64) // 8  # eight upright bands
    image = tv_tensors.Image((steps * 30).byte()[None].expand(3, -1, -1))
    plain = Recipe("plain", (Stage(1, 32, 64),), None, jitter=0)
    transform = training.train_transform(plain, plain.stages[0])
    torch.manual_seed(0)
    for _ in range(10):
        x, y = transform(image, tv_tensors.Mask(steps.byte()))
        apart = (x[0].float() / 30 - y.float()).abs()
        assert apart.max() <= 1  # blended edges of the picture
        assert apart.mean() < 0.15


def test_encoder_learns_slower():
    groups = training.make_optimiser(small(), RECIPE).param_groups
    assert [g["lr"] for g in groups] == [RECIPE.lr_encoder, RECIPE.lr_decoder]
    assert [len(g["params"]) for g in groups] == [4, 2]


# --- the loop -----------------------------------------------------------------


def test_a_network_learns_and_comes_back_as_it_was():
    model = small()
    scenes = Scenes(4)
    for image, mask in zip(scenes.images, scenes.masks, strict=True):
        mask[:] = 3
        mask[:, :24] = 8  # mirrored it is another: both must move alike
        image[:] = mask * 20
    plain = Recipe("plain", (Stage(12, 32, 32),), None, batch_size=2, lr_decoder=3e-2)
    run = fit(recipe=plain, model=model, scenes=scenes)
    losses = [row["train_loss"] for row in run.history]
    assert losses[-1] < losses[0] / 3
    assert run.history[-1]["train_acc"] > 0.9
    assert run.model is model
    assert "forward" not in vars(model), "accelerate's wrapper is still on"
    assert run.history[0]["score"] == 0.1
    assert run.seconds > 0


def test_every_step_begins_without_old_gradients():
    class Clean(Small):
        steps = 0

        def forward(self, x):
            assert all(p.grad is None or not p.grad.any() for p in self.parameters())
            self.steps += 1
            return super().forward(x)

    model = Clean()
    fit(model=model)
    assert model.steps == 12


def test_sizes_follow_the_stages_and_the_schedule_ends():
    seen = []

    class Spy(Small):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return super().forward(x)

    run = fit(model=Spy())
    assert [(r["height"], r["width"]) for r in run.history] == [(32, 32)] * 2 + [
        (32, 64)
    ] * 2
    # seven scenes in twos: three steps, the seventh scene waits for a later epoch
    assert seen == [(2, 3, 32, 32)] * 6 + [(2, 3, 32, 64)] * 6


def test_fewer_scenes_than_a_batch_are_one_batch():
    assert len(fit(scenes=Scenes(1)).history) == 4


def test_no_scenes_is_an_error():
    with pytest.raises(ValueError, match="no scenes"):
        training.fit(small(), Scenes(0), RECIPE)


def test_number_formats_follow_each_other_in_one_process():
    bf16 = Recipe("bf16", RECIPE.stages, None, batch_size=2, precision="bf16")
    assert fit(recipe=bf16).precision == "bf16"
    assert fit().precision == "no"


def test_a_seed_repeats_and_another_does_not():
    other = Recipe("test", RECIPE.stages, None, batch_size=2, seed=1)
    a, b, c = fit().model, fit().model, fit(recipe=other).model
    assert same_weights(a, b)
    assert not same_weights(a, c)


def test_a_loss_that_is_not_finite_names_its_pictures(tmp_path):
    class Bad(Small):
        steps = 0

        def forward(self, x):
            self.steps += 1
            return super().forward(x) * (float("nan") if self.steps == 5 else 1)

    with pytest.raises(
        training.TrainingError, match=r"step 2 in epoch 2 is nan.*Test_"
    ):
        fit(tmp_path, model=Bad())
    assert [p.name for p in tmp_path.glob("epoch-*")] == ["epoch-001"]


def test_a_batch_of_void_alone_is_named():
    scenes = Scenes(4)
    scenes.masks[2][:] = VOID
    single = Recipe("single", RECIPE.stages, None, batch_size=1)
    with pytest.raises(training.TrainingError, match="is nan.*: Test_000002.png"):
        fit(recipe=single, scenes=scenes)


def test_a_class_missing_from_a_batch_does_no_harm():
    scenes = Scenes(4)
    for mask, label in zip(scenes.masks, (0, 3, 8, VOID - 1), strict=True):
        mask[:] = label
        mask[:, 40:] = VOID
    run = fit(recipe=replace(RECIPE, batch_size=1, crop=0.9), scenes=scenes)
    assert all(math.isfinite(row["train_loss"]) for row in run.history)
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_network_itself_trains_whatever_is_left_for_the_last_batch(count):
    recipe = Recipe("last", (Stage(1, 32, 64),), None, batch_size=2)
    run = training.fit(unet.UNet(), Scenes(count), recipe)
    assert math.isfinite(run.history[0]["train_loss"])


def test_memory_that_runs_out_suggests_a_batch_size():
    class Big(Small):
        def forward(self, x):
            raise torch.OutOfMemoryError

    with pytest.raises(training.TrainingError, match="batch_size=1"):
        fit(model=Big())


def test_log_is_a_report_of_the_history(capsys):
    run = fit()
    printed = capsys.readouterr().out
    assert printed.count("EPOCH") == 4
    assert "train_loss" in printed
    log = run.log
    assert capsys.readouterr().out == ""
    assert log.history("train_loss") == [r["train_loss"] for r in run.history]


# --- the course's own model ---------------------------------------------------


def test_trained_model_trains_once_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path))
    recipe = Recipe("tiny", (Stage(1, 32, 32),), None, batch_size=2)
    scenes = Scenes(2)
    first, facts = training.trained_model(scenes, unet.RANDOM, recipe, scenes)
    assert "training 1 epochs" in capsys.readouterr().out
    assert facts["data"] == "seven random scenes"
    assert facts["real_data"] is False
    assert json.loads(json.dumps(facts)) == facts
    again, more = training.trained_model(scenes, unet.RANDOM, recipe)
    assert capsys.readouterr().out == ""
    assert same_weights(first, again)
    assert more == facts
    assert not again.training
    masks = training.watched_masks(recipe)
    assert {n: list(m) for n, m in masks.items()} == {
        "Test_000000": [1],
        "Test_000001": [1],
    }
    assert masks["Test_000000"][1].shape == (48, 64)
    other = Recipe("tiny", (Stage(1, 32, 64),), None, batch_size=2)
    training.trained_model(scenes, unet.RANDOM, other)
    assert "is of another recipe" in capsys.readouterr().out
    assert training.watched_masks(other) == {}  # those were of the other network


def test_trained_model_knows_its_pictures_by_what_is_in_them(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path))
    recipe = Recipe("tiny", (Stage(1, 32, 32),), None, batch_size=2)
    scenes = Scenes(2)
    first, _ = training.trained_model(scenes, unet.RANDOM, recipe)
    scenes.origin = "the same, in another folder"
    again, _ = training.trained_model(scenes, unet.RANDOM, recipe)
    assert same_weights(first, again)
    assert capsys.readouterr().out.count("training 1 epochs") == 1
    scenes.masks[1] = tv_tensors.Mask(scenes.masks[1].flip(0))  # labelled anew
    other, _ = training.trained_model(scenes, unet.RANDOM, recipe)
    told = capsys.readouterr().out
    assert "other data" in told
    assert "training 1 epochs" in told
    assert not same_weights(first, other)


def test_processes_that_load_are_forked_on_linux(monkeypatch):
    assert training._context() is None, "a CPU has none"
    monkeypatch.setattr(training, "_workers", lambda: 2)
    monkeypatch.setattr(sys, "platform", "linux")
    assert training._context() == "fork"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert training._context() is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are not forked")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_load_take_many_pictures(monkeypatch):
    monkeypatch.setattr(training, "_workers", lambda: 1)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # Python 3.14's
    try:
        recipe = Recipe("tiny", (Stage(1, 32, 32),), None, batch_size=150)
        assert len(training.fit(small(), Scenes(150), recipe).history) == 1
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_a_damaged_network_is_taken_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path))
    recipe = Recipe("tiny", (Stage(1, 32, 32),), None, batch_size=2)
    scenes = Scenes(2)
    first, facts = training.trained_model(scenes, unet.RANDOM, recipe)
    path = tmp_path / "quick" / "tiny" / training.MODEL
    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(training._Trainer, "_epoch", None)  # nothing is trained
    again, more = training.trained_model(scenes, unet.RANDOM, recipe)
    assert "is of no use" in capsys.readouterr().out
    assert same_weights(first, again)
    assert more == facts
    assert same_weights(unet.load(path)[0], again)


def test_memory_that_runs_out_while_the_time_is_estimated_suggests_a_batch_size(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path))
    monkeypatch.setattr(training, "_timed_steps", refuse)
    recipe = Recipe("tiny", (Stage(1, 32, 32),), None, batch_size=2)
    with pytest.raises(training.TrainingError, match="batch_size=1"):
        training.trained_model(Scenes(2), unet.RANDOM, recipe)


@pytest.mark.parametrize(
    ("name", "launched", "chosen"),
    [("cuda:1", False, ["cuda:1"]), ("cuda:1", True, []), ("cuda", False, [])],
)
def test_the_gpu_that_is_asked_for_is_the_current_one(
    monkeypatch, name, launched, chosen
):
    found = []
    monkeypatch.setattr(runtime, "device", lambda: torch.device(name))
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: found.append(str(d)))
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    training._choose_gpu()
    assert found == chosen


def test_the_estimate_is_positive_and_changes_nothing():
    model = small()
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    assert training.estimate_seconds(model, RECIPE, 7) > 0
    assert torch.equal(torch.get_rng_state(), rng)
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])


def test_times_in_words():
    assert training.in_words(42.4) == "42 s"
    assert training.in_words(100) == "2 min"
    assert training.in_words(7500) == "2 h 05 min"
