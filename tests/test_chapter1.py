"""Chapter 1: bugs in its views, its exercises and its animation are caught."""

import json
import shutil
import subprocess
import time

import pytest
import torch
import torch.nn.functional as F

import chapter
from roadseg import explorer


@pytest.fixture(scope="module")
def views():
    cells = chapter.code_cells("01_transposed_convolution.ipynb")
    imports = (
        "import itertools\nfrom functools import partial\n"
        "import torch\nimport torch.nn.functional as F\nfrom roadseg import plots\n"
        "def draw(*_, **__): pass"
    )
    keys = (
        "def insert_zeros(",
        "def stamp(",
        "def slide(",
        "def output_shape(",
        "def matrix(",
        "def gradient(",
        "def by_group(",
        "settings = [",
    )
    return [imports, *(chapter.cell_with(cells, key) for key in keys)]


def test_the_four_views_agree(views, capsys):
    chapter.run(views)
    assert "four views agree with PyTorch in 216 settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("w.flip(-1, -2)", "w"),
        ("w.flip(-1, -2)", "w.flip(-1)"),
        ("(w.shape[-1] - 1) - padding", "(w.shape[-1] - 1) + padding"),
        ("(p, p + extra, p, p + extra)", "(p + extra, p, p + extra, p)"),
        ("[..., ::stride, ::stride] = x", "[..., : x.shape[-2], : x.shape[-1]] = x"),
        ("columns] += value", "columns] = value"),
        ("slice(i * stride, i * stride + reach", "slice(i, i + reach"),
        ("[-padding] * 4", "[0] * 4"),
        (
            ".transpose(0, 1)",
            ".reshape(w.shape[1], len(w), *w.shape[2:])",
        ),
        ("large, w, None, stride, padding, dilation", "large, w, None, 1, padding, 1"),
        ("x.flatten(1) @ m)", "x.flatten(1).flip(1) @ m)"),
        ("for a, b in pairs]", "for a, b in reversed([*pairs])]"),
    ],
)
def test_a_bug_in_a_view_is_caught(views, right, wrong):
    with pytest.raises((AssertionError, RuntimeError)):
        chapter.run(chapter.with_slip(views, right, wrong))


def test_the_loop_of_section_3_is_the_layer(views):
    cells = chapter.code_cells("01_transposed_convolution.ipynb")
    sources = [
        views[0],
        chapter.cell_with(cells, "def transposed_conv("),
        chapter.cell_with(cells, "assert torch.equal(transposed_conv("),
    ]
    chapter.run(sources)
    for right, wrong in (("+= x[i, j]", "+= x[j, i]"), ("i * stride,", "i,")):
        with pytest.raises((AssertionError, RuntimeError)):
            chapter.run(chapter.with_slip(sources, right, wrong))


def test_the_matrix_that_is_drawn_is_the_layer(views):
    cells = chapter.code_cells("01_transposed_convolution.ipynb")
    example = (
        "x = torch.arange(1.0, 10).view(1, 1, 3, 3)\n"
        "kernel = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)"
    )
    basis = chapter.cell_with(cells, "torch.eye(9).view(9, 1, 3, 3)")
    check = chapter.cell_with(cells, "larger = ")
    names = chapter.run([views[0], example, basis, check])
    assert names["M"].shape == (4, 9)
    with pytest.raises((AssertionError, RuntimeError)):
        chapter.run([views[0], example, basis.replace(".T", ""), check])


def test_the_exercises_check_themselves(views):
    cells = chapter.code_cells("01_transposed_convolution.ipynb")
    start = [
        f"{views[0]}\nfrom torch import nn",
        chapter.cell_with(cells, "def insert_zeros("),
        chapter.cell_with(cells, "def overlap("),
        "generator = torch.Generator().manual_seed(0)",
    ]
    for key, right, wrong in (
        ("answer = F", "[1, 3, 3, 6, 2]", "[1, 3, 1, 6, 2]"),
        ("(4, 0), (8, 2)", "(8, 2)", "(6, 1)"),
        ("(22, 30)", "(22, 30)", "(21, 29)"),
        ("tent = 1 -", "+ 0.5 - f", "- f"),
    ):
        solution = chapter.cell_with(cells, key)
        chapter.run([*start, solution])
        with pytest.raises(AssertionError):
            chapter.run([*start, solution.replace(right, wrong)])


