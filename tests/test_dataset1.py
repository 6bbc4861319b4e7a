"""dataset1 with archives of five tiny pictures, and downloads that stay in here."""

import http.server
import io
import shutil
import struct
import threading
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from roadseg import archives, dataset1, runtime
from roadseg.dataset1 import DatasetError, RoadScenes
from test_archives import left_in, written, zipped

SIZE = (6, 8)
TINY = replace(dataset1.DATASET1, counts={"train": 3, "test": 2}, size=SIZE)
FOLDERS = tuple(dataset1._own_layout(TINY))
NAMES = {
    "train": ["A_01.png", "A_02.png", "B_01.png"],
    "test": ["B_07.png", "B_08.png"],
}


def png(array, kind="png") -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png_16_bit(height, width) -> bytes:
    """Return a black picture of 16-bit RGB, which Pillow reads but cannot write."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + 6 * width)))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def scene(number, size=SIZE):
    random = np.random.default_rng(number)
    picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    return picture, random.integers(0, 12, size, dtype=np.uint8)


def tiny_files(folders=FOLDERS, top=""):
    """Return {path: bytes} of five pictures and their masks."""
    files = {}
    for split, pictures, masks in (
        ("train", *folders[:2]),
        ("test", *folders[2:]),
    ):
        for number, name in enumerate(NAMES[split]):
            picture, mask = scene(number)
            files[f"{top}{pictures}/{name}"] = png(picture)
            files[f"{top}{masks}/{name}"] = png(mask)
    return files


SEGNET_FILES = tiny_files(("train", "trainannot", "val", "valannot"), "Repo-1/CamVid/")
EXTRA = [f"{sub}/C_01.png" for sub in FOLDERS[:2]]
ONE_MORE = tiny_files() | dict(zip(EXTRA, map(png, scene(7)), strict=True))
BAD_MASK = {EXTRA[0]: png(scene(7)[0]), EXTRA[1]: png(np.full(SIZE, 12, "u1"))}
MINE, THEIRS = zipped(tiny_files(top="dataset1/")), zipped(SEGNET_FILES)


@pytest.fixture(autouse=True)
def small_world(monkeypatch, tmp_path):
    for name in ("ROADSEG_DATASET1", "ROADSEG_CAMVID_TEST", "ROADSEG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ROADSEG_PROGRESS", "0")
    monkeypatch.setattr(dataset1, "DATASET1", replace(TINY, sources=()))


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def web(monkeypatch):
    """web(answer, ...) makes these the answers of the sources, in order.

    An answer is the bytes of a file, or the reason why there is none. `web.asked`
    lists the sources that were asked for.
    """

    def download(url, path):
        sources.asked.append(int(url))
        answer = sources.answers[int(url)]
        if isinstance(answer, str):
            raise DatasetError(answer)
        path.write_bytes(answer)

    def sources(*answers):
        sources.answers, sources.asked = answers, []
        listed = tuple((f"source {i}", str(i)) for i in range(len(answers)))
        monkeypatch.setattr(dataset1, "DATASET1", replace(TINY, sources=listed))

    monkeypatch.setattr(archives, "download", download)
    return sources


def assert_good(folder: Path):
    for name, content in tiny_files().items():
        assert (folder / name).read_bytes() == content


# ---- Local copies -----------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        tiny_files(),
        tiny_files(top="dataset1/"),
        tiny_files(top="deep/er/"),
        tiny_files(top="dataset1/")
        | {f"__MACOSX/dataset1/{sub}/._A_01.png": b"x" for sub in FOLDERS},
        SEGNET_FILES,
    ],
    ids=["bare", "dataset1", "deep", "macos", "segnet"],
)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_any_local_layout_will_do(monkeypatch, tmp_path, kind, files):
    path = tmp_path / "copy"
    if kind == "zip":
        path.write_bytes(zipped(files))
    else:
        written(files, path)
    monkeypatch.setenv("ROADSEG_DATASET1", str(path))
    folder = dataset1.fetch()
    assert_good(folder)
    assert sorted(p.name for p in (folder / FOLDERS[0]).iterdir()) == NAMES["train"]


def test_a_local_folder_is_used_where_it_lies(monkeypatch, tmp_path, data):
    folder = written(tiny_files(), tmp_path / "mine" / "dataset1")
    for named in (folder, folder.parent):
        monkeypatch.setenv("ROADSEG_DATASET1", str(named))
        assert dataset1.fetch() == folder
    assert left_in(data) == []
    assert sorted(p.name for p in folder.iterdir()) == sorted(FOLDERS)


def test_a_folder_unpacked_by_hand_into_the_data_folder_is_used(data, web):
    web(MINE)
    written(tiny_files(), data / "dataset1")
    assert_good(dataset1.fetch())
    (data / "dataset1" / FOLDERS[1] / "A_02.png").unlink()
    with pytest.raises(DatasetError, match=r"images_prepped_train/A_02.png"):
        dataset1.fetch()
    assert web.asked == []
    assert (data / "dataset1" / FOLDERS[0] / "A_02.png").exists()


def test_a_zip_file_never_replaces_what_was_not_fetched(monkeypatch, tmp_path, data):
    mine = written({"notes.txt": b"precious"}, data / "dataset1")
    (tmp_path / "a.zip").write_bytes(MINE)
    monkeypatch.setenv("ROADSEG_DATASET1", str(tmp_path / "a.zip"))
    with pytest.raises(DatasetError, match="not made by the course: rename it"):
        dataset1.fetch()
    assert (mine / "notes.txt").read_bytes() == b"precious"


def test_another_local_file_is_read_anew_and_the_same_one_is_not(
    monkeypatch, tmp_path, capsys
):
    path = tmp_path / "a.zip"
    path.write_bytes(MINE)
    monkeypatch.setenv("ROADSEG_DATASET1", str(path))
    dataset1.fetch()
    assert "3 train and 2 test pictures" in capsys.readouterr().out
    dataset1.fetch()
    assert capsys.readouterr().out == ""
    other = tiny_files()
    other[f"{FOLDERS[0]}/A_01.png"] = png(scene(99)[0])
    path.write_bytes(zipped(other))
    folder = dataset1.fetch()
    assert (folder / FOLDERS[0] / "A_01.png").read_bytes() == png(scene(99)[0])


def test_a_wrong_local_path_is_an_error_and_nothing_else_is_tried(
    monkeypatch, tmp_path, data, web
):
    web(MINE)
    for content, reason in (
        (None, "there is no such file"),
        (b"<!DOCTYPE html>", "a web page"),
        (MINE[: len(MINE) // 2], "cut"),
        (zipped({"a/b.png": b""}), "layout not recognised"),
        (zipped(tiny_files() | {"../evil.png": b""}), "unsafe archive: '../evil.png'"),
    ):
        path = tmp_path / "given.zip"
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setenv("ROADSEG_DATASET1", str(path))
        for call in (dataset1.fetch, lambda: dataset1.load(runtime.PROFILES["cpu"])):
            with pytest.raises(DatasetError, match=reason) as error:
                call()
            assert str(error.value).startswith(f"ROADSEG_DATASET1={path}: ")
    assert web.asked == []
    assert left_in(data) == []


def test_dataset1_has_its_own_numbers_and_sizes(monkeypatch, tmp_path):
    fewer = tiny_files()
    for sub in FOLDERS[:2]:
        del fewer[f"{sub}/A_02.png"]
    written(fewer, tmp_path / "fewer")
    monkeypatch.setenv("ROADSEG_DATASET1", str(tmp_path / "fewer"))
    with pytest.raises(DatasetError, match="3 pictures in its train split, .* 2; read"):
        dataset1.fetch()
    monkeypatch.setattr(dataset1, "DATASET1", replace(TINY, size=(360, 480)))
    (tmp_path / "a.zip").write_bytes(MINE)
    monkeypatch.setenv("ROADSEG_DATASET1", str(tmp_path / "a.zip"))
    with pytest.raises(DatasetError, match=r"\(360, 480\).* these \(6, 8\)"):
        dataset1.fetch()


def test_the_official_test_set(monkeypatch, tmp_path, data):
    wanted = replace(dataset1.OFFICIAL_TEST, counts={"official": 3}, size=SIZE)
    monkeypatch.setattr(dataset1, "OFFICIAL_TEST", wanted)
    files = tiny_files(("test", "testannot", "val", "valannot"))
    monkeypatch.setenv("ROADSEG_CAMVID_TEST", str(written(files, tmp_path / "CamVid")))
    folder = dataset1.fetch(official_test=True)
    assert folder == data / "camvid_test"
    scenes = RoadScenes(folder, "official", origin="CamVid")
    assert scenes.origin == "CamVid, 3 official test pictures, 6 x 8"
    assert scenes.names == NAMES["train"]


# ---- Downloads --------------------------------------------------------------------


def test_a_server_is_asked(monkeypatch, tmp_path, data):
    (tmp_path / "a.zip").write_bytes(MINE)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        sources = (("source 0", address + "b.zip"), ("source 1", address + "a.zip"))
        monkeypatch.setattr(dataset1, "DATASET1", replace(TINY, sources=sources))
        assert_good(dataset1.fetch())
        server.shutdown()
    assert left_in(data) == ["dataset1"]


def test_a_download_is_kept(web, data, capsys):
    web(MINE)
    assert dataset1.fetch() == data / "dataset1"
    assert_good(data / "dataset1")
    assert "from source 0" in capsys.readouterr().out
    assert_good(dataset1.fetch())
    assert web.asked == [0]
    assert left_in(data) == ["dataset1"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("the server answered 404", "the server answered 404"),
        (b"<html>Sign in</html>", "a web page, not a zip"),
        (MINE[:-40], "damaged or cut"),
        (zipped({"readme.txt": b""}), "layout not recognised"),
        (zipped(ONE_MORE), "3 pictures in its train split"),
        (zipped(tiny_files() | BAD_MASK), "C_01.png holds the label 12"),
    ],
    ids=["404", "html", "cut", "layout", "count", "label"],
)
def test_after_a_bad_source_the_next_is_used(web, data, capsys, bad, reason):
    web(bad, THEIRS)
    assert_good(dataset1.fetch())
    assert web.asked == [0, 1]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("dataset1: not from source 0: ")
    assert reason in told[0]
    assert told[1].endswith("from source 1")
    assert left_in(data) == ["dataset1"]


def test_if_all_sources_fail_each_reason_is_told(web, data):
    web("the server answered 404", b"<html>")
    with pytest.raises(dataset1.UnavailableError) as error:
        dataset1.fetch()
    text = str(error.value)
    assert "source 0: the server answered 404" in text
    assert "source 1: a web page" in text
    assert "set ROADSEG_DATASET1" in text
    assert "research and teaching" in text
    assert left_in(data) == []
    web(MINE)
    assert_good(dataset1.fetch())


def test_an_interrupted_call_leaves_nothing(web, data, monkeypatch):
    web(MINE)
    copied = []

    def interrupted(source, target):
        copied.append(target.write(source.read()))
        if len(copied) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dataset1.fetch()
    assert left_in(data) == []
    assert_good(dataset1.fetch())


@pytest.mark.parametrize("lost", [f"{FOLDERS[0]}/A_01.png", archives.MARKER])
def test_a_fetched_folder_that_lost_a_file_is_not_taken_for_whole(web, data, lost):
    web(MINE)
    dataset1.fetch()
    (data / "dataset1" / lost).unlink()
    assert_good(dataset1.fetch())
    assert web.asked == ([0] if lost == archives.MARKER else [0, 0])


def test_a_data_folder_that_cannot_be_written_is_told(web, data):
    web(MINE)
    data.write_text("a file where the folder should be")
    with pytest.raises(DatasetError, match="cannot put dataset1 into .*ROADSEG_DATA"):
        dataset1.fetch()


# ---- Verify and read --------------------------------------------------------------

BAD_FILES = {
    "mask missing": (1, None, "images_prepped_train/A_02.png has no partner"),
    "picture missing": (0, None, "annotations_prepped_train/A_02.png has no partner"),
    "wrong size": (1, png(scene(1, (6, 9))[1]), "A_02.png measures 6 x 9.* 6 x 8"),
    "not a PNG": (0, b"not a picture", "images.*A_02.png is not a readable PNG"),
    "cut PNG": (1, png(scene(1)[1])[:-20], "annotations.*A_02.png is not a readable"),
    "JPEG": (0, png(scene(1)[0], "jpeg"), "A_02.png is not a readable PNG"),
    "label 12": (1, png(np.full(SIZE, 12, "u1")), "A_02.png holds the label 12"),
    "colour mask": (1, png(scene(1)[0]), "annotations.*A_02.png has mode RGB"),
    "grey picture": (0, png(scene(1)[1]), "images.*A_02.png has mode L"),
    "alpha": (0, png(Image.new("RGBA", SIZE[::-1])), "A_02.png has mode RGBA"),
    "16-bit picture": (0, png_16_bit(*SIZE), "A_02.png has mode RGB, 16 bits"),
    "16-bit mask": (1, png(np.zeros(SIZE, "u2")), "A_02.png has mode I;16, 16 bits"),
}


@pytest.mark.parametrize(("kind", "content", "told"), BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("read", [dataset1.verify, lambda f: RoadScenes(f, "train")])
def test_a_bad_file_is_named(tmp_path, read, kind, content, told):
    folder = written(tiny_files(), tmp_path / "mine")
    bad = folder / FOLDERS[kind] / "A_02.png"
    bad.unlink() if content is None else bad.write_bytes(content)
    with pytest.raises(DatasetError, match=told) as error:
        read(folder)
    assert str(error.value).startswith(f"{folder}: ")
    assert len(str(error.value).splitlines()) == 1


def test_a_single_flipped_bit_is_found(tmp_path):
    folder = written(tiny_files(), tmp_path)
    path = folder / FOLDERS[1] / "A_01.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"annotations_prepped_train/A_01\.png"):
        RoadScenes(folder, "train")


def test_a_damaged_fetched_folder_says_how_to_mend_it(web, data):
    web(MINE)
    (dataset1.fetch() / FOLDERS[2] / "B_07.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="delete the whole folder"):
        dataset1.load(runtime.PROFILES["cpu"])


def test_missing_and_empty_folders_are_told(tmp_path):
    with pytest.raises(DatasetError, match="no folder images_prepped_train"):
        RoadScenes(tmp_path, "train")
    for sub in FOLDERS[:2]:
        (tmp_path / sub).mkdir()
    with pytest.raises(DatasetError, match="images_prepped_train holds no PNG"):
        RoadScenes(tmp_path, "train")


def test_verify_reports_numbers_sizes_and_checksums(tmp_path, monkeypatch):
    folder = written(tiny_files(), tmp_path / "mine")
    found = dataset1.verify(folder)
    assert found.counts == {"train": 3, "test": 2}
    assert found.sizes == (SIZE,)
    assert found.checksums_match is None

    sums = [f"{dataset1._sha256(folder / f)}  {f}\n" for f in tiny_files()]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset1.sha256").write_text("".join(sums))
    monkeypatch.setattr(runtime, "checkout", lambda: tmp_path)
    found = dataset1.verify(folder)
    assert found.checksums_match is True
    assert found.summary == (
        "3 train and 2 test pictures with masks, 6 x 8, bytes as in SegNet's copy"
    )
    (folder / FOLDERS[0] / "A_01.png").write_bytes(png(scene(99)[0]))
    found = dataset1.verify(folder)
    assert found.checksums_match is False
    assert found.changed == (f"{FOLDERS[0]}/A_01.png",)
    assert "1 file" in found.summary


def test_the_checksums_of_dataset1_cover_all_its_files():
    root = Path(__file__).parents[1]
    lines = (root / "data" / "dataset1.sha256").read_text().splitlines()
    names = [line.split("  ")[1] for line in lines]
    counts = {s: sum(n.split("/")[0] == s for n in names) for s in FOLDERS}
    assert list(counts.values()) == [367, 367, 101, 101]
    assert all(len(line.split("  ")[0]) == 64 for line in lines)


# ---- RoadScenes -------------------------------------------------------------------


def test_scenes_hold_the_pixels_that_were_written(tmp_path):
    wide = (5, 20)
    scenes = [
        ("b_2.png", *scene(2, wide)),
        ("a_1.png", *scene(1)),
        ("c.png", *scene(3)),
    ]
    dataset1.write(tmp_path, "mine", scenes)
    read = RoadScenes(tmp_path, "mine")
    assert read.names == ["a_1.png", "b_2.png", "c.png"]
    assert read.drives == ["a", "b", ""]
    for i, number in enumerate((1, 2, 3)):
        picture, mask = scene(number, wide if number == 2 else SIZE)
        image, labels = read[i]
        assert image.dtype == labels.dtype == torch.uint8
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture)
        assert np.array_equal(labels.numpy(), mask)
    assert read.real
    assert read.origin.endswith("3 mine pictures, 5 x 20 or 6 x 8")


def test_a_palette_mask_is_read_as_indices(tmp_path):
    folder = written(tiny_files(), tmp_path)
    labels = scene(0)[1]
    image = Image.fromarray(labels)
    image.putpalette([255 - i for i in range(256) for _ in "rgb"])
    assert image.mode == "P"
    (folder / FOLDERS[1] / "A_01.png").write_bytes(png(image))
    assert np.array_equal(RoadScenes(folder, "train").masks[0].numpy(), labels)


@pytest.mark.parametrize(
    ("name", "picture", "mask", "told"),
    [
        ("../a.png", *scene(0), "name"),
        ("a.jpg", *scene(0), "name"),
        ("a.png", scene(0)[0] / 255, scene(0)[1], "uint8"),
        ("a.png", scene(0)[0], scene(0, (6, 9))[1], "shapes"),
        ("a.png", scene(0)[0], np.full(SIZE, 12, "u1"), "label 12"),
    ],
)
def test_write_refuses_what_cannot_be_read_back(tmp_path, name, picture, mask, told):
    with pytest.raises(DatasetError, match=told):
        dataset1.write(tmp_path / "out", "train", [(name, picture, mask)])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_subset_and_with_transform_share_the_pictures(tmp_path):
    whole = RoadScenes(written(tiny_files(), tmp_path), "train", origin="tiny")
    part = whole.subset(np.array([2, 0]))
    assert part.names == ["B_01.png", "A_01.png"]
    assert part.drives == ["B", "A"]
    assert part.images[1].data_ptr() == whole.images[0].data_ptr()
    assert (part.origin, whole.origin) == (
        "tiny, 2 training pictures, 6 x 8",
        "tiny, 3 training pictures, 6 x 8",
    )
    flipped = part.with_transform(v2.RandomHorizontalFlip(p=1.0))
    assert torch.equal(flipped[0][1], whole[2][1].flip(-1))
    assert torch.equal(flipped[0][0], whole[2][0].flip(-1))
    assert torch.equal(part[0][1], whole[2][1])


def test_resizing_leaves_only_labels_that_were_there(tmp_path):
    labels = np.zeros((24, 36), np.uint8)
    labels[:, 12:] = 10  # blending 0 and 10 would invent 1 to 9
    dataset1.write(tmp_path, "train", [("a.png", scene(0, (24, 36))[0], labels)])
    scenes = RoadScenes(tmp_path, "train", v2.Resize((17, 23), antialias=True))
    image, mask = scenes[0]
    assert image.shape == (3, 17, 23)
    assert mask.shape == (17, 23)
    assert set(mask.unique().tolist()) == {0, 10}
    bilinear = v2.functional.resize(torch.as_tensor(labels)[None], (17, 23))
    assert set(bilinear.unique().tolist()) > {0, 10}


# ---- load -------------------------------------------------------------------------

SMALL = {"drawn_size": (32, 48), "drawn_counts": (3, 2)}


def test_load_reads_dataset1(web):
    web(MINE)
    train, test = dataset1.load(runtime.PROFILES["cpu"])
    assert train.origin == "dataset1 (CamVid), 3 training pictures, 6 x 8"
    assert (test.names, test.real) == (NAMES["test"], True)


def test_without_dataset1_drawn_scenes_stand_in_loudly(web, capsys):
    web("the server answered 404")
    train, test = dataset1.load(replace(runtime.PROFILES["gpu"], **SMALL))
    told = capsys.readouterr().out
    assert "!!!!" in told
    assert "CANNOT BE HAD" in told
    assert "source 0: the server answered 404" in told
    assert "ROADSEG_DATASET1" in told
    assert not train.real
    assert not test.real
    assert train.origin == ("drawn scenes, NOT dataset1: 3 training pictures, 32 x 48")
    assert len(test) == 2


def test_quick_draws_without_asking_and_only_once(web, data, capsys, monkeypatch):
    web(MINE)
    quick = replace(runtime.PROFILES["quick"], **SMALL)
    train, test = dataset1.load(quick)
    monkeypatch.setattr(dataset1.synthetic, "draw_scenes", None)  # not called again
    again, _ = dataset1.load(quick)
    assert all(map(torch.equal, train.masks, again.masks))
    assert not any(torch.equal(a, b) for a in test.images for b in train.images)
    assert web.asked == []
    assert capsys.readouterr().out == ""
    assert len(left_in(data)) == 1


def test_another_drawing_program_draws_anew(tmp_path, monkeypatch):
    quick = replace(runtime.PROFILES["quick"], drawn_size=(32, 48), drawn_counts=(1, 1))
    first, _ = dataset1.load(quick)
    program = tmp_path / "synthetic.py"
    shutil.copy(dataset1.synthetic.__file__, program)
    program.write_text(program.read_text() + "\n# changed\n")
    monkeypatch.setattr(dataset1.synthetic, "__file__", str(program))
    second, _ = dataset1.load(quick)
    assert second.folder != first.folder


def test_load_official_reads_a_local_copy_or_says_what_is_missing(
    monkeypatch, tmp_path, capsys
):
    wanted = replace(
        dataset1.OFFICIAL_TEST,
        counts={"official": 3},
        size=SIZE,
        sources=(("nowhere", "http://127.0.0.1:9/"),),
    )
    monkeypatch.setattr(dataset1, "OFFICIAL_TEST", wanted)
    assert dataset1.load_official(runtime.PROFILES["cpu"]) is None
    told = capsys.readouterr().out
    assert "nowhere: cannot be reached (ConnectionError" in told
    assert "ROADSEG_CAMVID_TEST" in told
    files = tiny_files(("test", "testannot", "val", "valannot"))
    monkeypatch.setenv("ROADSEG_CAMVID_TEST", str(written(files, tmp_path / "CamVid")))
    scenes = dataset1.load_official(runtime.PROFILES["cpu"])
    assert scenes.origin == "CamVid, 3 official test pictures, 6 x 8"
    monkeypatch.setenv("ROADSEG_CAMVID_TEST", str(tmp_path / "absent"))
    with pytest.raises(DatasetError, match="ROADSEG_CAMVID_TEST=.*no such file"):
        dataset1.load_official(runtime.PROFILES["cpu"])


def test_load_official_under_quick_draws_streets_of_its_own():
    quick = replace(runtime.PROFILES["quick"], **SMALL)
    official = dataset1.load_official(quick)
    assert (len(official), official.real) == (2, False)
    others = [image for scenes in dataset1.load(quick) for image in scenes.images]
    assert not any(torch.equal(a, b) for a in official.images for b in others)


# ---- Splits -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drives")
    frames = [("B", 30), ("A", 45), ("C", 7)]
    names = [f"{drive}_{n:03}.png" for drive, count in frames for n in range(count)]
    dataset1.write(folder, "train", ((name, *scene(0)) for name in names))
    return RoadScenes(folder, "train")


def test_split_by_drive_holds_out_all_of_it_and_no_more(drives):
    for drive, count in (("A", 45), ("B", 30), ("C", 7)):
        rest, held_out = dataset1.split_by_drive(drives, drive)
        assert set(held_out.drives) == {drive}
        assert len(held_out) == count
        assert drive not in rest.drives
        assert sorted(rest.names + held_out.names) == drives.names


@pytest.mark.parametrize("drive", ["D", "A"])
def test_split_by_drive_without_that_drive_or_another(drives, drive):
    only_a = drives.subset(range(5))
    with pytest.raises(ValueError, match=f"cannot hold out drive '{drive}' of A"):
        dataset1.split_by_drive(only_a, drive)


@pytest.mark.parametrize("seed", range(4))
def test_split_by_block_keeps_neighbours_together(drives, seed):
    rest, held_out = dataset1.split_by_block(drives, 0.25, seed)
    assert sorted(rest.names + held_out.names) == drives.names
    assert 0.1 < len(held_out) / len(drives) < 0.4
    # Borders between the sides are few: two a block at most, not two a frame.
    inside = [name in held_out.names for name in drives.names]
    borders = sum(a != b for a, b in zip(inside, inside[1:], strict=False))
    assert borders <= len(held_out) / 3
    again = dataset1.split_by_block(drives, 0.25, seed)[1]
    assert again.names == held_out.names


def test_split_by_block_of_a_single_frame_fails(drives):
    with pytest.raises(ValueError, match="n_samples=1"):
        dataset1.split_by_block(drives.subset([0]))
