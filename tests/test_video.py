"""Reading and writing videos: times, rotation, damage, cut files, full disks."""

import os
import resource
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from roadseg import video
from roadseg.classes import RoadsegError
from samples import DAMAGE, damaged, generated, result

av = pytest.importorskip("av")

PACKAGE_ROOT = Path(video.__file__).parents[1]
SIZE = (48, 80)


def frame_image(value, size=SIZE):
    """Return an image whose brightness says which frame it is."""
    image = np.full((*size, 3), 20, dtype=np.uint8)
    image[: size[0] // 2] = value
    return image


def record(path, times, codec="libx264", form="mp4", images=None, rotation=0, **more):
    """Write a video with PyAV alone, as cameras and browsers do."""
    images = images or [frame_image(20 + 4 * i) for i in range(len(times))]
    with av.open(str(path), "w", format=form, **more) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if form != "avi":
            stream.codec_context.time_base = video.Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = stream.codec_context.time_base or video.Fraction(1, 25)
            frame.pts = round(time / frame.time_base)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def avi_chunks(data):
    """Return position and length of the frames in an AVI file."""
    position, found = data.find(b"movi") + 4, []
    while data[position : position + 4] == b"00dc":
        length = struct.unpack("<I", data[position + 4 : position + 8])[0]
        found.append((position + 8, length))
        position += 8 + length + length % 2
    return found


STEADY = [i / 25 for i in range(30)]
UNEVEN = [0.0, 0.033, 0.083, 0.114, 0.4, 0.41, 1.2, 1.233]


@pytest.mark.parametrize(
    ("codec", "form", "ending"),
    [
        ("libx264", "mp4", "mp4"),
        ("libvpx", "webm", "webm"),
        ("libx264", "matroska", "mkv"),
        ("mpeg4", "mov", "anything"),
    ],
)
def test_frame_times_are_the_timestamps(tmp_path, codec, form, ending):
    path = record(tmp_path / f"drive.{ending}", UNEVEN, codec, form)
    assert video.is_video(path)
    frames = list(video.read_frames(path))
    assert [f.time for f in frames] == pytest.approx(UNEVEN, abs=2e-3)
    assert [f.index for f in frames] == list(range(len(UNEVEN)))
    brightness = [f.image[: SIZE[0] // 3].mean() for f in frames]
    assert brightness == pytest.approx([20 + 4 * i for i in range(8)], abs=3)


@pytest.mark.parametrize("form", ["mpegts", "mpeg"])
def test_times_begin_at_the_first_frame_of_a_stream_that_starts_late(tmp_path, form):
    codec = {"mpegts": "libx264", "mpeg": "mpeg2video"}[form]
    path = tmp_path / "drive"
    with av.open(str(path), "w", format=form) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for _ in STEADY:
            frame = av.VideoFrame.from_ndarray(frame_image(90), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    times = [frame.time for frame in video.read_frames(path)]
    assert times == pytest.approx(STEADY, abs=2e-3)


@pytest.mark.parametrize("times", [STEADY, UNEVEN])
@pytest.mark.parametrize("size", [(48, 80), (47, 81), (1, 1), (720, 16)])
def test_what_is_written_plays_in_a_browser(tmp_path, times, size):
    path = tmp_path / "overlay.mp4"
    color = np.array([200, 40, 90], dtype=np.uint8)
    images = [np.broadcast_to(color, (*size, 3)) for _ in times]
    video.write_video(path, images, times)
    assert os.listdir(tmp_path) == ["overlay.mp4"]
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat"), "the index is not in front"
    reader = video.read_frames(path)
    frames = list(reader)
    assert [f.time for f in frames] == pytest.approx(times, abs=1e-4)
    assert reader.problems() is None
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert frames[0].image.shape == (*even, 3)
    assert np.abs(frames[0].image.reshape(-1, 3).mean(0) - color).max() < 6


def test_times_that_do_not_increase_are_moved_apart(tmp_path):
    path = tmp_path / "a.mp4"
    video.write_video(path, [frame_image(v) for v in (20, 90, 160)], [0, 0.5, 0.5])
    times = [frame.time for frame in video.read_frames(path)]
    assert times == sorted(set(times))
    assert times == pytest.approx([0, 0.5, 0.5], abs=1e-3)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    path = tmp_path / "a.mp4"
    images = [frame_image(200), frame_image(200, (24, 40))]
    video.write_video(path, images, [0, 1])
    shapes = {frame.image.shape for frame in video.read_frames(path)}
    assert shapes == {(*SIZE, 3)}


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
def test_rotation_noted_in_the_file_is_applied(tmp_path, rotation):
    path = record(tmp_path / "phone.mp4", STEADY[:3], rotation=rotation)
    image = next(iter(video.read_frames(path))).image
    upright = np.rot90(frame_image(20), rotation // 90)
    assert image.shape == upright.shape
    path = record(tmp_path / "b.mp4", [0], images=[frame_image(220)], rotation=rotation)
    image = next(iter(video.read_frames(path))).image
    expected = np.rot90(frame_image(220), rotation // 90)
    assert np.abs(image.astype(int) - expected).mean() < 6


def test_a_damaged_frame_is_skipped_and_named_by_its_time(tmp_path):
    path = record(tmp_path / "dash.avi", STEADY, "mjpeg", "avi")
    data = bytearray(path.read_bytes())
    for number in (7, 20):
        start, length = avi_chunks(data)[number]
        data[start : start + length] = bytes(length)
    path.write_bytes(data)
    reader = video.read_frames(path)
    frames = list(reader)
    assert len(frames) == 28
    assert [f.time for f in frames] == pytest.approx(
        [t for i, t in enumerate(STEADY) if i not in (7, 20)]
    )
    assert reader.damaged == pytest.approx([7 / 25, 20 / 25])
    assert "2 frames could not be decoded (at 0.28 s, 0.80 s)" in reader.problems()
    assert frames[7].index == 8, "a damaged frame keeps its number"


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_in_the_middle_of_a_stream_is_not_passed_off_as_frames(tmp_path, codec):
    noise = np.random.default_rng(0)
    base = noise.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    images = [np.roll(base, i, 1) for i in range(30)]
    path = record(tmp_path / "drive.mkv", STEADY, codec, "matroska", images)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = noise.integers(0, 256, 200, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    reader = video.read_frames(path)
    decoded = len(list(reader))
    assert 0 < decoded < 30
    assert reader.problems()


@pytest.mark.parametrize(
    ("codec", "form", "options"),
    [
        ("mjpeg", "avi", {}),
        ("mpeg4", "mp4", {"movflags": "faststart"}),
        ("libvpx", "webm", {}),
        ("libvpx", "webm", {"live": "1"}),  # as browsers record: no length stated
    ],
)
def test_a_file_that_was_cut_off_is_told(tmp_path, codec, form, options):
    images = [
        np.random.default_rng(i).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        for i in range(30)
    ]
    path = record(tmp_path / "cut", STEADY, codec, form, images, options=options)
    whole = video.read_frames(path)
    assert len(list(whole)) == 30
    assert whole.problems() is None
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):  # FFmpeg does not repeat its messages unless told to
        reader = video.read_frames(path)
        assert 5 < len(list(reader)) < 25
        assert "cut: " in reader.problems()
        assert "the file is incomplete: it holds" in reader.problems()
    if reader.expected:
        assert "of 30 frames" in reader.problems()


def test_a_recording_without_its_index_says_so(tmp_path):
    path = record(tmp_path / "drive.mp4", STEADY)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(video.VideoError, match="its index is missing"):
        list(video.read_frames(path))


def test_a_video_of_an_unknown_codec_says_so(tmp_path):
    path = record(tmp_path / "drive.mp4", STEADY[:3])
    start, codec, end = path.read_bytes().rpartition(b"avc1")
    assert codec
    path.write_bytes(start + b"zzzz" + end)
    assert video.is_video(path)
    with pytest.raises(
        video.VideoError, match=r"drive\.mp4 .*no decoder for its codec"
    ):
        video.read_frames(path)


@pytest.mark.parametrize("content", [b"", b"no video" * 100, b"\0" * 5000])
def test_what_is_no_video_is_refused_by_name(tmp_path, content):
    path = tmp_path / "drive.mp4"
    path.write_bytes(content)
    assert not video.is_video(path)
    with pytest.raises(RoadsegError, match=r"drive\.mp4 cannot be read as a video"):
        list(video.read_frames(path))
    with pytest.raises(RoadsegError, match="no file"):
        list(video.read_frames(tmp_path / "gone.mp4"))


def test_still_images_text_and_playlists_are_not_videos(tmp_path):
    image = Image.fromarray(frame_image(90))
    for ending in ("png", "jpg", "gif", "tif", "webp"):
        image.save(tmp_path / f"a.{ending}")
    (tmp_path / "notes.txt").write_text("a road\n" * 100)
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n"
    )
    for path in tmp_path.iterdir():
        assert not video.is_video(path), path.name


def test_an_animation_is_a_video(tmp_path):
    images = [Image.fromarray(frame_image(v)) for v in (20, 120, 220)]
    for name in ("a.gif", "a.png"):
        path = tmp_path / name
        images[0].save(path, save_all=True, append_images=images[1:], duration=500)
        assert video.is_video(path)
        times = [frame.time for frame in video.read_frames(path)]
        assert times == pytest.approx([0, 0.5, 1.0])


def test_a_path_may_look_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("道路").mkdir()
    for name in ("a:b.mp4", "道路/é.mp4"):
        video.write_video(name, [frame_image(20)] * 2, [0, 1])
        assert len(list(video.read_frames(name))) == 2


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")

    def frames():
        yield frame_image(20)
        raise KeyError

    with pytest.raises(KeyError):
        video.write_video(path, frames(), [0, 1])
    assert path.read_bytes() == b"before"
    with pytest.raises(video.VideoError, match="no frame"):
        video.write_video(path, [], [])
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_bytes() == b"before"


def test_a_video_that_lost_frames_gets_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(video.FrameReader, "__iter__", lambda self: iter(()))
    with pytest.raises(OSError, match="only 0 of 2 frames of a.mp4"):
        video.write_video(tmp_path / "a.mp4", [frame_image(20)] * 2, [0, 1])
    assert os.listdir(tmp_path) == []


WRITE = """
    import resource, signal, sys
    import numpy as np
    sys.path.insert(0, sys.argv[1])
    from roadseg import video
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 255, (48, 80, 3), dtype=np.uint8) for _ in range(20)]
    try:
        video.write_video(sys.argv[2], images, [i / 25 for i in range(20)])
    except OSError as error:
        print(error)
        sys.exit(3)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file limits")
@pytest.mark.parametrize("lacking", [0, 1, 2000, 20_000])
def test_a_disk_that_fills_up_leaves_no_half_video(tmp_path, lacking):
    """A limit on the size of files stands in for the disk."""

    def write(name, limit):
        command = [sys.executable, "-c", textwrap.dedent(WRITE), PACKAGE_ROOT]
        command += [tmp_path / name, str(limit)]
        return subprocess.run(command, capture_output=True, text=True)

    assert write("whole.mp4", 10**8).returncode == 0
    size = (tmp_path / "whole.mp4").stat().st_size
    done = write("tight.mp4", size - lacking)
    if lacking == 0:
        assert done.returncode == 0
        assert (tmp_path / "tight.mp4").stat().st_size == size
    else:
        assert done.returncode == 3, done.stderr
        assert "tight.mp4" in done.stdout
        assert os.listdir(tmp_path) == ["whole.mp4"]


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(video.VideoError, match="pip install av"):
        video.is_video(tmp_path)
    with pytest.raises(video.VideoError, match="pip install av"):
        video.write_video(tmp_path / "a.mp4", [frame_image(20)], [0])


# ---- Generated damage -------------------------------------------------------------

FORMS = {"mp4": "libx264", "webm": "libvpx", "matroska": "mpeg4", "avi": "mjpeg"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    return {
        form: record(folder / form, STEADY[:8], codec, form).read_bytes()
        for form, codec in FORMS.items()
    }


def check_damaged_video(case, folder, recordings):
    """A damaged video gives frames, numbered and in order, or one sentence names it."""
    form, damage = case
    path, data = folder / "damaged video.bin", recordings[form]
    path.write_bytes(damaged(data, damage))

    def read():
        reader = video.read_frames(path)
        return list(reader), reader.problems()

    found, told = result(read, RoadsegError)
    if told:
        assert told.startswith("damaged video.bin ")
        assert "\n" not in told
        return
    frames, problems = found
    numbers = [frame.index for frame in frames]
    assert numbers == sorted(set(numbers))
    for frame in frames:
        assert frame.image.dtype == np.uint8
        assert frame.image.shape[2:] == (3,)
    if path.read_bytes() == data:
        assert problems is None
        assert len(frames) == 8
    elif problems:
        assert problems.startswith("damaged video.bin: ")


CHECKS = {
    "damaged videos": (
        check_damaged_video,
        st.tuples(st.sampled_from(sorted(FORMS)), DAMAGE),
        250,
    )
}


@pytest.mark.parametrize("most", [20, pytest.param(999, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHECKS)
def test_generated_videos(name, most, recordings):
    check, strategy, count = CHECKS[name]

    def with_recordings(case, folder):
        check(case, folder, recordings)

    ran = generated(with_recordings, strategy, min(most, count))
    assert ran >= min(most, count)
