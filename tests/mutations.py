"""Faults put into roadseg one at a time: do the tests see them?

    python tests/mutations.py             # all of them, a few minutes
    python tests/mutations.py masks       # those with this word in module or name

Each fault is put into a copy of the package in a temporary folder, where the tests
named with it run until one of them fails. A fault is caught if one does, and has
survived if none does. First, all these tests must pass on an unchanged copy. The exit
status is 1 if fewer than 95% of the faults are caught.

PyTorch is imported once; each fault then gets a process forked from this one, two at a
time. Therefore it needs a system with fork, such as Linux. `tests/test_mutations.py`
keeps the list current.
"""

import importlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("notebooks", "roadseg")
IMPORTED_ONCE = (
    *("torch", "torchvision.transforms.v2", "accelerate", "safetensors.torch"),
    *("matplotlib.pyplot", "hypothesis", "sklearn.metrics", "IPython", "pytest"),
    *("requests", "filelock", "tqdm"),
)
NEEDED = 0.95
"""Share of the faults that must be caught."""

LIMIT = 600
"""Seconds after which tests count as hanging."""


class Fault(NamedTuple):
    """One fault.

    Attributes:
        module, name: Where the fault is, and what is wrong then.
        old, new: What is there, once, and what replaces it.
        tests: What sees it: ``tests/FILE.py::test_NAME``.
    """

    module: str
    name: str
    old: str
    new: str
    tests: tuple[str, ...]

    @classmethod
    def of(cls, module: str, name: str, old: str, new: str, tests: str) -> "Fault":
        """Read the tests: names in the module's own test file, or FILE:NAME."""
        found = []
        for test in tests.split():
            file, _, rest = test.rpartition(":")
            found.append(f"tests/test_{file or module}.py::test_{rest}")
        return cls(module, name, old, new, tuple(found))


