"""The course on a pretended CUDA device: no mixed devices, no habit of a CPU needed."""

import contextlib
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
import evaluate
import export_onnx
import predict
import train
from benchmarking import contestants, measuring
from pretended_cuda import CUDA, PretendedCuda, pretended
from roadseg import (
    dataset1,
    evaluation,
    plots,
    recipes,
    runtime,
    synthetic,
    training,
    unet,
)
from roadseg.classes import NUM_CLASSES, VOID
from roadseg.recipes import Recipe, Stage

T4, A100 = (7, 5), (8, 0)
RECIPE = Recipe("test", (Stage(2, 32, 32), Stage(2, 32, 64)), None, batch_size=2)
MIXED = "Expected all tensors to be on the same device"


class Small(nn.Module):
    """The U-Net's interface in a few weights."""

    origin = unet.RANDOM.origin

    def __init__(self, num_classes=NUM_CLASSES, encoder_weights=None):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, NUM_CLASSES, 1))
        self.head.bias, self.head.out_channels = self.head[1].bias, NUM_CLASSES

    def forward(self, x):
        return self.head(self.encoder(x))


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU of its own for a test, an A100."""
    monkeypatch.setenv("ROADSEG_DEVICE", "cuda")
    with pretended(PretendedCuda(A100)) as gpu:
        yield gpu


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path / "build"))
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(training, "_workers", lambda: 0)  # processes take seconds
    measured = runtime.precision  # a test may replace it
    measured.cache_clear()
    yield
    measured.cache_clear()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Drawn scenes, (train, test), small enough to be drawn at once."""
    profile = replace(
        runtime.PROFILES["quick"], drawn_size=(48, 64), drawn_counts=(32, 6)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROADSEG_DATA", str(tmp_path_factory.mktemp("data")))
        return dataset1.load(profile)


def with_precision(monkeypatch, name: str) -> None:
    """The quick profile is float32 everywhere; a GPU trains in 16 bits."""
    monkeypatch.setattr(runtime, "precision", lambda: name)


# --- the pretence itself: can these checks fail? ------------------------------


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


def test_what_is_made_of_a_tensor_lies_where_it_lies(gpu):
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


def test_a_t4_has_no_bf16_and_the_pretence_ends():
    with pretended(PretendedCuda(T4)):
        x = torch.ones(2, device="cuda")
        with pytest.raises(RuntimeError, match="bfloat16"):
            torch.autocast("cuda", torch.bfloat16)
        torch.autocast("cuda", torch.bfloat16, False)
    assert x.device.type == "cpu"
    if not torch.cuda.device_count():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(1, device="cuda")


def test_two_habits_of_a_gpu():
    x, w = torch.rand(1, 3, 16, 16), torch.rand(4, 3, 3, 3)
    with pretended(PretendedCuda(tf32=True)):
        rough = F.conv2d(x.cuda(), w.cuda()).cpu()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            exact = F.conv2d(x.cuda(), w.cuda()).cpu()
    assert torch.equal(exact, F.conv2d(x, w))
    assert 1e-6 < (rough / exact - 1).abs().max() < 1e-3
    with pretended(PretendedCuda(noise=1, noisy=["convolution"])):
        one, two = (F.conv2d(x.cuda(), w.cuda()).cpu() for _ in "ab")
    assert 0 < (one / two - 1).abs().max() < 1e-5


# --- roadseg ------------------------------------------------------------------


@pytest.mark.parametrize(("capability", "name"), [(T4, "fp16"), (A100, "bf16")])
def test_the_machine_in_words(monkeypatch, capsys, capability, name):
    monkeypatch.delenv("ROADSEG_DEVICE")
    monkeypatch.delenv("ROADSEG_PROFILE")
    with pretended(PretendedCuda(capability)):
        assert runtime.profile().name == "gpu"
        assert runtime.precision() == name
        with runtime.autocast():
            layer = nn.Linear(2, 2, device="cuda")
            y = layer(torch.ones(1, 2, device="cuda"))
        assert y.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
        runtime.describe(data="none")
    said = capsys.readouterr().out
    assert "the default with CUDA" in said
    assert "Pretended GPU, 15 GiB" in said


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_training_is_interrupted_and_goes_on(gpu, tmp_path, scenes, precision):
    gpu.capability = T4 if precision == "fp16" else A100
    recipe = replace(RECIPE, precision=precision)
    some = scenes[0].subset(range(7))

    def trained(folder=None, on_epoch=None):
        runtime.seed_everything(0)
        return training.fit(Small(), some, recipe, folder, on_epoch=on_epoch)

    def press_ctrl_c(epoch, model):
        evaluation.evaluate(model, some)
        if epoch == 3:
            raise KeyboardInterrupt

    whole = trained()
    with pytest.raises(training.TrainingInterrupted, match="after 2 of 4 epochs"):
        trained(tmp_path, press_ctrl_c)
    resumed = trained(tmp_path)
    assert resumed.precision == precision
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    for key in a:
        assert a[key].is_cuda
        assert torch.equal(a[key], b[key]), key
    assert all(math.isfinite(row["train_loss"]) for row in whole.history)
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]


