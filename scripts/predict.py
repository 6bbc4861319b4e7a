"""Name every pixel of your own pictures or videos with a trained network.

For street.jpg it writes street_mask.png, whose pixels are class ids 0 to 10 (in the
course's colours, as dataset1 has them), and street_overlay.jpg, the picture under
these colours. For drive.mp4 it writes drive_overlay.mp4 and a folder drive_masks
with a mask of each frame. Any size will do; photographs are turned upright. Videos
are known by their names (.avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm); of a folder the
pictures are taken (.bmp .gif .jpeg .jpg .png .ppm .tif .tiff .webp), no videos; any
other file that you name is read as a picture, in all formats that Pillow knows.
Pictures are fed at about the area that the network was trained for, in their own
proportions; with --size at that very size.

    python scripts/predict.py street.jpg
    python scripts/predict.py my_pictures/ --out my_masks
    python scripts/predict.py drive.mp4 --every 5

A picture that cannot be read is reported and does not stop the others. Exit status:
0 all done, 1 something could not be done, 2 wrong arguments, 130 stopped.
"""

import argparse
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import doors
from roadseg import classes, evaluation, plots, runtime

PICTURES = [".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"]
VIDEOS = [".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"]


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments, predict, print where the results are; return the status."""
    parser = doors.parser(__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a picture, a video, or a folder of pictures",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the results go (without it: build/<profile>/predictions)",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="of a video, take every Nth frame (without it: all)",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="average with the mirrored picture: a little better, twice the time",
    )
    options = parser.parse_args(arguments)
    if options.every < 1:
        parser.error("argument --every: a whole number from 1 on")
    return doors.status(lambda: run(options, parser))


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Predict all inputs; return 1 if there was one that could not be done."""
    out = (options.out or runtime.output_dir() / "predictions").resolve()
    files, failed = listed(options.inputs)
    if reason := in_the_way(files, out):
        parser.error(reason)
    if not files:
        return 1
    model, _, feed = doors.network(options)
    out.mkdir(parents=True, exist_ok=True)
    network = Network(model, feed, options.size, options.flip)
    start, done = time.perf_counter(), 0
    try:
        for path in runtime.progress(files, "predict"):
            try:
                if path.suffix.lower() in VIDEOS:
                    predict_video(network, path, out, options.every)
                else:
                    predict_picture(network, path, out)
                done += 1
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                if (reason := why(error, path)) is None:
                    raise
                failed += 1
                doors.complain(reason)
    finally:
        took = f"{time.perf_counter() - start:.1f} s"
        print(f"{done} of {len(files)} done in {took}, see {doors.shown(out)}")
    return int(failed > 0)


def listed(inputs: list[Path]) -> tuple[list[Path], int]:
    """Return the files that the arguments mean, and how many arguments mean none."""
    files, failed = [], 0
    for path in inputs:
        found = [path] if path.is_file() else []
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
            found = [p for p in found if not p.name.startswith(".")]
            if not found:
                doors.complain(f"{path} holds no pictures ({' '.join(PICTURES)})")
        elif not found:
            doors.complain(f"{path} is not there: name a picture, video or folder")
        failed += not found
        files += found
    return files, failed


def in_the_way(files: list[Path], out: Path) -> str | None:
    """Return why results would overwrite each other or be taken for pictures."""
    seen: dict[str, Path] = {}
    for path in files:
        if path.parent.resolve() == out:
            return f"argument --out: {path} lies in it; choose another folder"
        other = seen.setdefault(path.stem.lower(), path)
        if other.resolve() != path.resolve():
            return f"{other} and {path} would have results of one name: split them up"
    return None


def why(error: Exception, path: Path) -> str | None:
    """Return in words why a file could not be done, None if nobody foresaw that."""
    if runtime.out_of_memory(error):
        return f"{path.name} takes more memory than there is: try a smaller --size"
    if isinstance(error, RuntimeError):
        return None
    return str(error) if path.name in str(error) else f"{path.name}: {error}"


