"""dataset1 with archives of five tiny images, and downloads that stay in here."""

import hashlib
import http.server
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from roadseg import dataset1, files, runtime, synthetic
from roadseg.files import DatasetError
from roadseg.scenes import RoadScenes
from samples import (
    FOLDERS,
    NAMES,
    SIZE,
    left_in,
    png,
    scene,
    tiny_files,
    write_files,
    zip_bytes,
)

TINY = replace(dataset1.DATASET1, counts={"train": 3, "test": 2}, size=SIZE)
SEGNET_FILES = tiny_files(("train", "trainannot", "val", "valannot"), "Repo-1/CamVid/")
EXTRA = [f"{sub}/C_01.png" for sub in FOLDERS[:2]]
ONE_MORE = tiny_files() | dict(zip(EXTRA, map(png, scene(7)), strict=True))
BAD_MASK = {EXTRA[0]: png(scene(7)[0]), EXTRA[1]: png(np.full(SIZE, 12, "u1"))}
MINE, THEIRS = zip_bytes(tiny_files(top="dataset1/")), zip_bytes(SEGNET_FILES)


@pytest.fixture(autouse=True)
def small_world(monkeypatch, tmp_path):
    for name in ("ROADSEG_DATASET1", "ROADSEG_CAMVID_TEST", "ROADSEG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ROADSEG_PROGRESS", "0")
    monkeypatch.setattr(dataset1, "DATASET1", replace(TINY, sources=()))
    runtime.reset()


def set_variable(monkeypatch, name: str, path: Path):
    monkeypatch.setenv(name, str(path))
    runtime.reset()  # or the value of the first call would stay


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

    monkeypatch.setattr(files, "download", download)
    return sources


def assert_good(folder: Path):
    for name, content in tiny_files().items():
        assert (folder / name).read_bytes() == content


# ---- Local copies -----------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
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
def test_any_local_layout_will_do(monkeypatch, tmp_path, kind, content):
    path = tmp_path / "copy"
    if kind == "zip":
        path.write_bytes(zip_bytes(content))
    else:
        write_files(content, path)
    set_variable(monkeypatch, "ROADSEG_DATASET1", path)
    folder = dataset1.fetch()
    assert_good(folder)
    assert sorted(p.name for p in (folder / FOLDERS[0]).iterdir()) == NAMES["train"]


def test_a_local_folder_is_used_where_it_lies(monkeypatch, tmp_path, data):
    folder = write_files(tiny_files(), tmp_path / "mine" / "dataset1")
    for named in (folder, folder.parent):
        set_variable(monkeypatch, "ROADSEG_DATASET1", named)
        assert dataset1.fetch() == folder
    assert left_in(data) == []
    assert sorted(p.name for p in folder.iterdir()) == sorted(FOLDERS)


def test_a_folder_unpacked_by_hand_into_the_data_folder_is_used(data, web):
    web(MINE)
    write_files(tiny_files(), data / "dataset1")
    assert_good(dataset1.fetch())
    (data / "dataset1" / FOLDERS[1] / "A_02.png").unlink()
    with pytest.raises(DatasetError, match=r"images_prepped_train/A_02.png"):
        dataset1.fetch()
    assert web.asked == []
    assert (data / "dataset1" / FOLDERS[0] / "A_02.png").exists()


def test_a_zip_file_never_replaces_what_was_not_fetched(monkeypatch, tmp_path, data):
    mine = write_files({"notes.txt": b"precious"}, data / "dataset1")
    (tmp_path / "a.zip").write_bytes(MINE)
    set_variable(monkeypatch, "ROADSEG_DATASET1", tmp_path / "a.zip")
    with pytest.raises(DatasetError, match="not created by the course: rename it"):
        dataset1.fetch()
    assert (mine / "notes.txt").read_bytes() == b"precious"


def test_another_local_file_is_read_anew_and_the_same_one_is_not(
    monkeypatch, tmp_path, capsys
):
    path = tmp_path / "a.zip"
    path.write_bytes(MINE)
    set_variable(monkeypatch, "ROADSEG_DATASET1", path)
    dataset1.fetch()
    assert "3 train and 2 test images" in capsys.readouterr().out
    dataset1.fetch()
    assert capsys.readouterr().out == ""
    other = tiny_files()
    other[f"{FOLDERS[0]}/A_01.png"] = png(scene(99)[0])
    path.write_bytes(zip_bytes(other))
    folder = dataset1.fetch()
    assert (folder / FOLDERS[0] / "A_01.png").read_bytes() == png(scene(99)[0])