@pytest.mark.parametrize(("first", "then"), [(A100, T4), (T4, A100)])
def test_a_training_goes_on_on_another_gpu(monkeypatch, tmp_path, scenes, first, then):
    """Colab gives whatever GPU is free; a T4 has no bf16, an A100 has fp16 too."""
    monkeypatch.setenv("ROADSEG_DEVICE", "cuda")
    recipe = replace(RECIPE, stages=(Stage(3, 32, 32),))
    some = scenes[0].subset(range(4))

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pretended(PretendedCuda(first)):
        with_precision(monkeypatch, "bf16" if first == A100 else "fp16")
        with pytest.raises(training.TrainingInterrupted, match="after 1 of 3 epochs"):
            training.fit(Small(), some, recipe, tmp_path, on_epoch=stop)
    with pretended(PretendedCuda(then)):
        with_precision(monkeypatch, "bf16" if then == A100 else "fp16")
        run = training.fit(Small(), some, recipe, tmp_path)
    assert run.precision == "fp16"  # which both have
    assert len(run.history) == 3


def test_workers_load_while_the_gpu_is_in_use(gpu, monkeypatch, scenes):
    monkeypatch.setattr(training, "_workers", lambda: 1)
    recipe = replace(RECIPE, stages=(Stage(1, 32, 32),), precision="no")
    run = training.fit(Small(), scenes[0].subset(range(4)), recipe)
    assert len(run.history) == 1


def test_a_bad_batch_is_named(gpu, monkeypatch, scenes):
    some = scenes[0].subset(range(4))
    model = Small()
    with torch.no_grad():
        model.head[1].bias.fill_(torch.nan)
    with pytest.raises(training.TrainingError, match="its pictures"):
        training.fit(model, some, RECIPE)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_runs_out_beside_the_allocator(words):
    assert runtime.out_of_memory(RuntimeError(words))
    assert runtime.out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not runtime.out_of_memory(RuntimeError("CUDA error: invalid argument"))


def test_an_estimate_touches_one_gpu(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    asked = []
    state = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda d: asked.append(torch.device(d)) or state
    )
    assert training.estimate_seconds(Small(), RECIPE, 4) > 0
    assert set(asked) == {torch.device("cuda")}


@pytest.mark.parametrize("flip", [False, True])
def test_predictions_come_back(gpu, scenes, flip):
    test = scenes[1]
    model = Small().cuda()
    p = evaluation.predict_probabilities(model, test.images[0][None], (64, 96), flip)
    assert p.is_cuda
    masks = evaluation.predict_scenes(model, test, None, flip)
    assert all(m.device.type == "cpu" and m.numpy().max() < VOID for m in masks)
    evaluation.evaluate(model, test, (64, 96), flip)
    plots.plt.close(
        plots.predictions([test.images[0].cuda()], [masks[0].cuda()], [p[0].argmax(0)])
    )


