"""Figures: the right colors, names and numbers, and one small output each."""

import base64
import io
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import IPython.display
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy import ndimage
from torchvision import tv_tensors

from roadseg import paint, plots
from roadseg.classes import CAMVID, LabelSet, colorize
from roadseg.metrics import compute_scores

NOTEBOOKS = Path(plots.__file__).parents[1]
COLORS = {  # CamVid as prepared for SegNet, written out: not read from `classes`
    "Sky": (128, 128, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Car": (64, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Unlabelled (void)": (0, 0, 0),
}
MASK = torch.tensor([[0, 3, 3, 11], [4, 4, 8, 10]], dtype=torch.uint8)
IMAGE = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4) * 10


@pytest.fixture(autouse=True)
def _no_warning_and_nothing_left_open():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left


def pixels(fig):
    """Draw a figure; return it as (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(plots._encode(fig, False))).convert("RGB"))


def key(legend):
    """Return label -> color, 0 to 255, in order."""
    names = [text.get_text() for text in legend.get_texts()]
    patches = [tuple(round(255 * v) for v in to_rgb(p.get_facecolor()))
               for p in legend.get_patches()]  # fmt: skip
    return dict(zip(names, patches, strict=True))


def in_a_notebook(monkeypatch, display):
    monkeypatch.setattr(IPython, "get_ipython", lambda: "a shell")
    monkeypatch.setattr(IPython.display, "display", display)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def scores(matrix, iou=None, labels=CAMVID):
    iou = torch.linspace(0, 1, labels.num_scored) if iou is None else iou
    return SimpleNamespace(confusion=matrix, iou=iou, miou=0.5, labels=labels)


# the legend and what is painted


def test_legend_names_the_classes_of_a_drawn_mask_in_their_colors():
    fig = Figure()
    plots.panel(fig.subplots(), MASK)
    assert key(plots.legend(fig)) == COLORS
    assert key(plots.legend(fig.axes[0])) == COLORS


def test_legend_of_given_classes_has_the_palette_and_void_last():
    found = key(plots.legend(Figure(), [11, *range(11)]))
    assert tuple(found.values()) == CAMVID.colors
    assert list(found) == [*CAMVID.names[:11], "Unlabelled (void)"]
    fig = Figure(figsize=(3, 1), layout="constrained")
    plots.legend(fig, [CAMVID.ignore_index])
    assert (pixels(fig) == 0).all(-1).sum() > 50  # its black is seen


def test_legend_without_a_mask_asks_for_classes():
    fig = Figure()
    plots.panel(fig.subplots(), IMAGE)
    with pytest.raises(ValueError, match="no mask is drawn"):
        plots.legend(fig)
    with pytest.raises(ValueError, match="0 to 11"):
        plots.legend(fig, [12])


def test_panel_paints_a_mask_in_exactly_the_palette():
    fig = Figure(figsize=(4, 2))
    ax = fig.add_axes((0, 0, 1, 1))
    mask = MASK.clamp(3, 9)  # neither the first class nor the last
    plots.panel(ax, mask)
    centers = pixels(fig)[50::100, 50::100]
    assert (centers == colorize(mask)).all()


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        tv_tensors.Image(IMAGE),
        IMAGE.permute(1, 2, 0).numpy(),
        IMAGE / 255,
        (IMAGE / 255).requires_grad_(),
    ],
)
def test_a_image_may_be_any_of_these(image):
    assert (paint.as_rgb(image) == IMAGE.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 4), "shape"),
        (torch.zeros(1, 3, 2, 4), "shape"),
        (torch.zeros(12, 8, 8), "shape"),
        (torch.full((3, 2, 4), -2.0), "denormalize"),
        (IMAGE.float(), "between 0 and 1"),
        (torch.zeros(3, 2, 4, dtype=torch.int64), "uint8"),
    ],
)
def test_what_is_not_a_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        plots.image_grid([image])


def test_overlay_blends_exactly():
    image = np.full((3, 1, 2), 101, dtype=np.uint8)
    found = plots.overlay(image, np.array([[8, 11]]), alpha=0.25)
    # 0.75 * 101 + 0.25 * (64, 0, 128) and 0.75 * 101 + 0.25 * 0, rounded
    assert found.tolist() == [[[92, 76, 108], [76, 76, 76]]]
    assert found.dtype == np.uint8
    with pytest.raises(ValueError, match="alpha"):
        plots.overlay(image, np.array([[8, 11]]), alpha=55)


def test_error_map_is_right_wrong_or_void():
    truth, predicted = torch.tensor([[0, 1, 11, 11]]), torch.tensor([[0, 2, 11, 3]])
    void = (0, 0, 0)
    wanted = [[plots.RIGHT, plots.WRONG, void, void]]
    assert (plots.error_map(truth, predicted) == np.array(wanted)).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[:, :3], "belongs to"),
        (MASK.float(), "integers"),
        (MASK[None], "shape"),
        (MASK + 1, "0 to 11"),
    ],
)
def test_what_is_not_the_mask_of_a_image_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        plots.overlay(IMAGE, mask)
    with pytest.raises(ValueError, match=message):
        plots.image_grid([IMAGE], [mask])
    with pytest.raises(ValueError, match=message):
        plots.predictions([IMAGE], [MASK], [mask])


# true positives, false positives, false negatives


def outcome_masks():
    """A class 8 that is hit, invented, missed and, below, ignored; 60 x 80."""
    truth = np.full((60, 80), 3)
    predicted = np.full((60, 80), 3)
    truth[:40, 20:60] = 8
    predicted[:40, :40] = 8
    truth[40:] = CAMVID.ignore_index
    predicted[50:] = 8
    return truth, predicted


def test_the_outcomes_of_a_class_are_marked_where_they_are():
    truth, predicted = outcome_masks()
    image = np.full((60, 80, 3), 255, np.uint8)
    found = plots.tp_fp_fn(image, truth, predicted, 8)
    assert (found.shape, found.dtype) == ((60, 80, 3), np.uint8)
    colors = [np.array(color) for color, _ in plots.OUTCOMES.values()]
    tp, fp, fn = ((found == color).all(-1) for color in colors)
    white = (found == 255).all(-1)  # the hatching
    hit = np.zeros((60, 80), bool)
    hit[:40, 20:40] = True
    assert (tp == hit).all()
    assert not white[hit].any()
    for drawn, columns in ((fp, slice(0, 20)), (fn, slice(40, 60))):
        inside = np.zeros((60, 80), bool)
        inside[:40, columns] = True
        assert not drawn[~inside].any()
        assert (drawn | white)[inside].all()
        assert 0.5 < drawn[inside].mean() < 0.9
    assert (white[:40, :20] != white[:40, 40:60]).any()  # told apart without color
    outside = ~(tp | fp | fn | white)
    assert outside[40:].all()  # ignored pixels
    assert outside[:40, 60:].all()
    assert (found[outside][:, 0] == found[outside][:, 1]).all()  # gray


def test_outcomes_have_a_legend_and_a_scored_class():
    found = key(plots.legend(Figure(), plots.OUTCOMES))
    assert list(found) == ["True positive", "False positive", "False negative"]
    assert list(found.values()) == [color for color, _ in plots.OUTCOMES.values()]
    truth, predicted = outcome_masks()
    image = np.zeros((60, 80, 3), np.uint8)
    for wrong in (CAMVID.ignore_index, 12):
        with pytest.raises(ValueError, match="scored class"):
            plots.tp_fp_fn(image, truth, predicted, wrong)


# names on masks


def names_on(mask, labels=CAMVID, **options):
    ax = Figure().subplots()
    plots.panel(ax, mask, labels=labels)
    plots.label_mask(ax, mask, labels, **options)
    return {t.get_text(): tuple(map(int, t.xy[::-1])) for t in ax.texts}


def test_each_class_is_named_in_its_largest_component():
    mask = np.full((40, 60), 3)
    mask[2:5, 2:5] = 8  # smaller
    mask[10:25, 30:50] = 8
    mask[30:40] = CAMVID.ignore_index
    mask[0, 59] = 2  # one pixel
    found = names_on(mask)
    assert set(found) == {"Road", "Car"}
    for name, at in found.items():
        assert mask[at] == CAMVID.class_id(name)
    assert found["Car"][0] in range(15, 20)
    assert found["Car"][1] in range(37, 43)
    assert set(names_on(mask, min_share=0)) == {"Road", "Car", "Pole"}
    mask[26:29, 2:58] = 5
    mask[12:20, 2:10] = 5  # wider, but smaller
    assert names_on(mask)["Tree"][0] == 27


def test_the_name_of_a_bent_class_is_inside_it():
    mask = np.zeros((40, 40), int)
    mask[5:35, 5:9] = 4
    mask[5:9, 5:35] = 4
    mask[5:35, 31:35] = 4  # its centroid is outside
    assert mask[names_on(mask)["Pavement"]] == 4


def test_names_do_not_cover_each_other_nor_leave_the_mask():
    mask = np.full((240, 320), 3)
    mask[60:240:4] = 1
    for column, class_id in ((20, 9), (40, 10), (60, 6), (305, 9)):
        mask[100:130, column : column + 12] = class_id
    fig = Figure(figsize=(4, 3))
    ax = fig.add_axes((0, 0, 1, 1))
    plots.panel(ax, mask)
    plots.label_mask(ax, mask)
    assert len(ax.texts) == 5
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without lines
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= 400
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_components_equal_those_of_scipy():
    mask = np.kron(np.random.default_rng(0).integers(0, 3, (20, 30)), np.ones((2, 3)))
    ours = paint.connected_components(mask.astype(int))
    for value in range(3):
        theirs, count = ndimage.label(mask == value)
        pairs = {*zip(theirs[mask == value], ours[mask == value], strict=True)}
        assert len(pairs) == count == len({b for _, b in pairs})


# other label sets

OTHERS = pytest.mark.parametrize(
    "labels",
    [
        LabelSet(("road", "other")),
        LabelSet(("nothing", "road", "car"), ignore_index=0),
        LabelSet(tuple(f"class {i}" for i in range(150)), ignore_index=255),
    ],
    ids=["two", "0", "150"],
)


@OTHERS
def test_all_figures_take_any_label_set(labels):
    mask = np.resize(labels.ids, (30, 40)).astype(np.uint8)
    predicted = np.resize(labels.scored, (30, 40)).astype(np.uint8)
    image = np.zeros((3, 30, 40), np.uint8)
    fig = plots.image_grid([image], [mask], labels=labels)
    names = list(key(fig.legends[0]))
    assert len(names) == len(labels.ids)
    assert labels.ignored_name in names[-1]
    assert names[0] == labels.names[labels.scored[0]]
    assert key(plots.legend(fig.axes[1])) == key(fig.legends[0])
    fig = plots.predictions([image], [mask], [predicted], labels=labels)
    errors = fig.axes[3].images[0].get_array()
    ignored = mask == labels.ignore_index
    assert (errors[ignored] == labels.palette()[labels.ignore_index]).all()
    blended = plots.overlay(image, mask, 1, labels)
    assert (blended == colorize(mask, labels)).all()
    scores = compute_scores([torch.tensor(mask)], [torch.tensor(predicted)], labels)
    matrix = plots.plot_confusion_matrix(scores)
    drawn = np.ma.filled(matrix.axes[0].images[0].get_array(), np.nan)
    recall = 100 * scores.recall.numpy()
    np.testing.assert_allclose(drawn.diagonal(), recall)
    shares = np.full(labels.num_classes, 1 / labels.num_classes)
    bars = plots.plot_class_iou(scores, shares)
    named = [label.get_text() for label in bars.axes[0].get_yticklabels()]
    assert set(named) == {labels.names[i] for i in labels.scored}
    for drawn in (fig, matrix, bars):
        assert pixels(drawn).max() == 255


# grids of scenes


def test_scenes_stand_beside_their_masks():
    fig = plots.image_grid([IMAGE] * 3, [MASK] * 3, titles="abc")
    assert [ax.get_title() for ax in fig.axes] == ["a", "", "b", "", "c", ""]
    assert [ax.images[0].get_array().ndim for ax in fig.axes] == [3, 2] * 3
    assert key(fig.legends[0]) == COLORS
    fig.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in fig.axes]
    assert min(box.y0 for box in boxes) > fig.legends[0].get_window_extent().y1
    assert max(box.y1 for box in boxes) < fig.bbox.height


def test_scenes_lie_under_their_masks_and_images_alone_need_no_legend():
    fig = plots.image_grid([IMAGE], [MASK], overlay=True)
    drawn = fig.axes[0].images[0].get_array()
    assert (drawn == plots.overlay(IMAGE, MASK)).all()
    assert key(fig.legends[0]) == COLORS
    assert not plots.image_grid([IMAGE] * 2).legends


def test_a_number_of_masks_or_titles_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 images, but 1 masks"):
        plots.image_grid([IMAGE] * 2, [MASK])
    with pytest.raises(ValueError, match="1 images, but 2 titles"):
        plots.predictions([IMAGE], [MASK], [MASK], titles=["a", "b"])
    with pytest.raises(ValueError, match="no image"):
        plots.image_grid([])


def test_predictions_draw_truth_prediction_and_errors():
    predicted = MASK.clone()
    predicted[0, 0] = 5
    fig = plots.predictions([IMAGE], [MASK], [predicted])
    drawn = [ax.images[0].get_array() for ax in fig.axes]
    named = [ax.get_title() for ax in fig.axes]
    assert named == ["Image", "Truth", "Prediction", "Errors"]
    assert (drawn[1] == MASK.numpy()).all()
    assert (drawn[2] == predicted.numpy()).all()
    assert (drawn[3] == plots.error_map(MASK, predicted)).all()
    found = key(fig.legends[0])
    assert found["Tree"] == (128, 128, 0)  # predicted, but not in the truth
    assert found["Wrong"] == plots.WRONG
    assert found["Right"] == plots.RIGHT


def test_predictions_are_named_beside_their_rows():
    fig = plots.predictions([IMAGE] * 2, [MASK] * 2, [MASK] * 2, ["best", "worst"])
    assert [ax.get_ylabel() for ax in fig.axes[::4]] == ["best", "worst"]
    assert [ax.get_title() for ax in fig.axes[4:]] == [""] * 4


# scores


def test_confusion_is_normalized_by_true_class():
    matrix = torch.zeros(12, 12, dtype=torch.int64)
    matrix[0, 0], matrix[0, 1], matrix[0, 11] = 6, 3, 1
    matrix[1, 0] = 7
    matrix[11, 2] = 1000
    fig = plots.plot_confusion_matrix(scores(matrix))
    percent = np.ma.filled(fig.axes[0].images[0].get_array(), np.nan)
    assert percent.shape == (11, 11)
    assert percent[0, :3].tolist() == [60, 30, 0]
    assert percent[1, :2].tolist() == [100, 0]
    assert np.isnan(percent[2:]).all()
    labels = [(t.get_position(), t.get_text()) for t in fig.axes[0].texts]
    assert labels == [((0, 0), "60"), ((1, 0), "30"), ((0, 1), "100")]
    rows = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert rows[:3] == ["Sky", "Building", "Pole (absent)"]


def test_confusion_says_nothing_below_one_percent():
    matrix = torch.zeros(12, 12)
    matrix[0, 0], matrix[0, 1], matrix[0, 2] = 982, 10, 8
    assert texts(plots.plot_confusion_matrix(scores(matrix)).axes[0]) == ["98", "1"]
    with pytest.raises(ValueError, match=r"\(12, 12\)"):
        plots.plot_confusion_matrix(scores(matrix[:11, :11]))


def test_class_bars_are_sorted_and_name_absent_classes():
    iou = torch.linspace(0.1, 0.9, 11)
    iou[8] = torch.nan
    shares = np.arange(1, 13) / 100
    fig = plots.plot_class_iou(scores(None, iou), shares)
    bars, beside = fig.axes
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names[0] == "Car"
    assert names[1:] == [n for n in CAMVID.names[:11] if n != "Car"]
    assert texts(bars)[:2] == ["absent", "0.10"]
    for bar, name in zip(bars.patches, names, strict=True):
        rgb = np.array(to_rgb(bar.get_facecolor())) * 255
        assert tuple(rgb.round()) == CAMVID.colors[CAMVID.class_id(name)]
    dots = beside.collections[-1].get_offsets()[:, 0]
    wanted = [100 * shares[CAMVID.class_id(name)] for name in names]
    assert np.allclose(dots, wanted)
    assert beside.get_xscale() == "log"
    pixels(fig)


def test_class_bars_refuse_other_shapes():
    assert len(plots.plot_class_iou(scores(None)).axes) == 1
    with pytest.raises(ValueError, match="iou"):
        plots.plot_class_iou(scores(None, torch.zeros(12)))
    with pytest.raises(ValueError, match="shares"):
        plots.plot_class_iou(scores(None), shares=[0.5, 0.5])


# grids of numbers


def test_grid_writes_every_number_once_with_equal_decimals():
    ax = Figure().subplots()
    plots.draw_matrix(ax, [[1, -2.5], [np.nan, 0]], title="t")
    found = {t.get_position(): t.get_text() for t in ax.texts}
    assert found == {
        (0.5, 0.5): "1.0",
        (1.5, 0.5): "\u22122.5",
        (0.5, 1.5): "",
        (1.5, 1.5): "0.0",
    }
    ax = Figure().subplots()
    plots.draw_matrix(ax, torch.tensor([1, 2, 3]))
    assert texts(ax) == ["1", "2", "3"]
    with pytest.raises(ValueError, match="not \\(1, 2, 3\\)"):
        plots.draw_matrix(ax, torch.zeros(1, 2, 3))


def test_grid_tints_and_shades_the_right_cells():
    ax = Figure().subplots()
    plots.draw_matrix(
        ax, [[0, 1], [2, np.nan]], highlight={(0, 0): "#ff0000"}, shade=True
    )
    red, low, high, none = (to_rgb(p.get_facecolor()) for p in ax.patches)
    assert red[0] > red[1] == red[2]
    assert sum(high) < sum(low)
    assert none == (1, 1, 1)
    ax = Figure().subplots()
    plots.draw_matrix(ax, [[0, 1]], highlight=[[0, 1]])
    fills = [to_rgb(p.get_facecolor()) for p in ax.patches]
    assert fills[0] == (1, 1, 1) != fills[1]


def test_grids_have_cells_of_one_size():
    fig = plots.draw_matrices(
        {"a": torch.ones(2, 2), "b": torch.ones(3, 5), "c": np.full((1, 1), np.nan)},
        signs=("+", "="),
        highlights={"b": [(0, 4)]},
    )
    boxes = [ax.get_window_extent() for ax in fig.axes]
    widths = [b.width / n for b, n in zip(boxes, (2, 5, 1), strict=True)]
    heights = [b.height / n for b, n in zip(boxes, (2, 3, 1), strict=True)]
    assert np.allclose(widths + heights, widths[0])
    assert [text.get_text() for text in fig.texts] == ["+", "="]
    assert boxes[-1].x1 < fig.bbox.width
    assert (
        plots.draw_matrices({"wide": torch.ones(2, 30)}).get_figwidth() <= plots.WIDTH
    )
    pixels(fig)
    with pytest.raises(ValueError, match="'d'"):
        plots.draw_matrices({"a": [[1]]}, highlights={"d": [(0, 0)]})


# publishing


@pytest.mark.parametrize(
    ("jpeg", "mime", "kind"),
    [(False, "image/png", "PNG"), (True, "image/jpeg", "JPEG")],
)
def test_show_publishes_the_figure_with_its_alternative(monkeypatch, jpeg, mime, kind):
    published = []
    fig, ax = plt.subplots(figsize=(3, 2), facecolor="black")
    ax.axis("off")
    in_a_notebook(monkeypatch, lambda *a, **k: published.append((a, k)))
    plots.show(fig, "A white square.", jpeg=jpeg)
    ((bundle,), options), *more = published
    assert not more
    assert set(bundle) == {mime, "text/plain"}
    assert bundle["text/plain"] == "A white square."
    assert options == {"metadata": {mime: {"alt": "A white square."}}, "raw": True}
    image = Image.open(io.BytesIO(base64.b64decode(bundle[mime])))
    assert image.format == kind
    assert image.size == (300, 200)
    assert (np.asarray(image.convert("RGB")) >= 254).all()


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_wants_an_alternative(alt):
    fig, _ = plt.subplots()
    with pytest.raises(ValueError, match="alternative text"):
        plots.show(fig, alt)


def test_style_makes_figures_white_and_laid_out():
    with plt.rc_context({"figure.facecolor": "black"}):
        plots.use_style()
        fig = plt.figure()
        assert fig.get_facecolor() == (1, 1, 1, 1)
        assert fig.get_constrained_layout()
        assert fig.get_figwidth() == plots.WIDTH
        plt.close(fig)


def test_in_a_script_show_prints_the_alternative():
    code = "\n".join(
        (
            "from roadseg import plots",
            "plots.use_style()",
            "plots.show(plots.draw_matrices({'a': [[1]]}), 'One number.')",
        )
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=NOTEBOOKS, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("One number.\n", "", 0)


def test_in_a_notebook_a_figure_appears_once(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    cells = (
        "import matplotlib.pyplot as plt\nfrom roadseg import plots\nplots.use_style()",
        "fig, ax = plt.subplots()\nax.plot([1, 2])\nplots.show(fig, alt='A line.')",
        "plots.show(plots.draw_matrices({'a': [[1]]}), alt='One.', jpeg=True)",
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = nbclient.NotebookClient(book, kernel_name="python3", timeout=300)
    client.resources = {"metadata": {"path": str(NOTEBOOKS)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nbclient and zmq
        client.execute()
    outputs = [cell.outputs for cell in book.cells]
    assert outputs[0] == []
    for (output, *more), mime, alt in (
        (outputs[1], "image/png", "A line."),
        (outputs[2], "image/jpeg", "One."),
    ):
        assert not more
        assert set(output.data) == {mime, "text/plain"}
        assert output.data["text/plain"] == alt
        assert output.metadata[mime] == {"alt": alt}
        Image.open(io.BytesIO(base64.b64decode(output.data[mime]))).verify()


def test_an_update_replaces_the_figure_before(monkeypatch):
    told = []
    figures = [plt.figure() for _ in range(3)]
    in_a_notebook(monkeypatch, lambda data, **more: told.append(more))
    for fig, update in zip(figures, (False, True), strict=False):
        plots.show(fig, "a curve", display_id="curves", update=update)
    plots.show(figures[2], "a still")
    assert [(m.get("display_id"), m.get("update")) for m in told] == [
        ("curves", False),
        ("curves", True),
        (None, None),
    ]
