"""The check cells of chapter 5 fail when what they check is broken."""

import matplotlib.pyplot as plt
import pytest

import chapter
from roadseg import plots


@pytest.fixture(scope="module")
def cells():
    return chapter.code_cells("05_evaluation.ipynb")


@pytest.fixture(scope="module")
def by_hand(cells):
    """The cells of section 1, which need no data and no network."""
    keys = ("street = torch.full", "metrics.compute_scores([street], [blind])\nfor")
    pedestrian = 'PEDESTRIAN = CAMVID.class_id("Pedestrian")'
    imports = chapter.cell_with(cells, "import matplotlib")
    return [imports, pedestrian, *(chapter.cell_with(cells, key) for key in keys)]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(plots, "show", lambda fig, alt, **_: plt.close(fig))


def test_the_street_hides_its_pedestrian(by_hand, capsys):
    names = chapter.run(by_hand)
    assert names["s"].acc == pytest.approx(0.99)
    assert names["s"].miou == pytest.approx(0.495)
    assert "recall 0.00  precision nan  IoU 0.00" in capsys.readouterr().out


def test_the_exercises_check_themselves(cells, by_hand):
    for key, right, wrong in (
        ("dice =", "2 * counts", "3 * counts"),
        ("theirs =", "> ours", "< ours"),
    ):
        solution = chapter.cell_with(cells, key)
        chapter.run([*by_hand, solution])
        assert right in solution
        with pytest.raises(AssertionError):
            chapter.run([*by_hand, solution.replace(right, wrong)])


def test_agreement_counts_pixels_that_are_labeled_in_both_frames(cells, by_hand):
    function = chapter.cell_with(cells, "def agreement").split("\n\n\n")[0]
    names = chapter.run([*by_hand, function])
    frames = [[[3, 3, 8, 11]], [[3, 8, 8, 8]], [[3, 8, 11, 8]]]
    names["masks"] = [names["torch"].tensor(frame) for frame in frames]
    names["n"] = 3
    assert names["agreement"](names["masks"], 2) == pytest.approx(1 / 2)
    assert names["agreement"](names["masks"], 1) == pytest.approx((2 / 3 + 1) / 2)


def test_the_boundary_band_is_as_wide_as_it_says(cells, by_hand):
    names = chapter.run([*by_hand, chapter.cell_with(cells, "def near_boundary")])
    torch = names["torch"]
    halves = torch.zeros(8, 20, dtype=torch.uint8)
    halves[:, 10:] = 8
    band = names["near_boundary"](halves)[0]
    assert band.nonzero().flatten().tolist() == [7, 8, 9, 10, 11, 12]


def test_recall_and_precision_per_object(cells, by_hand):
    names = chapter.run([*by_hand, chapter.cell_with(cells, "def overlapping")])
    torch = names["torch"]
    truth = torch.full((20, 40), 3)
    truth[2:10, 2:12] = truth[2:10, 20:30] = 8  # two cars of 80 pixels
    truth[15:17, 2:4] = 8  # and one that is too small to count
    predicted = torch.full((20, 40), 3)
    predicted[2:10, 2:9] = 8  # most of the first car, nothing of the second
    assert names["overlapping"]("Car", [truth], [predicted]) == (1, 2)
    assert names["overlapping"]("Car", [predicted], [truth]) == (1, 1)
    predicted[11:20, 20:40] = 8  # a false alarm
    assert names["overlapping"]("Car", [predicted], [truth]) == (1, 2)
    truth[10:18, 30:38] = 8  # touches the second car at a corner: one car of 144
    assert names["overlapping"]("Car", [truth], [predicted])[1] == 2


def test_confident_errors_are_shares_of_labeled_and_of_confident_pixels(cells, by_hand):
    keys = ("def probabilities", "def confident_errors")
    sources = [chapter.cell_with(cells, key) for key in keys]
    sources[0] = sources[0].split("\n\n\n")[0]  # the function alone
    names = chapter.run([*by_hand, *sources])
    torch = names["torch"]
    p = torch.full((11, 1, 4), 0.001)
    p[3] = 0.99
    p[3, 0, 3] = p[8, 0, 3] = 0.5  # not confident
    names |= {"logp": [p.log()], "h": 0}
    names["masks"] = [torch.tensor([[3, 8, 11, 3]], dtype=torch.uint8)]
    assert names["confident_errors"](1.0) == pytest.approx((2 / 3, 1 / 2))
