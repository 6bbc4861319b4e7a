"""The address of the repository, and the form of workflows, hooks, and templates."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import chapters
import check_notebooks

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"


@pytest.mark.skipif(
    not all(map(shutil.which, ("git", "perl", "xargs"))), reason="needs git and perl"
)
def test_the_documented_command_sets_the_address_everywhere(tmp_path, monkeypatch):
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "book", tmp_path / "book")
    (tmp_path / "notebooks").mkdir()
    for path in chapters.chapters():
        shutil.copy(path, tmp_path / "notebooks")
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    command = re.search(r"(?m)^git grep .*perl.*$", contributing)[0]
    for line in ("git init -q", "git add .", command):
        subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)

    for path in sorted((tmp_path / "notebooks").iterdir()):
        before = nbformat.read(ROOT / "notebooks" / path.name, as_version=4)
        after = nbformat.read(path, as_version=4)
        assert "my-name/my-course" in after.cells[0].source
        assert chapters.cells_hash(after) == chapters.cells_hash(before)
        assert [c.get("outputs") for c in after.cells] == [
            c.get("outputs") for c in before.cells
        ]
    kept = [
        path.name
        for path in tmp_path.rglob("*.*")
        if path.is_file()
        and ".git" not in path.parts
        and "github.com/OWNER/NAME" in path.read_text("utf-8", "replace")
    ]
    assert [name for name in kept if name != "conf.py"] == []
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    chapter = check_notebooks.load(next((tmp_path / "notebooks").glob("01_*")))
    assert list(check_notebooks.check_address(chapter)) == []


def check(schema, path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    return subprocess.run([*command, str(path)], capture_output=True, text=True)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_valid(path):
    done = check("vendor.github-workflows", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dependabot_is_configured():
    done = check("vendor.dependabot", ROOT / ".github" / "dependabot.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_invalid_workflow_is_noticed(tmp_path):
    path = tmp_path / "wrong.yml"
    path.write_text("on: push\njobs:\n  a:\n    steps: 3\n", "utf-8")
    assert check("vendor.github-workflows", path).returncode == 1


def test_the_scripts_that_workflows_and_hooks_call_exist():
    assert [p.stem for p in WORKFLOWS] == ["site", "tests", "weekly"]
    for path in (*WORKFLOWS, HOOKS):
        called = re.findall(r"(?:scripts|\.ci)/[\w.]+", path.read_text("utf-8"))
        assert called
        assert [name for name in called if not (ROOT / name).exists()] == []


def test_the_issue_template_asks_for_what_the_package_prints():
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text("utf-8")
    code = " ".join(re.search(r'python -c "([^"]+)"', text)[1].split())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "notebooks",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


def test_the_hooks_are_valid():
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(HOOKS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
