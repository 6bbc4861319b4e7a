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
    # classes: names, colours
    _one("two classes change places", "classes", '"Pole",\n    "Road",',
         '"Road",\n    "Pole",'),
    _one("a colour of a class is another's", "classes", "(192, 192, 128)",
         "(128, 64, 128)"),
    _one("a label too high is painted", "classes", "labels.max() >= NUM_CLASSES",
         "labels.max() > NUM_CLASSES"),
    # dataset1: reading
    _one("label 12 passes", "dataset1", "if labels.max() >= NUM_CLASSES:",
         "if labels.max() > NUM_CLASSES:"),
    _one("a mask of another size passes", "dataset1",
         "if labels.shape != image.shape[:2]:", "if labels.ndim != 2:"),
    _one("partners are not compared", "dataset1", "sorted(pictures ^ masks)",
         "sorted(masks - pictures)"),
    _one("checksums of chunks are not looked at", "dataset1",
         "            image.verify()", "            image.tell()"),
    _one("16 bits pass", "dataset1", "depth > 8 or", "depth > 16 or"),
    _one("the note to turn a picture is ignored", "dataset1",
         "Orientation, 1) != 1:", "Orientation, 1) > 8:", "test_robust.py"),
    _one("colours change places", "dataset1", "    return np.array(image)\n",
         "    return np.array(image)[..., ::-1]\n"),
    _one("a bad source leaves its files", "dataset1",
         "            shutil.rmtree(new)\n            new.mkdir()\n", ""),
    _one("the size is not required", "dataset1", "if found.sizes != (wanted.size,):",
         "if not found.sizes:"),
    _one("subset forgets the masks", "dataset1",
         '("images", "masks", "names", "drives")', '("images", "names", "drives")'),
    _one("a held-out drive leaks", "dataset1", "LeaveOneGroupOut()",
         "GroupShuffleSplit(100, test_size=1)"),
    # archives: safety
    _one("two dots pass", "archives", '".." in name.split("/") or ', ""),
    _one("links pass", "archives", "if stat.S_ISLNK(member.external_attr >> 16):",
         "if stat.S_ISLNK(member.external_attr):"),
    _one("any compression passes", "archives",
         "(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)", "range(99)"),
    _one("downloads have no end", "archives", "> MAX_DOWNLOAD:", "> 1e99:"),
    _one("folders are published before they are whole", "archives",
         "        made_from = fill(new)\n", "        new = target\n        new.mkdir("
         "exist_ok=True)\n        made_from = fill(new)\n"),
    _one("the lock is not taken", "archives", "        with _lock(target):\n",
         "        if True:\n"),
    _one("somebody's folder is replaced", "archives",
         "if target.exists() and not (target / MARKER).exists():", "if False:"),
    # unet: architecture and weights
    _one("VGG is cut behind the poolings", "unet", "pools = [i for i, (_, x)",
         "pools = [i + 1 for i, (_, x)"),
    _one("skips are taken in the wrong order", "unet", "reversed(skips)", "skips"),
    _one("padding is on the wrong side", "unet", "(0, -width % STRIDE, 0,",
         "(-width % STRIDE, 0, 0,"),
    _one("normalisation is of another network", "unet", "(0.485, 0.456, 0.406)",
         "(0.5, 0.5, 0.5)"),
    _one("code in weights is run", "unet", "weights_only=True)\n    except",
         "weights_only=False)\n    except"),
    _one("weights of nan pass", "unet", "if not torch.isfinite(v).all():",
         "if torch.isfinite(v).sum() < 0:"),
    _one("a loaded network is left in training", "unet",
         "    return model.eval(), facts", "    return model.train(), facts"),
    # training
    # void also weighs nothing, so leaving it in would change nothing
    _one("sky is out of the loss", "training", "ignore_index=VOID)", "ignore_index=0)"),
    _one("void is in the class weights", "training", "    counts[VOID] = 0\n", ""),
    _one("pictures and masks are mirrored apart", "training",
         "return image.as_subclass(Tensor), mask.as_subclass(Tensor), i",
         "return image.as_subclass(Tensor), mask.as_subclass(Tensor).flip(-1), i"),
    _one("pixels count that have no label", "training",
         "predicted == masks) & labelled).sum(), labelled.sum()",
         "predicted == masks) & labelled).sum(), labelled.numel()"),
    _one("a void prediction is allowed", "training",
         "logits[:, :NUM_SCORED].argmax(1)", "logits.argmax(1)"),
    _one("the encoder learns as fast", "training", '"lr": recipe.lr_encoder',
         '"lr": recipe.lr_decoder'),
    _one("gradients pile up", "training", "        self.optimiser.zero_grad()\n        "
         "right", "        right"),
    _one("the schedule stands still", "training", "        self.schedule.step()\n", ""),
    _one("a resumed training begins its plan anew", "training",
         "plan[done:], done + 1", "plan, 1", "test_checkpoints.py"),
    _one("a nan is passed over", "training", "        if len(bad) == 0:",
         "        if len(bad) < 99:"),
    _one("a damaged checkpoint passes", "checkpoints", "if found.get(name) != digest:",
         "if name not in found:"),
    _one("a checkpoint is written in place", "checkpoints",
         '        draft = self.folder / f".draft-{name}"',
         "        draft = self.folder / name"),
    _one("another recipe goes on", "checkpoints",
         '            self._same_training(position["kind"])\n', ""),
    _one("the last checkpoint is deleted", "checkpoints",
         "_epochs(self.folder)[:-2]", "_epochs(self.folder)[1:]"),
    # evaluation
    _one("rows and columns of the confusion change places", "evaluation",
         "predicted.long(), truth.long()", "truth.long(), predicted.long()"),
    _one("void is in the accuracy", "evaluation", "right.sum() / labelled.sum()",
         "right.sum() / counts.sum()"),
    _one("the union counts the intersection twice", "evaluation",
         "labelled.sum(0)[:NUM_SCORED] - right", "labelled.sum(0)[:NUM_SCORED]"),
    _one("void is predicted", "evaluation",
         "logits = logits[:, :NUM_SCORED].float()  #", "logits = logits.float()  #"),
    _one("labels are resized, not logits", "evaluation", 'mode="bilinear"',
         'mode="nearest"'),
    _one("the mirrored prediction is not mirrored back", "evaluation",
         "images.shape[-2:]).flip(-1)) / 2", "images.shape[-2:])) / 2"),
    _one("pictures are left lying", "evaluation", "ImageOps.exif_transpose(file)",
         "file"),
    _one("16 bits are clipped", "evaluation", 'picture.mode.startswith("I"):',
         'picture.mode.startswith("X"):'),
    _one("large pictures are fed whole", "evaluation", "size = size or _affordable(",
         "size = size or tuple(", "test_robust.py"),
    # runtime, synthetic
    _one("quick is not exact", "runtime",
         'profile().name == "quick" or here.type == "mps"', 'here.type == "mps"'),
    _one("all streets are one", "synthetic", "street = _Street(seed, drive + 1)",
         "street = _Street(seed, 1)"),
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
