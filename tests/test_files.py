"""Downloads from a web server on this machine, archives and folders of a few bytes.

Generated cases (hypothesis) are the same ones every time.
"""

import contextlib
import errno
import gzip
import http.server
import io
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roadseg import files, runtime
from roadseg.files import DatasetError

FILES = {"top/a/1.txt": b"one", "top/b/2.txt": b"two", "top/b/3.txt": b"three"}
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX only")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


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
    """Return the names in a folder, locks aside."""
    there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    return [name for name in there if not name.endswith(".lock")]


GOOD = zipped(FILES)

# ---- Download ---------------------------------------------------------------------


@pytest.fixture
def web(monkeypatch):
    """Start a web server; web(answer, ...) sets its answers, the last one for good.

    An answer is the bytes of the page, a status, or a function of the request
    handler. `web.asked` counts the requests.
    """
    monkeypatch.setattr(files, "PAUSE", 0)
    monkeypatch.setattr(files, "TIMEOUT", (2, 0.3))
    monkeypatch.setattr(files, "MAX_DOWNLOAD", 10**6)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = sources.answers[min(sources.asked, len(sources.answers) - 1)]
            sources.asked += 1
            with contextlib.suppress(OSError):  # the client has hung up
                if callable(answer):
                    answer(self)
                elif isinstance(answer, int):
                    self.send_error(answer)
                else:
                    send(self, answer)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.block_on_close = False  # some of the answers never end

    def sources(*answers):
        sources.answers, sources.asked = answers, 0
        return f"http://127.0.0.1:{server.server_port}/"

    sources.server = server
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
    send(handler, GOOD[:300], len(GOOD))
    handler.connection.close()


def reset(handler):
    send(handler, GOOD[:300], len(GOOD))
    now = struct.pack("ii", 1, 0)  # no goodbye: the connection is reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
    handler.connection.close()


def stalled(handler):
    send(handler, GOOD[:300], len(GOOD))
    time.sleep(0.8)


def silent(handler):
    time.sleep(0.8)


def redirect_loop(handler):
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def redirect_to_nowhere(handler):
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:9/")
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


def compressed(handler):
    body = gzip.compress(GOOD)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def unannounced(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(GOOD)


@pytest.mark.parametrize("answer", [GOOD, compressed, unannounced, b""])
def test_a_download_has_every_byte(web, tmp_path, answer):
    files.download(web(answer), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == (b"" if answer == b"" else GOOD)
    assert web.asked == 1


TWICE = f"{len(GOOD)}, {len(GOOD)}"
HOSTILE = {
    "404": (404, "the server answered 404", 1),
    "503": (503, "the server answered 503", 2),
    "closed": (broken_off, "the download broke off", 2),
    "reset": (reset, "the download broke off", 2),
    "stalled": (stalled, "the download broke off", 2),
    "shorter than announced": (
        lambda h: send(h, GOOD, len(GOOD) + 100),
        "the download broke off",
        2,
    ),
    "silent": (silent, r"cannot be reached \(ReadTimeout", 1),
    "length in letters": (
        lambda h: send(h, GOOD, "abc"),
        "the invalid length 'abc'",
        1,
    ),
    "negative length": (lambda h: send(h, GOOD, "-5"), "the invalid length '-5'", 1),
    "two lengths": (lambda h: send(h, GOOD, TWICE), "the invalid length", 1),
    "redirect loop": (redirect_loop, "the server answered 302", 62),
    "redirect to nowhere": (redirect_to_nowhere, "the download broke off", 2),
    "endless": (endless, "the server sends more than 1000000 bytes", 1),
    "inflating": (inflating, "the server sends more than 1000000 bytes", 1),
}


@pytest.mark.parametrize(("bad", "reason", "asked"), HOSTILE.values(), ids=HOSTILE)
def test_a_server_that_does_not_deliver_is_told(web, tmp_path, bad, reason, asked):
    with pytest.raises(DatasetError, match=reason) as error:
        files.download(web(bad), tmp_path / "file")
    assert web.asked == asked
    assert "\n" not in str(error.value)


def test_a_machine_that_does_not_answer_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"^cannot be reached \(ConnectionError"):
        files.download("http://127.0.0.1:9/", tmp_path / "file")


def test_an_address_that_is_none_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"^cannot be reached \(.*wrong address"):
        files.download("ht!tp://x/", tmp_path / "file")


