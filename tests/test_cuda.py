"""The package on a simulated CUDA device: no mixed devices, no reliance on a CPU."""

import copy
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import chapter
from roadseg import (
    cli,
    inference,
    loading,
    metrics,
    plots,
    recipes,
    runtime,
    scenes,
    synthetic,
    trained,
    training,
    unet,
    weights,
)
from roadseg.classes import CAMVID
from roadseg.recipes import Phase, Recipe
from simulated_cuda import CUDA, SimulatedCuda, simulated

P100, T4, A100 = (6, 0), (7, 5), (8, 0)
RECIPE = Recipe("test", (Phase(2, 32, 32), Phase(2, 32, 64)), None, batch_size=2)
MIXED = "Expected all tensors to be on the same device"


class Small(nn.Module):
    """The U-Net's interface in a few weights."""

    def __init__(self, num_classes=12, encoder_weights=None):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, num_classes, 1))

    def forward(self, x):
        return self.head(self.encoder(x))


@pytest.fixture
def gpu(monkeypatch):
    """A simulated GPU of its own for a test, an A100."""
    monkeypatch.setenv("ROADSEG_DEVICE", "cuda")
    with simulated(SimulatedCuda(A100)) as gpu:
        runtime.reset()
        yield gpu


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "build"))
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(loading, "num_workers", lambda: 0)  # processes take seconds
    runtime.reset()


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    """A folder with synthetic scenes, small enough to be drawn at once."""
    folder = tmp_path_factory.mktemp("roads")
    for split, count in (("train", 8), ("test", 3)):
        scenes.write_scenes(folder, split, synthetic.draw_scenes(count, (48, 64)))
    return folder


@pytest.fixture(scope="module")
def pair(roads):
    """(train, test)."""
    return tuple(scenes.RoadScenes(roads, split) for split in ("train", "test"))


def in_16_bits():
    """The quick profile is fp32 everywhere; others train in what the GPU has."""
    runtime.configure(profile=replace(runtime.PROFILES["quick"], deterministic=False))


# --- the simulation itself: can these checks fail? ----------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda g, c: g + c,
        lambda g, c: g.add_(c),
        lambda g, c: c.add_(g),
        lambda g, c: torch.cat([g, c]),
        lambda g, c: torch.stack([g, c]),
        lambda g, c: torch.equal(g, c),
        lambda g, c: torch.tensor(1.0).add_(g[0]),
        lambda g, c: c[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda g, c: g.index_put_((torch.tensor([0, 1]),), c[:2]),
        lambda g, c: F.linear(g, torch.ones(2, 3)),
        lambda g, c: F.cross_entropy(g, torch.tensor(0)[None][0], torch.ones(3)),
        lambda g, c: nn.BatchNorm1d(3)(g.repeat(2, 1)),
        lambda g, c: nn.Linear(3, 2).cuda()(c),
    ],
)
def test_mixed_devices_are_caught(gpu, mix):
    with pytest.raises(RuntimeError, match=MIXED):
        mix(torch.ones(3, device="cuda"), torch.ones(3))
    with pytest.raises(RuntimeError, match=MIXED), torch.inference_mode():
        mix(torch.ones(3, device="cuda"), torch.ones(3))


def test_mixed_devices_are_caught_in_the_backward_pass(gpu):
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return g * torch.full((3,), 2.0)

    y = Bad.apply(torch.ones(3, device="cuda", requires_grad=True))
    with pytest.raises(RuntimeError, match=MIXED):
        y.sum().backward()


def test_numpy_takes_no_tensor_from_the_gpu(gpu):
    x = torch.ones(3, device="cuda")
    for read in (lambda: x.numpy(), lambda: np.asarray(x), lambda: np.asarray(x[0])):
        with pytest.raises(TypeError, match="to host memory first"):
            read()
    assert x.cpu().numpy().tolist() == x.tolist() == [1, 1, 1]
    assert x[0].item() == 1


def test_generators_belong_to_a_device(gpu):
    ours, theirs = torch.Generator("cuda"), torch.Generator()
    assert ours.device.type == "cuda"
    assert torch.rand(3, device="cuda", generator=ours).is_cuda
    torch.rand(3, generator=theirs)
    for device, wrong in (("cuda", theirs), ("cpu", ours)):
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.rand(3, device=device, generator=wrong)
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.ones(3).cuda().normal_(generator=theirs)


