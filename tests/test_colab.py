"""The first cells of each notebook, in an empty folder as in Colab, and at home.

Colab is imitated: a ``google.colab`` module, an empty working directory, a kernel whose
path begins with that directory, packages of the system but not the course. git fetches
from this checkout's files instead of GitHub; pip is replaced by a script that writes
down what it was asked for.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import notebooks

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = notebooks.chapters()
OPTIONAL = {"accelerate", "safetensors", "scipy", "torch_snippets", "av", "sklearn"}
OPTIONAL |= {"onnx", "onnxscript", "onnxruntime"}
NEVER = {"torch", "torchvision", "numpy", "ipykernel", "ipywidgets"}
"""What a running kernel has loaded, or what its page depends on."""

PIP = """
import json, os, sys
with open(os.environ["PIP_LOG"], "a", encoding="utf-8") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
"""

KERNEL = """
import importlib.util, json, os, sys

absent = set(os.environ["ABSENT"].split())

def hidden(find):
    def find_spec(name, *rest):
        return None if name in absent else find(name, *rest)
    return find_spec

if absent:
    importlib.util.find_spec = hidden(importlib.util.find_spec)
sys.path.insert(0, "")  # as a kernel has it
if os.environ.get("COLAB"):
    import google.colab
before = os.getcwd(), list(sys.path)
space = {"__name__": "__main__"}
cells = json.load(open(os.environ["CELLS"], encoding="utf-8"))
for number, cell in enumerate(cells):
    exec(compile(cell, f"cell {number}", "exec"), space)
    absent.clear()  # pip, if it was called, has brought them
roadseg = sys.modules.get("roadseg")
print(json.dumps({
    "changed": (os.getcwd(), list(sys.path)) != before,
    "here": os.getcwd(),
    "roadseg": roadseg and roadseg.__file__,
    "loaded": sorted(sys.modules),
}))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A bare repository with the notebooks as they lie here, as GitHub would have."""
    folder = tmp_path_factory.mktemp("served")
    work = folder / "work"
    shutil.copytree(
        ROOT / "notebooks",
        work / "notebooks",
        ignore=shutil.ignore_patterns("__pycache__", ".*"),
    )
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "All"],
        ["clone", "-q", "--bare", ".", str(folder / "course.git")],
    ):
        subprocess.run(["git", *command], cwd=work, check=True, env=_git_free())
    return folder / "course.git"


def _git_free():
    return {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}


@pytest.fixture
def colab(served, tmp_path):
    """A machine like Colab's; ``run(cells)`` runs cells in its empty folder."""
    return Machine(served, tmp_path)


