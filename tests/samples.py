"""Small images, masks and datasets that tests draw, and ways to write their files."""

import io
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

SIZE = (6, 8)
TRAIN = ("images_prepped_train", "annotations_prepped_train")
TEST = ("images_prepped_test", "annotations_prepped_test")
FOLDERS = TRAIN + TEST
NAMES = {
    "train": ["A_01.png", "A_02.png", "B_01.png"],
    "test": ["B_07.png", "B_08.png"],
}


def png(array, kind="png", **options) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a part of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def raw_png(rows: list[bytes], width: int, depth: int, color: int, *more) -> bytes:
    """Return a PNG of any depth and color type, of which Pillow writes only some."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_16_bit(values: np.ndarray) -> bytes:
    """Return a PNG with 16 bits per channel: (H, W, 3) are its values."""
    rows = [row.astype(">u2").tobytes() for row in values]
    return raw_png(rows, values.shape[1], 16, 2)


def png_4_bit(labels: np.ndarray) -> bytes:
    """Return a grayscale PNG of 4 bits: (H, W) are its values."""
    even = np.pad(labels & 15, ((0, 0), (0, labels.shape[1] % 2)))
    rows = [bytes(row) for row in even[:, ::2] << 4 | even[:, 1::2]]
    return raw_png(rows, labels.shape[1], 4, 0)


def scene(number: int, size=SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return a random image and a random mask of CamVid's classes."""
    random = np.random.default_rng(number)
    image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    return image, random.integers(0, 12, size, dtype=np.uint8)


def tiny_files(folders=FOLDERS, top="") -> dict[str, bytes]:
    """Return {path: bytes} of five images and their masks."""
    files = {}
    for split, images, masks in (("train", *folders[:2]), ("test", *folders[2:])):
        for number, name in enumerate(NAMES[split]):
            image, mask = scene(number)
            files[f"{top}{images}/{name}"] = png(image)
            files[f"{top}{masks}/{name}"] = png(mask)
    return files


def write_files(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zip_bytes(files: dict[str, bytes], **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def left_in(folder: Path) -> list[str]:
    """Return what is in a folder, locks aside."""
    there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    return [name for name in there if not name.endswith(".lock")]


# ---- Generated cases --------------------------------------------------------------

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 24)
LETTERS = "abcXYZ019 äöüßéñ漢字Ωж'()#%&+=,.-_"
FILENAMES = (
    st.text(LETTERS, min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and not name.startswith("."))
)
DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=0, max_size=6),
    st.floats(0, 1) | st.just(1.0),
)


def generated(check, strategy, count: int) -> int:
    """Call a check with so many cases, the same ones every time; count the calls."""
    calls = []

    def counted(case):
        calls.append(1)
        with tempfile.TemporaryDirectory() as folder:
            check(case, Path(folder))

    counted.__name__ = check.__name__
    settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(counted))()
    return len(calls)


def damaged(data: bytes, damage) -> bytes:
    """Change some bytes, at these shares of the length, and cut the rest off."""
    changed = bytearray(data)
    changes, length = damage
    for where, value in changes:
        changed[min(int(where * len(changed)), len(changed) - 1)] = value
    return bytes(changed[: int(length * len(changed))])


def result(call, refusal: type[Exception]) -> tuple:
    """Return what a call returns, or None, and what it says if it refuses."""
    try:
        return call(), ""
    except refusal as error:
        return None, str(error)
