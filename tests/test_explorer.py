"""The explorer computes what PyTorch computes, with scripts and without them."""

import json
import os
import random
import re
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F

from roadseg import explorer

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


def run_script(jobs, tmp_path):
    """What the explorer's script computes, run by node, else by a browser."""
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
        return run_in_browser(browser, jobs, tmp_path)
    missing = "there is neither node nor Chromium to run the explorer's script"
    if os.environ.get("CI"):
        pytest.fail(f"{missing}: install Debian's package nodejs")
    return pytest.skip(missing)


def run_in_browser(browser, jobs, tmp_path):
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
    for job, result in zip(jobs, run_script(jobs, tmp_path), strict=True):
        if "problem" in result:
            with pytest.raises(RuntimeError):
                pytorch(job)
            continue
        valid += 1
        expected = pytorch(job)
        assert result["size"] == len(expected)
        for view in ("slide", "stamp"):
            assert torch.equal(torch.tensor(result[view]["output"]).double(), expected)
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


def test_without_scripts_a_worked_step_is_shown_that_is_right():
    still = explorer.page().partition("<script>")[0]
    figure = re.search(r"<pre>(.*?)</pre>", still, re.DOTALL)[1]
    grids = [[], [], []]  # side by side: input, kernel, output
    for line in re.sub(r"</?b>", " ", figure).splitlines()[3:]:
        for grid, columns in zip(grids, ((0, 8), (9, 20), (21, None)), strict=True):
            if row := line[slice(*columns)].replace("[", " ").replace("]", " ").split():
                grid.append([int(number) for number in row])
    image, kernel, output = (torch.tensor(grid).double() for grid in grids)
    expected = F.conv_transpose2d(image[None, None], kernel[None, None], stride=2)
    assert torch.equal(output, expected[0, 0])
    marked = int(re.search(r"<b>\[(\d+)\]</b>", figure)[1])
    terms, total = re.search(r"summed:\s+([^=]*) = (\d+)\.", still).groups()
    products = [[int(x) for x in term.split("×")] for term in terms.split("+")]
    assert sum(a * b for a, b in products) == int(total) == marked == output[2, 2]
    # row 3, column 3 gets one product from each input value
    pairs = [
        (image[i, j], kernel[2 - 2 * i, 2 - 2 * j]) for i in (0, 1) for j in (0, 1)
    ]
    assert [tuple(p) for p in products] == [(int(a), int(b)) for a, b in pairs]
