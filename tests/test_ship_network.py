"""scripts/ship_network.py: the model card holds what was measured."""

import pytest
import torch

import ship_network
from roadseg import dataset1, inference, runtime, unet, weights
from roadseg.classes import CAMVID, RoadsegError
from roadseg.metrics import Scores

METADATA = {
    "data": "12 images",
    "encoder": "random",
    "recipe": {"name": "tiny", "seed": 3, "phases": [[2, 32, 64], [1, 64, 96]]},
    "seconds": 61,
    "hardware": "one core",
    "precision": "fp32",
    "input_size": [32, 64],
}


@pytest.fixture(scope="module")
def saved():
    torch.manual_seed(0)
    model = unet.UNet().eval()
    return weights.SavedModel(model, CAMVID, (32, 64), METADATA)


@pytest.fixture
def scenes(tmp_path):
    runtime.configure(profile="quick", device="cpu", data_dir=tmp_path)
    return dataset1.load()[1].subset(range(4))


def test_the_scores_are_those_of_the_images(saved, scenes):
    parts = scenes.subset([0, 1]), scenes.subset([2]), scenes.subset([3])
    text = ship_network.scores(saved, *parts)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    cells = {row[0]: row[1:] for row in rows}
    first, a, b = (inference.evaluate(saved.model, x, (32, 64)) for x in parts)
    both = Scores.from_confusion(a.confusion + b.confusion, CAMVID)
    assert cells["101 (2 images)"][:2] == [f"{first.acc:.3f}", f"{first.miou:.3f}"]
    together = cells["233, the last two together"]
    assert together[:2] == [f"{both.acc:.3f}", f"{both.miou:.3f}"]
    mirrored = inference.evaluate(saved.model, parts[0], (32, 64), True)
    assert cells["101 (2 images)"][2] == f"{mirrored.acc:.3f}"
    k = CAMVID.class_id("Road")
    expected = [x[k] for s in (first, both) for x in (s.iou, s.precision, s.recall)]
    assert cells["Road"] == [f"{x:.2f}".replace("nan", "-") for x in expected]


def test_what_is_unknown_is_a_dash(saved, scenes):
    one = scenes.subset([0])
    mask = one.masks[0]
    mask[mask == CAMVID.class_id("Pole")] = CAMVID.class_id("Road")
    text = ship_network.scores(saved, one, one, one)
    line = next(x for x in text.splitlines() if "| Pole |" in x)
    assert line.split("|")[4].strip() == "-"  # the recall of a class that isn't there


def test_the_cost_of_8_bits_is_measured(saved, scenes):
    other = weights.SavedModel(unet.UNet().eval(), CAMVID, (32, 64), METADATA)
    text = ship_network.cost_of_8_bits(saved, other, scenes)
    for name, network in (("32 bits", saved), ("8 bits", other)):
        found = inference.evaluate(network.model, scenes, (32, 64))
        assert f"| {name} | {found.acc:.4f} | {found.miou:.4f} |" in text


def test_only_what_is_between_the_comments_changes(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\n<!-- /y -->\n")
    ship_network.fill(card, "x", r"new \1")
    ship_network.fill(card, "y", "first")
    ship_network.fill(card, "y", "second")
    expected = "a\n<!-- x -->\n\nnew \\1\n\n<!-- /x -->\nb\n"
    assert card.read_text() == expected + "<!-- y -->\n\nsecond\n\n<!-- /y -->\n"
    with pytest.raises(RoadsegError, match="z"):
        ship_network.fill(card, "z", "new")


def test_the_card_of_the_package_has_all_places():
    text = ship_network.CARD.read_text("utf-8")
    for name in ("training", "scores", "size"):
        assert text.count(f"<!-- {name} -->\n") == 1
        assert text.count(f"<!-- /{name} -->") == 1


def test_the_facts_are_those_of_the_file(saved):
    text = ship_network.facts(saved)
    for words in ("12 images", "`tiny`, seed 3", "2 at 32 × 64, 1 at 64 × 96", "1 min"):
        assert words in text


def test_without_the_real_test_images_nothing_is_written(monkeypatch, tmp_path, capsys):
    runtime.configure(profile="quick", device="cpu", data_dir=tmp_path)
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "unet.safetensors")
    monkeypatch.setattr(ship_network, "CARD", tmp_path / "README.md")
    assert ship_network.main([]) == 1
    assert "101 and 233" in capsys.readouterr().err
    assert not weights.PRETRAINED.exists()
