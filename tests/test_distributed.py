"""Two processes that train together on a CPU do what one does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from roadseg.recipes import RECIPES

ROOT = Path(__file__).parents[1]
WORKER = str(ROOT / "tests" / "sharing.py")
TRAIN = ("-m", "roadseg", "train")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="gloo is tried on Linux alone"),
]


def start(processes, *command, **more):
    """Run a script in one or several processes; return what came of it."""
    path = os.pathsep.join(str(ROOT / name) for name in ("notebooks", "tests"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(processes)]
    return subprocess.run(
        [*launcher, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def answers(folder, *task):
    """Return what one process answers, and what two do."""
    found = []
    for processes in (1, 2):
        path = folder / f"{processes}.pt"
        done = start(processes, WORKER, *task, path)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(path, weights_only=True))
    return found


@pytest.mark.parametrize("criterion", ["recipe", "mean", "dice"])
def test_one_batch_has_the_same_gradients(tmp_path, criterion):
    """With the criterion that was given, and parts of a batch without labels."""
    one, two = answers(tmp_path, "gradients", criterion)
    for wanted, found in zip(one["gradients"], two["gradients"], strict=True):
        apart = (found - wanted).abs().max()
        assert apart <= 1e-5 * wanted.abs().max()  # float32 sums in another order
        assert wanted.abs().max() > 0


@pytest.mark.parametrize("criterion", ["recipe", "dice"])
def test_a_whole_run_ends_alike(tmp_path, criterion):
    one, two = answers(tmp_path, "run", criterion)
    wanted, found = (torch.tensor(x["history"]) for x in (one, two))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=1e-4)


def test_a_killed_process_ends_the_run_and_its_checkpoint_is_good(tmp_path):
    done = start(2, WORKER, "killed", tmp_path)
    assert done.returncode != 0
    assert "stopped after 2 of 4 epochs; they are saved" in done.stderr
    assert re.search(r"exitcode\s*: -9", done.stderr), "torchrun names the killed one"
    assert sorted(p.name for p in tmp_path.glob("epoch-*")) == [
        "epoch-001",
        "epoch-002",
    ]
    # one process goes on where two stopped, and ends where one alone does
    resumed = start(1, WORKER, "resumed", tmp_path)
    assert resumed.returncode == 0, resumed.stderr


def test_the_average_of_two_processes_is_that_of_one(tmp_path):
    for processes in (2, 1):
        done = start(processes, WORKER, "averaged", tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_command_in_two_processes(tmp_path):
    losses, masks, epochs = [], [], RECIPES["quick"].epochs
    data = {"ROADSEG_DATA": str(tmp_path / "data")}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = start(processes, *TRAIN, ROADSEG_OUTPUT=str(out), **data)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^acc ", done.stdout, re.M)) == 1, "one of them prints"
        shown = re.findall(rf"^epoch \d/{epochs} ", done.stdout, re.M)
        assert len(shown) == epochs
        home = out / "quick" / "quick"
        with safe_open(home / "unet.safetensors", "pt") as file:
            metadata = json.loads(file.metadata()["roadseg"])
        losses.append(metadata["history"][-1]["train_loss"])
        masks.append(sorted(p.name for p in (home / "tracked").iterdir()))
        assert len(list(home.glob("checkpoints/*/epoch-*"))) == 1
    assert masks[0] == masks[1]
    # other crops, and normalization over halves of batches of two
    assert losses[1] == pytest.approx(losses[0], rel=0.25)
    again = start(2, *TRAIN, ROADSEG_OUTPUT=str(out), **data)
    assert again.returncode == 0, again.stderr
    assert "epoch 1/" not in again.stdout


def test_a_batch_that_cannot_be_shared(tmp_path):
    done = start(3, WORKER, "run", "recipe", tmp_path / "answer.pt")
    assert done.returncode != 0
    assert "a batch of 4 cannot be shared equally by 3 processes" in done.stderr


def test_accelerate_on_a_cpu_says_what_to_use_instead(tmp_path):
    accelerate = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = start(1, *accelerate, "-m", "roadseg", "train", ROADSEG_OUTPUT=str(tmp_path))
    assert done.returncode != 0
    assert "use torchrun --nproc_per_node" in done.stderr
