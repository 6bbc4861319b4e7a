"""Settings, profiles, devices, precision, folders, seeds, and what is printed."""

import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from roadseg import runtime
from roadseg.classes import RoadsegError
from roadseg.runtime import PROFILES, Settings, SettingsError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("ROADSEG_PROFILE")
    monkeypatch.delenv("ROADSEG_DEVICE")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that can be asked for its properties, and no more."""
    found = types.SimpleNamespace(capability=(8, 0), built_for=["sm_80"])
    for name, answer in (
        ("is_available", lambda: True),
        ("get_device_capability", lambda device: found.capability),
        ("get_device_name", lambda device: "Tesla P100"),
        ("get_arch_list", lambda: found.built_for),
    ):
        monkeypatch.setattr(torch.cuda, name, answer)
    return found


# ---- Settings ---------------------------------------------------------------------


def test_without_a_gpu_the_default_is_cpu():
    here = Settings.from_env({})
    assert (here.profile.name, here.profile_source) == ("cpu", "the default on CPU")


def test_the_profile_comes_from_the_environment_or_the_device(gpu):
    here = Settings.from_env({})
    assert (here.profile.name, here.profile_source) == ("gpu", "the default with CUDA")
    assert Settings.from_env({"ROADSEG_DEVICE": "cpu"}).profile.name == "cpu"
    here = Settings.from_env({"ROADSEG_PROFILE": "quick"})
    assert here.profile == PROFILES["quick"]
    assert here.profile_source == "set by ROADSEG_PROFILE"
    with pytest.raises(SettingsError, match="'fast'.*quick, cpu, gpu"):
        Settings.from_env({"ROADSEG_PROFILE": "fast"})


def test_profiles_say_what_they_do():
    quick, *others = PROFILES.values()
    assert (quick.real_data, quick.pretrained, quick.deterministic) == (0, 0, 1)
    for other in others:
        assert (other.real_data, other.pretrained, other.deterministic) == (1, 1, 0)
    assert [p.recipe for p in PROFILES.values()] == ["quick", "cpu", "full"]


@pytest.mark.parametrize("bad", ["cuda:99", "toaster"])
def test_a_device_that_is_not_here_is_told(bad):
    with pytest.raises(SettingsError, match=f"ROADSEG_DEVICE='{bad}'.*set it to cpu"):
        Settings.from_env({"ROADSEG_DEVICE": bad})


CU128 = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built_for", "usable"),
    [
        ((6, 0), CU128, False),  # P100
        ((7, 5), CU128, True),  # T4
        ((8, 9), CU128, True),  # L4: code for 8.0 and 8.6 runs on 8.9
        ((11, 0), CU128, False),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_100a", "sm_90"], True),
        ((10, 3), ["sm_100a"], False),
        ((11, 0), ["sm_70", "compute_80"], True),  # PTX runs on later GPUs
        ((7, 5), ["sm_90", "compute_80"], False),
        ((9, 0), ["gfx90a"], True),  # AMD
        ((6, 0), [], True),
    ],
)
def test_a_gpu_that_pytorch_was_not_built_for_is_not_used(
    gpu, capsys, capability, built_for, usable
):
    gpu.capability, gpu.built_for = capability, built_for
    here = Settings.from_env({})
    said = capsys.readouterr().out
    assert here.device.type == ("cuda" if usable else "cpu")
    assert here.profile.name == ("gpu" if usable else "cpu")
    assert ("Tesla P100 has compute capability" in said) == (not usable)
    assert said.count("\n") == (not usable)


def test_each_process_of_a_launcher_has_its_own_gpu(gpu):
    assert Settings.from_env({}).device == torch.device("cuda")
    assert Settings.from_env({"LOCAL_RANK": "3"}).device == torch.device("cuda:3")


def test_every_variable_ends_in_its_field(tmp_path):
    environ = {
        "ROADSEG_PROFILE": "quick",
        "ROADSEG_DATA": str(tmp_path / "d"),
        "ROADSEG_OUTPUT": str(tmp_path / "o"),
        "ROADSEG_RECIPE": "full",
        "ROADSEG_DATASET1": str(tmp_path / "one.zip"),
        "ROADSEG_CAMVID_TEST": "~/two",
        "ROADSEG_VGG16_BN": str(tmp_path / "vgg.pth"),
        "ROADSEG_PROGRESS": "0",
    }
    here = Settings.from_env(environ)
    assert here.data_dir == tmp_path / "d"
    assert here.output_dir == tmp_path / "o" / "quick"
    assert here.recipe == "full"
    assert here.dataset1 == tmp_path / "one.zip"
    assert here.camvid_test == Path("~/two").expanduser().resolve()
    assert here.vgg16_bn == tmp_path / "vgg.pth"
    assert not here.progress
    empty = Settings.from_env(dict.fromkeys(environ, ""))
    assert empty == Settings.from_env({})
    assert (empty.recipe, empty.dataset1, empty.vgg16_bn) == (None, None, None)
    assert empty.progress


def test_settings_are_read_once(monkeypatch):
    first = runtime.settings()
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    assert runtime.settings() is first
    runtime.reset()
    assert runtime.settings() == Settings.from_env()
    assert runtime.profile() == PROFILES["quick"]


def test_configure_replaces_settings(tmp_path):
    before = runtime.settings()
    after = runtime.configure(profile="quick", data_dir=str(tmp_path))
    assert runtime.settings() is after
    assert runtime.profile() == after.profile == PROFILES["quick"]
    assert runtime.data_dir() == tmp_path
    assert before.output_dir.name == "cpu"
    assert after.output_dir == before.output_dir.with_name("quick")
    assert runtime.configure(output_dir=tmp_path / "x").output_dir == tmp_path / "x"
    # a folder that was asked for by name stays, whatever the profile
    assert runtime.configure(profile="gpu").output_dir == tmp_path / "x"
    for wrong in ({"profile": "fast"}, {"device": "toaster"}):
        with pytest.raises(SettingsError):
            runtime.configure(**wrong)
    assert runtime.profile().name == "gpu"


def test_another_device_changes_a_profile_that_nobody_chose(gpu):
    assert runtime.profile().name == "gpu"
    assert runtime.configure(device="cpu").profile.name == "cpu"
    assert runtime.output_dir().name == "cpu"
    runtime.configure(profile="gpu")
    assert runtime.configure(device="cpu").profile.name == "gpu"


def test_settings_errors_are_ours():
    with pytest.raises(RoadsegError):
        Settings.from_env({"ROADSEG_PROFILE": "fast"})


# ---- Folders ----------------------------------------------------------------------


def test_asking_for_a_folder_creates_none(monkeypatch, tmp_path):
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "o"))
    assert runtime.data_dir() == tmp_path / "d"
    assert runtime.output_dir() == tmp_path / "o" / "cpu"
    runtime.print_environment()
    assert list(tmp_path.iterdir()) == []


def test_folders_are_in_the_repository_by_default():
    root = runtime.repo_root()
    assert (root / "notebooks" / "roadseg" / "runtime.py").samefile(runtime.__file__)
    assert runtime.data_dir() == root / "data"
    assert runtime.output_dir() == root / "build" / "cpu"


def test_paths_are_shown_without_what_is_private(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert runtime.display_path(tmp_path / "a" / "b") == "a/b"
    assert runtime.display_path(runtime.repo_root() / "build" / "x") == "build/x"
    assert runtime.display_path(tmp_path.parent / "elsewhere") == "elsewhere"


# ---- Precision and memory ---------------------------------------------------------


@pytest.fixture
def processor(monkeypatch):
    """A simulated processor; set the seconds that a convolution takes on it."""
    clock = types.SimpleNamespace(bf16=1.0, fp32=1.0, now=0.0, calls=[])

    def conv2d(x, weight, **_):
        kind = "bf16" if torch.is_autocast_enabled("cpu") else "fp32"
        busy = 3 if len(clock.calls) in clock.busy else 1
        clock.calls.append(kind)
        clock.now += busy * getattr(clock, kind)
        return x.mean() * weight.mean()

    clock.busy = ()
    monkeypatch.setattr(nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


@pytest.mark.parametrize(
    ("seconds", "chosen"), [(1, "bf16"), (1.9, "fp32"), (4, "fp32")]
)
def test_a_cpu_is_measured_once_in_a_process(processor, seconds, chosen):
    processor.bf16, processor.fp32 = seconds, 2
    assert runtime.amp_dtype() == chosen
    count = len(processor.calls)
    assert count > 0
    assert runtime.amp_dtype() == runtime.amp_dtype("cpu") == chosen
    assert len(processor.calls) == count


def test_a_busy_moment_does_not_choose_the_precision(processor):
    processor.bf16, processor.fp32, processor.busy = 1, 2, range(5)
    assert runtime.amp_dtype() == "bf16"


def test_the_precision_follows_a_profile_that_changes(processor):
    """The measurement is kept, not the decision."""
    processor.bf16, processor.fp32 = 1, 2
    assert runtime.amp_dtype() == "bf16"
    runtime.configure(profile="quick")
    assert runtime.amp_dtype() == "fp32"
    assert runtime.amp_dtype(profile=PROFILES["cpu"]) == "bf16"
    runtime.configure(profile="cpu")
    assert runtime.amp_dtype(profile=PROFILES["quick"]) == "fp32"
    assert runtime.amp_dtype() == "bf16"


def test_the_precision_of_other_devices(monkeypatch):
    capability = {"cuda:0": (7, 5), "cuda:1": (8, 0)}
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability[str(device)]
    )
    assert runtime.amp_dtype("cuda:0") == "fp16"
    assert runtime.amp_dtype("cuda:1") == "bf16"
    assert runtime.amp_dtype("cuda:1", PROFILES["quick"]) == "fp32"
    assert runtime.amp_dtype("mps") == "fp32"
    supported = [runtime.supports_dtype(p, "cuda:0") for p in ("bf16", "fp16", "fp32")]
    assert supported == [False, True, True]
    assert not runtime.supports_dtype("fp16", "cpu")
    assert runtime.supports_dtype("bf16", "cpu")


def test_measuring_draws_no_random_numbers_and_works_in_inference_mode():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        assert runtime.amp_dtype("cpu") in ("bf16", "fp32")
    assert torch.equal(torch.rand(1), expected)


def test_autocast_follows_the_models_device(gpu, processor):
    processor.bf16, processor.fp32 = 1, 2
    assert runtime.device().type == "cuda"
    model = nn.Linear(2, 2)  # on the CPU, beside a GPU
    for given in (model, "cpu", torch.device("cpu")):
        with runtime.autocast(given):
            assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    runtime.configure(profile="quick")
    with runtime.autocast(model):
        assert model(torch.ones(1, 2)).dtype == torch.float32


def test_a_model_without_parameters_is_on_this_runs_device():
    runtime.configure(profile="quick")
    with runtime.autocast(nn.Identity()) as _:
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: invalid argument"), False),
        (RuntimeError("sizes do not match"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, yes):
    assert runtime.is_oom_error(error) is yes


def test_a_cpu_that_refuses_memory_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert runtime.is_oom_error(caught.value)


def test_seeds_repeat():
    def draw():
        return np.random.rand(), torch.rand(1).item()

    runtime.seed_everything(3)
    first = draw()
    runtime.seed_everything(3)
    assert draw() == first
    runtime.seed_everything(4)
    assert draw() != first


# ---- What is printed --------------------------------------------------------------


def test_banner_frames_every_line():
    lines = runtime.banner("word " * 40 + "\n\nmore", width=30).split("\n")
    assert {len(line) for line in lines} == {36}
    assert set(lines[0]) == {"!"}
    assert all(x.startswith("!! ") and x.endswith(" !!") for x in lines[1:-1])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (47.6, "48 s"),
        (59.6, "1 min 0 s"),
        (725, "12 min 5 s"),
        (3599.7, "1 h 0 min"),
        (3780, "1 h 3 min"),
    ],
)
def test_durations_in_words(seconds, words):
    assert runtime.format_duration(seconds) == words


@pytest.mark.parametrize(
    ("terminal", "profile", "setting", "shown"),
    [
        (True, "cpu", None, True),
        (False, "cpu", None, False),  # a pipe or a log file
        (True, "cpu", "0", False),
        (True, "quick", None, False),
    ],
)
def test_a_bar_shows_on_a_terminal_unless_told_not_to(
    monkeypatch, capsys, terminal, profile, setting, shown
):
    monkeypatch.setenv("ROADSEG_PROFILE", profile)
    if setting:
        monkeypatch.setenv("ROADSEG_PROGRESS", setting)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    bar = runtime.progress(range(3), "count")
    assert bar.disable is not shown
    assert list(bar) == [0, 1, 2]
    out = capsys.readouterr()
    assert out.out.strip() == out.err == ""


def test_print_environment_names_profile_versions_and_facts(monkeypatch, capsys):
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    runtime.print_environment(data="synthetic")
    out = capsys.readouterr().out
    assert "profile  quick (set by ROADSEG_PROFILE)" in out
    assert "data     synthetic" in out
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert "results" not in out
    assert "no nothing-of-the-kind" in runtime.versions(["nothing-of-the-kind"])


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """As in Colab: its module, no GPU, and a place for Drive, which is not mounted."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    monkeypatch.setattr(runtime, "DRIVE", tmp_path / "drive" / "MyDrive")
    monkeypatch.setattr(runtime, "repo_root", lambda: tmp_path / "course")


