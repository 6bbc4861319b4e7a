"""The training loop, on a network small enough to be quick."""

import contextlib
import copy
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from roadseg import distributed, loading, recipes, runtime, training, unet
from roadseg.classes import CAMVID, LabelSet
from roadseg.recipes import Phase, Recipe

RECIPE = Recipe("test", (Phase(2, 32, 32), Phase(2, 32, 64)), None, batch_size=2)
ONE = replace(RECIPE, phases=(Phase(1, 32, 32),))
IGNORED = CAMVID.ignore_index


class Scenes:
    """Seven random scenes with the interface of RoadScenes."""

    def __init__(self, count=7, labels=CAMVID):
        g = torch.Generator().manual_seed(1)
        self.filenames = [f"Test_{i:06}.png" for i in range(count)]
        self.images = [
            tv_tensors.Image(torch.randint(0, 256, (3, 48, 64), generator=g).byte())
            for _ in self.filenames
        ]
        most = labels.num_classes - 1
        self.masks = [tv_tensors.Mask(i[0].mul(most / 255).byte()) for i in self.images]
        self.description, self.is_real = "seven random scenes", False
        self.labels, self.transform = labels, None

    def __len__(self):
        return len(self.filenames)

    def __getitem__(self, i):
        pair = self.images[i], self.masks[i]
        return self.transform(*pair) if self.transform else pair

    def with_transform(self, transform):
        twin = copy.copy(self)
        twin.transform = transform
        return twin


class Small(nn.Module):
    """An encoder, a decoder, batch normalization and dropout in a few weights."""

    def __init__(self, num_classes=12):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, num_classes, 1))

    def forward(self, x):
        return self.head(self.encoder(x))


def small(seed=0, num_classes=12):
    torch.manual_seed(seed)
    return Small(num_classes)


def fit(folder=None, recipe=RECIPE, stop_in=None, model=None, scenes=None, **more):
    def on_epoch(epoch, model):
        if epoch == stop_in:
            raise KeyboardInterrupt
        return {"score": epoch / 10}

    return training.fit(
        model or small(),
        Scenes() if scenes is None else scenes,
        recipe,
        folder=folder,
        on_epoch=on_epoch,
        **more,
    )


def same_weights(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == m and torch.equal(v, w) for (k, v), (m, w) in pairs)