TABLE = {
    "classes": [
        ("two classes are swapped", '"Pole",\n        "Road",',
         '"Road",\n        "Pole",', "camvid_has_these_names_ids_and_colors"),
        ("unknown ids are black", "if not known.all():", "if False:",
         "colorize_refuses_ids_that_are_no_class"),
        ("the ignored class is learned", "i != self.ignore_index)", "i != 255)",
         "an_ignored_id_before_the_classes"),
    ],
    "images": [
        ("checksums of chunks are ignored", "image.verify()", "image.tell()",
         "scenes:a_single_flipped_bit_is_found"),
        ("a palette may contradict its ids",
         "if wrong and 2 * foreign < len(entries):", "if False:",
         "a_palette_in_another_order_is_refused"),
        ("masks may be JPEG", "True) as (image, depth):\n        if kind := lossy",
         "True) as (image, depth):\n        if kind := None and lossy",
         "lossy_masks_are_refused_whatever_they_are_called"),
        ("EXIF orientation is not applied", "yield _transposed(image, left), depth",
         "yield image, depth", "exif_orientation_is_applied"),
        ("masks may hold any id",
         "if unknown := sorted(_ids(mask) - set(labels.ids)):", "if unknown := []:",
         "a_mask_holds_the_ids_of_its_classes"),
        ("16 bits are clipped, not scaled",
         "(values.astype(np.uint32) * 255 + most // 2) // most", "values.clip(0, 255)",
         "fewer_significant_bits_are_scaled_by_their_range"),
    ],
    "pairs": [
        ("masks are off by one image", "[masks[stems[stem]] for stem in order],",
         "[masks[stems[stem]] for stem in order[1:] + order[:1]],",
         "scenes:cityscapes_names_are_understood"),
        ("image and mask differ in size", "if image != mask:", "if False:",
         "scenes:a_lazy_dataset_names_what_is_wrong"),
        ("lazy files change their order", "for i in indices], self._load",
         "for i in sorted(indices)], self._load",
         "scenes:a_lazy_dataset_has_the_same_order_and_bits"),
    ],
    "scenes": [
        ("a subset keeps all masks", '("images", "masks", "filenames", "sequences", "',
         '("images", "filenames", "sequences", "',
         "subset_and_with_transform_share_the_images"),
        ("other scenes are held out", "order[:wanted]", "order[-wanted:]",
         "the_blocks_held_out_of_dataset1_are_the_same_forever"),
        ("a fingerprint ignores the masks", "for part in (image, mask):",
         "for part in (image,):",
         "a_fingerprint_tells_contents_and_order_apart_not_names"),
        ("an ignored id is counted", "return counts[: labels.num_classes]",
         "return counts", "pixel_counts_leave_out_ids_that_are_no_class"),
    ],
    "loading": [
        ("scenes are augmented twice", "with_transform(None) if has_own else scenes",
         "with_transform(None) if False else scenes",
         "a_transform_of_the_scenes_is_left_out"),
        ("scenes are not shuffled", "shuffle=True", "shuffle=False",
         "training:each_epoch_has_its_own_order"),
    ],
    "synthetic": [
        ("all streets are one", "_Street(seed, sequence + 1)", "_Street(seed, 1)",
         "frames_of_a_sequence_resemble_each_other"),
        ("masks are one pixel off", "np.asarray(ids)[SUB // 2",
         "np.roll(ids, SUB, 1)[SUB // 2", "image_and_mask_are_on_one_pixel_grid"),
    ],
    "unet": [
        ("VGG is cut behind the poolings", "pools = [i for", "pools = [i + 1 for",
         "stages_are_split_at_the_pools"),
        ("skips are taken in the wrong order", "reversed(skips)", "skips",
         "forward_padded_equals_the_model_where_sizes_fit"),
        ("padding is on the wrong side", "(0, -width % STRIDE, 0,",
         "(-width % STRIDE, 0, 0,", "forward_padded_pads_and_crops_correctly"),
        ("normalization of another network", "(0.485, 0.456, 0.406)",
         "(0.5, 0.5, 0.5)", "normalize_is_what_torchvision_does_for_these_weights"),
    ],
    "weights": [
        ("code in weights is run", 'map_location="cpu", weights_only=True',
         'map_location="cpu", weights_only=False',
         "code_in_a_pickle_is_refused_and_not_run"),
        ("NaN in weights passes", "if not torch.isfinite(v).all():", "if False:",
         "a_bad_entry_is_named"),
        ("a loaded network is in training mode", "SavedModel(model.eval(), labels",
         "SavedModel(model.train(), labels", "save_and_load"),
        ("one scale for all output channels", "dims = tuple(range(1, v.ndim))",
         "dims = tuple(range(v.ndim))", "quantized_by_hand"),
        ("weights are known by their names alone",
         "digest.update(v.detach().cpu().contiguous().numpy())", "pass",
         "encoder_weights_are_known_by_content"),
    ],
    "recipes": [
        ("masks are half a pixel off",
         "mask, self.size, interpolation=v2.InterpolationMode.NEAREST_EXACT",
         "mask, self.size, interpolation=v2.InterpolationMode.NEAREST",
         "image_and_mask_stay_on_one_grid"),
        ("ignored pixels are in the class weights",
         "counts[labels.ignore_index] = 0", "pass", "class_weights_by_hand"),
        ("frequent classes weigh more",
         "(counts[present].median() / counts[present]) ** power",
         "(counts[present] / counts[present].median()) ** power",
         "class_weights_by_hand"),
        ("the encoder learns as fast", '"lr": recipe.lr_encoder',
         '"lr": recipe.lr_decoder', "the_encoder_has_a_lower_rate"),
        ("the loss is divided by all pixels", "of_pixel[ignore_index] = 0",
         "of_pixel[ignore_index] = 1", "ignored_pixels_do_not_count"),
        ("region losses see ignored pixels", "known = masks != ignore_index",
         "known = masks >= 0", "a_batch_without_labels_does_no_harm"),
        ("Lovász without the union", "t.sum() + (1 - t).cumsum(0)",
         "t.sum() + t.cumsum(0)", "lovasz_of_hard_predictions_is_one_minus_iou"),
        ("another input size is another training", ', own["input_size"]', "",
         "only_what_changes_the_training_is_its_identity"),
    ],
    "metrics": [
        ("ignored pixels are out of acc12", "acc12=(right.sum() / counts.sum())",
         "acc12=(right.sum() / labeled.sum())",
         "ignored_pixels_of_the_truth_count_in_acc12_alone"),
        ("ignored pixels are in the accuracy", "acc=(right.sum() / labeled.sum())",
         "acc=(right.sum() / counts.sum())",
         "ignored_pixels_of_the_truth_count_in_acc12_alone"),
        ("the mean IoU counts absent classes", "iou.nanmean()",
         "iou.nan_to_num().mean()",
         "absent_classes_have_no_iou_and_invented_ones_zero"),
        ("the confusion matrix is transposed",
         "truth.long().flatten() * count + predicted.long().flatten()",
         "predicted.long().flatten() * count + truth.long().flatten()",
         "absent_classes_have_no_iou_and_invented_ones_zero"),
        ("networks are compared on different frames", "bootstrap(others, *rest)",
         "bootstrap(others, *rest[:-1], seed + 1)",
         "the_paired_bootstrap_draws_the_same_frames_for_both"),
        ("ignored pixels have boundaries", "(predicted == class_id) & ~ignored",
         "predicted == class_id", "boundary_iou_equals_one_by_distance_transform"),
    ],
    "inference": [
        ("the flipped prediction is not flipped back", "labels).flip(-1)", "labels)",
         "probabilities_equal_a_plain_computation"),
        ("labels are resized, not logits",
         '(bottom - top, size[1]), mode="bilinear")',
         '(bottom - top, size[1]), mode="nearest")',
         "logits_are_upsampled_not_labels a_ramp_stays_where_it_is"),
        ("predictions are half a pixel off", "+ 0.5) * height / size[0] - 0.5",
         ") * height / size[0]", "a_ramp_stays_where_it_is"),
        ("the rule of input sizes is bypassed",
         "size = input_size_for(images.shape[-2:], input_size)",
         "size = tuple(input_size or images.shape[-2:])",
         "probabilities_equal_a_plain_computation"),
        ("batch normalization sees the images", "    model.eval()\n    try:",
         "    try:", "the_mode_of_every_module_is_restored_also_after_an_error"),
        ("channels are taken for ids", "return ids[probabilities.argmax(1).cpu()]",
         "return probabilities.argmax(1).to(ids.dtype).cpu()",
         "predictions_have_native_size_and_never_the_ignored_class"),
        ("tiles do not blend", "torch.minimum(ramp, tile - ramp)", "torch.ones(tile)",
         "tiles_blend_where_they_overlap"),
    ],
    "training": [
        ("ignored pixels are counted", "& labeled).sum(), labeled.sum()",
         "& labeled).sum(), labeled.numel()",
         "ignored_pixels_are_not_counted_as_correct"),
        ("gradients pile up", "self.optimizer.zero_grad()", "pass",
         "every_step_begins_without_old_gradients"),
        ("the schedule stands still", "self.scheduler.step()", "pass",
         "the_schedule_of_a_recipe_ends_with_the_training"),
        ("the average stands still", "self.averaged.update_parameters(self.plain)",
         "pass", "the_average_of_the_weights"),
        ("the average has no statistics", "use_buffers=True", "use_buffers=False",
         "the_average_of_the_weights"),
        ("a resumed training starts over", "plan[done:], done + 1", "plan, 1",
         "checkpoints:another_name_or_input_size_goes_on"),
        ("a resumed training changes its precision",
         'saved["precision"] if keep else resolve', "resolve",
         "checkpoints:a_resumed_training_keeps_its_precision"),
        ("every epoch is shuffled alike", "loader.set_epoch(epoch)",
         "loader.set_epoch(0)", "each_epoch_has_its_own_order"),
        ("a loss of NaN passes", "if len(bad) == 0:", "if len(bad) < 99:",
         "a_loss_that_is_not_finite_names_its_images"),
        ("another criterion continues a training", " | names | (", " | (",
         "another_criterion_does_not_continue_a_training"),
        ("a last small batch counts as much",
         "drop_last = len(self.scenes) >= recipe.batch_size", "drop_last = False",
         "sizes_follow_the_phases"),
        ("a batch without labels gives NaN",
         "self.criterion(logits, masks) * (labeled > 0)",
         "self.criterion(logits, masks)",
         "a_batch_without_labels_contributes_nothing"),
        ("the network comes back wrapped",
         "self.accelerator.unwrap_model(self.plain, keep_fp32_wrapper=False)", "pass",
         "the_wrapper_of_mixed_precision_comes_off_also_after_an_error"),
    ],
    "checkpoints": [
        ("a damaged checkpoint is loaded", "if found.get(name) != digest:",
         "if name not in found:", "any_damage_to_the_newest_checkpoint_is_seen"),
        ("a checkpoint is written in place", 'self.folder / f".draft-{name}"',
         "self.folder / name", "a_half_written_checkpoint_is_not_taken_for_whole"),
        ("another training is resumed",
         'self._check_same_training(progress["run_config"])', "pass",
         "another_recipe_does_not_go_on_with_the_old_one"),
        ("epoch 1000 is older than 999", "sorted(found, key=lambda p: int(p.name[6:]))",
         "sorted(found)", "the_thousandth_checkpoint_is_the_newest"),
        ("deleted checkpoints fill the trash", 'path.write_bytes(b"")', "pass",
         "deleted_checkpoints_are_empty_first"),
    ],
    "distributed": [
        ("the average is not in the checkpoint",
         "weights.append(averaged.state_dict())", "pass",
         "checkpoints:a_checkpoint_with_an_average_holds_no_pickled_objects"),
        ("the parts of a batch change places",
         "accelerator.process_index * len(logits)", "0",
         "one_batch_has_the_same_gradients"),
    ],
    "trained": [
        ("the network of another training is loaded", "if differs:", "if False:",
         "another_recipe_trains_again"),
        ("the average is not kept", "if result.averaged is None else result.averaged",
         "", "the_average_is_the_network_that_is_kept"),
        ("other encoder weights are the same training",
         'config |= {"encoder_fingerprint": encoder.fingerprint}', "pass",
         "encoder_weights_are_known_by_their_content"),
    ],
    "export": [
        ("any export passes its check", "TOLERANCE = 1e-3", "TOLERANCE = 1e3",
         "a_file_that_computes_something_else_is_refused"),
    ],
    "convert": [
        ("an edge gets a third class",
         "edge[off], owner[off] = mixed, np.where(mixed, nearer, owner[off])",
         "edge[off] = mixed", "an_edge_gets_one_of_its_two_classes_never_a_third"),
        ("a mapping comes last", "self.values[known.value] = target",
         "self.values.setdefault(known.value, target)",
         "prepare:masks_of_0_and_255_need_a_mapping"),
        ("palettes are read by index", "if not (colored | void).all():", "if True:",
         "a_palette_in_another_order_is_read_by_its_colors"),
        ("large outlines cover small ones", '-float(a["area"])', 'float(a["area"])',
         "small_outlines_lie_on_large_ones_and_parts_belong_together"),
    ],
    "prepare": [
        ("unknown ids are ignored unasked", 'if unknown != "ignore":', "if False:",
         "unknown_ids_are_refused_with_counts_and_first_file"),
        ("what can't be converted is left out",
         "if report.failed():\n            raise PrepareError(report)\n        labels",
         "labels", "all_unusable_files_are_in_one_report"),
        ("a scene replaces one of its name", "if other != item.image:", "if False:",
         "scenes_that_would_get_one_name_are_refused"),
        ("masks of another size are written", "if shape != size:", "if False:",
         "all_unusable_files_are_in_one_report"),
        ("held-out scenes are trained on", '("test" if held_out[i] else "train")',
         '"train"', "splits_are_kept_or_made_of_blocks_or_sequences"),
        ("a mask without an image is left out",
         'problems.add(of_masks[stem], "has no image")',
         "dropped.append(of_masks[stem])",
         "images_without_mask_are_a_warning_masks_without_image_an_error"),
    ],
    "doctor": [
        ("half a pixel is no shift", "HALF_A_PIXEL = 0.4", "HALF_A_PIXEL = 4.0",
         "masks_shifted_by_half_a_pixel"),
        ("invented labels are usual", "FEW, OUTLYING = 0.4, 0.2, 0.05, 5",
         "FEW, OUTLYING = 9, 9, 9, 9", "labels_invented_by_interpolation"),
        ("copies in other splits are not seen", "level.max(0) >= ALIKE",
         "level.max(0) >= 9", "copies_and_neighbors_across_splits"),
    ],
    "measures": [
        ("ignored borders count as invented", "run &= first != labels.ignore_index",
         "pass", "poles_wide_regions_and_ignored_borders_are_no_invention"),
        ("borders are searched along rows only", "(mask, pixels), (mask.T, pixels.T)",
         "(mask, pixels),", "two_pixels_wide_counts_too_also_along_columns"),
        ("a shift is opposite", "at + part - REACH", "REACH - at - part",
         "a_shift_is_estimated_between_pixels"),
    ],
    "segment": [
        ("results overwrite each other", "os.path.realpath(other) !=",
         "other is None and", "results_that_would_overwrite_something_are_refused"),
        ("saved masks have no palette", "labels.palette().tobytes()", "bytes(768)",
         "masks_hold_the_ids_of_the_network_that_made_them"),
        ("every Nth frame is every frame", "(frame.index // every + 1) * every",
         "frame.index", "a_video_becomes_a_video_and_masks"),
    ],
    "video": [
        ("timestamps are dropped", "if frame.pts is not None:", "if False:",
         "frame_times_are_the_timestamps"),
        ("undecodable frames are not counted",
         "self._note_damage(packet, start, rate)\n", "pass\n",
         "a_damaged_frame_is_skipped_and_named_by_its_time"),
        ("corrupt frames pass", "if frame.is_corrupt:", "if False:",
         "damage_in_the_middle_of_a_stream_is_not_passed_off_as_frames"),
        ("videos are turned the wrong way", "round(frame.rotation / 90)",
         "-round(frame.rotation / 90)", "rotation_noted_in_the_file_is_applied"),
        ("a video is not read back",
         "if readable != self.written or found.problems():", "if False:",
         "a_video_that_lost_frames_gets_no_name"),
        ("a cut file counts as whole", "return self._packets < self.expected",
         "return False", "a_file_that_was_cut_off_is_told"),
    ],
    "files": [
        ("two dots pass", '".." in name.split("/") or ', "",
         "what_is_no_complete_and_safe_archive_is_refused"),
        ("links pass", "stat.S_ISLNK(member.external_attr >> 16)", "False",
         "what_is_no_complete_and_safe_archive_is_refused"),
        ("archives have no end", "if size > MAX_UNPACKED:", "if size < 0:",
         "what_is_no_complete_and_safe_archive_is_refused"),
        ("the lock is not taken",
         "with locked(lock, runtime.display_path(target)) as held:",
         "for held in [True]:",
         "a_complete_folder_is_used_where_nothing_can_be_written"),
        ("a foreign folder is replaced",
         "if target.exists() and not (target / MANIFEST).exists():", "if False:",
         "what_was_not_created_here_is_never_replaced"),
        ("a file is written in place", "yield draft\n        os.replace(draft, path)",
         "yield path", "a_file_is_replaced_when_it_is_complete"),
        ("a folder is lost when a rename fails", "old.rename(target)", "pass",
         "a_folder_comes_back_when_the_last_rename_fails"),
    ],
    "runtime": [
        ("the quick profile is not exact",
         "if (profile or settings().profile).deterministic:", "if False:",
         "the_precision_of_other_devices"),
        ("the decision on the precision is cached", "def amp_dtype(\n",
         "@functools.cache\ndef amp_dtype(\n",
         "the_precision_follows_a_profile_that_changes"),
        ("NumPy gets no seed", "np.random.seed(seed % 2**32)", "pass", "seeds_repeat"),
        ("a GPU of 2017 has bf16", "get_device_capability(where)[0] >= 8",
         "get_device_capability(where)[0] >= 7", "the_precision_of_other_devices"),
    ],
    "dataset1": [
        ("the test split is another", '"test": ("val", "valannot")',
         '"test": ("test", "testannot")', "after_a_bad_source_the_next_is_used"),
        ("a folder that lost files is complete",
         "lambda folder: _counts(folder, counts) == counts", "lambda folder: True",
         "a_fetched_folder_that_lost_a_file_is_not_taken_for_whole"),
        ("synthetic scenes pass for real ones", ", is_real=False)", ")",
         "without_dataset1_synthetic_scenes_replace_it_loudly"),
    ],
    "cli": [
        ("an interruption is a success", "return INTERRUPTED", "return 0",
         "an_interruption_leaves_complete_files"),
        ("a full disk is a traceback", "except (RoadsegError, OSError) as error:",
         "except RoadsegError as error:",
         "what_no_one_can_program_away_is_one_line"),
        ("every 0th frame is accepted", r"0*[1-9]\d{0,8}", r"\d{1,9}",
         "wrong_arguments_are_status_2"),
    ],
    "commands": [
        ("a check always succeeds", "return int(report.failed(options.strict))",
         "return 0", "doctor:the_command_its_page_and_its_status"),
        ("networks score on other classes",
         "if found.labels.names != labels.names:", "if False:",
         "networks_and_data_of_other_classes"),
        ("files that failed are a success",
         'counts["done"] < len(inputs.files) or bool(inputs.errors)', "0",
         "cli:a_bad_file_in_a_folder_does_not_stop_the_others"),
    ],
}  # fmt: skip

