#!/usr/bin/env python3
"""Run the course, check it, open it, or build its site.

    python3 scripts/course.py run      run the notebooks, print the scores
    python3 scripts/course.py test     run all checks
    python3 scripts/course.py lab      open the notebooks in JupyterLab
    python3 scripts/course.py book     build the site into build/site

The first call creates a virtual environment in .venv (about 7 GB), which later calls
use. With --no-venv, everything runs in the Python that runs this script.
"""

# Only the standard library, and only syntax that Python 3.6 can parse, so that an old
# Python gets to the message about its version.

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NEEDED = (3, 11)
if sys.version_info[:2] < NEEDED:
    sys.exit(
        "The course needs Python {}.{} or newer, and this is Python {}.{} ({}). "
        "Install a newer one and start this script with it.".format(
            *NEEDED, *sys.version_info[:2], sys.executable
        )
    )

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
VENV = ROOT / ".venv"
FILES = ("requirements.txt", "book/requirements.txt")
TEST_FILES = FILES + ("tests/requirements.txt",)
NEEDED_PACKAGES = ("torch", "nbclient")
PATH_SETTINGS = ("DATASET1", "CAMVID_TEST", "VGG16_BN", "DATA", "OUTPUT")


def call(command: "list", **options) -> int:
    """Run a command and return its exit status."""
    return subprocess.call([str(x) for x in command], **options)


def ensure_environment(files: "tuple") -> Path:
    """Return the Python of .venv with these requirement files installed.

    A stamp in .venv lists what was installed, by hash. It is empty while something is
    being installed, so that an interrupted installation starts again.

    Raises:
        SystemExit: If .venv can't be created, or wasn't created by this script.
    """
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / "course.txt"
    if not stamp.exists() and VENV.exists() and any(VENV.iterdir()):
        sys.exit(
            f"{VENV} exists, but this script didn't create it. Rename it and start "
            "again, or activate it and add --no-venv."
        )
    wanted = [hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in files]
    installed = stamp.read_text(encoding="utf-8").split() if stamp.exists() else []
    if python.exists() and set(wanted) <= set(installed):
        return python
    if not (python.exists() and installed):
        shutil.rmtree(str(VENV), ignore_errors=True)
        VENV.mkdir(exist_ok=True)
        stamp.touch()  # ours, but not complete yet
        if call([sys.executable, "-m", "venv", VENV]):
            shutil.rmtree(str(VENV), ignore_errors=True)
            sys.exit(f"{sys.executable} can't create {VENV}; it says why above.")
    print("Installing packages into .venv (at first minutes, 7 GB).", flush=True)
    stamp.write_text("", encoding="utf-8")
    command = [python, "-m", "pip", "install", "--no-input"]
    command += [] if sys.stdout.isatty() else ["--quiet"]
    if call(command + [x for name in files for x in ("-r", ROOT / name)]):
        sys.exit(
            "The installation failed; pip says why above. It needs a network and about "
            "10 GB of free disk space, also where pip unpacks files (set TMPDIR to "
            "use another folder)."
        )
    stamp.write_text("\n".join(wanted), encoding="utf-8")
    return python


# The commands -------------------------------------------------------------------------


def test(python: Path, slow: bool) -> int:
    """Run all checks, the later ones also if an earlier one fails; print a table."""
    # Two processes with one thread each: one file of tests, or one notebook, at a time.
    pytest = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    nbval = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "600"]
    nbval += ["--nbval-sanitize-with", "tests/nbval.cfg"]
    parts = (
        ("lint", ["-m", "ruff", "check", "."]),
        ("format", ["-m", "ruff", "format", "--check", "."]),
        ("words", ["scripts/check_words.py"]),
        ("notebooks", ["scripts/check_notebooks.py", "--report"]),
        ("tests", pytest + ([] if slow else ["-m", "not slow"])),
        ("outputs", pytest + nbval + sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))),
    )
    # The checks have no network, so what the site's tests need from npm comes first.
    if call([python, "scripts/build_book.py", "--fetch"], cwd=str(ROOT)):
        print("Tests in a browser will be skipped, or fail if CI is true.", flush=True)
    rows = ["part        result      time"]
    for name, command in parts:
        print(f"\n--- {name} ".ljust(74, "-"), flush=True)
        start = time.monotonic()
        status = call([python] + command, cwd=str(ROOT), env=test_environment())
        seconds = f"{time.monotonic() - start:.0f} s"
        rows.append(f"{name:<12}{'FAILED' if status else 'ok':<8}{seconds:>8}")
    if "FAILED" in rows[-1]:
        print("nbval counts code cells from 0: its Cell 3 is In [4] in the notebook.")
    print("", *rows, sep="\n", flush=True)
    return int(any("FAILED" in row for row in rows))


def test_environment() -> "dict":
    """Return the environment of the checks: the quick profile and no network."""
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ROADSEG_")
        and name != "MPLBACKEND"
        and name.lower() not in proxies
    }
    environment.update(
        dict.fromkeys(proxies, "http://127.0.0.1:9"),  # nothing listens on this port
        no_proxy="localhost,127.0.0.1",
        NO_PROXY="localhost,127.0.0.1",
        HF_HUB_OFFLINE="1",
        ROADSEG_PROFILE="quick",
        ROADSEG_DEVICE="cpu",
        ROADSEG_PROGRESS="0",
        IPYTHONDIR=str(ROOT / "build" / "ipython"),
        OMP_NUM_THREADS="1",
    )
    return environment


def make_paths_absolute() -> None:
    """Make the paths in the settings absolute, because notebooks run elsewhere."""
    for name in ("ROADSEG_" + x for x in PATH_SETTINGS):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))


def main(arguments: "list | None" = None) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    commands.required = True
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--no-venv", action="store_true", help="use this Python as it is"
    )
    run = commands.add_parser("run", parents=[common], help="run the notebooks")
    run.add_argument("notebooks", nargs="*", help="default: all")
    profiles = ("quick", "cpu", "gpu")
    run.add_argument("--profile", choices=profiles, help="default: gpu with CUDA")
    run.add_argument("--data", metavar="PATH", help="dataset1, a zip file or folder")
    checks = commands.add_parser("test", parents=[common], help="run the checks")
    checks.add_argument("--all", action="store_true", help="include the slow tests")
    commands.add_parser("lab", parents=[common], help="open JupyterLab")
    commands.add_parser("book", parents=[common], help="build the site")
    options = parser.parse_args(arguments)

    if options.command == "run":
        for path in options.notebooks + [options.data or "."]:
            if not os.path.exists(os.path.expanduser(path)):
                parser.error(f"{path} doesn't exist")
        given = {"ROADSEG_DATASET1": options.data, "ROADSEG_PROFILE": options.profile}
        os.environ.update({name: value for name, value in given.items() if value})
    make_paths_absolute()
    files = TEST_FILES if options.command == "test" else FILES
    python = Path(sys.executable)
    if not options.no_venv:
        python = ensure_environment(files)
    elif not all(map(importlib.util.find_spec, NEEDED_PACKAGES)):
        needed = " ".join("-r " + name for name in files)
        sys.exit(f"This Python ({python}) lacks packages: pip install {needed}")
    if options.command == "run":
        return call([python, ROOT / "scripts" / "run_course.py"] + options.notebooks)
    if options.command == "test":
        return test(python, options.all)
    if options.command == "lab":
        return call([python, "-m", "jupyterlab"], cwd=str(NOTEBOOKS))
    return call([python, ROOT / "scripts" / "build_book.py"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nInterrupted. Start it again to continue.", file=sys.stderr)
        sys.exit(130)  # as in shells
