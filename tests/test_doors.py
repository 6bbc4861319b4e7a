"""The scripts that use a trained network: what they write, print, refuse, return."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import doors
import evaluate
import export_onnx
import predict
from roadseg import dataset1, evaluation, runtime, synthetic, unet
from roadseg.classes import NAMES

ROOT = Path(__file__).parents[1]
SIZE = (64, 96)
HAS_ONNX = all(importlib.util.find_spec(name) for name in export_onnx.PACKAGES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of random weights in a file."""
    path = tmp_path_factory.mktemp("model") / "unet.safetensors"
    torch.manual_seed(0)
    unet.save(unet.UNet(), path, {"recipe": f"Recipe(feed={SIZE}, batch_size=2)"})
    return path


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    """Drawn scenes in dataset1's layout, of two sizes."""
    folder = tmp_path_factory.mktemp("roads")
    for split, count in (("train", 3), ("test", 3)):
        scenes = list(synthetic.draw_scenes(count, SIZE))
        name, picture, mask = scenes[-1]
        scenes[-1] = (name, picture[:48], mask[:48])
        dataset1.write(folder, split, scenes)
    return folder


@pytest.fixture(autouse=True)
def own_output(tmp_path, monkeypatch):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "build"))


def drawn(seed=1, size=SIZE):
    return synthetic.draw_scene(seed, size)[0]


def labels_of(trained, picture, size=None):
    model, _ = unet.load(trained)
    picture = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return evaluation.predict(model, picture, size)[0].numpy()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# --- predict ------------------------------------------------------------------


def test_a_picture_becomes_a_mask_and_an_overlay(trained, tmp_path, capsys):
    picture = drawn()
    Image.fromarray(picture).save(tmp_path / "street.png")
    out = tmp_path / "new" / "out"
    arguments = [str(tmp_path / "street.png"), "--model", str(trained)]
    assert predict.main([*arguments, "--out", str(out)]) == 0
    assert names(out) == ["street_mask.png", "street_overlay.jpg"]
    with Image.open(out / "street_mask.png") as mask:
        ids = np.array(mask)
        colours = np.array(mask.convert("RGB"))
    assert (ids == labels_of(trained, picture, SIZE)).all()
    assert (colours == predict.classes.colorize(ids)).all()
    with Image.open(out / "street_overlay.jpg") as overlay:
        apart = np.abs(np.array(overlay).astype(int) - picture)
    assert overlay.size == (96, 64)
    assert 1 < apart.mean() < 128
    shown, errors = capsys.readouterr()
    assert "1 of 1 done" in shown
    assert not errors


def test_without_options_the_profiles_network_and_folder(trained, tmp_path):
    (tmp_path / "build" / "quick" / "quick").mkdir(parents=True)
    home = runtime.output_dir()
    (home / "quick" / "unet.safetensors").write_bytes(trained.read_bytes())
    Image.fromarray(drawn()).save(tmp_path / "street.png")
    assert predict.main([str(tmp_path / "street.png")]) == 0
    assert names(home / "predictions") == ["street_mask.png", "street_overlay.jpg"]


