"""roadseg.prepare: from what people have to scenes that can be trained on."""

import json

import numpy as np
import pytest
from PIL import Image

from roadseg import cli, scenes, synthetic
from roadseg.classes import CAMVID, LabelSet
from roadseg.files import DatasetError
from roadseg.prepare import PrepareError, find_scenes, prepare, split_of
from roadseg.report import Report
from samples import left_in, png, write_files

SIZE = (64, 96)
COUNT = 12  # two sequences of six frames
LABELS = LabelSet(
    ("drivable", "road user", "everything else"),
    ((230, 25, 75), (60, 180, 75), (0, 130, 200)),
)
THREE = np.full(256, 2, np.uint8)
THREE[3], THREE[[8, 9, 10]], THREE[11] = 0, 1, 255


@pytest.fixture(scope="module")
def drawn():
    """Return {stem: (image, mask)} of a street, in CamVid's classes."""
    frames = synthetic.draw_scenes(COUNT, SIZE, 3)
    return {name.removesuffix(".png"): (image, mask) for name, image, mask in frames}


def jpeg(image, **options):
    return png(image, "jpeg", quality=90, **options)


def source(
    folder, drawn, mask=png, image=jpeg, names=("images/{}.jpg", "masks/{}.png")
):
    """Write images and masks, both as functions encode them."""
    found = {}
    for stem, (pixels, ids) in drawn.items():
        found[names[0].format(stem)] = image(pixels)
        found[names[1].format(stem)] = mask(ids)
    return write_files(found, folder)


def result(out, split="train"):
    """Return {stem: (image, mask)} of what was written."""
    found = scenes.RoadScenes(out, split)
    return {
        name.rpartition(".")[0]: (image.permute(1, 2, 0).numpy(), mask.numpy())
        for name, image, mask in zip(
            found.filenames, found.images, found.masks, strict=True
        )
    }


def assert_masks(found, drawn, convert=lambda ids: ids):
    assert found.keys() == drawn.keys()
    for stem, (_, mask) in found.items():
        np.testing.assert_array_equal(mask, convert(drawn[stem][1]))


def three_colors(ids):
    return LABELS.palette()[THREE[ids]]


# ---- Right sources ----------------------------------------------------------------


def test_images_are_copied_byte_for_byte_and_masks_written_as_png(tmp_path, drawn):
    folder = source(tmp_path / "in", drawn, lambda ids: png(ids, "bmp"))
    report = prepare(folder, tmp_path / "out")
    out = tmp_path / "out"
    for stem in drawn:
        copy = out / "images_prepped_train" / f"{stem}.jpg"
        assert copy.read_bytes() == (folder / "images" / f"{stem}.jpg").read_bytes()
        mask = out / "annotations_prepped_train" / f"{stem}.png"
        assert mask.read_bytes().startswith(b"\x89PNG")
    assert_masks(result(out), drawn)
    assert LabelSet.load(out / "labels.json") == CAMVID
    assert not report.failed()
    # one report of both: what was converted, and what `check` finds
    assert {"scenes", "masks", "shift", "splits"} <= {f.check for f in report.findings}
    assert left_in(tmp_path) == ["in", "out"]


def test_colors_of_other_classes_with_255_outlines(tmp_path, drawn):
    def colors(ids):
        rgb = three_colors(ids)
        rgb[THREE[ids] == 255] = (224, 224, 192)
        return png(rgb)

    folder = source(tmp_path / "in", drawn, colors)
    with pytest.raises(PrepareError, match="#e0e0c0"):
        prepare(folder, tmp_path / "out", labels=LABELS)
    prepare(folder, tmp_path / "out", labels=LABELS, mapping=["#e0e0c0=ignore"])
    assert_masks(result(tmp_path / "out"), drawn, lambda ids: THREE[ids])
    assert LabelSet.load(tmp_path / "out" / "labels.json") == LABELS


