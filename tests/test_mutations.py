"""The list of faults is current, and a fault that does no harm survives."""

import ast
import os
import subprocess
import sys
from functools import cache

import pytest

import mutations
from mutations import FAULTS, PACKAGE, ROOT


@cache
def functions_in(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.module}: {f.name}")
def test_a_fault_changes_one_place_and_has_tests(fault):
    text = (ROOT / PACKAGE / f"{fault.module}.py").read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    changed = text.replace(fault.old, fault.new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    assert 1 <= len(fault.tests) <= 3
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert name in functions_in(file)


def test_there_are_enough_faults_of_different_names():
    assert len({(f.module, f.name) for f in FAULTS}) == len(FAULTS) >= 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
def test_a_fault_is_caught_if_a_test_fails(tmp_path):
    package = tmp_path / PACKAGE
    package.mkdir(parents=True)
    (package / "sums.py").write_text("two = 1 + 1", "utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_sums.py").write_text(
        "from sums import two\n\ndef test_two():\n    assert two == 2\n", "utf-8"
    )
    settings = '[tool.pytest.ini_options]\npythonpath = ["notebooks/roadseg"]\n'
    (tmp_path / "pyproject.toml").write_text(settings, "utf-8")
    code = """if True:
        import sys, pathlib, mutations
        root, tasks = pathlib.Path(sys.argv[1]), []
        for new in ("2", "3", "("):
            fault = mutations.Fault.of("sums", "a sum", "1 + 1", new, "two")
            tasks.append(mutations.Task(root, fault, fault.tests))
        for found, _ in mutations.results(tasks):
            print(found.split()[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": os.path.dirname(mutations.__file__)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["SURVIVED", "caught", "ERROR"], done.stderr
    assert (package / "sums.py").read_text("utf-8") == "two = 1 + 1"
