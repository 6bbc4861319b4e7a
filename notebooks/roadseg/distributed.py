"""Several processes that train one network, each with its part of every batch.

A launcher such as ``torchrun`` starts them; without one there is a single process and
nothing here does anything. The processes, their devices and the averaging of gradients
are accelerate's and PyTorch's DistributedDataParallel's.
"""

import contextlib
import io
import os
import signal
import sys

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from roadseg import runtime


def select_gpu() -> None:
    """Make the GPU that ``ROADSEG_DEVICE`` names, such as cuda:1, the current one.

    accelerate takes the current one, unless a launcher gives each process its own.
    """
    device = runtime.device()
    if device.type == "cuda" and device.index and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)


def distributed_state() -> PartialState:
    """Return which of the processes this one is: the only one without a launcher."""
    select_gpu()
    return PartialState(cpu=runtime.device().type == "cpu")


def handle_termination() -> None:
    """Treat SIGTERM like Ctrl-C, so that a training reports what is saved.

    When one of its processes has died, a launcher ends the others with that signal.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def print_only_if(condition: bool) -> contextlib.AbstractContextManager:
    """Return a context that prints nothing unless the condition holds."""
    return contextlib.redirect_stdout(sys.stdout if condition else io.StringIO())


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether an error says that another process no longer responds."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def synchronize_batch_norm(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Let batch normalization use the statistics of the whole batch, on GPUs.

    A GPU's part of a batch has too few images to estimate mean and variance from.
    PyTorch has this for CUDA alone: processes on a CPU, which are for trying things
    out, normalize over their own parts.
    """
    if accelerator.num_processes == 1 or accelerator.device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def gather_batch(
    accelerator: Accelerator, logits: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logits and masks of the whole batch, from the parts of all processes.

    With them each process computes the loss of the whole batch. A mean of the losses
    of the parts would be another loss: their labeled pixels weigh differently, and
    region losses such as Dice are no means over pixels. The price is memory for the
    logits of the whole batch. Gradients reach this process's own part only, so the
    loss must be multiplied by the number of processes before ``backward``, because
    DistributedDataParallel averages the gradients of all parts.

    Args:
        accelerator: Knows the processes.
        logits: (n, C, H, W) of this process.
        masks: (n, H, W) of this process.

    Returns:
        (N, C, H, W) and (N, H, W), in the same order in every process.
    """
    if accelerator.num_processes == 1:
        return logits, masks
    whole = accelerator.gather(logits.detach())
    start = accelerator.process_index * len(logits)
    parts = [whole[:start], logits, whole[start + len(logits) :]]
    return torch.cat(parts), accelerator.gather(masks)


def add_checkpoint_hooks(
    accelerator: Accelerator, model: nn.Module, averaged: nn.Module | None
) -> None:
    """Let accelerate save and load a model under its own names, and its average.

    DistributedDataParallel puts ``module.`` in front of every name; without it one
    process can continue what several have begun. The average is saved as a second
    model, in safetensors: accelerate would pickle any other object.
    """

    def before_save(models: list, weights: list[dict], folder: str) -> None:
        if accelerator.num_processes > 1:
            for state in weights:
                consume_prefix_in_state_dict_if_present(state, "module.")
        if averaged is not None:
            weights.append(averaged.state_dict())

    def before_load(models: list, folder: str) -> None:
        models[:] = [model] if averaged is None else [model, averaged]

    accelerator.register_save_state_pre_hook(before_save)
    accelerator.register_load_state_pre_hook(before_load)
