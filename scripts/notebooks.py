"""Execute the notebooks and store their outputs; write copies without solutions.

    python scripts/notebooks.py execute notebooks/01_*.ipynb --in-place
    python scripts/notebooks.py execute --out build/trial       # all, into a folder
    python scripts/notebooks.py students --out build/students   # without solutions

`execute` runs every cell in a fresh kernel of this Python, with `notebooks/` as the
working directory. It writes the metadata that Colab, Kaggle, and the checks read, and
two hashes: one of the code cells, so that check_notebooks.py can tell when a cell
changed after it ran, and one of the package's code.

To edit a notebook as a script, use jupytext. Cells keep their ids, and cells that
you don't change keep their outputs:

    jupytext --to py:percent -o draft.py notebooks/01_name.ipynb
    jupytext --update --to ipynb -o notebooks/01_name.ipynb draft.py
"""

import argparse
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

import course
from chapters import (
    NOTEBOOKS,
    ROOT,
    cells_hash,
    chapters,
    clean,
    code_cells,
    package_hash,
    read,
    tags,
    write,
)

FAILED = ROOT / "build" / "failed"
FOLDED_SOLUTION = re.compile(
    r"<details>\s*<summary>[^<]*\b(?:Solution|Answer)s?\b.*?</details>",
    re.DOTALL | re.IGNORECASE,
)

COLAB_BADGE = re.compile(r"\[!\[Open in Colab\].*\n+")


class ExecutionError(Exception):
    """A notebook did not run to its end; the message names the code cell, from 1.

    Attributes:
        traceback: The whole error, if there is one.
    """

    traceback = ""


# Executing ----------------------------------------------------------------------------


def execute(
    path: Path,
    out: Path,
    profile: str,
    on_cell: Callable[[int, int], None] = lambda k, n: None,
    failed: Path | None = None,
) -> NotebookNode:
    """Run all cells of a notebook and write it with its outputs and hashes.

    Args:
        path: The notebook.
        out: Where the executed copy goes; may be the notebook itself.
        profile: quick, cpu, or gpu.
        on_cell: Called before each code cell with its number, from 1, and the total.
        failed: Where the partly executed copy goes after an error; default: `out`.

    Raises:
        ExecutionError: If a cell fails or the kernel dies.
        ValueError: If the file is not a notebook.
    """
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        _run_cells(notebook, path.name, profile, on_cell)
    except BaseException:
        # After Ctrl-C, Python would warn on exit about nbclient's unfinished work.
        warnings.filterwarnings("ignore", ".* was never awaited", RuntimeWarning)
        notebook.metadata.pop("roadseg", None)
        _finish(notebook, failed or out)
        raise
    notebook.metadata.roadseg = NotebookNode(
        cells=cells_hash(notebook), package=package_hash(), profile=profile
    )
    _finish(notebook, out)
    return notebook


def _run_cells(
    notebook: NotebookNode, name: str, profile: str, on_cell: Callable[[int, int], None]
) -> None:
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this Python's kernel, not the user's
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    client = NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        shutdown_kernel="immediate",
        extra_arguments=["--log-level=ERROR"],  # about the kernel's own transport
    )
    total, number = len(code_cells(notebook)), 0
    # Not client.execute(), whose handler of Ctrl-C ends in a traceback.
    with tempfile.TemporaryDirectory() as scratch:
        environment = _environment(profile, scratch)
        with client.setup_kernel(env=environment, cwd=str(NOTEBOOKS)):
            for i, cell in enumerate(notebook.cells):
                if cell.cell_type != "code" or not cell.source.strip():
                    continue
                number += 1
                on_cell(number, total)
                try:
                    client.execute_cell(cell, i, execution_count=number)
                except CellExecutionError as error:
                    reason, traceback = _reason(error), str(error)
                except DeadKernelError:
                    reason, traceback = "the kernel died (out of memory?)", ""
                else:
                    continue
                failure = ExecutionError(f"{name}, code cell {number}: {reason}")
                failure.traceback = traceback
                raise failure


