#!/usr/bin/env python3
"""The one door to the course: run it, check it, open it.

    python3 scripts/course.py run      run all notebooks: scores, and the site
    python3 scripts/course.py test     what the checks run: lint, tests, notebooks
    python3 scripts/course.py lab      open the notebooks in JupyterLab
    python3 scripts/course.py book     build the course's site into build/site

The first use makes an environment of its own in .venv (about 7 GB); later ones take
it as it is. With --no-venv everything runs in the Python that runs this script.
"""

# Only the standard library, and only syntax that Python 3.6 can read, so that an old
# Python gets to the sentence about its version and not to a SyntaxError.

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

NEEDED = (3, 11)
if sys.version_info[:2] < NEEDED:
    sys.exit(
        "The course needs Python {}.{} or newer, and this is Python {}.{} ({}): "
        "install a newer one and start the script with it.".format(
            *NEEDED, *sys.version_info[:2], sys.executable
        )
    )

ROOT = Path(__file__).resolve().parents[1]
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
"""The files that say what each command needs; the first one is that of all."""
IMPORTED = {
    "run": ("torch", "nbclient"),
    "fetch": ("torch",),
    "lab": ("jupyterlab",),
    "test": ("torch", "ruff", "pytest", "xdist", "nbval", "jupytext", "sphinx"),
    "book": ("torch", "sphinx", "myst_nb"),
}
"""What each command imports first: looked for where --no-venv is given."""

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""


class Refusal(Exception):
    """What stands in the way, in a sentence that says what to do about it."""


