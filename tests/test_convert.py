"""roadseg.convert: masks of every coding, right and faulty."""

import io

import numpy as np
import pytest
from PIL import Image

from roadseg.classes import CAMVID, LabelSet
from roadseg.convert import (
    Codes,
    SourceClass,
    convert_mask,
    labels_of_source,
    read_source_classes,
)
from roadseg.files import DatasetError
from samples import png, png_4_bit

SIZE = (24, 32)
LABELS = LabelSet(
    ("road", "car", "other"), ((128, 64, 128), (0, 0, 200), (20, 180, 40))
)


@pytest.fixture
def ids():
    """A mask with large regions of all three classes and of 255."""
    mask = np.full(SIZE, 2, np.uint8)
    mask[12:] = 0
    mask[8:16, 10:20] = 1
    mask[:4, :6] = 255
    return mask


def convert(data, folder, labels=LABELS, mapping=(), source=(), **options):
    path = folder / "mask.png"
    path.write_bytes(data)
    return convert_mask(path, Codes.build(labels, source, mapping), **options)


def colors_of(ids):
    return LABELS.palette()[ids]


def with_palette(ids, order, fill=(9, 9, 9)):
    """Return a palette mask whose indices are in another order than the ids."""
    image = Image.fromarray(np.vectorize(order.get)(ids).astype(np.uint8))
    entries = np.full((256, 3), fill, np.uint8)
    for i, index in order.items():
        entries[index] = LABELS.palette()[i]
    image.putpalette(entries.ravel().tolist())
    return png(image)


# ---- Numbers ----------------------------------------------------------------------


def sixteen(ids):
    return png(ids.astype(np.uint16) * (ids < 255) + 65535 * (ids == 255).astype("u2"))


@pytest.mark.parametrize(
    "write",
    [
        png,
        sixteen,
        lambda ids: png(np.repeat(ids[..., None], 3, 2)),
        lambda ids: png(ids, "bmp"),
        lambda ids: png(ids, "tiff"),
        lambda ids: png(ids, "gif"),
    ],
    ids=["8 bits", "16 bits", "three equal channels", "BMP", "TIFF", "GIF"],
)
def test_ids(ids, tmp_path, write):
    found = convert(write(ids), tmp_path)
    np.testing.assert_array_equal(found.ids, ids)
    assert found.ids.dtype == np.uint8
    assert found.coding == "ids"
    assert not found.left.any()


def test_ids_of_1_and_4_bits(tmp_path):
    small = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = convert(png_4_bit(small), tmp_path, CAMVID)
    np.testing.assert_array_equal(found.ids, small)
    one = Image.fromarray(small > 5)
    np.testing.assert_array_equal(convert(png(one), tmp_path).ids, small > 5)


def test_the_ignored_id_may_be_inside_the_classes(tmp_path):
    found = convert(png(np.array([[0, 11, 255]], np.uint8)), tmp_path, CAMVID)
    assert found.ids.tolist() == [[0, 11, 11]]


def test_unknown_ids_are_counted_and_ignored(ids, tmp_path):
    faulty = ids.copy()
    faulty[0, 10:15], faulty[1, 10] = 77, 5
    found = convert(png(faulty), tmp_path)
    assert found.unknown == {"id 77": 5, "id 5": 1}
    assert found.left.sum() == 6
    assert (found.ids[found.left] == 255).all()
    mapped = convert(png(faulty), tmp_path, mapping=["77=Car", "5=ignore"])
    assert not mapped.unknown
    assert (mapped.ids[faulty == 77] == 1).all()
    assert mapped.ids[1, 10] == 255


def test_source_classes_are_matched_by_name_and_mapped_by_name(tmp_path):
    source = [
        SourceClass("Vehicle", 7),
        SourceClass("ROAD", 8),
        SourceClass("Tree", 9, (1, 2, 3)),
    ]
    data = png(np.array([[7, 8, 9]], np.uint8))
    found = convert(data, tmp_path, source=source)
    assert found.unknown == {"id 7 (Vehicle)": 1, "id 9 (Tree)": 1}
    found = convert(
        data, tmp_path, source=source, mapping=["vehicle=car", "Tree=other"]
    )
    assert found.ids.tolist() == [[1, 0, 2]]
    # the numbers of the source count, not the positions in the new label set
    assert convert(png(np.array([[0]], np.uint8)), tmp_path, source=source).unknown


