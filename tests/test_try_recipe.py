"""The trials of the recipe: what each changes, what is kept, what the table says."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import try_recipe
from roadseg import dataset1, runtime, training, unet
from roadseg.classes import VOID
from roadseg.recipes import RECIPES, Stage
from test_training import Scenes, Small, small
from try_recipe import BASE, TRIALS, Trial


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Small scenes, a small network, two epochs."""
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path))
    stages = (Stage(2, 32, 32),)
    monkeypatch.setattr(
        try_recipe, "BASE", replace(BASE, stages=stages, feed=(32, 32), batch_size=2)
    )
    monkeypatch.setattr(unet, "UNet", lambda encoder_weights: Small())


@pytest.mark.parametrize("name", TRIALS)
def test_every_trial_is_a_recipe_and_keeps_a_file_of_its_own(name, tmp_path):
    assert replace(BASE, **TRIALS[name].changes).epochs >= 1
    assert len({try_recipe.kept(tmp_path, n) for n in TRIALS}) == len(TRIALS)


def weights_of(trial):
    """Train by a trial; return the weights to score, in one vector."""
    model, seconds = try_recipe.train(trial, Scenes(4), unet.RANDOM)
    assert seconds > 0
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "trial",
    [
        Trial({"seed": 1}),
        Trial({"class_weights": 0.0}),
        Trial(beside="dice"),
        Trial(beside="lovasz"),
        Trial(average=0.5),
        Trial(constant=0.3),
        Trial(frozen=1),
    ],
)
def test_a_trial_changes_what_is_learnt_and_nothing_stays_changed(trial):
    if trial.beside:
        pytest.importorskip("segmentation_models_pytorch")
    plain = weights_of(Trial())
    assert not torch.equal(weights_of(trial), plain)
    assert torch.equal(weights_of(Trial()), plain)


def test_a_frozen_encoder_stands_still():
    trial = Trial(frozen=2)
    model, _ = try_recipe.train(trial, Scenes(4), unet.RANDOM)
    training.runtime.seed_everything(BASE.seed)
    start = Small()
    assert torch.equal(model.encoder[0].weight, start.encoder[0].weight)
    assert not torch.equal(model.head[1].weight, start.head[1].weight)


def test_the_moving_average_is_one():
    model = small()
    with try_recipe.changed(Trial(average=0.75), model) as scored:
        optimiser = training.make_optimiser(model, BASE)
        seen = []
        for _ in range(3):
            model(torch.ones(1, 3, 4, 4)).sum().backward()
            optimiser.step()
            seen.append(model.head[1].weight.detach().clone())
        wanted = seen[0]  # the first step begins the average
        for weight in seen[1:]:
            wanted = 0.75 * wanted + 0.25 * weight
        torch.testing.assert_close(scored[0].head[1].weight.detach(), wanted)


def test_constant_rates_stand_still():
    optimiser = training.make_optimiser(small(), BASE)
    with try_recipe.changed(Trial(constant=0.3), small()):
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=[1, 1], total_steps=9, pct_start=0.3
        )
        for _ in range(3):
            rates = [group["lr"] for group in optimiser.param_groups]
            assert rates == [0.3 * BASE.lr_encoder, 0.3 * BASE.lr_decoder]
            optimiser.step()
            schedule.step()


def asked_thrice():
    """Return logits (1, 12, 1, 3) and masks (1, 1, 3): right, wrong, void."""
    masks = torch.tensor([[[3, 8, VOID]]])
    logits = torch.full((1, 12, 1, 3), -50.0)
    logits[0, 3, 0, 0] = logits[0, 3, 0, 1] = 50
    logits[0, 5, 0, 2] = 50  # void: nobody asks
    return logits, masks


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # class 3: 2 * 1 / (2 + 1), class 8: 0, nine classes that nobody asked for: 1
        ("dice", (1 / 3 + 1) / 11),
        # of the classes there are: one minus their IoU, 1 / 2 and 0
        ("lovasz", (1 / 2 + 1) / 2),
    ],
)
def test_the_second_loss_by_hand(name, by_hand):
    pytest.importorskip("segmentation_models_pytorch")
    loss = try_recipe.second_loss(name)(*asked_thrice())
    torch.testing.assert_close(loss, torch.tensor(by_hand))


def test_both_losses_are_added():
    plain = nn.CrossEntropyLoss(ignore_index=VOID)
    loss = try_recipe.Beside(plain, lambda logits, masks: logits.mean())
    logits, masks = asked_thrice()
    assert loss(logits, masks) == plain(logits, masks) + logits.mean()


def test_without_its_library_a_second_loss_is_one_sentence(monkeypatch, data, capsys):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    assert try_recipe.main(["Dice beside cross-entropy"]) == 1
    assert "requirements-benchmark.txt" in capsys.readouterr().err


