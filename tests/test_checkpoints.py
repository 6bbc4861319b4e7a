"""Checkpoints: a training resumes to the same bits, whatever happened to it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from safetensors import SafetensorError

from roadseg import checkpoints, recipes, runtime, training
from roadseg.checkpoints import Checkpoints, TrainingError
from test_training import RECIPE, Scenes, Small, fit, same_weights, scores, small


@pytest.mark.parametrize(
    ("stop_in", "precision", "ema_decay"),
    [(2, "fp32", 0), (3, "bf16", 0), (3, "fp32", 0.9), (4, "bf16", 0.9)],
)
def test_a_resumed_training_ends_in_the_same_bits(
    tmp_path, stop_in, precision, ema_decay
):
    recipe = replace(RECIPE, precision=precision, ema_decay=ema_decay)
    whole = fit(recipe=recipe)
    with pytest.raises(training.TrainingInterrupted, match=f"after {stop_in - 1} of 4"):
        fit(tmp_path, recipe, stop_in)
    resumed = fit(tmp_path, recipe, model=small(5))
    assert same_weights(whole.model, resumed.model)
    assert scores(whole.history) == scores(resumed.history)
    if ema_decay:
        assert same_weights(whole.averaged, resumed.averaged)
        assert not same_weights(whole.averaged, whole.model)


def test_a_resumed_training_keeps_its_precision(tmp_path, monkeypatch):
    """The one that is measured may be another after a restart."""
    for precision, stop_in in (("bf16", 3), ("fp32", None)):
        monkeypatch.setattr(runtime, "amp_dtype", lambda *_, p=precision: p)
        with contextlib.suppress(training.TrainingInterrupted):
            resumed = fit(tmp_path, stop_in=stop_in)
    assert resumed.precision == "bf16"
    assert len(resumed.history) == 4


def test_a_checkpoint_with_an_average_holds_no_pickled_objects(tmp_path):
    """Weights and their average are plain tensors; the rest loads as weights only."""
    fit(tmp_path, replace(RECIPE, ema_decay=0.9))
    for path in (tmp_path / "epoch-004").iterdir():
        if path.suffix in (".bin", ".pt") or "custom" in path.name:
            torch.load(path, weights_only=True)
    averages = (tmp_path / "epoch-004").glob("model_1.safetensors")
    assert len(list(averages)) == 1


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


DAMAGE = {
    "cut weights": ("model.safetensors", lambda data: data[:-1]),
    "one bit": ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "empty schedule": ("scheduler.bin", lambda data: b""),
    "cut optimizer": ("optimizer.bin", lambda data: data[:-100]),
    "no progress": ("progress.json", None),
    "cut progress": ("progress.json", lambda data: data[:20]),
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


@pytest.mark.parametrize("moment", ["checksums", "flush", "rename"])
def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, monkeypatch, moment):
    whole = fit()
    owner, name = {
        "checksums": (checkpoints.hashlib, "file_digest"),
        "flush": (checkpoints.os, "fsync"),
        "rename": (checkpoints.os, "replace"),
    }[moment]
    real = getattr(owner, name)

    def interrupted(*args):
        if (tmp_path / ".draft-epoch-003").exists():
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as m:
        m.setattr(owner, name, interrupted)
        with pytest.raises(training.TrainingInterrupted, match="after 2 of 4"):
            fit(tmp_path)
    assert {p.name for p in tmp_path.glob("epoch-*")} == {"epoch-001", "epoch-002"}
    assert same_weights(whole.model, fit(tmp_path, model=small(5)).model)


def test_the_same_images_in_another_folder_continue_and_others_do_not(tmp_path):
    scenes = Scenes()
    first = fit(tmp_path, scenes=scenes)
    scenes.description = "the same, in another folder"
    again = fit(tmp_path, scenes=scenes, model=small(5))
    assert same_weights(first.model, again.model)
    scenes.images[3] = scenes.images[3].flip(2)
    with pytest.raises(TrainingError, match="another training .*data_fingerprint was"):
        fit(tmp_path, scenes=scenes)


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
    Checkpoints(tmp_path, {}).clear(keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-004"]
    Checkpoints(tmp_path, {}).clear()
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
    with pytest.raises(TrainingError, match="no undamaged checkpoint"):
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
        with pytest.raises(TrainingError, match="epoch-003 cannot .*power cut"):
            fit(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".draft-epoch-003",
        "epoch-001",
        "epoch-002",
    ]
    assert same_weights(whole.model, fit(tmp_path).model)


def test_another_recipe_does_not_go_on_with_the_old_one(tmp_path):
    fit(tmp_path)
    with pytest.raises(TrainingError, match="recipe.batch_size was 2, is 3"):
        fit(tmp_path, replace(RECIPE, batch_size=3))
    with pytest.raises(TrainingError, match="data_fingerprint was"):
        fit(tmp_path, scenes=Scenes(6))
    assert (tmp_path / "epoch-004").is_dir(), "nothing is deleted"


def test_another_name_or_input_size_goes_on(tmp_path):
    first = fit(tmp_path)
    other = replace(RECIPE, name="another", input_size=(64, 96))
    assert same_weights(first.model, fit(tmp_path, other, model=small(5)).model)


def test_the_thousandth_checkpoint_is_the_newest(tmp_path):
    for name in ("epoch-1000", "epoch-998", "epoch-999", "epoch-notes"):
        (tmp_path / name).mkdir()
    Checkpoints(tmp_path, {}).clear(keep=2)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"epoch-999", "epoch-1000", "epoch-notes"}
    Checkpoints(tmp_path, {}).clear(keep=3)
    assert {p.name for p in tmp_path.iterdir()} == left


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
        with pytest.raises(
            TrainingError, match="epoch-003 cannot be .* free some disk"
        ):
            fit(tmp_path)
    assert same_weights(fit().model, fit(tmp_path).model)


def test_an_error_that_is_not_of_writing_keeps_its_traceback(tmp_path, monkeypatch):
    def wrong(self, folder, **more):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(training.Accelerator, "save_state", wrong)
    with pytest.raises(RuntimeError, match="sizes do not match") as caught:
        fit(tmp_path)
    assert not isinstance(caught.value, TrainingError)


# --- a training that is killed ------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
KILLS = 20


def environment(folder, **more):
    """Return the environment of a process that trains on its own in a folder."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "notebooks"), str(ROOT / "tests")]),
        "ROADSEG_DATA": str(folder / "data"),
        "ROADSEG_OUTPUT": str(folder / "build"),
        "ROADSEG_PROGRESS": "0",
        **more,
    }


