"""The benchmark and the ablation study, on synthetic scenes and for seconds."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from roadseg import runtime, synthetic, unet
from roadseg.classes import CAMVID, RoadsegError
from roadseg.recipes import Phase, Recipe
from roadseg.scenes import RoadScenes, write_scenes
from roadseg.weights import RANDOM_INIT, EncoderWeights

FOLDER = Path(__file__).resolve().parents[1] / "benchmark"
sys.path.append(str(FOLDER))

import ablate  # noqa: E402
import common  # noqa: E402
import run  # noqa: E402
import table  # noqa: E402
import throughput  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four training scenes, two held-out ones, random encoder weights."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, (split, count) in enumerate((("train", 4), ("test", 2))):
        write_scenes(folder, split, synthetic.draw_scenes(count, (96, 128), seed))
    scenes = [RoadScenes(folder, split) for split in ("train", "test")]
    return *scenes, RANDOM_INIT


class Tiny(nn.Module):
    """Stands for the U-Net where its size only costs time."""

    def __init__(self, num_classes=12, encoder_weights=None):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        return self.head(self.encoder(x).relu())


# --- result files -------------------------------------------------------------

CONDITIONS = dict.fromkeys(common.CONDITIONS, "same")


def test_rows_are_appended_and_read_back(tmp_path):
    path = tmp_path / "new" / "x.csv"
    assert common.read_rows(path) == []
    for n in range(2):
        common.append_row(path, {"row": "a, b", "seed": n, "miou": 0.5})
    assert [r["seed"] for r in common.read_rows(path)] == ["0", "1"]
    assert path.read_text().startswith('row,seed,miou\n"a, b",0,0.5\n')


def test_results_of_other_conditions_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    common.append_row(path, CONDITIONS)
    common.append_row(path, CONDITIONS | {"weights": f"{RANDOM_INIT.source} (random)"})
    common.check_same_conditions(path, CONDITIONS)
    with pytest.raises(RoadsegError, match=r"x\.csv has results with other versions"):
        common.check_same_conditions(path, CONDITIONS | {"versions": "newer"})


def test_only_missing_jobs_are_run(tmp_path, capfd):
    script, path = tmp_path / "job.py", tmp_path / "x.csv"
    script.write_text(
        "import sys; print(sys.argv[1:]); sys.exit('seed=2' in sys.argv)", "utf-8"
    )
    common.append_row(path, {"row": "a", "seed": 0, "miou": 1})
    jobs = [{"kind": "k", "row": "a", "seed": n} for n in range(2)]
    assert common.run_missing(str(script), jobs, path, ["--x"]) == 0
    out = capfd.readouterr().out
    assert "seed=1" in out
    assert "seed=0" not in out
    jobs = [{"row": "a", "seed": n} for n in (2, 3)]
    assert common.run_missing(str(script), jobs, path, []) == 1
    assert "seed=3" in capfd.readouterr().out  # a failure does not stop the others


def test_synthetic_scenes_are_refused(monkeypatch, data):
    monkeypatch.setattr(common.dataset1, "load", lambda: (data[0], data[1]))
    data[0].is_real = False
    runtime.configure(profile="cpu")
    with pytest.raises(RoadsegError, match="synthetic scenes say nothing"):
        common.load_data()


# --- ablation -----------------------------------------------------------------


@pytest.mark.parametrize("name", ablate.ROWS)
def test_every_row_trains_and_is_scored(name, data, tmp_path, monkeypatch):
    if ablate.ROWS[name].model is unet.UNet:
        monkeypatch.setattr(
            ablate, "ROWS", {name: ablate.replace(ablate.ROWS[name], model=Tiny)}
        )
    row = ablate.train_row(name, 1, data, tmp_path / "checkpoints", quick=True)
    assert (row["row"], row["seed"]) == (name, 1)
    assert 0 <= row["miou"] <= row["acc"] <= 1
    assert set(common.SCORES) | set(common.CONDITIONS) <= set(row)
    assert list(tmp_path.iterdir()) == []  # nothing is left of it


def test_an_interrupted_row_resumes(data, tmp_path, monkeypatch):
    steps = []

    class Counted(Tiny):
        def forward(self, x):
            steps.append(self.training)
            return super().forward(x)

    def interrupt(*given):
        raise KeyboardInterrupt

    rows = {"x": ablate.replace(ablate.ROWS["baseline"], model=Counted)}
    monkeypatch.setattr(ablate, "ROWS", rows)
    with monkeypatch.context() as patch:
        patch.setattr(ablate.inference, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ablate.train_row("x", 0, data, tmp_path / "checkpoints", quick=True)
    assert sum(steps) == 4
    row = ablate.train_row("x", 0, data, tmp_path / "checkpoints", quick=True)
    assert sum(steps) == 4  # nothing is trained again
    assert row["images"] == 8


def test_rows_differ_from_the_baseline_in_the_number_of_images_only_where_said():
    epochs = {
        name: ablate.replace(ablate.BASELINE, **row.changes).epochs
        for name, row in ablate.ROWS.items()
    }
    assert {n for n, v in epochs.items() if v != epochs["baseline"]} == {
        "one image size, at equal time",
        "fp32, at equal time",
        "two encoder stages frozen, at equal time",
        "more small images, at equal time",
    }


def test_without_skips_only_the_bottleneck_reaches_the_output():
    torch.manual_seed(0)
    none, third = ablate.SkipUNet(()).eval(), ablate.SkipUNet((3,)).eval()
    plain = unet.UNet().eval()
    third.load_state_dict(plain.state_dict())
    none.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)

    def used(model, level):
        """Whether the output depends on the convolution of a skip connection."""
        block = model.convs[5 - level][0]
        below = model.ups[5 - level][0].out_channels
        with torch.inference_mode():
            before, weight = model(x), block.weight[:, below:].clone()
            block.weight[:, below:] = 0
            changed = not torch.equal(model(x), before)
            block.weight[:, below:] = weight
        return changed

    assert [used(none, k) for k in range(1, 6)] == [False] * 5
    assert [used(third, k) for k in range(1, 6)] == [k == 3 for k in range(1, 6)]
    assert [used(plain, k) for k in range(1, 6)] == [True] * 5


def test_no_augmentation_shows_whole_images_on_one_grid():
    ramp = torch.arange(64).expand(48, 64) * 3
    image = tv_tensors.Image(ramp.expand(3, -1, -1).byte())
    transform = ablate.no_augmentation(ablate.BASELINE, Phase(1, 24, 32))
    x, y = transform(image, tv_tensors.Mask(ramp.byte()))
    again, _ = transform(image, tv_tensors.Mask(ramp.byte()))
    assert torch.equal(x, again)
    assert x[0, 0, 0] <= 3
    assert x[0, 0, -1] >= 183
    assert (x[0].float() - y.float()).abs().max() <= 3  # half an output pixel


def test_balanced_crops_show_rare_classes_more_often():
    ids = torch.zeros(48, 64, dtype=torch.uint8)
    ids[:12, :16] = 1  # rare, in a corner
    mask = tv_tensors.Mask(ids)
    image = tv_tensors.Image(torch.zeros(3, 48, 64, dtype=torch.uint8))
    arguments = {"size": (24, 32), "scale": (0.2, 0.3), "ratio": (1.2, 1.4)}
    weight = torch.tensor([0.0, 1.0])
    shares = []
    for crop in (
        ablate.recipes.AlignedRandomResizedCrop(**arguments),
        ablate.BalancedCrop(weight, **arguments),
    ):
        torch.manual_seed(0)
        shares.append(sum((crop(image, mask)[1] == 1).sum().item() for _ in range(40)))
    assert shares[1] > 1.5 * shares[0] > 0


def test_frozen_stages_are_the_first_two():
    model = ablate.first_stages_frozen()
    trained = [any(p.requires_grad for p in s.parameters()) for s in model.encoder]
    assert trained == [False, False, True, True, True]
    assert all(p.requires_grad for p in model.head.parameters())


def test_unlabeled_pixels_can_be_a_class():
    masks = [torch.tensor([[0, 1, 11, 11]])]
    criterion = ablate.learn_ignored(ablate.BASELINE, masks)
    logits = torch.zeros(1, 12, 1, 1, requires_grad=True)
    criterion(logits, torch.tensor([[[11]]])).backward()
    assert logits.grad[0, 11] < 0


def test_the_study_runs_and_continues(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ROADSEG_OUTPUT", str(tmp_path))
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path / "data"))
    runtime.reset()
    output = tmp_path / "ablation.csv"
    command = ["--quick", "--rows", "baseline", "--seeds", "0", "--output", str(output)]
    assert ablate.main(command) == 0
    (row,) = common.read_rows(output)
    assert (row["row"], row["seed"]) == ("baseline", "0")
    capfd.readouterr()
    assert ablate.main(command) == 0
    assert "epoch" not in capfd.readouterr().out  # nothing is trained again
    assert len(common.read_rows(output)) == 1


# --- benchmark ----------------------------------------------------------------


def test_the_original_splits_vgg16_where_vgg13_has_its_poolings():
    encoder = EncoderWeights(unet.vgg16_bn_features().state_dict(), "test", True)
    model = run.original_network(encoder, 12).eval()
    assert [len(stage) for stage in model.encoder] == [6, 7, 7, 7, 7]
    assert type(model.encoder[4][-1]) is nn.MaxPool2d  # the skip comes after a pooling
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 12, 64, 64)


def test_smp_starts_from_the_same_encoder_weights():
    pytest.importorskip("segmentation_models_pytorch")
    state = unet.vgg16_bn_features().state_dict()
    model = run.smp_network(EncoderWeights(state, "test", True), 12)
    for k, v in model.encoder.features.state_dict().items():
        assert torch.equal(v, state[k])


def test_the_original_decodes_files_and_blends_labels(tmp_path):
    mask = np.zeros((48, 64), np.uint8)
    mask[:, ::3] = 8
    scene = ("A_1.png", np.zeros((48, 64, 3), np.uint8), mask)
    write_scenes(tmp_path, "train", [scene])
    files = run.Files(RoadScenes(tmp_path, "train"), (32, 48))
    x, blended = files[0]
    assert x.shape == (3, 32, 48)
    assert (blended.shape, blended.dtype) == ((32, 48), torch.int64)
    assert set(range(1, 8)) & set(blended.unique().tolist())


@pytest.mark.parametrize("name", run.METHODS)
def test_every_method_trains_for_a_budget(name, data, monkeypatch):
    if name == "smp":
        pytest.importorskip("segmentation_models_pytorch")
    method = run.METHODS[name]
    if name != "original":
        network = lambda encoder, num_classes: Tiny(num_classes)  # noqa: E731
        methods = {name: ablate.replace(method, network=network)}
        monkeypatch.setattr(run, "METHODS", methods)
    job = {"method": name, "budget": "1", "seed": "0", "rate": "1e-3"}
    row = run.score(job, data, quick=True)
    assert 0 <= row["miou"] <= row["acc"] <= 1
    assert row["images"] >= 2
    assert row["precision"] == "fp32"


@pytest.mark.parametrize(
    ("budget", "epochs"), [(5, None), (10, [1]), (40, [2, 1]), (80, [4, 2])]
)
def test_epochs_are_planned_for_a_budget(budget, epochs):
    recipe = Recipe("x", (Phase(6, 32, 32), Phase(3, 64, 64)), None)
    if epochs is None:
        with pytest.raises(RoadsegError, match="not one epoch fits into 5 s"):
            run.plan_epochs(recipe, [9.0, 18.0], budget)
        return
    planned = run.plan_epochs(recipe, [9.0, 18.0], budget).phases
    assert [p.epochs for p in planned] == epochs
    assert sum(p.epochs * (9 if p.height == 32 else 18) for p in planned) <= budget


def test_the_best_rate_is_used_for_further_trainings(tmp_path):
    path = tmp_path / "scores.csv"
    for rate, miou in (("0.0001", 0.3), ("0.0003", 0.5), ("0.001", 0.4)):
        first = {"method": "smp", "budget": 600, "seed": 0, "rate": rate, "miou": miou}
        common.append_row(path, first)
    jobs = list(run.plan(["smp", "ours"], path, quick=False))
    rates = [j["rate"] for j in jobs if j["method"] == "smp"]
    assert rates == [*run.RATES, "0.0003", "0.0003", "0.0003"]
    assert [(j["budget"], j["seed"]) for j in jobs if j["method"] == "ours"] == [
        *((600, 0), (600, 1), (600, 2), (900, 0))
    ]


def test_throughput_has_a_row_for_each_method(tmp_path):
    output = tmp_path / "throughput.csv"
    command = ["--quick", "--methods", "original", "ours", "--output", str(output)]
    assert throughput.main(command) == 0
    assert throughput.main(command) == 0  # the file is replaced
    rows = common.read_rows(output)
    assert [row["method"] for row in rows] == ["original", "ours"]
    assert [row["precision"] for row in rows[:1]] == ["fp32"]
    for row in rows:
        assert float(row["share_of_peak"]) > 0
        assert float(row["train_images_per_s"]) > 0


def test_the_share_of_the_peak_is_operations_by_time(monkeypatch):
    monkeypatch.setattr(throughput, "fastest", lambda call, repeats: 0.5)
    monkeypatch.setattr(throughput, "gflop_per_image", lambda model, x: 3.0)
    monkeypatch.setattr(throughput, "peak", lambda precision, side: 48.0)
    row = throughput.measure("ours", (32, 32), 1, 128)
    assert row["train_images_per_s"] == row["predict_images_per_s"] == 8  # 4 in 0.5 s
    assert row["share_of_peak"] == 0.5


def test_operations_of_a_convolution_are_counted():
    conv = nn.Conv2d(3, 4, 1, bias=False)
    forward = 2 * 3 * 4 * 5 * 5  # two per multiplication and addition
    x = torch.zeros(2, 3, 5, 5)
    assert throughput.gflop_per_image(conv, x) == pytest.approx(2 * forward / 1e9)


# --- tables -------------------------------------------------------------------


def test_tables_hold_means_and_each_seed(tmp_path):
    for seed, miou in ((1, 0.5), (0, 0.4)):
        for rate, less in (("0.001", 0.1), ("0.0003", 0)):
            row = {"method": "smp", "budget": 600, "seed": seed, "rate": rate}
            row |= {"acc": 0.9, "miou": miou - less, "images": 99, "seconds": 590}
            common.append_row(tmp_path / "scores.csv", row | CONDITIONS)
    readme = tmp_path / "README.md"
    old = (
        "a\n<!-- scores -->\nold\n<!-- end -->\nb\n<!-- ablation -->\n<!-- end -->\nc\n"
    )
    readme.write_text(old)
    for _ in range(2):  # the second time nothing changes
        table.main(["--results", str(tmp_path), "--readme", str(readme)])
        text = readme.read_text()
        means = "0.900 (0.900, 0.900) | 0.450 (0.400, 0.500) | 99 (99, 99)"
        assert f"| 600 | smp | 0.0003 | {means}" in text
        assert "| 0.001 |" not in text  # not the chosen rate
        assert "old" not in text
        assert text.startswith("a\n")
        assert text.endswith("\nc\n")
        assert text.count("Not measured yet.") == 1


def test_the_readme_is_current(tmp_path):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert table.fill(text, common.RESULTS) == text


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.csv")), ids=lambda p: p.name)
def test_every_result_file_can_be_read(path):
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(None not in row and None not in row.values() for row in rows)
    for row in rows:
        assert 0 < float(row.get("miou") or 0.5) < 1


def test_score_columns_are_camvids():
    assert len(common.SCORES) == 2 + CAMVID.num_scored
