"""Checkpoints: a training resumes to the same bits, whatever happened to its folder."""

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from safetensors import SafetensorError

from roadseg import checkpoints, training
from roadseg.checkpoints import TrainingError
from roadseg.recipes import Recipe
from test_training import RECIPE, Scenes, Small, fit, same_weights, small


@pytest.mark.parametrize("stop_in", [2, 3, 4])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_training_ends_in_the_same_bits(tmp_path, stop_in, precision):
    recipe = Recipe("test", RECIPE.stages, None, batch_size=2, precision=precision)
    whole = fit(recipe=recipe)
    with pytest.raises(training.TrainingInterrupted, match=f"after {stop_in - 1} of 4"):
        fit(tmp_path, recipe, stop_in)
    resumed = fit(tmp_path, recipe, model=small(5))
    assert same_weights(whole.model, resumed.model)
    keep = ("epoch", "height", "width", "train_loss", "train_acc", "score")
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert [a[k] for k in keep] == [b[k] for k in keep]


def test_a_checkpoint_holds_all_of_the_state(tmp_path):
    fit(tmp_path)
    newest = tmp_path / "epoch-004"
    files = {p.name for p in newest.iterdir()}
    assert files >= {"model.safetensors", "optimizer.bin", "scheduler.bin"}
    assert any(f.startswith("random_states") for f in files)
    schedule = torch.load(newest / "scheduler.bin", weights_only=True)
    assert schedule["last_epoch"] == 12  # steps taken
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["epoch-003", "epoch-004"]


def test_a_finished_training_is_not_repeated(tmp_path):
    first = fit(tmp_path)

    class Never(Small):
        def forward(self, x):
            raise AssertionError("trained again")

    again = fit(tmp_path, model=Never())
    assert same_weights(first.model, again.model)
    assert again.history == first.history
    assert again.seconds == first.seconds


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    whole = fit()
    with pytest.raises(training.TrainingInterrupted):
        fit(tmp_path, stop_in=3)
    newest = tmp_path / "epoch-002" / "optimizer.bin"
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = fit(tmp_path, model=small(5))
    assert "epoch-002 is damaged (optimizer.bin is changed)" in capsys.readouterr().out
    assert same_weights(whole.model, resumed.model)


DAMAGE = {
    "cut weights": ("model.safetensors", lambda data: data[:-1]),
    "one bit": ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "empty schedule": ("scheduler.bin", lambda data: b""),
    "no position": ("position.json", None),
    "cut position": ("position.json", lambda data: data[:20]),
    "no checksums": ("sha256.json", None),
    "cut checksums": ("sha256.json", lambda data: data[:20]),
    "no names": ("sha256.json", lambda data: b"{}"),
    "a list": ("sha256.json", lambda data: b"[1]"),
    "a number": ("sha256.json", lambda data: b"1"),
}


@pytest.mark.parametrize(("name", "spoil"), DAMAGE.values(), ids=DAMAGE)
def test_any_damage_to_the_newest_checkpoint_is_seen(tmp_path, capsys, name, spoil):
    whole = fit(tmp_path)
    file = tmp_path / "epoch-004" / name
    if spoil:
        file.write_bytes(spoil(file.read_bytes()))
    else:
        file.unlink()
    assert same_weights(whole.model, fit(tmp_path, model=small(5)).model)
    assert "epoch-004 is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(("call", "kept"), [("_checksums", 2), ("_sync", 2)])
def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, monkeypatch, call, kept):
    whole = fit()
    calls = []

    def interrupted(folder):
        calls.append(folder)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(folder)

    real = getattr(checkpoints, call)
    with monkeypatch.context() as m:
        m.setattr(checkpoints, call, interrupted)
        with pytest.raises(training.TrainingInterrupted, match=f"after {kept} of 4"):
            fit(tmp_path)
    assert (tmp_path / f"epoch-{kept:03}").exists()
    assert not (tmp_path / f"epoch-{kept + 1:03}").exists()
    assert same_weights(whole.model, fit(tmp_path, model=small(5)).model)


def test_another_folder_of_the_same_pictures_goes_on_and_other_pictures_do_not(
    tmp_path,
):
    scenes = Scenes()
    first = training.fit(small(), scenes, RECIPE, tmp_path)
    scenes.origin = "the same, in another folder"
    again = training.fit(small(5), scenes, RECIPE, tmp_path)
    assert same_weights(first.model, again.model)
    scenes.images[3] = scenes.images[3].flip(2)
    with pytest.raises(TrainingError, match="holds another training .*contents was"):
        training.fit(small(5), scenes, RECIPE, tmp_path)