def scores(history):
    """Return a history without its times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


# --- the loop -----------------------------------------------------------------


def test_a_network_learns_and_comes_back_as_it_was():
    model = small()
    four = Scenes(4)
    for image, mask in zip(four.images, four.masks, strict=True):
        mask[:] = 3
        mask[:, :24] = 8  # mirrored it is another: both must move alike
        image[:] = mask * 20
    plain = replace(RECIPE, phases=(Phase(12, 32, 32),), lr_decoder=3e-2)
    result = fit(recipe=plain, model=model, scenes=four)
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < losses[0] / 3
    assert result.history[-1]["train_acc"] > 0.9
    assert result.model is model
    assert result.history[0]["score"] == 0.1
    assert result.seconds > 0
    assert result.averaged is None
    assert json.loads(json.dumps(result.history)) == result.history


@pytest.mark.parametrize("stop_in", [None, 1])
def test_the_wrapper_of_mixed_precision_comes_off_also_after_an_error(stop_in):
    model = small()
    with contextlib.suppress(training.TrainingInterrupted):
        fit(model=model, stop_in=stop_in, recipe=replace(ONE, precision="bf16"))
    assert model.forward.__func__ is Small.forward


@pytest.mark.parametrize("first", ["fp32", "bf16"])
def test_a_network_is_trained_again_in_mixed_precision(first):
    found = []

    class Spy(Small):
        def forward(self, x):
            y = super().forward(x)
            found.append(y.dtype)
            return y

    model = Spy()
    for precision in (first, "bf16"):
        fit(model=model, recipe=replace(ONE, precision=precision))
    assert found[-1] == torch.bfloat16


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


def test_sizes_follow_the_phases():
    seen = []

    class Spy(Small):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return super().forward(x)

    result = fit(model=Spy())
    sizes = [(r["height"], r["width"]) for r in result.history]
    assert sizes == [(32, 32)] * 2 + [(32, 64)] * 2
    # seven scenes in twos: three steps, the seventh scene waits for a later epoch
    assert seen == [(2, 3, 32, 32)] * 6 + [(2, 3, 32, 64)] * 6


def test_each_epoch_has_its_own_order():
    batches = []

    class Spy(Small):
        def forward(self, x):
            batches.append(tuple(x.mean((1, 2, 3)).tolist()))
            return super().forward(x)

    recipe = replace(RECIPE, phases=(Phase(4, 32, 32),))
    fit(model=Spy(), scenes=Scenes(6), recipe=recipe, transform=v2.Resize((32, 32)))
    epochs = [sum(batches[i : i + 3], ()) for i in range(0, 12, 3)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1, "the same images"
    assert len(set(epochs)) == 4


def test_precisions_follow_each_other_in_one_process():
    bf16 = replace(ONE, precision="bf16")
    assert fit(recipe=bf16).precision == "bf16"
    assert fit(recipe=ONE).precision == "fp32"


def test_a_seed_repeats_and_another_does_not():
    a, b, c = fit().model, fit().model, fit(recipe=replace(RECIPE, seed=1)).model
    assert same_weights(a, b)
    assert not same_weights(a, c)


def test_a_loss_that_is_not_finite_names_its_images(tmp_path):
    class Bad(Small):
        steps = 0

        def forward(self, x):
            self.steps += 1
            return super().forward(x) * (float("nan") if self.steps == 5 else 1)

    with pytest.raises(
        training.TrainingError,
        match=r"step 2 in epoch 2 is nan; its images: Test_\d+.png, Test_\d+.png",
    ):
        fit(tmp_path, model=Bad())
    assert [p.name for p in tmp_path.glob("epoch-*")] == ["epoch-001"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_unet_itself_trains_whatever_is_left_for_the_last_batch(count):
    recipe = replace(ONE, phases=(Phase(1, 32, 64),))
    result = training.fit(unet.UNet(), Scenes(count), recipe)
    assert math.isfinite(result.history[0]["train_loss"])


def test_out_of_memory_suggests_a_batch_size():
    class Big(Small):
        def forward(self, x):
            raise torch.OutOfMemoryError

    with pytest.raises(training.TrainingError, match="batch_size=1"):
        fit(model=Big())


def test_a_line_for_each_epoch(tmp_path, capsys):
    with pytest.raises(training.TrainingInterrupted):
        fit(tmp_path, stop_in=3)
    begun = capsys.readouterr().out.splitlines()
    fit(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    wanted = (
        r"epoch {}/4  32 x {}  loss \d\.\d{{3}}  acc 0\.\d{{3}}  score 0\.{}00  \d+ s"
    )
    for i, line in enumerate(lines, 1):
        left = "" if i in (1, 2, 4) else r"  \(about \d+ s left\)"
        assert re.fullmatch(wanted.format(i, 32 if i < 3 else 64, i) + left, line)
    assert len(lines) == 4, "epochs before the interruption are listed again"
    assert [x.split("  (")[0] for x in begun] == lines[:2]


def test_the_time_that_is_left_follows_the_size_of_the_images(capsys, monkeypatch):
    """Epochs to come may have larger images than those that were timed."""
    clock = iter(range(0, 10_000, 60))  # every epoch takes 60 s
    timer = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(training, "time", timer)
    fit(recipe=replace(RECIPE, phases=(Phase(1, 32, 32), Phase(2, 64, 64))))
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("(about 8 min left)")  # two epochs of four times the pixels


# --- pixels without a label ---------------------------------------------------

CRITERIA = {
    "the recipe's": None,
    "cross-entropy": nn.CrossEntropyLoss(ignore_index=IGNORED),
}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_a_batch_without_labels_contributes_nothing(criterion):
    """Cross-entropy over no pixels is 0 / 0, in the loss and in all gradients."""
    gradients, four = [], Scenes(4)
    four.masks[2][:] = IGNORED

    class Watched(torch.optim.SGD):
        def step(self, *args, **more):
            grads = [p.grad for g in self.param_groups for p in g["params"]]
            gradients.append(max(g.abs().max().item() for g in grads))
            return super().step(*args, **more)

    result = fit(
        recipe=replace(ONE, batch_size=1),
        scenes=four,
        criterion=criterion,
        optimizer=lambda model, recipe: Watched(model.parameters(), lr=1e-3),
    )
    assert sorted(g == 0 for g in gradients) == [False, False, False, True]
    # of random logits, about the logarithm of the number of classes: no zero in it
    assert result.history[0]["train_loss"] > 2
    assert 0 < result.history[0]["train_acc"] < 1
    assert all(p.isfinite().all() for p in result.model.parameters())


@pytest.mark.parametrize("ignore_index", [11, 255, 0])
def test_scenes_without_any_label_are_refused_by_name(ignore_index):
    labels = replace(CAMVID, ignore_index=ignore_index)
    empty = Scenes(3, labels)
    for mask in empty.masks:
        mask[:] = ignore_index
    model = small()
    before = copy.deepcopy(model)
    with pytest.raises(
        training.TrainingError,
        match=rf"seven random scenes: none of the 3 masks .*\(id {ignore_index}\)",
    ):
        fit(scenes=empty, model=model)
    assert same_weights(model, before)
    empty.masks[2][5, 7] = 4  # one labeled pixel is enough
    assert loading.first_label(empty) == 4
    with pytest.raises(training.TrainingError, match="there are no scenes"):
        fit(scenes=Scenes(0))


def test_ignored_pixels_are_not_counted_as_correct():
    logits = torch.zeros(1, 12, 1, 3)
    logits[0, 3, 0, :] = 1
    logits[0, IGNORED] = 9  # never predicted
    correct, labeled = training.count_correct(logits, torch.tensor([[[3, 5, IGNORED]]]))
    assert (correct, labeled) == (1, 2)


@pytest.mark.parametrize(("ignored", "counted"), [(0, 2), (1, 2), (255, 3)])
def test_correct_pixels_with_any_ignored_id(ignored, counted):
    labels = LabelSet(("a", "b", "c"), ignore_index=ignored)
    masks = torch.tensor([[[0, 1, 2]]])
    logits = torch.eye(3)[None, :, None]  # (1, 3, 1, 3): each pixel its own class
    correct, labeled = training.count_correct(logits, masks, labels)
    assert (correct, labeled) == (counted, counted)
    logits[:, ignored % 255] += 5  # the ignored class is never predicted
    if ignored < 3:
        assert training.count_correct(logits, masks, labels)[0] == counted


# --- other models, losses, data -----------------------------------------------


def plain_model(num_classes=12):
    """A network that has no `encoder`."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1)
    )


