"""The course's trained network: trained once, found again, never mixed up."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torchvision import tv_tensors

from roadseg import recipes, runtime, trained, training, unet, weights
from roadseg.checkpoints import TrainingError
from roadseg.classes import CAMVID, LabelSet
from roadseg.recipes import Phase, Recipe
from roadseg.weights import RANDOM_INIT, EncoderWeights
from test_checkpoints import environment
from test_training import Scenes, Small, plain_model, same_weights, small

TINY = Recipe("tiny", (Phase(1, 32, 32),), None, batch_size=2)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The folder of the recipe `TINY`."""
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path))
    runtime.reset()
    return tmp_path / "quick" / "tiny"


def load_or_train(scenes=None, recipe=TINY, encoder=RANDOM_INIT, model=small, **more):
    """Return a network and how many trainings that took."""
    model = model(5) if model is small else model
    return trained.load_or_train(
        scenes or Scenes(2), encoder, recipe, model=model, **more
    )


def trainings(capsys):
    """Return how often a training was announced, and the text that was printed."""
    text = capsys.readouterr().out
    return text.count("training 1 epochs, about"), text


def test_a_network_is_trained_once(folder, capsys):
    first = load_or_train(tracked=Scenes(2))
    assert trainings(capsys)[0] == 1
    facts = first.metadata
    assert json.loads(json.dumps(facts)) == facts
    assert facts["data"] == "seven random scenes"
    assert facts["is_real"] is False
    assert facts["precision"] == "fp32"
    assert facts["epochs"] == len(facts["history"]) == 1
    assert facts["encoder"] == RANDOM_INIT.source
    assert Recipe.from_dict(facts["recipe"]) == TINY
    again = load_or_train()
    assert capsys.readouterr().out == ""
    assert same_weights(first.model, again.model)
    assert facts.items() <= again.metadata.items()
    assert again.labels == CAMVID
    assert not first.model.training
    assert not again.model.training


def test_the_unet_is_trained_by_default(folder, monkeypatch):
    """With the encoder weights that are given, and the right number of classes."""
    features = unet.vgg16_bn_features().state_dict()
    encoder = EncoderWeights(features, "some", True)
    seen = []

    def fit(model, *args, **more):
        seen.append(copy.deepcopy(model))
        return training.TrainResult(model, [], 0.0, "fp32")

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(trained, "estimate_seconds", lambda *a: 0.0)
    three = Scenes(2, LabelSet(("a", "b", "c")))
    saved = load_or_train(three, encoder=encoder, model=None)
    assert saved.model.head.out_channels == 3
    first = next(iter(features.values()))
    assert torch.equal(next(seen[0].encoder.parameters()), first)
    back = trained.load_trained(folder / trained.MODEL)
    assert back.labels == three.labels
    assert same_weights(back.model, saved.model)


def test_another_recipe_trains_again(folder, capsys):
    load_or_train(tracked=Scenes(2))
    other = replace(TINY, phases=(Phase(1, 32, 64),))
    load_or_train(recipe=other)
    count, text = trainings(capsys)
    assert count == 2
    assert "is from another training (other recipe)" in text
    assert trained.load_snapshots(other) == {}, "those were of the other network"


@pytest.mark.parametrize("before", [None, (64, 96)])
def test_another_input_size_trains_nothing(folder, capsys, before):
    """It is not a part of the training; the saved network then has the new one."""
    first = load_or_train(recipe=replace(TINY, input_size=before))
    again = load_or_train(recipe=replace(TINY, input_size=(32, 96)))
    assert trainings(capsys)[0] == 1
    assert same_weights(first.model, again.model)
    assert again.input_size == (32, 96)
    saved = weights.load_model(folder / trained.MODEL, small())
    assert saved.input_size == (32, 96)
    assert Recipe.from_dict(saved.metadata["recipe"]).input_size == (32, 96)
    assert same_weights(first.model, saved.model)


def test_other_names_of_the_classes_train_nothing(folder, capsys):
    load_or_train()
    labels = replace(CAMVID, names=tuple(n.upper() for n in CAMVID.names))
    again = load_or_train(Scenes(2, labels))
    assert trainings(capsys)[0] == 1
    assert again.labels == labels
    assert weights.load_model(folder / trained.MODEL, small()).labels == labels


def test_another_ignored_class_trains_again(folder, capsys):
    load_or_train()
    load_or_train(Scenes(2, replace(CAMVID, ignore_index=3)))
    count, text = trainings(capsys)
    assert count == 2
    assert "other ignore_index" in text


def test_images_are_known_by_their_content(folder, capsys):
    scenes = Scenes(2)
    first = load_or_train(scenes)
    scenes.description = "the same, in another folder"
    again = load_or_train(scenes)
    assert same_weights(first.model, again.model)
    assert trainings(capsys)[0] == 1
    scenes.masks[1] = tv_tensors.Mask(scenes.masks[1].flip(0))  # labeled anew
    other = load_or_train(scenes)
    count, text = trainings(capsys)
    assert count == 1
    assert "other data_fingerprint" in text
    assert not same_weights(first.model, other.model)