@pytest.fixture
def data(monkeypatch):
    """A few scenes instead of dataset1, to be called real or not."""
    scenes = Scenes()
    monkeypatch.setattr(dataset1, "load", lambda: (scenes, None))
    monkeypatch.setattr(dataset1, "split_by_block", lambda s: (Scenes(4), Scenes(2)))
    return scenes


def test_results_are_kept_and_not_measured_twice(data, monkeypatch, tmp_path, capsys):
    names = ["as it is", "no crop"]
    assert try_recipe.main([*names, "--output", str(tmp_path / "kept")]) == 0
    found = json.loads((tmp_path / "kept" / "no-crop.json").read_text())
    assert found["trial"] == "no crop"
    assert 0 <= found["miou"] <= 1
    table = capsys.readouterr().out
    assert f"| no crop | {found['acc']:.3f} | {found['miou']:.3f} |" in table
    assert table.count("\n") == 6
    assert f"All with data: {data.origin}; encoder: {unet.RANDOM.origin}" in table
    facts = (found["data"], found["encoder"], found["base"])
    assert facts == (data.origin, unet.RANDOM.origin, str(try_recipe.BASE))
    monkeypatch.setattr(training, "fit", None)  # would fail
    assert try_recipe.main([*names, "--output", str(tmp_path / "kept")]) == 0
    assert try_recipe.main(["--table", "--output", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out == 2 * table


def test_a_recipe_of_the_course_can_be_what_is_changed(data, monkeypatch, tmp_path):
    short = replace(RECIPES["cpu"], stages=(Stage(1, 32, 64),), feed=(32, 64))
    monkeypatch.setitem(RECIPES, "cpu", short)
    monkeypatch.setattr(runtime, "output_dir", lambda: tmp_path)
    asked = []
    fit = training.fit
    monkeypatch.setattr(
        training, "fit", lambda *a, **k: asked.append(a[2]) or fit(*a, **k)
    )
    assert try_recipe.main(["batches of 4", "--recipe", "cpu"]) == 0
    assert asked == [replace(short, batch_size=4)]
    found = json.loads((tmp_path / "trials-cpu" / "batches-of-4.json").read_text())
    assert found["base"] == str(short)


def other_data(monkeypatch, data):
    data.origin = "other scenes"


def other_weights(monkeypatch, data):
    weights = replace(unet.RANDOM, origin="ImageNet")
    monkeypatch.setattr(unet, "find_encoder_weights", lambda: weights)


def other_stages(monkeypatch, data):
    base = replace(try_recipe.BASE, stages=(Stage(1, 32, 32),))
    monkeypatch.setattr(try_recipe, "BASE", base)


@pytest.mark.parametrize(
    ("change", "fact"),
    [(other_data, "data"), (other_weights, "encoder"), (other_stages, "base")],
)
def test_results_that_cannot_be_compared_stay_apart(
    data, monkeypatch, tmp_path, capsys, change, fact
):
    one, two = (["--output", str(tmp_path / name)] for name in ("one", "two"))
    assert try_recipe.main(["as it is", *one]) == 0
    change(monkeypatch, data)
    before = (tmp_path / "one" / "as-it-is.json").read_bytes()
    capsys.readouterr()
    for names in (["as it is"], ["no crop"]):
        assert try_recipe.main([*names, *one]) == 1
        assert re.search(
            rf"^error: .*as-it-is.json cannot be compared .* its {fact} is: ",
            capsys.readouterr().err,
            re.M,
        )
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["as-it-is.json"]
    assert (tmp_path / "one" / "as-it-is.json").read_bytes() == before
    assert try_recipe.main(["no crop", *two]) == 0
    (tmp_path / "two" / "as-it-is.json").write_bytes(before)
    assert try_recipe.main(["--table", *two]) == 1
    assert "no-crop.json cannot be compared" in capsys.readouterr().err


def test_results_of_before_facts_were_noted_are_refused(data, tmp_path, capsys):
    assert try_recipe.main(["as it is", "--output", str(tmp_path)]) == 0
    path = tmp_path / "as-it-is.json"
    found = json.loads(path.read_text())
    del found["encoder"]
    path.write_text(json.dumps(found))
    assert try_recipe.main(["as it is", "--output", str(tmp_path)]) == 1
    assert "its encoder is: not noted" in capsys.readouterr().err


def test_drawn_scenes_are_for_the_quick_profile(data, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ROADSEG_PROFILE", "cpu")
    monkeypatch.setattr(unet, "find_encoder_weights", lambda: unet.RANDOM)
    assert try_recipe.main(["as it is", "--output", str(tmp_path / "new")]) == 1
    assert "say nothing about dataset1" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []
    data.real = True
    assert try_recipe.main(["as it is", "--output", str(tmp_path / "new")]) == 0


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        try_recipe.main(["faster"])
    assert stop.value.code == 2
    assert "no trial faster: see --list" in capsys.readouterr().err
    assert try_recipe.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == list(TRIALS)
