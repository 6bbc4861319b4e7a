"""What the commands of the command line do; `cli` reads their arguments."""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from roadseg import (
    dataset1,
    distributed,
    doctor,
    files,
    inference,
    recipes,
    runtime,
    scenes,
    segment,
    trained,
    weights,
)
from roadseg import export as onnx_export
from roadseg import prepare as preparing
from roadseg.classes import LabelSet, RoadsegError

CALIBRATION_IMAGES = 16
"""Training images from which the ranges of 8-bit activations are taken."""

MAX_NAMED = 4
"""Input sizes that are listed one by one."""

NOT_COMPARABLE = "synthetic scenes: NOT COMPARABLE with any score on CamVid"


def print_error(error: object) -> None:
    """Print one line about what went wrong on standard error."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


# --- what the commands share --------------------------------------------------


def _load_network(options: argparse.Namespace):
    """Return the `weights.SavedModel` that is asked for, on this run's device."""
    if options.recipe:
        runtime.configure(recipe=options.recipe)
    if options.model or options.recipe:
        saved = trained.load_trained(options.model)
    else:
        try:
            saved = trained.load_trained()
        except RoadsegError as missing:
            try:
                saved = weights.load_pretrained()
            except weights.WeightsError:
                raise missing from None
            print("no network trained here yet: using the one that ships with roadseg")
    saved.model.to(runtime.device()).eval()
    if options.input_size:
        saved = replace(saved, input_size=options.input_size)
    return saved


def _read_scenes(folder: Path, split: str, labels: LabelSet):
    """Return a split of a folder, with the network's labels unless it has its own.

    Raises:
        RoadsegError: If the folder's classes are not those of the network.
    """
    own = (folder / "labels.json").is_file()
    found = scenes.RoadScenes(folder, split, labels=None if own else labels)
    if found.labels.names != labels.names:
        raise RoadsegError(
            f"{folder} has the classes {', '.join(found.labels.names)}; the network "
            f"was trained on {', '.join(labels.names)}"
        )
    return found