def test_classes_are_merged_by_name(tmp_path, drawn):
    folder = source(tmp_path / "in", drawn)
    CAMVID.save(folder / "labels.json")
    names = ("Road=drivable", "Unlabelled=ignore", "Car=1", "Pedestrian=1")
    rest = [
        f"{name}=everything else"
        for name in CAMVID.names
        if name not in ("Road", "Unlabelled", "Car", "Pedestrian", "Bicyclist")
    ]
    with pytest.raises(PrepareError, match=r"id 10 \(Bicyclist\)"):
        prepare(folder, tmp_path / "out", labels=LABELS, mapping=[*names, *rest])
    mapping = [*names, *rest, "Bicyclist=road user"]
    prepare(folder, tmp_path / "out", labels=LABELS, mapping=mapping)
    assert_masks(result(tmp_path / "out"), drawn, lambda ids: THREE[ids])


def test_coco(tmp_path, drawn):
    api = pytest.importorskip("pycocotools.mask")
    images, annotations = [], []
    for i, (stem, (_, ids)) in enumerate(drawn.items()):
        images.append({"id": i, "file_name": f"{stem}.jpg"})
        for category in (1, 2):
            inside = THREE[ids] == category - 1
            text = api.encode(np.asfortranarray(inside.astype(np.uint8)))
            text["counts"] = text["counts"].decode()
            item = {"image_id": i, "category_id": category, "segmentation": text}
            annotations.append(item | {"area": int(inside.sum())})
    categories = [{"id": 1, "name": "drivable"}, {"id": 2, "name": "road user"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    files = {f"images/{stem}.jpg": jpeg(image) for stem, (image, _) in drawn.items()}
    folder = write_files(files | {"x.json": json.dumps(data).encode()}, tmp_path / "in")
    prepare(folder / "x.json", tmp_path / "out")
    found = LabelSet.load(tmp_path / "out" / "labels.json")
    assert found.names == ("background", "drivable", "road user")
    expected = np.array([1, 2, 0])[np.minimum(THREE, 2)]
    assert_masks(result(tmp_path / "out"), drawn, lambda ids: expected[ids])
    prepare(folder, tmp_path / "two", labels=LABELS, mapping=["background=2"])
    three = np.minimum(THREE, 2)
    assert_masks(result(tmp_path / "two"), drawn, lambda ids: three[ids])


# ---- Faulty sources ---------------------------------------------------------------


def test_unknown_ids_are_refused_with_counts_and_first_file(tmp_path, drawn):
    first, second = sorted(drawn)[1], sorted(drawn)[4]
    faulty = {stem: (image, ids.copy()) for stem, (image, ids) in drawn.items()}
    for stem in (first, second):
        faulty[stem][1][:2, :50] = 77
    folder = source(tmp_path / "in", faulty)
    with pytest.raises(PrepareError) as stop:
        prepare(folder, tmp_path / "out")
    assert "200 pixels (0.27%) in 2 masks" in str(stop.value)
    assert f"id 77 200 pixels, first in {first}.jpg" in str(stop.value)
    assert left_in(tmp_path) == ["in"]
    report = prepare(folder, tmp_path / "out", unknown="ignore")
    (found,) = [f for f in report.findings if f.check == "unknown"]
    assert found.severity == "warning"
    assert set(found.files) == {f"{first}.jpg", f"{second}.jpg"}
    mask = result(tmp_path / "out")[first][1]
    assert (mask[:2, :50] == 11).all()
    np.testing.assert_array_equal(mask[2:], drawn[first][1][2:])


def anti_aliased(ids):
    large = Image.fromarray(three_colors(np.minimum(ids, 10)).repeat(4, 0).repeat(4, 1))
    turned = large.rotate(1, Image.Resampling.NEAREST)
    return png(turned.reduce(4))


def test_anti_aliased_masks_are_counted_and_decided_as_asked(tmp_path, drawn):
    folder = source(tmp_path / "in", drawn, anti_aliased)
    with pytest.raises(PrepareError, match="anti-aliased edges"):
        prepare(folder, tmp_path / "out", labels=LABELS)
    ignored = prepare(folder, tmp_path / "a", labels=LABELS, unknown="ignore")
    words = [f.message for f in ignored.findings if f.check == "colors"]
    assert any(f"in {COUNT} masks with a mixture" in text for text in words)
    masks = [mask for _, mask in result(tmp_path / "a").values()]
    assert 0.01 < np.mean([(mask == 255).mean() for mask in masks]) < 0.4
    nearest = prepare(folder, tmp_path / "b", labels=LABELS, tolerance=255)
    assert not nearest.failed()
    for stem, (_, mask) in result(tmp_path / "b").items():
        known = result_of_nearest(drawn[stem][1])
        assert (mask == known).mean() > 0.97


def result_of_nearest(ids):
    large = Image.fromarray(THREE[np.minimum(ids, 10)].repeat(4, 0).repeat(4, 1))
    return np.asarray(large.rotate(1, Image.Resampling.NEAREST))[2::4, 2::4]


def test_255_is_taken_for_ignored_which_is_said(tmp_path, drawn):
    folder = source(
        tmp_path / "in", drawn, lambda ids: png(np.where(ids > 8, 255, ids))
    )
    report = prepare(folder, tmp_path / "a")
    count = sum(int((ids > 8).sum()) for _, ids in drawn.values())
    (note,) = [f for f in report.findings if f.check == "values"]
    assert f"{count} pixels" in note.message
    assert_masks(result(tmp_path / "a"), drawn, lambda ids: np.where(ids > 8, 11, ids))
    report = prepare(folder, tmp_path / "b", mapping=["255=Car"])
    assert "values" not in {f.check for f in report.findings}
    assert_masks(result(tmp_path / "b"), drawn, lambda ids: np.where(ids > 8, 8, ids))


def test_masks_of_0_and_255_need_a_mapping(tmp_path, drawn):
    def objects(ids):
        return png(np.where(ids == 3, 255, 0).astype(np.uint8))

    labels = LabelSet(("other", "road"))
    folder = source(tmp_path / "in", drawn, objects)
    report = prepare(folder, tmp_path / "a", labels=labels)
    (error,) = [f for f in report.findings if f.severity == "error"]
    assert "--map 255=" in error.message
    assert not prepare(
        folder, tmp_path / "b", labels=labels, mapping=["255=1"]
    ).failed()
    assert_masks(result(tmp_path / "b"), drawn, lambda ids: ids == 3)


def test_all_unusable_files_are_in_one_report(tmp_path, drawn):
    folder = source(tmp_path / "in", drawn)
    a, b, c, d = sorted(drawn)[:4]
    (folder / "masks" / f"{a}.png").write_bytes(jpeg(drawn[a][1]))
    (folder / "images" / f"{b}.jpg").write_bytes(b"x")
    (folder / "masks" / f"{c}.png").write_bytes(png(drawn[c][1][:50]))
    (folder / "images" / f"{d}.jpg").unlink()
    with pytest.raises(PrepareError) as stop:
        prepare(folder, tmp_path / "out")
    errors = [f for f in stop.value.report.findings if f.severity == "error"]
    named = {f.files[0]: f.message for f in errors}
    assert "compressed as JPEG" in named[f"masks/{a}.png"]
    assert "not an image" in named[f"images/{b}.jpg"]
    assert "50 x 96" in named[f"images/{c}.jpg"]
    assert "no image" in named[f"masks/{d}.png"]


def test_masks_of_different_codings_are_a_warning(tmp_path, drawn):
    folder = source(tmp_path / "in", drawn)
    odd = sorted(drawn)[3]
    colors = CAMVID.palette()[drawn[odd][1]]
    (folder / "masks" / f"{odd}.png").write_bytes(png(colors))
    report = prepare(folder, tmp_path / "out")
    (found,) = [f for f in report.findings if f.check == "masks"]
    assert (found.severity, found.files) == ("warning", (f"{odd}.jpg",))
    assert_masks(result(tmp_path / "out"), drawn)


def test_images_with_an_orientation_are_turned_with_or_like_their_mask(tmp_path, drawn):
    exif = Image.Exif()
    exif[274] = 6
    upright, stored = sorted(drawn)[:2]
    folder = source(tmp_path / "in", drawn)
    for stem in (upright, stored):
        pixels = drawn[stem][0]
        lying = np.rot90(pixels) if stem == upright else pixels
        (folder / "images" / f"{stem}.jpg").write_bytes(jpeg(lying, exif=exif))
    report = prepare(folder, tmp_path / "out")
    (found,) = [f for f in report.findings if f.check == "images"]
    assert set(found.files) == {f"{upright}.jpg", f"{stored}.jpg"}
    written = result(tmp_path / "out")
    for stem in (upright, stored):
        difference = np.abs(written[stem][0].astype(int) - drawn[stem][0])
        assert difference.mean() < 10
        assert (tmp_path / "out" / "images_prepped_train" / f"{stem}.png").exists()


# ---- Splits and folders -----------------------------------------------------------


def test_splits_are_kept_or_made_of_blocks_or_sequences(tmp_path, drawn):
    folder = source(tmp_path / "in", drawn)
    sequences = sorted({stem.rpartition("_")[0] for stem in drawn})
    prepare(folder, tmp_path / "a", split=f"sequence:{sequences[1]}")
    assert {s.rpartition("_")[0] for s in result(tmp_path / "a", "test")} == {
        sequences[1]
    }
    assert len(result(tmp_path / "a")) == COUNT // 2
    prepare(folder, tmp_path / "b", split="block:0.25")
    prepare(folder, tmp_path / "c")
    whole = scenes.RoadScenes(tmp_path / "c", "train")
    held_out = scenes.split_by_block(whole, 0.25)[1].filenames
    assert [f"{stem}.jpg" for stem in result(tmp_path / "b", "test")] == held_out


def test_scenes_that_would_get_one_name_are_refused(tmp_path, drawn):
    pair = next(iter(drawn.values()))
    same = dict.fromkeys(("train/A_1", "val/A_1", "val/B_1"), pair)
    folder = source(tmp_path / "in", same)
    with pytest.raises(DatasetError, match="would get the same name, A_1"):
        prepare(folder, tmp_path / "out", split="sequence:B")
    assert left_in(tmp_path) == ["in"]


@pytest.mark.parametrize("split", ["random", "sequence:X", "block:x", "block:7"])
def test_a_split_that_is_impossible_is_refused(tmp_path, drawn, split):
    with pytest.raises(DatasetError):
        prepare(source(tmp_path / "in", drawn), tmp_path / "out", split=split)
    assert left_in(tmp_path) == ["in"]


def test_a_source_with_splits_keeps_them(tmp_path, drawn):
    half = dict(list(drawn.items())[:6]), dict(list(drawn.items())[6:])
    for split, part in zip(("train", "valid"), half, strict=True):
        names = (f"{split}/images/{{}}.jpg", f"{split}/masks/{{}}.png")
        source(tmp_path / "in", part, names=names)
    prepare(tmp_path / "in", tmp_path / "out")
    assert_masks(result(tmp_path / "out"), half[0])
    assert_masks(result(tmp_path / "out", "val"), half[1])


def test_nothing_is_ever_overwritten(tmp_path, drawn):
    folder = source(tmp_path / "in", drawn)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x", "utf-8")
    for out in (tmp_path / "out", folder, folder / "out", folder / "images/a.jpg"):
        with pytest.raises(DatasetError, match=r"exists|inside"):
            prepare(folder, out)
    assert left_in(tmp_path / "out") == ["mine.txt"]
    assert left_in(folder) == ["images", "masks"]


def test_sources_that_are_none(tmp_path, drawn):
    files = {"a.zip": b"PK\5\6" + bytes(18), "a.txt": b"", "only/a.jpg": b""}
    write_files(files, tmp_path)
    for name, word in (
        ("missing", "no such folder"),
        ("a.zip", "unpack it"),
        ("a.txt", "neither"),
        ("only", "--masks"),
    ):
        with pytest.raises(DatasetError, match=word):
            prepare(tmp_path / name, tmp_path / "out")


# ---- What people have -------------------------------------------------------------

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


# ---- The command ------------------------------------------------------------------


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_the_command(tmp_path, drawn, capsys):
    folder = source(tmp_path / "in", drawn, anti_aliased)
    LABELS.save(tmp_path / "labels.json")
    options = ("--labels", tmp_path / "labels.json", "--html", tmp_path / "report.html")
    assert run("prepare", folder, tmp_path / "out", *options) == 1
    assert "nothing was written" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<img ") == 3
    options = (*options, "--unknown", "ignore", "--split", "block:0.25")
    assert run("prepare", folder, tmp_path / "out", *options) == 0
    assert "Share of pixels" in capsys.readouterr().out
    assert (tmp_path / "out" / "images_prepped_test").is_dir()
    assert run("prepare", folder, tmp_path / "out", *options) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--tolerance", "-1"], ["--tolerance", "nan"], ["--unknown", "guess"], ["--map"]],
)
def test_wrong_arguments_are_status_2(options):
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", "a", "b", *options])
    assert stop.value.code == 2
