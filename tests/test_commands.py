"""The commands train, evaluate and export: what they print, write and refuse."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from roadseg import cli, images, inference, scenes, synthetic, unet, weights
from roadseg.classes import CAMVID, LabelSet

SIZE = (64, 96)
UPRIGHT = (96, 64)
HAS_ONNX = all(
    importlib.util.find_spec(x) for x in ("onnx", "onnxscript", "onnxruntime")
)
THREE = LabelSet(("road", "car", "rest"), ((128, 64, 128), (64, 0, 128), (9, 9, 9)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of random weights in a file."""
    path = tmp_path_factory.mktemp("model") / "unet.safetensors"
    torch.manual_seed(0)
    weights.save_model(unet.UNet(), path, CAMVID, {"input_size": SIZE})
    return path


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    """Synthetic scenes in dataset1's layout, one of them upright."""
    folder = tmp_path_factory.mktemp("roads")
    for split in ("train", "test"):
        drawn = list(synthetic.draw_scenes(3, SIZE))
        name, image, mask = drawn[-1]
        drawn[-1] = (name, np.rot90(image).copy(), np.rot90(mask).copy())
        scenes.write_scenes(folder, split, drawn)
    return folder


@pytest.fixture(autouse=True)
def own_output(tmp_path, monkeypatch):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "build"))


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def accuracy(text):
    return float(re.search(r"^(?:float32 +)?acc (\S+)", text, re.M)[1])


# --- evaluate -----------------------------------------------------------------


def test_scores_are_those_of_the_package(trained, roads, tmp_path, capsys):
    target = tmp_path / "scores.json"
    arguments = ("evaluate", "--model", trained, "--data", roads)
    assert run(*arguments, "--json", target) == 0
    saved = weights.load_model(trained)
    test = scenes.RoadScenes(roads, "test")
    scores = inference.evaluate(saved.model, test, SIZE)
    shown = capsys.readouterr().out
    assert str(scores) in shown
    assert all(name in shown for name in CAMVID.names[:11])
    found = json.loads(target.read_text("utf-8"))
    assert found.items() >= scores.as_dict().items()
    upright = "{} x {}".format(*inference.input_size_for(UPRIGHT, SIZE))
    assert found["input_size"] == f"64 x 96 (2), {upright} (1)"
    assert found["is_real"] is True
    assert run(*arguments, "--input-size", "32x64") == 0
    other = inference.evaluate(saved.model, test, (32, 64))
    shown = capsys.readouterr().out
    assert str(other) in shown
    assert str(other) != str(scores), "the size made no difference"


def test_what_is_scored_is_what_predict_writes(trained, roads, tmp_path, capsys):
    out = tmp_path / "out"
    inputs = roads / "images_prepped_test"
    assert run("predict", inputs, "--model", trained, "--out", out) == 0
    right = labeled = 0
    for path in inputs.iterdir():
        truth = images.read_mask(roads / "annotations_prepped_test" / path.name).numpy()
        mask = np.array(Image.open(out / f"{path.stem}_mask.png"))
        right += ((truth == mask) & (truth != 11)).sum()
        labeled += (truth != 11).sum()
    capsys.readouterr()
    assert run("evaluate", "--model", trained, "--data", roads) == 0
    # batches round otherwise than single images
    found = accuracy(capsys.readouterr().out)
    assert found == pytest.approx(right / labeled, abs=2e-3)


def test_the_mirrored_image_and_another_split(trained, roads, capsys):
    arguments = ("evaluate", "--model", trained, "--data", roads)
    assert run(*arguments, "--hflip", "--split", "train") == 0
    saved = weights.load_model(trained)
    train = scenes.RoadScenes(roads, "train")
    scores = inference.evaluate(saved.model, train, SIZE, hflip_tta=True)
    shown = capsys.readouterr().out
    assert str(scores) in shown
    assert "mirrored" in shown