def test_a_wrong_local_path_is_an_error_and_nothing_else_is_tried(
    monkeypatch, tmp_path, data, web
):
    web(MINE)
    for content, reason in (
        (None, "there is no such file"),
        (b"<!DOCTYPE html>", "a web page"),
        (MINE[: len(MINE) // 2], "truncated"),
        (zip_bytes({"a/b.png": b""}), "layout not recognized"),
        (
            zip_bytes(tiny_files() | {"../evil.png": b""}),
            "unsafe archive: '../evil.png'",
        ),
    ):
        path = tmp_path / "given.zip"
        if content is not None:
            path.write_bytes(content)
        set_variable(monkeypatch, "ROADSEG_DATASET1", path)
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
    write_files(fewer, tmp_path / "fewer")
    set_variable(monkeypatch, "ROADSEG_DATASET1", tmp_path / "fewer")
    with pytest.raises(DatasetError, match="3 images in its train split, .* 2; read"):
        dataset1.fetch()
    monkeypatch.setattr(dataset1, "DATASET1", replace(TINY, size=(360, 480)))
    (tmp_path / "a.zip").write_bytes(MINE)
    set_variable(monkeypatch, "ROADSEG_DATASET1", tmp_path / "a.zip")
    with pytest.raises(DatasetError, match=r"\(360, 480\).* these \(6, 8\)"):
        dataset1.fetch()


def test_the_official_test_set(monkeypatch, tmp_path, data):
    wanted = replace(dataset1.OFFICIAL_TEST, counts={"official": 3}, size=SIZE)
    monkeypatch.setattr(dataset1, "OFFICIAL_TEST", wanted)
    content = tiny_files(("test", "testannot", "val", "valannot"))
    set_variable(
        monkeypatch, "ROADSEG_CAMVID_TEST", write_files(content, tmp_path / "CamVid")
    )
    folder = dataset1.fetch(official_test=True)
    assert folder == data / "camvid_test"
    scenes = RoadScenes(folder, "official", description="CamVid")
    assert scenes.description == "CamVid, 3 official test images, 6 x 8"
    assert scenes.filenames == NAMES["train"]


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
        (MINE[:-40], "damaged or truncated"),
        (zip_bytes({"readme.txt": b""}), "layout not recognized"),
        (zip_bytes(ONE_MORE), "3 images in its train split"),
        (zip_bytes(tiny_files() | BAD_MASK), "C_01.png holds the label 12"),
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
        patch.setattr(files.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dataset1.fetch()
    assert left_in(data) == []
    assert_good(dataset1.fetch())


@pytest.mark.parametrize("lost", [f"{FOLDERS[0]}/A_01.png", files.MANIFEST])
def test_a_fetched_folder_that_lost_a_file_is_not_taken_for_whole(web, data, lost):
    web(MINE)
    dataset1.fetch()
    (data / "dataset1" / lost).unlink()
    assert_good(dataset1.fetch())
    assert web.asked == ([0] if lost == files.MANIFEST else [0, 0])


def test_a_data_folder_that_cannot_be_written_is_told(web, data):
    web(MINE)
    data.write_text("a file where the folder should be")
    with pytest.raises(DatasetError, match="cannot write dataset1 to .*ROADSEG_DATA"):
        dataset1.fetch()


def test_a_damaged_fetched_folder_says_how_to_restore_it(web):
    web(MINE)
    (dataset1.fetch() / FOLDERS[2] / "B_07.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="delete the whole folder"):
        dataset1.load(runtime.PROFILES["cpu"])


def test_the_checksums_cover_all_files_of_dataset1():
    known = dataset1.checksums()
    counts = {sub: sum(n.split("/")[0] == sub for n in known) for sub in FOLDERS}
    assert list(counts.values()) == [367, 367, 101, 101]
    assert all(len(digest) == 64 for digest in known.values())


@pytest.mark.parametrize("side", [0, 1])
def test_other_bytes_are_taken_and_reported(web, monkeypatch, capsys, side):
    known = {k: hashlib.sha256(v).hexdigest() for k, v in tiny_files().items()}
    monkeypatch.setattr(dataset1, "checksums", lambda: known)
    web(zip_bytes(tiny_files()))
    dataset1.fetch()
    assert "bytes as in SegNet's copy; from source 0" in capsys.readouterr().out
    runtime.configure(data_dir=runtime.data_dir() / "other")
    web(zip_bytes(tiny_files() | {f"{FOLDERS[side]}/A_01.png": png(scene(99)[side])}))
    dataset1.fetch()
    assert "1 files with other bytes than SegNet's copy" in capsys.readouterr().out


# ---- load -------------------------------------------------------------------------

SMALL = {"synthetic_size": (32, 48), "synthetic_counts": (3, 2)}


def test_load_reads_dataset1(web):
    web(MINE)
    train, test = dataset1.load(runtime.PROFILES["cpu"])
    assert train.description == "dataset1 (CamVid), 3 training images, 6 x 8"
    assert (test.filenames, test.is_real) == (NAMES["test"], True)


def test_without_dataset1_synthetic_scenes_replace_it_loudly(web, capsys):
    web("the server answered 404")
    train, test = dataset1.load(replace(runtime.PROFILES["gpu"], **SMALL))
    told = capsys.readouterr().out
    assert "!!!!" in told
    assert "IS UNAVAILABLE" in told
    assert "source 0: the server answered 404" in told
    assert "ROADSEG_DATASET1" in told
    assert not train.is_real
    assert not test.is_real
    assert train.description == (
        "synthetic scenes, NOT dataset1: 3 training images, 32 x 48"
    )
    assert len(test) == 2


def test_quick_draws_without_asking_and_only_once(web, data, capsys, monkeypatch):
    web(MINE)
    quick = replace(runtime.PROFILES["quick"], **SMALL)
    train, test = dataset1.load(quick)
    monkeypatch.setattr(synthetic, "draw_scenes", None)  # not called again
    again, _ = dataset1.load(quick)
    assert all(map(torch.equal, train.masks, again.masks))
    assert not any(torch.equal(a, b) for a in test.images for b in train.images)
    assert web.asked == []
    assert capsys.readouterr().out == ""
    assert len(left_in(data)) == 1


def test_another_drawing_program_draws_anew(tmp_path, monkeypatch):
    quick = replace(
        runtime.PROFILES["quick"], synthetic_size=(32, 48), synthetic_counts=(1, 1)
    )
    first, _ = dataset1.load(quick)
    program = tmp_path / "synthetic.py"
    shutil.copy(synthetic.__file__, program)
    program.write_text(program.read_text() + "\n# changed\n")
    monkeypatch.setattr(synthetic, "__file__", str(program))
    second, _ = dataset1.load(quick)
    assert second.folder != first.folder


def test_load_official_test_reads_a_local_copy_or_says_what_is_missing(
    monkeypatch, tmp_path, capsys
):
    wanted = replace(
        dataset1.OFFICIAL_TEST,
        counts={"official": 3},
        size=SIZE,
        sources=(("nowhere", "http://127.0.0.1:9/"),),
    )
    monkeypatch.setattr(dataset1, "OFFICIAL_TEST", wanted)
    assert dataset1.load_official_test(runtime.PROFILES["cpu"]) is None
    told = capsys.readouterr().out
    assert "nowhere: cannot be reached (ConnectionError" in told
    assert "ROADSEG_CAMVID_TEST" in told
    content = tiny_files(("test", "testannot", "val", "valannot"))
    set_variable(
        monkeypatch, "ROADSEG_CAMVID_TEST", write_files(content, tmp_path / "CamVid")
    )
    scenes = dataset1.load_official_test(runtime.PROFILES["cpu"])
    assert scenes.description == "CamVid, 3 official test images, 6 x 8"
    set_variable(monkeypatch, "ROADSEG_CAMVID_TEST", tmp_path / "absent")
    with pytest.raises(DatasetError, match="ROADSEG_CAMVID_TEST=.*no such file"):
        dataset1.load_official_test(runtime.PROFILES["cpu"])


def test_load_official_test_under_quick_draws_streets_of_its_own():
    quick = replace(runtime.PROFILES["quick"], **SMALL)
    official = dataset1.load_official_test(quick)
    assert (len(official), official.is_real) == (2, False)
    others = [image for scenes in dataset1.load(quick) for image in scenes.images]
    assert not any(torch.equal(a, b) for a in official.images for b in others)
