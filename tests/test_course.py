"""scripts/course.py and what it calls, on a small checkout with a stand-in package."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import course
import run_course

SCRIPT = Path(course.__file__)
SCRIPTS = ("course", "chapters", "fetch_data", "notebooks", "run_course")

ROADSEG = {
    "__init__.py": "",
    "classes.py": "class RoadsegError(Exception): pass",
    "runtime.py": """
import os, pathlib, types
from roadseg.classes import RoadsegError
class P: name = os.environ.get("ROADSEG_PROFILE", "quick")
def profile(): return P
def hardware_info(): return "a small machine"
def banner(text): return "!! " + text
def settings(): return types.SimpleNamespace(camvid_test=None)
def output_dir(): return pathlib.Path(__file__).parents[2] / "build" / P.name
""",
    "dataset1.py": """
import os
from roadseg.classes import RoadsegError
class Scenes: description = "some scenes"; is_real = False
def load():
    if "broken" in os.environ.get("ROADSEG_DATASET1", ""):
        raise RoadsegError("broken.zip: not a zip archive")
    return Scenes, Scenes
""",
    "weights.py": """
class W: source = "random"
def load_encoder_weights(): return W
""",
}
SCORES = {
    "is_real": False,
    "acc": 0.91,
    "acc12": 0.89,
    "miou": 0.6,
    "iou": {"Sky": 0.9, "Bicyclist": None},
    "data": "some scenes",
    "weights": "random",
    "hardware": "a small machine",
    "seconds": 125,
}
BUILD_BOOK = "print('built in 1 s: build/site/index.html')"
WRITE_SCORES = f"""
import json
from roadseg import runtime
runtime.output_dir().mkdir(parents=True, exist_ok=True)
(runtime.output_dir() / "scores.json").write_text('''{json.dumps(SCORES)}''')
"""


@pytest.fixture
def checkout(tmp_path):
    """A course with the real scripts, a stand-in for roadseg, and no notebooks."""
    root = tmp_path / "a course"
    for name in SCRIPTS:
        (root / "scripts").mkdir(parents=True, exist_ok=True)
        shutil.copy(SCRIPT.with_name(f"{name}.py"), root / "scripts")
    (root / "scripts" / "build_book.py").write_text(BUILD_BOOK, encoding="utf-8")
    (root / "notebooks" / "roadseg").mkdir(parents=True)
    for name, text in ROADSEG.items():
        (root / "notebooks" / "roadseg" / name).write_text(text, encoding="utf-8")
    return root


# versions and arguments


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13)])
def test_an_old_python_gets_one_sentence(version):
    code = (
        f"import runpy, sys; sys.version_info = {(*version, 'final', 0)}; "
        f"sys.argv = ['course.py', 'run']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "needs Python 3.11 or newer, and this is Python 3." in line
    assert f"{version[0]}.{version[1]} (" in line


def test_python_3_6_can_read_the_script():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required"),
        (["walk"], "invalid choice: 'walk'"),
        (["run", "--profile", "huge"], "invalid choice: 'huge'"),
        (["run", "--data", "nowhere.zip"], "nowhere.zip doesn't exist"),
        (["run", "nowhere.ipynb"], "nowhere.ipynb doesn't exist"),
        (["lab", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_wrong_arguments(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as error:
        course.main(arguments)

    assert error.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.fixture
def calls(monkeypatch):
    """What `course` calls, and in which folder; nothing is run."""
    found = []
    monkeypatch.setattr(
        course, "call", lambda command, cwd=None, **_: found.append((command, cwd)) or 3
    )
    return found


def test_options_are_passed_on_as_settings_with_absolute_paths(
    tmp_path, monkeypatch, calls
):
    (tmp_path / "mine.zip").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROADSEG_DATASET1", "overridden.zip")
    paths = {"VGG16_BN": "weights.pth", "CAMVID_TEST": "official.zip", "OUTPUT": "out"}
    for name, path in paths.items():
        monkeypatch.setenv(f"ROADSEG_{name}", path)

    course.main(["run", "--no-venv", "--data", "mine.zip", "--profile", "gpu"])

    assert os.environ["ROADSEG_PROFILE"] == "gpu"
    for name, path in {**paths, "DATASET1": "mine.zip"}.items():
        assert os.environ[f"ROADSEG_{name}"] == str(tmp_path / path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lab"], "jupyterlab"),
        (["book"], "build_book.py"),
        (["run", str(SCRIPT)], str(SCRIPT)),
    ],
)
def test_each_command_calls_its_program(arguments, expected, calls, monkeypatch):
    monkeypatch.setattr(course, "ensure_environment", lambda files: Path("p"))
    assert course.main(arguments) == 3

    ((command, cwd),) = calls
    assert command[0] == Path("p")
    assert str(command[-1]).endswith(expected)
    assert (cwd == str(course.NOTEBOOKS)) == (arguments == ["lab"])


def test_missing_packages_are_reported_with_what_to_install(monkeypatch):
    monkeypatch.setattr(course, "NEEDED_PACKAGES", ("json", "nosuchpackage"))

    with pytest.raises(SystemExit, match="lacks packages: pip install -r requ"):
        course.main(["lab", "--no-venv"])


# the environment


class Installer:
    """Stands in for `venv` and `pip`: writes down what it is asked to do."""

    def __init__(self):
        self.asked, self.results = [], {}

    def __call__(self, command):
        files = [x for x in command if isinstance(x, Path) and x.suffix == ".txt"]
        files = [x.relative_to(course.ROOT).as_posix() for x in files]
        step = "venv" if "venv" in command else " ".join(files)
        self.asked.append(step)
        result = self.results.get(step, 0)
        if isinstance(result, BaseException):
            raise result
        if step == "venv" and result == 0:
            (course.VENV / "bin").mkdir()
            (course.VENV / "bin" / "python").symlink_to(sys.executable)
        return result

    def take(self):
        asked, self.asked = self.asked, []
        return asked


RUN, TEST = course.FILES, course.TEST_FILES
PIP_RUN, PIP_TEST = " ".join(RUN), " ".join(TEST)


@pytest.fixture
def installer(tmp_path, monkeypatch):
    for name in TEST:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}>=1\n")
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "VENV", tmp_path / ".venv")
    fake = Installer()
    monkeypatch.setattr(course, "call", fake)
    return fake


posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in makes symlinks")


@posix
def test_each_use_installs_only_what_is_missing(installer, tmp_path):
    python = course.ensure_environment(RUN)
    assert python == course.VENV / "bin" / "python"
    assert installer.take() == ["venv", PIP_RUN]

    for files in (RUN, TEST, RUN, TEST):
        assert course.ensure_environment(files) == python
    assert installer.take() == [PIP_TEST]

    (tmp_path / RUN[0]).write_text("x>=2\n")  # changed requirements
    for files in (RUN, TEST, RUN, TEST):
        course.ensure_environment(files)
    assert installer.take() == [PIP_RUN, PIP_TEST]


def test_requirement_files_include_only_files_that_count():
    """Else a change in one of them would install nothing."""
    files = {(course.ROOT / name).resolve() for name in TEST}
    for path in files:
        included = re.findall(r"(?m)^-r (\S+)", path.read_text(encoding="utf-8"))
        assert {(path.parent / name).resolve() for name in included} <= files


@posix
@pytest.mark.parametrize(
    ("step", "result", "message"),
    [
        ("venv", KeyboardInterrupt(), None),
        (PIP_RUN, KeyboardInterrupt(), None),
        (PIP_TEST, KeyboardInterrupt(), None),
        ("venv", 1, r"can't create .*venv"),
        (PIP_RUN, 1, r"pip says why .* 10 GB .* TMPDIR"),
    ],
)
def test_an_installation_that_did_not_end_starts_afresh(
    installer, step, result, message
):
    if step == PIP_TEST:
        course.ensure_environment(RUN)
    installer.results[step] = result
    with pytest.raises((KeyboardInterrupt, SystemExit), match=message):
        course.ensure_environment(TEST if step == PIP_TEST else RUN)
    installer.take()
    installer.results.clear()

    course.ensure_environment(RUN)
    assert installer.take() == ["venv", PIP_RUN]


@posix
def test_an_environment_whose_python_is_gone_is_made_again(installer):
    course.ensure_environment(RUN)
    (course.VENV / "bin" / "python").unlink()
    installer.take()

    course.ensure_environment(RUN)
    assert installer.take() == ["venv", PIP_RUN]


def test_somebody_elses_environment_is_left_alone(installer):
    (course.VENV / "bin").mkdir(parents=True)

    with pytest.raises(SystemExit, match="didn't create it"):
        course.ensure_environment(RUN)
    assert installer.take() == []
    assert os.listdir(course.VENV) == ["bin"]


# run


def add_notebook(root, name, *sources):
    notebook = new_notebook(cells=[new_code_cell(s) for s in sources])
    nbformat.write(notebook, root / "notebooks" / name)


def heed_ctrl_c():
    """Undo what a shell does for a job in the background: to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(root, *arguments, **options):
    if os.name != "nt":
        options["preexec_fn"] = heed_ctrl_c
    return subprocess.Popen(
        [sys.executable, root / "scripts" / "course.py", *arguments, "--no-venv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in out + err
    return process.returncode, out, err


def test_run_executes_in_order_and_prints_the_scores(checkout):
    see = "import os\nprint(os.environ['ROADSEG_DATASET1'])"
    add_notebook(checkout, "02_b.ipynb", "open('order', 'a').write('b')", WRITE_SCORES)
    add_notebook(checkout, "01_a.ipynb", "open('order', 'a').write('a')", see)
    (checkout / "my data").mkdir()

    rc, out, err = finish(start(checkout, "run", "--data", "my data"))

    assert rc == 0
    assert err == "" or os.name == "nt"  # where asyncio has a warning of its own
    assert (checkout / "notebooks" / "order").read_text() == "ab"
    executed = checkout / "build" / "quick" / "notebooks"
    done = nbformat.read(executed / "01_a.ipynb", 4)
    assert done.cells[1].outputs[0].text == f"{checkout / 'my data'}\n"
    assert done.metadata.roadseg.profile == "quick"
    assert out.count("!! The images of this run are SYNTHETIC") == 2
    lines = out.splitlines()
    assert lines.index("data      some scenes") < lines.index("weights   random")
    marked = [x.split()[:2] for x in lines if "NOT COMPARABLE" in x]
    assert marked[:3] == [["acc", "0.910"], ["acc12", "0.890"], ["miou", "0.600"]]
    assert marked[3:] == [["IoU", "Sky"], ["IoU", "Bicyclist"]]
    assert {
        "training  2 min 5 s",
        "Executed notebooks: build/quick/notebooks",
        "The site, from the stored outputs: built in 1 s: build/site/index.html",
    } <= set(lines)
    source = nbformat.read(checkout / "notebooks" / "01_a.ipynb", 4)
    assert source.cells[0].execution_count is None


def test_a_run_without_site_and_new_scores_is_a_run(checkout):
    add_notebook(checkout, "01_a.ipynb", "print(1)")
    shutil.copy(SCRIPT.with_name("build_book.py"), checkout / "scripts")
    nowhere = {**os.environ, "PATH": str(checkout)}  # no npm there
    scores = checkout / "build" / "quick" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps(SCORES), encoding="utf-8")
    os.utime(scores, (1, 1))  # of an earlier run

    rc, out, err = finish(start(checkout, "run", env=nowhere))

    assert rc == 0
    assert "No scores: chapter 5 should have written build/quick/scores.json" in out
    assert "0.600" not in out
    (said,) = [x for x in out.splitlines() if x.startswith("The site")]
    assert "outputs: not built. " in said
    assert said.endswith("then run: python3 scripts/course.py book.")


def test_a_failing_cell_is_named_and_what_ran_is_kept(checkout):
    add_notebook(checkout, "01_a.ipynb", "print(1)", "int('x')", "print(3)")
    add_notebook(checkout, "02_b.ipynb", "open('ran', 'w')")

    rc, out, err = finish(start(checkout, "run"))

    assert rc == 1
    assert err.splitlines()[-2:] == [
        "01_a.ipynb, code cell 2: ValueError: invalid literal for int() with base 10: "
        "'x'",
        "The partly executed copy: build/quick/notebooks/01_a.ipynb",
    ]
    partly = nbformat.read(checkout / "build/quick/notebooks/01_a.ipynb", 4)
    outputs = [c.outputs[0].output_type if c.outputs else "" for c in partly.cells]
    assert outputs == ["stream", "error", ""]
    assert not (checkout / "notebooks" / "ran").exists()


def runs(pid):
    """Whether a process runs and is no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True)
    return state.stdout.strip()[:1] not in (b"", b"Z")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("everybody", [True, False])
def test_ctrl_c_is_a_sentence(checkout, everybody):
    sleep = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    add_notebook(checkout, "01_a.ipynb", sleep)
    process = start(checkout, "run", start_new_session=True)
    pid_file = checkout / "notebooks" / "pid"
    while not (pid_file.exists() and pid_file.read_text()):
        assert process.poll() is None
        time.sleep(0.05)

    (os.killpg if everybody else os.kill)(process.pid, signal.SIGINT)
    rc, out, err = finish(process)

    assert rc == 130
    assert err.strip() == "Interrupted. Start it again to continue."
    deadline = time.monotonic() + 20  # a kernel whose parent was killed ends itself
    while runs(int(pid_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("names", "arguments", "sentences"),
    [
        ([], [], ["There are no notebooks in notebooks/."]),
        (
            ["01_a.ipynb"],
            ["--data", "broken.zip"],
            ["Cannot start: broken.zip: not a zip archive", "No notebook was run."],
        ),
    ],
)
def test_what_cannot_be_run_is_told_at_once(checkout, names, arguments, sentences):
    (checkout / "broken.zip").touch()
    for name in names:
        add_notebook(checkout, name, "open('ran', 'w')")

    rc, _, err = finish(start(checkout, "run", *arguments))

    assert rc == 1
    assert err.splitlines()[-len(sentences) :] == sentences
    assert not (checkout / "notebooks" / "ran").exists()


def test_one_notebook_may_be_run_alone(checkout):
    add_notebook(checkout, "01_a.ipynb", "print(1)")
    add_notebook(checkout, "02_b.ipynb", "open('ran', 'w')")

    rc, out, err = finish(start(checkout, "run", "notebooks/01_a.ipynb"))

    assert rc == 0, err
    assert not (checkout / "notebooks" / "ran").exists()
    assert (checkout / "build" / "quick" / "notebooks" / "01_a.ipynb").exists()
    assert "scores.json" not in out
    assert "The site" not in out


def test_scores_are_marked_only_if_synthetic_and_acc12_is_optional():
    text = run_course.describe_scores({**SCORES, "is_real": True, "acc12": None})

    assert "miou           0.600" in text
    assert "NOT COMPARABLE" not in text
    assert "acc12" not in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (59.7, "1 min 0 s"), (3_790, "1 h 3 min")]
)
def test_durations_are_words(seconds, words):
    assert run_course.format_duration(seconds) == words


# test


@pytest.mark.parametrize(
    ("failing", "rc", "row"),
    [
        ("nothing", 0, ["tests", "ok"]),
        ("ruff check", 1, ["lint", "FAILED"]),
        ("ruff format", 1, ["format", "FAILED"]),
        ("check_words", 1, ["words", "FAILED"]),
        ("check_notebooks", 1, ["notebooks", "FAILED"]),
        ("not slow", 1, ["tests", "FAILED"]),
        ("--nbval ", 1, ["outputs", "FAILED"]),
        ("--fetch", 0, ["tests", "ok"]),  # its tests are skipped, or fail themselves
    ],
)
def test_all_parts_run_and_a_failure_is_reported(failing, rc, row, monkeypatch, capfd):
    commands, environments = [], []

    def call(command, cwd, env=None):
        commands.append(" ".join(map(str, command[1:])))
        environments.append(env)
        return int(failing in commands[-1])

    monkeypatch.setattr(course, "call", call)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("ROADSEG_PROFILE", "gpu")
    monkeypatch.setenv("ROADSEG_DATASET1", "x")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")

    assert course.main(["test", "--no-venv"]) == rc

    assert commands.pop(0) == "scripts/build_book.py --fetch"
    assert environments.pop(0) is None  # this one has a network
    assert len(commands) == 6
    rows = [line.split()[:2] for line in capfd.readouterr().out.splitlines()[-6:]]
    assert row in rows
    assert sum(r[1] == "FAILED" for r in rows) == rc
    environment = environments[-1]
    assert environment["ROADSEG_PROFILE"] == "quick"
    assert environment["https_proxy"] == "http://127.0.0.1:9"
    assert not {"MPLBACKEND", "ROADSEG_DATASET1", "HTTPS_PROXY"} & set(environment)


def test_slow_tests_run_on_demand(calls):
    course.main(["test", "--all", "--no-venv"])

    assert not any("not slow" in command for command, _ in calls)