FAULTS = [Fault.of(module, *row) for module, rows in TABLE.items() for row in rows]


class Task(NamedTuple):
    """Tests to run on a copy of the course, with a fault in it or without one."""

    root: Path
    fault: Fault | None
    tests: tuple[str, ...]


def run(task: Task) -> tuple[str, float]:
    """Return what the tests say, and the seconds they took.

    The first is "caught" if one fails, "SURVIVED" if none does, else what pytest says.
    """
    start, told = time.monotonic(), io.StringIO()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder)
        for part in (PACKAGE, "scripts", "tests"):
            if (task.root / part).is_dir():
                shutil.copytree(task.root / part, copy / part)
        shutil.copy(task.root / "pyproject.toml", copy)
        if fault := task.fault:
            path = copy / PACKAGE / f"{fault.module}.py"
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        os.chdir(copy)
        pytest = importlib.import_module("pytest")
        options = ["-q", "-x", "--tb=short", "-p", "no:cacheprovider", "--no-header"]
        options += ["-o", "tmp_path_retention_policy=none", f"--basetemp={copy}/tmp"]
        with redirect_stdout(told), redirect_stderr(told):
            status = int(pytest.main([*options, *task.tests]))
        os.chdir(task.root)
    words = {0: "SURVIVED", 1: "caught"}
    found = words.get(status) or f"ERROR {status}: {told.getvalue()[-2000:]}"
    if status and not fault:
        print(told.getvalue()[-2000:])
    return found, time.monotonic() - start