def test_the_network_of_another_recipe(trained, tmp_path, capsys):
    folder = runtime.output_dir() / "cpu-long"
    folder.mkdir(parents=True)
    shutil.copy(trained, folder)
    Image.fromarray(drawn()).save(tmp_path / "street.png")
    street = str(tmp_path / "street.png")
    assert predict.main([street]) == 1  # the profile's recipe has trained nothing
    assert predict.main([street, "--recipe", "cpu-long"]) == 0
    assert names(runtime.output_dir() / "predictions")
    with pytest.raises(SystemExit) as stop:
        predict.main([street, "--recipe", "cpu-long", "--model", str(trained)])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_bad_picture_in_a_folder_does_not_stop_the_others(trained, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    upright = Image.fromarray(drawn(2, (70, 50)))
    exif = Image.Exif()
    exif[274] = 6  # lying: to be turned by a quarter
    upright.save(folder / "a.jpg", exif=exif)
    (folder / "b.png").write_text("no picture")
    upright.convert("CMYK").save(folder / "c.tif")
    upright.convert("L").save(folder / "D.PNG")
    (folder / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    assert predict.main([str(folder), "--model", str(trained), "--out", str(out)]) == 1
    shown, errors = capsys.readouterr()
    assert "3 of 4 done" in shown
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: b.png cannot be read as a picture")
    assert "take a PNG" in errors
    sizes = {p.name[0]: Image.open(p).size for p in out.glob("*_mask.png")}
    assert sizes == {"a": (70, 50), "c": (50, 70), "D": (50, 70)}
    assert len(names(out)) == 6


def test_an_interruption_leaves_whole_files(trained, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        Image.fromarray(drawn()).save(tmp_path / name)
    save = predict.save_mask

    def stop(labels, path):
        save(labels, path)
        if "b_mask" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(predict, "save_mask", stop)
    out = tmp_path / "out"
    inputs = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    status = predict.main([*inputs, "--model", str(trained), "--out", str(out)])
    assert status == 130
    assert "1 of 2 done" in capsys.readouterr().out
    assert names(out) == ["a_mask.png", "a_overlay.jpg", "b_overlay.jpg"]


def test_a_video_becomes_a_video_and_masks(trained, tmp_path, capsys):
    cv2 = predict.opencv()
    film = tmp_path / "drive.avi"
    code = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(film), code, 10, (96, 64))
    for seed in range(5):
        writer.write(np.ascontiguousarray(drawn(seed)[..., ::-1]))
    writer.release()
    out = tmp_path / "out"
    arguments = [str(film), "--model", str(trained), "--out", str(out)]
    assert predict.main([*arguments, "--every", "2"]) == 0
    assert predict.main([*arguments, "--every", "2"]) == 0, "over an earlier result"
    assert names(out) == ["drive_masks", "drive_overlay.mp4"]
    masks = sorted((out / "drive_masks").iterdir())
    assert [p.name for p in masks] == ["000000.png", "000002.png", "000004.png"]
    found = np.array(Image.open(masks[1]))
    assert (found == labels_of(trained, drawn(2), SIZE)).mean() > 0.9  # MJPG is lossy
    video = cv2.VideoCapture(str(out / "drive_overlay.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert video.read()[1].shape == (64, 96, 3)


@pytest.mark.parametrize("rate", [239.951, 240.003, 0.001, 59.94])
def test_videos_of_any_rate_can_be_written(tmp_path, rate):
    write = predict.Writer(tmp_path / "film.mp4")
    for seed in range(2):
        write(drawn(seed), rate)
    write.close()
    video = predict.opencv().VideoCapture(str(tmp_path / "film.mp4"))
    found = video.get(predict.opencv().CAP_PROP_FPS)
    assert found == pytest.approx(max(rate, 0.01), abs=0.01)
    assert video.get(predict.opencv().CAP_PROP_FRAME_COUNT) == 2


def test_a_file_that_is_no_video_leaves_nothing(trained, tmp_path, capfd):
    film = tmp_path / "drive.mp4"
    film.write_bytes(b"no video" * 100)
    out = tmp_path / "out"
    assert predict.main([str(film), "--model", str(trained), "--out", str(out)]) == 1
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "drive.mp4 cannot be read as a video: take an MP4" in errors[0]
    assert names(out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: PATH"),
        (["a.png", "--size", "100"], "such as 256x352"),
        (["a.png", "--every", "0"], "from 1 on"),
        (["a.png", "--out", "."], "choose another folder"),
        (["a.png", "--out", "away/.."], "choose another folder"),
        (["a.png", "--out", "link"], "choose another folder"),
        (["a.png", "a.jpg"], "would have results of one name"),
    ],
)
def test_wrong_arguments_to_predict(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(drawn()).save(name)
    (tmp_path / "away").mkdir()
    if "link" in arguments:
        (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(SystemExit) as stop:
        predict.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "model", "message"),
    [
        (["gone.png"], None, "gone.png is not there"),
        (["empty"], None, "empty holds no pictures"),
        (["a.png"], None, "no trained network.*scripts/train.py"),
        (["a.png"], "a.png", "a.png cannot be read as a U-Net"),
    ],
)
def test_bad_input_is_one_line(inputs, model, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(drawn()).save("a.png")
    (tmp_path / "empty").mkdir()
    more = ["--model", model] if model else []
    assert predict.main([*inputs, *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


def test_a_network_of_other_classes_is_refused(tmp_path, capsys):
    unet.save(unet.UNet(5), tmp_path / "five.safetensors")
    Image.fromarray(drawn()).save(tmp_path / "a.png")
    model = str(tmp_path / "five.safetensors")
    assert predict.main([str(tmp_path / "a.png"), "--model", model]) == 1
    assert "tells 5 classes apart, the course 12" in capsys.readouterr().err


# --- evaluate -----------------------------------------------------------------


def test_scores_are_those_of_roadseg(trained, roads, tmp_path, capsys):
    target = tmp_path / "scores.json"
    arguments = ["--model", str(trained), "--data", str(roads)]
    assert evaluate.main([*arguments, "--json", str(target)]) == 0
    model, _ = unet.load(trained)
    scenes = dataset1.RoadScenes(roads, "test")
    scores = evaluation.evaluate(
        model, scenes, lambda picture: evaluation.feed_size(picture, SIZE)
    )
    shown = capsys.readouterr().out
    assert str(scores) in shown
    assert all(name in shown for name in NAMES[:11])
    found = json.loads(target.read_text())
    assert found.items() >= scores.as_dict().items()
    assert found["fed_at"] == "64 x 96 (2), 55 x 111 (1)"  # one is wider
    assert found["real_data"] is True
    own = evaluation.evaluate(model, scenes, (32, 64))
    assert evaluate.main([*arguments, "--size", "32x64"]) == 0
    shown = capsys.readouterr().out
    assert str(own) in shown
    assert re.search(r"^fed at +32 x 64$", shown, re.M)
    assert str(own) != str(scores), "the size made no difference"


def test_what_is_scored_is_what_predict_writes(trained, roads, tmp_path, capsys):
    pictures, annotations = (roads / name for name in dataset1.folders("test"))
    out, model = tmp_path / "out", ["--model", str(trained)]
    assert predict.main([str(pictures), *model, "--out", str(out)]) == 0
    masks = [out / f"{path.stem}_mask.png" for path in sorted(pictures.iterdir())]
    read = [[np.array(Image.open(p)) for p in sorted(annotations.iterdir())]]
    read += [[np.array(Image.open(p)) for p in masks]]
    scores = evaluation.score(*(map(torch.from_numpy, ids) for ids in read))
    capsys.readouterr()
    assert evaluate.main([*model, "--data", str(roads)]) == 0
    # batches round otherwise than single pictures
    found = re.search(r"^acc ([\d.]+)", capsys.readouterr().out, re.M)
    assert float(found[1]) == pytest.approx(scores.acc, abs=2e-3)


def test_many_sizes_are_told_in_short():
    sizes = {(9, n): n for n in range(1, 8)}
    assert evaluate.in_words(Counter(sizes)) == (
        "9 x 7 (7), 9 x 6 (6), 9 x 5 (5), 9 x 4 (4) and 3 other sizes"
    )
    assert evaluate.in_words(Counter({(9, 7): 101})) == "9 x 7"


def test_drawn_scenes_are_marked(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    assert evaluate.main(["--model", str(trained)]) == 0
    assert "NOT COMPARABLE" in capsys.readouterr().out


def test_a_split_is_of_a_folder(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--split", "train"])
    assert stop.value.code == 2
    assert "--split: only with --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "gone"], "no folder images_prepped_gone"),
        (["--json", "gone/scores.json"], "gone/scores.json: there is no such folder"),
    ],
)
def test_bad_input_to_evaluate(trained, roads, more, message, capsys, monkeypatch):
    status = evaluate.main(["--model", str(trained), "--data", str(roads), *more])
    assert status == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# --- export -------------------------------------------------------------------


@pytest.mark.skipif(not HAS_ONNX, reason="needs scripts/requirements-export.txt")
def test_an_exported_network_computes_the_same(trained, roads, tmp_path, capsys):
    path = tmp_path / "unet.onnx"
    arguments = ["--model", str(trained), "--out", str(path), "--data", str(roads)]
    assert export_onnx.main([*arguments, "--int8", "2"]) == 0
    shown, errors = capsys.readouterr()
    assert not errors
    assert shown.count("largest difference") == len(export_onnx.SIZES)
    assert "lost     acc " in shown
    assert names(tmp_path) == ["unet.onnx", "unet_int8.onnx"]
    small = (tmp_path / "unet_int8.onnx").stat().st_size
    assert small < 0.35 * path.stat().st_size
    picture = torch.from_numpy(drawn()).permute(2, 0, 1)[None]
    model, _ = unet.load(trained)
    pairs = zip(
        evaluation.predict_probabilities(model, picture, (50, 70)),
        evaluation.predict_probabilities(export_onnx.Runtime(path), picture, (50, 70)),
        strict=True,
    )
    for wanted, found in pairs:
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    with torch.no_grad():
        model.head.bias[3] += 1
    with pytest.raises(ValueError, match="does not compute what PyTorch does"):
        export_onnx.check(model, path)


def test_without_onnx_it_says_what_to_install(trained, monkeypatch, capsys):
    monkeypatch.setattr(export_onnx, "PACKAGES", ("onnx_is_not_here",))
    assert export_onnx.main(["--model", str(trained)]) == 1
    assert "requirements-export.txt" in capsys.readouterr().err


def test_proportions_are_kept_unless_they_are_the_same():
    assert evaluation.feed_size((360, 480), (256, 352)) == (256, 352)
    assert evaluation.feed_size((720, 960), None) == (360, 480)
    height, width = evaluation.feed_size((1600, 900), (256, 352))
    assert height / width == pytest.approx(16 / 9, rel=0.01)
    assert height * width == pytest.approx(256 * 352, rel=0.01)
    assert min(evaluation.feed_size((1, 9999), None)) >= 1


def test_memory_that_runs_out_for_one_picture_does_not_stop_the_others(
    trained, tmp_path, monkeypatch, capsys
):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("large.png", "small.png"):
        Image.fromarray(drawn(1)).save(folder / name)
    whole, calls = predict.predict_picture, []

    def refused(network, path, out):
        calls.append(path.name)
        if path.name == "large.png":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        whole(network, path, out)

    monkeypatch.setattr(predict, "predict_picture", refused)
    assert predict.main([str(folder), "--model", str(trained), "--out", str(out)]) == 1
    assert calls == ["large.png", "small.png"]
    assert "error: large.png takes more memory" in capsys.readouterr().err


def test_an_error_names_the_file_and_one_that_nobody_foresaw_passes():
    path = Path("in/a.png")
    full = OSError(28, "No space left on device")
    assert predict.why(full, path) == "a.png: [Errno 28] No space left on device"
    assert predict.why(ValueError("a.png is empty"), path) == "a.png is empty"
    assert predict.why(RuntimeError("sizes do not match"), path) is None


def test_memory_that_runs_out_ends_a_door_in_a_line(capsys):
    def work():
        raise MemoryError

    assert doors.status(work) == 1
    assert capsys.readouterr().err.startswith("error: this takes more memory")


def start_training(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "train.py", *arguments],
        capture_output=True,
        text=True,
    )


def test_pictures_of_ones_own_are_trained_on(roads, tmp_path, capsys):
    done = start_training("--data", str(roads))
    assert done.returncode == 0, done.stderr
    assert "3 training pictures, 48 x 96 or 64 x 96" in done.stdout
    assert "NOT COMPARABLE" not in done.stdout  # nobody said that these are drawn
    network = runtime.output_dir() / f"quick-{roads.name}" / "unet.safetensors"
    assert f"{network.parent.name}/{network.name}" in done.stdout.replace(os.sep, "/")
    scores = re.search(r"^acc .*mIoU \S+", done.stdout, re.MULTILINE)[0]
    assert evaluate.main(["--model", str(network), "--data", str(roads)]) == 0
    assert scores in capsys.readouterr().out


def test_a_folder_that_cannot_be_trained_on_is_one_line(tmp_path):
    done = start_training("--data", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*nowhere.*\n", done.stderr)


@pytest.mark.parametrize("script", ["train.py", "benchmark.py"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [("ROADSEG_RECIPE", "cpu_long"), ("ROADSEG_DEVICE", "toaster")],
)
def test_a_wrong_setting_is_one_line(tmp_path, script, setting, value):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script],
        env=os.environ | {setting: value, "ROADSEG_OUTPUT": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert value in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
