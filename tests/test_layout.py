"""Modules of roadseg import downwards only, and each has its tests beside it."""

import ast
import re
from pathlib import Path

import pytest

import roadseg

TESTS = Path(__file__).parent
PACKAGE = Path(roadseg.__file__).parent
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
SIDEWAYS = {"dataset1": {"archives", "synthetic"}}


def floors():
    """Return {module: floor}, from the list in the docstring of the package."""
    lines = re.findall(r"^\* (`.+`)$", roadseg.__doc__, re.M)
    return {m: n for n, line in enumerate(lines) for m in re.findall(r"\w+", line)}


def imported(source):
    """Return the modules of roadseg that a module's source imports, wherever."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = "roadseg" if node.level else ""
            origin = ".".join(filter(None, (start, node.module)))
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in found]
    return {part[1] for part in parts if part[0] == "roadseg" and part[1:]}


@pytest.mark.parametrize(
    "line",
    [
        "import roadseg.unet",
        "import roadseg.unet as u",
        "from roadseg import unet",
        "from roadseg.unet import UNet",
        "from . import unet",
        "from .unet import UNet",
        "def f():\n    from roadseg.unet import UNet",
    ],
)
def test_every_kind_of_import_is_seen(line):
    assert imported(f"import numpy\nfrom pathlib import Path\n{line}") == {"unet"}


def test_every_module_has_its_floor():
    assert sorted(floors()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards_only(module):
    floor = floors()
    used = imported((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    upwards = {other for other in used if floor[other] >= floor[module]}
    assert upwards == SIDEWAYS.get(module, set())


def test_the_readme_names_the_same_floors():
    text = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    sentence = re.search(r"Imports go downwards only: (.+?)\.\s", text, re.S)[1]
    assert re.findall(r"`(\w+)`", sentence) == list(floors())


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_test_file(module):
    path = TESTS / f"test_{module}.py"
    assert re.search(rf"\b{module}\b", path.read_text(encoding="utf-8"))