def test_results_are_where_their_tensors_are(gpu):
    x, c = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
    for y in (
        *(x[0], x.T, x.view(3, 2), x.detach(), x.half(), x.clone(), x.sum(), x.max(0)),
        *(torch.zeros_like(x), x.new_zeros(2), x.new_tensor([1.0]), copy.deepcopy(x)),
        *(x.to(torch.int), x.to(x), c.to(x), c.cuda(), c.to("cuda", torch.int)),
        *(torch.as_tensor(c, device="cuda"), nn.Parameter(x), x + 1, x * x[0, 0].cpu()),
        *(x[torch.tensor([0])], x.where(x > 0, 0)),
    ):
        for z in y if isinstance(y, tuple) else (y,):
            assert z.device == CUDA
            assert z.is_cuda
    for y in (
        x.cpu(),
        x.to("cpu"),
        x.to(c),
        torch.zeros_like(x, device="cpu"),
        c,
        c[0],
    ):
        assert y.device.type == "cpu"
        y.numpy()
    with pytest.raises(AssertionError, match="device"):
        torch.testing.assert_close(x, c)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1, device="cuda:3")


def test_networks_move_and_train_there(gpu):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    adam = torch.optim.AdamW(model.parameters(), fused=True)
    model.to("cuda", memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=MIXED):
        model(torch.ones(2, 3, 8, 8))
    scaler = torch.amp.GradScaler("cuda")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            y = model(torch.rand(2, 3, 8, 8, device="cuda"))
        assert y.dtype == dtype
        scaler.scale(y.float().square().mean()).backward()
        scaler.step(adam)
        scaler.update()
    state = [v for s in adam.state_dict()["state"].values() for v in s.values()]
    twin = copy.deepcopy(model)
    for x in (*state, *twin.state_dict().values(), model[0].weight.grad):
        assert x.is_cuda


def test_files_remember_the_device(gpu):
    file = io.BytesIO()
    torch.save({"a": torch.ones(2, device="cuda"), "b": torch.ones(2)}, file)
    file.seek(0)
    back = torch.load(file)
    assert [back[k].device.type for k in "ab"] == ["cuda", "cpu"]
    file.seek(0)
    assert torch.load(file, map_location="cpu")["a"].device.type == "cpu"


def test_a_t4_has_no_bf16_and_the_simulation_ends():
    with simulated(SimulatedCuda(T4)):
        x = torch.ones(2, device="cuda")
        with pytest.raises(RuntimeError, match="bfloat16"):
            torch.autocast("cuda", torch.bfloat16)
        torch.autocast("cuda", torch.bfloat16, False)
    assert x.device.type == "cpu"
    if not torch.cuda.device_count():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(1, device="cuda")


def test_two_properties_of_a_gpu():
    x, w = torch.rand(1, 3, 16, 16), torch.rand(4, 3, 3, 3)
    with simulated(SimulatedCuda(tf32=True)):
        rough = F.conv2d(x.cuda(), w.cuda()).cpu()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            exact = F.conv2d(x.cuda(), w.cuda()).cpu()
    assert torch.equal(exact, F.conv2d(x, w))
    assert 1e-6 < (rough / exact - 1).abs().max() < 1e-3
    with simulated(SimulatedCuda(noise=1, noisy=["convolution"])):
        one, two = (F.conv2d(x.cuda(), w.cuda()).cpu() for _ in "ab")
    assert 0 < (one / two - 1).abs().max() < 1e-5


# --- roadseg ------------------------------------------------------------------


def test_a_gpu_without_kernels_is_told_and_the_cpu_trains(monkeypatch, capsys, pair):
    """As on Kaggle, where PyTorch no longer has kernels for the P100."""
    monkeypatch.delenv("ROADSEG_PROFILE")
    recipe = replace(RECIPE, phases=(Phase(1, 32, 32),))
    with simulated(SimulatedCuda(P100)):
        with pytest.raises(RuntimeError, match="no kernel image"):
            torch.ones(2, device="cuda") + 1
        with pytest.raises(runtime.SettingsError, match="has compute capability 6.0"):
            runtime.configure(device="cuda")
        monkeypatch.delenv("ROADSEG_DEVICE")
        runtime.reset()
        capsys.readouterr()
        assert runtime.device().type == "cpu"
        assert runtime.profile().name == "cpu"
        (told,) = capsys.readouterr().out.splitlines()
        assert "GPU can't be used" in told
        assert "Simulated GPU has compute capability 6.0" in told
        assert "GPU T4 x2" in told
        result = training.fit(Small(), pair[0].subset(range(4)), recipe)
        assert not next(result.model.parameters()).is_cuda
        assert inference.evaluate(result.model, pair[1]).acc >= 0
        assert "Simulated GPU" not in runtime.hardware_info()
    assert capsys.readouterr().out.count("GPU can't be used") == 0  # said once


