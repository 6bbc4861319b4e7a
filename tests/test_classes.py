import numpy as np
import pytest
import torch

from roadseg import classes
from roadseg.classes import NAMES, PALETTE, VOID, class_id, colorize

# As dataset1's own files have it; written out a second time on purpose.
FACTS = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
    "Unlabelled": (0, 0, 0),
}


def wrongly_coloured():
    """Return the classes whose id is not painted in its colour."""
    painted = colorize(np.arange(len(FACTS)))
    return [n for n, p in zip(FACTS, painted, strict=True) if tuple(p) != FACTS[n]]


def test_names_ids_and_counts():
    assert list(FACTS) == list(NAMES)
    assert (classes.NUM_CLASSES, classes.NUM_SCORED, VOID) == (12, 11, 11)
    assert [class_id(name) for name in FACTS] == list(range(12))
    assert class_id("car") == class_id("CAR") == 8


def test_every_class_has_its_own_colour():
    assert wrongly_coloured() == []
    assert len(set(PALETTE)) == 12


def test_a_palette_with_road_marking_at_3_is_caught(monkeypatch):
    shifted = (*PALETTE[:3], (255, 69, 0), *PALETTE[3:-1])
    monkeypatch.setattr(classes, "PALETTE", shifted)
    assert wrongly_coloured() == list(NAMES[3:])


def test_an_unknown_class_is_one_clear_error():
    with pytest.raises(ValueError, match="no class is called 'Road_marking'.*Sky, "):
        class_id("Road_marking")


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (0, 6)])
def test_colorize_adds_a_colour_axis(shape):
    mask = np.full(shape, 8, np.uint8)
    colours = colorize(mask)
    assert colours.shape == (*shape, 3)
    assert colours.dtype == np.uint8
    assert (colours == FACTS["Car"]).all()
    assert (colorize(torch.from_numpy(mask)) == colours).all()


@pytest.mark.parametrize("label", [-1, 12, 255])
def test_colorize_refuses_labels_that_are_no_class(label):
    with pytest.raises(ValueError, match=f"0 to 11, this one .*{label}"):
        colorize(np.array([[0, label]]))
