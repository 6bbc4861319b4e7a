"""Segmenting files: what counts as an image or a video, names, masks and overlays."""

import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from roadseg import images, inference, segment, synthetic, unet, video
from roadseg.classes import CAMVID, LabelSet, RoadsegError
from roadseg.weights import SavedModel

SIZE = (64, 96)


@pytest.fixture(scope="module")
def saved():
    torch.manual_seed(0)
    return SavedModel(unet.UNet().eval(), CAMVID, SIZE, {})


def drawn(seed=1, size=SIZE):
    return synthetic.draw_scene(seed, size)[0]


def film(path, count=4, **options):
    """Write a video that this machine can write without the package's own writer."""
    video.write_video(path, [drawn(i) for i in range(count)], np.arange(count) / 5)
    return path


def found(inputs, root):
    return {str(f.path.relative_to(root)): f.kind for f in inputs.files}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_files_are_known_by_their_content_not_their_ending(tmp_path):
    image = Image.fromarray(drawn())
    for name, form in {
        "a.jpg": "JPEG",
        "b.jfif": "JPEG",
        "c.jpe": "JPEG",
        "d.JP2": "JPEG2000",
        "e.avif": "AVIF",
        "f.webp": "WEBP",
        "g": "PNG",
        "h.tif": "TIFF",
    }.items():
        if form in Image.SAVE:
            image.save(tmp_path / name, format=form)
    expected = dict.fromkeys(names(tmp_path), "image")
    film(tmp_path / "v.mp4").rename(tmp_path / "v.recording")
    image.save(
        tmp_path / "w.gif", save_all=True, append_images=[Image.fromarray(drawn(2))]
    )
    (tmp_path / "x.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    (tmp_path / "y.mov").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / ".hidden.png").write_bytes(b"")
    inputs = segment.find_inputs([tmp_path])
    assert found(inputs, tmp_path) == expected | {
        **{"v.recording": "video", "w.gif": "video"},
        **{"x.HEIC": "image", "y.mov": "video"},  # to be reported as unreadable
    }
    assert inputs.left_out == {"other file": 2}
    assert not inputs.errors


def test_mpeg_streams_are_videos_although_pillow_claims_them(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "old.mpg"
    with av.open(str(path), "w", format="mpeg2video") as file:
        stream = file.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for seed in range(3):
            frame = av.VideoFrame.from_ndarray(drawn(seed), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert segment.kind_of(path) == "video"


def test_subfolders_are_searched_only_if_asked_for(tmp_path, saved):
    for folder in ("", "one", "one/two", ".hidden"):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn()).save(tmp_path / "in" / folder / "a.png")
    flat = segment.find_inputs([tmp_path / "in"])
    assert found(flat, tmp_path / "in") == {"a.png": "image"}
    assert flat.left_out == {"subfolder": 1}
    deep = segment.find_inputs([tmp_path / "in"], recursive=True)
    assert not deep.left_out
    out = tmp_path / "out"
    assert segment.find_conflict(deep.files, out) is None
    for file in deep.files:
        segment.segment_image(saved, file, out)
    masks = sorted(str(p.relative_to(out)) for p in out.rglob("*_mask.png"))
    assert masks == ["a_mask.png", "one/a_mask.png", "one/two/a_mask.png"]


def test_paths_without_anything_to_segment_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    inputs = segment.find_inputs([tmp_path / "empty", tmp_path / "gone.png"])
    assert not inputs.files
    assert "empty holds no images or videos" in inputs.errors[0]
    assert "gone.png does not exist" in inputs.errors[1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_links_that_lead_nowhere_and_pipes_are_told(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    Image.fromarray(drawn()).save(tmp_path / "circle.jpg")
    inputs = segment.find_inputs([tmp_path, tmp_path / "pipe.png"])
    assert found(inputs, tmp_path) == {"circle.jpg": "image", "circle.png": "image"}
    assert inputs.left_out == {"other file": 1}
    assert [e.split(": ")[0] for e in inputs.errors] == [
        f"{tmp_path / 'pipe.png'} is no ordinary file"
    ]
    told = segment.find_conflict(inputs.files, tmp_path / "out")
    assert "results of the same name" in told


def test_results_that_would_overwrite_something_are_refused(tmp_path):
    for name in ("a.png", "A.jpg", "b.png"):
        Image.fromarray(drawn()).save(tmp_path / name)
    film(tmp_path / "b.mp4")
    out = tmp_path / "out"
    paths = {name: tmp_path / name for name in names(tmp_path)}

    def conflict(*chosen, out=out):
        inputs = segment.find_inputs([paths[name] for name in chosen])
        return segment.find_conflict(inputs.files, out)

    assert "results of the same name" in conflict("a.png", "A.jpg")
    assert "output folder" in conflict("a.png", out=tmp_path)
    assert "output folder" in conflict("a.png", out=tmp_path / "out" / "..")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert "output folder" in conflict("a.png", out=tmp_path / "link")
    assert conflict("a.png", "a.png") is None
    assert conflict("a.png", "b.png", "b.mp4") is None


def test_an_image_becomes_a_mask_and_an_overlay(saved, tmp_path):
    image = drawn()
    Image.fromarray(image).save(tmp_path / "street.png")
    file = segment.Input(tmp_path / "street.png", "image")
    assert segment.segment_image(saved, file, tmp_path / "new" / "out") is None
    out = tmp_path / "new" / "out"
    assert names(out) == ["street_mask.png", "street_overlay.jpg"]
    tensor = images.read_image(file.path)
    expected = inference.predict(saved.model, tensor[None], SIZE)[0].numpy()
    with Image.open(out / "street_mask.png") as mask:
        assert (np.array(mask) == expected).all()
        colors = np.array(mask.convert("RGB"))
    assert (colors == CAMVID.palette()[expected]).all()
    with Image.open(out / "street_overlay.jpg") as overlay:
        difference = np.abs(np.array(overlay).astype(int) - image)
    assert 1 < difference.mean() < 128


def test_masks_hold_the_ids_of_the_network_that_made_them(tmp_path):
    labels = LabelSet(("road", "rest"), ((255, 0, 0), (0, 0, 255)))
    torch.manual_seed(0)
    two = SavedModel(unet.UNet(2).eval(), labels, SIZE, {})
    Image.fromarray(drawn()).save(tmp_path / "a.png")
    segment.segment_image(two, segment.Input(tmp_path / "a.png", "image"), tmp_path)
    with Image.open(tmp_path / "a_mask.png") as mask:
        assert set(np.unique(mask)) <= {0, 1}
        found = {tuple(c) for c in np.array(mask.convert("RGB")).reshape(-1, 3)}
    assert found <= set(labels.colors)


def test_coloring_in_strips_changes_nothing(saved, tmp_path, monkeypatch):
    Image.fromarray(drawn(3, (70, 50))).save(tmp_path / "a.png")
    file = segment.Input(tmp_path / "a.png", "image")
    overlays = []
    for pixels in (10**9, 333, 1):
        monkeypatch.setattr(segment, "STRIP_PIXELS", pixels)
        segment.segment_image(saved, file, tmp_path / str(pixels))
        overlays.append((tmp_path / str(pixels) / "a_overlay.jpg").read_bytes())
    assert overlays[0] == overlays[1] == overlays[2]


def test_only_the_first_of_several_pages_is_segmented_and_that_is_said(saved, tmp_path):
    first, second = (Image.fromarray(drawn(i)) for i in (1, 2))
    path = tmp_path / "scan.tif"
    first.save(path, save_all=True, append_images=[second])
    assert segment.kind_of(path) == "image"
    problem = segment.segment_image(saved, segment.Input(path, "image"), tmp_path)
    assert "scan.tif holds 2 images; only the first" in problem


def test_a_video_becomes_a_video_and_masks(saved, tmp_path):
    times = [0.0, 0.1, 0.5, 0.6, 2.0]
    video.write_video(tmp_path / "drive.mp4", [drawn(i) for i in range(5)], times)
    file, out = segment.Input(tmp_path / "drive.mp4", "video"), tmp_path / "out"
    for every in (1, 2):  # the second replaces the first
        assert segment.segment_video(saved, file, out, every) is None
        assert names(out) == ["drive_masks", "drive_overlay.mp4"]
        expected = [f"{i:06}.png" for i in range(0, 5, every)]
        assert names(out / "drive_masks") == expected
        frames = list(video.read_frames(out / "drive_overlay.mp4"))
        assert [f.time for f in frames] == pytest.approx(times[::every], abs=1e-3)
    original = list(video.read_frames(tmp_path / "drive.mp4"))[2].image
    tensor = torch.from_numpy(original).permute(2, 0, 1)[None]
    with Image.open(out / "drive_masks" / "000002.png") as mask:
        expected = inference.predict(saved.model, tensor, SIZE)[0].numpy()
        assert (np.array(mask) == expected).all()


@pytest.mark.parametrize(("rotation", "kept"), [(0, (4, 3)), (90, (3, 4))])
def test_the_shape_of_pixels_is_kept(saved, tmp_path, rotation, kept):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "dvd.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(rotation)
        for value in (20, 90):
            image = np.full((48, 80, 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    segment.segment_video(saved, segment.Input(tmp_path / "dvd.mp4", "video"), tmp_path)
    with av.open(str(tmp_path / "dvd_overlay.mp4")) as file:
        assert file.streams.video[0].sample_aspect_ratio == Fraction(*kept)


def test_a_video_that_cannot_be_read_leaves_nothing(saved, tmp_path):
    path = tmp_path / "drive.mp4"
    path.write_bytes(b"no video" * 100)
    out = tmp_path / "out"
    with pytest.raises(RoadsegError, match=r"drive\.mp4 cannot be read as a video"):
        segment.segment_video(saved, segment.Input(path, "video"), out)
    assert not out.exists() or not os.listdir(out)
