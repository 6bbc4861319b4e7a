"""The benchmark: what its contestants do, what it measures, keeps and reports."""

import itertools
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import benchmark
from benchmarking import contestants, measuring, results
from roadseg import dataset1, unet
from roadseg.classes import NUM_CLASSES, VOID
from roadseg.recipes import Recipe, Stage

RECIPE = Recipe("test", (Stage(3, 32, 32), Stage(1, 64, 64)), None, precision="no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six training and two test scenes of 48 x 64: stripes of classes 0, 10, void."""
    folder = tmp_path_factory.mktemp("data")
    mask = np.repeat([[0] * 16 + [10] * 32 + [VOID] * 16], 48, 0).astype(np.uint8)
    for split, count in (("train", 6), ("test", 2)):
        scenes = [
            (f"Test_{i:06}.png", np.full((48, 64, 3), 40 * i, np.uint8), mask)
            for i in range(count)
        ]
        dataset1.write(folder, split, scenes)
    return folder


# --- the contestants ----------------------------------------------------------


def test_the_original_cuts_vgg16_where_vgg13_has_its_poolings():
    torch.manual_seed(0)
    model = contestants.original_network(unet.RANDOM)
    assert [len(stage) for stage in model.encoder] == [6, 7, 7, 7, 7]
    assert len(model.bottleneck[0]) == 44 - 34
    inside = [
        [i for i, layer in enumerate(stage) if isinstance(layer, nn.MaxPool2d)]
        for stage in model.encoder
    ]
    assert inside == [[], [0], [0], [3], [6]]  # at 13 + 7 + 3 = 23, and at 33
    assert model(torch.zeros(2, 3, 32, 64)).shape == (2, NUM_CLASSES, 32, 64)


def test_the_original_has_the_layers_and_weights_of_ours_in_their_order():
    state = unet.vgg16_bn_features().state_dict()
    weights = unet.EncoderWeights(state, "test", True)
    model = contestants.original_network(weights)
    features = nn.Sequential(*(x for stage in model.encoder for x in stage))
    features.extend(model.bottleneck[0])
    found = features.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], state[k]) for k in state)


def test_smp_begins_with_the_same_encoder_weights():
    pytest.importorskip("segmentation_models_pytorch")
    state = unet.vgg16_bn_features().state_dict()
    model = contestants.smp_network(unet.EncoderWeights(state, "test", True))
    found = model.encoder.features.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], state[k]) for k in state)


def test_the_original_reads_files_anew_and_blends_labels(folder):
    files = contestants.Files(folder)
    files.size = (32, 96)
    image, mask = files[2]
    assert image.shape == (3, 32, 96)
    assert mask.shape == (32, 96)
    assert mask.dtype == torch.long
    assert torch.allclose(unet.denormalise(image), torch.tensor(80 / 255), atol=1e-3)
    assert {0, 10, VOID} < set(mask.unique().tolist())  # some that are in no file
    with Image.open(files.pairs[2][0]) as kept:
        kept.load()
    try:
        Image.new("RGB", (64, 48), (255, 0, 0)).save(files.pairs[2][0])
        red = unet.denormalise(files[2][0])
        assert red[0].mean() > 0.99
        assert red[2].mean() < 0.01
    finally:
        kept.save(files.pairs[2][0])


@pytest.mark.parametrize("name", ["original", "smp", "ours"])
def test_every_contestant_trains_and_reports_each_epoch(folder, name):
    who = contestants.CONTESTANTS[name]
    torch.manual_seed(0)
    model = nn.Conv2d(3, NUM_CLASSES, 1)
    model.encoder, model.origin = nn.Identity(), "test"
    before = model.weight.clone()
    epochs = []
    recipe = replace(who.recipe(), stages=(Stage(2, 32, 32),), batch_size=2)
    who.train(model, who.read(folder), recipe, lambda e, m: epochs.append(e))
    assert epochs == [1, 2]
    assert not torch.equal(model.weight, before)


