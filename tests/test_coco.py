"""roadseg.coco: polygons and run lengths."""

import json
import sys

import numpy as np
import pytest

from roadseg import coco
from roadseg.classes import LabelSet
from roadseg.convert import Codes
from roadseg.files import DatasetError
from samples import png

pytest.importorskip("pycocotools")

SIZE = (20, 30)
LABELS = LabelSet(("background", "road", "car"))
NAMES = {1: "road", 5: "Car", 9: "dog"}


def polygon(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def run_lengths(mask):
    """Return COCO's uncompressed run lengths, column by column."""
    flat = mask.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=0, append=2))
    counts = np.diff(starts, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": counts}


def annotation(segmentation, category=1, area=10.0):
    return {"category_id": category, "segmentation": segmentation, "area": area}


def draw(annotations, labels=LABELS, mapping=()):
    return coco.draw_annotations(
        SIZE, annotations, NAMES, Codes.build(labels, (), mapping)
    )


def test_a_polygon():
    found = draw([annotation(polygon(5, 10, 15, 25))])
    expected = np.zeros(SIZE, np.uint8)
    expected[5:15, 10:25] = 1
    np.testing.assert_array_equal(found.ids, expected)
    assert found.coding == "outlines"
    assert not found.left.any()


def test_run_lengths_as_lists_and_as_text():
    from pycocotools import mask as api

    expected = np.zeros(SIZE, np.uint8)
    expected[3:9, 4:28:3] = 1
    text = api.encode(np.asfortranarray(expected))
    for segmentation in (
        run_lengths(expected),
        text,
        text | {"counts": text["counts"].decode()},
    ):
        found = draw([annotation(segmentation)])
        np.testing.assert_array_equal(found.ids, expected)


def test_small_outlines_lie_on_large_ones_and_parts_belong_together():
    large = annotation(polygon(0, 0, 20, 30), 1, 600)
    two = annotation(polygon(1, 1, 3, 3) + polygon(10, 10, 14, 14), 5, 20)
    for order in ([large, two], [two, large]):
        ids = draw(order).ids
        assert (ids == 2).sum() == 4 + 16
        assert (ids == 1).sum() == 600 - 20


def test_pixels_without_annotation_are_ignored_without_a_background():
    labels = LabelSet(("road", "car"))
    ids = draw([annotation(polygon(5, 10, 15, 25))], labels).ids
    assert set(np.unique(ids)) == {0, 255}
    assert (ids == 0).sum() == 150


def test_a_category_that_is_no_class_is_unknown():
    found = draw([annotation(polygon(0, 0, 2, 3), 9)])
    assert found.unknown == {"category dog": 6}
    assert found.left.sum() == 6
    assert (found.ids[found.left] == 255).all()


@pytest.mark.parametrize("segmentation", [None, [], [[1, 2]], {"counts": "?"}, "x"])
def test_an_annotation_without_outline_is_named(segmentation):
    with pytest.raises(DatasetError, match="outline"):
        draw([annotation(segmentation)])


def test_outlines_for_another_size_are_refused():
    mask = run_lengths(np.ones((4, 5), np.uint8))
    with pytest.raises(DatasetError, match="4 x 5"):
        draw([annotation(mask)])


def test_pycocotools_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(DatasetError, match="pip install pycocotools"):
        draw([annotation(polygon(0, 0, 2, 3))])


# ---- Files ------------------------------------------------------------------------


def content(names=("a.png",), categories=((1, "road"), (5, "car"))):
    return {
        "images": [
            {"id": i, "file_name": n, "height": 20, "width": 30}
            for i, n in enumerate(names)
        ],
        "annotations": [{"image_id": 0} | annotation(polygon(0, 0, 2, 3))],
        "categories": [{"id": i, "name": n} for i, n in categories],
    }


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")
    return path


def test_images_are_found_beside_the_annotations_or_by_their_split(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(png(np.zeros((*SIZE, 3), np.uint8)))
    beside = write(tmp_path / "val" / "_annotations.coco.json", content())
    named = write(tmp_path / "annotations" / "instances_train.json", content())
    write(tmp_path / "other.json", {"x": 1})
    (tmp_path / "broken.json").write_text("{", "utf-8")
    assert coco.find_annotations(tmp_path) == [named, beside]
    images, classes = coco.read_annotations([named, beside], tmp_path)
    assert [i.path.parent.name for i in images] == ["train", "val"]
    assert [i.size for i in images] == [SIZE, SIZE]
    assert [len(i.annotations) for i in images] == [1, 1]
    assert [(c.name, c.value) for c in classes] == [
        ("background", None),
        ("road", 1),
        ("car", 5),
    ]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ([], "COCO"),
        ({"images": []}, "categories"),
        (content(["b.png"]), "b.png"),
        (content() | {"annotations": [{}]}, "image_id"),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path, data, word):
    (tmp_path / "a.png").write_bytes(b"")
    path = write(tmp_path / "x.json", data)
    with pytest.raises(DatasetError, match=word):
        coco.read_annotations([path], tmp_path)


def test_files_with_other_categories_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    one = write(tmp_path / "one.json", content())
    two = write(tmp_path / "two.json", content(categories=[(1, "car")]))
    with pytest.raises(DatasetError, match="other categories"):
        coco.read_annotations([one, two], tmp_path)