def test_synthetic_scenes_are_marked(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    assert run("evaluate", "--model", trained) == 0
    assert "NOT COMPARABLE" in capsys.readouterr().out


def test_networks_and_data_of_other_classes(trained, roads, tmp_path, capsys):
    """A folder without labels.json takes the network's classes; others are refused."""
    folder, model = tmp_path / "three", tmp_path / "three.safetensors"
    drawn = [(n, i, np.minimum(m, 2)) for n, i, m in synthetic.draw_scenes(2, SIZE)]
    scenes.write_scenes(folder, "test", drawn, THREE)
    (folder / "labels.json").unlink(missing_ok=True)
    torch.manual_seed(0)
    weights.save_model(unet.UNet(3), model, THREE, {"input_size": SIZE})
    assert run("evaluate", "--model", model, "--data", folder) == 0
    shown = capsys.readouterr().out
    assert "road " in shown
    assert "acc12" not in shown
    THREE.save(folder / "labels.json")
    assert run("evaluate", "--model", model, "--data", folder) == 0
    assert run("evaluate", "--model", trained, "--data", folder) == 1
    assert "the network was trained on Sky" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "gone"], "gone"),
        (["--json", "gone/scores.json"], "there is no folder gone"),
    ],
)
def test_bad_input_to_evaluate_is_one_line(trained, roads, more, message, capsys):
    assert run("evaluate", "--model", trained, "--data", roads, *more) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_split_belongs_to_a_folder(capsys):
    with pytest.raises(SystemExit) as stop:
        run("evaluate", "--split", "train")
    assert stop.value.code == 2
    assert "--split: only with --data" in capsys.readouterr().err


# --- train --------------------------------------------------------------------


def test_training_on_jpeg_images_of_three_classes(tmp_path, capsys):
    """Train, continue, evaluate and predict with the command line alone."""
    roads, out = tmp_path / "道路", tmp_path / "runs"
    for split in ("train", "test"):
        for kind in ("images", "annotations"):
            (roads / f"{kind}_prepped_{split}").mkdir(parents=True)
        for name, image, mask in synthetic.draw_scenes(3, SIZE):
            stem = name.removesuffix(".png")
            mask = np.where(mask == 11, 255, np.minimum(mask, 2)).astype(np.uint8)
            Image.fromarray(image).save(roads / f"images_prepped_{split}/{stem}.JPG")
            Image.fromarray(mask).save(
                roads / f"annotations_prepped_{split}/{stem}.png"
            )
    THREE.save(roads / "labels.json")
    arguments = ("train", "--data", roads, "--recipe", "quick", "--out", out)
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert "NOT COMPARABLE" not in shown  # nothing says that these are drawn
    (network,) = out.glob("*/unet.safetensors")
    assert network.parent.name == "quick-道路"
    scores = re.search(r"^acc .*mIoU \S+", shown, re.M)[0]
    before = network.stat().st_mtime_ns
    assert run(*arguments) == 0
    assert scores in capsys.readouterr().out
    assert network.stat().st_mtime_ns == before, "it was trained again"
    assert run("evaluate", "--model", network, "--data", roads) == 0
    assert scores in capsys.readouterr().out
    inputs = roads / "images_prepped_test"
    assert run("predict", inputs, "--model", network, "--out", tmp_path / "p") == 0
    for path in (tmp_path / "p").glob("*_mask.png"):
        assert set(np.unique(Image.open(path))) <= {0, 1, 2}


def test_a_folder_that_cannot_be_trained_on_is_one_line(tmp_path, capsys):
    assert run("train", "--data", tmp_path / "nowhere") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line


def test_a_cpu_launcher_that_starts_one_process_is_refused(roads, monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert run("train", "--data", roads) == 1
    assert "torchrun --nproc_per_node" in capsys.readouterr().err


# --- export -------------------------------------------------------------------


@pytest.mark.skipif(not HAS_ONNX, reason="needs the packages of roadseg[export]")
def test_an_exported_network_scores_what_evaluate_scores(
    trained, roads, tmp_path, capsys
):
    """On wide and upright images alike: one rule for the input size."""
    path = tmp_path / "unet.onnx"
    arguments = ("--model", trained, "--data", roads)
    assert run("export", *arguments, "--out", path, "--int8", 3) == 0
    shown, errors = capsys.readouterr()
    assert not errors
    assert "largest difference" in shown
    assert "lost     acc " in shown
    assert {"unet.onnx", "unet_int8.onnx"} <= {p.name for p in tmp_path.iterdir()}
    assert run("evaluate", *arguments) == 0
    expected = accuracy(capsys.readouterr().out)
    assert accuracy(shown) == pytest.approx(expected, abs=2e-3)


@pytest.mark.skipif(not HAS_ONNX, reason="needs the packages of roadseg[export]")
def test_a_place_to_export_to_must_exist(trained, capsys):
    assert run("export", "--model", trained, "--out", "gone/unet.onnx") == 1
    assert "there is no folder gone" in capsys.readouterr().err
