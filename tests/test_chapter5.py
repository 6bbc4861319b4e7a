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
        "truth = torch.tensor(",
        "counts[t, p] += 1",
        "labelled = counts[:VOID]",
        "miou = iou.nanmean()",
        "scores.miou == miou.item()",
        "rng = np.random",
        "jaccard_score(",
    )
    return [chapter.cell_with(cells, key) for key in keys]


def test_the_cells_pass_as_they_stand(by_hand, capsys):
    names = chapter.run(by_hand)
    assert names["acc"] == pytest.approx(13 / 15)
    assert "acc 0.8667" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("counts[t, p] += 1", "counts[p, t] += 1"),
        ("counts[:VOID].double()", "counts.double()[:, :11]"),
        ("- right\n", "\n"),
        ("iou.nanmean()", "iou.nan_to_num().mean()"),
        ("ignore_index=VOID", "ignore_index=0"),
        ("x[t != VOID].numpy()", "x.numpy().ravel()"),
    ],
)
def test_a_slip_by_hand_is_caught(by_hand, right, wrong):
    slipped = chapter.with_slip(by_hand, right, wrong)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        chapter.run(slipped)


def test_the_exercises_check_themselves(cells, by_hand):
    start = [*by_hand, chapter.cell_with(cells, "street = torch.full")]
    for key, right, wrong in (
        ("dice =", "2 * counts", "3 * counts"),
        ("together = ", "> together", "< together"),
        ("for radius in", "radius + 1\n", "radius + 2\n"),
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


def test_calibration_of_an_honest_and_a_boasting_network(cells, by_hand):
    names = chapter.run([*by_hand, chapter.cell_with(cells, "def reliability")])
    torch = names["torch"]
    confidence = torch.full((1000,), 0.75)
    right = (torch.arange(1000) % 4 > 0).long()  # three of four
    assert names["reliability"](confidence, right)[-1] == pytest.approx(0, abs=1e-6)
    assert names["reliability"](confidence, 0 * right)[-1] == pytest.approx(0.75)