def run_in_fork(task: Task) -> tuple[str, float]:
    """Return what `run` returns, from a process of its own."""
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    process = forking.Process(target=lambda: sender.send(run(task)))
    process.start()
    found = receiver.recv() if receiver.poll(LIMIT) else ("HUNG", float(LIMIT))
    process.kill()
    process.join()
    return found


def results(tasks: Sequence[Task]) -> Iterator[tuple[str, float]]:
    """Yield what `run` returns for each task, in order, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(run_in_fork, tasks)


def main(words: list[str]) -> int:
    """Try all faults, or those that words choose; return the exit status."""
    chosen = [f for f in FAULTS if all(w in f"{f.module} {f.name}" for w in words)]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    start = time.monotonic()
    named = sorted({test for fault in chosen for test in fault.tests})
    by_file = [tuple(g) for _, g in groupby(named, lambda test: test.split("::")[0])]
    for found, _ in results([Task(ROOT, None, tests) for tests in by_file]):
        if found != "SURVIVED":
            print("tests fail without any fault")
            return 1
    print(f"{len(named)} tests pass without any fault", flush=True)
    caught = 0
    faulty = results([Task(ROOT, fault, fault.tests) for fault in chosen])
    for fault, (found, seconds) in zip(chosen, faulty, strict=True):
        caught += found == "caught"
        print(f"{found:<9}{seconds:>4.0f} s  {fault.module}: {fault.name}", flush=True)
    print(f"{caught} of {len(chosen)} caught in {time.monotonic() - start:.0f} s")
    return int(caught < NEEDED * len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
