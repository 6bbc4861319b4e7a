"""Execute the notebooks and store their outputs; write copies without solutions.

    python scripts/notebooks.py execute notebooks/01_*.ipynb --in-place --profile cpu
    python scripts/notebooks.py execute --out build/trial       # all, into a folder
    python scripts/notebooks.py students --out build/students   # without solutions

`execute` runs every cell in a fresh kernel of this Python, with `notebooks/` as the
working directory. It reduces the metadata to what readers and checks need and stores
two hashes: one of the code cells, so that check_notebooks.py can tell when a cell
changed after it ran, and one of the package's code.

To edit a notebook as a script, use jupytext. Cells keep their ids, and cells that
you don't change keep their outputs:

    jupytext --to py:percent -o draft.py notebooks/01_name.ipynb
    jupytext --update --to ipynb -o notebooks/01_name.ipynb draft.py
"""

import argparse
import ast
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PACKAGE = NOTEBOOKS / "roadseg"
FAILED = ROOT / "build" / "failed"

KERNELSPEC = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
NOTEBOOK_METADATA = ("roadseg", "accelerator", "colab", "kaggle")
"""What a notebook's metadata may hold besides the kernel and the language."""
CELL_METADATA = ("tags", "jupyter", "cellView")
"""What a cell's metadata may hold: its tags, and whether Jupyter and Colab fold it."""
PATH_SETTINGS = (
    "ROADSEG_DATASET1",
    "ROADSEG_CAMVID_TEST",
    "ROADSEG_VGG16_BN",
    "ROADSEG_DATA",
    "ROADSEG_OUTPUT",
)
QUIET_DEBUGGER = ("PYDEVD_DISABLE_FILE_VALIDATION", "1")
"""A setting: without it, ipykernel before version 7 warns on stderr."""
REPOSITORY_URL = re.compile(
    r'(?m)^(\s*url = "https://github\.com/)[\w.-]+/[\w.-]+(?=")'
)
"""The line of the setup cell that holds the repository's address."""
FOLDED_SOLUTION = re.compile(
    r"<details>\s*<summary>[^<]*\b(?:Solution|Answer)s?\b.*?</details>",
    re.DOTALL | re.IGNORECASE,
)


class ExecutionError(Exception):
    """A notebook did not run to its end, or wrote what must not be stored.

    Attributes:
        traceback: The whole error, if there is one.
    """

    def __init__(self, path: Path, code_cell: int, reason: str, traceback: str = ""):
        """Compose the message from the notebook, the code cell (from 1), the reason."""
        super().__init__(f"{path.name}, code cell {code_cell}: {reason}")
        self.traceback = traceback


# Hashes -----------------------------------------------------------------------


def cells_hash(notebook: NotebookNode) -> str:
    """Return the SHA-256 of the code cells' sources, in order.

    The repository's address in the setup cell does not count, so that a copy of the
    course under another address has the same hashes.
    """
    digest = hashlib.sha256()
    for cell in code_cells(notebook):
        source = REPOSITORY_URL.sub(r"\1" + "OWNER" + "/NAME", cell.source)
        digest.update(source.encode() + b"\0")
    return digest.hexdigest()


def package_hash(folder: Path | None = None) -> str:
    """Return the SHA-256 of a package's code without docstrings and comments.

    It is computed from the syntax tree, node by node, because the text that
    `ast.unparse` and `ast.dump` return depends on the version of Python.

    Args:
        folder: The package; default: roadseg.
    """
    folder = folder or PACKAGE
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{_plain(tree)}\0".encode())
    return digest.hexdigest()


def _plain(node: object) -> str:
    """Write a syntax tree as text, without strings that are statements."""
    if isinstance(node, list):
        return "[" + ",".join(_plain(x) for x in node if not _is_string(x)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(k, v) for k, v in ast.iter_fields(node) if v not in (None, [])]
    inside = ",".join(f"{name}={_plain(value)}" for name, value in fields)
    return f"{type(node).__name__}({inside})"


def _is_string(node: object) -> bool:
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


# Reading and writing ----------------------------------------------------------


