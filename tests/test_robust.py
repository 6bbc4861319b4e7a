"""Bad data, interruptions and hostile servers, through roadseg's own doors.

Generated cases (hypothesis) run a few at a time here and in hundreds when slow tests
are asked for; the same ones every time.
"""

import contextlib
import errno
import gzip
import http.server
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import notebooks
from roadseg import archives, dataset1, evaluation, unet
from roadseg.dataset1 import DatasetError, RoadScenes
from test_archives import left_in, send, zipped
from test_dataset1 import (
    FOLDERS,
    MINE,
    THEIRS,
    TINY,
    assert_good,
    png,
    png_16_bit,
    scene,
    tiny_files,
)
from test_evaluation import Paint

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="processes of POSIX")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process that trains on its own in a folder."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "notebooks"), str(ROOT / "tests")]),
        "ROADSEG_DATA": str(folder / "data"),
        "ROADSEG_OUTPUT": str(folder / "build"),
        "ROADSEG_PROGRESS": "0",
        **more,
    }


# --- a training that is killed ------------------------------------------------

KILLS = 20


@pytest.fixture(scope="module")
def disk():
    """A folder that is gone afterwards: checkpoints of the network are large."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs fork and waitid")
@pytest.mark.parametrize("network", ["small", "unet"])
def test_a_training_killed_at_any_moment_ends_in_the_same_bits(disk, network):
    script, folder = ROOT / "tests" / "killing.py", disk / network
    done = subprocess.run(
        [sys.executable, script, folder, str(KILLS), "0", network],
        env=environment(disk),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    rounds = told["rounds"]
    assert len(rounds) == KILLS
    assert all(r["killed"] for r in rounds)
    assert all(r["after"] >= r["before"] for r in rounds), "a checkpoint was lost"
    assert sum(r["writing"] for r in rounds) >= KILLS // 5
    assert told["killed"]["losses"] == told["whole"]["losses"]
    assert told["killed"]["weights"] == told["whole"]["weights"]


QUICK = """
import hashlib, sys
from roadseg import dataset1, training, unet
scenes = dataset1.load()[0]
model, facts = training.trained_model(scenes, unet.find_encoder_weights())
digest = hashlib.sha256()
for name, tensor in model.state_dict().items():
    digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_the_quick_training_repeats_to_the_bit(tmp_path):
    ends = set()
    for name in ("one", "another"):
        done = subprocess.run(
            [sys.executable, "-c", QUICK],
            env=environment(tmp_path / name),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        ends.add(done.stdout.splitlines()[-1])
    assert len(ends) == 1


@POSIX
@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_a_sentence(tmp_path):
    training = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "train.py"],
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    kept = tmp_path / "build" / "quick" / "quick" / "checkpoints"
    while not list(kept.glob("*/epoch-*")):
        assert training.poll() is None
        time.sleep(0.05)
    training.send_signal(signal.SIGINT)
    _, told = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "Traceback" not in told
    assert re.fullmatch(
        r"stopped after [123] of 4 epochs; they are saved in .*goes on", told.strip()
    )
    assert list(kept.glob("*/epoch-*"))