class Network:
    """A network and how it is fed."""

    def __init__(self, model, feed, size, flip: bool) -> None:
        self.model, self.feed, self.size, self.flip = model, feed, size, flip

    def __call__(self, picture: torch.Tensor) -> np.ndarray:
        """Return the labels (H, W), 0 to 10, of a picture (3, H, W), both uint8."""
        size = self.size or evaluation.feed_size(tuple(picture.shape[-2:]), self.feed)
        return evaluation.predict(self.model, picture[None], size, self.flip)[0].numpy()


def predict_picture(network: Network, path: Path, out: Path) -> None:
    """Write mask and overlay of a picture."""
    picture = evaluation.read_picture(path)
    labels = network(picture)
    with doors.whole(out / f"{path.stem}_overlay.jpg") as draft:
        Image.fromarray(plots.overlay(picture, labels)).save(draft, quality=90)
    with doors.whole(out / f"{path.stem}_mask.png") as draft:
        save_mask(labels, draft)


def save_mask(labels: np.ndarray, path: Path) -> None:
    """Write labels as dataset1 stores masks: ids, shown in the palette's colours."""
    image = Image.fromarray(labels)
    image.putpalette(np.asarray(classes.PALETTE, dtype=np.uint8).tobytes())
    image.save(path)


def predict_video(network: Network, path: Path, out: Path, every: int) -> None:
    """Write the masks of a video's frames, and the video under their colours."""
    masks = out / f"{path.stem}_masks"
    draft_masks = out / f".draft-{os.getpid()}-{masks.name}"
    draft_masks.mkdir()
    try:
        with doors.whole(out / f"{path.stem}_overlay.mp4") as draft:
            write = Writer(draft)
            try:
                for number, rate, picture in frames(path, every):
                    labels = network(picture)
                    save_mask(labels, draft_masks / f"{number:06}.png")
                    write(plots.overlay(picture, labels), rate)
            finally:
                write.close()
            shutil.rmtree(masks, ignore_errors=True)
            os.replace(draft_masks, masks)
    finally:
        shutil.rmtree(draft_masks, ignore_errors=True)


def frames(path: Path, every: int) -> Iterator[tuple[int, float, torch.Tensor]]:
    """Yield every so many frames: number, frames a second, (3, H, W) uint8.

    Raises:
        ValueError: If there is none to be read.
    """
    cv2 = opencv()
    video = cv2.VideoCapture(str(path))
    try:
        rate = (video.get(cv2.CAP_PROP_FPS) or 25) / every
        total = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))) or None
        for number in runtime.progress(itertools.count(), path.name, total):
            good, frame = video.read()
            if not good:
                break
            if number % every == 0:
                rgb = np.ascontiguousarray(frame[..., ::-1])
                yield number, rate, torch.from_numpy(rgb).permute(2, 0, 1)
        if number == 0:
            raise ValueError(
                f"{path.name} cannot be read as a video: take an MP4 file (H.264), "
                "or another that OpenCV reads"
            )
    finally:
        video.release()


class Writer:
    """Writes frames of one size to an MP4 file."""

    def __init__(self, path: Path) -> None:
        self.path, self.video = path, None

    def __call__(self, rgb: np.ndarray, rate: float) -> None:
        """Write a frame (H, W, 3) uint8."""
        cv2 = opencv()
        if self.video is None:
            code = cv2.VideoWriter_fourcc(*"mp4v")
            size = (rgb.shape[1], rgb.shape[0])
            # MPEG-4 has no room for rates of many decimals, such as 239.951
            rate = max(0.01, round(rate, 2))
            self.video = cv2.VideoWriter(str(self.path), code, rate, size)
            if not self.video.isOpened():
                raise OSError("OpenCV cannot write MP4 files here: reinstall it")
        self.video.write(np.ascontiguousarray(rgb[..., ::-1]))

    def close(self) -> None:
        """Finish the file."""
        if self.video is not None:
            self.video.release()


def opencv():
    """Return OpenCV, which torch_snippets brings, kept from printing of its own."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    return cv2


if __name__ == "__main__":
    raise SystemExit(main())