class Machine:
    """A folder that plays a machine: home, /content, and what a kernel sees."""

    def __init__(self, served, folder):
        self.served = served
        self.content, self.home = folder / "content", folder / "home"
        self.site, self.log = folder / "site", folder / "pip.log"
        for path in (self.content, self.home, self.site / "google" / "colab"):
            path.mkdir(parents=True)
        (self.site / "google" / "colab" / "__init__.py").touch()
        (self.site / "pip").mkdir()
        (self.site / "pip" / "__init__.py").touch()
        (self.site / "pip" / "__main__.py").write_text(PIP, "utf-8")
        pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        url = pyproject["project"]["urls"]["Repository"]
        config = f'[url "{served.as_uri()}"]\n\tinsteadOf = {url}\n'
        (self.home / ".gitconfig").write_text(config, "utf-8")

    def run(self, cells, absent=(), cwd=None, colab=True):
        """Run cells in a fresh process; return what it says at the end."""
        file = self.home / "cells.json"
        file.write_text(json.dumps(cells), "utf-8")
        environment = {
            **_git_free(),
            "HOME": str(self.home),
            "GIT_CONFIG_GLOBAL": str(self.home / ".gitconfig"),
            "PYTHONPATH": str(self.site),
            "PIP_LOG": str(self.log),
            "CELLS": str(file),
            "ABSENT": " ".join(absent),
            "COLAB": "1" if colab else "",
        }
        done = subprocess.run(
            [sys.executable, "-c", KERNEL],
            cwd=cwd or self.content,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def pip_calls(self):
        """What pip was asked for, call by call."""
        if not self.log.exists():
            return []
        return [json.loads(x) for x in self.log.read_text("utf-8").splitlines()]


def first_cells(path):
    """The setup cell of a notebook and the cells of imports after it."""
    sources = [cell.source for cell in notebooks.code_cells(notebooks.read(path))]
    last = next(i for i, text in enumerate(sources) if "from roadseg import" in text)
    return sources[: last + 1]


def setup_cell(path=CHAPTERS[0]):
    source = first_cells(path)[0]
    assert "git" in source, "the first code cell fetches nothing"
    return source


def wanted(path):
    """The packages that a setup cell installs where they are missing."""
    lists = re.findall(r"wanted \+?= (\[.*?\])", setup_cell(path), re.DOTALL)
    return {name for text in lists for name in json.loads(text)}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_notebook_opened_alone_finds_the_course(path, colab):
    said = colab.run(first_cells(path))
    assert Path(said["here"]) == colab.content / "course" / "notebooks"
    fetched = Path(said["here"]) / "roadseg" / "__init__.py"
    assert Path(said["roadseg"]) == fetched
    assert colab.pip_calls() == []  # all of it was there
    # it wants what it has loaded, and what later cells use
    loaded = OPTIONAL & set(said["loaded"])
    assert loaded <= wanted(path)
    text = path.read_text("utf-8").replace("wanted", "")
    later = {name for name in wanted(path) - loaded if text.count(name) > 1}
    later |= {name for name in wanted(path) if "onnx" in name and "export" in text}
    assert wanted(path) == loaded | later


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_what_is_missing_is_installed_and_torch_is_held(path, colab):
    colab.run([setup_cell(path)], absent=wanted(path))
    calls = colab.pip_calls()
    assert len(calls) == bool(wanted(path))
    for call in calls:
        names = [x for x in call if not x.startswith("-")][1:]
        assert call[0] == "install"
        held = dict(x.split("==") for x in names if "==" in x)
        assert {x for x in names if "==" not in x} == wanted(path)
        assert not NEVER & wanted(path)
        assert held == {name: version(name) for name in held}
        assert set(held) == {"torch", "torchvision", "numpy"}


def test_the_course_can_be_pinned_to_a_release(colab):
    """As it is for a release: its name in the setup cell in place of main."""
    git = ["git", "-C", colab.served]
    subprocess.run([*git, "tag", "v9.9"], check=True, env=_git_free())
    pinned = setup_cell().replace('tag = "main"', 'tag = "v9.9"')
    assert pinned != setup_cell()
    colab.run([pinned])
    course = ["git", "-C", colab.content / "course", "describe", "--tags"]
    done = subprocess.run(course, capture_output=True, text=True, env=_git_free())
    assert done.stdout.strip() == "v9.9"


def test_a_restarted_kernel_takes_the_course_that_is_there(colab):
    colab.run([setup_cell()])
    own = colab.content / "course" / "notebooks" / "mine.txt"
    own.write_text("kept", "utf-8")
    said = colab.run([setup_cell()])
    assert Path(said["here"]) == own.parent
    assert own.read_text("utf-8") == "kept"


def test_at_home_nothing_happens(colab):
    said = colab.run([setup_cell()], cwd=ROOT / "notebooks", colab=False)
    assert not said["changed"]
    assert not (ROOT / "notebooks" / "course").exists()
    assert colab.pip_calls() == []


def test_run_twice_it_does_nothing_the_second_time(colab):
    said = colab.run([setup_cell(), setup_cell()])
    assert Path(said["here"]) == colab.content / "course" / "notebooks"
    assert not (Path(said["here"]) / "course").exists()


def test_without_the_repository_the_cell_fails_and_leaves_nothing(colab):
    shutil.rmtree(colab.home)
    colab.home.mkdir()
    config = '[url "file:///nowhere/"]\n\tinsteadOf = https://github.com/\n'
    (colab.home / ".gitconfig").write_text(config, "utf-8")
    with pytest.raises(AssertionError, match="CalledProcessError"):
        colab.run([setup_cell()])
    assert list(colab.content.iterdir()) == []