@pytest.mark.parametrize(("capability", "name"), [(T4, "fp16"), (A100, "bf16")])
def test_the_gpu_decides_profile_and_precision(monkeypatch, capsys, capability, name):
    monkeypatch.delenv("ROADSEG_DEVICE")
    monkeypatch.delenv("ROADSEG_PROFILE")
    with simulated(SimulatedCuda(capability)):
        runtime.reset()
        assert runtime.profile().name == "gpu"
        assert runtime.amp_dtype() == name
        layer = nn.Linear(2, 2, device="cuda")
        with runtime.autocast(layer):
            y = layer(torch.ones(1, 2, device="cuda"))
        assert y.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
        runtime.print_environment(data="none")
    said = capsys.readouterr().out
    assert "the default with CUDA" in said
    assert "Simulated GPU, 15 GiB" in said


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_a_training_is_interrupted_and_continued(
    gpu, tmp_path, pair, precision, ema_decay
):
    gpu.capability = T4 if precision == "fp16" else A100
    recipe = replace(RECIPE, precision=precision, ema_decay=ema_decay)
    some = pair[0].subset(range(7))

    def train(folder=None, on_epoch=None):
        runtime.seed_everything(0)
        return training.fit(Small(), some, recipe, folder=folder, on_epoch=on_epoch)

    def press_ctrl_c(epoch, model):
        inference.evaluate(model, some)
        if epoch == 3:
            raise KeyboardInterrupt

    whole = train()
    with pytest.raises(training.TrainingInterrupted, match="after 2 of 4 epochs"):
        train(tmp_path, press_ctrl_c)
    resumed = train(tmp_path)
    assert resumed.precision == precision
    pairs = [(whole.model, resumed.model)]
    pairs += [(whole.averaged, resumed.averaged)] if ema_decay else []
    for a, b in pairs:
        for (key, x), y in zip(
            a.state_dict().items(), b.state_dict().values(), strict=True
        ):
            assert x.is_cuda
            assert torch.equal(x, y), key
    assert all(math.isfinite(row["train_loss"]) for row in whole.history)
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]


@pytest.mark.parametrize(("first", "then"), [(A100, T4), (T4, A100)])
def test_a_training_continues_on_another_gpu(monkeypatch, tmp_path, pair, first, then):
    """Colab gives any GPU that is free; a T4 has no bf16, an A100 has fp16 too."""
    monkeypatch.setenv("ROADSEG_DEVICE", "cuda")
    recipe = replace(RECIPE, phases=(Phase(3, 32, 32),))
    some = pair[0].subset(range(4))

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with simulated(SimulatedCuda(first)):
        runtime.reset()
        in_16_bits()
        with pytest.raises(training.TrainingInterrupted, match="after 1 of 3 epochs"):
            training.fit(Small(), some, recipe, folder=tmp_path, on_epoch=stop)
    with simulated(SimulatedCuda(then)):
        runtime.reset()
        in_16_bits()
        result = training.fit(Small(), some, recipe, folder=tmp_path)
    assert result.precision == "fp16"  # which both have
    assert len(result.history) == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_load_while_the_gpu_is_in_use(gpu, monkeypatch, pair):
    monkeypatch.setattr(loading, "num_workers", lambda: 1)
    recipe = replace(RECIPE, phases=(Phase(1, 32, 32),), precision="fp32")
    result = training.fit(Small(), pair[0].subset(range(4)), recipe)
    assert len(result.history) == 1


