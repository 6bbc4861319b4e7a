"""roadseg.convert: masks of every coding, right and faulty, and COCO's outlines."""

import json
import sys

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from roadseg import convert
from roadseg.classes import CAMVID, LabelSet, RoadsegError
from roadseg.convert import Codes, SourceClass
from roadseg.files import DatasetError
from samples import SEEDS, SIDES, generated, png, png_4_bit, write_files

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


def read(data, folder, labels=LABELS, mapping=(), source=(), **options):
    path = folder / "mask.png"
    path.write_bytes(data)
    return convert.convert_mask(path, Codes(labels, source, mapping), **options)


def colors_of(ids):
    return LABELS.palette()[ids]


def with_palette(ids, entries):
    image = Image.fromarray(ids)
    image.putpalette(np.resize(np.array(entries, np.uint8), (256, 3)).tobytes())
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
        lambda ids: with_palette(ids, [(i, i, i) for i in range(256)]),
        lambda ids: with_palette(ids, [(i, 255 - i, 7) for i in range(256)]),
    ],
    ids=["8", "16", "3 channels", "BMP", "TIFF", "GIF", "gray palette", "odd palette"],
)
def test_ids(ids, tmp_path, write):
    found = read(write(ids), tmp_path)
    np.testing.assert_array_equal(found.ids, ids)
    assert found.ids.dtype == np.uint8
    assert found.coding == "ids"
    assert not found.left.any()


def test_ids_of_1_and_4_bits(tmp_path):
    small = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = read(png_4_bit(small), tmp_path, CAMVID)
    np.testing.assert_array_equal(found.ids, small)
    one = Image.fromarray(small > 5)
    np.testing.assert_array_equal(read(png(one), tmp_path).ids, small > 5)


def test_255_becomes_an_ignored_id_inside_the_classes(tmp_path):
    found = read(png(np.array([[0, 11, 255]], np.uint8)), tmp_path, CAMVID)
    assert found.ids.tolist() == [[0, 11, 11]]
    assert found.assumed == 1


def test_unknown_ids_are_counted_and_ignored_unless_mapped(ids, tmp_path):
    faulty = ids.copy()
    faulty[0, 10:15], faulty[1, 10] = 77, 5
    found = read(png(faulty), tmp_path)
    assert found.unknown == {"id 77": 5, "id 5": 1}
    assert found.left.sum() == 6
    assert (found.ids[found.left] == 255).all()
    mapped = read(png(faulty), tmp_path, mapping=["77=Car", "5=ignore"])
    assert not mapped.unknown
    assert (mapped.ids[faulty == 77] == 1).all()
    assert mapped.ids[1, 10] == 255


def test_source_classes_are_matched_and_mapped_by_name(tmp_path):
    tree = SourceClass("Tree", 9, (1, 2, 3))
    source = [SourceClass("Vehicle", 7), SourceClass("ROAD", 8), tree]
    data = png(np.array([[7, 8, 9]], np.uint8))
    found = read(data, tmp_path, source=source)
    assert found.unknown == {"id 7 (Vehicle)": 1, "id 9 (Tree)": 1}
    mapping = ["vehicle=car", "Tree=other"]
    found = read(data, tmp_path, source=source, mapping=mapping)
    assert found.ids.tolist() == [[1, 0, 2]]
    # the numbers of the source count, not the positions in the new label set
    assert read(png(np.array([[0]], np.uint8)), tmp_path, source=source).unknown


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("car", "FROM=TO"),
        ("=car", "FROM=TO"),
        ("truck=car", "'truck' is not a number"),
        ("#12=car", "'#12' is not a number"),
        ("3=truck", "no class 'truck'"),
    ],
)
def test_a_mapping_that_is_wrong_is_refused(entry, word):
    with pytest.raises(RoadsegError, match=word):
        Codes(LABELS, (), [entry])


# ---- Palettes and colors ----------------------------------------------------------


def test_a_palette_in_another_order_is_read_by_its_colors(ids, tmp_path):
    order = np.array([2, 0, 1], np.uint8)
    entries = np.zeros((256, 3), np.uint8)
    entries[order] = LABELS.colors
    found = read(with_palette(order[np.minimum(ids, 2)], entries), tmp_path)
    np.testing.assert_array_equal(found.ids, np.minimum(ids, 2))
    assert found.coding == "palette colors"