@pytest.mark.parametrize("entry", ["car", "=car", "truck=car", "3=truck", "#12=car"])
def test_a_mapping_that_is_wrong_is_refused(entry):
    with pytest.raises(DatasetError, match=entry.partition("=")[0] or "FROM"):
        Codes.build(LABELS, (), [entry])


# ---- Palettes ---------------------------------------------------------------------


def test_a_palette_in_another_order_is_read_by_its_colors(ids, tmp_path):
    data = with_palette(np.minimum(ids, 2), {0: 2, 1: 0, 2: 1})
    found = convert(data, tmp_path)
    np.testing.assert_array_equal(found.ids, np.minimum(ids, 2))
    assert found.coding == "palette colors"
    by_index = convert(data, tmp_path, palette="index")
    assert by_index.ids[0, 20] == 1
    assert by_index.coding == "ids"


def test_other_colors_or_gray_levels_are_read_by_index(ids, tmp_path):
    image = Image.fromarray(ids)
    image.putpalette([x for i in range(256) for x in (i, 255 - i, 7)])
    np.testing.assert_array_equal(convert(png(image), tmp_path).ids, ids)
    forced = convert(png(image), tmp_path, palette="color")
    assert forced.unknown
    image.putpalette([x for i in range(256) for x in (i, i, i)])
    np.testing.assert_array_equal(convert(png(image), tmp_path).ids, ids)


def test_outlines_of_pascal_voc_are_ignored_whatever_their_color(ids, tmp_path):
    image = Image.fromarray(ids)
    entries = np.zeros((256, 3), np.uint8)
    entries[:3], entries[255] = LABELS.colors, (224, 224, 192)
    image.putpalette(entries.ravel().tolist())
    for how in ("auto", "color", "index"):
        found = convert(png(image), tmp_path, palette=how)
        np.testing.assert_array_equal(found.ids, ids)
        assert not found.unknown
        assert not found.left.any()


# ---- Colors -----------------------------------------------------------------------


def test_exact_colors(ids, tmp_path):
    for image in (
        Image.fromarray(colors_of(ids)),
        Image.fromarray(np.dstack([colors_of(ids), np.full(SIZE, 255, np.uint8)])),
    ):
        found = convert(png(image), tmp_path)
        np.testing.assert_array_equal(found.ids, ids)
        assert (found.nearest, found.edges, found.left.sum()) == (0, 0, 0)
        assert found.coding == "colors"


def test_transparent_pixels_are_black(ids, tmp_path):
    alpha = np.where(np.arange(SIZE[1]) < 4, 0, 255) * np.ones(SIZE)
    rgba = np.dstack([colors_of(ids), alpha]).astype(np.uint8)
    assert (convert(png(rgba), tmp_path).ids[:, :4] == 255).all()


def test_near_colors_within_the_tolerance_only(ids, tmp_path):
    near = colors_of(ids).copy()
    near[20:, :3] += np.array([3, 4, 0], np.uint8)
    found = convert(png(near), tmp_path)
    assert found.unknown == {"#834480": 12}
    assert (found.ids[20:, :3] == 255).all()
    assert convert(png(near), tmp_path, tolerance=4.9).left.sum() == 12
    found = convert(png(near), tmp_path, tolerance=5)
    np.testing.assert_array_equal(found.ids, ids)
    assert (found.nearest, found.left.sum()) == (12, 0)


