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
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
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
SCRIPTS = ROOT / "scripts"
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
VENV = ROOT / ".venv"
STAMP = VENV / "course.json"
LOG = BUILD / "install.log"
REQUIREMENTS = {
    "run": ("requirements.txt", "book/requirements.txt"),
    "lab": ("requirements.txt",),
    "test": ("requirements.txt", "book/requirements.txt", "tests/requirements.txt"),
    "book": ("requirements.txt", "book/requirements.txt"),
}
IMPORTED = {
    "run": ("torch", "nbclient"),
    "lab": ("jupyterlab",),
    "test": ("torch", "ruff", "xdist", "nbval", "codespell_lib", "sphinx"),
    "book": ("torch", "sphinx", "myst_nb"),
}
"""Packages of these files that --no-venv looks for before anything starts."""
PATH_SETTINGS = ("DATASET1", "CAMVID_TEST", "VGG16_BN", "DATA", "OUTPUT")


class UserError(Exception):
    """What went wrong, in a message that says what to do."""


def say(text: str = "") -> None:
    """Print a line immediately, also into a pipe."""
    print(text, flush=True)


def show_status(text: str = "") -> None:
    """Overwrite the last line of a terminal; print nothing elsewhere."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + text[:width].ljust(width), end="\r", flush=True)


def format_duration(seconds: float) -> str:
    """Return a duration such as ``4 s``, ``2 min 5 s``, or ``1 h 3 min``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return "{} h {} min".format(*divmod(minutes, 60))
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def display(path: Path) -> str:
    """Return a path relative to the repository, if it is inside it."""
    return path.relative_to(ROOT).as_posix() if ROOT in path.parents else str(path)


def call(command: "list", **options) -> int:
    """Run a command and return its exit status; on Ctrl-C, end it too."""
    child = subprocess.Popen([str(x) for x in command], **options)
    try:
        return child.wait()
    except KeyboardInterrupt:
        stops = [lambda: None]  # a terminal has sent Ctrl-C to both
        if os.name != "nt":
            stops.append(lambda: child.send_signal(signal.SIGINT))
        for stop in [*stops, child.terminate, child.kill]:
            stop()
            try:
                child.wait(timeout=5)
                break
            except subprocess.TimeoutExpired:
                pass
        raise


def guard(work) -> int:
    """Do the work; return its exit status, or that of an error or of Ctrl-C."""
    try:
        return work()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as in shells


# The environment ----------------------------------------------------------------------


def ensure_environment(files: "tuple[str, ...]") -> Path:
    """Return the Python of .venv with these requirement files installed.

    A stamp in .venv lists what was installed. It is written after pip has finished, so
    an interrupted installation starts again.

    Raises:
        UserError: If .venv can't be created, or wasn't created by this script.
    """
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = {}
    if STAMP.exists():
        installed = json.loads(STAMP.read_text(encoding="utf-8") or "{}")
    elif VENV.exists() and any(VENV.iterdir()):
        raise UserError(
            f"{display(VENV)} exists, but this script didn't create it. Rename it and "
            "start again, or activate it and add --no-venv."
        )
    if not installed or not _runs(python):
        if STAMP.exists():
            say("The environment in .venv is incomplete, so it is created again.")
            shutil.rmtree(str(VENV))
        _create_venv()
        installed = {}
    wanted = {name: _hash(ROOT / name) for name in files}
    if all(installed.get(name) == digest for name, digest in wanted.items()):
        return python
    _install(python, files, bool(installed))
    if installed.get(files[0]) == wanted[files[0]]:  # the other files still hold
        wanted = {**installed, **wanted}
    STAMP.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return python


def _hash(path: Path) -> str:
    """Return a hash of a requirement file and of those it includes with -r."""
    digest = hashlib.sha256(path.read_bytes())
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            digest.update(_hash(path.parent / line[3:].strip()).encode())
    return digest.hexdigest()


