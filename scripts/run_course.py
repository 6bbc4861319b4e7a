"""Run notebooks, store executed copies, print the scores, build the site.

`course.py run` calls this with the Python of .venv; see `course.py run --help`.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import notebooks
from course import ROOT, call

SCRIPTS = ROOT / "scripts"
SCORES = (
    ("acc", "pixel accuracy, void left out"),
    ("acc12", "pixel accuracy, void counted as wrong"),
    ("miou", "mean IoU of the scored classes"),
)


def run(chosen: list[Path]) -> int:
    """Run the notebooks that were chosen, or all; return the exit status.

    Raises:
        SystemExit: If the data can't be used or a notebook fails.
    """
    paths = chosen or notebooks.chapters()
    if not paths:
        sys.exit("There are no notebooks in notebooks/.")
    # In a process of its own, whose memory is free again when the notebooks run.
    summary = ROOT / "build" / "fetched.json"
    if call([sys.executable, SCRIPTS / "fetch_data.py", summary]):
        sys.exit("No notebook was run.")
    facts = json.loads(summary.read_text(encoding="utf-8"))
    print(facts["banner"], flush=True)
    output, start = Path(facts["output"]), time.time()
    for number, path in enumerate(paths, 1):
        out = output / "notebooks" / path.name
        run_one(path, out, facts["profile"], f"notebook {number} of {len(paths)}")
    print(f"All notebooks ran, in {format_duration(time.time() - start)}.\n")
    scores = output / "scores.json"
    if scores.exists() and scores.stat().st_mtime >= start - 2:
        print(describe_scores(json.loads(scores.read_text(encoding="utf-8"))) + "\n")
    elif not chosen:
        print(f"No scores: chapter 5 should have written {display(scores)}.\n")
    print(f"Executed notebooks: {display(output / 'notebooks')}")
    print(f"Checkpoints, logs, and scores: {display(output)}", flush=True)
    if not chosen:  # a run without the site, where npm is missing, is complete
        command = [sys.executable, str(SCRIPTS / "build_book.py")]
        done = subprocess.run(command, capture_output=True, text=True)
        said = "not built. " * bool(done.returncode) + done.stdout + done.stderr
        print(f"The site, from the stored outputs: {said.strip()}")
    print(facts["banner"])
    return 0


def run_one(path: Path, out: Path, profile: str, position: str) -> None:
    """Run one notebook; on a terminal, overwrite a line that shows the progress."""

    def show(text: str) -> None:
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="\r", flush=True)

    def on_cell(k: int, n: int) -> None:
        elapsed = format_duration(time.monotonic() - start)
        show(f"{position}, cell {k} of {n}, {elapsed}: {path.name}")

    start = time.monotonic()
    try:
        notebooks.execute(path, out, profile, on_cell)
    except notebooks.ExecutionError as error:
        sys.exit(f"{error}\nThe partly executed copy: {display(out)}")
    except ValueError as error:
        sys.exit(f"{path.name} {error}")
    finally:
        show("")
    elapsed = format_duration(time.monotonic() - start)
    print(f"{path.name.ljust(40)}  {elapsed}", flush=True)


def display(path: Path) -> str:
    """Return a path relative to the repository, if it is inside it."""
    return path.relative_to(ROOT).as_posix() if ROOT in path.parents else str(path)


def format_duration(seconds: float) -> str:
    """Return a duration such as ``4 s``, ``2 min 5 s``, or ``1 h 3 min``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return "{} h {} min".format(*divmod(minutes, 60))
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe_scores(scores: dict) -> str:
    """Return the scores that chapter 5 wrote as lines."""
    mark = "" if scores["is_real"] else "  NOT COMPARABLE: synthetic scenes"
    lines = ["Scores after the last epoch, on the test images"]
    for key, meaning in SCORES:
        if scores.get(key) is not None:
            lines.append(f"  {key:<15}{scores[key]:.3f}  {meaning}{mark}")
    for name, iou in scores["iou"].items():
        value = "  -  " if iou is None else f"{iou:.3f}"
        lines.append(f"  IoU {name:<11}{value}{mark}")
    lines += [f"{key:<10}{scores[key]}" for key in ("data", "weights", "hardware")]
    lines.append(f"training  {format_duration(scores['seconds'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(run([Path(name) for name in sys.argv[1:]]))
    except KeyboardInterrupt:
        sys.exit(130)
