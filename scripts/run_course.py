"""Run notebooks, store executed copies, print the scores, build the site.

`course.py run` calls this with the Python of .venv; see `course.py run --help`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import notebooks
from course import (
    BUILD,
    NOTEBOOKS,
    SCRIPTS,
    UserError,
    call,
    display,
    format_duration,
    guard,
    say,
    show_status,
)

SCORES = (
    ("acc", "pixel accuracy, void left out"),
    ("acc12", "pixel accuracy, void counted as wrong"),
    ("miou", "mean IoU of the scored classes"),
)


def run(chosen: list[Path]) -> int:
    """Run the notebooks that were chosen, or all; return the exit status.

    Raises:
        UserError: If the data can't be used or a notebook fails.
    """
    paths = chosen or notebooks.chapters()
    if not paths:
        raise UserError(f"There are no notebooks in {display(NOTEBOOKS)}.")
    facts = fetch_data()
    os.environ["ROADSEG_PROFILE"] = facts["profile"]
    say(facts["banner"])
    output, start = Path(facts["output"]), time.time()
    for number, path in enumerate(paths, 1):
        position = f"notebook {number} of {len(paths)}"
        run_one(path, output / "notebooks" / path.name, position)
    say(f"All notebooks ran, in {format_duration(time.time() - start)}.\n")
    scores = output / "scores.json"
    if scores.exists() and scores.stat().st_mtime >= start - 2:
        say(describe_scores(json.loads(scores.read_text(encoding="utf-8"))) + "\n")
    elif not chosen:
        say(f"No scores: chapter 5 should have written {display(scores)}.\n")
    say(f"Executed notebooks: {display(output / 'notebooks')}")
    say(f"Checkpoints, logs, and scores: {display(output)}")
    if not chosen:
        say(f"The site, from the stored outputs: {build_site()}")
    say(facts["banner"])
    return 0


def fetch_data() -> dict:
    """Download and verify data and weights; return the profile, output, and banner.

    Raises:
        UserError: If that failed; the process has said why.
    """
    BUILD.mkdir(exist_ok=True)
    summary = BUILD / "fetched.json"
    if call([sys.executable, SCRIPTS / "fetch_data.py", "--json", summary]) != 0:
        raise UserError("No notebook was run.")
    facts = json.loads(summary.read_text(encoding="utf-8"))
    summary.unlink()
    return facts


def run_one(path: Path, out: Path, position: str) -> None:
    """Run one notebook under a line that shows the progress."""

    def on_cell(k: int, n: int) -> None:
        elapsed = format_duration(time.monotonic() - start)
        show_status(f"{position}, cell {k} of {n}, {elapsed}: {path.name}")

    start = time.monotonic()
    try:
        notebooks.execute(path, out, on_cell=on_cell)
    except notebooks.ExecutionError as error:
        raise UserError(f"{error}\nThe partly executed copy: {display(out)}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    finally:
        show_status()
    say(f"{path.name.ljust(40)}  {format_duration(time.monotonic() - start)}")


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


def build_site() -> str:
    """Build the site; return where it is, or why it was not built.

    The run is complete without the site, so a missing npm is no failure.
    """
    command = [sys.executable, str(SCRIPTS / "build_book.py")]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return "not built. " * bool(done.returncode) + done.stdout.strip()


if __name__ == "__main__":
    sys.exit(guard(lambda: run([Path(name) for name in sys.argv[1:]])))
