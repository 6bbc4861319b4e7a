"""The check cells of chapter 3 fail when what they check is broken.

All cells run once, on drawn scenes. For each mutation one cell is broken and run
again from the names as they were before it, up to the check that has to fail.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from roadseg import plots

CHAPTER = Path(__file__).parents[1] / "notebooks" / "03_road_scenes.ipynb"


def run(source, names):
    exec(compile(source, "cell", "exec"), names)


@pytest.fixture(scope="module")
def cells():
    notebook = nbformat.read(CHAPTER, as_version=4)
    return [c.source for c in notebook.cells if c.cell_type == "code"]


@pytest.fixture(scope="module")
def before(cells, tmp_path_factory):
    """The names before each cell of a run in which nothing is broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROADSEG_PROFILE", "quick")
        patch.setenv("ROADSEG_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setattr(plots, "show", lambda fig, alt, photo=False: plt.close(fig))
        names, snapshots = {}, []
        for source in cells:
            snapshots.append(dict(names))
            run(source, names)
    return snapshots


def place(cells, text):
    """Return the number of the one cell with a text."""
    (found,) = [i for i, source in enumerate(cells) if text in source]
    return found


# what is broken, how, and a text of the cell whose check has to notice
MUTATIONS = [
    (
        "dataset1.verify(train.folder)",
        'dataset1.verify(train.folder, ["train"])',
        "assert found.counts",
    ),
    ("tiny.flatten()", "tiny[0]", "evaluation.pixel_counts([tiny])"),
    (
        "share = seen.sum(0) / seen.sum()",
        "share = seen.sum(0) / seen.max()",
        "torch.isclose(share.sum()",
    ),
    (
        "minlength=12) for m in",
        "minlength=12) for m in 2 *",
        "assert torch.equal(seen.sum(0)",
    ),
    (
        "np.bincount(n.ravel())[1:] for n",
        "np.bincount(n.ravel())[2:] for n",
        "assert total == labelled",
    ),
    (
        "return ((a == b) & both)",
        "return ((a != b) & both)",
        "the next frame is more alike",
    ),
    ("(i, i + 1) for i in", "(i, -i - 1) for i in", "the next frame is more alike"),
    (".argmin(1)", ".argmax(1)", "copying pays best"),
    (
        "dataset1.split_by_block(train)",
        "(train.subset(range(9)), train)",
        "copying pays best",
    ),
    (
        "dataset1.split_by_drive(train, d)",
        "dataset1.split_by_block(train)",
        "copying pays best",
    ),
    (
        "to_224(train.masks, Mode.BILINEAR)  #",
        "to_224(train.masks, Mode.NEAREST_EXACT)  #",
        "> 5 * invented(wrong, 3)",
    ),
    ("(right != c) & called", "called", "assert invented(right, 2) == 0"),
    ("red[..., 0] = 255", "red[..., 2] = 255", "[255, 0, 0]"),
    (
        "good = unet.normalise(image)",
        "good = unet.normalise(image.float())",
        "assert in_range(good)",
    ),
    ("draws = [augment(", "draws = [mask_like_photo(", "before = set(mask"),
    (
        "np.array(Image.open(p))",
        "np.array(Image.open(p))[::-1].copy()",
        "memory gives the same pixels",
    ),
    (
        "x, y = unet.normalise(images)",
        "x, y = unet.normalise(images.float())",
        "assert in_range(x)",
    ),
    (
        "resize(mask[None], size, Mode.NEAREST_EXACT)",
        "resize(mask[None], (8, 8), Mode.NEAREST_EXACT)",
        "nothing is lost at full size",
    ),
    ("mask.shape).argmax(0)", "mask.shape).argmin(0)", "nothing is lost at full size"),
    (
        "evaluation.baseline_layout(",
        "evaluation.baseline_majority(",
        'floor["mean layout"].acc >',
    ),
    (
        "evaluation.baseline_majority(",
        "evaluation.baseline_layout(",
        'floor["mean layout"].acc >',
    ),
    (
        "share[:VOID].median() /",
        "share[:VOID].mean() /",
        "training.class_weights is the square root",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "check"), MUTATIONS)
def test_a_check_fails_when_the_code_is_broken(
    cells, before, right, wrong, check, monkeypatch, tmp_path
):
    monkeypatch.setenv("ROADSEG_DATA", str(tmp_path))
    first, last = place(cells, right), place(cells, check)
    assert first <= last
    names = dict(before[first])
    for i in range(first, last):
        run(cells[i].replace(right, wrong), names)
    with pytest.raises(AssertionError):
        run(cells[last].replace(right, wrong), names)


@pytest.mark.parametrize("bug", ["mask_like_photo", "flipped_apart"])
def test_the_function_to_take_home_refuses_broken_transforms(before, bug):
    names = before[-1]
    with pytest.raises(AssertionError):
        names["check_transform"](names[bug])
    names["check_transform"](names["augment"])


def test_the_copycat_is_no_better_than_its_split(before):
    cheat = before[-1]["cheat"]
    assert cheat["random"].miou > max(
        scores.miou for name, scores in cheat.items() if name.startswith("drive")
    )