def test_a_download_that_works_on_the_second_try(web, tmp_path):
    files.download(web(broken_off, GOOD), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == GOOD
    assert web.asked == 2


def test_a_short_download_draws_no_progress_bar(web, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROADSEG_PROFILE", "cpu")  # quick shows no bars at all
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    files.download(web(GOOD), tmp_path / "file")
    assert capsys.readouterr().out.strip() == ""


def test_a_download_sets_no_timeout_for_the_whole_process(web, tmp_path, monkeypatch):
    during = []

    def answer(handler):
        during.append(socket.getdefaulttimeout())
        send(handler, GOOD)

    files.download(web(answer), tmp_path / "file")
    assert [*during, socket.getdefaulttimeout()] == [None, None]


@LINUX
def test_a_disk_that_is_full_is_not_the_servers_fault(web):
    with pytest.raises(OSError, match="No space left") as error:
        files.download(web(bytes(10**5)), Path("/dev/full"))
    assert not isinstance(error.value, DatasetError)


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_are_not_there_are_a_download_failure(
    monkeypatch, tmp_path, name
):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "gone.pem"))
    with pytest.raises(DatasetError, match=f"gone.pem.*unset {name}"):
        files.download("https://127.0.0.1:9/", tmp_path / "file")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_certificate_that_is_not_trusted_is_told(web, monkeypatch, tmp_path):
    url = web(GOOD).replace("http:", "https:")
    key, certificate = tmp_path / "key.pem", tmp_path / "company.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key]
        + ["-out", certificate, "-subj", "/CN=x", "-addext"]
        + ["subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    monkeypatch.setattr(files, "TIMEOUT", (5, 5))
    with pytest.raises(
        DatasetError, match="isn't trusted .*self.signed.*set REQUESTS_CA_BUNDLE"
    ):
        files.download(url, tmp_path / "file")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    files.download(url, tmp_path / "file")  # what the message says helps
    assert (tmp_path / "file").read_bytes() == GOOD
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    with pytest.raises(DatasetError, match="REQUESTS_CA_BUNDLE"):
        files.download(url, tmp_path / "file")


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("http://user:secret@127.0.0.1:9", "refused.*check the environment variables"),
        ("http://user:secret@:::", "a wrong proxy in HTTPS_PROXY"),
    ],
)
def test_a_proxy_that_does_not_work_is_told(
    monkeypatch, tmp_path, no_proxy, proxy, reason
):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(DatasetError, match=reason) as error:
        files.download("https://example.invalid/", tmp_path / "file")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


# ---- Extract ----------------------------------------------------------------------


def all_of(names):
    return {name: name for name in names}


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_chosen_files_are_copied_to_their_places(tmp_path, kind):
    if kind == "zip":
        (tmp_path / "source").write_bytes(zipped(FILES | {"top/c/": b""}))
    else:
        written(FILES, tmp_path / "source")

    def choose(names):
        assert sorted(names) == sorted(FILES)
        return {"x/first.txt": "top/a/1.txt", "y/z/third.txt": "top/b/3.txt"}

    files.extract(tmp_path / "source", tmp_path / "new", choose)
    expected = {"x/first.txt": b"one", "y/z/third.txt": b"three"}
    assert content(tmp_path / "new") == expected


