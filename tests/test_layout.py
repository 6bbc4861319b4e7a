"""The layers of roadseg, the size of its files, and a test file for each module."""

import ast
import re
from pathlib import Path

import pytest

import roadseg

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PACKAGE = Path(roadseg.__file__).resolve().parent
MODULES = sorted(p.stem for p in PACKAGE.glob("[!_]*.py"))
MAX_LINES = 500

PARTS = {"charts": "plots", "paint": "plots", "pairs": "scenes"}
"""Modules that others re-export, under whose name they are tested."""


def order():
    """Return the modules from the lowest layer up, as the package's docstring has it.

    `explorer` depends on nothing, so its place does not matter.
    """
    lines = re.findall(r"^\* (.+(?:\n  .+)*)$", roadseg.__doc__, re.M)
    return [name for line in lines for name in re.findall(r"`(\w+)`", line)]


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
    names = {part[1] for part in parts if part[0] == "roadseg" and part[1:]}
    return names - {"__version__"}


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


def test_every_module_has_its_place():
    assert sorted(order()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_ones_before_it(module):
    place = {name: n for n, name in enumerate(order())}
    used = imported((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert {other for other in used if place[other] >= place[module]} == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_test_file(module):
    name = PARTS.get(module, module)
    path = TESTS / f"test_{name}.py"
    assert re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", ["notebooks/roadseg", "scripts", "benchmark"])
def test_no_file_is_too_long_to_read(folder):
    for path in (ROOT / folder).rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, path.name