def test_void_is_learnt_by_the_original_alone(folder):
    left_alone = {}
    for name in ("original", "smp", "ours"):
        who = contestants.CONTESTANTS[name]
        model = nn.Conv2d(3, NUM_CLASSES, 1)
        model.encoder, model.origin = nn.Identity(), "test"
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        recipe = replace(who.recipe(), stages=(Stage(1, 32, 32),), batch_size=6)
        recipe = replace(recipe, weight_decay=0.0)
        who.train(model, who.read(folder), recipe, lambda e, m: None)
        # the bias of void falls where void is no truth, and rises where it is
        left_alone[name] = model.bias[VOID].item() < 0
    assert left_alone == {"original": False, "smp": True, "ours": True}


# --- measurements -------------------------------------------------------------


def fake(train, **more):
    who = contestants.CONTESTANTS["smp"]
    return replace(who, train=train, **more)


def test_throughput_is_that_of_the_second_epoch(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def train(model, data, recipe, after):
        assert (len(data), recipe.stages) == (4, (Stage(2, 32, 64),))
        for epoch, seconds in ((1, 100), (2, 8)):
            now[0] += seconds
            after(epoch, model)

    def slow(model, images, feed, recipe):
        now[0] += len(images) / 2
        return torch.zeros(len(images), NUM_CLASSES, 4, 4)

    monkeypatch.setattr(measuring, "logits_of", slow)
    job = {"size": [32, 64], "pictures": 5}
    recipe = replace(RECIPE, batch_size=2)  # so that 5 pictures are 4
    found = measuring.measure_throughput(fake(train), None, recipe, folder, job)
    assert found["train"] == 4 / 8
    assert found["predict"] == 2
    assert found["memory"] > 50


def accuracy(folder, monkeypatch, scores, **job):
    """Measure a training of an epoch a second, whose scores are given."""
    now, given = [0.0], iter(scores)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def train(model, data, recipe, after):
        for epoch in range(1, recipe.epochs + 1):
            now[0] += 1
            after(epoch, model)

    def score(model, test, recipe, learns_void):
        now[0] += 1000  # scoring takes its time
        return {"acc": 0.5, "acc12": next(given), "miou": 0.4}

    monkeypatch.setattr(measuring, "score", score)
    job = {"cap": 1e9, "until": 2.0, "budget": None} | job
    return measuring.measure_accuracy(fake(train), None, RECIPE, folder, job)


def test_scoring_is_not_training_time(folder, monkeypatch):
    found = accuracy(folder, monkeypatch, [0.1, 0.2, 0.3, 0.4])
    assert [p["seconds"] for p in found["points"]] == [1, 2, 3, 4]
    assert [p["acc12"] for p in found["points"]] == [0.1, 0.2, 0.3, 0.4]
    assert found["whole"]


@pytest.mark.parametrize(("limit", "epochs"), [({"cap": 3}, 3), ({"until": 0.2}, 2)])
def test_a_training_ends_at_its_cap_or_score(folder, monkeypatch, limit, epochs):
    found = accuracy(folder, monkeypatch, [0.1, 0.2, 0.3, 0.4], **limit)
    assert len(found["points"]) == epochs
    assert not found["whole"]


def test_decoding_counts_as_training_time(folder, monkeypatch):
    def read(folder):
        time.sleep(0.3)

    def train(model, data, recipe, after):
        after(1, model)

    scores = {"acc": 0, "acc12": 0, "miou": 0}
    monkeypatch.setattr(measuring, "score", lambda *_: scores)
    job = {"cap": 9e9, "until": 2, "budget": None}
    who = fake(train, read=read)
    found = measuring.measure_accuracy(who, None, RECIPE, folder, job)
    assert found["points"][0]["seconds"] >= 0.3


def test_a_run_for_a_budget_has_a_recipe_of_its_own(folder, monkeypatch):
    monkeypatch.setattr(measuring, "epoch_seconds", lambda *_: [1.0, 4.0])
    found = accuracy(folder, monkeypatch, [0.1] * 99, budget=20)
    assert found["recipe"] == str(measuring.scaled(RECIPE, [1.0, 4.0], 20))
    assert found["recipe"] != str(RECIPE)


@pytest.mark.parametrize(
    ("budget", "epochs"),
    [(2, [1]), (9, [3, 1]), (17, [6, 2]), (70, [26, 8])],
)
def test_a_recipe_is_scaled_to_a_budget(budget, epochs):
    recipe = measuring.scaled(RECIPE, [1.0, 4.0], budget)
    assert [s.epochs for s in recipe.stages] == epochs
    cost = sum(s.epochs * (1 if s.height == 32 else 4) for s in recipe.stages)
    assert cost <= measuring.MARGIN * budget
    assert replace(recipe, stages=RECIPE.stages) == RECIPE


def test_a_budget_below_one_epoch_is_refused():
    with pytest.raises(measuring.BenchmarkError, match="one epoch fits into 1 s"):
        measuring.scaled(RECIPE, [1.0, 4.0], 1)


class Says(nn.Module):
    """Calls every pixel void, and next likely a class."""

    def __init__(self, label):
        super().__init__()
        self.logits = torch.zeros(NUM_CLASSES)
        self.logits[VOID], self.logits[label] = 2, 1

    def forward(self, x):
        return self.logits[:, None, None].expand(len(x), -1, *x.shape[-2:])


def test_only_who_learns_void_is_credited_for_it(folder):
    test = contestants.read_scenes(folder, "test")
    plain = measuring.score(Says(10), test, RECIPE, learns_void=False)
    assert plain["acc"] == pytest.approx(32 / 48)
    assert plain["acc12"] == pytest.approx(32 / 64)
    credited = measuring.score(Says(10), test, RECIPE, learns_void=True)
    assert credited == plain | {"acc12": pytest.approx(16 / 64)}


def test_scores_are_those_of_the_course(folder):
    from roadseg import evaluation

    test = contestants.read_scenes(folder, "test")
    torch.manual_seed(1)
    test.images = [torch.randint(0, 256, i.shape).byte() for i in test.images]
    model = nn.Conv2d(3, NUM_CLASSES, 1)
    recipe = replace(RECIPE, feed=(32, 32))
    wanted = evaluation.evaluate(model, test, (32, 32)).as_dict()
    found = measuring.score(model, test, recipe, learns_void=False)
    assert {k: round(v, 6) for k, v in found.items()} == {
        k: wanted[k] for k in ("acc", "acc12", "miou")
    }


def test_operations_are_counted():
    names = ["original", "ours"]
    found = measuring.measure_cost({"contestants": names})
    ours, original = found["networks"]["ours"], found["networks"]["original"]
    assert ours["forward"] == pytest.approx(45, rel=0.02)
    assert ours["training"] == pytest.approx(3 * ours["forward"], rel=0.02)
    assert original["parameters"] == ours["parameters"] == pytest.approx(29.3, abs=0.1)
    assert original["forward"] == ours["forward"]  # the same layers, cut elsewhere
    assert found["peak"].keys() == {"float32", "bf16"}
    assert min(found["peak"].values()) > 0


def test_memory_is_the_peak():
    before = measuring.peak_memory()
    block = torch.ones(2**26)  # 256 MiB
    peak = measuring.peak_memory()
    del block
    assert peak - before > 100 or before > 1000
    # what Linux counts lags behind by some pages a thread
    assert measuring.peak_memory() >= peak - 16


# --- the plan -----------------------------------------------------------------


def options(*arguments):
    chosen = benchmark.parse(list(arguments))
    benchmark.complete(chosen)
    return chosen


def test_contestants_take_turns():
    chosen = options("original", "ours", "--sizes", "32x32", "64x96", "--repeats", "2")
    chosen.repeats = 2
    order = [
        (j["contestant"], *j["size"])
        for j in benchmark.plan(chosen)
        if j["kind"] == "throughput"
    ]
    once = list(itertools.product(((32, 32), (64, 96)), ("original", "ours")))
    assert order == 2 * [(name, *size) for size, name in once]


def test_ours_runs_once_more_for_each_budget():
    chosen = options(
        *("original", "ours", "--only", "accuracy", "--seeds", "2"),
        *("--budget", "60", "300", "--until", "0.88", "--cap", "40"),
    )
    jobs = benchmark.plan(chosen)
    found = [(j["seed"], j["contestant"], j["budget"]) for j in jobs]
    runs = [("original", None), ("ours", None), ("ours", 60), ("ours", 300)]
    assert found == [(seed, *run) for seed in (0, 1) for run in runs]
    assert {j["until"] for j in jobs if j["contestant"] == "ours"} == {2.0}
    assert {j["until"] for j in jobs if j["contestant"] == "original"} == {0.88}
    assert {j["cap"] for j in jobs} == {2400}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["theirs"], "no contestant theirs"),
        (["--sizes", "100x100"], "multiples of 32"),
        (["--sizes", "small"], "--sizes"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_are_named(capsys, wrong, said):
    with pytest.raises(SystemExit) as stop:
        benchmark.parse(wrong)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_without_smp_the_others_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SMP", "no_such_package")
    assert options().contestants == ["original", "ours"]
    assert "smp is left out" in capsys.readouterr().err


def test_estimates_prefer_what_was_measured():
    job = {"kind": "accuracy", "contestant": "ours", "seed": 1, "budget": None}
    job |= {"cap": 1e9, "until": 2.0}
    row = {"job": job | {"seed": 0}, "took": 77}
    assert benchmark.estimate(job, 1.0, [row], 10) == 77
    assert benchmark.estimate(job | {"budget": 8.0}, 1.0, [row], 10) == 20
    pixels = sum(s.epochs * s.height * s.width for s in Recipe.for_profile().stages)
    assert benchmark.estimate(job, 1e-3, [], 10) == 10 + 1.25 * pixels / 100


# --- what is kept and reported ------------------------------------------------


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Run the command with measurements that take no time; return what it took."""
    fails = set()

    def run(*arguments):
        taken = []

        def run_apart(job, folder):
            if job["contestant"] in fails:
                raise measuring.BenchmarkError("it failed")
            taken.append((job["contestant"], job["seed"]))
            return {"train": 2.0, "predict": 4.0, "memory": 9.0, "precision": "no"}

        monkeypatch.setattr(benchmark, "run_apart", run_apart)
        monkeypatch.setattr(benchmark, "pixel_rate", lambda: 1e-9)
        given = ["--quick", "--only", "throughput", "--output", str(tmp_path)]
        return benchmark.main([*given, *arguments]), taken

    return SimpleNamespace(run=run, fails=fails, folder=tmp_path)


def test_a_second_run_measures_only_what_is_missing(bench, capsys):
    assert bench.run("ours") == (0, [("ours", 0)])
    assert bench.run("ours", "original") == (0, [("original", 0)])
    assert bench.run("ours", "original") == (0, [])
    kept = json.loads((bench.folder / "benchmark.json").read_text())
    assert [r["job"]["contestant"] for r in kept["results"]] == ["ours", "original"]
    assert {"machine", "versions", "data", "weights"} <= kept["facts"].keys()
    assert all("date" in r for r in kept["results"])
    text = (bench.folder / "benchmark.md").read_text()
    assert capsys.readouterr().out.endswith(text + "\n")
    assert "NOT dataset1" in text


def test_a_failure_stops_nothing_else_and_shows_in_the_status(bench, capsys):
    bench.fails.add("original")
    assert bench.run("ours", "original") == (1, [("ours", 0)])
    assert "error: it failed" in capsys.readouterr().err
    bench.fails.clear()
    assert bench.run("ours", "original") == (0, [("original", 0)])


def test_plan_measures_nothing(bench, capsys):
    assert bench.run("ours", "--plan") == (0, [])
    assert "1 measurements to take: at most about" in capsys.readouterr().err


def test_measurements_of_another_machine_are_not_mixed_in(bench, capsys):
    bench.run("ours")
    path = bench.folder / "benchmark.json"
    kept = json.loads(path.read_text())
    kept["facts"]["machine"] = "an abacus"
    path.write_text(json.dumps(kept))
    assert bench.run("ours") == (1, [])
    assert "was measured with machine: an abacus" in capsys.readouterr().err
    path.write_text(path.read_text()[:-50])
    assert bench.run("ours") == (1, [])
    assert "is damaged" in capsys.readouterr().err


def speed_row(name, train, seed=0, memory=9.0):
    job = {"kind": "throughput", "contestant": name, "seed": seed, "size": [224, 224]}
    row = {"train": train, "predict": 8.0, "memory": memory, "precision": "no"}
    return {"job": job, "date": "2026-01-02T03:04", "took": 1.0} | row


def test_repeats_in_two_formats_are_called_so():
    rows = [
        speed_row("ours", 2.0, 0),
        speed_row("ours", 4.0, 1) | {"precision": "bf16"},
    ]
    ((_, speed),) = results.medians(rows).items()
    assert speed["format"] == "bf16 and float32"
    assert "| bf16 and float32 |" in results.speed_table(results.medians(rows))


def test_throughput_is_a_median_and_ours_a_multiple():
    rows = [speed_row("original", t, i) for i, t in enumerate((1.0, 9.0, 2.0))]
    rows += [speed_row("ours", t, i) for i, t in enumerate((6.0, 5.0, 1.0))]
    speed = results.medians(rows)
    assert speed[224, 224, "original"]["train"] == 2
    cells = [
        [c.strip() for c in line.strip("|").split("|")]
        for line in results.speed_table(speed).splitlines()
    ]
    assert cells[2][1:6] == ["original", "float32", "2.00", "1.00 to 9.00", "3"]
    assert cells[2][-1] == "2.50 x"
    assert cells[3][-1] == ""
    unknown = results.medians([speed_row("ours", 1.0, memory=None)])
    assert "unknown" in results.speed_table(unknown)


def test_the_share_of_the_peak():
    cost = {"peak": {"float32": 100.0, "bf16": 400.0}}
    cost["networks"] = {"ours": {"forward": 10, "training": 30, "parameters": 1}}
    small, large = speed_row("ours", 2.0), speed_row("ours", 2.0)
    small["job"] = small["job"] | {"size": [112, 224]}  # half the pixels, and work
    text = results.cost_table(cost, results.medians([small, large]))
    assert "| ours | 1.0 M | 10.0 | 30.0 | 30% | 8% | 60% | 15% |" in text


def accuracy_row(name, points, seed=0, budget=None, whole=True):
    job = {"kind": "accuracy", "contestant": name, "seed": seed, "budget": budget}
    points = [
        {"seconds": s, "epoch": i, "acc": a, "acc12": a, "miou": a - 0.3}
        for i, (s, a) in enumerate(points, 1)
    ]
    return {"job": job, "date": "2026-01-02", "took": 1.0, "points": points} | {
        "whole": whole
    }


def test_seconds_to_a_score_are_the_first_at_which_it_is_reached():
    rows = [
        accuracy_row("original", [(100, 0.85), (200, 0.87), (300, 0.86)], whole=False),
        accuracy_row("ours", [(10, 0.5), (20, 0.91)]),
        accuracy_row("ours", [(5, 0.87)], budget=6.0),
        accuracy_row("ours", [(15, 0.87)], seed=1),
    ]
    lines = results.goal_table(rows).splitlines()
    assert lines[0].startswith("| contestant | acc12 0.86 | acc12 0.88 |")
    assert lines[2].split(" | ")[1:3] == ["200", "not in 300"]
    ours = lines[3].split(" | ")
    assert ours[1] == "10 ± 7 (2 of 2 seeds)"
    assert ours[2] == "20 (1 of 2 seeds)"


def test_a_score_within_a_budget_is_the_last_of_the_run_for_it():
    rows = [
        accuracy_row("original", [(90, 0.85), (110, 0.87)]),
        accuracy_row("smp", [(50, 0.88)], whole=False),
        accuracy_row("ours", [(10, 0.90), (20, 0.91)]),
        accuracy_row("ours", [(50, 0.6), (95, 0.8), (101, 0.99)], budget=100.0),
    ]
    lines = results.budget_table(rows).splitlines()[2:]
    assert lines == [
        "| 100 s | original | 0.850 | 0.850 | 0.550 | 1 |",
        "| 100 s | smp | unknown | unknown | unknown | 0 |",  # stopped before
        "| 100 s | ours | 0.800 | 0.800 | 0.500 | 1 |",
    ]


def test_a_budget_is_what_the_whole_recipe_takes():
    rows = [
        accuracy_row("original", [(90, 0.85), (290, 0.87)], whole=False),
        accuracy_row("ours", [(10, 0.90), (120, 0.91)]),
    ]
    assert results.budget_table(rows).splitlines()[2:] == [
        "| 200 s | original | 0.850 | 0.850 | 0.550 | 1 |",
        "| 200 s | ours | 0.910 | 0.910 | 0.610 | 1 |",
    ]


def test_a_run_that_was_stopped_is_called_so():
    rows = [
        accuracy_row("original", [(90, 0.85)], whole=False),
        accuracy_row("ours", [(10, 0.90)]),
        accuracy_row("ours", [(5, 0.80)], budget=6.0),
    ]
    lines = results.last_table(rows).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == [
        "stopped",
        "whole",
        "within 6 s",
    ]


def test_all_tables_and_the_plot_are_written(tmp_path):
    facts = {"data": "drawn"}
    kept = results.Results(tmp_path, facts)
    row = accuracy_row("ours", [(10, 0.90), (20, 0.91)])
    kept.add(row["job"], {k: row[k] for k in ("points", "whole")}, 3.0)
    text = (tmp_path / "benchmark.md").read_text()
    assert "Score within a budget" in text
    assert "![Scores over seconds of training](benchmark.png)" in text
    with Image.open(tmp_path / "benchmark.png") as plot:
        assert plot.width == 750
    figure = results.curves([row, accuracy_row("smp", [(5, 0.4), (9, 0.5)])])
    drawn = [line.get_xydata().tolist() for line in figure.axes[1].lines]
    assert drawn[0] == [[10, pytest.approx(0.6)], [20, pytest.approx(0.61)]]
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["ours", "smp"]
    assert results.Results(tmp_path, facts).has(row["job"])


@pytest.mark.slow
def test_the_whole_benchmark_in_small(tmp_path):
    """Every kind of measurement, in processes of their own."""
    assert benchmark.main(["--quick", "--output", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "benchmark.json").read_text())["results"]
    kinds = [r["job"]["kind"] for r in kept]
    names = 3 if len(kept) == 8 else 2  # without smp
    assert kinds == ["throughput"] * names + ["cost"] + ["accuracy"] * (names + 1)
    assert all(r["train"] > 0 and r["memory"] > 100 for r in kept[:names])
    for run in kept[names + 1 :]:
        times = [p["seconds"] for p in run["points"]]
        assert times == sorted(times)
        assert all(0 <= p["miou"] <= p["acc"] <= 1 for p in run["points"])


def test_one_measurement_in_a_process_of_its_own(folder):
    job = {"kind": "throughput", "contestant": "ours", "seed": 0}
    found = benchmark.run_apart(job | {"size": [32, 32], "pictures": 2}, folder)
    assert found["train"] > 0
    assert found["memory"] > 100
    assert found["precision"] == "no"
    with pytest.raises(measuring.BenchmarkError, match="ended with status 1"):
        benchmark.run_apart({"kind": "cost", "contestants": ["theirs"]}, folder)