def with_backslashes(members) -> bytes:
    """Return an archive as some programs on Windows write it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\")
            archive.writestr(info, data)
    return file.getvalue()


def test_backslashes_separate_the_parts_of_a_name(tmp_path):
    packed = with_backslashes(FILES | {"top/c/": b""})
    assert packed.count(rb"top\a\1.txt") == 2
    (tmp_path / "a.zip").write_bytes(packed)
    files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert content(tmp_path / "new") == FILES


@pytest.mark.parametrize(
    "cause", [ValueError, RuntimeError, OSError(errno.EINVAL, "x")]
)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_an_error_in_the_choice_is_not_the_archives(tmp_path, cause, kind):
    if kind == "zip":
        (tmp_path / "source").write_bytes(GOOD)
    else:
        written(FILES, tmp_path / "source")

    def choose(names):
        raise cause

    kind = cause if isinstance(cause, type) else OSError
    with pytest.raises(kind) as error:
        files.extract(tmp_path / "source", tmp_path / "new", choose)
    assert not isinstance(error.value, DatasetError)


ENCRYPTED = GOOD.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")
FLIPPED = GOOD.replace(b"three", b"thrEe")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"<html>Sign in</html>", "a web page, not a zip archive"),
        (b"\n <!DOCTYPE html>", "a web page, not a zip archive"),
        (b"", "not a zip archive that can be read"),
        (GOOD[:-40], "damaged or truncated"),
        (GOOD[: len(GOOD) // 2], "damaged or truncated"),
        (GOOD[len(GOOD) // 2 :], "damaged or truncated"),
        (FLIPPED, "damaged or truncated one .*CRC"),
        (ENCRYPTED, "not a zip archive that can be read.*encrypted"),
    ],
    ids=["html", "space", "empty", "end", "half", "range", "flipped", "encrypted"],
)
def test_what_is_no_complete_archive_is_told(tmp_path, bad, reason):
    (tmp_path / "a.zip").write_bytes(bad)
    with pytest.raises(DatasetError, match=reason):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/evil.png", "C:/evil.png", "..\\evil.png"],
)
@pytest.mark.parametrize("packed", [zipped, with_backslashes])
def test_members_that_escape_are_refused(tmp_path, name, packed):
    (tmp_path / "a.zip").write_bytes(packed(FILES | {name: b"evil"}))
    with pytest.raises(DatasetError, match="unsafe archive: .*evil.png"):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


def test_symbolic_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("top/Z_01.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DatasetError, match="Z_01.png' is a symbolic link"):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("name", ["n" * 256 + ".txt", "n" * 256 + "/1.txt"])
def test_names_that_no_disk_takes_are_refused(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped(FILES | {name: b"?"}))
    with pytest.raises(DatasetError, match="a name of over 255 characters.*'nnn"):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


@POSIX
def test_a_name_that_this_disk_does_not_take_is_the_archives_fault(tmp_path):
    (tmp_path / "a.zip").write_bytes(GOOD)
    with pytest.raises(DatasetError, match=r"truncated one \(File name too long"):
        files.extract(tmp_path / "a.zip", tmp_path, lambda names: {"n" * 300: names[0]})


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_zipfile_inflates_without_limit_is_refused(tmp_path, method):
    (tmp_path / "a.zip").write_bytes(zipped(FILES, compression=method))
    with pytest.raises(DatasetError, match="by another method than deflate"):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


def test_a_member_never_takes_more_than_it_says(tmp_path):
    packed = zipped({"a/zeros": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    size, lie = struct.pack("<I", 10**7), struct.pack("<I", 100)
    assert packed.count(size) == 2  # before the member, and in the directory
    (tmp_path / "a.zip").write_bytes(packed.replace(size, lie))
    with pytest.raises(DatasetError, match="damaged or truncated"):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert (tmp_path / "new" / "a" / "zeros").stat().st_size <= 100


def test_an_archive_that_would_fill_the_disk_is_refused(monkeypatch, tmp_path):
    bomb = FILES | {"zeros.png": bytes(10**6)}
    packed = zipped(bomb, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 10**5
    (tmp_path / "a.zip").write_bytes(packed)
    monkeypatch.setattr(files, "MAX_UNPACKED", 10**5)
    with pytest.raises(DatasetError, match="unpacks to 1.* bytes"):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert left_in(tmp_path) == ["a.zip"]


DAMAGE = st.tuples(
    st.sampled_from(
        [GOOD, zipped(FILES, compression=zipfile.ZIP_DEFLATED), with_backslashes(FILES)]
    ),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.floats(0, 1) | st.just(1.0),
)


@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(DAMAGE)
def test_a_damaged_archive_gives_right_files_or_one_sentence(case):
    packed, changes, length = case
    corrupt = bytearray(packed)
    for where, value in changes:
        corrupt[min(int(where * len(corrupt)), len(corrupt) - 1)] = value
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.zip").write_bytes(corrupt[: int(length * len(corrupt))])
        told = ""
        try:
            files.extract(folder / "a.zip", folder / "new", all_of)
        except DatasetError as error:
            told = str(error)
        assert "\n" not in told
        if not told:
            found = content(folder / "new")
            assert set(found.values()) <= set(FILES.values())
        assert left_in(folder) in (["a.zip"], ["a.zip", "new"])


# ---- Replace atomically -----------------------------------------------------------


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "new folder" / "scores.json"
    for text in ("one", "two"):
        with files.atomic_write(path) as draft:
            assert draft.parent == path.parent
            assert draft.suffix == ".json"
            draft.write_text(text)
            if text == "two":
                assert path.read_text() == "one"
        assert path.read_text() == text
    assert left_in(path.parent) == ["scores.json"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, ValueError])
def test_a_file_stays_as_it_was_when_writing_fails(tmp_path, cause):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail():
        with files.atomic_write(path) as draft:
            draft.write_text("half")
            raise cause

    with pytest.raises(cause):
        fail()
    assert content(tmp_path) == {"a.txt": b"before"}


def test_two_drafts_of_a_file_do_not_meet_and_long_names_work(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    with files.atomic_write(path) as one, files.atomic_write(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    with files.atomic_dir(tmp_path / ("d" * 255)) as new:
        (new / "1").touch()
    assert left_in(tmp_path) == ["d" * 255, path.name]


def test_a_folder_is_replaced_when_it_is_complete(tmp_path):
    target = tmp_path / "new folder" / "masks"
    for name in ("1.png", "2.png"):
        with files.atomic_dir(target) as new:
            assert list(new.iterdir()) == []
            (new / name).write_bytes(b"?")
            (new.parent / "on the way").touch()
        assert content(target) == {name: b"?"}
    assert left_in(target.parent) == ["masks"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, ValueError])
def test_a_folder_stays_as_it_was_when_filling_fails(tmp_path, cause):
    written(FILES, tmp_path)

    def fail():
        with files.atomic_dir(tmp_path / "top") as new:
            (new / "half").touch()
            raise cause

    with pytest.raises(cause):
        fail()
    assert content(tmp_path) == FILES


def test_a_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    written(FILES, tmp_path)
    rename = Path.rename

    def fails_for_new(self, target):
        if self.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    def replace():
        with files.atomic_dir(tmp_path / "top") as new:
            (new / "1").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_for_new)
        with pytest.raises(OSError, match="Input/output"):
            replace()
    assert content(tmp_path) == FILES


# ---- Locks ------------------------------------------------------------------------

HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds a lock until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def test_a_lock_that_another_process_holds_is_reported(
    tmp_path, monkeypatch, capsys, other_process
):
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    threading.Timer(0.8, other_process.stdin.close).start()
    start = time.monotonic()
    with files.locked(tmp_path / ".lock", "data/scenes") as held:
        assert held
        assert time.monotonic() - start > 0.5
    said = "Waiting for another process that is working on data/scenes\n"
    assert capsys.readouterr().out == said


def test_the_message_comes_after_five_seconds(tmp_path, capsys):
    assert files.PATIENCE == 5
    with files.locked(tmp_path / "not yet there" / ".lock") as held:
        assert held
    with files.locked(tmp_path / "not yet there" / ".lock"):
        pass  # it was released
    assert capsys.readouterr().out == ""


@POSIX
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_work_goes_on(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with files.locked(tmp_path / ".lock", "build/cpu") as held:
        assert not held
    out = capsys.readouterr().out
    assert "has no locks" in out
    assert "another process that works on build/cpu" in out
    target = tmp_path / "data" / "scenes"
    assert files.build_dir(target, fill, complete) == target
    assert complete(target)


def test_a_lock_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), files.locked(tmp_path / "file" / "lock"):
        pass


# ---- Build a folder ---------------------------------------------------------------


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


def test_a_folder_is_built_once(target):
    assert files.build_dir(target, fill, complete) == target
    assert complete(target)
    assert left_in(target.parent) == ["scenes"]
    assert files.build_dir(target, never, complete) == target
    assert files.build_dir(target, never, complete, "here") == target


def test_a_folder_of_an_older_version_is_still_known(target):
    written(FILES | {".fetched.json": b'"here"'}, target)
    assert files.build_dir(target, never, complete, "here") == target


def test_a_folder_from_another_source_is_built_again(target):
    files.build_dir(target, fill, complete, "here")

    def other(new):
        written(FILES | {"top/b/2.txt": b"another"}, new)
        return "there"

    files.build_dir(target, other, lambda folder: True, "there")
    assert (target / "top/b/2.txt").read_bytes() == b"another"
    assert left_in(target.parent) == ["scenes"]


def incomplete(folder):
    raise DatasetError("a file is missing")


@pytest.mark.parametrize("missing", [lambda folder: False, incomplete])
def test_a_folder_that_is_not_complete_is_built_again(target, missing):
    files.build_dir(target, fill, complete)
    (target / "top/a/1.txt").write_bytes(b"corrupt")
    files.build_dir(target, fill, missing)
    assert complete(target)
    assert left_in(target.parent) == ["scenes"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, DatasetError])
def test_an_interrupted_call_leaves_nothing(target, cause):
    def interrupted(new):
        fill(new)
        raise cause

    with pytest.raises(cause):
        files.build_dir(target, interrupted, complete)
    assert left_in(target.parent) == []
    files.build_dir(target, fill, complete)
    assert complete(target)


def test_what_was_there_survives_a_call_that_fails(target):
    files.build_dir(target, fill, complete, "here")
    with pytest.raises(AssertionError, match="not to be filled"):
        files.build_dir(target, never, complete, "there")
    assert complete(target)


KILLED = """
import os, sys
from pathlib import Path
from roadseg import files
def fill(new):
    (new / "half").touch()
    os._exit(9)
