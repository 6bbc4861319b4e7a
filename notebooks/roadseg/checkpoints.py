"""Checkpoints of a training: written whole or not at all, verified, never mixed up."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from roadseg import runtime
from roadseg.classes import RoadsegError

KEPT = 2
"""Checkpoints that are kept while training: the newest and one to fall back on."""


class TrainingError(RoadsegError, RuntimeError):
    """A training that cannot start or continue; the message says why."""


class Checkpoints:
    """Checkpoints of one training in one folder; the newest two are kept.

    A checkpoint is a folder ``epoch-007`` with what `Accelerator.save_state` writes
    (network, optimizer, schedule, random states), the progress so far, and checksums.
    accelerate's own rotation writes in place and deletes the old ones first; here a
    draft is renamed once it is complete.

    Args:
        folder: Created with the first checkpoint.
        run_config: What identifies the training, as JSON can hold it: recipe, data,
            initial weights.
    """

    def __init__(self, folder: str | os.PathLike, run_config: dict) -> None:
        self.folder = Path(folder)
        self.run_config = json.loads(json.dumps(run_config))
        self.newest: Path | None = None

    def latest(self) -> dict | None:
        """Return the progress in the newest undamaged checkpoint, None without any.

        Returns:
            A dict with run_config, history, seconds and precision.

        Raises:
            TrainingError: If the folder holds another training, or checkpoints of
                which none is undamaged.
        """
        self.newest = None
        found = _epochs(self.folder)
        for path in reversed(found):
            if reason := _damage(path):
                print(f"checkpoint {path.name} is damaged ({reason}): falling back")
                continue
            progress = json.loads((path / "progress.json").read_text())
            self._check_same_training(progress["run_config"])
            self.newest = path
            return progress
        if found:
            raise TrainingError(
                f"no undamaged checkpoint in {runtime.display_path(self.folder)}: "
                "delete the folder, or train with resume=False, to start over"
            )
        return None

    def _check_same_training(self, run_config: dict) -> None:
        old, new = _flat(run_config), _flat(self.run_config)
        changes = [
            f"{k} was {old.get(k)}, is {new.get(k)}"
            for k in sorted(old | new)
            if old.get(k) != new.get(k)
        ]
        if changes:
            raise TrainingError(
                f"{runtime.display_path(self.folder)} holds another training "
                f"({'; '.join(changes)}): choose another folder, or resume=False to "
                "delete it and start over"
            )

    def load(self, accelerator: Accelerator) -> tuple[list[dict], float]:
        """Load what `latest` found; return the history and the seconds so far."""
        scaler = accelerator.scaler
        if not (self.newest / "scaler.pt").exists():  # it was not fp16 until now
            accelerator.scaler = None
        accelerator.load_state(str(self.newest))
        accelerator.scaler = scaler
        progress = json.loads((self.newest / "progress.json").read_text())
        return progress["history"], progress["seconds"]

    def save(
        self,
        accelerator: Accelerator,
        history: list[dict],
        seconds: float,
        precision: str,
    ) -> None:
        """Write the checkpoint of the last epoch in the history.

        Raises:
            TrainingError: If it cannot be written, for instance because the disk is
                full; the checkpoints before it are kept.
        """
        name = f"epoch-{len(history):03}"
        # one name for all processes; a killed training leaves one draft at most
        draft = self.folder / f".draft-{name}"
        try:
            if accelerator.is_main_process:
                _delete(draft)
                draft.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(draft))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                progress = {
                    "run_config": self.run_config,
                    "history": history,
                    "seconds": seconds,
                    "precision": precision,
                }
                self._publish(draft, self.folder / name, progress)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_write_error(error):
                raise
            raise TrainingError(
                f"{name} cannot be written to {runtime.display_path(self.folder)} "
                f"({error}): free some disk space and run it again; the checkpoints "
                "before it are kept"
            ) from None

    def _publish(self, draft: Path, final: Path, progress: dict) -> None:
        """Complete a draft, give it its name, and delete what it replaces."""
        (draft / "progress.json").write_text(json.dumps(progress, indent=1))
        (draft / "sha256.json").write_text(json.dumps(_checksums(draft)))
        _flush_to_disk(draft)
        _delete(final)  # a damaged one of this name
        os.replace(draft, final)
        self._keep(KEPT)

    def _keep(self, count: int) -> None:
        found = _epochs(self.folder)
        for old in found[: max(0, len(found) - count)]:
            _delete(old)

    def clear(self, keep: int = 0) -> None:
        """Delete all checkpoints but the newest few, and what was left half-written."""
        for draft in self.folder.glob(".draft-*"):
            _delete(draft)
        self._keep(keep)


def _delete(folder: Path) -> None:
    """Delete a checkpoint, its files emptied first.

    Google Drive, mounted in Colab, moves deleted files to its trash, where they count
    against the quota for weeks: 40 checkpoints fill nearly all of a free 15 GB Drive.
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


def _is_write_error(error: Exception) -> bool:
    """Return whether writing failed; PyTorch has no exception type for that."""
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
        expected = dict(json.loads((folder / "sha256.json").read_text()))
        expected["progress.json"]
    except (OSError, ValueError, TypeError, KeyError):
        return "it has no readable checksums"
    found = _checksums(folder)
    for name, digest in expected.items():
        if found.get(name) != digest:
            return f"{name} is {'changed' if name in found else 'missing'}"
    return None


def _flush_to_disk(folder: Path) -> None:
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