@pytest.mark.parametrize("num_classes", [2, 150])
def test_any_module_trains_on_any_classes(num_classes):
    labels = LabelSet(tuple(f"class {i}" for i in range(num_classes)))
    result = fit(model=plain_model(num_classes), scenes=Scenes(4, labels))
    assert len(result.history) == 4
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


class Pairs(torch.utils.data.Dataset):
    """Images and masks without names, files, or anything else."""

    def __init__(self, scenes):
        self.pairs = [
            (torch.Tensor(i.float() / 255), torch.Tensor(m).long())
            for i, m in (scenes[k] for k in range(len(scenes)))
        ]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


def test_any_dataset_of_pairs_is_enough(tmp_path):
    pairs = Pairs(Scenes())
    first = fit(tmp_path, scenes=pairs)
    again = fit(tmp_path, scenes=pairs, model=small(5))
    assert same_weights(first.model, again.model)
    pairs.pairs.reverse()
    with pytest.raises(training.TrainingError, match="data_fingerprint was"):
        fit(tmp_path, scenes=pairs)
    with pytest.raises(training.TrainingError, match="images: number [0-6]"):
        fit(scenes=pairs, criterion=lambda logits, masks: logits.mean() * torch.nan)


def test_the_parts_that_are_given_are_used():
    seen = {"masks": []}

    def criterion(logits, masks):
        seen["masks"].append((tuple(masks.shape), masks.dtype))
        return nn.functional.cross_entropy(logits, masks, ignore_index=IGNORED)

    def optimizer(model, recipe):
        seen["model"], seen["recipe"] = model, recipe
        return torch.optim.SGD(model.parameters(), lr=0.5)

    def scheduler(optimizer, recipe, total_steps):
        seen["steps"] = total_steps
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)

    model = small()
    before = copy.deepcopy(model)
    fit(model=model, criterion=criterion, optimizer=optimizer, scheduler=scheduler)
    assert (
        seen["masks"]
        == [((2, 32, 32), torch.int64)] * 6 + [((2, 32, 64), torch.int64)] * 6
    )
    assert (seen["model"], seen["recipe"], seen["steps"]) == (model, RECIPE, 12)
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "the schedule's rate is 0"