files.build_dir(Path(sys.argv[1]), fill, lambda folder: True)
"""


def test_what_a_killed_process_left_is_deleted(target):
    source = Path(files.__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": str(source)}
    for name in (target, target.with_name("scenes-2")):
        done = subprocess.run([sys.executable, "-c", KILLED, name], env=environ)
        assert done.returncode == 9
    assert len(left_in(target.parent)) == 2
    files.build_dir(target, fill, complete)
    other, own = left_in(target.parent)
    assert own == "scenes"
    assert other.startswith(".")  # of another folder, perhaps still in use


def test_what_was_not_created_here_is_never_replaced(target):
    written({"notes.txt": b"precious"}, target)
    with pytest.raises(DatasetError, match="not created by the course: rename it"):
        files.build_dir(target, fill, complete)
    assert content(target) == {"notes.txt": b"precious"}


def test_a_disk_that_cannot_be_written_is_told(target):
    target.parent.write_text("a file where the folder should be")
    with pytest.raises(DatasetError, match="cannot write scenes to .*ROADSEG_DATA"):
        files.build_dir(target, fill, complete)


def test_a_complete_folder_is_used_where_nothing_can_be_written(target, monkeypatch):
    """As in a checkout on a read-only disk."""
    files.build_dir(target, fill, complete, "here")
    before = content(target.parent)

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for owner, name in ((Path, "mkdir"), (Path, "rename"), (os, "mkdir")):
        monkeypatch.setattr(owner, name, refused)
    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    assert files.build_dir(target, never, complete, "here") == target
    with pytest.raises(DatasetError, match="Read-only.*set ROADSEG_DATA to a folder"):
        files.build_dir(target, never, complete, "there")
    assert content(target.parent) == before


FETCH = """
import sys, time
from pathlib import Path
from roadseg import files
def fill(new):
    with open(sys.argv[2], "a") as file:
        file.write("x")
    time.sleep(0.4)
    (new / "1.txt").write_text("one")
    return "here"
