"""Downloads from a web server on this machine, archives and folders of a few bytes."""

import http.server
import io
import multiprocessing
import os
import struct
import threading
import time
import zipfile
from pathlib import Path

import pytest

from roadseg import archives
from roadseg.archives import DatasetError

FILES = {"top/a/1.txt": b"one", "top/b/2.txt": b"two", "top/b/3.txt": b"three"}


def zipped(files, **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def written(files, folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content(folder: Path):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def left_in(folder: Path):
    """Return what lies in a folder, locks aside."""
    there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    return [name for name in there if not name.endswith(".lock")]


# ---- Download ---------------------------------------------------------------------

BODY = bytes(range(256)) * 4


@pytest.fixture
def web(monkeypatch):
    """Start a web server; web(answer, ...) makes these its answers, the last for good.

    An answer is the bytes of the page, a status, or a function of the request
    handler. `web.asked` counts the requests.
    """
    monkeypatch.setattr(archives, "PAUSE", 0)
    monkeypatch.setattr(archives, "TIMEOUT", (2, 0.3))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = sources.answers[min(sources.asked, len(sources.answers) - 1)]
            sources.asked += 1
            if callable(answer):
                answer(self)
            elif isinstance(answer, int):
                self.send_error(answer)
            else:
                send(self, answer)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def sources(*answers):
        sources.answers, sources.asked = answers, 0
        return f"http://127.0.0.1:{server.server_port}/"

    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield sources
    server.shutdown()
    server.server_close()


def send(handler, body: bytes, announced=None):
    handler.send_response(200)
    handler.send_header("Content-Length", str(announced or len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def broken_off(handler):
    send(handler, BODY[:300], len(BODY))
    handler.connection.close()


def stalled(handler):
    send(handler, BODY[:300], len(BODY))
    time.sleep(0.8)


def silent(handler):
    time.sleep(0.8)


def lengthless(handler):
    send(handler, BODY, "abc")


def test_a_download_has_every_byte(web, tmp_path):
    archives.download(web(BODY), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert web.asked == 1


@pytest.mark.parametrize(
    ("bad", "reason", "asked"),
    [
        (404, "the server answered 404", 1),
        (503, "the server answered 503", 2),
        (broken_off, "the download broke off", 2),
        (stalled, "the download broke off", 2),
        (silent, r"cannot be reached \(ReadTimeout", 1),
        (lengthless, r"the server's answer makes no sense \(.*'abc'", 1),
    ],
    ids=["404", "503", "reset", "stalled", "silent", "length"],
)
def test_a_server_that_does_not_deliver_is_told(web, tmp_path, bad, reason, asked):
    with pytest.raises(DatasetError, match=f"^{reason}"):
        archives.download(web(bad), tmp_path / "file")
    assert web.asked == asked


def test_a_machine_that_does_not_answer_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"^cannot be reached \(ConnectionError"):
        archives.download("http://127.0.0.1:9/", tmp_path / "file")


def test_a_download_without_an_end_is_stopped(web, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_DOWNLOAD", 1000)
    with pytest.raises(DatasetError, match="^the server sends more than 1000 bytes"):
        archives.download(web(BODY), tmp_path / "file")
    assert web.asked == 1
    archives.download(web(BODY[:1000]), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY[:1000]


def test_a_download_that_works_on_the_second_try(web, tmp_path):
    archives.download(web(broken_off, BODY), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert web.asked == 2


def test_a_short_download_draws_no_progress_bar(web, capsys, monkeypatch):
    monkeypatch.delenv("ROADSEG_PROFILE")  # quick shows no bars at all
    archives.download(web(BODY), Path(os.devnull))
    assert capsys.readouterr().out == ""


# ---- Unpack -----------------------------------------------------------------------


def all_of(names):
    return {name: name for name in names}


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_chosen_files_are_copied_to_their_places(tmp_path, kind):
    if kind == "zip":
        (tmp_path / "source").write_bytes(zipped(FILES))
    else:
        written(FILES, tmp_path / "source")

    def choose(names):
        assert set(FILES) <= set(names)
        return {"x/first.txt": "top/a/1.txt", "y/z/third.txt": "top/b/3.txt"}

    archives.unpack(tmp_path / "source", tmp_path / "new", choose)
    expected = {"x/first.txt": b"one", "y/z/third.txt": b"three"}
    assert content(tmp_path / "new") == expected


GOOD = zipped(FILES)
ENCRYPTED = GOOD.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")
FLIPPED = GOOD.replace(b"three", b"thrEe")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"<html>Sign in</html>", "a web page, not a zip archive"),
        (b"\n <!DOCTYPE html>", "a web page, not a zip archive"),
        (b"", "not a zip archive that can be read"),
        (GOOD[:-40], "damaged or cut"),
        (GOOD[: len(GOOD) // 2], "damaged or cut"),
        (FLIPPED, "damaged or cut one .*CRC"),
        (ENCRYPTED, "not a zip archive that can be read.*encrypted"),
    ],
    ids=["html", "space", "empty", "end cut", "half", "flipped", "encrypted"],
)
def test_what_is_no_whole_archive_is_told(tmp_path, bad, reason):
    (tmp_path / "a.zip").write_bytes(bad)
    with pytest.raises(DatasetError, match=reason):
        archives.unpack(tmp_path / "a.zip", tmp_path / "new", all_of)


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/evil.png", "C:/evil.png", "..\\evil.png"],
)
def test_members_that_escape_are_refused(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped(FILES | {name: b"evil"}))
    with pytest.raises(DatasetError, match="unsafe archive: .*evil.png"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


def test_symbolic_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("top/Z_01.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DatasetError, match="Z_01.png' is a symbolic link"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("name", ["n" * 256 + ".txt", "n" * 256 + "/1.txt"])
def test_names_that_no_disk_takes_are_refused(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped(FILES | {name: b"?"}))
    with pytest.raises(DatasetError, match="a name of over 255 characters.*'nnn"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


@pytest.mark.skipif(os.name == "nt", reason="Windows gives another error")
def test_a_name_that_this_disk_does_not_take_is_the_archives_fault(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(FILES))
    with pytest.raises(DatasetError, match=r"damaged or cut one \(File name too long"):
        archives.unpack(
            tmp_path / "a.zip", tmp_path, lambda names: {"n" * 300: names[0]}
        )


@pytest.mark.parametrize("way", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_zipfile_inflates_without_limit_is_refused(tmp_path, way):
    (tmp_path / "a.zip").write_bytes(zipped(FILES, compression=way))
    with pytest.raises(DatasetError, match="packed in another way than deflate"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


def test_a_member_never_takes_more_than_it_says(tmp_path):
    packed = zipped({"a/zeros": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    size, lie = struct.pack("<I", 10**7), struct.pack("<I", 100)
    assert packed.count(size) == 2  # before the member, and in the directory
    (tmp_path / "a.zip").write_bytes(packed.replace(size, lie))
    with pytest.raises(DatasetError, match="damaged or cut"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert (tmp_path / "new" / "a" / "zeros").stat().st_size <= 100


def test_an_archive_that_would_fill_the_disk_is_refused(monkeypatch, tmp_path):
    bomb = FILES | {"zeros.png": bytes(10**6)}
    packed = zipped(bomb, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 10**5
    (tmp_path / "a.zip").write_bytes(packed)
    monkeypatch.setattr(archives, "MAX_UNPACKED", 10**5)
    with pytest.raises(DatasetError, match="unpacks to 1.* bytes"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


# ---- Publish ----------------------------------------------------------------------


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "scenes"


def fill(new: Path) -> str:
    written(FILES, new)
    (new.parent / "on the way").touch()
    return "here"


def never(new: Path) -> str:
    raise AssertionError("not to be filled again")


def complete(folder: Path) -> bool:
    return FILES.items() <= content(folder).items()


def test_a_folder_is_published_once(target):
    assert archives.publish(target, fill, complete) == target
    assert complete(target)
    assert left_in(target.parent) == ["scenes"]
    assert archives.publish(target, never, complete) == target
    assert archives.publish(target, never, complete, "here") == target


def test_a_folder_made_from_something_else_is_made_anew(target):
    archives.publish(target, fill, complete, "here")

    def other(new):
        written(FILES | {"top/b/2.txt": b"another"}, new)
        return "there"

    archives.publish(target, other, lambda folder: True, "there")
    assert (target / "top/b/2.txt").read_bytes() == b"another"
    assert left_in(target.parent) == ["scenes"]


def incomplete(folder):
    raise DatasetError("a file is missing")


@pytest.mark.parametrize("missing", [lambda folder: False, incomplete])
def test_a_folder_that_is_not_complete_is_made_anew(target, missing):
    archives.publish(target, fill, complete)
    (target / "top/a/1.txt").write_bytes(b"spoilt")
    archives.publish(target, fill, missing)
    assert complete(target)
    assert left_in(target.parent) == ["scenes"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, DatasetError])
def test_an_interrupted_call_leaves_nothing(target, cause):
    def interrupted(new):
        fill(new)
        raise cause

    with pytest.raises(cause):
        archives.publish(target, interrupted, complete)
    assert left_in(target.parent) == []
    archives.publish(target, fill, complete)
    assert complete(target)


def test_what_was_there_survives_a_call_that_fails(target):
    archives.publish(target, fill, complete, "here")
    with pytest.raises(AssertionError, match="not to be filled"):
        archives.publish(target, never, complete, "there")
    assert complete(target)


def test_what_a_killed_process_left_is_swept(target):
    written({"new/top/a/1.txt": b"half"}, target.parent / ".scenes-dead")
    archives.publish(target, fill, complete)
    assert left_in(target.parent) == ["scenes"]


def test_what_was_not_made_here_is_never_replaced(target):
    written({"notes.txt": b"precious"}, target)
    with pytest.raises(DatasetError, match="not made by the course: rename it"):
        archives.publish(target, fill, complete)
    assert content(target) == {"notes.txt": b"precious"}


def test_a_disk_that_cannot_be_written_is_told(target):
    target.parent.write_text("a file where the folder should be")
    with pytest.raises(DatasetError, match="cannot put scenes into .*ROADSEG_DATA"):
        archives.publish(target, fill, complete)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_two_processes_one_works(target, tmp_path):
    def slowly(new):
        with (tmp_path / "fills").open("a") as file:
            file.write("x")
        time.sleep(0.4)
        return fill(new)

    def work():
        assert archives.publish(target, slowly, complete) == target

    other = multiprocessing.get_context("fork").Process(target=work)
    other.start()
    work()
    other.join(60)
    assert other.exitcode == 0
    assert (tmp_path / "fills").read_text() == "x"
    assert left_in(target.parent) == ["scenes"]
    assert complete(target)
