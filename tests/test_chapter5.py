"""The check cells of chapter 5 fail when what they check is broken."""

import pytest

import chapter


@pytest.fixture(scope="module")
def cells():
    return chapter.code_cells("05_evaluation.ipynb")


@pytest.fixture(scope="module")
def by_hand(cells):
    """The cells of section 1 that need no data and no network."""
    keys = (
        "import matplotlib",
        "plots.use_style()",
        "truth = torch.tensor(",
        "counts[t, p] += 1",
        "labeled = counts[:VOID]",
        "miou = iou.nanmean()",
        "scores.miou == miou.item()",
    )
    return [chapter.cell_with(cells, key) for key in keys]


def test_the_cells_pass_as_they_stand(by_hand, capsys):
    names = chapter.run(by_hand)
    assert names["acc"] == pytest.approx(13 / 15)
    assert names["recall"][8] == 1
    assert names["precision"][8] == pytest.approx(0.8)
    assert "acc 0.8667" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("counts[t, p] += 1", "counts[p, t] += 1"),
        ("counts[:VOID].double()", "counts.double()[:, :11]"),
        ("- right)", ")"),
        ("iou.nanmean()", "iou.nan_to_num().mean()"),
    ],
)
def test_a_slip_by_hand_is_caught(by_hand, right, wrong):
    slipped = chapter.with_slip(by_hand, right, wrong)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        chapter.run(slipped)


def test_the_exercises_check_themselves(cells, by_hand):
    street = "PEDESTRIAN = 9\n" + chapter.cell_with(cells, "street = torch.full")
    start = [*by_hand, street]
    for key, right, wrong in (
        ("dice =", "2 * right", "3 * right"),
        ("together = ", "> together", "< together"),
    ):
        solution = chapter.cell_with(cells, key)
        chapter.run([*start, solution])
        assert right in solution
        with pytest.raises(AssertionError):
            chapter.run([*start, solution.replace(right, wrong)])


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