def test_outlines_of_pascal_voc_are_ignored_whatever_their_color(ids, tmp_path):
    entries = np.zeros((256, 3), np.uint8)
    entries[:3], entries[255] = LABELS.colors, (224, 224, 192)
    found = read(with_palette(ids, entries), tmp_path)
    np.testing.assert_array_equal(found.ids, ids)
    assert not found.unknown
    assert not found.left.any()


def test_exact_colors_where_transparent_ones_are_black(ids, tmp_path):
    alpha = np.where(np.arange(SIZE[1]) < 4, 0, 255) * np.ones(SIZE)
    rgba = np.dstack([colors_of(ids), alpha]).astype(np.uint8)
    hidden = np.where(alpha == 0, 255, ids)
    for pixels, expected in ((colors_of(ids), ids), (rgba, hidden)):
        found = read(png(pixels), tmp_path)
        np.testing.assert_array_equal(found.ids, expected)
        assert (found.nearest, found.edges, found.left.sum()) == (0, 0, 0)
        assert found.coding == "colors"


def test_near_colors_within_the_tolerance_only(ids, tmp_path):
    near = colors_of(ids).copy()
    near[20:, :3] += np.array([3, 4, 0], np.uint8)
    found = read(png(near), tmp_path)
    assert found.unknown == {"#834480": 12}
    assert (found.ids[20:, :3] == 255).all()
    assert read(png(near), tmp_path, tolerance=4.9).left.sum() == 12
    found = read(png(near), tmp_path, tolerance=5)
    np.testing.assert_array_equal(found.ids, ids)
    assert (found.nearest, found.left.sum()) == (12, 0)


def smooth(ids):
    """Draw a mask at four times the size and average, as anti-aliasing does."""
    rows, columns = np.indices((SIZE[0] * 4, SIZE[1] * 4))
    slanted = ids[((rows + columns // 3) // 4).clip(0, SIZE[0] - 1), columns // 4]
    return np.asarray(Image.fromarray(colors_of(slanted)).reduce(4))


def test_anti_aliased_edges_are_told_from_unknown_colors(ids, tmp_path):
    colors = smooth(np.minimum(ids, 2))
    exact = (colors[..., None, :] == np.array(LABELS.colors)).all(-1).any(-1)
    found = read(png(colors), tmp_path)
    assert found.edges == found.edges_left == (~exact).sum() > 20
    assert not found.unknown
    np.testing.assert_array_equal(found.left, ~exact)
    faulty = colors.copy()
    faulty[22:, 26:30] = (250, 250, 0)
    assert read(png(faulty), tmp_path).unknown == {"#fafa00": 8}


def test_an_edge_gets_one_of_its_two_classes_never_a_third(tmp_path):
    labels = LabelSet(("black", "white", "gray"), ((0, 0, 0), (254,) * 3, (127,) * 3))
    rows = np.zeros((20, 20, 3), np.uint8)
    rows[:, 11:] = 254
    rows[:, 10] = (127, 120, 127)
    found = read(png(rows), tmp_path, labels, tolerance=250)
    assert set(np.unique(found.ids)) == {0, 1}
    assert found.edges == 20
    # in the middle of a class, the same color is simply the nearest
    rows[5:8, 2:5] = (127, 120, 127)
    found = read(png(rows), tmp_path, labels, tolerance=250)
    assert (found.ids[5:8, 2:5] == 2).all()
    found = read(png(rows), tmp_path, labels)
    assert found.unknown == {"#7f787f": 9}
    assert found.edges_left == 20


def test_a_foreign_color_between_two_classes_is_no_edge_and_can_be_mapped(tmp_path):
    rows = np.zeros((20, 20, 3), np.uint8)
    rows[:, :10], rows[:, 11:] = LABELS.colors[:2]
    rows[:, 10] = (255, 220, 0)
    found = read(png(rows), tmp_path)
    assert found.unknown == {"#ffdc00": 20}
    assert found.edges == 0
    found = read(png(rows), tmp_path, mapping=["#FFdc00=other"])
    assert (found.ids[:, 10] == 2).all()


def test_colors_as_jpeg_need_a_tolerance(ids, tmp_path):
    data = png(colors_of(ids), "jpeg", quality=95, subsampling=0)
    with pytest.raises(DatasetError, match="tolerance"):
        read(data, tmp_path)
    found = read(data, tmp_path, tolerance=40)
    assert (found.ids == ids).mean() > 0.95


EXIF = Image.Exif()
EXIF[274] = 6


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"text", "not an image"),
        (png(np.zeros(SIZE, np.uint8))[:60], "damaged"),
        (png(np.zeros(SIZE, np.float32), "tiff"), "mode F"),
        (png(np.zeros(SIZE, np.uint8), "jpeg"), "compressed"),
        (png(np.zeros(SIZE, np.uint8), "webp"), "compressed"),
        (png(np.zeros(SIZE, np.uint8), exif=EXIF), "orientation"),
    ],
)
def test_files_that_are_no_masks(tmp_path, data, word):
    with pytest.raises(DatasetError, match=word):
        read(data, tmp_path)