# ---- The animation ----------------------------------------------------------------

ASK = """
const { stamped, slid, SIZE } = globalThis.views;
const sum = (list) => list.reduce((t, x) => t + x.value * x.weight, 0);
const places = [...Array(SIZE * SIZE).keys()];
const cells = places.map((i) => [Math.floor(i / SIZE), i % SIZE]);
console.log(JSON.stringify([stamped, slid].map((f) => cells.map((c) => sum(f(...c))))));
"""


def animated(page):
    if not (node := shutil.which("node")):
        pytest.skip("there is no node to run the animation's script")
    script = page[page.index("<script>") + 8 : page.index("</script>")]
    done = subprocess.run(
        [node, "-e", script + ASK], capture_output=True, text=True, check=True
    )
    return [torch.tensor(sums).view(5, 5).double() for sums in json.loads(done.stdout)]


def test_both_views_of_the_animation_agree_with_pytorch():
    x = torch.tensor([[1, 2], [3, 4]]).double()[None, None]
    w = torch.tensor([[1, 2, 1], [3, 4, 2], [2, 1, 5]]).double()[None, None]
    expected = F.conv_transpose2d(x, w, stride=2)[0, 0]
    page = explorer.two_views()
    for sums in animated(page):
        assert torch.equal(sums, expected)
    unflipped = page.replace("KERNEL[K - 1 - a][K - 1 - b] }", "KERNEL[a][b] }")
    stamped, slid = animated(unflipped)
    assert torch.equal(stamped, expected)
    assert not torch.equal(slid, expected)


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("google-chrome", "chromium", "chromium-browser")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("there is no Chromium with its driver to click in the animation")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def animation(chromium, tmp_path):
    """Ask JavaScript with the animation's ``root`` in scope."""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{explorer.two_views()}")
    chromium.get(page.as_uri())
    root = "const root = document.querySelector('.tconv-views').shadowRoot;"
    return lambda script: chromium.execute_script(root + script)


def step(animation):
    return int(animation("return root.querySelector('input').value"))


def click(animation, button):
    animation(f'root.querySelector("[{button}]").click()')


def test_the_animation_is_stepped_and_played(animation):
    assert step(animation) == 12
    click(animation, "data-by='1'")
    assert step(animation) == 13
    assert "row 3, column 4" in animation("return root.querySelector('p').textContent")
    click(animation, "data-by='-1'")
    click(animation, "data-by='-1'")
    assert step(animation) == 11
    click(animation, "data-play")
    until = time.monotonic() + 20
    while step(animation) < 13:
        assert time.monotonic() < until, "it does not play"
        time.sleep(0.1)
    click(animation, "data-play")
    paused = step(animation)
    time.sleep(1.2)
    assert step(animation) == paused


def test_the_animation_follows_the_theme_of_its_page(animation):
    paper = "return getComputedStyle(root.querySelector('.card')).backgroundColor"
    assert animation(paper) == "rgb(255, 255, 255)"
    animation("document.documentElement.dataset.theme = 'dark'")
    time.sleep(0.2)
    assert animation(paper) == "rgb(22, 27, 34)"


def test_without_scripts_the_animation_shows_a_step_that_is_right():
    still = explorer.two_views().partition("<script>")[0]
    lines = still[still.index("<pre>") : still.index("</pre>")].splitlines()
    stamps = [line.partition("=")[0].split("writes")[1].split("×") for line in lines
              if "writes" in line]  # fmt: skip
    total = sum(int(a) * int(b) for a, b in stamps)
    slid = [part.split("×") for line in lines if "writes" in line
            for part in line[50:].replace("+", " ").split() if "×" in part]  # fmt: skip
    assert total == sum(int(a) * int(b) for a, b in slid) == 16
    assert still.count("= 16") == 2