files.build_dir(Path(sys.argv[1]), fill, lambda folder: (folder / "1.txt").exists())
"""


def test_of_two_processes_one_works(target, tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", FETCH, target, tmp_path / "fills"]
    both = [subprocess.Popen(command, env=environ) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "fills").read_text() == "x"
    assert left_in(target.parent) == ["scenes"]
    assert (target / "1.txt").read_text() == "one"


# ---- All together -----------------------------------------------------------------


@pytest.fixture
def fetched(web, target, tmp_path):
    """Download and extract an archive into a folder: fetched(answer) -> the folder."""

    def fetch(answer):
        def from_web(new):
            archive = new.with_name("archive.zip")
            files.download(url, archive)
            files.extract(archive, new, all_of)
            return url

        url = web(answer)
        return files.build_dir(target, from_web, complete)

    return fetch


BOMB = zipped({"zeros": bytes(3 * 2**20)}, compression=zipfile.ZIP_DEFLATED)
HOSTILE_ARCHIVES = {
    "bomb": (BOMB, "it unpacks to"),
    "outside": (zipped({"a/../../evil": b"evil"}), "points outside"),
    "web page": (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
    "truncated": (GOOD[:-40], "damaged or truncated"),
    **{name: (bad, reason) for name, (bad, reason, _) in HOSTILE.items()},
}


@pytest.mark.parametrize(
    ("bad", "reason"), HOSTILE_ARCHIVES.values(), ids=HOSTILE_ARCHIVES
)
def test_a_hostile_server_leaves_nothing_behind(
    fetched, target, tmp_path, monkeypatch, bad, reason
):
    monkeypatch.setattr(files, "MAX_UNPACKED", 2**20)
    with pytest.raises(DatasetError, match=reason):
        fetched(bad)
    assert left_in(target.parent) == []
    assert left_in(tmp_path) == ["data"]
    assert complete(fetched(GOOD))


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (shutil, "copyfileobj"),
        (Path, "mkdir"),
        (Path, "open"),
        (Path, "write_text"),
        (Path, "rename"),
    ],
)
def test_a_full_disk_is_told_and_nothing_is_left(
    fetched, target, monkeypatch, owner, name
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(DatasetError, match=r"No space left.*; free disk space"):
            fetched(GOOD)
    assert left_in(target.parent) == []
    assert complete(fetched(GOOD))
    assert json.loads((target / files.MANIFEST).read_text()).startswith("http:")
    assert runtime.display_path(target) == "scenes"