def test_a_trained_network_is_kept_and_found_again(gpu, monkeypatch, scenes, capsys):
    monkeypatch.setattr(unet, "UNet", Small)
    monkeypatch.setitem(recipes.RECIPES, "quick", replace(RECIPE, name="quick"))
    some = scenes[0].subset(range(4))
    for _ in "ab":
        model, facts = training.trained_model(some, unet.RANDOM, watched=scenes[1])
        assert next(model.parameters()).is_cuda
        assert "Pretended GPU" in facts["machine"]
        evaluation.evaluate(model, scenes[1])
    assert capsys.readouterr().out.count("training 4 epochs") == 1
    seen = training.watched_masks()
    assert len(seen) == len(scenes[1])
    evaluation.score(scenes[1].masks, [by_epoch[4] for by_epoch in seen.values()])


# --- scripts ------------------------------------------------------------------


@pytest.fixture
def roads(tmp_path):
    """Drawn scenes in dataset1's layout, and a network of random weights."""
    for split in ("train", "test"):
        dataset1.write(tmp_path, split, synthetic.draw_scenes(3, (64, 96)))
    torch.manual_seed(0)
    unet.save(
        unet.UNet(), tmp_path / "unet.safetensors", {"recipe": "Recipe(feed=(64, 96))"}
    )
    return tmp_path


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_scripts_predict_and_evaluate(gpu, monkeypatch, roads, precision):
    with_precision(monkeypatch, precision)
    model = ["--model", str(roads / "unet.safetensors")]
    scores = roads / "scores.json"
    options = ["--data", str(roads), "--flip", "--json", str(scores)]
    assert evaluate.main([*model, *options]) == 0
    assert json.loads(scores.read_text())["machine"].endswith(precision)
    Image.fromarray(synthetic.draw_scene(1, (50, 70))[0]).save(roads / "street.png")
    out = roads / "out"
    assert predict.main([*model, str(roads / "street.png"), "--out", str(out)]) == 0
    assert np.array(Image.open(out / "street_mask.png")).shape == (50, 70)


@pytest.mark.slow
def test_a_network_is_exported(gpu, roads):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = ["--model", str(roads / "unet.safetensors")]
    out = ["--out", str(roads / "unet.onnx"), "--int8", "2", "--data", str(roads)]
    assert export_onnx.main([*model, *out]) == 0


def test_the_training_script(gpu, monkeypatch, capsys, scenes):
    monkeypatch.setattr(unet, "UNet", Small)
    monkeypatch.setattr(dataset1, "load", lambda: scenes)
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert train.main() == 0
    assert "NOT COMPARABLE" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["original", "ours"])
def test_the_benchmark_measures(gpu, monkeypatch, roads, name):
    who = replace(contestants.CONTESTANTS[name], network=lambda weights: Small())
    monkeypatch.setitem(contestants.CONTESTANTS, name, who)
    job = {"kind": "throughput", "contestant": name, "seed": 0}
    job |= {"size": [32, 64], "pictures": 2}
    assert measuring.measure(job, roads)["memory"] > 0
    assert gpu.synchronised
    job = {"kind": "accuracy", "contestant": name, "seed": 0}
    job |= {"cap": 60, "until": 2.0, "budget": None}
    found = measuring.measure(job, roads)
    assert found["whole"]


@pytest.mark.parametrize(("precision", "name"), [("bf16", "bf16"), ("fp16", "fp16")])
def test_the_peak_is_measured_in_a_format_that_is_there(
    gpu, monkeypatch, precision, name
):
    with_precision(monkeypatch, precision)
    found = measuring.measure_cost({"contestants": []})
    assert found["peak"].keys() == {"float32", name}


# --- the chapters -------------------------------------------------------------

FOUR = chapter.code_cells("04_training.ipynb")


def between(first: str | None, last: str) -> list[str]:
    """Return chapter 4's cells from one that holds a text to one that holds another."""
    start = FOUR.index(chapter.cell_with(FOUR, first)) if first else 0
    return FOUR[start : FOUR.index(chapter.cell_with(FOUR, last)) + 1]


