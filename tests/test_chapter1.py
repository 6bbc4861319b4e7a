"""Chapter 1: slips in the by-hand views are caught, and the explorer counts right."""

import json
import os
import random
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F

import chapter
from roadseg import explorer


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


# --- the explorer ---------------------------------------------------------------

ASK = """
const { problem, slide, stamp, outputSize } = globalThis.explorer;
const jobs = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(jobs.map(({ input, kernel, s }) => problem(input.length, s)
  ? { problem: problem(input.length, s) }
  : { slide: slide(input, kernel, s), stamp: stamp(input, kernel, s),
      size: outputSize(input.length, s) })));
"""


def script() -> str:
    """The explorer's script; without a page it only offers its arithmetic."""
    page = explorer.page()
    return page[page.index("<script>") + 8 : page.index("</script>")]


def settings(count):
    rng = random.Random(0)
    for _ in range(count):
        n, k = rng.randint(1, 4), rng.randint(1, 4)
        yield {
            "input": [[rng.randint(-9, 9) for _ in range(n)] for _ in range(n)],
            "kernel": [[rng.randint(-9, 9) for _ in range(k)] for _ in range(k)],
            "s": {
                "kernel": k,
                "stride": rng.randint(1, 4),
                "padding": rng.randint(0, 3),
                "dilation": rng.randint(1, 3),
                "outputPadding": rng.randint(0, 2),
            },
        }


def pytorch(job):
    s = job["s"]
    x, w = (torch.tensor(job[k]).double()[None, None] for k in ("input", "kernel"))
    rest = (s["stride"], s["padding"], s["outputPadding"], 1, s["dilation"])
    return F.conv_transpose2d(x, w, None, *rest)[0, 0]


def answers(jobs, tmp_path):
    """What the explorer's script answers, run by node, else by a browser."""
    if node := shutil.which("node"):
        return json.loads(
            subprocess.run(
                [node, "-e", script() + ASK],
                input=json.dumps(jobs),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    if browser := shutil.which("chromium") or shutil.which("google-chrome"):
        return ask_browser(browser, jobs, tmp_path)
    missing = "neither node nor Chromium is here to run the explorer's script"
    if os.environ.get("CI"):
        pytest.fail(f"{missing}: install Debian's package nodejs")
    return pytest.skip(missing)


def ask_browser(browser, jobs, tmp_path):
    # Under a parameter named `document` the script finds no page to draw on.
    asked = ASK.replace('require("fs").readFileSync(0, "utf8")', "stdin")
    asked = asked.replace("console.log(", "page.body.textContent = (")
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta charset='utf-8'><body><script>"
        f"const stdin = {json.dumps(json.dumps(jobs))};"
        f"((page, document) => {{ {script()} {asked} }})(document);</script>",
        encoding="utf-8",
    )
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync "
    options += "--disable-background-networking --disable-component-update --dump-dom"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *options.split(), profile, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    body = done.stdout
    return json.loads(body[body.index("<body>") + 6 : body.index("</body>")])


def test_the_explorer_agrees_with_pytorch(tmp_path):
    jobs = list(settings(400))
    valid = 0
    for job, answer in zip(jobs, answers(jobs, tmp_path), strict=True):
        if "problem" in answer:
            with pytest.raises(RuntimeError):
                pytorch(job)
            continue
        valid += 1
        expected = pytorch(job)
        assert answer["size"] == len(expected)
        for view in ("slide", "stamp"):
            assert torch.equal(torch.tensor(answer[view]["output"]).double(), expected)
    assert valid >= 200


def test_a_slip_in_the_explorer_is_caught(tmp_path, monkeypatch):
    page = explorer.page()
    for right, wrong in (
        ("kernel[k - 1 - a][k - 1 - b]", "kernel[a][b]"),
        ("(s.kernel - 1) - s.padding;", "(s.kernel - 1) + s.padding;"),
        ("(i - padding) / s.stride", "(i - padding) / 1"),
        ("i * s.stride + a * s.dilation", "i * s.stride + a"),
        ("Math.max(s.stride, s.dilation)", "s.stride"),
    ):
        assert page.count(right) == 1, right
        slipped = page.replace(right, wrong)
        monkeypatch.setattr(explorer, "page", lambda slipped=slipped: slipped)
        with pytest.raises(
            (AssertionError, subprocess.CalledProcessError, pytest.fail.Exception)
        ):
            test_the_explorer_agrees_with_pytorch(tmp_path)
