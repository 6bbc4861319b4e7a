"""Faults put into roadseg by hand, one at a time: do the tests see them?

    python tests/mutations.py            # all of them, some minutes
    python tests/mutations.py void       # those whose name holds a word

Each is put into a copy of the course in a temporary folder, where the test files that
should see it run until the first of their tests fails. A mutation is caught if one
does, has slipped through if none does. `tests/test_mutations.py` keeps the list
current.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("notebooks", "scripts", "tests", "data", "book", "pyproject.toml")
COPIED += ("requirements.txt", "README.md", "LICENSE")


class Mutation(NamedTuple):
    """One fault: in a module, what stands there, what is put there, who sees it."""

    name: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]


def _one(name: str, module: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, module, old, new, tests or (f"test_{module}.py",))


MUTATIONS = (
    # classes, images, scenes
    _one("two classes are swapped", "classes", '"Pole",\n        "Road",',
         '"Road",\n        "Pole",'),
    _one("checksums of chunks are ignored", "images", "image.verify()", "image.tell()"),
    _one("subset forgets the masks", "scenes",
         '("images", "masks", "filenames", "sequences", "_sizes"):',
         '("images", "filenames", "sequences", "_sizes"):'),
    _one("another split is held out", "scenes", "np.isin(block_of, order[:wanted])",
         "np.isin(block_of, order[-wanted:])"),
    # files
    _one("two dots pass", "files", '".." in name.split("/") or ', ""),
    _one("links pass", "files", "stat.S_ISLNK(member.external_attr >> 16)",
         "stat.S_ISLNK(member.external_attr)"),
    _one("any compression passes", "files",
         "(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)", "range(99)"),
    _one("downloads have no end", "files", "> MAX_DOWNLOAD:", "> 1e99:"),
    _one("the lock is not taken", "files",
         "with locked(lock, runtime.display_path(target)) as held:",
         "for held in [True]:"),
    _one("a folder of others is replaced", "files",
         "if target.exists() and not (target / MANIFEST).exists():", "if False:"),
    # unet, weights
    _one("VGG is cut behind the poolings", "unet", "pools = [i for i, (_, x)",
         "pools = [i + 1 for i, (_, x)"),
    _one("skips are taken in the wrong order", "unet", "reversed(skips)", "skips"),
    _one("padding is on the wrong side", "unet", "(0, -width % STRIDE, 0,",
         "(-width % STRIDE, 0, 0,"),
    _one("normalization of another network", "unet", "(0.485, 0.456, 0.406)",
         "(0.5, 0.5, 0.5)"),
    _one("code in weights is run", "weights", "state = torch.load(path, map_location="
         '"cpu", weights_only=True', "state = torch.load(path, map_location="
         '"cpu", weights_only=False'),
    _one("weights of nan pass", "weights", "if not torch.isfinite(v).all():",
         "if torch.isfinite(v).sum() < 0:"),
    _one("a loaded network is left in training", "weights",
         "SavedModel(model.eval(), labels", "SavedModel(model.train(), labels"),
    # recipes
    _one("masks are half a pixel off", "recipes",
         "mask, self.size, interpolation=v2.InterpolationMode.NEAREST_EXACT",
         "mask, self.size, interpolation=v2.InterpolationMode.NEAREST"),
    _one("ignored pixels are in the class weights", "recipes",
         "        counts[labels.ignore_index] = 0\n", "        pass\n"),
    _one("the encoder learns as fast", "recipes", '"lr": recipe.lr_encoder',
         '"lr": recipe.lr_decoder'),
    _one("another class is out of the loss", "recipes",
         "WeightedCrossEntropy(weight, labels.ignore_index)",
         "WeightedCrossEntropy(weight, 0)"),
    # training, checkpoints, distributed
    _one("pixels without a label count", "training",
         "& labeled).sum(), labeled.sum()", "& labeled).sum(), labeled.numel()"),
    _one("gradients pile up", "training", "        self.optimizer.zero_grad()\n", ""),
    _one("the schedule stands still", "training",
         "        self.scheduler.step()\n", ""),
    _one("the average stands still", "training",
         "            self.averaged.update_parameters(self.plain)\n",
         "            pass\n"),
    _one("a resumed training begins its plan again", "training",
         "plan[done:], done + 1", "plan, 1"),
    _one("a nan is passed over", "training", "        if len(bad) == 0:",
         "        if len(bad) < 99:"),
    _one("a damaged checkpoint passes", "checkpoints", "if found.get(name) != digest:",
         "if name not in found:"),
    _one("a checkpoint is written in place", "checkpoints",
         'draft = self.folder / f".draft-{name}"', "draft = self.folder / name"),
    _one("another training is resumed", "checkpoints",
         '            self._check_same_training(progress["run_config"])\n', ""),
    # metrics, inference
    _one("ignored pixels are in the accuracy", "metrics",
         "acc12=(right.sum() / counts.sum())", "acc12=(right.sum() / labeled.sum())"),
    _one("the mean IoU counts absent classes", "metrics", "iou.nanmean()",
         "iou.nan_to_num().mean()"),
    _one("the flipped prediction is not flipped back", "inference",
         "_checked(flipped, labels).flip(-1))", "_checked(flipped, labels))"),
    _one("labels are resized, not logits", "inference",
         '(bottom - top, size[1]), mode="bilinear")',
         '(bottom - top, size[1]), mode="nearest")'),
    # runtime, synthetic
    _one("the quick profile is not exact", "runtime",
         "if (profile or settings().profile).deterministic:", "if False:"),
    _one("all streets are one", "synthetic", "_Street(seed, sequence + 1)",
         "_Street(seed, 1)"),
)  # fmt: skip


def place(mutation: Mutation, root: Path) -> Path:
    """Return the file of a mutation."""
    return root / "notebooks" / "roadseg" / f"{mutation.module}.py"


def count(mutation: Mutation, root: Path = ROOT) -> int:
    """Return how often the text that it replaces occurs."""
    return place(mutation, root).read_text(encoding="utf-8").count(mutation.old)


def run_tests(root: Path, files: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Run test files until one test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", "--no-header", "--tb=no"]
    return subprocess.run(
        [*command, *(f"tests/{file}" for file in files)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def verdict(mutation: Mutation, root: Path) -> str:
    """Try a mutation in a copy of the course; return caught, slipped or an error."""
    path = place(mutation, root)
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        done = run_tests(root, mutation.tests)
    finally:
        path.write_text(sound, encoding="utf-8")
    words = {0: "SLIPPED", 1: "caught"}
    return words.get(done.returncode, f"ERROR {done.returncode}: {done.stdout[-300:]}")


def main(words: list[str]) -> int:
    """Try all mutations, or those that words choose; return the exit status."""
    chosen = [m for m in MUTATIONS if all(w in m.name for w in words)]
    roots: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for number in range(2):
            root = Path(folder, str(number))
            copy(root)
            roots.put(root)
        sound = tuple(sorted({file for m in chosen for file in m.tests}))
        done = run_tests(Path(folder, "0"), sound)
        if done.returncode:
            print(f"the tests fail without any mutation:\n{done.stdout[-2000:]}")
            return 2

        def one(mutation: Mutation) -> str:
            root = roots.get()
            start = time.monotonic()
            try:
                found = verdict(mutation, root)
            finally:
                roots.put(root)
            seconds = time.monotonic() - start
            print(f"{found:<8}{seconds:>5.0f} s  {mutation.module}: {mutation.name}")
            sys.stdout.flush()
            return found

        verdicts = list(pool.map(one, chosen))
    caught = verdicts.count("caught")
    print(f"{caught} of {len(chosen)} mutations caught")
    return int(caught < len(chosen))


def copy(root: Path) -> None:
    """Copy what the tests need into a new folder."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*", "dataset1")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, root / name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