def _runs(python: Path) -> bool:
    try:
        return subprocess.call([str(python), "-c", ""]) == 0
    except OSError:
        return False


def _create_venv() -> None:
    VENV.mkdir(exist_ok=True)
    STAMP.touch()  # ours, but not complete yet
    if _log([sys.executable, "-m", "venv", str(VENV)]) == 0:
        return
    shutil.rmtree(str(VENV), ignore_errors=True)
    raise UserError(
        "{} can't create a virtual environment:\n{}\nOn Debian and Ubuntu, install the "
        "package python{}.{}-venv; elsewhere, install Python from python.org.".format(
            sys.executable, _last_lines(3), *sys.version_info[:2]
        )
    )


def _install(python: Path, files: "tuple[str, ...]", more: bool) -> None:
    say(
        "Installing what is missing in .venv."
        if more
        else "Installing the packages (once; several minutes, about 7 GB)."
    )
    STAMP.write_text("", encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check"]
    start = time.monotonic()
    if _log(command + [x for name in files for x in ("-r", name)]) == 0:
        say(f"Installed in {format_duration(time.monotonic() - start)}.")
        return
    message = f"The installation failed:\n{_last_lines(6)}\n"
    if "[Errno 28]" in LOG.read_text(encoding="utf-8"):
        temporary = Path(tempfile.gettempdir())
        free = [shutil.disk_usage(str(x)).free / 1e9 for x in (ROOT, temporary)]
        message += (
            "The installation needs about 10 GB, more if pip keeps a cache: "
            f"{free[0]:.1f} GB are free at {ROOT}, and {free[1]:.1f} GB at {temporary},"
            " where pip unpacks files (set TMPDIR to use another folder).\n"
        )
    raise UserError(f"{message}The whole output of pip is in {display(LOG)}.")


def _log(command: "list[str]") -> int:
    """Run a command with its output in a log and the latest line on the terminal."""
    BUILD.mkdir(exist_ok=True)
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with LOG.open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, cwd=str(ROOT), **out)
        for line in child.stdout:
            log.write(line.decode("utf-8", "replace"))
            show_status(line.decode("utf-8", "replace").strip())
        show_status()
        return child.wait()


def _last_lines(count: int) -> str:
    lines = LOG.read_text(encoding="utf-8").splitlines()
    errors = [x for x in lines if x.startswith("ERROR")]
    return "\n".join((errors or [x for x in lines if x.strip()])[-count:])


# The commands -------------------------------------------------------------------------


def run(python: Path, options: argparse.Namespace) -> int:
    """Run notebooks, print the scores, and build the site."""
    return call([python, SCRIPTS / "run_course.py", *options.notebooks])


def test(python: Path, options: argparse.Namespace) -> int:
    """Run all checks, the later ones also if an earlier one fails; print a table."""
    chapters = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    # Two processes with one thread each: one file of tests, or one notebook, at a time.
    pytest = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    pytest += [] if sys.stdout.isatty() else ["--color=no"]
    nbval = pytest + ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "600"]
    nbval += ["--nbval-sanitize-with", "tests/nbval.cfg"]
    parts = (
        ("lint", ["-m", "ruff", "check", "."]),
        ("format", ["-m", "ruff", "format", "--check", "."]),
        ("words", ["scripts/check_words.py"]),
        ("notebooks", ["scripts/check_notebooks.py", "--report"]),
        ("tests", pytest + ([] if options.all else ["-m", "not slow"])),
        ("outputs", nbval + (chapters or ["notebooks/no chapters"])),
    )
    # The checks have no network, so what the site's tests need from npm comes first.
    if call([python, "scripts/build_book.py", "--fetch"], cwd=str(ROOT)) != 0:
        say("Tests in a browser will be skipped, or fail if CI is true.")
    rows = [("part", "result", "time")]
    for name, command in parts:
        say(f"\n--- {name} ".ljust(74, "-"))
        start = time.monotonic()
        status = call([python, *command], cwd=str(ROOT), env=test_environment())
        result = "FAILED" if status else "ok"
        rows.append((name, result, f"{time.monotonic() - start:.0f} s"))
    if rows[-1][1] != "ok":
        say("nbval counts code cells from 0: its Cell 3 is In [4] in the notebook.")
    say()
    for part, result, seconds in rows:
        say(f"{part:<12}{result:<8}{seconds:>8}")
    return int(any(row[1] == "FAILED" for row in rows))


