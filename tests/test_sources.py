"""roadseg.sources: images and masks in the layouts that people have."""

import numpy as np
import pytest

from roadseg.files import DatasetError
from roadseg.report import Report
from roadseg.sources import find_scenes, split_of
from samples import png, write_files

DATA = png(np.zeros((4, 5), np.uint8))


def find(folder, *files, images=None, masks=None, suffix=None, texts=()):
    """Return {(split, name): (image, mask)} of a folder with these files."""
    write_files(dict.fromkeys(files, DATA), folder)
    write_files({name: text.encode() for name, text in dict(texts).items()}, folder)
    report = Report("x")
    found = find_scenes(folder, images, masks, suffix, report)
    relative = {
        (i.split, i.name): (
            i.image.relative_to(folder).as_posix(),
            i.mask.relative_to(folder).as_posix(),
        )
        for i in found
    }
    assert len(relative) == len(found)
    return relative, report


LAYOUTS = {
    "two folders": (["images/a.JPG", "masks/a.png"], (None, "a")),
    "suffix": (["img/a.jpg", "labels/a_L.png"], (None, "a")),
    "one folder": (["a.jpg", "a_mask.png"], (None, "a")),
    "split above": (["train/images/a.jpg", "train/masks/a.png"], ("train", "a")),
    "split below": (["images/valid/a.jpg", "masks/valid/a.png"], ("val", "a")),
    "one folder, splits": (["test/a.jpg", "test/a_mask.png"], ("test", "a")),
    "sequences": (["images/s1/01.jpg", "masks/s1/01.png"], (None, "01")),
    "dataset1": (
        ["images_prepped_town/a.png", "annotations_prepped_town/a.png"],
        ("town", "a"),
    ),
    "SegNet": (["train/a.png", "trainannot/a.png"], ("train", "a")),
    "Cityscapes": (
        [
            "leftImg8bit/train/bonn/bonn_01_leftImg8bit.png",
            "gtFine/train/bonn/bonn_01_gtFine_labelIds.png",
        ],
        ("train", "bonn_01"),
    ),
    "Pascal VOC": (
        ["VOC2012/JPEGImages/a.jpg", "VOC2012/SegmentationClass/a.png"],
        (None, "a"),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    files, key = LAYOUTS[name]
    found, report = find(tmp_path, *files, texts={"notes.txt": "x", ".a.png": "x"})
    assert found == {key: tuple(files)}
    assert report.findings == []


def test_folders_of_any_name(tmp_path):
    files = [
        "pics/day/a.jpg",
        "truth/day/a.png",
        "truth/night/b.png",
        "pics/night/b.jpg",
    ]
    assert find(tmp_path, *files)[0] == {}
    found, _ = find(tmp_path, *files, images="pics", masks="truth")
    assert found[None, "day_a"] == ("pics/day/a.jpg", "truth/day/a.png")
    assert len(found) == 2
    with pytest.raises(DatasetError, match="together"):
        find(tmp_path, images="pics")
    with pytest.raises(DatasetError, match="no folder"):
        find(tmp_path, images="pics", masks="masks")


def test_subfolders_become_sequences_unless_names_have_them(tmp_path):
    files = [
        f"{k}/{s}/{n}.png" for k in ("images", "masks") for s in "xy" for n in "12"
    ]
    found, _ = find(tmp_path / "a", *files)
    assert set(found) == {(None, f"{s}_{n}") for s in "xy" for n in "12"}
    files = [f"{k}/{s}/{s}_1.png" for k in ("images", "masks") for s in ("b1", "b2")]
    found, _ = find(tmp_path / "b", *files)
    assert set(found) == {(None, "b1_1"), (None, "b2_1")}


def test_the_other_masks_of_cityscapes_are_left_out_or_chosen(tmp_path):
    image = "leftImg8bit/train/bonn/bonn_01_leftImg8bit.png"
    start = "gtFine/train/bonn/bonn_01_gtFine_"
    masks = [f"{start}{k}.png" for k in ("color", "instanceIds", "labelIds")]
    found, report = find(tmp_path, image, *masks)
    assert found["train", "bonn_01"] == (image, masks[2])
    (note,) = report.findings
    assert (note.severity, len(note.files)) == ("note", 2)
    found, _ = find(tmp_path, image, *masks, suffix="_gtFine_color")
    assert found["train", "bonn_01"] == (image, masks[0])


def test_the_lists_of_pascal_voc_are_the_splits(tmp_path):
    folders = ("JPEGImages", "SegmentationClass", "SegmentationObject")
    files = [f"{k}/{n}.png" for k in folders for n in "abcd"] + ["JPEGImages/e.png"]
    lists = {"train": "a\nb\n", "val": "c\n", "trainval": "a\nb\nc\n"}
    texts = {f"ImageSets/Segmentation/{k}.txt": t for k, t in lists.items()}
    found, report = find(tmp_path, *files, texts=texts)
    assert set(found) == {("train", "a"), ("train", "b"), ("val", "c")}
    by = {f.severity: f for f in report.findings}
    assert by["warning"].files == ("JPEGImages/e.png",)
    assert "JPEGImages/d.png" in by["note"].files


def test_images_without_mask_are_a_warning_masks_without_image_an_error(tmp_path):
    files = ["images/a.png", "images/b.png", "masks/a.png", "masks/c.png"]
    found, report = find(tmp_path, *files)
    assert set(found) == {(None, "a")}
    by = {f.severity: f.files for f in report.findings}
    assert by == {"warning": ("images/b.png",), "error": ("masks/c.png",)}


def test_two_images_of_one_name_are_an_error(tmp_path):
    _, report = find(tmp_path, "images/a.png", "images/a.jpg", "masks/a.png")
    assert report.count("error") == 1


def test_an_image_whose_name_looks_like_a_mask_stays_one(tmp_path):
    found, _ = find(tmp_path, "images/face_mask.png", "masks/face_mask.png")
    assert found == {
        (None, "face_mask"): ("images/face_mask.png", "masks/face_mask.png")
    }


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("instances_default.json", "train"),
        ("training_camp.json", "train"),
        ("roads.json", None),
    ],
)
def test_the_split_of_annotations(tmp_path, path, split):
    assert split_of(tmp_path / path) == split