def test_contents_are_of_pictures_and_masks_in_their_order():
    digests = [checkpoints.contents(Scenes())]
    assert digests == [checkpoints.contents(Scenes())]
    for change in ("images", "masks"):
        scenes = Scenes()
        getattr(scenes, change)[6] = getattr(scenes, change)[6] ^ 1
        digests.append(checkpoints.contents(scenes))
    scenes = Scenes()
    scenes.images = [x.reshape(3, 64, 48) for x in scenes.images]
    digests.append(checkpoints.contents(scenes))
    digests.append(checkpoints.contents(Scenes(6)))
    scenes = Scenes()
    scenes.images.reverse()
    scenes.masks.reverse()
    digests.append(checkpoints.contents(scenes))
    assert len(set(digests)) == 6


def test_deleted_checkpoints_are_empty_first(tmp_path, monkeypatch):
    """Google Drive keeps what is deleted."""
    binned = []

    def to_the_bin(folder):
        binned.extend(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        rmtree(folder)

    rmtree = checkpoints.shutil.rmtree
    monkeypatch.setattr(checkpoints.shutil, "rmtree", to_the_bin)
    fit(tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["epoch-003", "epoch-004"]
    training.Checkpoints(tmp_path, RECIPE, Scenes(), "").clear()
    assert list(tmp_path.iterdir()) == []
    assert len(binned) >= 4 * 5
    assert set(binned) == {0}


def test_ctrl_c_in_a_notebook_is_a_sentence(tmp_path, capsys):
    shell = InteractiveShell()

    def cell():
        fit(tmp_path, stop_in=3)

    shell.user_ns["cell"] = cell
    shell.run_cell("cell()")
    told = capsys.readouterr().out
    assert "stopped after 2 of 4 epochs; they are saved" in told
    assert "Traceback" not in told


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    fit(tmp_path)
    for path in tmp_path.glob("epoch-*"):
        (path / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="no checkpoint .* is whole"):
        fit(tmp_path)
    assert len(fit(tmp_path, resume=False).history) == 4


def test_a_half_written_checkpoint_is_not_taken_for_whole(tmp_path, monkeypatch):
    whole = fit()
    rename = checkpoints.os.replace

    def power_cut(source, target):
        if target.name == "epoch-003":
            raise OSError("power cut")
        rename(source, target)

    with monkeypatch.context() as m:
        m.setattr(checkpoints.os, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            fit(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".draft-epoch-003",
        "epoch-001",
        "epoch-002",
    ]
    assert same_weights(whole.model, fit(tmp_path).model)


def test_another_recipe_does_not_go_on_with_the_old_one(tmp_path):
    fit(tmp_path)
    other = Recipe("test", RECIPE.stages, None, batch_size=3)
    with pytest.raises(TrainingError, match="recipe.batch_size was 2, is 3"):
        fit(tmp_path, other)
    with pytest.raises(TrainingError, match="data was 7 scenes"):
        fit(tmp_path, scenes=Scenes(6))
    assert (tmp_path / "epoch-004").is_dir(), "nothing is deleted"


def test_the_thousandth_checkpoint_is_the_newest(tmp_path):
    for name in ("epoch-1000", "epoch-998", "epoch-999", "epoch-notes"):
        (tmp_path / name).mkdir()
    names = [p.name for p in checkpoints._epochs(tmp_path)]
    assert names == ["epoch-998", "epoch-999", "epoch-1000"]


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device"),
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64"),
    ],
)
def test_a_full_disk_is_told_in_a_sentence(tmp_path, monkeypatch, error):
    save = training.Accelerator.save_state

    def full(self, folder, **more):
        if "epoch-003" in folder:
            raise error
        return save(self, folder, **more)

    with monkeypatch.context() as m:
        m.setattr(training.Accelerator, "save_state", full)
        with pytest.raises(TrainingError, match="epoch-003 cannot be .* free the disk"):
            fit(tmp_path)
    assert same_weights(fit().model, fit(tmp_path).model)


def test_an_error_that_is_not_of_writing_keeps_its_traceback(tmp_path, monkeypatch):
    def wrong(self, folder, **more):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(training.Accelerator, "save_state", wrong)
    with pytest.raises(RuntimeError, match="sizes do not match") as caught:
        fit(tmp_path)
    assert not isinstance(caught.value, TrainingError)
