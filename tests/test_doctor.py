"""roadseg.doctor: datasets without faults, and each fault planted in one."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from roadseg import cli, doctor, scenes, synthetic
from roadseg.classes import CAMVID, LabelSet
from samples import png, write_files

SIZE = (96, 128)
TRAIN, TEST = 12, 5


@pytest.fixture(scope="module")
def drawn():
    """Scenes of other sequences for train and test."""
    train = list(synthetic.draw_scenes(TRAIN, SIZE, 3))
    return {"train": train, "test": list(synthetic.draw_scenes(TEST, SIZE, 4))}


def dataset(folder, drawn, change=lambda split, i, image, mask: (image, mask), **kw):
    """Write the scenes, each after a change."""
    for split, these in drawn.items():
        changed = [
            (name, *change(split, i, image, mask))
            for i, (name, image, mask) in enumerate(these)
        ]
        scenes.write_scenes(folder, split, changed, **kw)
    return folder


def find(report, check, severity=None):
    return [
        f
        for f in report.findings
        if f.check == check and severity in (None, f.severity)
    ]


def names_of(drawn, split, *which):
    return [f"images_prepped_{split}/{drawn[split][i][0]}" for i in which]


def test_a_right_dataset_has_no_errors(tmp_path, drawn):
    report = doctor.check(dataset(tmp_path, drawn), (96, 128))
    assert not report.count("error")
    assert not find(report, "borders")
    assert not find(report, "duplicates")
    assert find(report, "shift", "note")
    assert "96 x 128 (17)" in find(report, "sizes")[0].message
    assert "accuracy 1.000" in find(report, "input size")[0].message
    assert report.labels == CAMVID
    shares = {row[0]: row[1:] for row in report.tables[0].rows}
    total = sum(float(row[0]) for row in shares.values())
    assert total == pytest.approx(100, abs=0.1)
    counted = np.mean([(mask == 3).mean() for _, _, mask in drawn["train"]])
    assert float(shares["Road"][0]) == pytest.approx(100 * counted, abs=0.01)


def test_each_problem_of_files_is_an_error_and_the_rest_is_checked(tmp_path, drawn):
    folder = dataset(tmp_path, drawn)
    images, masks = (folder / f"{k}_prepped_train" for k in ("images", "annotations"))
    names = [name for name, _, _ in drawn["train"]]
    (masks / names[0]).unlink()
    (images / names[1]).unlink()
    (images / names[2]).write_bytes(b"damaged")
    (masks / names[3]).write_bytes(png(np.full(SIZE, 77, np.uint8)))
    (masks / names[4]).write_bytes(png(np.zeros((8, 8), np.uint8)))
    report = doctor.check(folder)
    found = {f.files[0]: f.message for f in report.findings if f.severity == "error"}
    where = ["images", "annotations", "images", "annotations", "annotations"]
    words = ["no mask", "no image", "image", "label 77", "size"]
    for i, (kind, word) in enumerate(zip(where, words, strict=True)):
        assert word in found[f"{kind}_prepped_train/{names[i]}"], found
    assert len(found) == 5
    assert f"({TRAIN + TEST - 5})" in find(report, "sizes")[0].message


def blended(mask):
    """Scale down and up with interpolation between ids, as if ids were levels."""
    image = Image.fromarray(mask)
    small = (SIZE[1] - 1, SIZE[0] - 1)
    return np.asarray(image.resize(small, 2).resize(SIZE[::-1], 2))


def test_labels_invented_by_interpolation(tmp_path, drawn):
    folder = dataset(tmp_path, drawn, lambda s, i, image, m: (image, blended(m)))
    (found,) = find(doctor.check(folder), "borders", "error")
    assert f"in {TRAIN + TEST} of {TRAIN + TEST} masks" in found.message


def test_a_few_interpolated_masks_among_right_ones_are_named(tmp_path, drawn):
    def change(split, i, image, mask):
        return image, blended(mask) if split == "train" and i in (2, 7) else mask

    (found,) = find(doctor.check(dataset(tmp_path, drawn, change)), "borders")
    assert set(found.files) == set(names_of(drawn, "train", 2, 7))


def test_interpolated_masks_are_named_too_where_few_borders_can_change(tmp_path, drawn):
    """Between neighboring ids there is none to invent."""
    rows, columns = np.indices(SIZE)

    def change(split, i, image, mask):
        inside = columns > 50 + i + rows // 3
        mask = np.where(rows < 16, 2, 1).astype(np.uint8) * inside
        return image, blended(mask) if split == "train" and i in (2, 7) else mask

    folder = dataset(tmp_path, drawn, change, labels=LabelSet(("a", "b", "c")))
    (found,) = find(doctor.check(folder), "borders", "error")
    assert set(found.files) == set(names_of(drawn, "train", 2, 7))


def test_colors_mapped_after_anti_aliasing(tmp_path):
    def smooth(split, i, image, mask):
        colors = CAMVID.palette()[mask]
        reduced = Image.fromarray(colors).resize(SIZE[::-1], Image.Resampling.BOX)
        levels = np.asarray(reduced, int)[..., None, :] - CAMVID.palette()[:12]
        ids = (levels**2).sum(-1).argmin(-1).astype(np.uint8)
        return np.asarray(Image.fromarray(image).reduce(2)), ids

    large = {"train": list(synthetic.draw_scenes(6, (2 * SIZE[0], 2 * SIZE[1]), 3))}
    assert find(doctor.check(dataset(tmp_path, large, smooth)), "borders")


@pytest.mark.parametrize("offset", [(1, 0), (0, 1), (1, 1)])
def test_masks_shifted_by_half_a_pixel(tmp_path, offset):
    def halved(by):
        def change(split, i, image, mask):
            small = np.asarray(Image.fromarray(image).reduce(2))
            return small, np.roll(mask, by, (0, 1))[::2, ::2]

        return change

    large = {"train": list(synthetic.draw_scenes(6, (2 * SIZE[0], 2 * SIZE[1]), 3))}
    right = doctor.check(dataset(tmp_path / "right", large, halved((0, 0))))
    assert find(right, "shift", "note")
    assert not find(right, "shift", "warning")
    shifted = doctor.check(dataset(tmp_path / "shifted", large, halved(offset)))
    (found,) = find(shifted, "shift", "warning")
    down, right = (
        float(x) for x in re.findall(r"(\d\.\d) (?:pixels|too far)", found.message)
    )
    for estimated, moved in ((down, offset[0]), (right, offset[1])):
        assert (estimated > 0.4) == bool(moved)
    assert not offset[0] or "too low" in found.message
    assert not offset[1] or "too far right" in found.message


def test_one_mask_shifted_and_one_of_another_image(tmp_path, drawn):
    def change(split, i, image, mask):
        if split == "train" and i == 4:
            mask = np.roll(mask, (3, -5), (0, 1))
        if split == "train" and i == 9:
            mask = np.ascontiguousarray(drawn["train"][0][2][::-1, ::-1])
        return image, mask

    report = doctor.check(dataset(tmp_path, drawn, change))
    (found,) = find(report, "shift", "error")
    assert list(found.files) == names_of(drawn, "train", 4)
    assert "3.0 pixels too low, 5." in found.message
    (found,) = find(report, "fit", "warning")
    assert list(found.files) == names_of(drawn, "train", 9)


def test_copies_and_neighbors_across_splits(tmp_path, drawn):
    def change(split, i, image, mask):
        if split == "test" and i == 0:  # recompressed and brighter
            image = np.clip(drawn["train"][5][1] * 1.15 + 6, 0, 255).astype(np.uint8)
            image = np.asarray(Image.open(io_jpeg(image)))
        if split == "test" and i == 1:  # a step further
            image = np.roll(drawn["train"][8][1], 2, 1)
        return image, mask

    report = doctor.check(dataset(tmp_path, drawn, change))
    (copies,) = find(report, "duplicates", "error")
    (pair,) = copies.files
    one, other = names_of(drawn, "test", 0) + names_of(drawn, "train", 5)
    assert pair == f"{one} = {other}"
    (alike,) = find(report, "duplicates", "warning")
    assert alike.files[0].startswith(names_of(drawn, "test", 1)[0])


def io_jpeg(image):
    return io.BytesIO(png(image, "jpeg", quality=70))


def test_missing_rare_and_unseen_classes_and_masks_without_labels(tmp_path, drawn):
    def change(split, i, image, mask):
        mask = mask.copy()
        mask[mask == 9] = 11  # Pedestrian nowhere
        if split == "train":
            mask[mask == 10] = 11  # Bicyclist in test only
        mask[0, 0] = 10 if split == "test" else mask[0, 0]
        mask[(mask == 7) & (split == "test")] = 11  # Fence in train only
        mask[0, 1] = 7 if split == "train" else mask[0, 1]
        return image, np.full_like(mask, 11) if split == "train" and i < 2 else mask

    report = doctor.check(dataset(tmp_path, drawn, change))
    classes = {f.message.split(":")[0]: f for f in find(report, "classes")}
    assert classes["in no mask"].message.endswith(": Pedestrian")
    assert classes["in no mask"].severity == "warning"
    unseen = classes["in no mask of train, so that they can't be learned"]
    assert unseen.message.endswith(": Bicyclist")
    assert any("Fence" in f.message for f in classes.values() if f.severity == "note")
    (empty,) = find(report, "labels", "warning")
    assert set(empty.files) == set(names_of(drawn, "train", 0, 1))


def test_a_split_without_labels_and_a_single_class_are_errors(tmp_path, drawn):
    def change(split, i, image, mask):
        return image, np.full_like(mask, 255) if split == "test" else mask // 12 * 255

    labels = LabelSet(("background", "object"))
    report = doctor.check(dataset(tmp_path, drawn, change, labels=labels))
    assert "test" in find(report, "labels", "error")[0].message
    (single,) = find(report, "classes", "error")
    assert "background is the only class" in single.message
    assert "--map 255=" in single.message


def test_the_best_score_at_an_input_size(tmp_path, drawn):
    folder = dataset(tmp_path, drawn)
    report = doctor.check(folder, (24, 32))
    (found,) = find(report, "input size")
    assert found.severity == "warning"
    assert "Pole" in found.message.split("below an IoU of 0.5")[1]
    table = report.tables[-1]
    iou = {name: float(value) for name, value in table.rows}
    assert iou["Pole"] < 0.5 < iou["Road"]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: (p / "photos").mkdir(parents=True), "roadseg prepare"),
        (lambda p: write_files({"images_prepped_train/a.png": b""}, p), "needs"),
    ],
)
def test_a_folder_of_another_layout_is_an_error(tmp_path, make, word):
    make(tmp_path / "x")
    (found,) = doctor.check(tmp_path / "x").findings
    assert found.severity == "error"
    assert word in found.message


def test_an_empty_split_is_an_error(tmp_path):
    for sub in ("train", "trainannot"):
        (tmp_path / sub).mkdir()
    (found,) = find(doctor.check(tmp_path), "pairs")
    assert "holds no images" in found.message


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_the_command_its_page_and_its_status(tmp_path, drawn, capsys):
    right = dataset(tmp_path / "right", drawn)
    assert run("check", right) == 0
    out = capsys.readouterr().out
    assert "Share of pixels" in out
    faulty = dataset(
        tmp_path / "faulty", drawn, lambda s, i, image, m: (image, blended(m))
    )
    page = tmp_path / "report.html"
    assert run("check", faulty, "--html", page, "--input-size", "24x32") == 1
    text = page.read_text("utf-8")
    assert text.count("<img ") >= 6
    assert text.count("<img ") == text.count(' alt="The ') + text.count(' alt="Pixels')
    rare = dataset(
        tmp_path / "rare", drawn, lambda s, i, im, m: (im, np.where(m == 6, 11, m))
    )
    assert run("check", rare) == 0
    assert run("check", rare, "--strict") == 1
    assert run("check", tmp_path / "missing") == 1
