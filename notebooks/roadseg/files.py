"""Files: download, extract safely, and replace files and folders atomically.

Nothing here knows what the files mean. Whatever fails or is interrupted leaves
nothing behind that a later call could take for complete. Of two processes that need
the same folder, one creates it and the other waits.
"""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import requests
from filelock import FileLock, Timeout

from roadseg import runtime
from roadseg.classes import RoadsegError

PAUSE = 1  # seconds, before a download is tried again
TIMEOUT = (5, 30)  # seconds: to connect, and between two pieces of an answer
MAX_UNPACKED = 2 * 2**30  # bytes; dataset1 has 125 million
MAX_DOWNLOAD = 2**30  # bytes; VGG16-BN's weights have 554 million
LONGEST_NAME = 255  # characters of a file or folder name; some disks take fewer
MANIFEST = ".fetched.json"  # written last: marks a folder as ours, and complete
PATIENCE = 5  # seconds, before a wait for another process is reported


class DatasetError(RoadsegError, RuntimeError):
    """Data can't be used; the message says which file, why, and what to do."""


# ---- Download ---------------------------------------------------------------------


def download(url: str, path: Path) -> None:
    """Download a file; try once more if the server fails or breaks off.

    Raises:
        DatasetError: If the server can't be reached or trusted, refuses, breaks off
            twice, sends more than `MAX_DOWNLOAD` bytes, or an invalid header.
        OSError: If the file can't be written; it holds what arrived until then.
    """
    for attempt in (1, 2):
        answer = None
        try:
            answer = requests.get(url, stream=True, timeout=TIMEOUT)
            with answer, path.open("wb") as file:
                for piece in _pieces(answer):
                    file.write(piece)
            return
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", 500)
            if attempt == 2 or status < 500 or answer is None:  # or it won't help
                reason = _download_failure(error, answer is not None)
                raise DatasetError(reason) from None
        except OSError as error:
            if answer is not None:
                raise  # the disk
            raise DatasetError(_download_failure(error, False)) from None
        time.sleep(PAUSE)


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """Yield the content of an answer, under a progress bar."""
    answer.raise_for_status()
    length = answer.headers.get("Content-Length", "0")
    if not re.fullmatch("[0-9]+", length):
        raise DatasetError(f"the server's answer has the invalid length {length!r}")
    size = 0
    with runtime.progress(None, "downloading", int(length) or None) as bar:
        bar.unit, bar.unit_scale = "B", True
        for piece in answer.iter_content(2**16):
            size += len(piece)
            if size > MAX_DOWNLOAD:
                raise DatasetError(f"the server sends more than {MAX_DOWNLOAD} bytes")
            yield piece
            bar.update(len(piece))


