"""CamVid's classes, label sets of other datasets, and masks in color."""

import json

import numpy as np
import pytest
import torch

from roadseg.classes import (
    CAMVID,
    LabelError,
    LabelSet,
    RoadsegError,
    colorize,
    is_camvid,
)

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
MINE = LabelSet(("road", "grass", "other"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def wrong_colors(labels):
    """Return the classes that are not painted in the colors of dataset1."""
    painted = colorize(np.arange(len(FACTS)), labels)
    return [n for n, p in zip(FACTS, painted, strict=True) if tuple(p) != FACTS[n]]


def test_camvid_has_these_names_ids_and_colors():
    assert list(FACTS) == list(CAMVID.names)
    assert (CAMVID.num_classes, CAMVID.num_scored, CAMVID.ignore_index) == (12, 11, 11)
    assert CAMVID.scored == tuple(range(11))
    assert CAMVID.ids == tuple(range(12))
    assert CAMVID.ignored_name == "Unlabelled"
    assert [CAMVID.class_id(name) for name in FACTS] == list(range(12))
    assert CAMVID.class_id("car") == CAMVID.class_id("CAR") == 8
    assert wrong_colors(CAMVID) == []


def test_a_palette_with_road_marking_at_3_is_caught():
    colors = (*CAMVID.colors[:3], (255, 69, 0), *CAMVID.colors[3:-1])
    shifted = LabelSet(CAMVID.names, colors, 11)
    assert wrong_colors(shifted) == list(CAMVID.names[3:])
    assert is_camvid(CAMVID)
    assert not is_camvid(shifted)


def test_an_ignored_id_beyond_the_classes():
    assert (MINE.num_classes, MINE.num_scored, MINE.ignore_index) == (3, 3, 255)
    assert MINE.scored == (0, 1, 2)
    assert MINE.ids == (0, 1, 2, 255)
    assert MINE.ignored_name == "ignored"
    assert MINE.palette().shape == (256, 3)
    assert MINE.palette()[[0, 2, 3, 255]].tolist() == [
        [1, 2, 3],
        [7, 8, 9],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_an_ignored_id_before_the_classes():
    labels = LabelSet(("void", "a", "b"), ignore_index=0)
    assert labels.scored == (1, 2)
    assert (labels.num_classes, labels.num_scored) == (3, 2)
    assert labels.ids == (0, 1, 2)
    assert labels.ignored_name == "void"
    assert labels.colors[0] == (0, 0, 0)


@pytest.mark.parametrize("count", [2, 12, 150, 255])
def test_generated_colors_are_distinct_and_always_the_same(count):
    labels = LabelSet(tuple(f"class {i}" for i in range(count)))
    assert len({*labels.colors, (0, 0, 0)}) == count + 1
    assert labels.num_scored == count
    assert labels == LabelSet(list(labels.names))


@pytest.mark.parametrize(
    "labels",
    [CAMVID, MINE, LabelSet(("été", "道路")), LabelSet(("a", "b", "c"), (), 1)],
)
def test_a_label_set_survives_json_to_the_last_detail(tmp_path, labels):
    assert LabelSet.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    labels.save(tmp_path / "labels.json")
    assert LabelSet.load(tmp_path / "labels.json") == labels
    assert hash(LabelSet.load(tmp_path / "labels.json")) == hash(labels)


def test_names_alone_make_a_label_set(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"names": ["a", "b"], "colors": null}', encoding="utf-8-sig")
    assert LabelSet.load(path) == LabelSet(("a", "b"))


@pytest.mark.parametrize(
    ("names", "colors", "ignored", "reason"),
    [
        ((), (), 255, "1 to 255 classes, not 0"),
        (("a",) * 256, (), 255, "1 to 255 classes, not 256"),
        ("road", (), 255, "list of class names"),
        (("a", ""), (), 255, "isn't empty"),
        (("a", 3), (), 255, "not 3"),
        (("a", "A"), (), 255, "two classes are named 'A'"),
        (("a",), (), 255, "at least two classes"),
        (("a", "b"), (), 1, "at least two classes.*ignore_index=1"),
        (("a", "b"), (), 256, "ignore_index is a whole number, 0 to 255: 256"),
        (("a", "b"), (), -1, "ignore_index"),
        (("a", "b"), (), True, "ignore_index"),
        (("a", "b"), (), "11", "ignore_index"),
        (("a", "b"), ((0, 0, 0),), 255, "2 are needed, one per class, not 1"),
        (("a", "b"), 7, 255, "2 are needed"),
        (("a", "b"), ((0, 0, 0), (0, 0)), 255, r"b has \(0, 0\)"),
        (("a", "b"), ((0, 0, 256), (0, 0, 1)), 255, r"a has \(0, 0, 256\)"),
        (("a", "b"), ((0, 0, 0.5), (0, 0, 1)), 255, "three whole numbers"),
    ],
)
def test_a_label_set_that_makes_no_sense_is_refused(names, colors, ignored, reason):
    with pytest.raises(LabelError, match=reason):
        LabelSet(names, colors, ignored)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "can't be read: No such file"),
        ("{", "isn't valid JSON"),
        ("[" * 10**5, "isn't valid JSON"),
        ("[1]", '"names" is missing'),
        ("{}", '"names" is missing'),
        ('{"names": ["a", "b"], "ignored": 3}', "no 'ignored'; it has names, colors"),
        ('{"names": ["a"]}', "at least two classes"),
        (b"\xff\xfe", "isn't valid JSON"),
    ],
)
def test_a_bad_file_of_labels_is_named(tmp_path, text, reason):
    path = tmp_path / "labels.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelError, match=f"{tmp_path.name}/labels.json.*{reason}"):
        LabelSet.load(path)


def test_one_base_class_for_our_errors():
    with pytest.raises(RoadsegError):
        LabelSet(("a",))
    with pytest.raises(ValueError, match="a"):
        LabelSet(("a",))


def test_an_unknown_class_is_one_clear_error():
    with pytest.raises(LabelError, match="no class 'Road_marking'.*Sky, "):
        CAMVID.class_id("Road_marking")


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (0, 6)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_colorize_adds_a_color_axis(shape, dtype):
    mask = np.full(shape, 8, dtype)
    colors = colorize(mask)
    assert colors.shape == (*shape, 3)
    assert colors.dtype == np.uint8
    assert (colors == FACTS["Car"]).all()
    assert (colorize(torch.from_numpy(mask)) == colors).all()


def test_colorize_takes_the_label_set():
    assert colorize(np.array([[1, 255]]), MINE).tolist() == [[[4, 5, 6], [0, 0, 0]]]
    assert colorize(np.array([[True, False]]), MINE).tolist() == [
        [[4, 5, 6], [1, 2, 3]]
    ]


@pytest.mark.parametrize("label", [-1, 12, 255, 256, 2**31])
def test_colorize_refuses_ids_that_are_no_class(label):
    with pytest.raises(LabelError, match=f"holds {label}, but .* has ids 0 to 11$"):
        colorize(np.array([[0, label]]))
    with pytest.raises(LabelError, match="0 to 2, and 255 for ignored pixels"):
        colorize(np.array([[0, 3]]), MINE)


def test_colorize_refuses_numbers_with_a_point():
    with pytest.raises(LabelError, match="integer ids, this one float32"):
        colorize(np.zeros((2, 2), np.float32))
