"""Read and write videos through PyAV, frame by frame, with their own timestamps.

PyAV carries FFmpeg, so every container and codec that FFmpeg knows can be read, and
a file's ending does not matter. It is an optional dependency (``roadseg[video]``) and
is imported at first use.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from roadseg.classes import RoadsegError
from roadseg.files import atomic_write

FALLBACK_RATE = 25
"""Frames per second of streams that hold no timestamps and state no rate."""

ENCODERS = ("libx264", "libopenh264")
"""H.264 encoders, best first: which of them exists depends on how FFmpeg was built."""

TIME_BASE = Fraction(1, 90_000)
"""Unit of the timestamps that we write, in seconds."""

MAX_NAMED = 8
"""How many damaged frames a message lists one by one."""

_NOT_VIDEO = {"tty", "image2", "hls", "dash", "concat", "sdp"}
"""Demuxers that turn text into frames, read still images or open other files."""

_STATES_DURATION = {"matroska,webm", "flv", "asf"}
"""Demuxers whose duration was written by the recorder, not estimated by FFmpeg."""

_MAX_FAILED_READS = 20
"""Failed reads in a row before a file counts as ended."""


class VideoError(RoadsegError, ValueError):
    """A video that cannot be read or written."""


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        index: Its position in the video, from 0; damaged frames are counted.
        time: Seconds from the start of the video.
        image: (H, W, 3) uint8, RGB, upright.
    """

    index: int
    time: float
    image: np.ndarray


def is_video(path: str | os.PathLike) -> bool:
    """Return whether a file holds a video stream with more than one frame.

    Raises:
        VideoError: If PyAV is not installed.
    """
    av = _pyav()
    with contextlib.suppress(OSError, ValueError, av.FFmpegError), _open(path) as file:
        stream = _best_stream(file)
        if stream is None:
            return False
        packets = 0
        for packet in file.demux(stream):
            packets += packet.size > 0
            if packets > 1:
                return True
    return False


