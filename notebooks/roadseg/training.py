"""Training: a loop on accelerate that follows a recipe and keeps checkpoints.

The loop is what chapter 4 builds by hand, with what makes it fast and safe around
it: `accelerate` (https://huggingface.co/docs/accelerate) for devices, precision
and processes; progressive resizing (Howard and Gugger 2020,
https://arxiv.org/abs/2002.04688); on request an exponential moving average of the
weights (Polyak and Juditsky 1992, https://doi.org/10.1137/0330046, average them all).
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from roadseg import distributed, recipes, runtime
from roadseg.checkpoints import Checkpoints, TrainingError
from roadseg.classes import CAMVID, LabelSet
from roadseg.loading import (
    build_loader,
    columns_of,
    first_label,
    labels_of,
    names_of,
)
from roadseg.recipes import Phase, Recipe
from roadseg.scenes import fingerprint
from roadseg.unet import normalize

OnEpoch = Callable[[int, nn.Module], dict | None]


class TrainingInterrupted(KeyboardInterrupt):
    """A training stopped by Ctrl-C; the message says what is saved."""

    def _render_traceback_(self) -> list[str]:
        """Show the message alone in a notebook, where IPython asks for this."""
        return [str(self)]


@dataclass(eq=False)
class TrainResult:
    """A finished training.

    Attributes:
        model: The network, trained, on the device it was trained on.
        history: One dict per epoch: epoch, height, width, train_loss and train_acc
            (ignored pixels left out), seconds, and what `on_epoch` returned.
        seconds: Time spent training, over all resumptions, without `on_epoch`.
        precision: bf16, fp16 or fp32.
        averaged: The network with the moving average of the weights, if the recipe
            has an `ema_decay`.
    """

    model: nn.Module
    history: list[dict]
    seconds: float
    precision: str
    averaged: nn.Module | None = None


def fit(
    model: nn.Module,
    scenes: Dataset,
    recipe: Recipe,
    *,
    folder: str | os.PathLike | None = None,
    resume: bool = True,
    on_epoch: OnEpoch | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | Callable | None = None,
    scheduler: Callable | None = None,
    transform: nn.Module | Callable | None = None,
    config: dict | None = None,
) -> TrainResult:
    """Train a network according to a recipe.

    With a folder each epoch ends with a checkpoint, written whole or not at all, and
    an interrupted training continues from the newest undamaged one, on a CPU to the
    same bits. Processes that a launcher started together share each batch; they need
    one folder, and one of them writes to it. A batch without labeled pixels has a
    loss and a gradient of zero.

    Args:
        model: Any module from normalized images (N, 3, H, W) to logits (N, C, H, W),
            C being the number of classes; it is trained in place.
        scenes: `RoadScenes`, or any dataset of pairs: an image (3, H, W), uint8 or
            float from 0 to 1, and a mask (H, W) of class ids. Its attribute `labels`
            is its `LabelSet`; without it, CamVid's. Augmentation belongs in
            `transform`: the one of the scenes is left out.
        recipe: How to train.
        folder: Where checkpoints go; without it there are none.
        resume: Continue from the checkpoints in the folder; False deletes them.
        on_epoch: Called after each epoch with its number (1, 2, ...) and the
            network; the numbers it returns join the history.
        criterion: From logits (N, C, H, W) and masks (N, H, W), int64, of a whole
            batch to a scalar; without it, `recipes.build_criterion`.
        optimizer: A built optimizer, or a function of model and recipe that builds
            one; without it, `recipes.build_optimizer`.
        scheduler: A function of optimizer, recipe and total number of steps; what it
            builds is stepped after each batch. Without it, `recipes.build_scheduler`.
        transform: A transform (a module) of image and mask, or a function of recipe
            and phase that builds one; without it, `recipes.train_transform`.
        config: What else identifies this training, as JSON can hold it: checkpoints
            of a training with another one are refused.

    Returns:
        The trained network and its history.

    Raises:
        TrainingError: If no mask has a labeled pixel, the output has another shape,
            the loss is not finite, memory runs out, the folder holds another
            training or cannot be written to, the processes cannot share a batch
            equally, or another of them has ended.
        TrainingInterrupted: After Ctrl-C.
    """
    label = first_label(scenes)
    parts = {
        "criterion": criterion,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "transform": transform,
    }
    checkpoints = None
    if folder:
        names = {k: _type_name(v) for k, v in parts.items() if v is not None}
        run_config = training_config(scenes, recipe) | names | (config or {})
        checkpoints = Checkpoints(folder, run_config)
        if not resume:
            with distributed.distributed_state().main_process_first():
                checkpoints.clear()
    trainer = _Trainer(model, scenes, recipe, checkpoints, on_epoch)
    try:
        with trainer.explain_errors():
            trainer.prepare(**parts, label=label)
            trainer.run()
    except KeyboardInterrupt:  # also one that comes while another error is reported
        raise TrainingInterrupted(trainer.status()) from None
    averaged = trainer.averaged.module if trainer.averaged is not None else None
    return TrainResult(
        model, trainer.history, trainer.seconds, trainer.precision, averaged
    )


def _type_name(given: object) -> str:
    return getattr(given, "__qualname__", type(given).__qualname__)


def training_config(scenes: Dataset, recipe: Recipe) -> dict:
    """Return what identifies a training apart from its network, as JSON can hold it."""
    labels = labels_of(scenes)
    return {
        "recipe": recipe.identity(),
        "data_fingerprint": fingerprint(columns_of(scenes)),
        "num_classes": labels.num_classes,
        "ignore_index": labels.ignore_index,
    }


@contextlib.contextmanager
def explain_oom(recipe: Recipe) -> Iterator[None]:
    """Convert out-of-memory errors to TrainingError, suggesting half the batch size."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not runtime.is_oom_error(error):
            raise
        size = recipe.batch_size
        raise TrainingError(
            f"out of memory with batches of {size}: "
            f"try batch_size={max(1, size // 2)} in the recipe"
        ) from None


