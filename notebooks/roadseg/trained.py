"""The course's trained network: the saved one, or one trained now."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from roadseg import distributed, files, recipes, runtime, training, unet, weights
from roadseg.checkpoints import Checkpoints
from roadseg.inference import predict_scenes
from roadseg.loading import first_label
from roadseg.recipes import Phase, Recipe, RecipeError
from roadseg.scenes import RoadScenes
from roadseg.weights import EncoderWeights, SavedModel, WeightsError

MODEL = "unet.safetensors"
"""The file with the finished network, beside its checkpoints."""

SNAPSHOTS = "tracked"
NAMES = "names.json"


def load_or_train(
    train: RoadScenes,
    encoder: EncoderWeights,
    recipe: Recipe | None = None,
    tracked: RoadScenes | None = None,
    model: nn.Module | None = None,
) -> SavedModel:
    """Return the trained network: the saved one, or one trained now.

    Chapter 4 trains it; chapter 5 asks for it, and trains it if chapter 4 did not.
    Everything goes to a folder of the recipe's name in `runtime.output_dir`:
    checkpoints (one, once the training has finished), ``unet.safetensors``, and what
    the network predicted for the tracked scenes after each epoch. The network is
    identified by the recipe, the bytes of the scenes and the encoder weights. Another
    input size or other names of the classes change no weight: the saved network then
    gets them.

    Args:
        train: Training scenes.
        encoder: Encoder weights to start from.
        recipe: How to train; without it, the profile's recipe.
        tracked: A few scenes to predict after each epoch, see `load_snapshots`.
        model: A network to train in place of a `unet.UNet` with these weights.

    Returns:
        The network, in evaluation mode on this run's device, and its metadata. If the
        recipe has an `ema_decay`, it is the one with the averaged weights.

    Raises:
        TrainingError: If no scene has a labeled pixel, and as `training.fit`.
    """
    recipe = recipe or Recipe.for_profile()
    first_label(train)
    folder = runtime.output_dir() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    state = distributed.distributed_state()
    # two notebooks at once: the second waits, and finds what the first has trained; of
    # processes that train together the main one waits, and the others for it
    main = state.is_main_process
    lock = files.locked(folder / ".lock") if main else contextlib.nullcontext()
    with lock, distributed.print_only_if(main):
        state.wait_for_everyone()
        saved = _find_or_train(train, encoder, recipe, tracked, model, folder)
        state.wait_for_everyone()
    return saved


def load_or_pretrained(train: RoadScenes, encoder: EncoderWeights) -> SavedModel:
    """Return the finished training of this profile, or else the network that ships.

    On synthetic scenes, which the network that ships has never seen, and without its
    file, one is trained instead, as `load_or_train` does.

    Args:
        train: Training scenes.
        encoder: Encoder weights to start from.

    Returns:
        The network, in evaluation mode on this run's device, and its metadata.
    """
    own = runtime.output_dir() / Recipe.for_profile().name / MODEL
    if own.exists() or not train.is_real or not weights.PRETRAINED.exists():
        return load_or_train(train, encoder)
    print("no training of your own yet: using the network that ships with the course")
    saved = weights.load_pretrained()
    saved.model.to(runtime.device())
    return saved


def _find_or_train(
    train: RoadScenes,
    encoder: EncoderWeights,
    recipe: Recipe,
    tracked: RoadScenes | None,
    model: nn.Module | None,
    folder: Path,
) -> SavedModel:
    path, main = folder / MODEL, distributed.distributed_state().is_main_process
    config = training.training_config(train, recipe)
    config |= {"encoder_fingerprint": encoder.fingerprint}
    if model is not None:
        config |= {"architecture": type(model).__qualname__}
    # a folder for each training: one on other data neither stops nor deletes this one
    digest = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:8]
    checkpoints = Checkpoints(folder / "checkpoints" / digest, config)
    if saved := _load_saved(path, config, model):
        model, metadata = saved.model, saved.metadata
    else:
        if not checkpoints.folder.exists() and main:
            shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)  # another training's
        model, metadata = _train(train, encoder, recipe, tracked, model, checkpoints)
    # what may change without another training
    current = {
        "recipe": recipe.to_dict(),
        "labels": train.labels.to_dict(),
        "input_size": recipe.input_size and list(recipe.input_size),
    }
    if main and metadata != metadata | current:
        weights.save_model(model, path, train.labels, metadata | current)
    if main:
        checkpoints.clear(keep=1)
    model.to(runtime.device()).eval()
    return SavedModel(model, train.labels, recipe.input_size, metadata | current)


def _train(
    train: RoadScenes,
    encoder: EncoderWeights,
    recipe: Recipe,
    tracked: RoadScenes | None,
    model: nn.Module | None,
    checkpoints: Checkpoints,
) -> tuple[nn.Module, dict]:
    runtime.seed_everything(recipe.seed)
    if model is None:
        model = unet.UNet(train.labels.num_classes, encoder.state_dict)
    with training.explain_oom(recipe):
        expected = runtime.format_duration(estimate_seconds(model, recipe, len(train)))
    precision = training.resolve_precision(recipe)
    print(f"training {recipe.epochs} epochs, about {expected} in {precision}")
    snapshots = checkpoints.folder.parent.parent / SNAPSHOTS

    def take_snapshot(epoch: int, model: nn.Module) -> None:
        if tracked is not None:
            _write_snapshots(snapshots, epoch, model, tracked, recipe)

    result = training.fit(
        model,
        train,
        recipe,
        folder=checkpoints.folder,
        on_epoch=take_snapshot,
        config=checkpoints.run_config,
    )
    metadata = {
        "encoder": encoder.source,
        "encoder_fingerprint": encoder.fingerprint,
        "data": train.description,
        "data_fingerprint": checkpoints.run_config["data_fingerprint"],
        "seconds": round(result.seconds, 1),
        "epochs": recipe.epochs,
        "precision": result.precision,
        "hardware": runtime.hardware_info(),
        "is_real": train.is_real,
        "history": result.history,
    }
    return (result.model if result.averaged is None else result.averaged), metadata


def _load_saved(path: Path, config: dict, model: nn.Module | None) -> SavedModel | None:
    """Return a saved network of this training; None, and a sentence, without one."""
    if not path.exists():
        return None
    name = runtime.display_path(path)
    try:
        saved = weights.load_model(path, copy.deepcopy(model))
        identity = Recipe.from_dict(saved.metadata.get("recipe", {})).identity()
    except (WeightsError, RecipeError) as error:
        print(f"{name} cannot be used ({error}): training a new one")
        return None
    found = saved.metadata | {
        "recipe": identity,
        "num_classes": saved.labels.num_classes,
        "ignore_index": saved.labels.ignore_index,
    }
    differs = [k for k in config if k != "architecture" and found.get(k) != config[k]]
    if differs:
        print(f"{name} is from another training (other {', '.join(differs)})")
        return None
    return saved


def load_trained(path: str | os.PathLike | None = None) -> SavedModel:
    """Read a trained network from its file.

    Args:
        path: What `weights.save_model` wrote; without it, what `load_or_train` left
            for this profile and recipe.

    Returns:
        The network, in evaluation mode on this run's device, its labels, input size
        and metadata.

    Raises:
        WeightsError: If the file is missing, damaged, or of another network.
    """
    path = Path(path or runtime.output_dir() / Recipe.for_profile().name / MODEL)
    if not path.is_file():
        raise WeightsError(
            f"there is no trained network {runtime.display_path(path)}: train one with "
            "`roadseg train`, or name the file of another"
        )
    saved = weights.load_model(path)
    saved.model.to(runtime.device()).eval()
    return saved


# --- tracked scenes -----------------------------------------------------------


def _write_snapshots(
    folder: Path, epoch: int, model: nn.Module, scenes: RoadScenes, recipe: Recipe
) -> None:
    """Write a mask for each scene, under its position: names need not be unique."""
    names = json.dumps(list(scenes.filenames))
    index = folder / NAMES
    if not index.exists() or index.read_text() != names:  # other scenes were tracked
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        index.write_text(names)
    for i, mask in enumerate(predict_scenes(model, scenes, recipe.input_size)):
        Image.fromarray(mask.cpu().numpy()).save(folder / f"{epoch:03}_{i:03}.png")


def load_snapshots(recipe: Recipe | None = None) -> dict[str, dict[int, Tensor]]:
    """Return what the network predicted for the tracked scenes after each epoch.

    Returns:
        For each scene, in order, and each epoch, a (H, W) uint8 mask of class ids.
        A scene is called as its file without ending, with its position in front if
        two have the same name.
    """
    recipe = recipe or Recipe.for_profile()
    folder = runtime.output_dir() / recipe.name / SNAPSHOTS
    if not (folder / NAMES).exists():
        return {}
    stems = [Path(name).stem for name in json.loads((folder / NAMES).read_text())]
    unique = len(set(stems)) == len(stems)
    keys = stems if unique else [f"{i:03} {stem}" for i, stem in enumerate(stems)]
    masks: dict[str, dict[int, Tensor]] = {key: {} for key in keys}
    for path in sorted(folder.glob("*_*.png")):
        epoch, i = map(int, path.stem.split("_"))
        masks[keys[i]][epoch] = torch.from_numpy(np.array(Image.open(path)))
    return masks


# --- how long it will take ----------------------------------------------------


def estimate_seconds(model: nn.Module, recipe: Recipe, num_images: int) -> float:
    """Estimate how long a training will take, from a few timed steps of each size.

    The steps are taken on a copy, in the recipe's precision: the network is not
    changed.

    Args:
        model: The network.
        recipe: How it would be trained.
        num_images: How many training images there are.

    Returns:
        Seconds, without loading, checkpoints and evaluation.
    """
    device = runtime.device()
    # fork_rng would set up every GPU there is, in each of the processes
    devices = [device] if device.type == "cuda" else []
    trial = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()
    optimizer = recipes.build_optimizer(trial, recipe)
    share = max(1, recipe.batch_size // distributed.distributed_state().num_processes)
    steps = max(1, num_images // recipe.batch_size)
    seconds: dict[tuple[int, int], float] = {}
    total = 0.0
    for phase in recipe.phases:
        size = (phase.height, phase.width)
        if size not in seconds:
            with torch.random.fork_rng(devices):  # dropout, if there is any
                seconds[size] = min(
                    _timed_steps(trial, optimizer, share, phase, recipe)
                )
        total += seconds[size] * steps * phase.epochs
    return total


def _timed_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    phase: Phase,
    recipe: Recipe,
) -> Iterator[float]:
    device = runtime.device()
    precision = training.resolve_precision(recipe)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    x = torch.zeros(batch_size, 3, phase.height, phase.width, device=device)
    x = x.to(memory_format=torch.channels_last)
    y = torch.zeros(x.shape[:1] + x.shape[2:], dtype=torch.long, device=device)
    for i in range(3):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        if i:  # the first warms up
            yield time.perf_counter() - start
