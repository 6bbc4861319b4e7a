"""Files from elsewhere: download one, unpack it safely, publish a folder whole.

Nothing here knows what the files mean. `publish` makes a folder, and calls back to
have it filled; `download` and `unpack` are what to fill it with. A call that fails
or is interrupted leaves nothing that a later one could take for whole, and of two
processes one works and the other waits.
"""

import errno
import json
import re
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pooch
import requests
from filelock import FileLock, Timeout

from roadseg import runtime

PAUSE = 1  # seconds, before a download is tried again
TIMEOUT = (5, 30)  # seconds: to connect, and between two pieces of an answer
MAX_UNPACKED = 2 * 2**30  # bytes; dataset1 has 125 million
MAX_DOWNLOAD = 2**30  # bytes; SegNet's whole repository has 190 million
LONGEST_NAME = 255  # characters of a file's or folder's name; some disks take fewer
MARKER = ".fetched.json"  # written last: says that a folder is ours, and whole


class DatasetError(RuntimeError):
    """Data cannot be used; the message says which file, why, and what to do."""


# ---- Download ---------------------------------------------------------------------


class _Bar:
    """A progress bar as pooch wants it; unlike tqdm's, true while total is unknown."""

    def __init__(self) -> None:
        self.total = 0
        self._bar = runtime.progress(None, "downloading")
        self._bar.unit, self._bar.unit_scale = "B", True
        self.close = self._bar.close

    def reset(self) -> None:
        self._bar.n = 0  # tqdm's own reset() would draw a bar and leave it there

    def update(self, count: int) -> None:
        self._bar.total = self.total or None
        self._bar.update(count)


