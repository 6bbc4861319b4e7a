"""Profiles, devices, folders, seeds, and what is printed."""

import sys
import types

import numpy as np
import pytest
import torch

from roadseg import runtime


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("PROFILE", "DEVICE", "DATA", "OUTPUT", "PROGRESS"):
        monkeypatch.delenv(f"ROADSEG_{name}", raising=False)
    runtime.precision.cache_clear()
    yield
    runtime.precision.cache_clear()


def test_profile_by_environment_and_by_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.profile().name == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.profile().name == "gpu"
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    assert runtime.profile().name == "quick"
    assert not runtime.profile().real_data
    monkeypatch.setenv("ROADSEG_PROFILE", "fast")
    with pytest.raises(ValueError, match="'fast'.*quick, cpu, gpu"):
        runtime.profile()


def test_device_by_environment(monkeypatch):
    monkeypatch.setenv("ROADSEG_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")
    for bad in ("cuda:99", "toaster"):
        monkeypatch.setenv("ROADSEG_DEVICE", bad)
        with pytest.raises(ValueError, match=f"ROADSEG_DEVICE='{bad}'"):
            runtime.device()


def test_seeds_repeat():
    def draw():
        return np.random.rand(), torch.rand(1).item()

    runtime.seed_everything(3)
    first = draw()
    runtime.seed_everything(3)
    assert draw() == first
    runtime.seed_everything(4)
    assert draw() != first


def test_folders(monkeypatch, tmp_path):
    assert runtime.data_dir() == runtime.checkout() / "data"
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "o"))
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    assert runtime.data_dir() == tmp_path / "d"
    assert runtime.output_dir() == tmp_path / "o" / "quick"
    assert runtime.output_dir().is_dir()


def test_paths_are_shown_without_the_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert runtime.short(tmp_path / "a" / "b") == "a/b"
    assert runtime.short(runtime.checkout() / "build" / "x") == "build/x"
    assert runtime.short(tmp_path.parent / "elsewhere") == "elsewhere"


def test_banner_frames_every_line():
    lines = runtime.banner("word " * 40 + "\n\nmore", width=30).split("\n")
    assert {len(line) for line in lines} == {36}
    assert set(lines[0]) == {"!"}
    assert all(x.startswith("!! ") and x.endswith(" !!") for x in lines[1:-1])


def test_progress_passes_items_on_and_is_silent_when_told(monkeypatch, capsys):
    monkeypatch.setenv("ROADSEG_PROGRESS", "0")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert list(runtime.progress(range(3), "count")) == [0, 1, 2]
    out = capsys.readouterr()
    assert out.out == out.err == ""


@pytest.mark.parametrize("watched", [True, False])
def test_a_bar_shows_on_a_terminal_and_not_in_a_log(monkeypatch, capsys, watched):
    monkeypatch.setenv("ROADSEG_PROFILE", "cpu")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: watched, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    bar = runtime.progress(range(3), "count")
    assert bar.disable is not watched
    assert list(bar) == [0, 1, 2]


def test_describe_names_profile_and_facts(monkeypatch, capsys):
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    runtime.describe(data="drawn")
    out = capsys.readouterr().out
    assert "profile  quick (set by ROADSEG_PROFILE)" in out
    assert "data     drawn" in out
    assert f"torch {torch.__version__.split('+')[0]}" in out


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """As in Colab: its module, no GPU, and a place for Drive, which is not mounted."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "DRIVE", tmp_path / "drive" / "MyDrive")
    monkeypatch.setattr(runtime, "checkout", lambda: tmp_path / "course")


def test_colab_without_gpu_is_told_where_to_click(colab, capsys):
    runtime.describe()
    path = "Runtime > Change runtime type > T4 GPU > Save, then Runtime > Run all."
    assert path in capsys.readouterr().out


def test_results_of_colab_go_to_drive_if_it_is_mounted(colab, tmp_path, capsys):
    assert runtime.output_dir() == tmp_path / "course" / "build" / "cpu"
    runtime.describe()
    assert "to keep them: Files > Mount Drive" in capsys.readouterr().out

    runtime.DRIVE.mkdir(parents=True)

    assert runtime.output_dir() == runtime.DRIVE / "roadseg" / "cpu"
    runtime.describe()
    lines = capsys.readouterr().out.splitlines()
    said = "on Google Drive, where they stay: MyDrive/roadseg/cpu"
    assert f"results  {said}" in lines


def test_results_go_where_the_user_says_even_beside_drive(
    colab, monkeypatch, tmp_path, capsys
):
    runtime.DRIVE.mkdir(parents=True)
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "mine"))
    assert runtime.output_dir() == tmp_path / "mine" / "cpu"
    runtime.describe()
    said = f"results  {tmp_path / 'mine' / 'cpu'} (set by ROADSEG_OUTPUT)"
    assert said in capsys.readouterr().out.splitlines()


def test_drive_counts_in_colab_only(colab, monkeypatch, tmp_path, capsys):
    runtime.DRIVE.mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "google.colab")
    assert runtime.output_dir() == tmp_path / "course" / "build" / "cpu"
    runtime.describe()
    assert "results" not in capsys.readouterr().out


def test_quick_is_float32_and_a_slow_bf16_is_not_chosen(monkeypatch):
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    assert runtime.precision() == "no"
    monkeypatch.setenv("ROADSEG_PROFILE", "cpu")
    monkeypatch.setenv("ROADSEG_DEVICE", "cpu")
    for times, chosen in (({torch.bfloat16: 1}, "bf16"), ({torch.bfloat16: 3}, "no")):
        runtime.precision.cache_clear()
        monkeypatch.setattr(runtime, "_seconds", lambda d, t=times: t.get(d, 2))
        assert runtime.precision() == chosen


def test_a_busy_moment_does_not_choose_the_format(monkeypatch):
    monkeypatch.setenv("ROADSEG_PROFILE", "cpu")
    monkeypatch.setenv("ROADSEG_DEVICE", "cpu")
    runtime.precision.cache_clear()
    idle, calls = {torch.bfloat16: 1, torch.float32: 2}, []

    def seconds(dtype):
        calls.append(dtype)
        return 3 * idle[dtype] if len(calls) <= 5 else idle[dtype]

    monkeypatch.setattr(runtime, "_seconds", seconds)
    assert runtime.precision() == "bf16"
    assert calls[:4] == [torch.bfloat16, torch.float32] * 2
    runtime.precision.cache_clear()


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("sizes do not match"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error, yes):
    assert runtime.out_of_memory(error) is yes


def test_a_cpu_that_refuses_memory_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert runtime.out_of_memory(caught.value)


def test_measuring_precision_draws_no_random_numbers_and_works_in_inference_mode():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        assert runtime._seconds(torch.float32) > 0
    assert torch.equal(torch.rand(1), expected)
