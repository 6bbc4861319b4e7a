"""Training: a loop on accelerate that follows a recipe and keeps checkpoints.

The loop is what chapter 4 builds by hand, with what makes it fast and safe around
it: `accelerate` (https://huggingface.co/docs/accelerate) for devices, precision
and processes; sizes that grow (Howard and Gugger 2020, https://arxiv.org/abs/2002.04688);
a one-cycle schedule (Smith and Topin 2019, https://arxiv.org/abs/1708.07120) with
AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).
"""

import contextlib
import copy
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from roadseg import runtime, unet
from roadseg.checkpoints import Checkpoints, TrainingError, contents
from roadseg.classes import NUM_CLASSES, NUM_SCORED, VOID
from roadseg.dataset1 import RoadScenes
from roadseg.evaluation import pixel_counts, predict_scenes
from roadseg.recipes import Recipe, Stage

if TYPE_CHECKING:
    from torch_snippets import Report


class TrainingInterrupted(KeyboardInterrupt):
    """A training stopped by Ctrl-C; the message says what is saved."""

    def _render_traceback_(self) -> list[str]:
        """Show the message alone in a notebook, where IPython asks for this."""
        return [str(self)]


@dataclass
class Run:
    """A finished training.

    Attributes:
        model: The network, trained, on the device it was trained on.
        history: One dict an epoch: epoch, height, width, train_loss, train_acc
            (void left out), seconds, and what `on_epoch` returned.
        seconds: Time spent training, over all resumptions, without what
            `on_epoch` took.
        precision: bf16, fp16 or no.
    """

    model: unet.UNet
    history: list[dict]
    seconds: float
    precision: str

    @property
    def log(self) -> "Report":
        """The history as a torch_snippets Report, for its plots."""
        report = new_report(len(self.history))
        with contextlib.redirect_stdout(None):
            for row in self.history:
                record(report, row)
        return report


# --- what the learner sees ----------------------------------------------------


def new_report(epochs: int) -> "Report":
    """Return an empty torch_snippets Report over a number of epochs."""
    from torch_snippets import Report  # takes seconds to import: only here

    return Report(epochs)


def record(report: "Report", row: dict) -> None:
    """Write one epoch of a history into a report, which prints it."""
    shown = {k: v for k, v in row.items() if k not in NOT_REPORTED}
    report.record(pos=row["epoch"], **shown, end="\n")


NOT_REPORTED = ("epoch", "height", "width", "seconds")


# --- pictures and loss --------------------------------------------------------


class AlignedRandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's RandomResizedCrop with image and mask on one pixel grid.

    torchvision resizes a Mask with NEAREST, which samples the upper left corner of
    each output pixel; the bilinear image is sampled at the center. The mask then
    lies up to half an output pixel below and to the right of the image. Here both
    are cropped at the same integer box, and the mask is resized with NEAREST_EXACT,
    which samples centers. It is resized as a plain tensor, because torchvision
    before 0.29 replaces NEAREST_EXACT by NEAREST for a Mask.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop and resize one input; an image (3, H, W) or a mask (H, W)."""
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        box = (params[k] for k in ("top", "left", "height", "width"))
        mask = v2.functional.crop(inpt.as_subclass(Tensor)[None], *box)
        mask = v2.functional.resize(
            mask, self.size, interpolation=v2.InterpolationMode.NEAREST_EXACT
        )
        return tv_tensors.wrap(mask[0], like=inpt)


def train_transform(recipe: Recipe, stage: Stage) -> v2.Compose:
    """Return the augmentation of a stage: crop, horizontal flip, color jitter.

    It takes and gives an image (3, H, W) and a mask (H, W), uint8 tv_tensors.
    """
    size = (stage.height, stage.width)
    return v2.Compose(
        [
            AlignedRandomResizedCrop(
                size, scale=(recipe.crop, 1.0), ratio=(1.1, 1.6), antialias=True
            ),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter),
        ]
    )


def class_weights(masks: Iterable[Tensor], power: float = 0.5) -> Tensor:
    """Weigh classes by a power of (median frequency / own frequency).

    Median frequency balancing is Eigen and Fergus 2015
    (https://arxiv.org/abs/1411.4734), used for CamVid by SegNet; they count a
    class in those pictures that show it, we in all. The root boosts rare classes
    less, which costs less accuracy on the common ones.

    Args:
        masks: (H, W) integers, 0 to 11.
        power: 1 takes no root, as they did; 0.5 is the square root; 0 gives all
            classes the same.

    Returns:
        (12,) float32; 0 for void and for classes that never occur.
    """
    counts = pixel_counts(masks).double()
    counts[VOID] = 0
    weights = torch.zeros_like(counts)
    present = counts > 0
    weights[present] = (counts[present].median() / counts[present]) ** power
    return weights.float()


def make_loss(recipe: Recipe, masks: Iterable[Tensor]) -> nn.CrossEntropyLoss:
    """Return the loss: cross-entropy without void, with the recipe's class weights."""
    weights = class_weights(masks, recipe.class_weights)
    return nn.CrossEntropyLoss(weight=weights, ignore_index=VOID)


class _Numbered(Dataset):
    """Scenes with their numbers, so that a bad batch can be named."""

    def __init__(self, scenes: RoadScenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        image, mask = self.scenes[i]
        return image.as_subclass(Tensor), mask.as_subclass(Tensor), i


# --- the loop -----------------------------------------------------------------


def fit(
    model: unet.UNet,
    scenes: RoadScenes,
    recipe: Recipe,
    folder: str | os.PathLike | None = None,
    resume: bool = True,
    on_epoch: Callable[[int, unet.UNet], dict | None] | None = None,
) -> Run:
    """Train a network by a recipe.

    Void pixels are left out of the loss. Losses stay on the device until the end
    of an epoch. With a folder, each epoch ends with a checkpoint, written whole
    or not at all, and an interrupted training goes on from the newest good one,
    on a CPU to the same bits. Processes that a launcher started together share
    each batch; they need one folder, and one of them writes to it.

    Args:
        model: The network; it is trained in place.
        scenes: Training scenes; their transform is replaced by the recipe's.
        recipe: What to do.
        folder: Where checkpoints go; without it there are none.
        resume: Go on from the checkpoints in the folder; False begins anew and
            deletes them.
        on_epoch: Called after each epoch with its number (1, 2, ...) and the
            network; the numbers it returns join the history.

    Returns:
        The trained network and its history.

    Raises:
        ValueError: If there are no scenes.
        TrainingError: If the loss is not finite, memory runs out, the folder
            holds a training of another recipe or other data, the processes cannot
            share a batch equally, or another of them has ended.
        TrainingInterrupted: After Ctrl-C.
    """
    if len(scenes) == 0:
        raise ValueError("there are no scenes to train on")
    checkpoints = Checkpoints(folder, recipe, scenes, model.origin) if folder else None
    if checkpoints and not resume:
        with processes().main_process_first():
            checkpoints.clear()
    trainer = _Trainer(model, scenes, recipe, checkpoints, on_epoch)
    try:
        _run_to_the_end(trainer)
    except KeyboardInterrupt:  # also one that comes while another error is told
        raise TrainingInterrupted(trainer.where_it_stands()) from None
    return Run(model, trainer.history, trainer.seconds, trainer.precision)


@contextlib.contextmanager
def _memory_in_words(recipe: Recipe) -> Iterator[None]:
    """Let memory that runs out end in a sentence with a batch size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not runtime.out_of_memory(error):
            raise
        size = recipe.batch_size
        raise TrainingError(
            f"the device's memory does not hold batches of {size}: "
            f"try batch_size={max(1, size // 2)} in the recipe"
        ) from None


def _run_to_the_end(trainer: "_Trainer") -> None:
    try:
        with _memory_in_words(trainer.recipe):
            trainer.run()
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise TrainingError(
            f"another process of this training has ended: {trainer.where_it_stands()}"
        ) from None
    finally:
        trainer.close()


class _Trainer:
    """The state of one call of `fit`."""

    def __init__(self, model, scenes, recipe, checkpoints, on_epoch) -> None:
        self.recipe, self.scenes, self.checkpoints = recipe, scenes, checkpoints
        self.on_epoch = on_epoch
        self.history: list[dict] = []
        self.seconds = 0.0
        together = processes()
        self.many, self.main = together.num_processes > 1, together.is_main_process
        with _silent(not self.main):
            saved = checkpoints.position() if checkpoints else None
        # a resumed training keeps its number format, or its bits would change; begun
        # on another machine, it can have one that is not here
        kept = saved and runtime.has_format(saved["precision"])
        self.precision = saved["precision"] if kept else _precision(recipe)
        self.precision = broadcast_object_list([self.precision])[0]
        self.accelerator = _accelerator(self.precision, recipe.seed)
        self.plain = model
        self._prepare(model)
        if saved:
            self.history, self.seconds = checkpoints.load(self.accelerator)

    def _prepare(self, model: unet.UNet) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        share, rest = divmod(recipe.batch_size, accelerator.num_processes)
        if rest:
            raise TrainingError(
                f"a batch of {recipe.batch_size} cannot be shared equally by "
                f"{accelerator.num_processes} processes: start a number of them that "
                "divides it, or choose another batch_size"
            )
        loaders = [
            DataLoader(
                _Numbered(self.scenes.with_transform(train_transform(recipe, stage))),
                batch_size=share,
                shuffle=True,
                # a last small batch would weigh as much as a whole one
                drop_last=len(self.scenes) >= recipe.batch_size,
                num_workers=_workers(),
                multiprocessing_context=_context(),
                pin_memory=accelerator.device.type == "cuda",
            )
            for stage in recipe.stages
        ]
        if self.many and accelerator.device.type == "cuda":
            # A GPU's part of a batch is too few pictures to take mean and spread
            # from. torch has this for CUDA alone: processes on a CPU, which are for
            # trying things out, normalise over their own parts.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(memory_format=torch.channels_last)
        optimiser = make_optimiser(model, recipe)
        loaders = [accelerator.prepare_data_loader(x) for x in loaders]
        steps = sum(
            s.epochs * len(x) for s, x in zip(recipe.stages, loaders, strict=True)
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=[group["lr"] for group in optimiser.param_groups],
            # torch divides by zero where the rise ends on the first step
            total_steps=max(2, steps),
            pct_start=max(recipe.warmup, 1.5 / max(2, steps)),
        )
        self.loaders = loaders
        self.model, self.optimiser, self.schedule = accelerator.prepare(
            model, optimiser, schedule
        )
        self.loss = make_loss(recipe, self.scenes.masks).to(accelerator.device)
        if self.many:  # checkpoints name the weights as those of one process do
            accelerator.register_save_state_pre_hook(_without_prefix)
            accelerator.register_load_state_pre_hook(self._load_plain)

    def _load_plain(self, models: list[nn.Module], folder: str) -> None:
        load_model(self.plain, Path(folder) / "model.safetensors")
        models.clear()  # what is left is loaded by accelerate

    def run(self) -> None:
        done = len(self.history)
        report = new_report(self.recipe.epochs)
        report.start = time.time() - self.seconds
        for row in self.history if self.main else ():
            record(report, row)
        plan = [
            (stage, loader)
            for stage, loader in zip(self.recipe.stages, self.loaders, strict=True)
            for _ in range(stage.epochs)
        ]
        for epoch, (stage, loader) in enumerate(plan[done:], done + 1):
            row = self._epoch(epoch, stage, loader)
            history = [*self.history, row]
            if self.main:
                record(report, row)
            if self.checkpoints:
                self.checkpoints.save(
                    self.accelerator, history, self.seconds, self.precision
                )
            self.history = history  # only now: Ctrl-C tells how much is saved

    def _epoch(self, epoch: int, stage: Stage, loader: DataLoader) -> dict:
        start = time.perf_counter()
        # each epoch has its own seed: where a run was resumed cannot matter
        rank = self.accelerator.process_index
        runtime.seed_everything(self.recipe.seed + 1000 * epoch + 7 * rank)
        loader.set_epoch(epoch)
        self.model.train()
        what = f"epoch {epoch} of {self.recipe.epochs}, {stage.height} x {stage.width}"
        batches = runtime.progress(loader, what, len(loader)) if self.main else loader
        results = [
            (self._step(images, masks), numbers) for images, masks, numbers in batches
        ]
        # one look at the device for the whole epoch; looking at every step would
        # make the device wait for Python
        table = torch.stack([r for r, _ in results])
        if self.many:  # of whole batches, so that all processes see the same
            table = self.accelerator.reduce(table, "mean")
        losses, right, labelled = table.cpu().double().unbind(1)
        self._check(losses, [n for _, n in results], epoch)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        row = {
            "epoch": epoch,
            "height": stage.height,
            "width": stage.width,
            "train_loss": losses.mean().item(),
            "train_acc": (right.sum() / labelled.sum()).item(),
            "seconds": seconds,
        }
        if self.on_epoch and self.main:
            row |= self.on_epoch(epoch, self.plain) or {}
        return row

    def _step(self, images: Tensor, masks: Tensor) -> Tensor:
        """Take one step; return loss, right pixels, labelled pixels, on the device."""
        x = unet.normalise(images).to(memory_format=torch.channels_last)
        masks = masks.long()
        logits = self.model(x)  # (N, 12, H, W)
        loss = (self._loss_of_part if self.many else self.loss)(logits, masks)
        self.accelerator.backward(loss)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        right, labelled = count_right(logits.detach(), masks)
        return torch.stack([loss.detach().float(), right.float(), labelled.float()])

    def _loss_of_part(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of this process's part of a batch.

        Cross-entropy is divided by the weights of the pixels that it is of. Parts
        have different ones, those that are all void none; what the whole batch has
        divides them all.
        """
        weight, void = self.loss.weight, self.loss.ignore_index
        summed = nn.functional.cross_entropy(
            logits, masks, weight, ignore_index=void, reduction="sum"
        )
        own = weight[masks].sum().float()
        return summed / self.accelerator.reduce(own, "mean")

    def _check(self, losses: Tensor, numbers: list[Tensor], epoch: int) -> None:
        bad = (~losses.isfinite()).nonzero().flatten()
        if len(bad) == 0:
            return
        step = int(bad[0])
        batch = self.accelerator.gather(numbers[step])
        names = ", ".join(self.scenes.names[int(i)] for i in batch)
        raise TrainingError(
            f"the loss of step {step + 1} in epoch {epoch} is {losses[step].item()}; "
            f"its pictures: {names}. Look at them and their masks; if they are "
            "sound, lower the learning rates. The checkpoints before it are kept"
        )

    def where_it_stands(self) -> str:
        done, all_ = len(self.history), self.recipe.epochs
        if self.checkpoints is None:
            return f"stopped after {done} of {all_} epochs; nothing is saved"
        return (
            f"stopped after {done} of {all_} epochs; they are saved in "
            f"{runtime.short(self.checkpoints.folder)}: run it again and it goes on"
        )

    def close(self) -> None:
        # accelerate wraps the network's forward; give the network back as it was
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()


def count_right(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Count pixels predicted right, and pixels that count: void does not.

    Args:
        logits: (N, 12, H, W).
        masks: (N, H, W) integers, 0 to 11.

    Returns:
        Two scalars, int64.
    """
    labelled = masks != VOID
    predicted = logits[:, :NUM_SCORED].argmax(1)
    return ((predicted == masks) & labelled).sum(), labelled.sum()


def make_optimiser(model: unet.UNet, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with a lower rate for the encoder than for the rest."""
    encoder = list(model.encoder.parameters())
    inside = {id(p) for p in encoder}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return torch.optim.AdamW(
        [
            {"params": encoder, "lr": recipe.lr_encoder},
            {"params": rest, "lr": recipe.lr_decoder},
        ],
        weight_decay=recipe.weight_decay,
        fused=runtime.device().type in ("cpu", "cuda"),
    )


def _choose_gpu() -> None:
    """Let the GPU that ``ROADSEG_DEVICE`` names, such as cuda:1, be the current one.

    accelerate takes the current one, unless a launcher gives each process its own.
    """
    device = runtime.device()
    if device.type == "cuda" and device.index and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)


def _precision(recipe: Recipe) -> str:
    return runtime.precision() if recipe.precision == "auto" else recipe.precision


def _accelerator(precision: str, seed: int) -> Accelerator:
    # accelerate keeps one number format a process; a notebook may train in several
    AcceleratorState._reset_state()
    _choose_gpu()
    return Accelerator(
        mixed_precision=precision,
        cpu=runtime.device().type == "cpu",
        step_scheduler_with_optimizer=False,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=seed
        ),
    )


def processes() -> PartialState:
    """Return the processes that train together: one, unless a launcher made more."""
    _choose_gpu()
    return PartialState(cpu=runtime.device().type == "cpu")


def end_in_words() -> None:
    """Take SIGTERM as Ctrl-C, so that a training says where it stands.

    When one of its processes has died, a launcher ends the others with that signal.
    """

    def stop(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _silent(yes: bool) -> contextlib.AbstractContextManager:
    """Return a context that prints nothing if so wanted."""
    return contextlib.redirect_stdout(io.StringIO() if yes else sys.stdout)


def _lost(error: RuntimeError) -> bool:
    """Return whether an error is that another process does not answer any more."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _without_prefix(models: list[nn.Module], weights: list[dict], folder: str) -> None:
    for state in weights:
        consume_prefix_in_state_dict_if_present(state, "module.")


def _workers() -> int:
    """A CPU trains slower than it loads; a GPU needs processes that load."""
    if runtime.device().type == "cpu" or sys.platform == "win32":
        return 0
    return min(8, max(1, (os.cpu_count() or 2) - 1))


def _context() -> str | None:
    """Return how processes that load are started, None where it does not matter.

    From Python 3.14 on Linux would hand each of them all pictures, every one through
    an open file, and run out of those; forked ones have them already.
    """
    return "fork" if _workers() and sys.platform == "linux" else None


# --- how long it will take ----------------------------------------------------


def estimate_seconds(model: unet.UNet, recipe: Recipe, pictures: int) -> float:
    """Estimate how long a training will take, from two timed steps a stage.

    The steps are taken on a copy: the network is not changed.

    Args:
        model: The network.
        recipe: What would be done.
        pictures: How many training pictures there are.

    Returns:
        Seconds, without loading, checkpoints and evaluation.
    """
    device = runtime.device()
    # fork_rng would set up every GPU there is, in each of the processes
    own = [device] if device.type == "cuda" else []
    trial = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    optimiser = make_optimiser(trial, recipe)
    share = max(1, recipe.batch_size // processes().num_processes)
    total = 0.0
    for stage in recipe.stages:
        with torch.random.fork_rng(own):  # dropout, if there is any
            step = min(_timed_steps(trial, optimiser, share, stage, 2))
        steps = stage.epochs * max(1, pictures // recipe.batch_size)
        total += step * steps
    return total


def _timed_steps(
    model: unet.UNet,
    optimiser: torch.optim.Optimizer,
    pictures: int,
    stage: Stage,
    steps: int,
) -> Iterator[float]:
    device = runtime.device()
    x = torch.zeros(pictures, 3, stage.height, stage.width, device=device)
    x = x.to(memory_format=torch.channels_last)
    y = torch.zeros(len(x), stage.height, stage.width, dtype=torch.long, device=device)
    for i in range(steps + 1):
        start = time.perf_counter()
        with runtime.autocast():
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()  # waits for the device
        seconds = time.perf_counter() - start
        if i:  # the first warms up
            yield seconds


def in_words(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


# --- the course's own model ---------------------------------------------------

MODEL = "unet.safetensors"
"""The file that a finished network is kept in, beside its checkpoints."""


def trained_model(
    train: RoadScenes,
    weights: unet.EncoderWeights,
    recipe: Recipe | None = None,
    watched: RoadScenes | None = None,
) -> tuple[unet.UNet, dict]:
    """Return the course's trained network: the saved one, or one trained now.

    Chapter 4 trains it; chapter 5 asks for it. Whoever opens chapter 5 alone
    trains it there. Everything goes to a folder of the recipe's name in
    `runtime.output_dir`: checkpoints, ``unet.safetensors``, and in ``watched``
    what the network predicted after each epoch.

    Args:
        train: Training scenes.
        weights: Encoder weights to begin with.
        recipe: What to do; without it, the profile's.
        watched: A few scenes to predict after each epoch, see `watched_masks`.

    Returns:
        The network, in evaluation mode on this run's device, and facts about it:
        data, encoder, recipe, seconds, epochs, precision, machine, real_data,
        history (see `Run`).

    Raises:
        TrainingError: See `fit`.
    """
    recipe = recipe or Recipe.for_profile()
    folder = runtime.output_dir() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    together = processes()
    # two notebooks at once: the second waits, and finds what the first trained; of
    # processes that train together the main one waits, and the others for it
    lock = FileLock(folder / ".lock") if together.is_main_process else _silent(False)
    with lock, _silent(not together.is_main_process):
        together.wait_for_everyone()
        found = _found_or_trained(train, weights, recipe, watched, folder)
        together.wait_for_everyone()
    return found


def _found_or_trained(
    train: RoadScenes,
    weights: unet.EncoderWeights,
    recipe: Recipe,
    watched: RoadScenes | None,
    folder: Path,
) -> tuple[unet.UNet, dict]:
    path = folder / MODEL
    kind = {
        "contents": contents(train),
        "encoder": weights.origin,
        "recipe": str(recipe),
    }
    if found := _saved(path, kind):
        return found
    # a folder for each training: one with other data neither stops nor loses this one
    digest = hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:8]
    checkpoints = folder / "checkpoints" / digest
    if not checkpoints.exists() and processes().is_main_process:
        shutil.rmtree(folder / "watched", ignore_errors=True)  # of another training
    runtime.seed_everything(recipe.seed)
    model = unet.UNet(encoder_weights=weights)
    with _memory_in_words(recipe):
        expected = estimate_seconds(model, recipe, len(train))
    in_format = runtime.format_name(runtime.precision())
    print(f"training {recipe.epochs} epochs, about {in_words(expected)} in {in_format}")

    def watch(epoch: int, model: unet.UNet) -> None:
        if watched is not None:
            _write_watched(folder / "watched", epoch, model, watched, recipe)

    run = fit(model, train, recipe, checkpoints, on_epoch=watch)
    facts = kind | {
        "data": train.origin,
        "seconds": round(run.seconds, 1),
        "epochs": recipe.epochs,
        "precision": run.precision,
        "machine": runtime.machine(),
        "real_data": train.real,
        "history": run.history,
    }
    if processes().is_main_process:
        unet.save(model, path, facts)
    return model.eval(), facts


def _saved(path: Path, kind: dict) -> tuple[unet.UNet, dict] | None:
    """Return a saved network of this kind; None, and a sentence, if it is no use."""
    if not path.exists():
        return None
    try:
        model, facts = unet.load(path)
    except unet.WeightsError as error:
        print(f"{runtime.short(path)} is of no use ({error}): it is made anew")
        return None
    if all(facts.get(k) == v for k, v in kind.items()):
        return model.to(runtime.device()), facts
    print(f"{runtime.short(path)} is of another recipe, other data or encoder weights")
    return None


def _write_watched(
    folder: Path, epoch: int, model: unet.UNet, scenes: RoadScenes, recipe: Recipe
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    masks = predict_scenes(model, scenes, recipe.feed)
    for name, mask in zip(scenes.names, masks, strict=True):
        Image.fromarray(mask.numpy()).save(folder / f"{epoch:03}_{Path(name).stem}.png")


def watched_masks(recipe: Recipe | None = None) -> dict[str, dict[int, Tensor]]:
    """Return what the network predicted for the watched scenes after each epoch.

    Returns:
        For each scene's name without ending, and each epoch, a (H, W) uint8 mask
        with labels 0 to 10.
    """
    recipe = recipe or Recipe.for_profile()
    masks: dict[str, dict[int, Tensor]] = {}
    for path in sorted((runtime.output_dir() / recipe.name / "watched").glob("*.png")):
        epoch, name = path.stem.split("_", 1)
        mask = torch.from_numpy(np.array(Image.open(path)))
        masks.setdefault(name, {})[int(epoch)] = mask
    return masks


def saved_model(
    path: str | os.PathLike | None = None,
) -> tuple[unet.UNet, dict, tuple[int, int] | None]:
    """Read a trained network from its file.

    Args:
        path: What `unet.save` wrote; without it, what `trained_model` left under
            this profile and recipe.

    Returns:
        The network, in evaluation mode on this run's device; the facts beside it;
        and the height and width in pixels that its recipe feeds it with, None for
        the pictures' own or where no recipe is noted.

    Raises:
        WeightsError: If the file is missing, damaged, or of other classes.
    """
    path = Path(path or runtime.output_dir() / Recipe.for_profile().name / MODEL)
    if not path.is_file():
        raise unet.WeightsError(
            f"there is no trained network {runtime.short(path)}: train one with "
            "scripts/train.py, or name the file of another"
        )
    model, facts = unet.load(path)
    if model.head.out_channels != NUM_CLASSES:
        raise unet.WeightsError(
            f"{path.name} tells {model.head.out_channels} classes apart, the course "
            f"{NUM_CLASSES}: take a network that scripts/train.py trained"
        )
    fed = re.search(r"feed=\((\d+), (\d+)\)", str(facts.get("recipe")))
    feed = (int(fed[1]), int(fed[2])) if fed else None
    return model.to(runtime.device()), facts, feed