class _Limited:
    """A file that refuses to grow over `MAX_DOWNLOAD` bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.flush = file, file.flush

    def write(self, data: bytes) -> None:
        if self._file.tell() + len(data) > MAX_DOWNLOAD:
            raise DatasetError(f"the server sends more than {MAX_DOWNLOAD} bytes")
        self._file.write(data)


def download(url: str, path: Path) -> None:
    """Download a file; try once more if the server is there but did not deliver.

    Args:
        url: Its address, http or https.
        path: The file to write. After an error it holds what came until then.

    Raises:
        DatasetError: If the server cannot be reached, refuses, breaks off twice,
            sends more than `MAX_DOWNLOAD` bytes, or a header that makes no sense.
        OSError: If the file cannot be written.
    """
    answers: list[int] = []
    hooks = {"response": lambda answer, **_: answers.append(answer.status_code)}
    for last in (False, True):
        bar = _Bar()
        get = pooch.HTTPDownloader(bar, 2**16, timeout=TIMEOUT, hooks=hooks)
        try:
            with path.open("wb") as file:
                get(url, _Limited(file), None)
            return
        except requests.RequestException as error:
            if not answers:
                reason = f"cannot be reached ({type(error).__name__}; no network?)"
            elif error.response is not None:
                reason = f"the server answered {answers[-1]}, not the archive"
            else:
                reason = f"the download broke off ({type(error).__name__}), twice"
            if last or not answers or 400 <= answers[-1] < 500:
                raise DatasetError(reason) from None
        except ValueError as error:  # its header announces a length that is none
            raise DatasetError(
                f"the server's answer makes no sense ({error})"
            ) from None
        finally:
            bar.close()
        time.sleep(PAUSE)


# ---- Unpack -----------------------------------------------------------------------


def unpack(
    source: Path, folder: Path, choose: Callable[[list[str]], dict[str, str]]
) -> None:
    """Copy files out of a zip archive or a folder into another folder.

    Args:
        source: The archive; or the folder, of which files that are inside one to
            three more folders are seen.
        folder: Where the copies go; folders in it are made.
        choose: Called with the names of all files in source, says for each place
            in folder which of them goes there.

    Raises:
        DatasetError: If source is neither a folder nor a zip archive, is damaged,
            or has members that point outside of it, are links, have names too
            long for a disk, are packed in another way than deflate, or together
            would take more than `MAX_UNPACKED` bytes. Nothing of an unsafe
            archive is copied.
        OSError: If the disk cannot be read or written.
    """
    with _members(source) as (names, open_member):
        places = choose(names)
        for place, name in runtime.progress(places.items(), "unpacking"):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            with open_member(name) as member, (folder / place).open("wb") as copied:
                shutil.copyfileobj(member, copied)


@contextmanager
def _members(path: Path) -> Iterator[tuple[list[str], Callable[[str], BinaryIO]]]:
    """Yield the names of the files in a folder or zip file, and how to open one."""
    if path.is_dir():
        files = chain(path.glob("*/*"), path.glob("*/*/*"), path.glob("*/*/*/*"))
        names = [file.relative_to(path).as_posix() for file in files]
        yield names, lambda name: (path / name).open("rb")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_dangers(archive.infolist())
            yield archive.namelist(), archive.open
    except DatasetError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, struct.error, OverflowError),
        *(RuntimeError, ValueError, OSError),
    ) as error:
        # RuntimeError: encrypted, or a compression that zipfile does not know.
        # OSError: the disk, but for EINVAL, a place before the archive's beginning,
        # and ENAMETOOLONG, a member's name.
        if isinstance(error, OSError):
            if error.errno not in (errno.EINVAL, errno.ENAMETOOLONG):
                raise
            error = error.strerror  # without the long path
        with path.open("rb") as file:
            if file.read(512).lstrip().startswith(b"<"):
                raise DatasetError("a web page, not a zip archive") from None
        raise DatasetError(
            f"not a zip archive that can be read, or a damaged or cut one ({error})"
        ) from None


def _refuse_dangers(members: list[zipfile.ZipInfo]) -> None:
    """Raise DatasetError if unpacking could write elsewhere, or fill the disk."""
    for member in members:
        name = member.filename.replace("\\", "/")
        if ".." in name.split("/") or re.match("/|[A-Za-z]:", name):
            raise DatasetError(f"unsafe archive: {name!r} points outside of it")
        if any(len(part) > LONGEST_NAME for part in name.split("/")):
            raise DatasetError(
                f"unsafe archive: a file in it has a name of over {LONGEST_NAME} "
                f"characters, which no disk takes: {name[:40]!r}..."
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DatasetError(f"unsafe archive: {name!r} is a symbolic link")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile inflates these without a limit, whatever size is declared
            raise DatasetError(
                f"unsafe archive: {name!r} is packed in another way than deflate; "
                "pack it anew as an ordinary zip file"
            )
    size = sum(member.file_size for member in members)
    if size > MAX_UNPACKED:
        raise DatasetError(
            f"unsafe archive: it unpacks to {size} bytes, more than {MAX_UNPACKED}"
        )


# ---- Publish ----------------------------------------------------------------------


def publish(
    target: Path,
    fill: Callable[[Path], str],
    complete: Callable[[Path], bool],
    source: str | None = None,
) -> Path:
    """Return a folder, made first if it is not there, not whole, or from elsewhere.

    It is filled beside its destination and takes its place in one rename, under a
    lock. A folder that was not made here is never replaced.

    Args:
        target: The folder.
        fill: Fills the new, empty folder that it is called with, and returns what
            that was made from, in words. The new folder's own folder is temporary
            too: a place for files on the way.
        complete: Whether nothing is missing in a folder made by an earlier call;
            a DatasetError means no.
        source: What it has to be made from; without it, anything.

    Raises:
        DatasetError: If a folder of somebody else is in the way or the disk cannot
            be written; also what fill raises.
    """

    def whole() -> bool:
        try:
            made_from = json.loads((target / MARKER).read_text(encoding="utf-8"))
            return source in (None, made_from) and complete(target)
        except (OSError, ValueError, DatasetError):
            return False

    if whole():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if not whole():  # another process may have made it meanwhile
                _replace(target, fill)
    except OSError as error:
        raise DatasetError(
            f"cannot put {target.name} into {target.parent}: {error}; free the disk "
            "or set ROADSEG_DATA to a folder that can be written"
        ) from error
    return target


def _lock(target: Path) -> AbstractContextManager:
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        return lock.acquire(timeout=5)
    except Timeout:
        print(f"Waiting for another process, which makes {runtime.short(target)}")
        return lock.acquire()


def _replace(target: Path, fill: Callable[[Path], str]) -> None:
    if target.exists() and not (target / MARKER).exists():
        raise DatasetError(
            f"{target} is in the way and was not made by the course: rename it"
        )
    prefix = f".{target.name}-"
    for stale in target.parent.glob(prefix + "*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    with TemporaryDirectory(prefix=prefix, dir=target.parent) as temp:
        new = Path(temp, "new")
        new.mkdir()
        made_from = fill(new)
        (new / MARKER).write_text(json.dumps(made_from), encoding="utf-8")
        if target.exists():
            target.rename(Path(temp, "old"))
        new.rename(target)
