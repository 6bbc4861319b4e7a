"""Chapter 6: its helpers compute what they say, and its checks notice bugs."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import chapter
from roadseg import unet

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))

import how_many

NAME = "06_your_own_images.ipynb"


@pytest.fixture(scope="module")
def cells():
    return chapter.code_cells(NAME)


@pytest.fixture(scope="module")
def start(cells):
    """Imports, and the label set."""
    keys = ("import shlex", "plots.use_style()", "OURS = LabelSet(")
    return [chapter.cell_with(cells, key) for key in keys]


@pytest.fixture
def run(cells, start):
    """Return a function that runs the start and the cells with some texts."""

    def run_cells(*keys, **names):
        given = {"__name__": "__main__", **names}
        for source in [*start, *(chapter.cell_with(cells, key) for key in keys)]:
            exec(compile(source, "cell", "exec"), given)
        return given

    return run_cells


# --- the chapter and the script that measured its figures do the same ----------


def test_the_curve_was_measured_with_the_chapters_classes_and_rates(cells, run):
    names = run()
    assert names["OURS"] == how_many.LABELS
    for i in how_many.CAMVID.scored:
        name = how_many.CAMVID.names[i]
        expected = how_many.CLASS_OF.get(name, names["ELSE"])
        assert names["merged_id"](name) == expected, name
    parts = chapter.cell_with(cells, "def build_optimizer")
    rates = tuple(float(x) for x in re.findall(r"(\d+e-\d+): ", parts))
    assert rates == how_many.LR["road network"]
    split = chapter.cell_with(cells, "status == 1 and not (work")
    assert f"block:{how_many.HELD_OUT}" in split
    held = chapter.cell_with(cells, "pool, val = split_by_block(")
    assert f"split_by_block(roads, {how_many.VALIDATION})" in held


def test_the_text_states_the_budget_of_the_curve():
    text = (chapter.NOTEBOOKS / NAME).read_text(encoding="utf-8")
    phase = how_many.RECIPE.phases[0]
    assert f"{how_many.STEPS} steps with batches of four" in text
    assert f"at {phase.height} × {phase.width}" in text
    assert how_many.RECIPE.batch_size == 4
    assert f"with {how_many.WAY_IMAGES} annotated images" in text


# --- masks as people have them --------------------------------------------------


def test_painted_masks_have_the_classes_colors_inside_and_mixtures_on_edges(run):
    names = run("def paint(mask)")
    mask = torch.full((40, 60), 2, dtype=torch.uint8)
    mask[:, 20:] = 0
    mask[30:, 40:] = 255
    painted = names["paint"](mask)
    colors = [*names["OURS"].colors, (0, 0, 0)]
    for row, column, i in ((5, 5, 2), (5, 50, 0), (36, 55, 3)):
        assert tuple(painted[row, column]) == colors[i]
    pure = (painted[:, :, None] == np.array(colors)).all(-1).any(-1)
    assert not pure.all()
    assert pure[:, :16].all()  # only near edges


# --- fine-tuning ------------------------------------------------------------------


def test_only_the_head_is_new(run):
    torch.manual_seed(0)
    base = SimpleNamespace(model=unet.UNet())
    model = run("def with_new_head", "everything = sum(", base=base)["model"]
    old, new = base.model.state_dict(), model.state_dict()
    assert {k for k in old if old[k].shape != new[k].shape} == {
        "head.weight",
        "head.bias",
    }
    assert base.model.head.out_channels == 12
    assert sum(p.numel() for p in model.head.parameters()) == 99
    optimizer = run("def build_optimizer")["build_optimizer"](model)
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in model.parameters()}
    (group,) = [g for g in optimizer.param_groups if g["lr"] == 1e-2]
    assert {id(p) for p in group["params"]} == {id(p) for p in model.head.parameters()}


def test_a_forgotten_override_lets_the_statistics_move(cells, run):
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layers = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
            self.encoder = torch.nn.ModuleList([torch.nn.Sequential(*layers)])
            self.head = torch.nn.Conv2d(4, 12, 1)

    source = chapter.cell_with(cells, "def freeze_statistics")
    names = run()
    names |= {"base": SimpleNamespace(model=None)}
    names |= {"with_new_head": lambda network, count: Small()}
    exec(source, dict(names))
    (line,) = (x for x in source.splitlines() if "module.train = " in x)
    with pytest.raises(AssertionError):
        exec(source.replace(line, "            pass"), names)


def test_images_are_repeated_equally_often(run):
    class Three(list):
        subset = staticmethod(list)

    repeated = run("def repeated")["repeated"](Three("abc"), steps=6, batch_size=4)
    assert [repeated.count(i) for i in range(3)] == [8, 8, 8]


# --- the curve ----------------------------------------------------------------------


def rows(*points):
    return [
        {"start": s, "images": n, "seed": k, "miou": x, "iou road user": x / 2}
        for s, n, k, x in points
    ]


@pytest.fixture
def figures(monkeypatch):
    """Return a list that gets the figures which are shown."""
    shown = []
    monkeypatch.setattr("roadseg.plots.show", lambda fig, alt: shown.append(fig))
    return shown


def drawn(figure):
    """Return the points of each line, and the size of its marks."""
    lines = figure.axes[0].lines
    return [(np.round(x.get_xydata(), 6).tolist(), x.get_markersize()) for x in lines]


WAYS = ("ways.setdefault(", "def dots(")
CURVE = ("def curve(column)", "def draw_curve(", 'draw_curve("iou road user"')


def test_an_incomplete_curve_is_drawn_with_what_there_is(run, capsys, figures):
    found = rows(("encoder", 4, 0, 0.5), ("encoder", 4, 1, 0.7), ("encoder", 8, 0, 0.8))
    run(*WAYS, *CURVE, read_results=lambda name: found if "many" in name else [])
    text = capsys.readouterr().out
    assert "4 images  mIoU 0.600  2 seed(s) 0.500 to 0.700\n" in text
    assert "8 images  mIoU 0.800  1 seed(s) 0.800 to 0.800  gain +0.200" in text
    for figure, scale in zip(figures, (1, 0.5), strict=True):
        points = drawn(figure)
        assert [[4, 0.6 * scale], [8, 0.8 * scale]] in [xy for xy, _ in points]
        mean, seeds = points[2:4]  # at 4 images, after the lines
        assert mean[0] == [[4, 0.6 * scale]]
        assert mean[1] > seeds[1]
        assert seeds[0] == [[4, 0.5 * scale], [4, 0.7 * scale]]


def test_the_ways_are_drawn_from_the_best_mean_down(run, capsys, figures):
    scores = {"one": (0.5, 0.9, 0.4), "two": (0.7, 0.8, 0.6), "three": (0.3,)}
    found = [{"way": w, "miou": str(x)} for w, xs in scores.items() for x in xs]
    run(*WAYS, read_results=lambda name: found)
    text = capsys.readouterr().out.splitlines()
    assert text == [
        "0.700  two, 3 seed(s)",
        "0.600  one, 3 seed(s)",
        "0.300  three, 1 seed(s)",
    ]
    points = [xy for xy, _ in drawn(figures[0])]
    assert points[:2] == [[[0.7, 0]], [[0.7, 0], [0.8, 0], [0.6, 0]]]
    assert points[2] == [[0.6, 1]]


def test_without_results_nothing_fails(run, capsys, figures, monkeypatch):
    monkeypatch.setattr("roadseg.runtime.repo_root", lambda: None)
    names = run("def read_results", *WAYS, *CURVE, "def images_needed")
    assert names["points"] == {}
    assert capsys.readouterr().out.count("not measured yet") == 2


def test_images_needed_is_the_first_count_that_reaches_the_goal(run):
    needed = run("def images_needed", points={})["images_needed"]
    points = {("encoder", 4): [0.5], ("encoder", 8): [0.9, 0.5], ("encoder", 16): [0.8]}
    assert needed(points, 0.6) == 8
    assert needed(points, 0.75) == 16
    assert needed(points, 0.95) is None


# --- the alarm ----------------------------------------------------------------------


def test_risk_and_coverage_by_hand(run):
    curve = run("def risk_and_coverage")["risk_and_coverage"]
    risk, coverage, _ = curve(  # the example in the text
        torch.tensor([0.9, 0.6, 0.8]), torch.tensor([True, False, True])
    )
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3])
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    confidence = torch.tensor([0.5, 0.9, 0.7, 0.8])
    hits = torch.tensor([False, True, True, False])
    risk, coverage, threshold = curve(confidence, hits)
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert threshold.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.5])


def test_unlabeled_pixels_have_no_confidence(run):
    collect = run("def confidence_and_hits")["confidence_and_hits"]
    logp = torch.tensor([[0.7, 0.1, 0.4], [0.2, 0.8, 0.3], [0.1, 0.1, 0.3]]).log()
    mask = torch.tensor([[0, 0, 255]], dtype=torch.uint8)
    confidence, hits = collect([logp[:, None]], [mask], 1.0)
    assert confidence.tolist() == pytest.approx([0.7, 0.8])
    assert hits.tolist() == [True, False]
    cooler, _ = collect([logp[:, None]], [mask], 0.5)
    assert (cooler > confidence).all()


def test_the_threshold_is_the_lowest_that_reaches_the_target(cells, run):
    names = run("def confidence_and_hits", "def risk_and_coverage")
    confidence = torch.linspace(0.99, 0.51, 100)
    hits = torch.ones(100, dtype=torch.bool)
    hits[80:] = False  # 20% errors, all among the least confident
    names |= {"confidence_and_hits": lambda *_: (confidence, hits)}
    names |= {"logp": None, "T": 1.0, "val": SimpleNamespace(masks=None)}
    exec(chapter.cell_with(cells, "risk[-1] / 4).nonzero()"), names)
    decided = confidence >= names["alarm"]
    assert (~hits[decided]).float().mean() <= 0.05
    one_more = confidence >= float(confidence[decided.sum()])
    assert (~hits[one_more]).float().mean() > 0.05