# ---- What a source says of its classes --------------------------------------------


def test_the_classes_of_cvats_labelmap(tmp_path):
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nRoad:128,64,128::\n"
    (tmp_path / "labelmap.txt").write_text(text, "utf-8")
    found = convert.read_source_classes(tmp_path)
    background, road = ("background", 0, (0, 0, 0)), ("Road", 1, (128, 64, 128))
    assert found == [SourceClass(*background), SourceClass(*road)]
    labels = convert.labels_of_source(found)
    assert labels.names == ("background", "Road")
    assert labels.colors[1] == (128, 64, 128)


def test_the_classes_of_labels_json(tmp_path):
    assert convert.read_source_classes(tmp_path) == []
    CAMVID.save(tmp_path / "labels.json")
    found = convert.read_source_classes(tmp_path)
    assert found[3] == SourceClass("Road", 3, CAMVID.colors[3])
    codes = Codes(LABELS, found, ["Car=car"])
    assert (codes.values[3], codes.values[8]) == (0, 1)
    assert 5 not in codes.values


# ---- COCO's outlines --------------------------------------------------------------

ROADS = LabelSet(("background", "road", "car"))
CATEGORIES = [SourceClass("road", 1), SourceClass("Car", 5), SourceClass("dog", 9)]


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


def draw(*annotations, labels=ROADS):
    pytest.importorskip("pycocotools")
    return convert.draw_annotations(SIZE, annotations, Codes(labels, CATEGORIES))


def test_a_polygon_on_background_or_on_what_is_ignored():
    expected = np.zeros(SIZE, np.uint8)
    expected[5:15, 10:25] = 1
    found = draw(annotation(polygon(5, 10, 15, 25)))
    np.testing.assert_array_equal(found.ids, expected)
    assert found.coding == "outlines"
    assert not found.left.any()
    labels = LabelSet(("road", "car"))
    found = draw(annotation(polygon(5, 10, 15, 25)), labels=labels)
    np.testing.assert_array_equal(found.ids, np.where(expected, 0, 255))


def test_run_lengths_as_lists_and_as_text():
    api = pytest.importorskip("pycocotools.mask")
    expected = np.zeros(SIZE, np.uint8)
    expected[3:9, 4:28:3] = 1
    text = api.encode(np.asfortranarray(expected))
    decoded = text | {"counts": text["counts"].decode()}
    for segmentation in (run_lengths(expected), text, decoded):
        found = draw(annotation(segmentation))
        np.testing.assert_array_equal(found.ids, expected)


def test_small_outlines_lie_on_large_ones_and_parts_belong_together():
    large = annotation(polygon(0, 0, *SIZE), 1, 600)
    two = annotation(polygon(1, 1, 3, 3) + polygon(10, 10, 14, 14), 5, 20)
    for order in ([large, two], [two, large]):
        ids = draw(*order).ids
        assert (ids == 2).sum() == 4 + 16
        assert (ids == 1).sum() == ids.size - 20


def test_a_category_that_is_no_class_is_unknown():
    found = draw(annotation(polygon(0, 0, 2, 3), 9))
    assert found.unknown == {"category dog": 6}
    assert found.left.sum() == 6
    assert (found.ids[found.left] == 255).all()