@pytest.fixture(scope="module")
def disk():
    """A folder that is deleted at the end: checkpoints of the network are large."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs fork and waitid")
@pytest.mark.parametrize("network", ["small", "unet"])
def test_a_training_killed_at_any_moment_ends_in_the_same_bits(disk, network):
    script, folder = ROOT / "tests" / "killing.py", disk / network
    done = subprocess.run(
        [sys.executable, script, folder, str(KILLS), "0", network],
        env=environment(disk),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    rounds = told["rounds"]
    assert len(rounds) == KILLS
    assert all(r["killed"] for r in rounds)
    assert all(r["after"] >= r["before"] for r in rounds), "a checkpoint was lost"
    assert sum(r["writing"] for r in rounds) >= KILLS // 5
    assert told["killed"]["losses"] == told["whole"]["losses"]
    assert told["killed"]["weights"] == told["whole"]["weights"]


@pytest.mark.skipif(os.name == "nt", reason="processes of POSIX")
@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_a_sentence(tmp_path):
    training = subprocess.Popen(
        [sys.executable, "-m", "roadseg", "train"],
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    kept = tmp_path / "build" / "quick" / "quick" / "checkpoints"
    while not list(kept.glob("*/epoch-*")):
        assert training.poll() is None
        time.sleep(0.05)
    training.send_signal(signal.SIGINT)
    _, told = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "Traceback" not in told
    epochs = recipes.RECIPES["quick"].epochs
    assert re.fullmatch(
        rf"stopped after [1-9] of {epochs} epochs; they are saved in .*: run it again "
        r"to continue",
        told.strip(),
    )
    assert list(kept.glob("*/epoch-*"))
