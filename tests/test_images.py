"""Single images and masks of all formats, modes and kinds of damage."""

import io
import sys
import types
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from roadseg import images
from roadseg.classes import CAMVID, LabelSet
from roadseg.files import DatasetError
from roadseg.scenes import read_image, read_mask
from samples import (
    DAMAGE,
    FILENAMES,
    SEEDS,
    SIDES,
    chunk,
    damaged,
    generated,
    png,
    png_4_bit,
    png_16_bit,
    raw_png,
    result,
    scene,
)

# ---- Images -----------------------------------------------------------------------


def test_images_of_any_mode_are_read_right(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :3] = 200
    for mode in ("L", "P", "RGB", "RGBA", "CMYK", "1", "LA"):
        path = tmp_path / f"Bild ä {mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(rgb).convert(mode).save(path)
        image = read_image(path)
        assert image.shape == (3, 4, 6)
        assert image.dtype == torch.uint8
        if mode != "1":
            # the palette that Pillow converts to has 204, not 200
            assert (image[:, :, :3].int() - 200).abs().max() <= 4, mode
            assert image[:, :, 3:].max() <= 1, mode


def test_a_palette_with_transparency_keeps_its_colors(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [
        [10, 20, 30],
        [40, 50, 60],
    ]


@pytest.mark.parametrize("ending", ["jpg", "JFIF", "jpe", "webp", "bmp", "tif", "gif"])
def test_the_common_formats_are_read_under_any_ending(tmp_path, ending):
    Image.new("RGB", (16, 8), (200, 100, 50)).save(tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}")
    wanted = torch.tensor([200, 100, 50])[:, None, None]
    assert (image.int() - wanted).abs().max() <= 4
    (tmp_path / f"a.{ending}").rename(tmp_path / "without ending")
    assert torch.equal(read_image(tmp_path / "without ending"), image)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_formats_that_need_a_library_in_pillow(tmp_path, kind):
    if kind not in Image.registered_extensions().values():
        pytest.skip(f"this Pillow has no {kind}")
    Image.new("RGB", (64, 32), (200, 100, 50)).save(tmp_path / "a", kind)
    assert read_image(tmp_path / "a").shape == (3, 32, 64)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path, capsys):
    deep = np.array([[0, 32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, 0].tolist() == [0, 128, 255]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["gray.png", "gray.tif"])
def test_fewer_significant_bits_are_scaled_by_their_range(tmp_path, capsys, kind, bits):
    most = 2**bits - 1
    deep = np.array([[0, most // 2, most]], np.uint16)
    Image.fromarray(deep).save(tmp_path / kind)
    assert read_image(tmp_path / kind)[2, 0].tolist() == [0, 127, 255]
    assert f"{kind}: {bits} of 16 bits" in capsys.readouterr().out


def test_sixteen_bit_colors_are_read_or_refused_where_they_would_be_black(tmp_path):
    colors = np.array([[[0, 32768, 65535]]], np.uint16)
    (tmp_path / "a.png").write_bytes(png_16_bit(colors))
    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [0, 128, 255]
    for bits in (10, 12, 14):
        (tmp_path / "a.png").write_bytes(png_16_bit(colors >> (16 - bits)))
        with pytest.raises(DatasetError, match=r"a.png has 16 bits per channel, but"):
            read_image(tmp_path / "a.png")


def test_fractions_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match="a.tif holds fractions"):
        read_image(tmp_path / "a.tif")


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "on its side.png", exif=exif)
    read = read_image(tmp_path / "on its side.png")
    assert torch.equal(read[0], torch.arange(24).reshape(4, 6).byte())


HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heicMiPrmiaf" + bytes(200)
OTHERS = {
    "notes.jpg": (b"not an image", "is not an image"),
    "empty.png": (b"", "is empty"),
    "zeros.png": (bytes(100), "nothing but zeros"),
    "IMG_1.HEIC": (HEIC, "is a HEIC file.*pillow-heif"),
    "IMG_1.jpg": (HEIC, "is a HEIC file.*pillow-heif"),
    "page.png": (b"\n<!DOCTYPE html><title>Sign in</title>", "is a web page"),
    "drawing.png": (b"<?xml version='1.0'?><svg/>", "is an SVG"),
    "pack.png": (b"PK\3\4" + bytes(50), "is a zip archive"),
    "clip.jpg": (b"\0\0\0\x20ftypisom" + bytes(50), "is a video"),
    "clip.png": (b"RIFF\0\0\0\0AVI LIST", "is a video"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "text.png": (b"%PDF-1.7", "is a PDF"),
    "new.jpg": (b"\xff\x0a" + bytes(20), "is a JPEG XL file"),
    "camera.NEF": (png(scene(0)[0], "tiff"), "raw file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_told_what_it_is(tmp_path, name):
    content, told = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"^{name} .*{told}|^{name} {told}"):
        read_image(tmp_path / name)


def test_a_missing_and_a_cut_image_are_named(tmp_path):
    with pytest.raises(DatasetError, match="^gone.png does not exist"):
        read_image(tmp_path / "gone.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-40])
    with pytest.raises(DatasetError, match=r"^cut.png is damaged or cut off"):
        read_image(tmp_path / "cut.png")


def test_heic_is_read_where_its_plugin_is_installed(tmp_path, monkeypatch):
    def register_heif_opener():
        def opened(file, name):
            file.seek(0)
            return Image.new("RGB", (3, 2), (1, 2, 3))

        Image.register_open("HEIF", opened, lambda start: start[4:12] == b"ftypheic")

    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = register_heif_opener
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    images._formats.cache_clear()
    try:
        assert read_image(tmp_path / "IMG_1.HEIC").shape == (3, 2, 3)
    finally:
        images._formats.cache_clear()


def test_large_text_in_a_png_is_read(tmp_path):
    text = zlib.compress(bytes(5 * 2**20))
    rows = [bytes(3 * 4)] * 2
    for kind, body in (
        (b"zTXt", b"workflow\0\0" + text),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text),
        (b"iCCP", b"profile\0\0" + text),
        (b"tEXt", b"workflow\0" + bytes([65]) * 70 * 2**20),
    ):
        data = raw_png(rows, 4, 8, 2, chunk(kind, body))
        (tmp_path / "a.png").write_bytes(data)
        assert read_image(tmp_path / "a.png").shape == (3, 2, 4), kind


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_an_honest_panorama_is_no_attack(tmp_path, kind, monkeypatch):
    """Above the size at which Pillow refuses, without a warning on the way."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_000_000)
    Image.new("1", (20000, 10000)).save(tmp_path / f"panorama.{kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / f"panorama.{kind}").shape == (3, 10000, 20000)
    assert Image.MAX_IMAGE_PIXELS == 89_000_000  # for everything else


def test_a_header_that_announces_too_much_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_000_000)
    (tmp_path / "a.png").write_bytes(raw_png([b"\0"], 2**31 - 1, 8, 0))
    with pytest.raises(DatasetError, match="a.png announces 1 x 2147483647 pixels"):
        read_image(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 89_000_000  # for everything else


def test_large_images_are_converted_strip_by_strip_to_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 17000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.bmp")
    read = read_image(tmp_path / "wide.bmp")
    assert torch.equal(read, torch.from_numpy(pixels).permute(2, 0, 1))


# ---- Masks ------------------------------------------------------------------------

THREE = LabelSet(("road", "car", "sky"), ((9, 9, 9), (255, 0, 0), (0, 0, 255)), 255)


def test_a_mask_holds_the_ids_of_its_classes(tmp_path):
    path = tmp_path / "a.png"
    for ids, labels in (([0, 10, 11], CAMVID), ([0, 2, 255], THREE)):
        Image.fromarray(np.array([ids], np.uint8)).save(path)
        mask = read_mask(path, labels)
        assert mask.dtype == torch.uint8
        assert mask.tolist() == [ids]
    two = LabelSet(("road", "other"), ignore_index=255)
    with pytest.raises(DatasetError, match=r'a.png holds the label 2.*"ignore_index"'):
        read_mask(path, two)


def test_a_mask_with_smaller_copies_in_its_file_is_one_mask(tmp_path):
    ids = np.array([[0, 5, 11, 2], [10, 0, 3, 1]], np.uint8)
    small = Image.fromarray(ids[::2, ::2].copy())
    small.encoderinfo = {"tiffinfo": {254: 1}}  # as GIS programs do
    path = tmp_path / "a.tif"
    Image.fromarray(ids).save(path, save_all=True, append_images=[small])
    with Image.open(path) as file:
        assert file.n_frames == 2
    assert read_mask(path).tolist() == ids.tolist()
    small.encoderinfo = {}
    Image.fromarray(ids).save(path, save_all=True, append_images=[small])
    with pytest.raises(DatasetError, match="a.tif holds 2 images"):
        read_mask(path)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "gif"])
def test_lossless_masks_are_read_exactly(tmp_path, ending):
    ids = np.array([[0, 5, 11], [10, 0, 3]], np.uint8)
    Image.fromarray(ids).save(tmp_path / f"a.{ending}")
    assert read_mask(tmp_path / f"a.{ending}").tolist() == ids.tolist()


LOSSY = {
    "a.jpg": ("JPEG", {}),
    "a.png": ("JPEG", {}),
    "a.tif": ("TIFF", {"compression": "jpeg"}),
    "a.jp2": ("JPEG2000", {}),
    "a.webp": ("WEBP", {}),
}


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_masks_are_refused_whatever_they_are_called(tmp_path, name):
    kind, options = LOSSY[name]
    Image.fromarray(scene(0, (16, 16))[1]).save(tmp_path / name, kind, **options)
    with pytest.raises(
        DatasetError, match=f"^{name} is compressed as .*invents labels"
    ):
        read_mask(tmp_path / name)


def palette_mask(ids, colors, **options) -> bytes:
    ids = np.asarray(ids, np.uint8)
    image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    image.putpalette(np.asarray(colors, np.uint8).tobytes())
    return png(image, **options)


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
VOC += [(0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0)]
VOC += [(192, 128, 0)]
CONTRADICTIONS = {
    "reversed": (np.arange(12), CAMVID.colors[::-1]),
    "rotated": (np.arange(12), CAMVID.colors[1:] + CAMVID.colors[:1]),
    "two swapped": ([3, 8], [*CAMVID.colors[:3], CAMVID.colors[8], *CAMVID.colors[4:8],
                             CAMVID.colors[3], *CAMVID.colors[9:]]),
    "a subset from 0": ([0, 1, 2], [CAMVID.colors[i] for i in (3, 8, 5)]),
    "with a white border": (np.arange(12), [*CAMVID.colors[10::-1], (255, 255, 255)]),
}  # fmt: skip
AGREEMENTS = {
    "right": CAMVID.colors,
    "right and more": (*CAMVID.colors, *VOC),
    "gray ramp": [(i, i, i) for i in range(256)],
    "inverted gray": [(255 - i,) * 3 for i in range(256)],
    "VOC": VOC,
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_palette_in_another_order_is_refused(tmp_path, kind):
    ids, colors = CONTRADICTIONS[kind]
    (tmp_path / "a.png").write_bytes(palette_mask([ids], colors))
    with pytest.raises(
        DatasetError, match=r"palette that contradicts.*roadseg prepare"
    ):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("kind", AGREEMENTS)
def test_a_palette_that_does_not_contradict_is_ignored(tmp_path, kind):
    for ids in (range(12), [0, 1], [7], [11]):
        (tmp_path / "a.png").write_bytes(palette_mask([list(ids)], AGREEMENTS[kind]))
        assert read_mask(tmp_path / "a.png").tolist() == [list(ids)]


def test_other_classes_have_other_palettes(tmp_path):
    data = palette_mask([[0, 1, 2]], [(9, 9, 9), (0, 0, 255), (255, 0, 0)])
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DatasetError, match="id 1 has the color of sky, which is id 2"):
        read_mask(tmp_path / "a.png", THREE)
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 2]]


def test_the_color_of_an_ignored_id_beyond_the_classes_does_not_matter(tmp_path):
    labels = LabelSet(("background", "road"), ((0, 0, 0), (128, 64, 128)), 255)
    data = palette_mask([[0, 1, 255]], labels.palette())
    (tmp_path / "a.png").write_bytes(data)
    assert read_mask(tmp_path / "a.png", labels).tolist() == [[0, 1, 255]]


def test_a_color_mask_is_told_how_to_be_converted(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a.png has mode RGB.*roadseg prepare"):
        read_mask(tmp_path / "a.png")


def test_gray_levels_of_a_few_bits_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png_4_bit(scene(0)[1]))
    with pytest.raises(DatasetError, match="a.png has mode L, 4 bits"):
        read_mask(tmp_path / "a.png")


# ---- Generated cases --------------------------------------------------------------

CHANNELS = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


def random_image(
    mode: str, size: tuple[int, int], seed: int
) -> tuple[Image.Image, np.ndarray]:
    """Return a random image of a mode, and the (H, W, 3) that it shows."""
    random = np.random.default_rng(seed)
    if mode == "1":
        bits = random.integers(0, 2, size).astype(bool)
        return Image.fromarray(bits), np.stack([bits * np.uint8(255)] * 3, -1)
    if mode == "I;16":
        deep = random.integers(0, 65536, size, dtype=np.uint16)
        deep.flat[0] = 65535  # or it would pass for fewer bits
        gray = np.floor(deep / 257 + 0.5).astype(np.uint8)
        return Image.fromarray(deep), np.stack([gray] * 3, -1)
    raw = random.integers(0, 256, (*size, CHANNELS[mode]), dtype=np.uint8)
    image = Image.frombytes(mode, size[::-1], raw.tobytes())
    if mode == "P":
        colors = random.integers(0, 256, (256, 3), dtype=np.uint8)
        image.putpalette(colors.tobytes())
        return image, colors[raw[..., 0]]
    if mode == "CMYK":
        ink = raw.astype(float)
        shown = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
        return image, shown.round().astype(np.uint8)
    return image, raw[..., :3] if raw.shape[-1] > 2 else np.repeat(raw[..., :1], 3, 2)


def turned(shown: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (H, W, 3) as an EXIF orientation asks for."""
    mirrored = orientation in (2, 4, 5, 7)
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(shown[:, ::-1] if mirrored else shown, quarters)


@dataclass
class ImageCase:
    """A file in one of the ways in which a camera or a program may write it."""

    kind: tuple[str, str]
    size: tuple[int, int]
    orientation: int
    seed: int
    name: str


KINDS = [(mode, "png") for mode in ("L", "P", "LA", "RGB", "RGBA", "1", "I;16")] + [
    *((mode, "tiff") for mode in ("L", "RGB", "RGBA", "CMYK", "I;16")),
    *((mode, "bmp") for mode in ("L", "P", "RGB", "1")),
    ("RGB", "webp"),
    ("L", "gif"),
]
IMAGES = st.builds(
    ImageCase, st.sampled_from(KINDS), st.tuples(SIDES, SIDES), st.integers(0, 8),
    SEEDS, FILENAMES,
)  # fmt: skip


def check_readable(case: ImageCase, folder: Path) -> None:
    """Any mode, size, format, orientation and name gives the pixels that it shows."""
    mode, kind = case.kind
    image, shown = random_image(mode, case.size, case.seed)
    exif = Image.Exif()
    tagged = case.orientation and kind in ("png", "tiff", "webp")
    if tagged:
        exif[0x0112] = case.orientation
    path = folder / f"{case.name}.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    image.save(path, exif=exif, **options)
    read = read_image(path)
    wanted = turned(shown, case.orientation) if tagged else shown
    assert read.dtype == torch.uint8
    assert read.is_contiguous()
    assert tuple(read.shape[1:]) == wanted.shape[:2]
    apart = np.abs(read.permute(1, 2, 0).numpy().astype(int) - wanted)
    assert apart.max() <= (1 if mode == "CMYK" else 0)


BAD_EXIF = {
    "no TIFF": b"no EXIF at all",
    "empty": b"Exif\0\0",
    "cut in its head": b"II*\0",
    "no list where it says": b"II*\0\xff\xff\0\0",
    "cut in its list": b"II*\0\x08\0\0\0\x05\0\x12\x01",
    "orientation without a number": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\0\0\0\0"
    + bytes(8),
    "orientation in letters": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0"
    + bytes(4),
}
EXIF = st.tuples(
    st.sampled_from(["png", "jpeg", "webp"]),
    st.sampled_from(list(BAD_EXIF.values()))
    | st.binary(min_size=1, max_size=40)
    | st.binary(max_size=60).map(lambda rest: b"II*\0\x08\0\0\0" + rest),
)


def check_exif(case, folder: Path) -> None:
    """Whatever its EXIF data, an image is read, or one sentence names it."""
    kind, exif = case
    path = folder / "tagged image.bin"
    path.write_bytes(png(scene(3)[0], kind, exif=exif))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what it repairs
        for read in (read_image, read_mask):
            _, told = result(lambda read=read: read(path), DatasetError)
            assert not told or told.startswith("tagged image.bin ")


@pytest.mark.parametrize("exif", BAD_EXIF.values(), ids=BAD_EXIF)
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_broken_exif_data_is_no_other_error(tmp_path, kind, exif):
    check_exif((kind, exif), tmp_path)


def image_files() -> dict[str, bytes]:
    image = random_image("RGB", (9, 13), 1)[0]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    files = {}
    for kind in ("png", "jpeg", "tiff", "webp", "gif", "bmp", "ppm", "ico"):
        file = io.BytesIO()
        options = {"exif": exif} if kind in ("png", "jpeg", "tiff", "webp") else {}
        image.save(file, kind, **options)
        files[kind] = file.getvalue()
    return files


FILES = image_files()


def check_damaged_image(case, folder: Path) -> None:
    """A damaged file is still an image, or one sentence names it."""
    kind, damage = case
    path = folder / "damaged image.bin"
    path.write_bytes(damaged(FILES[kind], damage))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what it repairs
        image, told = result(lambda: read_image(path), DatasetError)
    if told:
        assert told.startswith("damaged image.bin ")
        assert "\n" not in told
    else:
        assert image.dtype == torch.uint8


CHECKS = {
    "readable images": (check_readable, IMAGES, 250),
    "damaged images": (
        check_damaged_image,
        st.tuples(st.sampled_from(sorted(FILES)), DAMAGE),
        300,
    ),
    "EXIF data": (check_exif, EXIF, 300),
}


@pytest.mark.parametrize("most", [20, pytest.param(999, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHECKS)
def test_generated_images(name, most):
    check, strategy, count = CHECKS[name]
    assert generated(check, strategy, min(most, count)) >= min(most, count)
