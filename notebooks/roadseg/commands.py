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
from roadseg.report import Report, plural

CALIBRATION_IMAGES = 16
"""Training images from which the ranges of 8-bit activations are taken."""

NOT_COMPARABLE = "synthetic scenes: NOT COMPARABLE with any score on CamVid"


def print_error(error: object) -> None:
    """Print one line about what went wrong on standard error."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


# --- what the commands share --------------------------------------------------


def _load_network(options: argparse.Namespace):
    """Return the `weights.SavedModel` that is asked for, on this run's device."""
    if options.recipe:
        runtime.configure(recipe=options.recipe)
    own = runtime.output_dir() / recipes.Recipe.for_profile().name / trained.MODEL
    asked = options.model or options.recipe
    if asked or own.exists() or not weights.PRETRAINED.exists():
        saved = trained.load_trained(options.model)
    else:
        print("no network trained here yet: using the one that ships with roadseg")
        saved = weights.load_pretrained()
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
    if path.is_dir():
        raise RoadsegError(f"{path} is a folder; give the name of a file")


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
        _train_in_process(options, state)
    return 0


def _train_in_process(options: argparse.Namespace, state) -> None:
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
    tracked = train.subset(sorted({0, len(train) // 2, len(train) - 1}))
    saved = trained.load_or_train(train, encoder, recipe, tracked)
    if not state.is_main_process:
        return
    path = runtime.output_dir() / recipe.name / trained.MODEL
    print(f"the network is in {_display(path)}")
    scores = inference.evaluate(saved.model, test, saved.input_size)
    took = runtime.format_duration(saved.metadata["seconds"])
    print(f"{scores}   after {took} of training on {saved.metadata['hardware']}")
    if not train.is_real:
        print(NOT_COMPARABLE)


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
        "{} x {}".format(*inference.input_size_for(x.shape[-2:], saved.input_size))
        for x in test.images
    ).most_common()
    fed = ", ".join(f"{size} ({n})" for size, n in sizes) if sizes[1:] else sizes[0][0]
    record = {
        "data": test.description,
        "trained_on": saved.metadata.get("data", "unknown"),
        "encoder": saved.metadata.get("encoder", "unknown"),
        "input_size": fed + (", and mirrored" if options.hflip else ""),
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
        left_out = [plural(n, kind) for kind, n in inputs.left_out.items()]
        line += f"; left out: {', '.join(left_out)}" if left_out else ""
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
    name = "unet_web.onnx" if options.web else "unet.onnx"
    path = options.out or runtime.output_dir() / name
    if options.out:
        _check_folder(path)
    saved = _load_network(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as draft:
        if options.web:
            onnx_export.export_web(saved, draft)
            print(f"{_display(path)}: {_megabytes(draft)}")
            return 0
        onnx_export.export_onnx(saved, draft)
        print(f"{path.name}: {_megabytes(draft)}")
        for shape, difference, largest in onnx_export.check_onnx(saved.model, draft):
            size = " x ".join(map(str, shape))
            print(f"{size}: largest difference {difference:.1e} of {largest:.1f}")
    if options.int8:
        _export_int8(options, path, saved)
    return 0


def _export_int8(options: argparse.Namespace, path: Path, saved) -> None:
    train, test = (
        [_read_scenes(options.data, s, saved.labels) for s in ("train", "test")]
        if options.data
        else dataset1.load()
    )
    test = test.subset(range(min(options.int8, len(test))))
    small = path.with_name(f"{path.stem}_int8{path.suffix}")
    step = max(1, len(train) // CALIBRATION_IMAGES)
    images = (train.images[i] for i in range(0, len(train), step)[:CALIBRATION_IMAGES])
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
    acc, miou = found[0].acc - found[1].acc, found[0].miou - found[1].miou
    print(f"lost     acc {acc:+.4f}   mIoU {miou:+.4f}")
    if not test.is_real:
        print(NOT_COMPARABLE)


def _megabytes(path: Path) -> str:
    return f"{os.path.getsize(path) / 1e6:.1f} MB"


# --- your own data ------------------------------------------------------------


def prepare(options: argparse.Namespace) -> int:
    """Convert a dataset and print the report; return 1 if nothing was written."""
    names = ("tolerance", "unknown", "split", "images", "masks", "mask_suffix")
    given = {name: getattr(options, name) for name in names}
    if options.html:
        _check_folder(options.html)
    labels, written = LabelSet.load(options.labels) if options.labels else None, True
    try:
        report = preparing.prepare(
            options.source,
            options.out,
            labels=labels,
            mapping=options.map or (),
            **given,
        )
    except preparing.PrepareError as error:
        report, written = error.report, False
    _show(report, options.html)
    print(f"see {_display(options.out)}" if written else "nothing was written")
    return int(not written)


def check(options: argparse.Namespace) -> int:
    """Check a dataset and print the report; return 1 if it has errors."""
    if options.html:
        _check_folder(options.html)
    report = doctor.check(options.dataset, options.input_size)
    _show(report, options.html)
    return int(report.failed(options.strict))


def _show(report: Report, page: Path | None) -> None:
    print(report)
    if page:
        report.save_html(page)