def test_an_optimizer_that_is_built_already():
    model = small()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    before = copy.deepcopy(model)
    fit(model=model, optimizer=optimizer)
    assert torch.equal(model.encoder[0].weight, before.encoder[0].weight)
    assert not torch.equal(model.head[1].weight, before.head[1].weight)


def test_a_criterion_with_buffers_is_a_module():
    weighted = nn.CrossEntropyLoss(torch.rand(12) + 0.5, ignore_index=IGNORED)
    a, b = fit(criterion=weighted), fit()
    assert not same_weights(a.model, b.model)


@pytest.mark.parametrize("kind", ["a transform", "a function"])
def test_a_transform_of_ones_own(kind):
    seen = []

    class Seen(v2.Transform):
        def transform(self, value, params):
            seen.append(type(value))
            return value

    def of_phase(recipe, phase):
        return v2.Compose([Seen(), v2.Resize((phase.height, phase.width))])

    given = of_phase(ONE, ONE.phases[0]) if kind == "a transform" else of_phase
    result = fit(recipe=ONE, transform=given)
    assert set(seen) == {tv_tensors.Image, tv_tensors.Mask}
    assert math.isfinite(result.history[0]["train_loss"])


def test_another_criterion_does_not_continue_a_training(tmp_path):
    def half(logits, masks):
        return nn.functional.cross_entropy(logits, masks) / 2

    fit(tmp_path, recipe=ONE)
    with pytest.raises(training.TrainingError, match="criterion was None, is .*half"):
        fit(tmp_path, recipe=ONE, criterion=half)
    with pytest.raises(training.TrainingError, match="note was None, is mine"):
        fit(tmp_path, recipe=ONE, config={"note": "mine"})


OUTPUTS = {
    "classes": lambda y: y[:, :7],
    "size": lambda y: y[..., ::2, ::2],
    "a dict": lambda y: {"out": y},
}


@pytest.mark.parametrize("change", OUTPUTS.values(), ids=OUTPUTS)
def test_a_model_of_another_output_is_an_error_that_says_what_is_needed(change):
    class Odd(Small):
        def forward(self, x):
            return change(super().forward(x))

    with pytest.raises(
        training.TrainingError, match=r"12 classes .* shape \(2, 12, 32, 32\)"
    ):
        fit(model=Odd())


# --- the moving average -------------------------------------------------------


def test_the_average_of_the_weights():
    states = []

    class Remember(torch.optim.SGD):
        def step(self, *args, **more):
            done = super().step(*args, **more)
            (weight,) = (p for g in self.param_groups for p in g["params"])
            mean = model.encoder[1].running_mean
            states.append(torch.cat([weight.detach(), mean]))
            return done

    class Scaled(Small):
        """Learns its last bias alone."""

        def __init__(self):
            super().__init__()
            self.requires_grad_(False)
            self.head[1].bias.requires_grad_(True)

    model = Scaled()
    result = fit(
        model=model,
        recipe=replace(RECIPE, ema_decay=0.5),
        optimizer=lambda m, recipe: Remember([m.head[1].bias], lr=0.1),
        scheduler=lambda o, *_: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    )
    expected = states[0]
    for state in states[1:]:
        expected = 0.5 * expected + 0.5 * state
    averaged = result.averaged.head[1].bias, result.averaged.encoder[1].running_mean
    torch.testing.assert_close(torch.cat(averaged), expected)
    assert type(result.averaged) is Scaled
    assert not torch.equal(result.averaged.head[1].bias, result.model.head[1].bias)


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
    with contextlib.suppress(Exception):  # there is none here
        distributed.distributed_state()
    assert found == chosen


def test_the_schedule_of_a_recipe_ends_with_the_training():
    rates = []

    def scheduler(optimizer, recipe, total_steps):
        built = recipes.build_scheduler(optimizer, recipe, total_steps)
        step = built.step

        def recorded():
            step()
            rates.append(built.get_last_lr()[-1])

        built.step = recorded
        return built

    fit(scheduler=scheduler)
    assert len(rates) == 12
    assert max(rates) == pytest.approx(RECIPE.lr_decoder, rel=0.05)
    assert rates[-2] < RECIPE.lr_decoder / 20
