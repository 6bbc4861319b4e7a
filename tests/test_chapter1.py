"""Chapter 1: slips in the by-hand views are caught."""

import pytest

import chapter


@pytest.fixture(scope="module")
def views():
    cells = chapter.code_cells("01_transposed_convolution.ipynb")
    keys = (
        "import itertools",
        "def spread(",
        "def stamp(",
        "def slide(",
        "def output_shape(",
        "def gradient(",
        "settings = [",
        "for view in (stamp,",
    )
    return [chapter.cell_with(cells, key) for key in keys]


def test_the_four_views_agree(views, capsys):
    chapter.run(views)
    assert "four views agree with PyTorch in 216 settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("w.flip(-1, -2)", "w"),
        ("w.flip(-1, -2)", "w.flip(-1)"),
        ("(k - 1) - padding", "(k - 1) + padding"),
        ("(p, p + extra, p, p + extra)", "(p + extra, p, p + extra, p)"),
        ("[..., ::stride, ::stride] = x", "[..., : x.shape[-2], : x.shape[-1]] = x"),
        ("columns] += torch", "columns] = torch"),
        ("slice(i * stride, i * stride + reach", "slice(i, i + reach"),
        ("[-padding] * 4", "[0] * 4"),
        (
            ".transpose(1, 2).flatten(0, 1)",
            ".flatten(0, 1).unflatten(0, (-1, 1))[:, 0]",
        ),
        ("large, w, None, stride, padding, dilation", "large, w, None, 1, padding, 1"),
        ("x.flatten(1) @ m)", "x.flatten(1).flip(1) @ m)"),
    ],
)
def test_a_slip_in_a_view_is_caught(views, right, wrong):
    with pytest.raises((AssertionError, RuntimeError)):
        chapter.run(chapter.with_slip(views, right, wrong))


def test_the_exercises_check_themselves(views):
    cells = chapter.code_cells("01_transposed_convolution.ipynb")
    start = [
        views[0],
        chapter.cell_with(cells, "def spread("),
        chapter.cell_with(cells, "def overlap("),
    ]
    for key, right, wrong in (
        ("answer = F", "[1, 3, 3, 6, 2]", "[1, 3, 1, 6, 2]"),
        ("(4, 0), (8, 2)", "(8, 2)", "(6, 1)"),
        ("(22, 30)", "(22, 30)", "(21, 29)"),
        ("tent = 1 -", "+ 0.5 - f", "- f"),
    ):
        seed = ["import torch; generator = torch.Generator().manual_seed(0)"]
        solution = chapter.cell_with(cells, key)
        chapter.run([*start, *seed, solution])
        with pytest.raises(AssertionError):
            chapter.run([*start, *seed, solution.replace(right, wrong)])
