"""The command line: arguments, exit statuses, and what goes wrong on real machines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import roadseg
from roadseg import cli, commands, runtime, segment, synthetic, unet, video, weights
from roadseg.classes import CAMVID

SIZE = (64, 96)
PACKAGE_ROOT = Path(roadseg.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of random weights in a file."""
    path = tmp_path_factory.mktemp("model") / "unet.safetensors"
    torch.manual_seed(0)
    weights.save_model(unet.UNet(), path, CAMVID, {"input_size": SIZE})
    return path


@pytest.fixture(autouse=True)
def own_output(tmp_path, monkeypatch):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "build"))


def drawn(seed=1, size=SIZE):
    return synthetic.draw_scene(seed, size)[0]


def save(path, seed=1, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn(seed, size)).save(path, **options)
    return path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def start(*arguments, cwd=None, stdout=subprocess.PIPE, before=None, **settings):
    """Run the command line in a process of its own, from a checkout."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)} | settings
    return subprocess.run(
        [sys.executable, "-m", "roadseg", *map(str, arguments)],
        cwd=cwd,
        env={k: v for k, v in environment.items() if v is not None},
        stdout=stdout,
        stderr=subprocess.PIPE,
        preexec_fn=before,
    )


# --- arguments ----------------------------------------------------------------


def test_the_version_and_the_help(capsys):
    for arguments in (["--version"], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"roadseg {roadseg.__version__}" in shown
    for command in ("train", "evaluate", "predict", "export"):
        assert re.search(rf"^ +{command} +\w", shown, re.M)
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert f"examples:\n  roadseg {command}" in text
        assert max(map(len, text.splitlines())) <= 88


def test_help_does_not_wait_for_pytorch():
    code = (
        "import sys; from roadseg import cli; cli.build_parser(); print(*sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "roadseg.cli" in done.stdout.split()
    assert "torch" not in done.stdout.split()


def test_profiles_and_recipes_on_offer_are_those_there_are():
    from roadseg import recipes

    parser = cli.build_parser()
    for profile in runtime.PROFILES:
        assert parser.parse_args(["train", "--profile", profile]).profile == profile
    for recipe in recipes.RECIPES:
        for command in (["train"], ["evaluate"], ["predict", "a"], ["export"]):
            assert parser.parse_args([*command, "--recipe", recipe]).recipe == recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["segment"], "invalid choice"),
        (["predict"], "required: PATH"),
        (["predict", "a.png", "--input-size", "100"], "such as 256x352"),
        (["predict", "a.png", "--input-size", "1x1"], "2 pixels or more"),
        (["predict", "a.png", "--every", "0"], "from 1 on"),
        (["predict", "a.png", "--out", "."], "choose another one"),
        (["predict", "a.png", "a.jpg"], "results of the same name"),
        (["predict", "a.png", "--model", "m", "--recipe", "cpu"], "not allowed with"),
        (["export", "--int8", "-1"], "from 1 on"),
        (["train", "--recipe", "long"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_status_2(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg"):
        save(tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [("ROADSEG_RECIPE", "cpu_long"), ("ROADSEG_DEVICE", "toaster")],
)
def test_a_wrong_setting_is_one_line(
    command, setting, value, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(setting, value)
    runtime.reset()
    inputs = [save(tmp_path / "a.png")] if command == "predict" else []
    assert run(command, *inputs) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert value in line


# --- which network ------------------------------------------------------------


def test_without_options_the_profiles_network_and_folder(trained, tmp_path, capsys):
    home = runtime.output_dir()
    (home / "quick").mkdir(parents=True)
    (home / "quick" / "unet.safetensors").write_bytes(trained.read_bytes())
    street = save(tmp_path / "street.png")
    assert run("predict", street) == 0
    assert names(home / "predictions") == ["street_mask.png", "street_overlay.jpg"]
    assert "ships with" not in capsys.readouterr().out
    (home / "full").mkdir()
    (home / "full" / "unet.safetensors").write_bytes(trained.read_bytes())
    assert run("predict", street, "--recipe", "full") == 0
    assert run("predict", street, "--recipe", "cpu") == 1


def test_without_a_trained_network_the_one_that_ships(
    trained, tmp_path, monkeypatch, capsys
):
    street = save(tmp_path / "street.png")
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "missing")
    assert run("predict", street) == 1
    assert "roadseg train" in capsys.readouterr().err
    shipped = weights.load_model(trained)
    monkeypatch.setattr(weights, "PRETRAINED", trained)
    monkeypatch.setattr(weights, "load_pretrained", lambda: shipped)
    assert run("predict", street) == 0
    assert "the one that ships with roadseg" in capsys.readouterr().out


def test_a_damaged_trained_network_is_not_passed_over(tmp_path, capsys):
    home = runtime.output_dir() / "quick"
    home.mkdir(parents=True)
    (home / "unet.safetensors").write_bytes(b"damaged")
    assert run("predict", save(tmp_path / "street.png")) == 1
    assert "unet.safetensors" in capsys.readouterr().err


# --- what people segment ------------------------------------------------------


def predict(trained, *arguments):
    return run("predict", *arguments, "--model", trained)


def test_a_bad_file_in_a_folder_does_not_stop_the_others(trained, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    exif = Image.Exif()
    exif[274] = 6  # to be rotated by a quarter turn
    save(folder / "a.jpg", 2, (70, 50), exif=exif)
    Image.fromarray(drawn(2, (70, 50))).convert("CMYK").save(folder / "c.tif")
    Image.fromarray(drawn(2, (70, 50))).convert("L").save(folder / "D.PNG")
    (folder / "b.png").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    (folder / "more").mkdir()
    assert predict(trained, folder, "--out", out) == 1
    shown, errors = capsys.readouterr()
    last = shown.splitlines()[-1]
    assert last.startswith("3 of 4 done in ")
    assert "1 failed" in last
    assert "left out: " in last
    assert "1 other file" in last
    assert "1 subfolder" in last
    (line,) = errors.splitlines()
    assert line.startswith("error: b.png ")
    sizes = {p.name[0]: Image.open(p).size for p in out.glob("*_mask.png")}
    assert sizes == {"a": (70, 50), "c": (50, 70), "D": (50, 70)}
    assert len(names(out)) == 6


def test_incomplete_videos_are_told_by_status_1(trained, tmp_path, capsys):
    path = tmp_path / "dash.mkv"
    images = [drawn(i) for i in range(8)]
    video.write_video(tmp_path / "whole.mp4", images, np.arange(8) / 4)
    data = (tmp_path / "whole.mp4").read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    out = tmp_path / "out"
    assert predict(trained, path, "--out", out) == 1
    shown, errors = capsys.readouterr()
    assert "of 8 frames" in errors
    assert "dash.mkv" in errors
    assert "0 of 1 done" in shown
    assert "1 incomplete" in shown
    written = list(video.read_frames(out / "dash_overlay.mp4"))
    assert 1 <= len(written) < 8
    assert len(names(out / "dash_masks")) == len(written)


def test_without_pyav_images_are_done_and_videos_named(
    trained, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "in"
    save(folder / "a.png")
    video.write_video(folder / "b.mp4", [drawn()] * 2, [0, 1])
    monkeypatch.setitem(sys.modules, "av", None)
    assert predict(trained, folder, "--out", tmp_path / "out") == 1
    shown, errors = capsys.readouterr()
    assert "1 of 2 done" in shown
    assert "pip install av" in errors
    assert names(tmp_path / "out") == ["a_mask.png", "a_overlay.jpg"]


def test_memory_that_runs_out_for_one_file_does_not_stop_the_others(
    trained, tmp_path, monkeypatch, capsys
):
    for name in ("large.png", "small.png"):
        save(tmp_path / "in" / name)
    whole = segment.segment_image

    def refused(saved, file, out, hflip_tta):
        if file.path.name == "large.png":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return whole(saved, file, out, hflip_tta)

    monkeypatch.setattr(segment, "segment_image", refused)
    assert predict(trained, tmp_path / "in", "--out", tmp_path / "out") == 1
    shown, errors = capsys.readouterr()
    assert "1 of 2 done" in shown
    assert "error: large.png" in errors
    assert "memory" in errors


def test_programming_errors_keep_their_traceback(trained, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(segment, "segment_image", broken)
    with pytest.raises(ValueError, match="a bug"):
        predict(trained, save(tmp_path / "a.png"), "--out", tmp_path / "out")


def test_an_interruption_leaves_complete_files(trained, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name)
    save_mask = segment.save_mask

    masks = []

    def stop(mask, path, labels):
        save_mask(mask, path, labels)
        masks.append(path)
        if len(masks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(segment, "save_mask", stop)
    out = tmp_path / "out"
    assert predict(trained, tmp_path / "in", "--out", out) == 130
    assert "1 of 2 done" in capsys.readouterr().out
    assert names(out) == ["a_mask.png", "a_overlay.jpg", "b_overlay.jpg"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left")])
def test_what_no_one_can_program_away_is_one_line(error, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr(commands, "evaluate", fail)
    assert run("evaluate") == 1
    assert re.fullmatch(r"error: .*(memory|space).*\n", capsys.readouterr().err)


# --- machines -----------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8:strict", "ascii"])
def test_any_name_and_any_encoding_of_the_output(trained, tmp_path, encoding):
    folder = tmp_path / "道路"
    save(folder / "é道.png")
    (folder / "道.jpg").write_text("no image")
    settings = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = start("predict", folder, "--model", trained, cwd=tmp_path, **settings)
    assert done.returncode == 1
    assert b"1 of 2 done" in done.stdout
    assert b"Traceback" not in done.stderr


def test_it_starts_with_a_safe_path_and_by_its_folder(tmp_path):
    done = start("--version", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert done.stdout.decode().strip() == f"roadseg {roadseg.__version__}"
    for option in ([], ["-P"]):
        command = [sys.executable, *option, PACKAGE_ROOT / "roadseg", "--version"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.strip() == f"roadseg {roadseg.__version__}", done.stderr


def test_it_works_with_its_output_closed(trained, tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-
    arguments = [tmp_path / "a.png", "--model", trained, "--out", tmp_path / "out"]
    assert run("predict", *arguments) == 0
    assert names(tmp_path / "out") == ["a_mask.png", "a_overlay.jpg"]


def test_a_folder_in_place_of_a_file_is_told_before_the_work(trained, tmp_path, capsys):
    for command in ("evaluate", "export"):
        option = "--json" if command == "evaluate" else "--out"
        assert run(command, "--model", trained, option, tmp_path) == 1
        told = capsys.readouterr()
        assert f"{tmp_path} is a folder; give the name of a file" in told.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_an_error(trained, tmp_path):
    save(tmp_path / "a.png")
    with open("/dev/full", "w") as full:
        done = start(
            *("predict", tmp_path / "a.png", "--model", trained),
            *("--out", tmp_path / "out"),
            stdout=full,
        )
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if line.startswith("error: ")]
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.slow
def test_the_memory_for_a_panorama_is_bounded(trained, tmp_path):
    """Of 8000 x 4000 pixels, all probabilities alone would be 1.4 GB."""
    Image.new("RGB", (8000, 4000), (90, 90, 90)).save(tmp_path / "pano.png")
    code = (
        "import resource, sys; from roadseg import cli; s = cli.main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(s)"
    )
    peaks = []
    for name in (save(tmp_path / "small.png"), tmp_path / "pano.png"):
        arguments = ["predict", name, "--model", trained, "--out", tmp_path / "out"]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 1000, "megabytes"