def test_colab_without_a_gpu_says_where_to_click(colab, capsys):
    runtime.print_environment()
    assert "Change runtime type > T4 GPU" in capsys.readouterr().out


def test_files_of_colab_go_to_drive_if_it_is_mounted(colab, tmp_path, capsys):
    assert runtime.output_dir() == tmp_path / "course" / "build" / "cpu"
    assert runtime.data_dir() == tmp_path / "course" / "data"
    runtime.print_environment()
    assert "to keep them: Files > Mount Drive" in capsys.readouterr().out

    runtime.DRIVE.mkdir(parents=True)
    runtime.reset()

    assert runtime.output_dir() == runtime.DRIVE / "roadseg" / "cpu"
    assert runtime.data_dir() == runtime.DRIVE / "roadseg" / "data"
    runtime.print_environment()
    lines = capsys.readouterr().out.splitlines()
    assert "results  on Google Drive, where they stay: MyDrive/roadseg/cpu" in lines


def test_results_go_where_the_user_says_even_beside_drive(
    colab, monkeypatch, tmp_path, capsys
):
    runtime.DRIVE.mkdir(parents=True)
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "mine"))
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    assert runtime.output_dir() == tmp_path / "mine" / "cpu"
    assert runtime.data_dir() == tmp_path / "data"
    runtime.print_environment()
    said = f"results  {tmp_path / 'mine' / 'cpu'}"
    assert said in capsys.readouterr().out.splitlines()


def test_drive_counts_in_colab_only(colab, monkeypatch, tmp_path, capsys):
    runtime.DRIVE.mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "google.colab")
    assert runtime.output_dir() == tmp_path / "course" / "build" / "cpu"
    runtime.print_environment()
    assert "results" not in capsys.readouterr().out
