"""Kill a training again and again, and see where it ends.

    python tests/killing.py FOLDER KILLS SEED NETWORK

One process reads synthetic scenes and forks children that train a network (`unet`, or a
`small` one for machines that are busy) on small images; it kills them with SIGKILL and
starts the next. In every third round that happens at any moment; otherwise soon after
they began to write a checkpoint, or they kill themselves while they write one, which
does not depend on how busy the machine is. The last child is left alone. It prints, as
JSON, what it did and checksums of the weights, and those of an undisturbed training.
Weights include their moving average. A process of its own, because forking needs one
that has not yet used autograd.
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

from torch import Tensor, nn

from roadseg import dataset1, runtime, training, unet
from roadseg.recipes import Phase, Recipe
from roadseg.scenes import RoadScenes


class Small(nn.Module):
    """An encoder and a head with all that has a state: dropout, batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, 12, H, W) of images (N, 3, H, W)."""
        return self.head(self.encoder(x))


# more epochs than kills can be survived, so that no child comes to the end
CHOICES = {
    "unet": (unet.UNet, (Phase(10, 32, 64), Phase(6, 64, 96))),
    "small": (Small, (Phase(30, 32, 64), Phase(30, 64, 96))),
}
NETWORK, PHASES = CHOICES[sys.argv[4] if len(sys.argv) > 4 else "unet"]
RECIPE = Recipe("killed", PHASES, None, batch_size=8, ema_decay=0.9)


def train(scenes: RoadScenes, folder: Path) -> None:
    """Train in this process, from the newest checkpoint on, and store a checksum."""
    runtime.seed_everything(random.SystemRandom().randrange(2**31))
    # the weights of the first start; a resumed training must not depend on them
    if not list(folder.glob("epoch-*")):
        runtime.seed_everything(0)
    result = training.fit(NETWORK(), scenes, RECIPE, folder=folder)
    digest = hashlib.sha256()
    for model in (result.model, result.averaged):
        for name, tensor in model.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    losses = [row["train_loss"] for row in result.history]
    answer = {"weights": digest.hexdigest(), "losses": losses}
    (folder / "answer.json").write_text(json.dumps(answer))


def doom(draft: Path, opened: int) -> None:
    """Let this process kill itself when it has opened so many files of a draft.

    They are opened to be written, for their checksums, and to be flushed.
    """
    left = [opened]

    def look(event: str, args: tuple) -> None:
        # without a mode it is a folder, of which an older draft is deleted
        if event == "open" and args[1] and draft.name in str(args[0]):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def start(
    scenes: RoadScenes,
    folder: Path,
    draft: Path | None = None,
    opened: int = 0,
) -> int:
    """Fork a child that trains, perhaps doomed; return its process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        if draft:
            doom(draft, opened)
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
    return max((int(p.name[6:]) for p in folder.glob("epoch-*")), default=0)


def drafts(folder: Path) -> set[tuple[str, int]]:
    """Return the unfinished checkpoints and when something was last put into them."""
    return {(p.name, p.stat().st_mtime_ns) for p in folder.glob(".draft-*")}


def kill_one(
    scenes: RoadScenes,
    folder: Path,
    chance: random.Random,
    anywhere: bool,
    period: float,
) -> dict:
    """Start a child and kill it; say where that caught it.

    An epoch and its checkpoint take about `period` seconds.
    """
    before, old_drafts = newest(folder), drafts(folder)
    near = before > RECIPE.epochs - 5  # a finished training cannot be killed
    anywhere, gains = anywhere and not near, not near and chance.random() < 0.6
    draft = folder / f".draft-epoch-{before + 1 + gains:03}"
    if not anywhere and chance.random() < 0.6:
        pid = start(scenes, folder, draft, chance.randint(1, 12))
        return _ended(pid, folder, before, old_drafts, 0.0)
    pid = start(scenes, folder)
    began = time.perf_counter()
    if not anywhere and not wait_for(draft.exists, pid):
        raise SystemExit(f"a child ended by itself: see {folder / 'log.txt'}")
    if anywhere:
        if gains:
            wait_for(lambda: newest(folder) > before, pid)
            began = time.perf_counter()
        time.sleep(chance.uniform(0, period))
    else:
        time.sleep(chance.uniform(0, period / (100 if near else 2)))
    waited = time.perf_counter() - began
    os.kill(pid, signal.SIGKILL)
    return _ended(pid, folder, before, old_drafts, waited)


def _ended(
    pid: int, folder: Path, before: int, old_drafts: set[tuple[str, int]], waited: float
) -> dict:
    """Return where the death of a child caught it."""
    _, status = os.waitpid(pid, 0)
    return {
        "killed": os.WIFSIGNALED(status),
        "waited": round(waited, 3),
        "before": before,
        "after": newest(folder),
        "writing": bool(drafts(folder) - old_drafts),
    }


def main(folder: str, kills: str, seed: str, *_: str) -> None:
    """Do all of it and print it."""
    chance = random.Random(int(seed))
    root = Path(folder)
    (root / "whole").mkdir(parents=True)
    (root / "killed").mkdir()
    scenes = dataset1.load()[0]
    began = time.perf_counter()
    os.waitpid(start(scenes, root / "whole"), 0)
    period = (time.perf_counter() - began) / RECIPE.epochs
    rounds = [
        kill_one(scenes, root / "killed", chance, i % 3 == 0, period)
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