def resolve_precision(recipe: Recipe) -> str:
    """Return the precision of a recipe, bf16, fp16 or fp32: this device's for auto."""
    return runtime.amp_dtype() if recipe.precision == "auto" else recipe.precision


def count_correct(
    logits: Tensor, masks: Tensor, labels: LabelSet = CAMVID
) -> tuple[Tensor, Tensor]:
    """Count the correctly predicted pixels, and the labeled ones among which they are.

    Args:
        logits: (N, C, H, W); the ignored class, if it has a channel, is never
            predicted.
        masks: (N, H, W) integers.
        labels: The label set of the masks.

    Returns:
        Two scalars, int64.
    """
    scored = labels.scored
    if scored == tuple(range(len(scored))):
        predicted = logits[:, : len(scored)].argmax(1)
    else:
        ids = torch.tensor(scored, device=logits.device)
        predicted = ids[logits[:, ids].argmax(1)]
    labeled = masks != labels.ignore_index
    return ((predicted == masks) & labeled).sum(), labeled.sum()


# --- the loop -----------------------------------------------------------------


def _build_accelerator(precision: str, seed: int) -> Accelerator:
    # accelerate keeps one precision per process; a notebook may train in several
    AcceleratorState._reset_state()
    distributed.select_gpu()
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=runtime.device().type == "cpu",
        step_scheduler_with_optimizer=False,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=seed
        ),
    )