class FrameReader:
    """A video; iterating over it yields the frames that can be decoded.

    The times are the timestamps in the file, so variable frame rates are kept. The
    rotation noted in the file is applied. Frames that FFmpeg cannot decode, or that
    it had to make up from their neighbors, are skipped and recorded.

    Attributes:
        path: The file.
        expected: How many frames the file states, or None.
        duration: How many seconds the file states, or None.
        decoded: How many frames were decoded so far.
        damaged: Times of frames that could not be decoded, in seconds.
        incomplete: Whether the file ended early. Known after the last frame.
        pixel_aspect: Width of a pixel over its height. Known after the first frame.

    Raises:
        VideoError: If PyAV is not installed or the file cannot be read as a video.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._reset()
        try:
            with _open(self.path) as file:
                stream = _best_stream(file)
                if stream is None:
                    raise VideoError(_unreadable(self.path, "no video stream in it"))
                if stream.codec_context is None:
                    reason = "FFmpeg has no decoder for its codec"
                    raise VideoError(_unreadable(self.path, reason))
                self.expected = stream.frames or None
                self.duration = _duration(file, stream)
        except _pyav().FFmpegError as error:
            raise VideoError(_unreadable(self.path, error)) from error

    def _reset(self) -> None:
        self.decoded, self.damaged, self.incomplete = 0, [], False
        self._packets, self._end = 0, 0.0
        self.pixel_aspect = Fraction(1)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in the order in which they are shown.

        Raises:
            VideoError: If not a single frame can be decoded.
        """
        self._reset()
        av = _pyav()
        with contextlib.ExitStack() as stack:
            with _ffmpeg_log() as log:  # opening a small file reads all of it
                file = stack.enter_context(_open(self.path))
            self.incomplete = _tells_of_cut(log)
            stream = _best_stream(file)
            context = stream.codec_context
            context.thread_count = 1  # so that errors belong to the packet at hand
            if context.name == "mjpeg":
                # no frame depends on another, so one bad frame costs only itself
                context.options = {"err_detect": "explode"}
            start = float((stream.start_time or 0) * stream.time_base)
            rate = stream.average_rate or stream.guessed_rate or FALLBACK_RATE
            for packet in self._read(file, stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self._note_damage(packet, start, rate)
                    continue
                for frame in frames:
                    index = self.decoded + len(self.damaged)
                    time = index / float(rate)
                    if frame.pts is not None:
                        time = float(frame.pts * frame.time_base) - start
                    if frame.is_corrupt:
                        self.damaged.append(time)
                        continue
                    turns = round(frame.rotation / 90)
                    image = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                    aspect = stream.sample_aspect_ratio or Fraction(1)
                    self.pixel_aspect = 1 / aspect if turns % 2 else aspect
                    self.decoded += 1
                    yield Frame(index, time, np.ascontiguousarray(image))
        if not self.decoded:
            raise VideoError(_unreadable(self.path, "none of its frames can be read"))
        self.incomplete |= self._ended_early()

    def _read(self, file, stream) -> Iterator:
        """Yield packets; go on after a failed read."""
        av = _pyav()
        failed, packets = 0, file.demux(stream)
        while True:
            try:
                with _ffmpeg_log() as log:
                    packet = next(packets, None)
            except av.FFmpegError:
                failed += 1
                if failed > _MAX_FAILED_READS:
                    self.incomplete = True
                    return
                packets = file.demux(stream)
                continue
            self.incomplete |= _tells_of_cut(log)
            if packet is None:
                return
            failed = 0
            is_flush = packet.size == 0 and packet.dts is None
            if not is_flush:
                self._packets += 1
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    self._end = max(self._end, float(end))
                if packet.size == 0:  # a repeated frame; decoding it would flush
                    continue
            yield packet

    def _note_damage(self, packet, start: float, rate) -> None:
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is None:
            self.damaged.append((self.decoded + len(self.damaged)) / float(rate))
        else:
            self.damaged.append(float(ticks * packet.time_base) - start)

    def _ended_early(self) -> bool:
        if self.expected:
            return self._packets < self.expected
        step = self._end / max(1, self._packets)
        return bool(self.duration) and self._end + 2 * step + 0.1 < self.duration

    def problems(self) -> str | None:
        """Return what could not be read, in words, or None if all frames were.

        Call it after the last frame.
        """
        found = []
        if self.damaged:
            times = [f"{time:.2f} s" for time in sorted(self.damaged)[:MAX_NAMED]]
            more = len(self.damaged) - len(times)
            rest = f" and {more} more" if more else ""
            found.append(
                f"{_count(len(self.damaged), 'frame')} could not be decoded "
                f"(at {', '.join(times)}{rest})"
            )
        if self.incomplete:
            held = f"it holds {_count(self._packets, 'frame')}"
            if self.expected:
                held = f"it holds {self._packets} of {self.expected} frames"
                held += f", none after {self._end:.2f} s"
            elif self.duration:
                held += f", {self._end:.2f} s of {self.duration:.2f} s"
            found.append(f"the file is incomplete: {held}")
        return f"{self.path.name}: {'; '.join(found)}" if found else None


read_frames = FrameReader


class VideoWriter:
    """Writes frames to an MP4 file that browsers play: H.264, yuv420p, index first.

    Comes from `open_writer`. Odd heights and widths are padded by one pixel, because
    yuv420p needs even ones. Frames of another size than the first are scaled to it.

    Attributes:
        pixel_aspect: Width of a pixel over its height. Set it before the first frame.
    """

    def __init__(self, path: Path, draft: Path) -> None:
        self.path, self._draft = path, draft
        self.written, self._last_tick = 0, -1
        self._file = self._stream = None
        self.pixel_aspect = Fraction(1)

    def write(self, image: np.ndarray, time: float) -> None:
        """Add a frame.

        Args:
            image: (H, W, 3) uint8, RGB.
            time: When it is shown, in seconds. One that is not later than that of the
                frame before is moved right behind it.
        """
        with self._explained():
            if self._file is None:
                self._start(image)
            height, width = self._stream.height, self._stream.width
            frame = _pyav().VideoFrame.from_ndarray(_padded(image), format="rgb24")
            frame = frame.reformat(
                width, height, "yuv420p", dst_colorspace=self._colorspace
            )
            tick = max(self._last_tick + 1, round(time / TIME_BASE))
            frame.pts, frame.time_base = tick, TIME_BASE
            self._last_tick = tick
            self._file.mux(self._stream.encode(frame))
            self.written += 1

    def _start(self, image: np.ndarray) -> None:
        av = _pyav()
        encoder = next((e for e in ENCODERS if e in av.codecs_available), None)
        if encoder is None:
            raise VideoError(
                "this build of PyAV has no H.264 encoder: install the one from PyPI "
                "(pip install av)"
            )
        self._file = av.open(
            str(self._draft), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._stream = self._file.add_stream(encoder, rate=30)
        height, width = _padded(image).shape[:2]
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = TIME_BASE
        context = self._stream.codec_context
        context.time_base = TIME_BASE
        if encoder == "libx264":
            context.options = {"crf": "20", "preset": "fast"}
        # players assume BT.709 for high-definition video and BT.601 below it
        self._colorspace = "ITU709" if height >= 720 else "ITU601"
        context.colorspace = 1 if height >= 720 else 5
        context.color_range = 1
        context.sample_aspect_ratio = self.pixel_aspect

    def finish(self) -> None:
        """Close the file, decode its frames and count them."""
        with self._explained():
            if self._file is None:
                raise VideoError(f"there is no frame to write to {self.path.name}")
            self._file.mux(self._stream.encode(None))
            self._file.close()
            found = FrameReader(self._draft)
            readable = sum(1 for _ in found)
            if readable != self.written or found.problems():
                raise OSError(
                    f"only {readable} of {self.written} frames of {self.path.name} can "
                    "be read back: is the disk full?"
                )

    def abandon(self) -> None:
        """Close the file, whatever state it is in."""
        with contextlib.suppress(Exception):  # the error that matters is under way
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn FFmpeg's errors into ours, by name of the video."""
        try:
            yield
        except (_pyav().FFmpegError, VideoError) as error:
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, self.path.name) from error
            message = str(error)
            if self.path.name not in message:
                message = f"{self.path.name} could not be written: {message}"
            raise VideoError(message) from error


@contextlib.contextmanager
def open_writer(path: str | os.PathLike) -> Iterator[VideoWriter]:
    """Yield a writer of a video, which gets its name once all frames can be read back.

    Raises:
        VideoError: If PyAV is not installed, has no H.264 encoder, or there is no
            frame.
        OSError: If the file cannot be written completely.
    """
    path = Path(path).absolute()  # FFmpeg takes "a:b.mp4" for an address
    with atomic_write(path) as draft:
        writer = VideoWriter(path, draft)
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.abandon()
            raise


def write_video(
    path: str | os.PathLike, frames: Iterable[np.ndarray], times: Iterable[float]
) -> None:
    """Write a video from frames (H, W, 3) uint8 and their times in seconds.

    The times increase. Errors are those of `open_writer`.
    """
    with open_writer(path) as writer:
        for image, time in zip(frames, times, strict=True):
            writer.write(image, time)


# --- PyAV ---------------------------------------------------------------------


def _pyav():
    try:
        import av
    except ImportError as error:
        raise VideoError(
            f"reading and writing videos needs PyAV ({error}): pip install av"
        ) from error
    return av


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator:
    av = _pyav()
    if not Path(path).is_file():
        raise VideoError(f"there is no file {path}")
    name = os.path.abspath(path)  # FFmpeg takes "a:b.mp4" for an address
    with av.open(name, metadata_errors="replace") as file:
        known = file.format.name
        if known in _NOT_VIDEO or known.endswith("_pipe"):
            raise VideoError(_unreadable(Path(path), f"FFmpeg takes it for {known}"))
        yield file


def _best_stream(file):
    """Return the main video stream; cover art of music files is none."""
    attached = _pyav().stream.Disposition.attached_pic
    streams = [s for s in file.streams.video if not s.disposition & attached]
    best = file.streams.best("video")
    return best if best in streams else next(iter(streams), None)


def _duration(file, stream) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    alone = len(file.streams) == 1  # sound may last longer than the video
    if file.duration and alone and file.format.name in _STATES_DURATION:
        return file.duration / 1e6
    return None


@contextlib.contextmanager
def _ffmpeg_log() -> Iterator[list]:
    """Collect FFmpeg's error messages, which PyAV drops unless it is asked."""
    from av import logging

    before = logging.get_level(), logging.get_skip_repeated()
    logging.set_level(logging.ERROR)
    logging.set_skip_repeated(False)
    try:
        with logging.Capture() as log:
            yield log
    finally:
        logging.set_level(before[0])
        logging.set_skip_repeated(before[1])


def _tells_of_cut(log: list) -> bool:
    return any("prematurely" in line for *_, line in log)


def _padded(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    return np.ascontiguousarray(np.pad(image, pad, mode="edge"))


def _unreadable(path: Path, reason: object) -> str:
    words = str(reason)
    if "Invalid data" in words:
        words = "FFmpeg finds no video in it"
        with path.open("rb") as file:
            if file.read(12)[4:8] == b"ftyp":
                words = "its index is missing, so it was not recorded or copied whole"
    return f"{path.name} cannot be read as a video: {words}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