def test_encoder_weights_are_known_by_their_content(folder, capsys):
    """A file that was replaced by another of the same name is not the same."""
    state = {"0.weight": torch.ones(3)}
    one = EncoderWeights(state, "the local file vgg.pth", True)
    same = EncoderWeights(dict(state), "the local file copy.pth", True)
    replaced = EncoderWeights({"0.weight": torch.zeros(3)}, one.source, True)
    load_or_train(encoder=one)
    load_or_train(encoder=same)
    assert trainings(capsys)[0] == 1
    load_or_train(encoder=replaced)
    count, text = trainings(capsys)
    assert count == 1
    assert "other encoder_fingerprint" in text


def test_an_interrupted_training_is_continued(folder, capsys, monkeypatch):
    recipe = replace(TINY, phases=(Phase(3, 32, 32),))
    whole = load_or_train(recipe=replace(recipe, name="whole"))
    calls = []
    predict = trained.predict_scenes

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*args)

    monkeypatch.setattr(trained, "predict_scenes", interrupted)
    with pytest.raises(training.TrainingInterrupted, match="after 1 of 3"):
        load_or_train(recipe=recipe, tracked=Scenes(1))
    resumed = load_or_train(recipe=recipe, tracked=Scenes(1))
    assert len(calls) == 4, "the first epoch is not repeated"
    assert same_weights(whole.model, resumed.model)
    assert list(trained.load_snapshots(recipe)["Test_000000"]) == [1, 2, 3]


def test_a_finished_training_keeps_one_checkpoint(folder):
    recipe = replace(TINY, phases=(Phase(3, 32, 32),))
    load_or_train(recipe=recipe)
    kept = [p.name for p in folder.glob("checkpoints/*/*")]
    assert kept == ["epoch-003"]
    other = next(folder.glob("checkpoints/*")) / "epoch-002"
    other.mkdir()  # as a kill at the last moment would leave it
    load_or_train(recipe=recipe)
    assert [p.name for p in folder.glob("checkpoints/*/*")] == ["epoch-003"]


def test_a_damaged_network_is_taken_from_its_checkpoint(folder, monkeypatch, capsys):
    first = load_or_train()
    path = folder / trained.MODEL
    path.write_bytes(path.read_bytes()[:1000])

    class Never(Small):
        def forward(self, x):
            assert not self.training or len(x) < 2, "trained again"
            return super().forward(x)

    monkeypatch.setattr(trained, "estimate_seconds", lambda *a: 0.0)
    never = type("Small", (Never,), {})()
    never.__class__.__qualname__ = "Small"
    again = load_or_train(model=never)
    assert "cannot be used" in capsys.readouterr().out
    assert same_weights(first.model, again.model)
    saved = weights.load_model(path, small())
    assert same_weights(saved.model, again.model)
    assert saved.metadata["history"] == first.metadata["history"]


def test_the_average_is_the_network_that_is_kept(folder):
    recipe = replace(TINY, phases=(Phase(3, 32, 32),), ema_decay=0.5)
    model = small()
    kept = load_or_train(recipe=recipe, model=model)
    assert not same_weights(kept.model, model)
    saved = weights.load_model(folder / trained.MODEL, small())
    assert same_weights(kept.model, saved.model)


def test_a_network_without_an_encoder_is_trained_too(folder, capsys):
    first = load_or_train(model=plain_model())
    again = load_or_train(model=plain_model())
    assert trainings(capsys)[0] == 1
    assert same_weights(first.model, again.model)


def test_scenes_without_labels_are_refused_before_anything_is_written(folder):
    empty = Scenes(2)
    for mask in empty.masks:
        mask[:] = CAMVID.ignore_index
    with pytest.raises(TrainingError, match="seven random scenes: none of the 2 masks"):
        load_or_train(empty)
    assert not folder.exists()


# --- tracked scenes -----------------------------------------------------------


def test_what_was_predicted_after_each_epoch(folder):
    recipe = replace(TINY, phases=(Phase(2, 32, 32),))
    load_or_train(recipe=recipe, tracked=Scenes(3))
    masks = trained.load_snapshots(recipe)
    assert {name: list(by_epoch) for name, by_epoch in masks.items()} == {
        f"Test_00000{i}": [1, 2] for i in range(3)
    }
    assert masks["Test_000000"][1].shape == (48, 64)
    assert masks["Test_000000"][1].dtype == torch.uint8


def test_tracked_images_of_one_name_do_not_collide(folder):
    """As in two folders, or street.jpg and street.png."""
    tracked = Scenes(3)
    tracked.filenames = ["a/street.png", "b/street.png", "street.jpg"]
    load_or_train(tracked=tracked)
    masks = trained.load_snapshots(TINY)
    assert len(masks) == 3
    assert all("street" in name and list(m) == [1] for name, m in masks.items())
    distinct = {m[1].numpy().tobytes() for m in masks.values()}
    assert len(distinct) == 3


def test_no_tracked_scenes(folder):
    load_or_train()
    assert trained.load_snapshots(TINY) == {}


