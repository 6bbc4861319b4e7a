"""The curve of chapter 6, measured for seconds on synthetic scenes."""

import csv
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from roadseg import dataset1, metrics, runtime, synthetic
from roadseg.classes import CAMVID
from roadseg.scenes import RoadScenes, write_scenes
from roadseg.weights import RANDOM_INIT

FOLDER = Path(__file__).resolve().parents[1] / "benchmark"
sys.path.append(str(FOLDER))

import how_many  # noqa: E402


class Tiny(nn.Module):
    """Stands for the U-Net where its size only costs time."""

    def __init__(self, num_classes=12, encoder_weights=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        return self.head(self.encoder(x).relu())


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", synthetic.draw_scenes(24, (64, 96), 0))
    return RoadScenes(folder, "train")


@pytest.fixture
def parts(train, monkeypatch):
    monkeypatch.setattr(dataset1, "load", lambda: (train, None))
    monkeypatch.setattr(how_many, "UNet", Tiny)
    monkeypatch.setattr(how_many, "road_network", lambda *_: Tiny())
    return how_many.load_parts()


# --- data ---------------------------------------------------------------------


def test_the_frames_to_score_are_neither_annotated_nor_trained_on_before(parts):
    others, pool, held_out = parts
    names = [set(part.filenames) for part in parts]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    assert len(set(pool.sequences + held_out.sequences)) == 1
    assert pool.sequences[0] not in others.sequences
    assert others.labels == CAMVID
    assert pool.labels == held_out.labels == how_many.LABELS


def test_classes_are_merged_by_name_and_unlabeled_pixels_are_ignored(train):
    merged = how_many.three_classes(train)
    old = torch.stack([m.as_subclass(torch.Tensor) for m in train.masks])
    new = torch.stack([m.as_subclass(torch.Tensor) for m in merged.masks])
    for name, new_id in (
        ("Road", 0),
        ("Car", 1),
        ("Pedestrian", 1),
        ("Bicyclist", 1),
        ("Pavement", 2),
        ("Sky", 2),
        ("Unlabelled", 255),
    ):
        assert new[old == CAMVID.class_id(name)].unique().tolist() == [new_id], name


@pytest.mark.parametrize("seed", range(3))
def test_annotated_images_are_spread_evenly(train, seed):
    at = [train.filenames.index(n) for n in how_many.pick(train, 6, seed).filenames]
    assert {b - a for a, b in zip(at, at[1:], strict=False)} == {4}
    assert len(set(how_many.pick(train, 64, seed).filenames)) == len(train)


def test_seeds_pick_other_images(train):
    picked = {tuple(how_many.pick(train, 4, seed).filenames) for seed in range(3)}
    assert len(picked) > 1


# --- networks -----------------------------------------------------------------


def test_merged_probabilities_are_sums():
    logits = torch.randn(1, 12, 2, 3)
    merged = how_many.Merged(lambda x: logits)(None).exp()
    p = logits[:, :11].softmax(1)
    torch.testing.assert_close(merged[:, 0], p[:, 3])
    torch.testing.assert_close(merged[:, 1], p[:, 8:11].sum(1))
    torch.testing.assert_close(merged.sum(1), torch.ones(1, 2, 3))


@pytest.mark.parametrize("way", how_many.WAYS)
def test_what_is_trained_and_which_statistics_move(way):
    model = how_many.prepare_model(Tiny(), "road network", way).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 4, 4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    model(x).square().sum().backward()
    optimizer.step()
    changed = {
        k for k, v in model.state_dict().items() if not torch.equal(v, before[k])
    }
    assert {"head.weight", "head.bias"} <= changed
    assert ("encoder.0.weight" in changed) == ("head only" not in way)
    fixed = "fixed" in way or "head only" in way
    assert ("encoder.1.running_mean" in changed) != fixed


# --- rows and the command -----------------------------------------------------

JOBS = [
    {"start": "road network", "images": "0", "seed": "0"},
    {"start": "road network", "images": "4", "seed": "1"},
    {"start": "encoder", "images": "4", "seed": "1"},
    {"way": "new head only", "seed": "0"},
]


@pytest.mark.parametrize("job", JOBS)
def test_a_row_names_its_job_scores_and_conditions(job, parts):
    row = how_many.measure(job, parts, RANDOM_INIT, quick=True)
    assert job.items() <= row.items()
    assert 0 <= row["miou"] <= row["acc"] <= 1
    assert row["steps"] == (0 if job.get("images") == "0" else 2)
    assert "random encoder" in row["weights"]
    assert len(row["rates"].split()) == 3


def test_choices_are_not_made_on_the_frames_of_the_curve(parts, monkeypatch):
    scored = []

    def evaluate(model, scenes, *_):
        scored.append(set(scenes.filenames))
        masks = [m.as_subclass(torch.Tensor) for m in scenes.masks]
        return metrics.compute_scores(masks, masks, scenes.labels)

    monkeypatch.setattr(how_many.inference, "evaluate", evaluate)
    for job in (JOBS[3], JOBS[2]):
        how_many.measure(job, parts, RANDOM_INIT, quick=True)
    assert scored[1] == set(parts[2].filenames)
    assert scored[0] < set(parts[1].filenames)


def test_all_images_are_seen_equally_often(train, monkeypatch):
    seen = Counter()
    monkeypatch.setattr(
        how_many.training,
        "fit",
        lambda model, scenes, recipe, optimizer: seen.update(scenes.filenames),
    )
    how_many.fine_tune(Tiny(), train.subset(range(4)), how_many.RECIPE, 5, (1, 2, 3))
    assert sorted(seen.values()) == [5] * 4


def test_encoder_decoder_and_head_have_their_own_rates():
    model = Tiny()
    model.decoder = nn.Conv2d(8, 8, 1)
    optimizer = how_many.build_optimizer(model, (1e-3, 1e-2, 1e-1))
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for part, rate in (("encoder", 1e-3), ("decoder", 1e-2), ("head", 1e-1)):
        found = {rates[id(p)] for p in getattr(model, part).parameters()}
        assert found == {rate}, part
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    (group,) = how_many.build_optimizer(model, (0.0, 0.0, 1e-2)).param_groups
    assert group["lr"] == 1e-2


def test_a_whole_curve_comes_before_the_next_seed(monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(how_many, "load_parts", lambda: None)
    monkeypatch.setattr(how_many.weights, "load_encoder_weights", lambda: RANDOM_INIT)
    monkeypatch.setattr(
        how_many.common, "run_missing", lambda s, jobs, p, o: found.extend(jobs) or 0
    )
    assert how_many.main(["--output", str(tmp_path / "x.csv")]) == 0
    assert found[0]["images"] == 0
    assert [job["seed"] for job in found[1:]] == [0] * 10 + [1] * 10 + [2] * 10
    found.clear()
    assert how_many.main(["--seeds", "2", "--starts", "encoder"]) == 0
    assert {(job["start"], job["seed"]) for job in found} == {("encoder", 2)}


def test_the_stored_points_are_complete_rows():
    path = FOLDER / "results" / "how_many.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    keys = [(row["start"], row["images"], row["seed"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert all(0 < float(row["miou"]) < float(row["acc"]) < 1 for row in rows)
    assert all("CamVid" in row["data"] for row in rows)


def test_the_parent_process_leaves_a_row(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(how_many.weights, "load_encoder_weights", lambda: RANDOM_INIT)
    path = tmp_path / "x.csv"
    job = ["start=encoder", "images=4", "seed=0"]
    arguments = ["--quick", "--output", str(path), "--job", *job]
    assert how_many.main(arguments) == 0
    assert runtime.profile().name == "quick"
    (row,) = csv.DictReader(path.open(encoding="utf-8"))
    assert (row["start"], row["images"], row["seed"]) == ("encoder", "4", "0")
