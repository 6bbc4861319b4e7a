"""scripts/course.py and what it calls, on a small checkout without torch."""

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
    for name in ("course.py", "fetch_data.py", "notebooks.py", "run_course.py"):
        (root / "scripts").mkdir(parents=True, exist_ok=True)
        shutil.copy(SCRIPT.parent / name, root / "scripts" / name)
    (root / "scripts" / "build_book.py").write_text(BUILD_BOOK, encoding="utf-8")
    (root / "notebooks" / "roadseg").mkdir(parents=True)
    for name, text in ROADSEG.items():
        (root / "notebooks" / "roadseg" / name).write_text(text, encoding="utf-8")
    return root


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
        [sys.executable, str(root / "scripts" / "course.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in out + err
    return process.returncode, out, err


# versions and arguments


@pytest.mark.parametrize(("version", "rc"), [((3, 8, 18), 1), ((3, 10, 13), 1)])
def test_an_old_python_gets_one_sentence(version, rc):
    code = (
        f"import runpy, sys; sys.version_info = {(*version, 'final', 0)}; "
        f"sys.argv = ['course.py', 'run']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == rc
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "needs Python 3.11 or newer, and this is Python 3." in done.stderr
    assert f"{version[0]}.{version[1]} (" in done.stderr


def test_python_3_6_can_read_the_script():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required"),
        (["walk"], "invalid choice: 'walk'"),
        (["fetch"], "invalid choice: 'fetch'"),
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


def test_paths_are_made_absolute_because_notebooks_run_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mine.zip").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROADSEG_DATASET1", "overridden.zip")
    monkeypatch.setenv("ROADSEG_VGG16_BN", "weights.pth")
    monkeypatch.setenv("ROADSEG_CAMVID_TEST", "official.zip")
    monkeypatch.setenv("ROADSEG_OUTPUT", "results")

    course.set_environment(
        course.parse(["run", "--data", "mine.zip", "--profile", "gpu"])
    )

    assert os.environ["ROADSEG_DATASET1"] == str(tmp_path / "mine.zip")
    assert os.environ["ROADSEG_VGG16_BN"] == str(tmp_path / "weights.pth")
    assert os.environ["ROADSEG_CAMVID_TEST"] == str(tmp_path / "official.zip")
    assert os.environ["ROADSEG_OUTPUT"] == str(tmp_path / "results")
    assert os.environ["ROADSEG_PROFILE"] == "gpu"


def test_jupyterlab_opens_in_the_folder_of_the_notebooks(monkeypatch):
    calls = []
    monkeypatch.setattr(
        course, "call", lambda command, cwd: calls.append((command, cwd)) or 0
    )

    assert course.main(["lab", "--no-venv"]) == 0
    ((command, cwd),) = calls
    assert command[-1] == "jupyterlab"
    assert Path(cwd) == course.NOTEBOOKS


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setitem(course.IMPORTED, "lab", ("json", "nosuchpackage"))

    assert course.main(["lab", "--no-venv"]) == 1
    assert "lacks nosuchpackage: pip install -r requ" in capsys.readouterr().err


# the environment


class Installer:
    """Stands in for `venv` and `pip`: writes down what it is asked to do."""

    def __init__(self):
        self.asked = []
        self.results = {}
        self.error = "ERROR: no such package"

    def __call__(self, command):
        course.LOG.parent.mkdir(exist_ok=True)
        step = "venv" if "venv" in command else " ".join(command[7:])
        self.asked.append(step)
        result = self.results.get(step, 0)
        if isinstance(result, BaseException):
            raise result
        course.LOG.write_text(f"Collecting x\n{self.error}\n\n")
        if step == "venv" and result == 0:
            (course.VENV / "bin").mkdir()
            (course.VENV / "bin" / "python").symlink_to(sys.executable)
        return result

    def take(self):
        asked, self.asked = self.asked, []
        return asked


RUN, TEST = course.REQUIREMENTS["run"], course.REQUIREMENTS["test"]
PIP_RUN, PIP_TEST = (" ".join(f"-r {n}" for n in names) for names in (RUN, TEST))


@pytest.fixture
def installer(tmp_path, monkeypatch):
    for name in TEST:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x>=1\n")
    for name, value in {
        "ROOT": tmp_path,
        "BUILD": tmp_path / "build",
        "VENV": tmp_path / ".venv",
        "STAMP": tmp_path / ".venv" / "course.json",
        "LOG": tmp_path / "build" / "install.log",
    }.items():
        monkeypatch.setattr(course, name, value)
    fake = Installer()
    monkeypatch.setattr(course, "_log", fake)
    return fake


posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in makes symlinks")


@posix
def test_the_first_use_installs_and_the_second_does_not(installer):
    python = course.ensure_environment(RUN)

    assert python == course.VENV / "bin" / "python"
    assert installer.take() == ["venv", PIP_RUN]
    assert course.ensure_environment(RUN) == python
    assert installer.take() == []


@posix
def test_the_checks_install_more_and_a_run_after_them_nothing(installer):
    course.ensure_environment(RUN)
    course.ensure_environment(TEST)
    assert installer.take() == ["venv", PIP_RUN, PIP_TEST]

    course.ensure_environment(RUN)
    course.ensure_environment(TEST)
    assert installer.take() == []


@posix
def test_changed_requirements_are_installed(installer, tmp_path):
    course.ensure_environment(TEST)
    installer.take()
    (tmp_path / RUN[0]).write_text("x>=2\n")

    course.ensure_environment(RUN)
    assert installer.take() == [PIP_RUN]
    course.ensure_environment(TEST)
    assert installer.take() == [PIP_TEST]


@posix
def test_a_file_that_requirements_name_counts_as_part_of_them(installer, tmp_path):
    (tmp_path / TEST[-1]).write_text("-r ../more.txt\n")
    (tmp_path / "more.txt").write_text("y>=1\n")
    course.ensure_environment(TEST)
    installer.take()
    (tmp_path / "more.txt").write_text("y>=2\n")

    course.ensure_environment(RUN)
    assert installer.take() == []
    course.ensure_environment(TEST)
    assert installer.take() == [PIP_TEST]


@posix
@pytest.mark.parametrize("step", ["venv", PIP_RUN])
def test_an_interrupted_installation_starts_afresh(installer, step):
    installer.results[step] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        course.ensure_environment(RUN)
    installer.take()
    installer.results.clear()

    course.ensure_environment(RUN)
    assert installer.take() == ["venv", PIP_RUN]


@posix
def test_an_interrupted_addition_starts_afresh_too(installer):
    course.ensure_environment(RUN)
    installer.results[PIP_TEST] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        course.ensure_environment(TEST)
    installer.take()

    course.ensure_environment(RUN)
    assert installer.take() == ["venv", PIP_RUN]


@posix
def test_a_failed_installation_shows_its_error(installer, capsys):
    installer.results[PIP_RUN] = 1

    assert course.main(["run"]) == 1

    error = capsys.readouterr().err
    assert "ERROR: no such package" in error
    assert "Collecting" not in error
    assert "GB are free" not in error
    assert "build/install.log" in error


@posix
def test_a_full_disk_is_told_with_the_room_there_must_be(installer, capsys):
    installer.error = "ERROR: [Errno 28] No space left on device"
    installer.results[PIP_RUN] = 1

    assert course.main(["run"]) == 1

    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert re.search(r"needs about \d+ GB, .*: [\d.]+ GB are free at ", error)
    assert "TMPDIR" in error


@posix
def test_without_venv_nothing_is_left_behind(installer):
    installer.results["venv"] = 1

    with pytest.raises(course.UserError, match=r"python3\.\d+-venv"):
        course.ensure_environment(RUN)
    assert not course.VENV.exists()


@posix
def test_an_environment_whose_python_is_gone_is_made_again(installer):
    course.ensure_environment(RUN)
    (course.VENV / "bin" / "python").unlink()
    installer.take()

    course.ensure_environment(RUN)
    assert installer.take() == ["venv", PIP_RUN]


def test_somebody_elses_environment_is_left_alone(installer):
    (course.VENV / "bin").mkdir(parents=True)

    with pytest.raises(course.UserError, match="didn't create it"):
        course.ensure_environment(RUN)
    assert installer.take() == []
    assert os.listdir(course.VENV) == ["bin"]


def test_what_an_installation_says_goes_to_the_log(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "BUILD", tmp_path / "build")
    monkeypatch.setattr(course, "LOG", tmp_path / "build" / "install.log")
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"

    assert course._log([sys.executable, "-c", code]) == 3
    assert sorted(course.LOG.read_text().split()) == ["err", "out"]
    assert capfd.readouterr().out == ""


def test_the_work_is_done_by_the_python_of_the_environment(monkeypatch):
    commands = []
    monkeypatch.setattr(course, "call", lambda command: commands.append(command) or 0)
    monkeypatch.setattr(course, "ensure_environment", lambda files: Path("p"))

    assert course.main(["run", str(SCRIPT)]) == 0

    assert commands == [[Path("p"), SCRIPT.parent / "run_course.py", str(SCRIPT)]]


# run


def test_run_executes_in_order_and_prints_the_scores(checkout):
    see = "import os\nprint(os.environ['ROADSEG_DATASET1'])"
    add_notebook(checkout, "02_b.ipynb", "open('order', 'a').write('b')", WRITE_SCORES)
    add_notebook(checkout, "01_a.ipynb", "open('order', 'a').write('a')", see)
    (checkout / "my data").mkdir()

    rc, out, err = finish(
        start(checkout, "run", "--no-venv", "--data", "my data", cwd=checkout)
    )

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
    marked = [x for x in lines if "NOT COMPARABLE" in x]
    assert [x.split()[:2] for x in marked] == [
        ["acc", "0.910"],
        ["acc12", "0.890"],
        ["miou", "0.600"],
        ["IoU", "Sky"],
        ["IoU", "Bicyclist"],
    ]
    assert "training  2 min 5 s" in lines
    assert "Executed notebooks: build/quick/notebooks" in lines
    site = "The site, from the stored outputs: built in 1 s: build/site/index.html"
    assert site in lines
    source = nbformat.read(checkout / "notebooks" / "01_a.ipynb", 4)
    assert source.cells[0].execution_count is None


def test_a_run_without_the_site_is_a_run(checkout):
    add_notebook(checkout, "01_a.ipynb", WRITE_SCORES)
    shutil.copy(SCRIPT.parent / "build_book.py", checkout / "scripts")
    nowhere = {**os.environ, "PATH": str(checkout)}  # no npm there

    rc, out, err = finish(start(checkout, "run", "--no-venv", env=nowhere))

    assert rc == 0
    assert "  miou           0.600" in out
    (said,) = [x for x in out.splitlines() if x.startswith("The site")]
    assert "outputs: not built. " in said
    assert said.endswith("then run: python3 scripts/course.py book.")


def test_a_failing_cell_is_named_and_what_ran_is_kept(checkout):
    add_notebook(checkout, "01_a.ipynb", "print(1)", "int('x')", "print(3)")
    add_notebook(checkout, "02_b.ipynb", "open('ran', 'w')")

    rc, out, err = finish(start(checkout, "run", "--no-venv"))

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


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("everybody", [True, False])
def test_ctrl_c_is_a_sentence(checkout, everybody):
    add_notebook(
        checkout,
        "01_a.ipynb",
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)",
    )
    process = start(checkout, "run", "--no-venv", start_new_session=True)
    pid_file = checkout / "notebooks" / "pid"
    while not (pid_file.exists() and pid_file.read_text()):
        assert process.poll() is None
        time.sleep(0.05)

    (os.killpg if everybody else os.kill)(process.pid, signal.SIGINT)
    rc, out, err = finish(process)

    assert rc == 130
    assert err.strip() == "Interrupted. Start it again to continue."
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_data_that_cannot_be_used_stop_it_at_once(checkout):
    add_notebook(checkout, "01_a.ipynb", "open('ran', 'w')")
    (checkout / "broken.zip").touch()

    rc, _, err = finish(
        start(checkout, "run", "--no-venv", "--data", str(checkout / "broken.zip"))
    )

    assert rc == 1
    assert err.splitlines()[-2:] == [
        "Cannot start: broken.zip: not a zip archive",
        "No notebook was run.",
    ]
    assert not (checkout / "notebooks" / "ran").exists()


def test_a_checkout_without_notebooks_is_told(checkout):
    rc, _, err = finish(start(checkout, "run", "--no-venv"))

    assert rc == 1
    assert "There are no notebooks in notebooks.\n" in err


def test_one_notebook_may_be_run_alone(checkout):
    add_notebook(checkout, "01_a.ipynb", "print(1)")
    add_notebook(checkout, "02_b.ipynb", "open('ran', 'w')")

    rc, out, err = finish(
        start(checkout, "run", "--no-venv", "notebooks/01_a.ipynb", cwd=checkout)
    )

    assert rc == 0, err
    assert not (checkout / "notebooks" / "ran").exists()
    assert (checkout / "build" / "quick" / "notebooks" / "01_a.ipynb").exists()
    assert "scores.json" not in out
    assert "The site" not in out


def test_a_run_that_wrote_no_scores_shows_no_older_ones(checkout):
    add_notebook(checkout, "01_a.ipynb", "print(1)")
    scores = checkout / "build" / "quick" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps(SCORES), encoding="utf-8")
    os.utime(scores, (1, 1))

    rc, out, _ = finish(start(checkout, "run", "--no-venv"))

    assert rc == 0
    assert "No scores: chapter 5 should have written build/quick/scores.json" in out
    assert "0.600" not in out