# --- servers ------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Answers each path as `answers` says: bytes, or a function of the handler."""

    daemon_threads = True
    block_on_close = False  # some of its answers never end

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = {}, []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers[self.path]
        with contextlib.suppress(OSError):  # the client has hung up
            answer(self) if callable(answer) else send(self, answer)

    def end_headers(self):
        self.send_header("Connection", "close")
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server whose answers are the sources of dataset1, in their order."""
    monkeypatch.delenv("ROADSEG_PROFILE")
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ROADSEG_PROGRESS", "0")
    monkeypatch.setattr(archives, "PAUSE", 0)
    monkeypatch.setattr(archives, "TIMEOUT", (20, 20))
    monkeypatch.setattr(archives, "MAX_UNPACKED", 10**6)
    monkeypatch.setattr(archives, "MAX_DOWNLOAD", 10**6)
    with Server() as web:

        def serve(*answers):
            if {silent, stalled} & set(answers):
                monkeypatch.setattr(archives, "TIMEOUT", (20, SHORT))
            web.asked.clear()
            web.answers = {f"/{i}": answer for i, answer in enumerate(answers)}
            sources = tuple((f"source {p[1:]}", web.address + p) for p in web.answers)
            monkeypatch.setattr(dataset1, "DATASET1", replace(TINY, sources=sources))
            return web

        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        yield serve
        web.shutdown()


SHORT = 1  # seconds, for servers that say nothing


def silent(handler):
    time.sleep(1.5 * SHORT)


def stalled(handler):
    send(handler, MINE[:300], len(MINE))
    time.sleep(1.5 * SHORT)


def reset(handler):
    send(handler, MINE[: len(MINE) // 2], len(MINE))
    now = struct.pack("ii", 1, 0)  # no goodbye: the connection is reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
    handler.connection.close()


def too_long(handler):
    send(handler, MINE, len(MINE) + 100)


def a_range(handler):
    """Answer with the second half, though no range was asked for."""
    assert handler.headers["Range"] is None
    half = len(MINE) // 2
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {half}-{len(MINE) - 1}/{len(MINE)}")
    handler.send_header("Content-Length", str(len(MINE) - half))
    handler.end_headers()
    handler.wfile.write(MINE[half:])


def redirect_loop(handler):
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def endless(handler):
    """Send bytes without an end, and without saying how many."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(10**5))


def inflating(handler):
    """Send little that the client has to inflate to much."""
    body = gzip.compress(bytes(2 * 10**6))
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def with_member(name, data=b"evil", **options):
    return zipped(tiny_files() | {name: data}, **options)