def chapters() -> list[Path]:
    """Return the paths of the chapters' notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that run, in order: those that are not empty."""
    cells = notebook.cells
    return [c for c in cells if c.cell_type == "code" and c.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def read(path: Path) -> NotebookNode:
    """Read a notebook as format 4.5.

    Raises:
        ValueError: If the file is not a notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (UnicodeDecodeError, nbformat.reader.NotJSONError, KeyError) as error:
        first = str(error).splitlines()[0][:80]
        raise ValueError(f"{path} is not a notebook: {first}") from None
    if notebook.nbformat_minor < 5:  # its cells have no ids
        notebook = nbformat.v4.upgrade(notebook, 4, notebook.nbformat_minor)
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in one step, so that an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            nbformat.write(notebook, file)
        os.chmod(name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def clean(notebook: NotebookNode) -> None:
    """Reduce a notebook, in place, to what readers and checks need."""
    kept = {k: v for k, v in notebook.metadata.items() if k in NOTEBOOK_METADATA}
    notebook.metadata = NotebookNode(
        kernelspec=KERNELSPEC, language_info={"name": "python"}, **kept
    )
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in CELL_METADATA and v}
        cell.metadata = NotebookNode(kept)
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)


def _join_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join the pieces of a stream, without what a progress bar overwrote."""
    kept: list[NotebookNode] = []
    for output in outputs:
        name = output.get("name") if output.output_type == "stream" else None
        if kept and name and kept[-1].get("name") == name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if "text" in output:
            output.text = overwrite(output.text)
    return [o for o in kept if o.output_type != "stream" or o.text]


def overwrite(text: str) -> str:
    r"""Drop what a terminal overwrites: ``"1 of 2\r2 of 2\n"`` gives ``"2 of 2\n"``."""
    text = re.sub(r"\x1b\[[0-9;]*[A-LSTfsu]", "", text)  # moves of the cursor
    return re.sub(r"[^\n]*\r", "", text.replace("\r\n", "\n"))


# Executing --------------------------------------------------------------------


def kernel_environment(profile: str | None = None) -> dict[str, str]:
    """Return the environment for a kernel: no progress bars, absolute paths."""
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment["ROADSEG_PROGRESS"] = "0"
    environment.setdefault(*QUIET_DEBUGGER)
    if profile:
        environment["ROADSEG_PROFILE"] = profile
    for name in PATH_SETTINGS:
        if environment.get(name):
            path = Path(environment[name]).expanduser()
            environment[name] = os.path.abspath(path)
    if not environment.get("ROADSEG_PROFILE"):  # the device decides
        code = "from roadseg import runtime; print(runtime.profile().name)"
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=NOTEBOOKS, env=environment, stdout=subprocess.PIPE, text=True
        )
        if name := done.stdout.strip():
            environment["ROADSEG_PROFILE"] = name
    return environment


def execute(
    path: Path,
    out: Path,
    profile: str | None = None,
    strict: bool = False,
    on_cell: Callable[[int, int], None] = lambda k, n: None,
    failed: Path | None = None,
) -> NotebookNode:
    """Run all cells of a notebook and write it with its outputs and hashes.

    Args:
        path: The notebook.
        out: Where the executed copy goes; may be the notebook itself.
        profile: quick, cpu, or gpu; default: the environment's or the device's.
        strict: Whether output on stderr is an error.
        on_cell: Called before each code cell with its number, from 1, and the total.
        failed: Where the partly executed copy goes after an error; default: `out`.

    Raises:
        ExecutionError: If a cell fails, the kernel dies, or `strict` and a cell
            wrote to stderr.
        ValueError: If the file is not a notebook.
    """
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    environment = kernel_environment(profile)
    try:
        _run_cells(notebook, path, environment, on_cell)
        if strict:
            _refuse_stderr(notebook, path)
    except (ExecutionError, KeyboardInterrupt):
        # After Ctrl-C, Python would warn on exit about nbclient's unfinished work.
        warnings.filterwarnings("ignore", ".* was never awaited", RuntimeWarning)
        clean(notebook)
        notebook.metadata.pop("roadseg", None)
        write(notebook, failed or out)
        raise
    clean(notebook)
    notebook.metadata.roadseg = NotebookNode(
        cells=cells_hash(notebook),
        package=package_hash(),
        profile=environment.get("ROADSEG_PROFILE", ""),
    )
    write(notebook, out)
    return notebook