def _environment(profile: str, scratch: str) -> dict[str, str]:
    """Return the environment of a kernel: no progress bars, no settings of IPython's.

    The user's own history and startup files have no influence.
    """
    course.make_paths_absolute()
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    return {
        **environment,
        "ROADSEG_PROFILE": profile,
        "ROADSEG_PROGRESS": "0",
        "IPYTHONDIR": scratch,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # ipykernel before version 7 warns
    }


def _reason(error: Exception) -> str:
    """Return an error in one line; for a bare `assert`, with its line of code."""
    lines = [x.strip() for x in error.evalue.splitlines() if x.strip()]
    if not lines:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)
        code = re.findall(r"(?m)^-+> \d+ +(.+)$", plain)
        return " in ".join([error.ename, *code[-1:]])
    text = " ... ".join(dict.fromkeys([lines[0], lines[-1]]))
    return f"{error.ename}: {text[:300]}"


def _finish(notebook: NotebookNode, out: Path) -> None:
    clean(notebook, out.name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = join_streams(cell.outputs)
    write(notebook, out)


def join_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join the pieces of a stream, without what a progress bar overwrote.

    nbclient's own `coalesce_streams` would also join what is printed before and after
    a figure.
    """
    kept: list[NotebookNode] = []
    for output in outputs:
        name = output.get("name") if output.output_type == "stream" else None
        if kept and name and kept[-1].get("name") == name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if "text" in output:
            text = output.text.replace("\r\n", "\n")
            text = re.sub(r"\x1b\[[0-9;]*[A-LSTfsu]", "", text)  # moves of the cursor
            output.text = re.sub(r"[^\n]*\r", "", text)
    return [o for o in kept if o.output_type != "stream" or o.text]


# Copies for a class -------------------------------------------------------------------


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of a notebook in which the solutions are left to the reader.

    Code cells tagged ``solution`` become a prompt, and so do folded blocks
    (``<details>``) whose summary says "Solution" or "Answer". Outputs between a
    "Predict" box and the next heading are cleared, and the Colab badge is removed,
    because it opens the full chapter. Everything else, other outputs included, stays.
    """
    copy, predicting = nbformat.from_dict(notebook), False
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"(?m)^#+ |^> \*\*Predict", cell.source)
            predicting = "Predict" in headings[-1] if headings else predicting
            cell.source = FOLDED_SOLUTION.sub("*Your answer:*", cell.source)
            cell.source = COLAB_BADGE.sub("", cell.source)
        elif "solution" in tags(cell):
            cell.source, cell.outputs = "# Your solution", []
            cell.execution_count, cell.metadata = None, NotebookNode()
        elif cell.cell_type == "code" and predicting:
            cell.outputs, cell.execution_count = [], None
    copy.metadata.pop("roadseg", None)  # its hashes are those of the full notebook
    return copy


# The command line ---------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("execute", help="run all cells and store the outputs")
    run.add_argument(
        "--profile",
        choices=("quick", "cpu", "gpu"),
        default=os.environ.get("ROADSEG_PROFILE", "cpu"),
        help="default: ROADSEG_PROFILE, or cpu",
    )
    where = run.add_mutually_exclusive_group(required=True)
    where.add_argument("--in-place", action="store_true", help="into the notebooks")
    copies = commands.add_parser("students", help="write copies without solutions")
    for command, group in ((run, where), (copies, copies)):
        command.add_argument("notebooks", nargs="*", type=Path, help="default: all")
        group.add_argument("--out", type=Path, help="into this folder")
    copies.set_defaults(out=ROOT / "build" / "students")
    options = parser.parse_args(arguments)
    try:
        for path in options.notebooks or chapters():
            start = time.monotonic()
            out = path if options.out is None else options.out / path.name
            if options.command == "students":
                write(without_solutions(read(path)), out)
            else:
                execute(path, out, options.profile, failed=FAILED / path.name)
            print(f"{out}: done in {time.monotonic() - start:.0f} s", flush=True)
    except ExecutionError as error:
        print(f"\n{error.traceback}\n{error}", file=sys.stderr)
        print(f"The partly executed copy: {FAILED / path.name}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"{path.name} {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the notebooks were not changed.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