def with_link():
    file = io.BytesIO(MINE)
    link = zipfile.ZipInfo("dataset1/images_prepped_train/Z_01.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    return file.getvalue()


def lying(declared):
    """Return an archive whose largest member says that it is small."""
    name = f"{FOLDERS[0]}/A_01.png"
    files = tiny_files() | {name: bytes(10**7)}
    packed = bytearray(zipped(files, compression=zipfile.ZIP_DEFLATED))
    size = struct.pack("<I", 10**7)
    assert packed.count(size) == 2  # the local header and the directory
    return bytes(packed).replace(size, struct.pack("<I", declared))


HOSTILE = {
    "silent": (silent, "cannot be reached (ReadTimeout"),
    "stalled": (stalled, "the download broke off"),
    "reset": (reset, "the download broke off"),
    "shorter than announced": (too_long, "the download broke off"),
    "length in letters": (lambda h: send(h, MINE, "abc"), "makes no sense"),
    "two lengths": (lambda h: send(h, MINE, f"{len(MINE)}, {len(MINE)}"), "no sense"),
    "a range": (a_range, "damaged or cut"),
    "redirect loop": (redirect_loop, "the server answered 302"),
    "404": (lambda h: h.send_error(404), "the server answered 404"),
    "500": (lambda h: h.send_error(500), "the server answered 500"),
    "html": (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
    "empty": (b"", "not a zip archive"),
    "truncated": (MINE[: len(MINE) * 2 // 3], "damaged or cut"),
    "another layout": (zipped({"train/a.png": b""}), "layout not recognised"),
    "endless": (endless, "the server sends more than"),
    "inflating": (inflating, "the server sends more than"),
    "bomb": (
        with_member("a.png", bytes(10**7), compression=zipfile.ZIP_DEFLATED),
        "it unpacks to",
    ),
    "bomb that lies": (lying(100), "damaged or cut"),
    "bzip2 bomb": (
        with_member("a.png", bytes(10**5), compression=zipfile.ZIP_BZIP2),
        "another way than deflate",
    ),
    "lzma bomb": (
        with_member("a.png", bytes(10**5), compression=zipfile.ZIP_LZMA),
        "another way than deflate",
    ),
    "dots": (with_member("dataset1/../../evil.png"), "points outside"),
    "absolute": (with_member("/tmp/evil.png"), "points outside"),
    "drive": (with_member("C:\\evil.png"), "points outside"),
    "long name": (
        with_member(f"{FOLDERS[0]}/{'n' * 300}.png"),
        "a name of over 255 characters",
    ),
    "link": (with_link(), "is a symbolic link"),
}


@pytest.mark.parametrize(("bad", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_after_a_hostile_server_comes_the_next_source(
    server, tmp_path, capsys, bad, reason
):
    server(bad, THEIRS)
    assert_good(dataset1.fetch())
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("dataset1: not from source 0: ")
    assert reason in told[0]
    assert left_in(tmp_path / "data") == ["dataset1"]
    assert left_in(tmp_path) == ["data"]


@pytest.mark.parametrize(("bad", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_server_alone_is_one_clear_error(server, tmp_path, bad, reason):
    server(bad)
    with pytest.raises(dataset1.UnavailableError) as error:
        dataset1.fetch()
    assert reason in str(error.value)
    assert left_in(tmp_path / "data") == []
    assert left_in(tmp_path) == ["data"]
    server(MINE)
    assert_good(dataset1.fetch())


def test_other_bytes_are_taken_and_reported(server, monkeypatch, capsys):
    known = {k: dataset1.hashlib.sha256(v).hexdigest() for k, v in tiny_files().items()}
    monkeypatch.setattr(dataset1, "_checksums", lambda: known)
    other = tiny_files() | {f"{FOLDERS[0]}/A_01.png": png(scene(99)[0])}
    server(zipped(other))
    dataset1.fetch()
    assert "1 files with other bytes than SegNet's copy" in capsys.readouterr().out


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL = {
    "download": (archives._Limited, "write"),
    "unpack": (archives.shutil, "copyfileobj"),
    "folder": (archives.Path, "mkdir"),
    "marker": (archives.Path, "write_text"),
    "rename": (archives.Path, "rename"),
}


@pytest.mark.parametrize(("owner", "name"), FULL.values(), ids=FULL)
def test_a_full_disk_is_told_and_nothing_is_left(
    server, tmp_path, monkeypatch, owner, name
):
    server(MINE)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(DatasetError, match=r"No space left.*; free the disk"):
            dataset1.fetch()
    assert left_in(tmp_path / "data") == []
    assert_good(dataset1.fetch())


@POSIX
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_that_fetch_end_with_one_good_copy(server, tmp_path):
    def slowly(handler):
        time.sleep(0.2)
        send(handler, MINE)

    web = server(slowly)

    def work():
        assert_good(dataset1.fetch())

    other = multiprocessing.get_context("fork").Process(target=work)
    other.start()
    work()
    other.join(60)
    assert other.exitcode == 0
    assert web.asked == ["/0"]
    assert left_in(tmp_path / "data") == ["dataset1"]


# --- generated pictures and masks ---------------------------------------------


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


SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 24)
LETTERS = "abcXYZ019 äöüßéñ漢字Ωж'()#%&+=,.-_"
NAMES = (
    st.text(LETTERS, min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and not name.startswith("."))
)

CHANNELS = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


def drawn(
    mode: str, size: tuple[int, int], seed: int
) -> tuple[Image.Image, np.ndarray]:
    """Return a random picture of a mode, and the (H, W, 3) that it shows."""
    random = np.random.default_rng(seed)
    if mode == "1":
        bits = random.integers(0, 2, size).astype(bool)
        return Image.fromarray(bits), np.stack([bits * np.uint8(255)] * 3, -1)
    if mode == "I;16":
        deep = random.integers(0, 65536, size, dtype=np.uint16)
        deep.flat[0] = 65535  # or it would pass for 8 bits
        grey = np.floor(deep / 257 + 0.5).astype(np.uint8)
        return Image.fromarray(deep), np.stack([grey] * 3, -1)
    raw = random.integers(0, 256, (*size, CHANNELS[mode]), dtype=np.uint8)
    picture = Image.frombytes(mode, size[::-1], raw.tobytes())
    if mode == "P":
        colours = random.integers(0, 256, (256, 3), dtype=np.uint8)
        picture.putpalette(colours.tobytes())
        return picture, colours[raw[..., 0]]
    if mode == "CMYK":
        ink = raw.astype(float)
        shown = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
        return picture, shown.round().astype(np.uint8)
    return picture, raw[..., :3] if raw.shape[-1] > 2 else np.repeat(raw[..., :1], 3, 2)


def turned(shown: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a picture (H, W, 3) as the EXIF note of this number asks for."""
    mirrored = orientation in (2, 4, 5, 7)
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(shown[:, ::-1] if mirrored else shown, quarters)


@dataclass
class Picture:
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
PICTURES = st.builds(
    Picture, st.sampled_from(KINDS), st.tuples(SIDES, SIDES), st.integers(0, 8), SEEDS,
    NAMES,
)  # fmt: skip


def check_readable(case: Picture, folder: Path) -> None:
    """Any mode, size, format, orientation and name gives the pixels that it shows."""
    mode, kind = case.kind
    picture, shown = drawn(mode, case.size, case.seed)
    note = Image.Exif()
    noted = case.orientation and kind in ("png", "tiff", "webp")
    if noted:
        note[0x0112] = case.orientation
    path = folder / f"{case.name}.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    picture.save(path, exif=note, **options)
    read = evaluation.read_picture(path)
    wanted = turned(shown, case.orientation) if noted else shown
    assert read.dtype == torch.uint8
    assert read.is_contiguous()
    assert tuple(read.shape[1:]) == wanted.shape[:2]
    apart = np.abs(read.permute(1, 2, 0).numpy().astype(int) - wanted)
    assert apart.max() <= (1 if mode == "CMYK" else 0)


@dataclass
class Pair:
    """A picture and a mask, each right or wrong."""

    picture: str
    mask: str
    size: tuple[int, int]
    same_size: bool
    most: int
    orientation: int
    seed: int
    name: str


def often(right: list[str], wrong: list[str]) -> st.SearchStrategy:
    """Return right ones four times in five: both sides of a pair must be tried."""
    return st.integers(0, 4).flatmap(lambda i: st.sampled_from(right if i else wrong))


NO_PICTURE = ["L", "P", "LA", "RGBA", "1", "I;16", "RGB16", "CMYK", "JPEG", "empty"]
NO_MASK = ["LA", "RGB", "RGBA", "1", "I;16", "RGB16", "L4", "CMYK", "JPEG", "empty"]
PAIRS = st.builds(
    Pair, often(["RGB"], NO_PICTURE), often(["L", "P"], NO_MASK),
    st.tuples(SIDES, SIDES), st.integers(0, 5).map(bool), st.sampled_from(
        [0, 1, 10, 11, 11, 11, 12, 13, 255]
    ), st.sampled_from([0, 0, 0, 0, 1, 1, 3, 6, 8]), SEEDS, NAMES,
)  # fmt: skip


def png_4_bit(labels: np.ndarray) -> bytes:
    """Return a grey PNG of 4 bits, which Pillow reads but cannot write."""
    height, width = labels.shape
    even = np.pad(labels & 15, ((0, 0), (0, width % 2)))
    rows = even[:, ::2] << 4 | even[:, 1::2]
    packed = png_16_bit(1, 1)  # its signature and its way with chunks
    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = [packed[:8]]
    for kind, data in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        parts.append(struct.pack(">I", len(data)) + kind + data + crc)
    return b"".join(parts)


def file_of(mode: str, values: np.ndarray, orientation: int) -> bytes:
    """Return the bytes of a file called .png: 8-bit RGB or labels, or what is none."""
    if mode == "empty":
        return b""
    if mode == "RGB16":
        return png_16_bit(*values.shape[:2])
    grey = values if values.ndim == 2 else values[..., 0]
    if mode == "L4":
        return png_4_bit(grey)
    if mode in ("JPEG", "CMYK"):
        kind = "TIFF" if mode == "CMYK" else mode
        return png(Image.new("RGB" if mode == "JPEG" else mode, (8, 8)), kind)
    if mode in ("L", "P"):
        image = Image.frombytes(mode, grey.shape[::-1], grey.tobytes())
        if mode == "P":
            image.putpalette(bytes(range(256)) * 3)
    elif mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16))
    else:
        colours = values if values.ndim == 3 else np.stack([values] * 3, -1)
        image = Image.fromarray(colours).convert(mode)
    note = Image.Exif()
    if orientation:
        note[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "png", exif=note)
    return file.getvalue()


def check_pair(case: Pair, folder: Path) -> None:
    """A right pair gives the tensors that were written, a wrong one is named."""
    random = np.random.default_rng(case.seed)
    colours = random.integers(0, 256, (*case.size, 3), dtype=np.uint8)
    size = case.size if case.same_size else (case.size[0], case.size[1] + 1)
    labels = random.integers(0, case.most + 1, size, dtype=np.uint8)
    labels.flat[-1] = case.most
    for sub in FOLDERS[:2]:
        (folder / sub).mkdir()
    name = f"{case.name}.png"
    first, second = (folder / sub / name for sub in FOLDERS[:2])
    first.write_bytes(file_of(case.picture, colours, case.orientation))
    second.write_bytes(file_of(case.mask, labels, 0))
    right = (
        case.picture == "RGB"
        and case.mask in ("L", "P")
        and case.same_size
        and case.most <= 11
        and case.orientation <= 1
    )
    if right:
        image, mask = RoadScenes(folder, "train")[0]
        assert torch.equal(image, torch.from_numpy(colours).permute(2, 0, 1))
        assert torch.equal(mask, torch.from_numpy(labels))
        return
    with pytest.raises(DatasetError) as error:
        RoadScenes(folder, "train")
    assert f"/{name} " in str(error.value).replace(":", " ")
    assert "\n" not in str(error.value)


SETS = st.tuples(
    st.lists(NAMES, min_size=1, max_size=4, unique_by=str.casefold),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)


def check_partners(case, folder: Path) -> None:
    """A picture or a mask without its partner is named; whole sets are read."""
    names, lost, side, upper = case
    files = [f"{name}.{'PNG' if upper else 'png'}" for name in names]
    for file in files:
        for sub, array in zip(FOLDERS[:2], scene(0), strict=True):
            (folder / sub).mkdir(exist_ok=True)
            (folder / sub / file).write_bytes(png(array))
    if lost >= len(files) or side > 1:
        assert RoadScenes(folder, "train").names == sorted(files)
        return
    (folder / FOLDERS[side] / files[lost]).unlink()
    with pytest.raises(DatasetError) as error:
        RoadScenes(folder, "train")
    if len(files) > 1 or side:
        assert f"{FOLDERS[side]}/{files[lost]} is missing" in str(error.value)
    else:
        assert "holds no PNG pictures" in str(error.value)


DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=0, max_size=6),
    st.floats(0, 1) | st.just(1.0),
)


def damaged(data: bytes, damage) -> bytes:
    """Change some bytes, at these shares of the length, and cut the rest off."""
    spoilt = bytearray(data)
    changes, length = damage
    for where, value in changes:
        spoilt[min(int(where * len(spoilt)), len(spoilt) - 1)] = value
    return bytes(spoilt[: int(length * len(spoilt))])


def result(call, refusal: type[Exception]) -> tuple:
    """Return what a call returns, or None, and what it says if it refuses."""
    try:
        return call(), ""
    except refusal as error:
        return None, str(error)


BAD_NOTES = {
    "no TIFF": b"no note at all",
    "empty": b"Exif\0\0",
    "cut in its head": b"II*\0",
    "no list where it says": b"II*\0\xff\xff\0\0",
    "cut in its list": b"II*\0\x08\0\0\0\x05\0\x12\x01",
    "a turn without a number": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\0\0\0\0"
    + bytes(8),
    "a turn in words": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0" + bytes(4),
}
NOTES = st.tuples(
    st.sampled_from(["png", "jpeg", "webp"]),
    st.sampled_from(list(BAD_NOTES.values()))
    | st.binary(min_size=1, max_size=40)
    | st.binary(max_size=60).map(lambda rest: b"II*\0\x08\0\0\0" + rest),
)


def noted(kind: str, note: bytes) -> bytes:
    """Return the bytes of a picture with an EXIF note."""
    file = io.BytesIO()
    Image.fromarray(scene(3)[0]).save(file, kind, exif=note)
    return file.getvalue()


def check_noted(case, folder: Path) -> None:
    """Whatever its note, a picture is read, or one sentence names it."""
    kind, note = case
    path = folder / "noted picture.bin"
    path.write_bytes(noted(kind, note))
    for sub in FOLDERS[:2]:
        (folder / sub).mkdir()
    (folder / FOLDERS[0] / "A 1.png").write_bytes(noted("png", note))
    (folder / FOLDERS[1] / "A 1.png").write_bytes(png(scene(3)[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what it repairs
        _, told = result(lambda: evaluation.read_picture(path), ValueError)
        assert not told or told.startswith("noted picture.bin cannot be read")
        _, told = result(lambda: RoadScenes(folder, "train"), DatasetError)
        assert not told or "/A 1.png" in told


@pytest.mark.parametrize("note", BAD_NOTES.values(), ids=BAD_NOTES)
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_broken_note_is_no_other_error(tmp_path, kind, note):
    check_noted((kind, note), tmp_path)


def picture_files() -> dict[str, bytes]:
    picture = drawn("RGB", (9, 13), 1)[0]
    note = Image.Exif()
    note[0x0112], note[0x010E] = 6, "a note"
    files = {}
    for kind in ("png", "jpeg", "tiff", "webp", "gif", "bmp", "ppm", "ico"):
        file = io.BytesIO()
        options = {"exif": note} if kind in ("png", "jpeg", "tiff", "webp") else {}
        picture.save(file, kind, **options)
        files[kind] = file.getvalue()
    return files


FILES = picture_files()
SPOILT = st.tuples(st.sampled_from(sorted(FILES)), DAMAGE)


def check_spoilt_picture(case, folder: Path) -> None:
    """A spoilt file is still a picture, or one sentence that names it."""
    kind, damage = case
    path = folder / "spoilt picture.bin"
    path.write_bytes(damaged(FILES[kind], damage))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what it repairs
        picture, told = result(lambda: evaluation.read_picture(path), ValueError)
    if told:
        assert told.startswith("spoilt picture.bin cannot be read as a picture")
        assert "\n" not in told
    else:
        assert picture.dtype == torch.uint8


def check_spoilt_pair(case, folder: Path) -> None:
    """A spoilt mask or picture is named; what passes has kept its pixels."""
    side, damage = case
    written = scene(3)
    for number, sub in enumerate(FOLDERS[:2]):
        (folder / sub).mkdir()
        data = png(written[number])
        whole = number != side or (spoilt := damaged(data, damage)) == data
        (folder / sub / "A 1.png").write_bytes(data if whole else spoilt)
    pair, told = result(lambda: RoadScenes(folder, "train")[0], DatasetError)
    if told:
        assert "/A 1.png" in told
    else:
        assert torch.equal(pair[0], torch.from_numpy(written[0]).permute(2, 0, 1))
        assert torch.equal(pair[1], torch.from_numpy(written[1]))


ARCHIVES = {
    "stored": MINE,
    "deflated": zipped(tiny_files(), compression=zipfile.ZIP_DEFLATED),
    "SegNet's": THEIRS,
}


def check_spoilt_archive(case, folder: Path) -> None:
    """A spoilt archive gives all pictures, or one sentence."""
    kind, damage = case
    path = folder / "spoilt.zip"
    path.write_bytes(damaged(ARCHIVES[kind], damage))
    (folder / "new").mkdir()
    found, told = result(
        lambda: dataset1._install(path, TINY, folder / "new"), DatasetError
    )
    assert found is None or found.counts == TINY.counts
    assert "\n" not in told
    assert left_in(folder) == ["new", "spoilt.zip"]


def weight_files() -> dict[str, bytes]:
    state = {"features.0.weight": torch.ones(4, 3, 3, 3), "head.bias": torch.ones(3)}
    files = {}
    for kind, new in (("zip.pth", True), ("old.pth", False)):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=new)
        files[kind] = file.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder, "a"), metadata={"roadseg": '{"encoder": "x"}'})
        files["tensors.safetensors"] = Path(folder, "a").read_bytes()
    return files


WEIGHTS = weight_files()


def check_spoilt_weights(case, folder: Path) -> None:
    """Spoilt weights, and those of another network, are one sentence."""
    kind, damage = case
    path = folder / f"spoilt {kind}"
    path.write_bytes(damaged(WEIGHTS[kind], damage))
    doors = [unet.read_encoder_weights]
    doors += [unet.load] if kind.endswith(".safetensors") else []
    for door in doors:
        with pytest.raises(unet.WeightsError, match=f"^spoilt {kind}") as error:
            door(path)
        assert "\n" not in str(error.value)


def check_sizes(case, folder: Path) -> None:
    """A picture of any size gives a mask of that size, each label in its place."""
    height, width, fed, seed = case
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 11, (height, width), generator=random).byte()
    pictures = labels.expand(1, 3, -1, -1)
    mask = evaluation.predict(Paint(), pictures, (32, 64) if fed else None)[0]
    assert mask.shape == labels.shape
    assert mask.dtype == torch.uint8
    assert mask.max() < 11
    if not fed:
        assert torch.equal(mask, labels)


CHECKS = {
    "readable pictures": (check_readable, PICTURES, 250),
    "pairs": (check_pair, PAIRS, 300),
    "partners": (check_partners, SETS, 100),
    "spoilt pictures": (check_spoilt_picture, SPOILT, 300),
    "spoilt pairs": (check_spoilt_pair, st.tuples(st.integers(0, 1), DAMAGE), 150),
    "noted pictures": (check_noted, NOTES, 300),
    "spoilt archives": (
        check_spoilt_archive,
        st.tuples(st.sampled_from(sorted(ARCHIVES)), DAMAGE),
        150,
    ),
    "spoilt weights": (
        check_spoilt_weights,
        st.tuples(st.sampled_from(sorted(WEIGHTS)), DAMAGE),
        150,
    ),
    "sizes": (
        check_sizes,
        st.tuples(st.integers(1, 99), st.integers(1, 99), st.booleans(), SEEDS),
        100,
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_generated_cases(name):
    check, strategy, _ = CHECKS[name]
    assert generated(check, strategy, 20) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_many_generated_cases(name):
    check, strategy, count = CHECKS[name]
    assert generated(check, strategy, count) >= count


def test_there_are_enough_generated_cases():
    assert sum(count for _, _, count in CHECKS.values()) >= 1_000


# --- predictions of any size --------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return unet.UNet().eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (31, 33), (32, 32)])
@pytest.mark.parametrize("fed", [None, (32, 64)])
def test_the_network_takes_any_size(network, size, fed):
    mask = evaluation.predict(network, torch.zeros(1, 3, *size).byte(), fed)
    assert mask.shape == (1, *size)


def test_a_large_picture_is_fed_smaller_and_its_mask_is_not(monkeypatch):
    fed = []

    class Spy(Paint):
        def forward(self, x):
            fed.append(tuple(x.shape[-2:]))
            return super().forward(x)

    monkeypatch.setattr(evaluation, "MOST_FED", 64 * 64)
    for size, seen in (
        ((64, 64), (64, 64)),
        ((128, 128), (64, 64)),
        ((300, 100), (128, 64)),  # 110 x 36, padded
        ((1, 3000), (32, 128)),
    ):
        mask = evaluation.predict(Spy(), torch.full((1, 3, *size), 4).byte())
        assert mask.shape == (1, *size)
        assert (mask == 4).all()
        assert fed.pop() == seen


MEMORY = """
import resource, sys, torch
from roadseg import evaluation, unet
model = unet.UNet().eval()
evaluation.predict(model, torch.zeros(1, 3, 64, 64).byte())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = evaluation.read_picture(sys.argv[1])
size = tuple(map(int, sys.argv[2:])) or None
mask = evaluation.predict(model, picture[None], size)
assert mask.shape == (1, 3000, 4000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kB there")
@pytest.mark.parametrize("fed", [(), ("256", "352")], ids=["own size", "fed smaller"])
def test_the_largest_picture_stays_within_its_memory(tmp_path, fed):
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    small.resize((4000, 3000)).save(tmp_path / "large.jpg")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "large.jpg", *fed],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < evaluation.MEMORY


# --- warnings -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning])
def test_a_deprecation_of_a_call_of_ours_fails(kind):
    with pytest.raises(kind):
        warnings.warn_explicit("old", kind, "x.py", 1, module="roadseg.training")


# --- notebooks ----------------------------------------------------------------


def executed(path: Path, folder: Path, **more: str) -> str:
    """Run a notebook by the course's script, from another folder; return its text."""
    out = folder / "executed"
    done = subprocess.run(
        [sys.executable, path.parents[1] / "scripts" / "notebooks.py", "execute"]
        + [str(path), "--out", str(out), "--profile", "quick"],
        cwd=folder,
        env=environment(folder, PYTHONPATH="", **more),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells = notebooks.code_cells(notebooks.read(out / path.name))
    return "".join(o.get("text", "") for cell in cells for o in cell.outputs)


@pytest.fixture
def moved(tmp_path):
    """A copy of the course under a path with spaces and letters of other alphabets."""
    root = tmp_path / "Mein Kurs (Übung), 道路"
    for name in ("notebooks", "scripts"):
        shutil.copytree(
            ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.slow
def test_a_notebook_runs_under_any_path_and_from_anywhere(moved, tmp_path):
    first, *_ = notebooks.chapters()
    executed(moved / "notebooks" / first.name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "way"),
    [
        (1, "whole twice"),
        (1, "each cell twice"),
        (4, "whole twice"),
        (5, "whole twice"),
    ],
)
def test_a_notebook_runs_twice_in_one_kernel(moved, tmp_path, number, way):
    path = moved / "notebooks" / notebooks.chapters()[number - 1].name
    notebook = notebooks.read(path)
    cells = notebook.cells
    again = [notebooks.nbformat.from_dict({**cell}) for cell in cells]
    for cell in again:
        cell.id = f"again-{cell.id}"[:64]
    if way == "whole twice":
        notebook.cells = cells + again
    else:
        notebook.cells = [c for pair in zip(cells, again, strict=True) for c in pair]
    notebooks.nbformat.write(notebook, path)
    executed(path, tmp_path)


@pytest.mark.slow
def test_chapter_5_finds_what_chapter_4_trained(moved, tmp_path):
    fourth, fifth = notebooks.chapters()[3:5]
    assert "training 4 epochs" in executed(moved / "notebooks" / fourth.name, tmp_path)
    weights = tmp_path / "build" / "quick" / "quick" / "unet.safetensors"
    trained = weights.read_bytes()
    assert "training 4" not in executed(moved / "notebooks" / fifth.name, tmp_path)
    assert weights.read_bytes() == trained
