"""Exported networks compute what PyTorch computes, or are refused."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn

from roadseg import export, inference, synthetic, unet, weights
from roadseg.classes import CAMVID, LabelSet, RoadsegError
from roadseg.weights import SavedModel

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, export.PACKAGES)),
    reason="needs the packages of roadseg[export]",
)
SIZE = (64, 96)


def images(count, size=SIZE):
    drawn = [synthetic.draw_scene(seed, size)[0] for seed in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def saved():
    torch.manual_seed(0)
    return SavedModel(unet.UNet().eval(), CAMVID, SIZE, {"data": "drawn"})


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "unet.onnx"
    export.export_onnx(saved, path)
    return path


@needs_onnx
def test_an_exported_network_computes_the_same(saved, exported):
    found = export.check_onnx(saved.model, exported)
    assert [shape for shape, *_ in found] == list(export.CHECKED_SHAPES)
    model = export.OnnxModel(exported)
    for size in (None, (50, 70)):
        expected = inference.predict_probabilities(saved.model, images(2), size)
        actual = inference.predict_probabilities(model, images(2), size)
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


@needs_onnx
def test_a_file_that_computes_something_else_is_refused(saved, exported):
    other = unet.UNet()
    other.load_state_dict(saved.model.state_dict())
    with torch.no_grad():
        other.head.bias[3] += 1
    with pytest.raises(RoadsegError, match="does not compute what PyTorch computes"):
        export.check_onnx(other, exported)


@needs_onnx
def test_the_metadata_say_how_to_use_the_file(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(exported), providers=["CPUExecutionProvider"]
    )
    known = session.get_modelmeta().custom_metadata_map
    assert LabelSet.from_dict(json.loads(known["labels"])) == CAMVID
    assert json.loads(known["mean"]) == pytest.approx(unet.IMAGENET_MEAN)
    assert json.loads(known["std"]) == pytest.approx(unet.IMAGENET_STD)
    assert json.loads(known["input_size"]) == list(SIZE)


@needs_onnx
def test_int8_is_a_quarter_and_predicts_nearly_the_same(saved, exported, tmp_path):
    small = tmp_path / "small.onnx"
    export.quantize_onnx(exported, small, images(4), SIZE)
    assert small.stat().st_size < 0.35 * exported.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
    expected = inference.predict(export.OnnxModel(exported), images(4), SIZE)
    actual = inference.predict(export.OnnxModel(small), images(4), SIZE)
    assert (expected == actual).float().mean() > 0.5


@needs_onnx
def test_other_networks_and_classes_are_exported_too(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 2, stride=2),
    )
    labels = LabelSet(("road", "car", "rest"))
    other = SavedModel(model, labels, None, {})
    path, small = tmp_path / "a.onnx", tmp_path / "a_int8.onnx"
    export.export_onnx(other, path)
    export.check_onnx(model, path)
    export.quantize_onnx(path, small, images(2), None, labels)
    masks = inference.predict(export.OnnxModel(small), images(2), labels=labels)
    assert masks.shape == (2, *SIZE)
    assert masks.max() < 3


@needs_onnx
def test_a_file_for_the_web_is_a_quarter_and_computes_what_8_bits_compute(
    saved, exported, tmp_path
):
    """Of a network whose kernels were 8-bit integers before, nothing is lost."""
    model = unet.UNet().eval()
    rounded = weights.quantize_state(saved.model.state_dict())
    model.load_state_dict(weights.dequantize_state(rounded))
    path = tmp_path / "web.onnx"
    export.export_web(SavedModel(model, CAMVID, SIZE, {}), path, (32, 64))
    export.check_onnx(model, path)
    assert path.stat().st_size < 0.26 * exported.stat().st_size
    known = export.OnnxModel(path).session.get_modelmeta().custom_metadata_map
    assert json.loads(known["input_size"]) == [32, 64]
    assert LabelSet.from_dict(json.loads(known["labels"])) == CAMVID
    for content in (path.read_bytes(), exported.read_bytes()):
        assert unet.__file__.encode() not in content  # published: no local paths


@needs_onnx
def test_a_file_for_the_web_needs_an_input_size(saved, tmp_path):
    without = SavedModel(saved.model, CAMVID, None, {})
    with pytest.raises(RoadsegError, match="needs an input size"):
        export.export_web(without, tmp_path / "web.onnx")


@needs_onnx
def test_exporting_leaves_the_network_as_it_was(saved, tmp_path):
    model = unet.UNet().train()
    export.export_onnx(SavedModel(model, CAMVID, None, {}), tmp_path / "a.onnx")
    assert model.training


def test_without_the_packages_it_says_what_to_install(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PACKAGES", ("onnx_is_not_here",))
    with pytest.raises(RoadsegError, match="pip install onnx_is_not_here"):
        export.export_onnx(saved, tmp_path / "a.onnx")