def _download_failure(error: OSError, answered: bool) -> str:
    """Say why a download failed, and what to do about it."""
    kind, cause = type(error).__name__, error
    while cause.__context__ is not None:  # errors of requests wrap others
        cause = cause.__context__
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    if not isinstance(error, requests.RequestException):
        names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        name = next((x for x in names if os.environ.get(x)), names[0])
        return (
            f"the certificates can't be read ({error}); unset {name}, or set it to an "
            "existing file of trusted certificates"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"the server's certificate isn't trusted ({reason}); behind a company's "
            "proxy, set REQUESTS_CA_BUNDLE to a file with its certificate"
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return (
            f"the proxy can't be used ({reason}); check the environment variables "
            "HTTPS_PROXY and HTTP_PROXY"
        )
    if error.response is not None:
        status = error.response.status_code
        return f"the server answered {status} instead of sending the file"
    if answered:
        return f"the download broke off ({kind}), twice"
    if isinstance(error, ValueError):  # its text may have a proxy's password in it
        wrong = "a wrong address, or a wrong proxy in HTTPS_PROXY or HTTP_PROXY"
        return f"cannot be reached ({kind}: {wrong})"
    return (
        f"cannot be reached ({kind}); check the network connection, and behind a "
        "company's proxy the environment variable HTTPS_PROXY"
    )


# ---- Extract ----------------------------------------------------------------------


def extract(
    source: Path, folder: Path, choose: Callable[[list[str]], dict[str, str]]
) -> None:
    """Copy files out of a zip archive or a folder into another folder.

    Args:
        source: The archive; or the folder, with files one to three folders deep.
        folder: Where the copies go; folders in it are created.
        choose: Called with the names of all files in source, with / between their
            parts, it says for each place in folder which of them goes there.

    Raises:
        DatasetError: If source is no archive, is damaged, or unsafe (see
            `_safe_members`): nothing of an unsafe archive is copied.
        OSError: If the disk can't be read or written.
    """
    if source.is_dir():
        depths = ("*/*", "*/*/*", "*/*/*/*")
        found = [f for depth in depths for f in source.glob(depth) if f.is_file()]
        files = {f.relative_to(source).as_posix(): f for f in found}
        for place, name in choose(list(files)).items():
            with files[name].open("rb") as file:
                _copy(file, folder / place)
        return
    with _archive_errors(source):
        archive = zipfile.ZipFile(source)
    with archive:
        with _archive_errors(source):
            members = _safe_members(archive)
        chosen = choose(list(members)).items()
        for place, name in runtime.progress(chosen, "extracting"):
            with _archive_errors(source), archive.open(members[name]) as member:
                _copy(member, folder / place)


def _copy(file: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as copy:
        shutil.copyfileobj(file, copy)


@contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    """Turn whatever zipfile raises about an archive into a DatasetError."""
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # a damaged archive may raise anything
        # OSError: the disk, except for EINVAL, a position before the beginning of the
        # archive, and ENAMETOOLONG, a member's name.
        if isinstance(error, OSError):
            if error.errno not in (errno.EINVAL, errno.ENAMETOOLONG):
                raise
            error = error.strerror  # without the long path
        with path.open("rb") as file:
            if file.read(512).lstrip().startswith(b"<"):
                raise DatasetError("a web page, not a zip archive") from None
        raise DatasetError(
            f"not a zip archive that can be read, or a damaged or truncated one "
            f"({error})"
        ) from None


def _safe_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files of an archive by their names, with / as the separator.

    Raises:
        DatasetError: If a member points outside the archive, is a link, has a name
            that is too long, or is compressed by another method than deflate; or if
            all together would take more than `MAX_UNPACKED` bytes.
    """
    members, size = {}, 0
    for member in archive.infolist():
        # some programs on Windows write backslashes, against the standard
        name, wrong = member.filename.replace("\\", "/"), None
        if ".." in name.split("/") or re.match("/|[A-Za-z]:", name):
            wrong = "points outside of it"
        elif any(len(part) > LONGEST_NAME for part in name.split("/")):
            name = name[:40] + "..."
            wrong = (
                f"has a name of over {LONGEST_NAME} characters, more than disks take"
            )
        elif stat.S_ISLNK(member.external_attr >> 16):
            wrong = "is a symbolic link"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile inflates these without a limit, whatever size is declared
            wrong = (
                "is compressed by another method than deflate; create an ordinary "
                "zip file"
            )
        if wrong:
            raise DatasetError(f"unsafe archive: {name!r} {wrong}")
        if not name.endswith("/"):
            members[name] = member
        size += member.file_size
    if size > MAX_UNPACKED:
        raise DatasetError(
            f"unsafe archive: it unpacks to {size} bytes, more than {MAX_UNPACKED}"
        )
    return members


# ---- Replace atomically -----------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces a file when the block succeeds.

    The draft is in the same folder, which is created if necessary, and has the same
    ending. If the block fails, the draft is deleted and the file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{_draft_prefix(path)}{secrets.token_hex(4)}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Yield a new, empty folder, which replaces a folder when the block succeeds.

    Its parent folder is temporary too: a place for intermediate files. If the block
    fails, both are deleted and the target stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=_draft_prefix(target), dir=target.parent) as temp:
        new, old = Path(temp, "new"), Path(temp, "old")
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


def _draft_prefix(path: Path) -> str:
    """Return how the names of a file's drafts begin; short, whatever its own name."""
    return f".draft-{zlib.crc32(os.fsencode(path.name)):08x}-"


@contextmanager
def locked(path: Path, what: str | None = None) -> Iterator[bool]:
    """Hold a lock that other processes wait for; say so after a few seconds of waiting.

    Yields whether the lock is held. It is not on file systems that have no locks: there
    a warning is printed and the work goes on.

    Args:
        path: The lock file; its folder is created if necessary.
        what: What is being worked on, for the message. Default: the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    what = what or runtime.display_path(path.parent)
    lock, held, start = FileLock(path), True, time.monotonic()
    try:
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            print(f"Waiting for another process that is working on {what}", flush=True)
            lock.acquire()
            waited = runtime.format_duration(time.monotonic() - start)
            print(f"The other process has finished, after {waited}", flush=True)
    except (NotImplementedError, OSError) as error:  # the first from older filelock
        lockless = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
        if isinstance(error, OSError) and error.errno not in lockless:
            raise
        held = False
        print(
            f"The file system has no locks: until this ends, don't start another "
            f"process that works on {what}",
            flush=True,
        )
    try:
        yield held
    finally:
        lock.release()


def build_dir(
    target: Path,
    fill: Callable[[Path], str],
    complete: Callable[[Path], bool],
    source: str | None = None,
) -> Path:
    """Return a folder, created if it is missing, incomplete, or from another source.

    It is created under a lock, as by `atomic_dir`. A folder that wasn't created here
    is never replaced; one that is complete is used even if it can't be written.

    Args:
        target: The folder.
        fill: Fills the new, empty folder and returns its source in words.
        complete: Whether nothing is missing in a folder that an earlier call created;
            a DatasetError means no.
        source: The required source; by default, any.

    Raises:
        DatasetError: If a folder of someone else is in the way or the disk can't be
            written; also what fill raises.
    """

    def usable() -> bool:
        try:
            found = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
            return source in (None, found) and complete(target)
        except (OSError, ValueError, DatasetError):
            return False

    if usable():
        return target
    lock = target.with_name(f".{target.name}.lock")
    try:
        with locked(lock, runtime.display_path(target)) as held:
            if usable():  # another process may have created it meanwhile
                return target
            if target.exists() and not (target / MANIFEST).exists():
                raise DatasetError(
                    f"{target} is in the way and was not created by the course: "
                    "rename it"
                )
            # what a killed process left; without a lock, it may be still at work
            stale = target.parent.iterdir() if held else ()
            for draft in [p for p in stale if p.name.startswith(_draft_prefix(target))]:
                shutil.rmtree(draft, ignore_errors=True)
            with atomic_dir(target) as new:
                words = json.dumps(fill(new))
                (new / MANIFEST).write_text(words, encoding="utf-8")
    except OSError as error:
        raise DatasetError(
            f"cannot write {target.name} to {target.parent}: {error}; free disk space, "
            "or set ROADSEG_DATA to a folder that can be written"
        ) from error
    return target