def test_environment() -> "dict[str, str]":
    """Return the environment of the checks: the quick profile and no network."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ROADSEG_") and name != "MPLBACKEND"
    }
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(name.upper(), None)
        environment[name] = "http://127.0.0.1:9"  # a port that nothing listens on
    environment.update(
        ROADSEG_PROFILE="quick",
        ROADSEG_DEVICE="cpu",
        ROADSEG_PROGRESS="0",
        IPYTHONDIR=str(BUILD / "ipython"),
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        no_proxy="localhost,127.0.0.1",
        NO_PROXY="localhost,127.0.0.1",
    )
    return environment


def lab(python: Path, options: argparse.Namespace) -> int:
    """Open JupyterLab in the folder of the notebooks; Ctrl-C ends it."""
    return call([python, "-m", "jupyterlab"], cwd=str(NOTEBOOKS))


def book(python: Path, options: argparse.Namespace) -> int:
    """Build the site from the outputs that the notebooks store."""
    return call([python, SCRIPTS / "build_book.py"] + ["--open"] * options.open)


def parse(arguments: "list[str]") -> argparse.Namespace:
    """Parse the command line, and check its paths before anything starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    commands.required = True
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--no-venv", action="store_true", help="use this Python, install nothing"
    )
    command = commands.add_parser("run", parents=[common], help="run the notebooks")
    command.add_argument("notebooks", nargs="*", help="default: all")
    command.add_argument(
        "--profile", choices=("quick", "cpu", "gpu"), help="default: gpu with CUDA"
    )
    command.add_argument(
        "--data", metavar="PATH", help="dataset1, a zip file or folder"
    )
    command = commands.add_parser("test", parents=[common], help="run the checks")
    command.add_argument("--all", action="store_true", help="include the slow tests")
    commands.add_parser("lab", parents=[common], help="open JupyterLab")
    command = commands.add_parser("book", parents=[common], help="build the site")
    command.add_argument("--open", action="store_true", help="open it in a browser")
    options = parser.parse_args(arguments)
    for path in [getattr(options, "data", None), *getattr(options, "notebooks", [])]:
        if path and not os.path.exists(os.path.expanduser(path)):
            parser.error(f"{path} doesn't exist")
    return options


def set_environment(options: argparse.Namespace) -> None:
    """Pass options on as settings; make paths absolute: notebooks run elsewhere."""
    if getattr(options, "data", None):
        os.environ["ROADSEG_DATASET1"] = options.data
    if getattr(options, "profile", None):
        os.environ["ROADSEG_PROFILE"] = options.profile
    for name in ("ROADSEG_" + x for x in PATH_SETTINGS):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))


def main(arguments: "list[str] | None" = None) -> int:
    """Do what the command line asks; return the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    set_environment(options)

    def work() -> int:
        python, files = Path(sys.executable), REQUIREMENTS[options.command]
        if not options.no_venv:
            python = ensure_environment(files)
        else:
            names = IMPORTED[options.command]
            missing = [x for x in names if importlib.util.find_spec(x) is None]
            if missing:
                raise UserError(
                    f"This Python ({python}) lacks {', '.join(missing)}: "
                    f"pip install {' '.join('-r ' + name for name in files)}"
                )
        return COMMANDS[options.command](python, options)

    status = guard(work)
    if status == 130:
        print("\nInterrupted. Start it again to continue.", file=sys.stderr)
    return status


COMMANDS = {"run": run, "test": test, "lab": lab, "book": book}

if __name__ == "__main__":
    sys.exit(main())
