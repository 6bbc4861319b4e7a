"""Checkpoints of a training: whole or not there, checked, and of this very training."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from roadseg import runtime
from roadseg.dataset1 import RoadScenes
from roadseg.recipes import Recipe


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says why and what to do."""


class Checkpoints:
    """Checkpoints of one training in one folder; the newest two are kept.

    A checkpoint is a folder ``epoch-007`` with what `Accelerator.save_state`
    writes (network, optimiser, schedule, random states), the position, and
    checksums. It is written beside and renamed when whole.

    Args:
        folder: Made if need be.
        recipe: What the training does.
        scenes: What it trains on.
        encoder: Where the encoder's first weights come from.

    Raises:
        TrainingError: On `position`, if the folder holds another training; on
            `save`, if the disk is full.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        recipe: Recipe,
        scenes: RoadScenes,
        encoder: str,
    ) -> None:
        self.folder = Path(folder)
        self.kind = {
            "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
            "data": f"{len(scenes)} scenes: {scenes.origin}",
            "contents": contents(scenes),
            "encoder": encoder,
        }
        self.newest: Path | None = None

    def position(self) -> dict | None:
        """Return the position of the newest good checkpoint, None without any."""
        self.newest = None
        found = _epochs(self.folder)
        for path in reversed(found):
            if reason := _damage(path):
                print(f"the checkpoint {path.name} is damaged ({reason}): going back")
                continue
            position = json.loads((path / "position.json").read_text())
            self._same_training(position["kind"])
            self.newest = path
            return position
        if found:
            raise TrainingError(
                f"no checkpoint in {runtime.short(self.folder)} is whole: delete the "
                "folder, or train with resume=False, to begin anew"
            )
        return None

    def _same_training(self, kind: dict) -> None:
        old, new = _flat(kind), _flat(self.kind)
        if old.get("contents") == new["contents"]:  # a folder may be called otherwise
            old["data"] = new["data"]
        changes = [
            f"{k} was {old.get(k)}, is {new.get(k)}"
            for k in sorted(old | new)
            if old.get(k) != new.get(k)
        ]
        if changes:
            raise TrainingError(
                f"{runtime.short(self.folder)} holds another training "
                f"({'; '.join(changes)}): choose another folder, or resume=False to "
                "delete it and begin anew"
            )

    def load(self, accelerator: Accelerator) -> tuple[list[dict], float]:
        """Load what `position` found; return the history and the seconds so far."""
        scaler = accelerator.scaler
        if not (self.newest / "scaler.pt").exists():  # it was no fp16 until now
            accelerator.scaler = None
        accelerator.load_state(str(self.newest))
        accelerator.scaler = scaler
        position = json.loads((self.newest / "position.json").read_text())
        return position["history"], position["seconds"]

    def save(
        self,
        accelerator: Accelerator,
        history: list[dict],
        seconds: float,
        precision: str,
    ) -> None:
        """Write the checkpoint of the last epoch in the history."""
        name = f"epoch-{len(history):03}"
        draft = self.folder / f".draft-{name}"
        if accelerator.is_main_process:
            _delete(draft)
            draft.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(draft))
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _unwritten(error):
                raise
            raise TrainingError(
                f"{name} cannot be written to {runtime.short(self.folder)} "
                f"({error}): free the disk, then run it again; those before are kept"
            ) from None
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        position = {
            "kind": self.kind,
            "history": history,
            "seconds": seconds,
            "precision": precision,
        }
        (draft / "position.json").write_text(json.dumps(position, indent=1))
        (draft / "sha256.json").write_text(json.dumps(_checksums(draft)))
        _sync(draft)
        final = self.folder / name
        _delete(final)  # a damaged one of this name
        os.replace(draft, final)
        for old in _epochs(self.folder)[:-2]:
            _delete(old)

    def clear(self) -> None:
        """Delete all checkpoints."""
        for old in [*_epochs(self.folder), *self.folder.glob(".draft-*")]:
            _delete(old)


def contents(scenes: RoadScenes) -> str:
    """Return a digest, 16 hexadecimal digits, of all pictures and masks in their order.

    What pictures are called and where they lie does not enter it.
    """
    digest = hashlib.sha256()
    for image, mask in zip(scenes.images, scenes.masks, strict=True):
        for part in (image, mask):
            digest.update(str((tuple(part.shape), part.dtype)).encode())
            digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:16]


def _delete(folder: Path) -> None:
    """Delete a checkpoint, its files emptied first.

    Google Drive, mounted in Colab, moves what is deleted to its bin, where it takes
    room for weeks: of 40 checkpoints nearly all the 15 GB that a free Drive has.
    """
    if not folder.exists():
        return
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    shutil.rmtree(folder)


def _epochs(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, the oldest first: 1000 comes after 999."""
    found = [p for p in folder.glob("epoch-*") if p.name[6:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[6:]))


def _unwritten(error: Exception) -> bool:
    """Return whether an error is of writing; torch has no type of its own for that."""
    words = ("PytorchStreamWriter", "inline_container")
    return not isinstance(error, RuntimeError) or any(w in str(error) for w in words)


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "sha256.json":
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if nothing is."""
    try:
        wanted = dict(json.loads((folder / "sha256.json").read_text()))
        wanted["position.json"]
    except (OSError, ValueError, TypeError, KeyError):
        return "it has no readable checksums"
    found = _checksums(folder)
    for name, digest in wanted.items():
        if found.get(name) != digest:
            return f"{name} is {'changed' if name in found else 'missing'}"
    return None


def _sync(folder: Path) -> None:
    """Make the system write a folder's files out before it is renamed."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for k, v in tree.items():
        flat |= _flat(v, f"{k}.") if isinstance(v, dict) else {prefix + k: v}
    return flat