def _run_cells(
    notebook: NotebookNode,
    path: Path,
    environment: dict[str, str],
    on_cell: Callable[[int, int], None],
) -> None:
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    total, number = len(code_cells(notebook)), 0
    with tempfile.TemporaryDirectory() as scratch:
        # The user's own history and startup files have no influence.
        environment = {**environment, "IPYTHONDIR": scratch}
        client = _client(notebook)
        with client.setup_kernel(env=environment, cwd=str(NOTEBOOKS)):
            for i, cell in enumerate(notebook.cells):
                if cell.cell_type != "code" or not cell.source.strip():
                    continue
                number += 1
                on_cell(number, total)
                try:
                    client.execute_cell(cell, i, execution_count=number)
                except CellExecutionError as error:
                    reason = _reason(error)
                    raise ExecutionError(path, number, reason, str(error)) from None
                except DeadKernelError:
                    reason = "the kernel died, most often because memory ran out"
                    raise ExecutionError(path, number, reason) from None


def _client(notebook: NotebookNode):
    """Return a client whose kernel is this Python, whichever kernels are registered."""
    os.environ.setdefault(*QUIET_DEBUGGER)
    import ipykernel.kernelspec
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(**ipykernel.kernelspec.get_kernel_dict())

    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=ThisPython()
    )
    client = NotebookClient(notebook, km=manager, timeout=None, record_timing=False)
    client.shutdown_kernel = "immediate"
    client.extra_arguments = ["--log-level=ERROR"]  # about the kernel's own transport
    client.owns_km = True  # so that the kernel ends after the last cell
    return client


def _reason(error: Exception) -> str:
    """Return an error in one line; for a bare `assert`, with its line of code."""
    if error.evalue:
        return _one_line(f"{error.ename}: {error.evalue}")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)
    code = re.findall(r"^-+> \d+ +(.+)$", plain, re.MULTILINE)
    return _one_line(f"{error.ename} in {code[-1]}" if code else error.ename)


def _one_line(text: str, length: int = 300) -> str:
    lines = [x.strip() for x in text.strip().splitlines() if x.strip()]
    words = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    return words if len(words) <= length else words[: length - 3] + "..."


def _refuse_stderr(notebook: NotebookNode, path: Path) -> None:
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                reason = f"wrote to stderr: {_one_line(output.text)}"
                raise ExecutionError(path, number, reason, output.text)


# Copies for a class -----------------------------------------------------------


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of a notebook in which the solutions are left to the reader.

    Code cells tagged ``solution`` become a prompt, and so do folded blocks
    (``<details>``) whose summary says "Solution" or "Answer". Everything else,
    outputs included, stays.
    """
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = FOLDED_SOLUTION.sub("*Your answer:*", cell.source)
        elif "solution" in tags(cell):
            cell.source, cell.outputs = "# Your solution", []
            cell.execution_count, cell.metadata = None, NotebookNode()
    copy.metadata.pop("roadseg", None)  # its hashes are those of the full notebook
    return copy


# The command line -------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("execute", help="run all cells and store the outputs")
    run.add_argument("--profile", choices=("quick", "cpu", "gpu"))
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
            if options.command == "students":
                write(without_solutions(read(path)), options.out / path.name)
                print(options.out / path.name)
            else:
                _execute_one(path, options)
    except ExecutionError as error:
        print(f"\n{error.traceback}\n{error}", file=sys.stderr)
        print(f"The partly executed copy: {FAILED / path.name}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the notebooks were not changed.", file=sys.stderr)
        return 130
    return 0


def _execute_one(path: Path, options: argparse.Namespace) -> None:
    out = path if options.in_place else options.out / path.name
    start = time.monotonic()

    def show(k: int, n: int) -> None:
        if sys.stdout.isatty():
            seconds = time.monotonic() - start
            print(f"\r{path.name}: cell {k} of {n}, {seconds:.0f} s ", end="")
            sys.stdout.flush()

    execute(path, out, options.profile, options.in_place, show, FAILED / path.name)
    print(f"\r{path.name}: done in {time.monotonic() - start:.0f} s, {out}")


if __name__ == "__main__":
    sys.exit(main())
