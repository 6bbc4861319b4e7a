"""What an installation needs, brings, and leaves alone where torch already is."""

import ast
import email
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import roadseg

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

COLAB = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "numpy": "2.1.3",
    "ipython": "7.34.0",
    "ipykernel": "6.17.1",
    "ipywidgets": "7.7.1",
    "matplotlib": "3.10.0",
    "scikit-learn": "1.6.1",
}
KAGGLE = {"torch": "2.10.0", "torchvision": "0.25.0", "numpy": "2.0.2"}
PLATFORMS = {"Colab": COLAB, "Kaggle": KAGGLE}
KEPT = ("torch", "torchvision", "numpy", "ipython", "ipykernel", "ipywidgets")
"""What must never be replaced in a running notebook."""

CODE_NAMES = {"cycler": "matplotlib", "PIL": "pillow", "IPython": "ipython"}


def read_requirements(path):
    """Return the requirements in a file, without the files that it includes."""
    lines = path.read_text("utf-8").splitlines()
    lines = [line.split("#")[0].strip() for line in lines]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def extras():
    found = PROJECT["optional-dependencies"]
    return {name: list(map(Requirement, lines)) for name, lines in found.items()}


CORE = [Requirement(line) for line in PROJECT["dependencies"]]
COURSE = read_requirements(ROOT / "requirements.txt")


def setup_packages():
    """Return the course's requirements that the notebooks' setup cells mention."""
    known = {canonicalize_name(r.name) for r in COURSE}
    found = {}
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if "setup" not in cell["metadata"].get("tags", []):
                continue
            for text in re.findall(r'"([^"]+)"', "".join(cell["source"])):
                for word in text.split():
                    name = re.match(r"[\w.-]*", word)[0]
                    if canonicalize_name(name) in known and "{" not in word:
                        found[word] = Requirement(word)
    return list(found.values())


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    "requirements",
    [CORE, COURSE, sum(extras().values(), []), setup_packages()],
    ids=["pyproject", "requirements.txt", "extras", "setup cells"],
)
def test_what_colab_and_kaggle_have_is_enough(requirements, platform):
    for requirement in requirements:
        there = PLATFORMS[platform].get(canonicalize_name(requirement.name))
        if there:
            assert requirement.specifier.contains(Version(there)), requirement


def test_requirements_have_lower_bounds_only():
    """Upper bounds and pins would replace what is installed."""
    for requirement in [*CORE, *COURSE, *sum(extras().values(), [])]:
        operators = [part.operator for part in requirement.specifier]
        assert operators == [">="], requirement


def test_the_core_is_what_the_package_imports_and_nothing_else():
    imported, optional = set(), {"av", "ipython"}
    optional |= {canonicalize_name(r.name) for r in extras()["export"]}
    for path in (ROOT / "notebooks" / "roadseg").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= set(sys.stdlib_module_names) | {"roadseg"}
    imported = {canonicalize_name(CODE_NAMES.get(n, n)) for n in imported}
    core = {canonicalize_name(r.name) for r in CORE}
    assert imported - optional == core


def test_the_course_needs_what_the_package_needs_and_the_notebooks_extra():
    course = {canonicalize_name(r.name): r.specifier for r in COURSE}
    wanted = [*CORE, *extras()["notebooks"], *extras()["video"]]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name != "ipython":  # which ipykernel brings
            assert course[name] == requirement.specifier


def test_the_checks_need_what_the_dev_and_export_extras_have():
    checks = read_requirements(ROOT / "tests" / "requirements.txt")
    found = {canonicalize_name(r.name): r.specifier for r in checks}
    for requirement in [*extras()["dev"], *extras()["export"]]:
        assert found[canonicalize_name(requirement.name)] == requirement.specifier


def test_the_constraints_are_versions_that_the_requirements_allow():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    locked = dict(line.split("==") for line in lines)
    assert len(locked) == len(lines) > 100  # with what the requirements need
    for folder in (".", "tests", "book"):
        for requirement in read_requirements(ROOT / folder / "requirements.txt"):
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(Version(version)), requirement


def test_licenses_of_what_is_not_ours_are_noted():
    notice = (ROOT / "NOTICE").read_text("utf-8")
    for word in ("CamVid", "CC BY-NC 4.0", "pretrained", "ImageNet", "x264", "GPL"):
        assert word in notice
    assert PROJECT["license"] == "MIT AND CC-BY-NC-4.0"
    assert PROJECT["license-files"] == ["LICENSE", "NOTICE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built without a network by the setuptools that is installed here."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        copy(ROOT / name, source / name)
    for path in (ROOT / "notebooks" / "roadseg").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy(path, source / path.relative_to(ROOT))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("roadseg-*.whl")
    return path


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target) if same_disk(source, target) else target.write_bytes(
        source.read_bytes()
    )


def same_disk(source, target):
    return source.stat().st_dev == target.parent.stat().st_dev


@pytest.mark.slow
def test_a_wheel_holds_the_package_its_data_and_its_licenses(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(metadata))
        (entries,) = (n for n in names if n.endswith("entry_points.txt"))
        assert b"roadseg = roadseg.cli:main" in archive.read(entries)
    package = ROOT / "notebooks" / "roadseg"
    kept = {"*.py", "*.html", "*.sha256", "py.typed", "pretrained/*"}
    expected = {
        p.relative_to(package.parent).as_posix() for k in kept for p in package.glob(k)
    }
    assert {n for n in names if n.startswith("roadseg/")} == expected
    assert {n.rsplit("/")[-1] for n in names if "/licenses/" in n} == {
        "LICENSE",
        "NOTICE",
    }
    assert about["Version"] == roadseg.__version__
    assert about["License-Expression"] == "MIT AND CC-BY-NC-4.0"
    needed = {Requirement(line) for line in about.get_all("Requires-Dist")}
    assert {r for r in needed if not r.marker} == set(CORE)


@pytest.mark.slow
def test_a_wheel_works_where_it_is_installed(wheel, tmp_path):
    """Without the repository: the command starts, and finds its data."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    command += ["--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(target)}
    script = target / "bin" / "roadseg"
    done = subprocess.run(
        [sys.executable, script, "--version"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == f"roadseg {roadseg.__version__}", done.stderr


def stand_in(name, version, folder):
    """Write a wheel of a package without code or requirements, quick to resolve."""
    stem = f"{name}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{stem}.dist-info/METADATA", about)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{stem}.dist-info/WHEEL", tags)
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_pip_replaces_nothing_that_colab_or_kaggle_have(wheel, platform, tmp_path):
    """pip resolves the package and the setup cells beside the versions there."""
    here = {n: f"{v}+here" for n, v in PLATFORMS[platform].items() if n in KEPT}
    for name, version in here.items():
        stand_in(name, version, tmp_path)
    limits = tmp_path / "here.txt"
    limits.write_text("".join(f"{n}=={v}\n" for n, v in here.items()), "utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
    command += ["--ignore-installed", "--report", tmp_path / "report.json"]
    command += ["--python-version", "3.12", "--only-binary=:all:", "--target", tmp_path]
    command += ["--find-links", tmp_path, "--constraint", limits, wheel]
    command += [*map(str, setup_packages()), "-r", ROOT / "requirements.txt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    conflict = re.search("conflict|ResolutionImpossible", done.stderr)
    if "No matching distribution" in done.stderr and not conflict:
        pytest.skip(f"no index here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    chosen = {
        canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"]
        for item in report["install"]
    }
    assert chosen["torch"] == here["torch"]
    assert {n: v for n, v in chosen.items() if n in here and v != here[n]} == {}