def _check_folder(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise RoadsegError(f"{path}: there is no folder {path.parent}; create it first")


def _display(path: Path) -> str:
    """Return a path relative to the current folder if it is inside it."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


# --- train --------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train, alone or with other processes, and print the scores."""
    changes = {k: getattr(options, k) for k in ("profile", "recipe")}
    if options.out:
        changes["output_dir"] = options.out.absolute()
    runtime.configure(**{k: v for k, v in changes.items() if v is not None})
    state = distributed.distributed_state()
    launched = "MASTER_ADDR" in os.environ and "ACCELERATE_USE_CPU" in os.environ
    if launched and state.num_processes == 1:
        raise RoadsegError(
            "accelerate starts one process on a CPU, however many it is asked for: "
            "use torchrun --nproc_per_node N -m roadseg train"
        )
    if state.num_processes > 1:
        distributed.handle_termination()
    output = sys.stdout if state.is_main_process else io.StringIO()
    with contextlib.redirect_stdout(output):  # only one of the processes prints
        return _train_in_process(options, state)


def _train_in_process(options: argparse.Namespace, state) -> int:
    recipe = recipes.Recipe.for_profile()
    if options.data:
        recipe = replace(recipe, name=f"{recipe.name}-{options.data.resolve().name}")
    with state.main_process_first():  # one of them downloads
        if options.data:
            train = scenes.RoadScenes(options.data, "train")
            test = scenes.RoadScenes(options.data, "test", labels=train.labels)
        else:
            train, test = dataset1.load()
        encoder = weights.load_encoder_weights()
    runtime.print_environment(data=train.description, weights=encoder.source)
    tracked = test.subset(sorted({0, len(test) // 2, len(test) - 1}))
    saved = trained.load_or_train(train, encoder, recipe, tracked)
    if not state.is_main_process:
        return 0
    path = runtime.output_dir() / recipe.name / trained.MODEL
    print(f"the network is in {_display(path)}")
    scores = inference.evaluate(saved.model, test, saved.input_size)
    took = runtime.format_duration(saved.metadata["seconds"])
    print(f"{scores}   after {took} of training on {saved.metadata['hardware']}")
    if not train.is_real:
        print(NOT_COMPARABLE)
    return 0


# --- evaluate -----------------------------------------------------------------


def evaluate(options: argparse.Namespace) -> int:
    """Score a network; print and write the scores."""
    if options.split and not options.data:
        options.error("argument --split: only with --data, whose split it is")
    if options.json:
        _check_folder(options.json)
    saved = _load_network(options)
    if options.data:
        test = _read_scenes(options.data, options.split or "test", saved.labels)
    else:
        test = dataset1.load()[1]
    start = time.perf_counter()
    scores = inference.evaluate(saved.model, test, saved.input_size, options.hflip)
    seconds = time.perf_counter() - start
    sizes = Counter(
        inference.input_size_for(tuple(image.shape[-2:]), saved.input_size)
        for image in test.images
    )
    record = {
        "data": test.description,
        "trained_on": saved.metadata.get("data", "unknown"),
        "encoder": saved.metadata.get("encoder", "unknown"),
        "input_size": _describe(sizes) + (", and mirrored" if options.hflip else ""),
        "hardware": f"{runtime.hardware_info()}, {runtime.amp_dtype()}",
    }
    for name, value in record.items():
        print(f"{name.replace('_', ' '):<12}{value}")
    print(f"{'time':<12}{seconds:.1f} s\n\n{scores}\n")
    for k, iou in zip(saved.labels.scored, scores.iou.tolist(), strict=True):
        print(f"{saved.labels.names[k]:<12}{'  -' if iou != iou else f'{iou:.3f}'}")
    if not test.is_real:
        print(NOT_COMPARABLE)
    if options.json:
        record |= {"is_real": test.is_real, "seconds": round(seconds, 2)}
        text = json.dumps(scores.as_dict() | record, indent=1, ensure_ascii=False)
        with files.atomic_write(options.json) as draft:
            draft.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return 0


def _describe(sizes: Counter) -> str:
    """Return sizes (height, width) and how many images have each, in words."""
    if len(sizes) == 1:
        return "{} x {}".format(*next(iter(sizes)))
    most = [f"{h} x {w} ({n})" for (h, w), n in sizes.most_common(MAX_NAMED)]
    rest = len(sizes) - len(most)
    return ", ".join(most) + (f" and {rest} other sizes" if rest else "")


# --- predict ------------------------------------------------------------------


def predict(options: argparse.Namespace) -> int:
    """Segment all inputs; return 1 if anything could not be done."""
    out = (options.out or runtime.output_dir() / "predictions").resolve()
    inputs = segment.find_inputs(options.inputs, options.recursive)
    if conflict := segment.find_conflict(inputs.files, out):
        options.error(f"argument --out: {conflict}")
    for error in inputs.errors:
        print_error(error)
    if not inputs.files:
        return 1
    saved = _load_network(options)
    out.mkdir(parents=True, exist_ok=True)
    start, counts = time.perf_counter(), Counter()
    try:
        for file in runtime.progress(inputs.files, "predict"):
            counts[_predict_file(saved, file, out, options)] += 1
    finally:
        seconds = time.perf_counter() - start
        line = f"{counts['done']} of {len(inputs.files)} done in {seconds:.1f} s"
        for name in ("incomplete", "failed"):
            line += f", {counts[name]} {name}" if counts[name] else ""
        if inputs.left_out:
            plural = {n: "s" * (k > 1) for n, k in inputs.left_out.items()}
            left_out = [f"{k} {n}{plural[n]}" for n, k in inputs.left_out.items()]
            line += f"; left out: {', '.join(left_out)}"
        print(f"{line}; see {_display(out)}")
    return int(counts["done"] < len(inputs.files) or bool(inputs.errors))


def _predict_file(saved, file, out: Path, options: argparse.Namespace) -> str:
    """Segment a file; return what came of it, after saying what went wrong."""
    name = file.path.name
    try:
        if file.kind == "image":
            problems = segment.segment_image(saved, file, out, options.hflip)
        else:
            problems = segment.segment_video(
                saved, file, out, options.every, options.hflip
            )
        if problems is None:
            return "done"
        print_error(problems)
        return "incomplete"
    except (RoadsegError, OSError, RuntimeError, MemoryError) as error:
        if runtime.is_oom_error(error):
            error = "it needs more memory than there is: try a smaller --input-size"
        elif not isinstance(error, RoadsegError | OSError):
            raise
        print_error(error if name in str(error) else f"{name}: {error}")
        return "failed"


# --- export -------------------------------------------------------------------


def export(options: argparse.Namespace) -> int:
    """Export and check a network; quantize it if that is asked for."""
    onnx_export.require_packages()
    path = options.out or runtime.output_dir() / "unet.onnx"
    if options.out:
        _check_folder(path)
    saved = _load_network(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as draft:
        onnx_export.export_onnx(saved, draft)
        print(f"{path.name}: {_megabytes(draft)}")
        for shape, difference, largest in onnx_export.check_onnx(saved.model, draft):
            size = " x ".join(map(str, shape))
            print(f"{size}: largest difference {difference:.1e} of {largest:.1f}")
    if options.int8:
        _export_int8(options, path, saved)
    return 0


def _export_int8(options: argparse.Namespace, path: Path, saved) -> None:
    if options.data:
        train, test = (
            _read_scenes(options.data, split, saved.labels)
            for split in ("train", "test")
        )
    else:
        train, test = dataset1.load()
    test = test.subset(range(min(options.int8, len(test))))
    small = path.with_name(f"{path.stem}_int8{path.suffix}")
    step = max(1, len(train) // CALIBRATION_IMAGES)
    chosen = range(0, len(train), step)[:CALIBRATION_IMAGES]
    images = (train.images[i] for i in chosen)
    with files.atomic_write(small) as draft:
        onnx_export.quantize_onnx(path, draft, images, saved.input_size, saved.labels)
        print(f"{small.name}: {_megabytes(draft)}")
    print(f"scores on {test.description}")
    found = []
    for name, file in (("float32", path), ("int8", small)):
        start = time.perf_counter()
        model = onnx_export.OnnxModel(file)
        found.append(inference.evaluate(model, test, saved.input_size))
        seconds = (time.perf_counter() - start) / len(test)
        print(f"{name:<9}{found[-1]}   {seconds:.2f} s per image")
    before, after = found
    lost = before.acc - after.acc, before.miou - after.miou
    print("lost     acc {:+.4f}   mIoU {:+.4f}".format(*lost))
    if not test.is_real:
        print(NOT_COMPARABLE)


def _megabytes(path: Path) -> str:
    return f"{os.path.getsize(path) / 1e6:.1f} MB"


# --- your own data ------------------------------------------------------------


def prepare(options: argparse.Namespace) -> int:
    """Convert a dataset and print the report; return 1 if nothing was written."""
    names = ("tolerance", "unknown", "palette", "split", "images", "masks")
    given = {name: getattr(options, name) for name in (*names, "mask_suffix")}
    if options.html:
        _check_folder(options.html)
    status = 0
    try:
        report = preparing.prepare(
            options.source,
            options.out,
            labels=LabelSet.load(options.labels) if options.labels else None,
            mapping=options.map or (),
            **given,
        )
    except preparing.PrepareError as error:
        report, status = error.report, 1
    print(report)
    if options.html:
        report.save_html(options.html)
    print("nothing was written" if status else f"see {_display(options.out)}")
    return status


def check(options: argparse.Namespace) -> int:
    """Check a dataset and print the report; return 1 if it has errors."""
    if options.html:
        _check_folder(options.html)
    report = doctor.check(options.dataset, options.input_size)
    print(report)
    if options.html:
        report.save_html(options.html)
    return int(report.failed(options.strict))