def smooth(ids):
    """Draw a mask at four times the size and average, as anti-aliasing does."""
    rows, columns = np.indices((SIZE[0] * 4, SIZE[1] * 4))
    slanted = ids[((rows + columns // 3) // 4).clip(0, SIZE[0] - 1), columns // 4]
    image = Image.fromarray(colors_of(slanted))
    return slanted, np.asarray(image.reduce(4))


def test_anti_aliased_edges_are_told_from_unknown_colors(ids, tmp_path):
    _, colors = smooth(np.minimum(ids, 2))
    exact = np.isin(
        colors.astype(int) @ [65536, 256, 1],
        np.array(LABELS.colors) @ [65536, 256, 1],
    )
    found = convert(png(colors), tmp_path)
    assert found.edges == found.edges_left == (~exact).sum() > 20
    assert not found.unknown
    np.testing.assert_array_equal(found.left, ~exact)
    faulty = colors.copy()
    faulty[22:, 26:30] = (250, 250, 0)
    found = convert(png(faulty), tmp_path)
    assert found.unknown["#fafa00"] == 8
    assert sum(found.unknown.values()) == 8


def test_an_edge_gets_one_of_its_two_classes_never_a_third(tmp_path):
    labels = LabelSet(("black", "white", "gray"), ((0, 0, 0), (254,) * 3, (127,) * 3))
    rows = np.zeros((20, 20, 3), np.uint8)
    rows[:, 11:] = 254
    rows[:, 10] = (127, 120, 127)
    found = convert(png(rows), tmp_path, labels, tolerance=250)
    assert set(np.unique(found.ids)) == {0, 1}
    assert found.edges == 20
    # in the middle of a class, the same color is simply the nearest
    rows[5:8, 2:5] = (127, 120, 127)
    found = convert(png(rows), tmp_path, labels, tolerance=250)
    assert (found.ids[5:8, 2:5] == 2).all()
    found = convert(png(rows), tmp_path, labels)
    assert found.unknown == {"#7f787f": 9}
    assert found.edges_left == 20


def test_a_foreign_color_between_two_classes_is_no_edge(tmp_path):
    rows = np.zeros((20, 20, 3), np.uint8)
    rows[:, :10], rows[:, 11:] = LABELS.colors[0], LABELS.colors[1]
    rows[:, 10] = (255, 220, 0)
    found = convert(png(rows), tmp_path)
    assert found.unknown == {"#ffdc00": 20}
    assert found.edges == 0


def test_a_color_can_be_mapped(ids, tmp_path):
    found = convert(png(colors_of(ids)), tmp_path, mapping=["#0000C8=other"])
    assert (found.ids[ids == 1] == 2).all()


def test_colors_as_jpeg_need_a_tolerance(ids, tmp_path):
    data = png(colors_of(ids), "jpeg", quality=95, subsampling=0)
    with pytest.raises(DatasetError, match="tolerance"):
        convert(data, tmp_path)
    found = convert(data, tmp_path, tolerance=40)
    assert (found.ids == ids).mean() > 0.95
    for lossy in (png(ids, "jpeg"), png(ids, "webp")):
        with pytest.raises(DatasetError, match="compressed"):
            convert(lossy, tmp_path)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"text", "not an image"),
        (png(np.zeros(SIZE, np.uint8))[:60], "damaged"),
        (png(np.zeros(SIZE, np.float32), "tiff"), "mode F"),
    ],
)
def test_files_that_are_no_masks(tmp_path, data, word):
    with pytest.raises(DatasetError, match=word):
        convert(data, tmp_path)


def test_a_turned_mask_is_refused(ids, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "png", exif=exif)
    with pytest.raises(DatasetError, match="orientation"):
        convert(file.getvalue(), tmp_path)


# ---- What a source says of its classes --------------------------------------------


def test_the_classes_of_cvats_labelmap(tmp_path):
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nRoad:128,64,128::\n"
    (tmp_path / "labelmap.txt").write_text(text, "utf-8")
    found = read_source_classes(tmp_path)
    assert found == [
        SourceClass("background", 0, (0, 0, 0)),
        SourceClass("Road", 1, (128, 64, 128)),
    ]
    labels = labels_of_source(found)
    assert labels.names == ("background", "Road")
    assert labels.colors[1] == (128, 64, 128)


def test_the_classes_of_labels_json(tmp_path):
    assert read_source_classes(tmp_path) == []
    CAMVID.save(tmp_path / "labels.json")
    found = read_source_classes(tmp_path)
    assert found[3] == SourceClass("Road", 3, CAMVID.colors[3])
    codes = Codes.build(LABELS, found, ["Car=car"])
    assert codes.values[3] == 0
    assert codes.values[8] == 1
    assert 5 not in codes.values
