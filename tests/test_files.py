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
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st

from roadseg import files, runtime
from roadseg.files import DatasetError
from samples import DAMAGE, damaged, generated

FILES = {"top/a/1.txt": b"one", "top/b/2.txt": b"two", "top/b/3.txt": b"three"}
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX only")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
ENVIRON = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}


def zipped(files, **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def with_backslashes(members) -> bytes:
    """Return an archive as some programs on Windows write it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\")
            archive.writestr(info, data)
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
DEFLATED = partial(zipped, compression=zipfile.ZIP_DEFLATED)

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


def respond(handler, status, *body, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    for part in body:
        handler.wfile.write(part)


def send(handler, body: bytes, length=None, **headers):
    respond(handler, 200, body, Content_Length=length or len(body), **headers)


def broken_off(handler):
    send(handler, GOOD[:300], len(GOOD))
    handler.connection.close()


def reset(handler):
    now = struct.pack("ii", 1, 0)  # no goodbye: the connection is reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
    broken_off(handler)


def stalled(handler):
    send(handler, GOOD[:300], len(GOOD))
    time.sleep(0.8)


def to(address):
    return partial(respond, status=302, Location=address, Content_Length=0)


def endless(handler):
    """Send bytes without an end, and without saying how many."""
    respond(handler, 200)
    while True:
        handler.wfile.write(bytes(10**5))


def compressed(handler, body=GOOD):
    send(handler, gzip.compress(body), Content_Encoding="gzip")


@pytest.mark.parametrize(
    "answer", [GOOD, compressed, lambda h: respond(h, 200, GOOD), b""]
)
def test_a_download_has_every_byte(web, tmp_path, answer, capsys, monkeypatch):
    monkeypatch.setenv("ROADSEG_PROFILE", "cpu")  # quick shows no progress bars
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    files.download(web(answer), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == (b"" if answer == b"" else GOOD)
    assert web.asked == 1
    assert capsys.readouterr().out.strip() == ""  # it took no time


def test_a_download_that_works_on_the_second_try(web, tmp_path):
    files.download(web(broken_off, GOOD), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == GOOD
    assert web.asked == 2


HOSTILE = {
    "404": (404, "the server answered 404", 1),
    "503": (503, "the server answered 503", 2),
    "closed": (broken_off, "the download broke off", 2),
    "reset": (reset, "the download broke off", 2),
    "stalled": (stalled, "the download broke off", 2),
    "short": (lambda h: send(h, GOOD, len(GOOD) + 100), "the download broke off", 2),
    "silent": (lambda h: time.sleep(0.8), r"cannot be reached \(ReadTimeout", 1),
    "length in letters": (lambda h: send(h, GOOD, "abc"), "invalid length 'abc'", 1),
    "negative length": (lambda h: send(h, GOOD, "-5"), "invalid length '-5'", 1),
    "two lengths": (lambda h: send(h, GOOD, "9, 9"), "the invalid length", 1),
    "redirect loop": (to("/"), "the server answered 302", 31),
    "redirect to nowhere": (to("http://127.0.0.1:9/"), "cannot be reached", 1),
    "endless": (endless, "the server sends more than 1000000 bytes", 1),
    "inflating": (
        partial(compressed, body=bytes(2 * 10**6)),
        "the server sends more than 1000000 bytes",
        1,
    ),
    "bomb": (DEFLATED({"zeros": bytes(3 * 2**20)}), "it unpacks to", 1),
    "outside": (zipped({"a/../../evil": b"evil"}), "points outside", 1),
    "web page": (b"<!DOCTYPE html><title>Sign in</title>", "a web page", 1),
    "truncated": (GOOD[:-40], "damaged or truncated", 1),
}


@pytest.mark.parametrize(("bad", "reason", "asked"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_server_is_told_and_leaves_nothing_behind(
    fetched, web, target, tmp_path, monkeypatch, bad, reason, asked
):
    monkeypatch.setattr(files, "MAX_UNPACKED", 2**20)
    with pytest.raises(DatasetError, match=reason) as error:
        fetched(bad)
    assert web.asked == asked
    assert "\n" not in str(error.value)
    assert left_in(target.parent) == []
    assert left_in(tmp_path) == ["data"]
    assert complete(fetched(GOOD))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/", r"^cannot be reached \(Conn.*check .* HTTPS_PROXY"),
        ("ht!tp://x/", r"^cannot be reached \(.*wrong address"),
    ],
)
def test_an_address_where_nothing_is_is_told(tmp_path, url, reason):
    with pytest.raises(DatasetError, match=reason):
        files.download(url, tmp_path / "file")


def test_a_download_sets_no_timeout_for_the_whole_process(web, tmp_path):
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
def test_certificates_that_are_not_there_are_told(monkeypatch, tmp_path, name):
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


@pytest.fixture(params=["zip", "folder", "backslashes"])
def source(request, tmp_path):
    """The same three files in an archive, or in a folder."""
    path = tmp_path / "source"
    if request.param == "folder":
        return written(FILES, path)
    pack = zipped if request.param == "zip" else with_backslashes
    path.write_bytes(pack(FILES | {"top/c/": b""}))
    assert (rb"top\a\1.txt" in path.read_bytes()) == (pack is with_backslashes)
    return path


def test_chosen_files_are_copied_to_their_places(source, tmp_path):
    def choose(names):
        assert sorted(names) == sorted(FILES)
        return {"x/first.txt": "top/a/1.txt", "y/z/third.txt": "top/b/3.txt"}

    files.extract(source, tmp_path / "new", choose)
    expected = {"x/first.txt": b"one", "y/z/third.txt": b"three"}
    assert content(tmp_path / "new") == expected


@pytest.mark.parametrize(
    "cause", [ValueError(), RuntimeError(), OSError(errno.EINVAL, "x")]
)
def test_an_error_in_the_choice_is_not_the_archives(source, tmp_path, cause):
    def choose(names):
        raise cause

    with pytest.raises(type(cause)) as error:
        files.extract(source, tmp_path / "new", choose)
    assert error.value is cause


def link() -> bytes:
    file, member = io.BytesIO(), zipfile.ZipInfo("top/Z_01.png")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, "/etc/passwd")
    return file.getvalue()


NO_ARCHIVE, DAMAGED = "not a zip archive that can be read", "damaged or truncated"
ENCRYPTED = GOOD.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")
ESCAPING = ("../evil.png", "a/../../evil.png", "/evil.png", "C:/evil.png", r"..\evil.p")
BAD_ARCHIVES = {
    "html": (b"<html>Sign in</html>", "a web page, not a zip archive"),
    "space": (b"\n <!DOCTYPE html>", "a web page, not a zip archive"),
    "empty": (b"", NO_ARCHIVE),
    "end": (GOOD[:-40], DAMAGED),
    "half": (GOOD[: len(GOOD) // 2], DAMAGED),
    "range": (GOOD[len(GOOD) // 2 :], DAMAGED),
    "flipped": (GOOD.replace(b"three", b"thrEe"), DAMAGED + " one .*CRC"),
    "encrypted": (ENCRYPTED, NO_ARCHIVE + ".*encrypted"),
    "link": (link(), "unsafe .*Z_01.png' is a symbolic link"),
    **{
        str(method): (zipped(FILES, compression=method), "unsafe .*method than deflate")
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    },
    "bomb": (DEFLATED(FILES | {"zeros": bytes(10**6)}), "unsafe .*unpacks to 1"),
    **{
        f"long {kind}": (zipped(FILES | {name: b"?"}), "unsafe .*'nnn.* of over 255 c")
        for kind, name in (("file", "n" * 256 + ".x"), ("folder", "n" * 256 + "/1.x"))
    },
    **{
        f"{pack.__name__} {name}": (pack(FILES | {name: b""}), "unsafe archive: .*evil")
        for name in ESCAPING
        for pack in (zipped, with_backslashes)
    },
}


@pytest.mark.parametrize(("bad", "reason"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_what_is_no_complete_and_safe_archive_is_refused(
    monkeypatch, tmp_path, bad, reason
):
    (tmp_path / "a.zip").write_bytes(bad)
    monkeypatch.setattr(files, "MAX_UNPACKED", 10**5)
    with pytest.raises(DatasetError, match=reason):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    if "unsafe" in reason:
        assert left_in(tmp_path) == ["a.zip"]


@POSIX
def test_a_name_that_this_disk_does_not_take_is_the_archives_fault(tmp_path):
    (tmp_path / "a.zip").write_bytes(GOOD)
    for long in ("n" * 300, "n" * 300 + "/1.txt"):
        with pytest.raises(DatasetError, match=r"truncated one \(File name too long"):
            files.extract(tmp_path / "a.zip", tmp_path, lambda x, n=long: {n: x[0]})


def test_a_member_never_takes_more_than_it_says(tmp_path):
    packed = DEFLATED({"a/zeros": bytes(10**7)})
    size, lie = struct.pack("<I", 10**7), struct.pack("<I", 100)
    assert packed.count(size) == 2  # before the member, and in the directory
    (tmp_path / "a.zip").write_bytes(packed.replace(size, lie))
    with pytest.raises(DatasetError, match=DAMAGED):
        files.extract(tmp_path / "a.zip", tmp_path / "new", all_of)
    assert (tmp_path / "new" / "a" / "zeros").stat().st_size <= 100


ARCHIVES = st.tuples(
    st.sampled_from([GOOD, DEFLATED(FILES), with_backslashes(FILES)]), DAMAGE
)


def check_damaged_archive(case, folder: Path) -> None:
    """A damaged archive gives right files, or one sentence."""
    packed, damage = case
    (folder / "a.zip").write_bytes(damaged(packed, damage))
    told = ""
    try:
        files.extract(folder / "a.zip", folder / "new", all_of)
    except DatasetError as error:
        told = str(error)
    assert "\n" not in told
    if not told:
        assert set(content(folder / "new").values()) <= set(FILES.values())
    assert left_in(folder) in (["a.zip"], ["a.zip", "new"])


CHECKS = {"damaged archives": (check_damaged_archive, ARCHIVES, 300)}


@pytest.mark.parametrize("most", [20, pytest.param(999, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHECKS)
def test_generated_archives(name, most):
    check, strategy, count = CHECKS[name]
    assert generated(check, strategy, min(most, count)) >= min(most, count)


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
def test_what_was_there_stays_when_writing_fails(tmp_path, cause):
    written(FILES, tmp_path)

    def fail(context):
        with context as draft:
            if draft.is_dir():
                draft /= "half"
            draft.write_text("half")
            raise cause

    for context in (
        files.atomic_write(tmp_path / "top/a/1.txt"),
        files.atomic_dir(tmp_path / "top"),
    ):
        with pytest.raises(cause):
            fail(context)
        assert content(tmp_path) == FILES


def test_two_drafts_of_a_file_do_not_meet_and_long_names_work(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    with files.atomic_write(path) as one, files.atomic_write(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    with files.atomic_dir(tmp_path / ("d" * 255)) as new:
        (new / "1").touch()
    assert left_in(tmp_path) == ["d" * 255, path.name]


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


def test_a_lock_that_another_process_holds_is_reported(tmp_path, monkeypatch, capsys):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"
    assert files.PATIENCE == 5
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    threading.Timer(0.8, other.stdin.close).start()
    start = time.monotonic()
    with files.locked(tmp_path / ".lock", "data/scenes") as held:
        assert held
        assert time.monotonic() - start > 0.5
    waiting, finished = capsys.readouterr().out.splitlines()
    assert waiting == "Waiting for another process that is working on data/scenes"
    assert finished.startswith("The other process has finished, after ")
    other.wait(60)
    other.stdout.close()


def test_a_free_lock_is_taken_silently_and_released(tmp_path, capsys):
    for _ in "ab":
        with files.locked(tmp_path / "not yet there" / ".lock") as held:
            assert held
    assert capsys.readouterr().out == ""


@POSIX
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_work_goes_on(
    target, tmp_path, monkeypatch, capsys, number
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with files.locked(tmp_path / ".lock", "build/cpu") as held:
        assert not held
    out = capsys.readouterr().out
    assert "has no locks" in out
    assert "another process that works on build/cpu" in out
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


def test_a_folder_is_built_once(target):
    assert files.build_dir(target, fill, complete) == target
    assert complete(target)
    assert left_in(target.parent) == ["scenes"]
    assert files.build_dir(target, never, complete) == target
    assert files.build_dir(target, never, complete, "here") == target
    with pytest.raises(AssertionError, match="not to be filled"):
        files.build_dir(target, never, complete, "there")
    assert complete(target)  # still


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
    for name in (target, target.with_name("scenes-2")):
        done = subprocess.run([sys.executable, "-c", KILLED, name], env=ENVIRON)
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
    command = [sys.executable, "-c", FETCH, target, tmp_path / "fills"]
    both = [subprocess.Popen(command, env=ENVIRON) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "fills").read_text() == "x"
    assert left_in(target.parent) == ["scenes"]
    assert (target / "1.txt").read_text() == "one"


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