def say(text: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def shown(path: Path) -> str:
    """Return a path as people should see it: from the checkout on, if it is there."""
    return path.relative_to(ROOT).as_posix() if ROOT in path.parents else str(path)


# The environment ------------------------------------------------------------------


def ensure_environment(files: "tuple[str, ...]") -> Path:
    """Return the Python of .venv, with these requirement files installed.

    A file in .venv says what was installed. It is written when pip has finished, so
    an interrupted installation starts afresh.

    Raises:
        Refusal: If .venv cannot be made, or was made by somebody else.
    """
    wanted = {name: _hash(ROOT / name) for name in files}
    stamp = _read_stamp()
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if stamp is None:
        _make_venv(python)
        stamp = {}
    elif not stamp.get("python") or stamp["python"] != _version(python):
        say("The environment in .venv is not whole: it is made again.")
        shutil.rmtree(str(VENV))
        _make_venv(python)
        stamp = {}
    installed = stamp.get("files", {})
    if all(installed.get(name) == digest for name, digest in wanted.items()):
        return python
    _install(python, files)
    if installed.get(files[0]) == wanted[files[0]]:  # the others are as they were
        wanted = {**installed, **wanted}
    text = json.dumps({"python": _version(python), "files": wanted}, indent=1)
    STAMP.write_text(text + "\n", encoding="utf-8")
    return python


def _hash(path: Path) -> str:
    """Return a hash of a requirement file and of those that it names with -r."""
    digest = hashlib.sha256(path.read_bytes())
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            digest.update(_hash(path.parent / line[3:].strip()).encode())
    return digest.hexdigest()


def _read_stamp() -> "dict | None":
    """Return what .venv says of itself; None if there is no .venv yet."""
    if not VENV.exists() or (VENV.is_dir() and not any(VENV.iterdir())):
        return None
    if not STAMP.exists():
        raise Refusal(
            f"{shown(VENV)} is there, but this script did not make it: rename it and "
            "start again, or activate it and add --no-venv."
        )
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _version(python: Path) -> str:
    """Return the version of an interpreter, or nothing if it does not run."""
    question = "import platform; print(platform.python_version())"
    try:
        answer = subprocess.run([str(python), "-c", question], stdout=subprocess.PIPE)
    except OSError:
        return ""
    return answer.stdout.decode().strip()


def _make_venv(python: Path) -> None:
    VENV.mkdir(exist_ok=True)
    STAMP.write_text("{}\n", encoding="utf-8")  # ours, and not yet whole
    command = [sys.executable, "-m", "venv", str(VENV)]
    if _run_logged(command, "Making .venv", "w") == 0 and _version(python):
        return
    shutil.rmtree(str(VENV), ignore_errors=True)
    raise Refusal(
        "No environment could be made with {}:\n{}\nOn Debian and Ubuntu it lacks the "
        "package python{}.{}-venv (sudo apt install it); elsewhere, install Python "
        "from python.org.".format(
            sys.executable, _last_lines(LOG, 3), *sys.version_info[:2]
        )
    )


def _install(python: Path, files: "tuple[str, ...]") -> None:
    if _read_stamp():
        say("Installing what is missing in .venv.")
    else:
        say("Installing what the course needs (once; several minutes, about 7 GB).")
    STAMP.write_text("{}\n", encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check"]
    for name in files:
        command += ["-r", name]
    start = time.monotonic()
    if _run_logged(command, "Installing", "a") != 0:
        raise Refusal(
            f"The installation failed:\n{_last_lines(LOG, 6)}{_room()}\nAll that pip "
            f"said is in {shown(LOG)}. Once the cause is gone, start again."
        )
    say(f"Installed in {duration(time.monotonic() - start)}.")


def _room() -> str:
    """Return how much room there is and must be, if pip ran out of it."""
    if "[Errno 28]" not in LOG.read_text(encoding="utf-8", errors="replace"):
        return ""
    wheels = Path(tempfile.gettempdir())
    here, there = (shutil.disk_usage(str(x)).free / 1e9 for x in (ROOT, wheels))
    return (
        "\nWhile it installs, it needs about 10 GB, more where pip keeps a cache: "
        f"{here:.1f} GB are free at {ROOT}, and {there:.1f} GB at {wheels}, where pip "
        "unpacks (TMPDIR names another folder)."
    )


def _run_logged(
    command: "list[str]", what: str, mode: str, log: "Path | None" = None
) -> int:
    """Run a command with its output in a log and a line that shows it goes on."""
    BUILD.mkdir(exist_ok=True)
    log = log or LOG
    with log.open(mode) as stream:
        child = subprocess.Popen(
            command,
            cwd=str(ROOT),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        with Line(lambda: f"{what}: {_last_lines(log, 1).strip()}"):
            return _wait(child)


def _wait(child: subprocess.Popen) -> int:
    """Wait for a child; on Ctrl-C see to it that the child ends too."""
    try:
        return child.wait()
    except KeyboardInterrupt:
        try:
            child.wait(timeout=5)  # a terminal sends Ctrl-C to both
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()
        raise


def _last_lines(path: Path, count: int) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [x for x in lines if x.startswith("ERROR")] if count > 1 else []
    return "\n".join((errors or [x for x in lines if x.strip()])[-count:])


# Showing that it goes on ------------------------------------------------------------


def duration(seconds: float) -> str:
    """Return a time in words: ``4 s``, ``2 min 5 s``, ``1 h 3 min``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return "{} h {} min".format(*divmod(minutes, 60))
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Line:
    """A line on a terminal that is drawn anew every second; elsewhere, nothing."""

    def __init__(self, text) -> None:
        """Take a function that returns what to show."""
        self._text = text
        self._start = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> "Line":
        if sys.stdout.isatty():
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
            sys.stdout.write("\r" + " " * (self._width() - 1) + "\r")
            sys.stdout.flush()

    def _draw(self) -> None:
        while not self._over.wait(0.5):
            elapsed = duration(time.monotonic() - self._start)
            text = f"{elapsed} | {self._text()}"
            width = self._width() - 1
            sys.stdout.write("\r" + text[:width].ljust(width))
            sys.stdout.flush()

    @staticmethod
    def _width() -> int:
        return shutil.get_terminal_size().columns


# run ----------------------------------------------------------------------------------

DRAWN = (
    "The pictures of this run are DRAWN, not those of dataset1: no score or picture "
    "of it can be compared with any for dataset1."
)


def fetch(options: argparse.Namespace) -> int:
    """Fetch and verify data and weights, and write what was found into a file.

    Raises:
        Refusal: If the data or weights that the user named cannot be used.
    """
    sys.path.insert(0, str(NOTEBOOKS))
    from roadseg import dataset1, runtime, unet

    try:
        profile = runtime.profile()
        say("profile  " + profile.name)
        say("machine  " + runtime.machine())
        train, test = dataset1.load()
        say("data     " + train.origin)
        say("         " + test.origin)
        if train.real:
            say("         " + dataset1.verify(train.folder).summary)
            if os.environ.get(dataset1.OFFICIAL_TEST.variable):
                official = dataset1.load_official(profile)
                say("         " + official.origin)
        say("weights  " + unet.find_encoder_weights().origin)
    except (RuntimeError, ValueError) as error:
        raise Refusal(f"Cannot start: {error}") from None
    facts = {
        "output": str(runtime.output_dir()),
        "banner": "" if train.real else runtime.banner(DRAWN),
    }
    options.answer.write_text(json.dumps(facts), encoding="utf-8")
    return 0


def prepare() -> dict:
    """Call `fetch` in a process of its own, because importing torch takes memory.

    Returns:
        ``output``, the folder of this run, and ``banner``, which is empty if the
        pictures are those of dataset1.

    Raises:
        Refusal: If that failed; the process has said why.
    """
    BUILD.mkdir(exist_ok=True)
    answer = BUILD / "fetched.json"
    command = [sys.executable, str(Path(__file__).resolve()), "fetch", str(answer)]
    if _wait(subprocess.Popen([*command, "--no-venv"])) != 0:
        raise Refusal("Nothing was run.")
    facts = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink()
    return facts


def run(options: argparse.Namespace) -> int:
    """Run all notebooks, store executed copies, print the scores, build the site."""
    import notebooks

    chapters = notebooks.chapters()
    if not chapters:
        raise Refusal(f"There are no notebooks in {shown(NOTEBOOKS)}.")
    _set_paths(options)
    facts = prepare()
    say(facts["banner"])
    output = Path(facts["output"])
    start = time.time()
    for number, path in enumerate(chapters, 1):
        out = output / "notebooks" / path.name
        _run_one(notebooks, path, out, f"{number} of {len(chapters)}")
    say(f"All notebooks ran, in {duration(time.time() - start)}.\n")
    say(scores_text(output / "scores.json", start))
    say(f"\nExecuted notebooks: {shown(out.parent)}")
    say(f"Checkpoints, logs and scores: {shown(output)}")
    say(f"The site, from the outputs that the chapters store: {site_text()}")
    say(facts["banner"])
    return 0


def site_text() -> str:
    """Build the site from the stored notebooks; return where it is, or why not.

    A run has done its work without the site, so that whatever is missing for it, such
    as npm or the network, is a sentence and no failure.
    """
    command = [sys.executable, str(ROOT / "scripts" / "build_book.py")]
    log = BUILD / "book.log"
    status = _run_logged(command, "Building the site", "w", log)
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    return "not built. " * bool(status) + said


def _set_paths(options: argparse.Namespace) -> None:
    """Put the options into the environment, with absolute paths."""
    import notebooks

    if getattr(options, "data", None):  # `lab` has neither
        os.environ["ROADSEG_DATASET1"] = options.data
    if getattr(options, "profile", None):
        os.environ["ROADSEG_PROFILE"] = options.profile
    environment = notebooks.kernel_environment()
    for name in notebooks.LOCAL_FILES:
        if name in environment:
            os.environ[name] = environment[name]


def _run_one(notebooks, path: Path, out: Path, position: str) -> None:
    """Run one notebook under a line that shows how far it is."""
    progress = {"text": path.name}

    def on_cell(k: int, n: int) -> None:
        done = (k - 1) * 20 // n
        bar = "#" * done + "." * (20 - done)
        where = f"notebook {position} [{bar}] cell {k} of {n}"
        progress["text"] = f"{where}, {path.name}"

    start = time.monotonic()
    try:
        with Line(lambda: progress["text"]):
            notebooks.execute(path, out, on_cell=on_cell)
    except notebooks.ExecutionFailed as error:
        raise Refusal(
            f"{error}\nAs far as it came, with the whole error: {shown(out)}"
        ) from None
    except ValueError as error:
        raise Refusal(str(error)) from None
    say(f"{path.name.ljust(40)}  {duration(time.monotonic() - start)}")


def scores_text(path: Path, since: float) -> str:
    """Return the scores of a run as lines, from the file that chapter 5 writes.

    Args:
        path: The file.
        since: When the run began, seconds since the epoch: an older file is not its.
    """
    if not path.exists() or path.stat().st_mtime < since - 2:
        return f"This run wrote no scores: chapter 5 stores them as {shown(path)}."
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        mark = "" if scores["real_data"] else "  NOT COMPARABLE: drawn scenes"
        lines = ["Scores at the end of the training, on the test pictures"]
        for key, name, meaning in (
            ("acc", "acc", "pixel accuracy, void left out"),
            ("acc12", "acc12", "pixel accuracy, void counted as wrong"),
            ("miou", "mIoU", "mean IoU of the 11 classes"),
        ):
            lines.append(f"  {name:<15}{scores[key]:.3f}  {meaning}{mark}")
        for name, iou in scores["iou"].items():
            value = "  -  " if iou is None else f"{iou:.3f}"
            lines.append(f"  IoU {name:<11}{value}{mark}")
        for key in ("data", "weights", "machine"):
            lines.append(f"{key:<9}{scores[key]}")
        lines.append(f"training {duration(scores['seconds'])}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"The scores in {shown(path)} cannot be read ({error!r})."
    return "\n".join(lines)


# test ---------------------------------------------------------------------------------


def test(options: argparse.Namespace) -> int:
    """Run all checks, the later ones too if an earlier one fails; print a table."""
    python = [sys.executable, "-m"]
    chapters = sorted(str(p) for p in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    # Two processes with a thread each: a file of tests, or a notebook, at a time.
    pytest = python + ["pytest", "-q", "-n", "2", "--dist", "loadfile"]
    pytest += [] if sys.stdout.isatty() else ["--color=no"]
    nbval = pytest + ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "600"]
    nbval += ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval.cfg")]
    parts = (
        ("lint", python + ["ruff", "check", "."]),
        ("format", python + ["ruff", "format", "--check", "."]),
        ("notebooks", [sys.executable, "scripts/check_notebooks.py", "--report"]),
        ("tests", pytest + ([] if options.all else ["-m", "not slow"])),
        ("outputs", nbval + (chapters or [str(NOTEBOOKS / "no chapters")])),
    )
    fetch_for_browser()
    rows = []
    for name, command in parts:
        say(f"\n--- {name} ".ljust(74, "-"))
        start = time.monotonic()
        child = subprocess.Popen(command, cwd=str(ROOT), env=test_environment())
        result = "ok" if _wait(child) == 0 else "FAILED"
        rows.append((name, result, f"{time.monotonic() - start:.0f} s"))
    if rows[-1][1] != "ok":
        say("nbval counts code cells from 0: its Cell 3 is In [4] in the notebook.")
    say()
    for part, result, seconds in [("part", "result", "time"), *rows]:
        say(f"{part:<12}{result:<8}{seconds:>8}")
    return int(any(row[1] != "ok" for row in rows))


def fetch_for_browser() -> None:
    """Fetch what the tests in a browser take from npm, while there is a network."""
    command = [sys.executable, "scripts/build_book.py", "--fetch"]
    child = subprocess.Popen(command, cwd=str(ROOT), env=dict(os.environ))
    if _wait(child) != 0:
        say("Without it, tests in a browser are skipped, or fail where CI is true.")


def test_environment() -> "dict[str, str]":
    """Return the environment of the checks: the quick profile, and no network."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ROADSEG_")
        and not name.lower().endswith("_proxy")
        and name != "MPLBACKEND"
    }
    nowhere = "http://127.0.0.1:9"  # a port where nobody answers
    return {
        **kept,
        "ROADSEG_PROFILE": "quick",
        "ROADSEG_DEVICE": "cpu",
        "ROADSEG_PROGRESS": "0",
        "IPYTHONDIR": str(BUILD / "ipython"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "all_proxy": nowhere,
        "no_proxy": "localhost,127.0.0.1",
    }


# lab ----------------------------------------------------------------------------------


def lab(options: argparse.Namespace) -> int:
    """Open JupyterLab in the folder of the notebooks; it ends with Ctrl-C."""
    _set_paths(options)
    command = [sys.executable, "-m", "jupyterlab"]
    return _wait(subprocess.Popen(command, cwd=str(NOTEBOOKS)))


# book ---------------------------------------------------------------------------------


def book(options: argparse.Namespace) -> int:
    """Build the site, from the outputs that the notebooks store."""
    command = [sys.executable, str(ROOT / "scripts" / "build_book.py")]
    return _wait(subprocess.Popen(command + ["--open"] * options.open))


COMMANDS = {"run": run, "test": test, "lab": lab, "book": book, "fetch": fetch}


# The command line ---------------------------------------------------------------------


def parse(arguments: "list[str]") -> argparse.Namespace:
    """Read the command line and check what can be checked before anything starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="{run,test,lab,book}")
    commands.required = True
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--no-venv", action="store_true", help="use this Python, install nothing"
    )
    to_run = commands.add_parser("run", parents=[common], help="run all notebooks")
    to_run.add_argument(
        "--profile", choices=("quick", "cpu", "gpu"), help="default: gpu with CUDA"
    )
    to_run.add_argument(
        "--data", metavar="PATH", help="dataset1, a zip file or folder you have"
    )
    to_test = commands.add_parser("test", parents=[common], help="run the checks")
    to_test.add_argument("--all", action="store_true", help="the slow tests too")
    commands.add_parser("lab", parents=[common], help="open JupyterLab")
    to_build = commands.add_parser("book", parents=[common], help="build the site")
    to_build.add_argument("--open", action="store_true", help="and show it")
    inner = commands.add_parser("fetch", parents=[common])  # what `run` calls
    inner.add_argument("answer", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "run" and options.data:
        options.data = os.path.abspath(os.path.expanduser(options.data))
        if not os.path.exists(options.data):
            parser.error(f"--data: there is no {options.data}")
    return options


def _continue_in(python: Path, arguments: "list[str]") -> int:
    """Start this script again in another Python, to do the work."""
    command = [str(python), str(Path(__file__).resolve()), *arguments, "--no-venv"]
    if os.name == "nt":  # where exec leaves the terminal to the shell at once
        return _wait(subprocess.Popen(command))
    sys.stdout.flush()
    os.execv(command[0], command)


def _require_packages(command: str) -> None:
    missing = [m for m in IMPORTED[command] if importlib.util.find_spec(m) is None]
    if missing:
        files = " ".join("-r " + name for name in REQUIREMENTS[command])
        raise Refusal(
            f"This Python ({sys.executable}) lacks {', '.join(missing)}: "
            f"pip install {files}"
        )


def main(arguments: "list[str] | None" = None) -> int:
    """Do what the command line asks; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    try:
        if not options.no_venv:
            python = ensure_environment(REQUIREMENTS[options.command])
            return _continue_in(python, arguments)
        _require_packages(options.command)
        return COMMANDS[options.command](options)
    except Refusal as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.command != "fetch":  # `run` says it
            print("\nStopped. Start it again to go on.", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
