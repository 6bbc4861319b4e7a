"""Kill a training again and again, and see where it ends.

    python tests/killing.py FOLDER KILLS SEED

One process reads drawn scenes and forks children that train the course's network by
a recipe of small pictures; it kills them with SIGKILL, in every third round at any
moment, else while a checkpoint is being written, and starts the next. The last child
is left alone. It prints, as JSON, what it did and checksums of the weights beside
those of a training that nobody disturbed. A process of its own, because forking
needs one that has not yet used autograd.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from roadseg import dataset1, training, unet
from roadseg.training import Recipe, Stage

RECIPE = Recipe("killed", (Stage(10, 32, 64), Stage(6, 64, 96)), None, batch_size=8)


def train(scenes: dataset1.RoadScenes, folder: Path) -> None:
    """Train in this process, from the newest checkpoint on, and store a checksum."""
    training.runtime.seed_everything(random.SystemRandom().randrange(2**31))
    # the weights of the first start; a resumed training must not depend on them
    if not list(folder.glob("epoch-*")):
        training.runtime.seed_everything(0)
    run = training.fit(unet.UNet(), scenes, RECIPE, folder)
    digest = hashlib.sha256()
    for name, tensor in run.model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    losses = [row["train_loss"] for row in run.history]
    answer = {"weights": digest.hexdigest(), "losses": losses}
    (folder / "answer.json").write_text(json.dumps(answer))


def start(scenes: dataset1.RoadScenes, folder: Path) -> int:
    """Fork a child that trains; return its process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            train(scenes, folder)
        status = 0
    finally:
        os._exit(status)


def wait_for(moment, pid: int) -> bool:
    """Wait until something holds or the child is gone; return whether it holds."""
    while not moment():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.0005)
    return True


def newest(folder: Path) -> int:
    """Return the number of the newest checkpoint, 0 without any."""
    return max((int(p.name[-3:]) for p in folder.glob("epoch-*")), default=0)


def kill_one(scenes, folder: Path, chance: random.Random, anywhere: bool) -> dict:
    """Start a child and kill it; say where that caught it."""
    before = newest(folder)
    near = before > RECIPE.epochs - 5  # a finished training cannot be killed
    anywhere, gains = anywhere and not near, not near and chance.random() < 0.6
    draft = folder / f".draft-epoch-{before + 1 + gains:03}"
    pid = start(scenes, folder)
    began = time.perf_counter()
    if not anywhere and not wait_for(draft.exists, pid):
        raise SystemExit(f"a child ended by itself: see {folder / 'log.txt'}")
    if anywhere:
        if gains:
            wait_for(lambda: newest(folder) > before, pid)
            began = time.perf_counter()
        time.sleep(chance.uniform(0, 1.5))
    else:
        time.sleep(chance.uniform(0, 0.02 if near else 1.5))
    waited = time.perf_counter() - began
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return {
        "killed": os.WIFSIGNALED(status),
        "waited": round(waited, 3),
        "before": before,
        "after": newest(folder),
        "writing": any(folder.glob(".draft-*")),
    }


def main(folder: str, kills: str, seed: str) -> None:
    """Do all of it and print it."""
    chance = random.Random(int(seed))
    root = Path(folder)
    (root / "whole").mkdir(parents=True)
    (root / "killed").mkdir()
    scenes = dataset1.load()[0]
    os.waitpid(start(scenes, root / "whole"), 0)
    rounds = [
        kill_one(scenes, root / "killed", chance, anywhere=i % 3 == 0)
        for i in range(int(kills))
    ]
    os.waitpid(start(scenes, root / "killed"), 0)
    answers = {
        name: json.loads((root / name / "answer.json").read_text())
        for name in ("whole", "killed")
    }
    print(json.dumps({"rounds": rounds, **answers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