def test_a_gpu_has_workers_and_a_cpu_has_none(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("ROADSEG_DEVICE", "cpu")
    runtime.reset()
    assert loading.num_workers() == 0
    monkeypatch.setenv("ROADSEG_DEVICE", "cuda")
    with simulated():
        runtime.reset()
        assert loading.num_workers() > 0
    monkeypatch.setenv("ROADSEG_DEVICE", "cpu")
    runtime.reset()


def test_a_bad_batch_is_named(gpu, pair):
    some = pair[0].subset(range(4))
    model = Small()
    with torch.no_grad():
        model.head[1].bias.fill_(torch.nan)
    with pytest.raises(training.TrainingError, match="its images: .*png"):
        training.fit(model, some, RECIPE)


def test_a_batch_without_labels_does_no_harm(gpu, pair):
    some = copy.copy(pair[0].subset(range(4)))
    some.masks = [mask.clone() for mask in some.masks]
    some.masks[1][:] = CAMVID.ignore_index
    result = training.fit(Small(), some, replace(RECIPE, batch_size=1))
    assert all(p.isfinite().all() for p in result.model.parameters())


def test_an_estimate_uses_one_gpu(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    asked = []
    state = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda d: asked.append(torch.device(d)) or state
    )
    assert trained.estimate_seconds(Small(), RECIPE, 4) > 0
    assert {d.index or 0 for d in asked} == {0}


@pytest.mark.parametrize("hflip", [False, True])
def test_predictions_come_back(gpu, pair, hflip):
    test = pair[1]
    model = Small().cuda()
    p = inference.predict_probabilities(model, test.images[0][None], (64, 96), hflip)
    assert p.isfinite().all()
    masks = inference.predict_scenes(model, test, None, hflip)
    scored = set(CAMVID.scored)
    assert all(m.device.type == "cpu" for m in masks)
    assert all(set(m.unique().tolist()) <= scored for m in masks)
    inference.evaluate(model, test, (64, 96), hflip)
    plots.plt.close(
        plots.predictions(
            [test.images[0].cuda()], [test.masks[0].cuda()], [masks[0].cuda()]
        )
    )


def test_a_trained_network_is_kept_and_found_again(gpu, monkeypatch, pair, capsys):
    monkeypatch.setitem(recipes.RECIPES, "quick", replace(RECIPE, name="quick"))
    some, test = pair[0].subset(range(4)), pair[1]
    for _ in "ab":
        saved = trained.load_or_train(
            some, weights.RANDOM_INIT, tracked=test, model=Small()
        )
        assert next(saved.model.parameters()).is_cuda
        assert "Simulated GPU" in saved.metadata["hardware"]
        inference.evaluate(saved.model, test)
    assert capsys.readouterr().out.count("training 4 epochs") == 1
    snapshots = trained.load_snapshots()
    assert len(snapshots) == len(test)
    last = [by_epoch[4] for by_epoch in snapshots.values()]
    metrics.compute_scores(test.masks, last, CAMVID)


# --- the command line ---------------------------------------------------------


@pytest.fixture
def network(tmp_path):
    """The file of a network with random weights."""
    torch.manual_seed(0)
    path = tmp_path / "unet.safetensors"
    weights.save_model(unet.UNet(), path, CAMVID, {"input_size": [64, 96]})
    return path


@pytest.mark.parametrize(("capability", "name"), [(A100, "bf16"), (T4, "fp16")])
def test_commands_predict_and_evaluate(gpu, tmp_path, roads, network, capability, name):
    gpu.capability = capability
    in_16_bits()
    file = tmp_path / "scores.json"
    options = ["--data", str(roads), "--hflip", "--json", str(file)]
    assert cli.main(["evaluate", "--model", str(network), *options]) == 0
    assert json.loads(file.read_text())["hardware"].endswith(name)
    image = tmp_path / "street.png"
    Image.fromarray(synthetic.draw_scene(1, (50, 70))[0]).save(image)
    out = tmp_path / "out"
    options = [str(image), "--model", str(network), "--out", str(out)]
    assert cli.main(["predict", *options]) == 0
    assert np.array(Image.open(out / "street_mask.png")).shape == (50, 70)


@pytest.mark.slow
def test_a_network_is_exported(gpu, tmp_path, roads, network):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = ["--out", str(tmp_path / "unet.onnx"), "--int8", "2", "--data", str(roads)]
    assert cli.main(["export", "--model", str(network), *out]) == 0


def test_the_training_command(gpu, monkeypatch, capsys, roads):
    monkeypatch.setitem(recipes.RECIPES, "quick", replace(RECIPE, name="quick"))
    monkeypatch.setattr(unet, "UNet", Small)
    assert cli.main(["train", "--data", str(roads)]) == 0
    assert len([x for x in capsys.readouterr().out.splitlines() if "loss" in x]) == 4


# --- the chapters -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16", "noise"])
@pytest.mark.parametrize(
    "name", sorted(p.name for p in chapter.NOTEBOOKS.glob("[0-9]*.ipynb"))
)
def test_all_cells_of_a_chapter(gpu, monkeypatch, name, kind):
    gpu.capability = T4 if kind == "fp16" else A100
    if kind in ("bf16", "fp16"):
        in_16_bits()
    elif kind == "noise":  # sums in no fixed order, and rounded convolutions
        gpu.noise, gpu.noisy, gpu.tf32 = 1, ("convolution",), True
    monkeypatch.setattr(
        plots, "show", lambda fig, *args, **more: plots.plt.close(fig), raising=True
    )
    _, *cells = chapter.code_cells(name)  # the first fetches the course
    chapter.run(cells)