def test_other_tracked_scenes_replace_the_ones_before(folder, monkeypatch):
    load_or_train(tracked=Scenes(3))
    names = Scenes(1)
    names.filenames = ["another.png"]
    (folder / trained.MODEL).unlink()
    for path in folder.glob("checkpoints/*/epoch-*/progress.json"):
        path.unlink()
    for path in folder.glob("checkpoints/*/epoch-*"):
        path.rename(path.with_name("old"))
    load_or_train(tracked=names)
    assert list(trained.load_snapshots(TINY)) == ["another"]


# --- reading it back ----------------------------------------------------------


def test_a_missing_network_says_how_to_train_one(folder):
    with pytest.raises(weights.WeightsError, match="no trained network.*roadseg train"):
        trained.load_trained()
    with pytest.raises(weights.WeightsError, match="no trained network.*mine.safe"):
        trained.load_trained("mine.safetensors")


def test_the_network_of_this_profile_is_found(folder, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "quick", replace(TINY, name="quick"))
    path = folder.parent / "quick" / trained.MODEL
    path.parent.mkdir(parents=True)
    labels = LabelSet(("a", "b", "c"))
    model = unet.UNet(3)
    weights.save_model(model, path, labels, {"input_size": (32, 64)})
    saved = trained.load_trained()
    assert same_weights(saved.model, model)
    assert (saved.labels, saved.input_size) == (labels, (32, 64))
    assert not saved.model.training


# --- how long it will take ----------------------------------------------------


def test_the_estimate_is_positive_and_changes_nothing():
    model = small()
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    assert trained.estimate_seconds(model, TINY, 7) > 0
    assert torch.equal(torch.get_rng_state(), rng)
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("auto", torch.float32)],
)
def test_the_estimate_is_of_the_recipes_precision(precision, dtype):
    seen = set()

    class Spy(Small):
        def forward(self, x):
            y = super().forward(x)
            seen.add(y.dtype)
            return y

    trained.estimate_seconds(Spy(), replace(TINY, precision=precision), 4)
    assert seen == {dtype}


def test_the_estimate_counts_every_step(monkeypatch):
    clock = iter(range(0, 1000, 10))  # every step takes 10 s
    timer = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(trained, "time", timer)
    cycle = (Phase(2, 32, 32), Phase(1, 32, 64), Phase(3, 32, 32))
    recipe = replace(TINY, phases=cycle)
    assert trained.estimate_seconds(small(), recipe, 7) == 10 * 3 * 6


def test_out_of_memory_while_the_time_is_estimated_suggests_a_batch_size(folder):
    class Big(Small):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(TrainingError, match="batch_size=1"):
        load_or_train(model=Big())


# --- the course's training as a whole -----------------------------------------

QUICK = """
import hashlib
from roadseg import dataset1, trained, weights
saved = trained.load_or_train(dataset1.load()[0], weights.load_encoder_weights())
digest = hashlib.sha256()
for name, tensor in saved.model.state_dict().items():
    digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_the_quick_training_repeats_to_the_bit(tmp_path):
    ends = set()
    for name in ("one", "another"):
        done = subprocess.run(
            [sys.executable, "-c", QUICK],
            env=os.environ | environment(tmp_path / name),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        ends.add(done.stdout.splitlines()[-1])
    assert len(ends) == 1


# --- the network that ships, for those who have trained none ------------------


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """A stand-in for the network that ships."""
    path = tmp_path / "shipped.safetensors"
    path.touch()
    monkeypatch.setattr(weights, "PRETRAINED", path)
    network = weights.SavedModel(small(3), CAMVID, (64, 96), {"seconds": 1.0})
    monkeypatch.setattr(weights, "load_pretrained", lambda: network)
    monkeypatch.setattr(Recipe, "for_profile", classmethod(lambda cls: TINY))
    monkeypatch.setattr(unet, "UNet", lambda *a, **k: small(5))
    return network


def test_who_has_trained_no_network_gets_the_one_that_ships(folder, shipped, capsys):
    scenes = Scenes(2)
    scenes.is_real = True
    assert trained.load_or_pretrained(scenes, RANDOM_INIT) is shipped
    assert "the network that ships" in capsys.readouterr().out
    assert not (folder / trained.MODEL).exists()


def test_synthetic_scenes_and_a_missing_file_are_trained_for(folder, shipped, capsys):
    assert trained.load_or_pretrained(Scenes(2), RANDOM_INIT) is not shipped
    assert trainings(capsys)[0] == 1
    (folder / trained.MODEL).unlink()
    weights.PRETRAINED.unlink()
    scenes = Scenes(2)
    scenes.is_real = True
    assert trained.load_or_pretrained(scenes, RANDOM_INIT) is not shipped
    assert trainings(capsys)[0] == 1


def test_ones_own_network_goes_before_the_one_that_ships(folder, shipped):
    scenes = Scenes(2)
    scenes.is_real = True
    own = trained.load_or_train(scenes, RANDOM_INIT, TINY)
    found = trained.load_or_pretrained(scenes, RANDOM_INIT)
    assert found is not shipped
    assert same_weights(found.model, own.model)