BEGIN = between(None, "plots.use_style()")
BEGIN += [chapter.cell_with(FOUR, "train, test = dataset1.load()")]
LOOP = between("size = profile.demo_size", "void_out, 2 * profile.demo_steps)")
LOOP += between("rest, held =", 'print(f"{steps} steps in')
EXPERIMENT = between("class Variant:", "again = run(")
TOY = between("class Toy(", "toy_recipe =")
TOY += between("whole = training.fit", "tensors of the two networks agree")


@pytest.fixture
def small_world(monkeypatch, scenes):
    monkeypatch.setattr(unet, "UNet", Small)
    monkeypatch.setattr(dataset1, "load", lambda: scenes)
    monkeypatch.setattr(
        plots, "show", lambda fig, alt, photo=False, **live: plots.plt.close(fig)
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_loop_of_chapter_4(gpu, monkeypatch, small_world, precision):
    gpu.capability = T4 if precision == "fp16" else A100
    gpu.noise = 1
    with_precision(monkeypatch, precision)
    last = [chapter.cell_with(FOUR, "def step_seconds(where):")]
    names = chapter.run([*BEGIN, *LOOP, *EXPERIMENT, *last])
    assert names["again"].losses
    assert "GPU" in names["timed"]


def test_the_toy_of_chapter_4_where_sums_have_no_order(gpu, small_world, scenes):
    gpu.noise = 4
    # as many pictures as the gpu profile trains on: 32 steps, each a little apart
    chapter.run([*BEGIN, "small_set = train", *TOY])


def test_chapter_2_compares_networks_exactly(gpu, monkeypatch, scenes):
    monkeypatch.setattr(dataset1, "load", lambda: scenes)
    gpu.noise, gpu.noisy, gpu.tf32 = 1, ("convolution",), True
    cells = chapter.code_cells("02_vgg16_bn_unet.ipynb")
    keys = ("plots.use_style()", "train_set, _ = dataset1.load()", "count_all, n =")
    keys += ("small = torch.stack", "device = runtime.device()", "maps = []")
    keys += ("def decode(model", "noisy = [")
    chapter.run([chapter.cell_with(cells, key) for key in keys])


def test_the_decoders_of_chapter_2_learn_without_bf16(gpu, monkeypatch):
    """The gradients of a mean over many pixels are too small for fp16 as they are."""
    gpu.capability = T4
    with_precision(monkeypatch, "fp16")
    cells = chapter.code_cells("02_vgg16_bn_unet.ipynb")
    formats = []
    cell = chapter.cell_with(cells, "def overfit(without")
    names = {"runtime": runtime, "profile": runtime.profile(), "torch": torch}
    names |= {"unet": unet, "device": runtime.device(), "F": F, "VOID": VOID, "n": 1}
    monkeypatch.setattr(unet, "UNet", Small)

    def decode(model, maps, without):
        y = model(maps[0])
        formats.append(y.dtype)
        return y

    names |= {"decode": decode, "maps": [torch.rand(1, 3, 32, 32, device="cuda")]}
    names["masks"] = torch.zeros(1, 32, 32, dtype=torch.long, device="cuda")
    with contextlib.redirect_stdout(None):
        exec(cell, names)
        names["overfit"](set(), steps=3)
    assert set(formats) == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("01_transposed_convolution", "no"),
        ("02_vgg16_bn_unet", "no"),
        ("02_vgg16_bn_unet", "bf16"),
        ("03_road_scenes", "no"),
        ("04_training", "no"),
        ("05_evaluation", "no"),
    ],
)
def test_all_cells_of_a_chapter(gpu, monkeypatch, name, precision):
    with_precision(monkeypatch, precision)
    monkeypatch.setattr(
        plots, "show", lambda fig, alt, photo=False, **live: plots.plt.close(fig)
    )
    _, *cells = chapter.code_cells(f"{name}.ipynb")  # the first fetches the course
    chapter.run(cells)