class _Trainer:
    """The state of one call of `fit`."""

    def __init__(self, model, scenes, recipe, checkpoints, on_epoch) -> None:
        self.recipe, self.scenes, self.checkpoints = recipe, scenes, checkpoints
        self.on_epoch, self.plain, self.labels = on_epoch, model, labels_of(scenes)
        self.history: list[dict] = []
        self.seconds = 0.0
        self.accelerator = self.averaged = None
        state = distributed.distributed_state()
        self.main, processes = state.is_main_process, state.num_processes
        self.share, rest = divmod(recipe.batch_size, processes)
        if rest:
            raise TrainingError(
                f"a batch of {recipe.batch_size} cannot be shared equally by "
                f"{processes} processes: start a number of them that divides it, or "
                "choose another batch_size"
            )

    @contextlib.contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Explain what failed; give the network back as it was in any case."""
        try:
            with explain_oom(self.recipe):
                yield
        except RuntimeError as error:
            if not distributed.is_lost_process(error):
                raise
            raise TrainingError(
                f"another process of this training has ended: {self.status()}"
            ) from None
        finally:
            self.close()

    def prepare(self, criterion, optimizer, scheduler, transform, label) -> None:
        recipe, model = self.recipe, self.plain
        with distributed.print_only_if(self.main):
            saved = self.checkpoints.latest() if self.checkpoints else None
        # a resumed training keeps its precision, or its bits would change, unless it
        # was begun on another device, whose precision this one doesn't have
        keep = saved and runtime.supports_dtype(saved["precision"])
        precision = saved["precision"] if keep else resolve_precision(recipe)
        self.precision = broadcast_object_list([precision])[0]
        accelerator = _build_accelerator(self.precision, recipe.seed)
        self.accelerator = accelerator
        model = distributed.synchronize_batch_norm(accelerator, model)
        model.to(memory_format=torch.channels_last)
        if recipe.ema_decay:
            self.averaged = AveragedModel(
                model,
                device=accelerator.device,
                multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay),
                use_buffers=True,  # of batch normalization
            )
        # a last small batch would weigh as much as a full one
        drop_last = len(self.scenes) >= recipe.batch_size
        make = transform or recipes.train_transform
        self.loaders = [
            accelerator.prepare_data_loader(
                build_loader(
                    self.scenes,
                    make if isinstance(make, nn.Module) else make(recipe, phase),
                    self.share,
                    drop_last,
                )
            )
            for phase in recipe.phases
        ]
        phases = zip(recipe.phases, self.loaders, strict=True)
        steps = sum(phase.epochs * len(loader) for phase, loader in phases)
        if not isinstance(optimizer, torch.optim.Optimizer):
            optimizer = (optimizer or recipes.build_optimizer)(model, recipe)
        scheduler = (scheduler or recipes.build_scheduler)(optimizer, recipe, steps)
        self.model, self.optimizer, self.scheduler = accelerator.prepare(
            model, optimizer, scheduler
        )
        if criterion is None:
            masks = columns_of(self.scenes).masks
            criterion = recipes.build_criterion(recipe, masks, self.labels)
        is_module = isinstance(criterion, nn.Module)
        self.criterion = criterion.to(accelerator.device) if is_module else criterion
        self.label = torch.tensor(label, device=accelerator.device)
        distributed.add_checkpoint_hooks(accelerator, self.plain, self.averaged)
        if saved:
            self.history, self.seconds = self.checkpoints.load(accelerator)

    def run(self) -> None:
        for done in range(1, len(self.history) + 1):
            self._print_epoch(self.history[:done])
        plan = [
            (phase, loader)
            for phase, loader in zip(self.recipe.phases, self.loaders, strict=True)
            for _ in range(phase.epochs)
        ]
        done = len(self.history)
        for epoch, (phase, loader) in enumerate(plan[done:], done + 1):
            row = self._train_epoch(epoch, phase, loader)
            history = [*self.history, row]
            self._print_epoch(history, [phase for phase, _ in plan[epoch:]])
            if self.checkpoints:
                self.checkpoints.save(
                    self.accelerator, history, self.seconds, self.precision
                )
            self.history = history  # only now: Ctrl-C reports what is saved

    def _train_epoch(self, epoch: int, phase: Phase, loader: DataLoader) -> dict:
        start = time.perf_counter()
        # each epoch has its own seed: where a run was resumed cannot matter
        rank = self.accelerator.process_index
        runtime.seed_everything(self.recipe.seed + 1000 * epoch + 7 * rank)
        loader.set_epoch(epoch)
        self.model.train()
        desc = f"epoch {epoch}/{self.recipe.epochs}"
        batches = runtime.progress(loader, desc, len(loader)) if self.main else loader
        results = [
            (self._step(images, masks), positions)
            for images, masks, positions in batches
        ]
        # one look at the device for the whole epoch; looking at every step would
        # make the device wait for Python
        table = broadcast(torch.stack([r for r, _ in results]))
        losses, correct, labeled = table.cpu().double().unbind(1)
        self._check_finite(losses, [p for _, p in results], epoch)
        steps = (labeled > 0).sum().clamp(min=1)  # the others have no loss
        seconds = time.perf_counter() - start
        self.seconds += seconds
        row = {
            "epoch": epoch,
            "height": phase.height,
            "width": phase.width,
            "train_loss": (losses.sum() / steps).item(),
            "train_acc": (correct.sum() / labeled.sum().clamp(min=1)).item(),
            "seconds": seconds,
        }
        if self.on_epoch and self.main:
            row |= self.on_epoch(epoch, self.plain) or {}
        return row

    def _step(self, images: Tensor, masks: Tensor) -> Tensor:
        """Take one step; return loss, correct and labeled pixels, on the device."""
        x = normalize(images).to(memory_format=torch.channels_last)
        logits = self.model(x)  # (N, C, H, W)
        self._check_output(logits, masks)
        logits, masks = distributed.gather_batch(self.accelerator, logits, masks)
        masks = masks.long()
        correct, labeled = count_correct(logits.detach(), masks, self.labels)
        # a mean over no pixels would be 0 / 0: a class stands in, with a weight of 0
        masks = torch.where(labeled > 0, masks, self.label)
        loss = self.criterion(logits, masks) * (labeled > 0)
        self.accelerator.backward(loss * self.accelerator.num_processes)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.plain)
        return torch.stack([loss.detach().float(), correct.float(), labeled.float()])

    def _check_output(self, logits: Any, masks: Tensor) -> None:
        expected = (len(masks), self.labels.num_classes, *masks.shape[1:])
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
        if found != expected:
            raise TrainingError(
                f"the model returns {found}, but {self.labels.num_classes} classes and "
                f"masks {tuple(masks.shape)} need logits of shape {expected}"
            )

    def _check_finite(
        self, losses: Tensor, positions: list[Tensor], epoch: int
    ) -> None:
        bad = (~losses.isfinite()).nonzero().flatten()
        if len(bad) == 0:
            return
        step = int(bad[0])
        batch = self.accelerator.gather(positions[step]).tolist()
        raise TrainingError(
            f"the loss of step {step + 1} in epoch {epoch} is {losses[step].item()}; "
            f"its images: {names_of(self.scenes, batch)}. Look at them and their "
            "masks; if nothing is wrong with them, lower the learning rates. Earlier "
            "checkpoints are kept"
        )

    def _print_epoch(self, history: list[dict], left: Sequence[Phase] = ()) -> None:
        """Print a line about the last epoch, and how long those that are left take."""
        if not self.main:
            return
        row = history[-1]
        known = ("epoch", "height", "width", "train_loss", "train_acc", "seconds")
        parts = [
            f"epoch {row['epoch']}/{self.recipe.epochs}",
            f"{row['height']} x {row['width']}",
            f"loss {row['train_loss']:.3f}",
            f"acc {row['train_acc']:.3f}",
            *(f"{k} {v:.3f}" for k, v in row.items() if k not in known),
            runtime.format_duration(row["seconds"]),
        ]
        if left:
            pixels = sum(r["height"] * r["width"] for r in history)
            rest = sum(phase.height * phase.width for phase in left)
            seconds = self.seconds / pixels * rest
            about = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
            parts.append(f"(about {about} left)")
        print("  ".join(parts), flush=True)

    def status(self) -> str:
        """Return how far the training got and what of it is saved."""
        done, total = len(self.history), self.recipe.epochs
        if self.checkpoints is None:
            return f"stopped after {done} of {total} epochs; nothing is saved"
        folder = runtime.display_path(self.checkpoints.folder)
        return (
            f"stopped after {done} of {total} epochs; they are saved in {folder}: "
            "run it again to continue"
        )

    def close(self) -> None:
        """Undo what accelerate did to the network, so that it can be trained again."""
        if self.accelerator is not None:
            self.accelerator.unwrap_model(self.plain, keep_fp32_wrapper=False)
            vars(self.plain).pop("_is_accelerate_prepared", None)
            self.accelerator.free_memory()
