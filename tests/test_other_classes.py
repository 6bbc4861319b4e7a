"""Three classes and an ignored id of 255, from training to an ONNX file, two models."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from roadseg import export, inference, recipes, scenes, synthetic, training, unet
from roadseg.classes import LabelSet
from roadseg.weights import SavedModel, load_model, save_model

THREE = LabelSet(("drivable", "object", "other"), ignore_index=255)
RECIPE = recipes.Recipe(
    "three", (recipes.Phase(2, 32, 64),), (32, 64), batch_size=2, precision="fp32"
)
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, export.PACKAGES)),
    reason="needs the packages of roadseg[export]",
)


class Other(nn.Module):
    """A network that is no U-Net: no attribute `encoder`, no skip connections."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 3, 2, stride=2),
        )

    def forward(self, x):
        return self.body(x)


BUILD = {"U-Net": lambda: unet.UNet(3), "another module": Other}


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roads")
    for seed, split in enumerate(("train", "test")):
        drawn = [
            (name, image, np.where(mask == 11, 255, np.minimum(mask, 2)))
            for name, image, mask in synthetic.draw_scenes(4, (64, 96), seed)
        ]
        converted = [
            (name, image, mask.astype(np.uint8)) for name, image, mask in drawn
        ]
        scenes.write_scenes(folder, split, converted, THREE)
    THREE.save(folder / "labels.json")
    return [scenes.RoadScenes(folder, split) for split in ("train", "test")]


@pytest.fixture(params=BUILD, scope="module")
def trained(request, roads, tmp_path_factory):
    """A network that was interrupted, resumed, saved, and loaded again."""
    folder, build = tmp_path_factory.mktemp("run"), BUILD[request.param]

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    with pytest.raises(training.TrainingInterrupted, match="after 1 of 2 epochs"):
        training.fit(build(), roads[0], RECIPE, folder=folder, on_epoch=stop)
    result = training.fit(build(), roads[0], RECIPE, folder=folder)
    assert len(result.history) == 2
    path = folder / "network.safetensors"
    save_model(result.model, path, THREE, {"input_size": [32, 64]})
    saved = load_model(path, None if request.param == "U-Net" else build())
    return result.model.eval(), saved


def test_a_saved_network_carries_its_classes(trained):
    model, saved = trained
    assert saved.labels == THREE
    assert saved.input_size == (32, 64)
    for name, value in model.state_dict().items():
        assert torch.equal(saved.model.state_dict()[name], value), name


def test_predictions_and_scores_are_of_three_classes(trained, roads):
    _, saved = trained
    test = roads[1]
    masks = inference.predict_scenes(saved.model, test, saved.input_size)
    assert {int(i) for mask in masks for i in mask.unique()} <= {0, 1, 2}
    scores = inference.evaluate(saved.model, test, saved.input_size)
    right = labeled = 0
    for truth, mask in zip(test.masks, masks, strict=True):
        known = truth != 255
        right += ((truth == mask) & known).sum().item()
        labeled += known.sum().item()
    assert scores.acc == pytest.approx(right / labeled)
    assert scores.iou.shape == (3,)
    assert scores.acc12 is None


@needs_onnx
def test_the_exported_network_predicts_the_same(trained, roads, tmp_path):
    _, saved = trained
    path = tmp_path / "network.onnx"
    export.export_onnx(SavedModel(saved.model, THREE, saved.input_size, {}), path)
    image = roads[1].images[0][None]
    expected = inference.predict(saved.model, image, (32, 64), labels=THREE)
    found = inference.predict(export.OnnxModel(path), image, (32, 64), labels=THREE)
    assert (expected == found).float().mean() > 0.999
