"""The check cells of chapter 3 fail when what they check is broken.

All cells run once, on synthetic scenes. For each mutation one cell is broken and run
again from the names as they were before it, up to the check that has to fail.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from torchvision.transforms import v2

from roadseg import plots, recipes, runtime

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
        data = tmp_path_factory.mktemp("data")
        runtime.configure(profile="quick", device="cpu", data_dir=data)
        patch.setattr(plots, "show", lambda fig, alt, jpeg=False: plt.close(fig))
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
        "rs.verify(train.folder, checksums",
        'rs.verify(train.folder, ["train"], checksums',
        "assert found.counts",
    ),
    (
        "minlength=12) for m in",
        "minlength=12) for m in 2 *",
        "assert torch.equal(seen.sum(0)",
    ),
    (
        "np.bincount(n.ravel())[1:] for n",
        "np.bincount(n.ravel())[2:] for n",
        "for a in sizes.values()) == total",
    ),
    (
        "return ((a == b) & both)",
        "return ((a != b) & both)",
        'alike[k] > alike["two random',
    ),
    ("(i, i + k) for i in", "(i, -i - k) for i in", 'alike[k] > alike["two random'),
    (".argmin(1)", ".argmax(1)", 'leakage["random"].acc >'),
    (
        "rs.split_by_block(train)",
        "(train.subset(range(9)), train)",
        'leakage["random"].acc >',
    ),
    (
        "rs.split_by_sequence(train, s)",
        "rs.split_by_block(train)",
        'leakage["random"].acc >',
    ),
    (
        "to_224(train.masks, Mode.BILINEAR)  #",
        "to_224(train.masks, Mode.NEAREST_EXACT)  #",
        "> 5 * invented(blended, 3)",
    ),
    ("(exact != c) & called", "called", "assert invented(exact, 2) == 0"),
    ("red[..., 0] = 255", "red[..., 2] = 255", "[255, 0, 0]"),
    (
        "good, bgr = unet.normalize(photo),",
        "good, bgr = unet.normalize(photo.float()),",
        "assert in_range(good)",
    ),
    (
        "((i[0] - m).mean() / step)",
        "((i[0] - m + 1).mean() / step)",
        "assert shift < 0.1",
    ),
    ("draws = [augment(", "draws = [mask_like_photo(", "allowed = set(target"),
    (
        "in_range(unet.normalize(batch))",
        "in_range(unet.normalize(batch.float()))",
        "in_range(unet.normalize(batch))",
    ),
    (
        "resize(mask[None], size, mode)",
        "resize(mask[None], (8, 8), mode)",
        "assert all(upper[full, name]",
    ),
    ("mask.shape).argmax(0)", "mask.shape).argmin(0)", "assert all(upper[full, name]"),
    (
        "metrics.spatial_prior_baseline(",
        "metrics.baseline_majority(",
        "assert spatial.acc > majority.acc",
    ),
    (
        "metrics.baseline_majority(",
        "metrics.spatial_prior_baseline(",
        "assert spatial.acc > majority.acc",
    ),
    (
        "share[:VOID].median() /",
        "share[:VOID].mean() /",
        "recipes.class_weights is the square root",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "check"), MUTATIONS)
def test_a_check_fails_when_the_code_is_broken(
    cells, before, right, wrong, check, tmp_path
):
    runtime.configure(data_dir=tmp_path)
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


def test_a_random_split_flatters_the_nearest_neighbor(before):
    leakage = before[-1]["leakage"]
    assert leakage["random"].miou > max(
        scores.miou for name, scores in leakage.items() if "sequence" in name
    )


def test_the_ramp_measures_half_a_pixel_where_there_is_one(before):
    offset, size = before[-1]["offset"], (48, 64)
    shifted = offset(v2.RandomResizedCrop(size, scale=(0.4, 1)))
    aligned = offset(recipes.AlignedRandomResizedCrop(size, scale=(0.4, 1)))
    assert shifted == pytest.approx(0.49, abs=0.03)
    assert aligned == pytest.approx(0, abs=0.03)