@pytest.mark.parametrize(
    "outline",
    [None, [], [[1, 2]], {"counts": "?"}, "x", run_lengths(np.ones((4, 5), np.uint8))],
)
def test_an_annotation_without_outline_or_of_another_size_is_told(outline):
    with pytest.raises(DatasetError, match="without outline|outlines 4 x 5"):
        draw(annotation(outline))


def test_pycocotools_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(DatasetError, match="pip install pycocotools"):
        convert.draw_annotations(SIZE, [], Codes(ROADS))


def content(name="a.png", categories=((1, "road"), (5, "car"))):
    image = {"id": 0, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
    return {
        "images": [image],
        "annotations": [{"image_id": 0} | annotation(polygon(0, 0, 2, 3))],
        "categories": [{"id": i, "name": n} for i, n in categories],
    }


def write(folder, **files):
    """Write JSON files, double underscores standing for a folder's slash."""
    texts = {f"{k.replace('__', '/')}.json": v for k, v in files.items()}
    write_files({k: json.dumps(v).encode() for k, v in texts.items()}, folder)
    return [folder / name for name in texts]


def test_images_are_found_beside_the_annotations_or_by_their_split(tmp_path):
    write_files({"train/a.png": b"", "val/a.png": b"", "broken.json": b"{"}, tmp_path)
    files = write(tmp_path, annotations__x_train=content(), val__coco=content())
    write(tmp_path, other={"x": 1}, number=7)
    assert convert.find_annotations(tmp_path) == files
    images, classes = convert.read_annotations(files, tmp_path)
    assert [i.path.parent.name for i in images] == ["train", "val"]
    assert [i.size for i in images] == [SIZE, SIZE]
    assert [len(i.annotations) for i in images] == [1, 1]
    found = [(c.name, c.value) for c in classes]
    assert found == [("background", None), ("road", 1), ("car", 5)]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ([], "no file of COCO"),
        ({"images": []}, "lacks 'categories'"),
        (content("b.png"), "b.png"),
        (content() | {"annotations": [{}]}, "lacks 'image_id'"),
        (content(categories=[(1, "car")]), "other categories"),
    ],
)
def test_files_that_are_not_whole_or_of_other_categories_are_refused(
    tmp_path, data, word
):
    (tmp_path / "a.png").write_bytes(b"")
    files = write(tmp_path, one=content(), two=data)
    with pytest.raises(DatasetError, match=word):
        convert.read_annotations(files, tmp_path)


# ---- Generated masks --------------------------------------------------------------

MASKS = st.tuples(
    st.sampled_from(["ids", "16 bits", "palette", "colors"]),
    st.integers(2, 40),  # classes
    st.tuples(SIDES, SIDES),
    st.floats(0, 1),  # share of pixels of no class
    SEEDS,
)


def check_coding(case, folder):
    """Any coding gives the ids that it stands for; what stands for none is left."""
    coding, classes, size, share, seed = case
    random = np.random.default_rng(seed)
    labels = LabelSet(tuple(f"class {i}" for i in range(classes)))
    allowed = np.array(labels.ids, np.uint8)  # 255, ignored, has the color black
    wanted = random.choice(allowed, size)
    colors, foreign = labels.palette(), random.random(size) < share
    if coding == "palette":  # in any order; what it can't hold is no part of this
        order = random.permutation(256).astype(np.uint8)
        image = Image.fromarray(order[wanted])
        image.putpalette(colors[np.argsort(order)].tobytes())
        data, foreign = png(image), np.zeros(size, bool)
    elif coding == "colors":
        data = png(np.where(foreign[..., None], (1, 2, 3), colors[wanted]).astype("u1"))
    else:
        kind = np.uint16 if coding == "16 bits" else np.uint8
        data = png(np.where(foreign, 77, wanted).astype(kind))
    found = read(data, folder, labels)
    np.testing.assert_array_equal(found.left, foreign)
    np.testing.assert_array_equal(found.ids, np.where(foreign, 255, wanted))
    assert bool(found.unknown or found.edges_left) == foreign.any()


CHECKS = {"codings": (check_coding, MASKS, 300)}


@pytest.mark.parametrize("most", [20, pytest.param(999, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHECKS)
def test_generated_masks(name, most):
    check, strategy, count = CHECKS[name]
    assert generated(check, strategy, min(most, count)) >= min(most, count)
