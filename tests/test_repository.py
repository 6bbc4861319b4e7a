"""scripts/set_repository.py on a small repository; the form of workflows and hooks."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import notebooks
import set_repository

ROOT = Path(__file__).resolve().parents[1]
BLOB = "https://github.com/OWNER/NAME/blob/main"
COLAB = "https://colab.research.google.com/github/OWNER/NAME/blob/main"
OTHER = "https://github.com/alexgkendall/SegNet-Tutorial"
TEXT = f"""# 1. A

[badge]({COLAB}/notebooks/01_a.ipynb) [b]({BLOB}/notebooks/01_a.ipynb#x)
[data]({BLOB}/data/README.md) [other]({OTHER}) github.com/OWNER/NAMESAKE"""
SETUP = 'if True:\n    url = "https://github.com/OWNER/NAME"\n    print(url)'


@pytest.fixture
def repository(tmp_path):
    """A repository with one executed notebook, at the placeholder's address."""
    for folder in ("notebooks", "book", "data"):
        (tmp_path / folder).mkdir()
    text = '[project.urls]\nRepository = "https://github.com/OWNER/NAME"\n'
    (tmp_path / "pyproject.toml").write_text(text, "utf-8")
    (tmp_path / "README.md").write_text(f"[site]({BLOB})\r\nOWNER/NAME here\n", "utf-8")
    output = new_output("stream", text="https://github.com/OWNER/NAME\n")
    setup = new_code_cell(SETUP, execution_count=1, outputs=[output])
    notebook = new_notebook(cells=[new_markdown_cell(TEXT), setup])
    notebook.metadata.roadseg = {
        "cells": notebooks.cells_hash(notebook),
        "package": "p",
        "profile": "cpu",
    }
    nbformat.write(notebook, tmp_path / "notebooks" / "01_a.ipynb")
    return tmp_path


def read(repository):
    return nbformat.read(repository / "notebooks" / "01_a.ipynb", as_version=4)


def test_the_name_goes_everywhere(repository, capsys):
    assert set_repository.main(["me/road.seg"], repository) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:-1] == ["notebooks/01_a.ipynb", "README.md", "pyproject.toml"]
    assert set_repository.stored(repository) == "me/road.seg"
    text, setup = read(repository).cells
    wanted = TEXT.replace("OWNER/NAME/", "me/road.seg/")
    assert text.source == wanted
    assert setup.source == SETUP.replace("OWNER/NAME", "me/road.seg")
    assert "alexgkendall/SegNet-Tutorial" in text.source
    readme = (repository / "README.md").read_bytes()
    assert b"github.com/me/road.seg/blob" in readme
    assert set_repository.main(["--check"], repository) == 0


def test_outputs_stay_and_the_hash_is_that_of_the_new_cells(repository):
    before = read(repository)
    set_repository.main(["me/roads"], repository)
    after = read(repository)
    assert after.cells[1].outputs == before.cells[1].outputs
    assert after.cells[1].id == before.cells[1].id
    assert after.metadata.roadseg.cells == notebooks.cells_hash(after)
    assert after.metadata.roadseg.cells != before.metadata.roadseg.cells
    assert after.metadata.roadseg.profile == "cpu"


def test_a_notebook_that_was_not_current_does_not_become_so(repository):
    notebook = read(repository)
    notebook.metadata.roadseg.cells = "old"
    nbformat.write(notebook, repository / "notebooks" / "01_a.ipynb")
    set_repository.main(["me/roads"], repository)
    assert read(repository).metadata.roadseg.cells == "old"


def test_there_and_back_is_the_same_bytes(repository):
    def digests():
        files = sorted(p for p in repository.rglob("*") if p.is_file())
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    set_repository.main(["me/roads"], repository)
    set_repository.main(["OWNER/NAME"], repository)
    before = digests()
    set_repository.main(["me/roads"], repository)
    assert digests() != before
    set_repository.main(["OWNER/NAME"], repository)
    assert digests() == before


def test_the_check_says_where_names_differ(repository, capsys):
    path = repository / "pyproject.toml"
    path.write_text(path.read_text("utf-8").replace("OWNER/NAME", "me/roads"), "utf-8")
    assert set_repository.main(["--check"], repository) == 1
    assert capsys.readouterr().out.splitlines() == [
        "notebooks/01_a.ipynb: cell 1: names OWNER/NAME, pyproject.toml me/roads",
        "notebooks/01_a.ipynb: cell 2: names OWNER/NAME, pyproject.toml me/roads",
        "README.md: names OWNER/NAME, pyproject.toml me/roads",
    ]
    assert set_repository.main(["--check", "you/x"], repository) == 1
    assert "not you/x" in capsys.readouterr().out


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/me/roads.git",
        "https://github.com/me/roads",
        "https://token@github.com/me/roads/",
        "git@github.com:me/roads.git",
        "ssh://git@github.com/me/roads.git",
    ],
)
def test_without_a_name_git_is_asked(repository, url):
    for command in (["init", "-q"], ["remote", "add", "origin", url]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    assert set_repository.main([], repository) == 0
    assert set_repository.stored(repository) == "me/roads"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["roads"], "'roads' is not of the form OWNER/NAME"),
        (["https://github.com/me/roads"], "is not of the form OWNER/NAME"),
        ([], "git has no origin"),
    ],
)
def test_a_wrong_name_changes_nothing(repository, arguments, message, capsys):
    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    assert set_repository.main(arguments, repository) == 1
    assert message in capsys.readouterr().err
    assert set_repository.stored(repository) == "OWNER/NAME"


def test_here_all_places_agree():
    assert set_repository.differences(ROOT) == []


# The workflows ------------------------------------------------------------------


def check_workflow(path):
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.github-workflows", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def workflows():
    return sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.name)
def test_workflows_are_of_githubs_form(path):
    done = check_workflow(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_form_is_checked(tmp_path):
    path = tmp_path / "wrong.yml"
    path.write_text("on: push\njobs:\n  a:\n    steps: 3\n", "utf-8")
    assert check_workflow(path).returncode == 1


def test_there_are_workflows_for_tests_newest_packages_and_the_site():
    assert [p.stem for p in workflows()] == ["site", "tests", "weekly"]


def test_the_scripts_that_workflows_call_are_there():
    for path in workflows():
        words = path.read_text("utf-8").split()
        called = [w for w in words if w.startswith(("scripts/", ".ci/"))]
        assert called
        assert [w for w in called if not (ROOT / w).exists()] == []


# The hooks ----------------------------------------------------------------------

HOOKS = ROOT / ".pre-commit-config.yaml"


def check_hooks(path):
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_hooks_are_of_pre_commits_form():
    done = check_hooks(HOOKS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_form_of_hooks_is_checked(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(HOOKS.read_text("utf-8").replace("entry:", "entrance:"), "utf-8")
    assert check_hooks(path).returncode == 1


def test_hooks_are_the_checks_of_the_test_command():
    called = re.findall(r"entry: python (?:-m )?(\S+)", HOOKS.read_text("utf-8"))
    scripts = [name for name in called if name != "ruff"]
    assert called.count("ruff") == 2
    assert scripts == ["scripts/check_notebooks.py", "scripts/set_repository.py"]
    assert all((ROOT / name).exists() for name in scripts)