def test_scores_of_real_data_are_not_marked():
    text = run_course.describe_scores({**SCORES, "is_real": True})

    assert "miou           0.600" in text
    assert "NOT COMPARABLE" not in text


def test_scores_of_other_classes_have_no_acc12():
    text = run_course.describe_scores({**SCORES, "acc12": None})

    assert "acc12" not in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (59.7, "1 min 0 s"), (3_790, "1 h 3 min")]
)
def test_durations_are_words(seconds, words):
    assert course.format_duration(seconds) == words


# test


class Parts:
    """Stands in for `call`: records commands, fails where it should."""

    def __init__(self, failing):
        self.failing, self.commands, self.environments = failing, [], []

    def __call__(self, command, cwd, env=None):
        self.commands.append(" ".join(map(str, command[1:])))
        self.environments.append(env)
        return int(self.failing in self.commands[-1])


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
    parts = Parts(failing)
    monkeypatch.setattr(course, "call", parts)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("ROADSEG_PROFILE", "gpu")
    monkeypatch.setenv("ROADSEG_DATASET1", "x")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")

    assert course.main(["test", "--no-venv"]) == rc

    assert parts.commands.pop(0) == "scripts/build_book.py --fetch"
    assert parts.environments.pop(0) is None  # this one has a network
    assert len(parts.commands) == 6
    rows = [line.split()[:2] for line in capfd.readouterr().out.splitlines()[-6:]]
    assert row in rows
    assert sum(r[1] == "FAILED" for r in rows) == rc
    environment = parts.environments[-1]
    assert environment["ROADSEG_PROFILE"] == "quick"
    assert environment["https_proxy"] == "http://127.0.0.1:9"
    assert not {"MPLBACKEND", "ROADSEG_DATASET1", "HTTPS_PROXY"} & set(environment)


def test_slow_tests_run_on_demand(monkeypatch):
    parts = Parts("nothing")
    monkeypatch.setattr(course, "call", parts)

    course.main(["test", "--all", "--no-venv"])

    assert not any("not slow" in command for command in parts.commands)


def test_book_builds_the_site(monkeypatch):
    commands = []
    monkeypatch.setattr(course, "call", lambda command: commands.append(command) or 3)

    assert course.main(["book", "--open", "--no-venv"]) == 3
    assert [Path(x).name for x in commands[0][1:]] == ["build_book.py", "--open"]
