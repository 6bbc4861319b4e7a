"""Execute notebooks and store their outputs; bring scripts into notebooks and back.

    python scripts/notebooks.py execute notebooks/01_*.ipynb --in-place --profile cpu
    python scripts/notebooks.py execute --out build/trial        # all, into a folder
    python scripts/notebooks.py update draft.py notebooks/01_name.ipynb
    python scripts/notebooks.py to-script notebooks/01_name.ipynb draft.py

`execute` runs every cell in a fresh kernel of this Python, with `notebooks/` as its
folder, reduces the metadata to what readers and checks need, and stores two hashes:
of the code cells, so that scripts/check_notebooks.py sees a cell that changed since it
ran, and of roadseg's code. `update` brings a percent script (jupytext) into a
notebook: cells keep their ids, and those that did not change keep their outputs.
"""

import argparse
import ast
import hashlib
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbformat import NotebookNode

if TYPE_CHECKING:
    from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PACKAGE = NOTEBOOKS / "roadseg"
FAILED = ROOT / "build" / "failed"

KERNELSPEC = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
LOCAL_FILES = (
    "ROADSEG_DATASET1",
    "ROADSEG_CAMVID_TEST",
    "ROADSEG_VGG16_BN",
    "ROADSEG_DATA",
    "ROADSEG_OUTPUT",
)
"""Settings that name a file or folder; a notebook runs in its own folder."""
QUIET_DEBUGGER = ("PYDEVD_DISABLE_FILE_VALIDATION", "1")
"""A setting: ipykernel before 7 says on stderr that it cannot be debugged."""


class ExecutionFailed(Exception):
    """A notebook did not run to its end, or wrote what must not be stored.

    Attributes:
        code_cell: Number of the code cell, from 1, as in ``In [4]``.
        reason: The last line of the error.
        traceback: The whole error, where there is one.
    """

    def __init__(self, path: Path, code_cell: int, reason: str, traceback: str = ""):
        """Compose the sentence from the notebook, the cell and the reason."""
        super().__init__(f"{path.name}, code cell {code_cell}: {reason}")
        self.code_cell = code_cell
        self.reason = reason
        self.traceback = traceback


# hashes ---------------------------------------------------------------------


def cells_hash(notebook: NotebookNode) -> str:
    """Return the SHA-256 of all code cells' source, in order."""
    digest = hashlib.sha256()
    for cell in code_cells(notebook):
        digest.update(cell.source.encode() + b"\0")
    return digest.hexdigest()


def package_hash(folder: Path | None = None) -> str:
    """Return the SHA-256 of a package's code, docstrings, comments and layout aside.

    It is taken from the syntax tree, node by node, rather than from `ast.unparse`
    or `ast.dump`, whose text differs between versions of Python. Without a folder
    it is that of roadseg.
    """
    folder = folder or PACKAGE
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{_plain(tree)}\0".encode())
    return digest.hexdigest()


def _plain(node: object) -> str:
    """Write a syntax tree as text, without strings that stand as statements."""
    if isinstance(node, list):
        return "[" + ",".join(_plain(x) for x in node if not _is_string(x)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(k, v) for k, v in ast.iter_fields(node) if v not in (None, [])]
    inside = ",".join(f"{name}={_plain(value)}" for name, value in fields)
    return f"{type(node).__name__}({inside})"


def _is_string(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


# reading, cleaning, writing ---------------------------------------------------


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that run, in order: those with something in them."""
    cells = notebook.cells
    return [c for c in cells if c.cell_type == "code" and c.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def read(path: Path) -> NotebookNode:
    """Read a notebook, as format 4.5.

    Raises:
        ValueError: If the file is not a notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (UnicodeDecodeError, nbformat.reader.NotJSONError, KeyError) as error:
        first = str(error).splitlines()[0][:80]
        raise ValueError(f"{path} is not a notebook: {first}") from None
    if notebook.nbformat_minor < 5:  # cells without ids
        notebook = nbformat.v4.upgrade(notebook, 4, notebook.nbformat_minor)
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook at once or not at all: an interruption leaves the old file."""
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
    """Reduce a notebook, in place, to what readers and checks need.

    Metadata: the kernel, the language's name and what this script stored; of
    cells, their tags. Outputs: what a progress bar overwrote is gone, and the
    pieces of one stream are one.
    """
    stored = notebook.metadata.get("roadseg")
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNELSPEC), language_info=NotebookNode(name="python")
    )
    if stored:
        notebook.metadata.roadseg = stored
    for cell in notebook.cells:
        kept = tags(cell)
        cell.metadata = NotebookNode({"tags": kept} if kept else {})
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs)


def _clean_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        last = kept[-1] if kept else None
        if (
            output.output_type == "stream"
            and last is not None
            and last.output_type == "stream"
            and last.name == output.name
        ):
            last.text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = overwrite(output.text)
    return [o for o in kept if o.output_type != "stream" or o.text]


def overwrite(text: str) -> str:
    r"""Return what a terminal would show of a text with carriage returns.

    ``"1 of 2\r2 of 2\r      \rdone\n"`` gives ``"done\n"``.
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-LSTfsu]", "", text)  # moves of the cursor
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(_overwrite_line(x) if "\r" in x else x for x in lines)


def _overwrite_line(line: str) -> str:
    shown = ""
    for piece in line.split("\r"):
        shown = piece + shown[len(piece) :]
    return shown.rstrip()


# executing --------------------------------------------------------------------


def kernel_environment(profile: str | None = None) -> dict[str, str]:
    """Return the environment that a notebook runs in.

    As this process's, but without progress bars (they would stay in the outputs)
    and with paths made absolute, because a notebook runs in its own folder.

    Args:
        profile: quick, cpu or gpu; without it the environment or the device decides.
    """
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment["ROADSEG_PROGRESS"] = "0"
    environment.setdefault(*QUIET_DEBUGGER)
    if profile:
        environment["ROADSEG_PROFILE"] = profile
    for name in LOCAL_FILES:
        if environment.get(name):
            path = Path(environment[name]).expanduser()
            environment[name] = os.path.abspath(path)
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
        profile: quick, cpu or gpu; without it the environment or the device decides.
        strict: Whether output on stderr is refused.
        on_cell: Called before each code cell with its number, from 1, and how
            many there are.
        failed: Where the partly executed copy goes if a cell fails. Without it,
            to `out`.

    Raises:
        ExecutionFailed: If a cell fails, the kernel dies, or `strict` and a cell
            wrote to stderr. The partly executed copy is then at `failed`.
        ValueError: If the file is not a notebook.
    """
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        ran_in = _run_cells(notebook, path, kernel_environment(profile), on_cell)
        if strict:
            _refuse_stderr(notebook, path)
    except (ExecutionFailed, KeyboardInterrupt):
        # nbclient leaves what it was doing when Ctrl-C came, and Python would tell
        # of it in its last moment, beside our sentence
        warnings.filterwarnings("ignore", ".* was never awaited", RuntimeWarning)
        clean(notebook)
        write(notebook, failed or out)
        raise
    clean(notebook)
    notebook.metadata.roadseg = NotebookNode(
        cells=cells_hash(notebook),
        package=package_hash(),
        profile=ran_in,
    )
    write(notebook, out)
    return notebook


def _run_cells(
    notebook: NotebookNode,
    path: Path,
    environment: dict[str, str],
    on_cell: Callable[[int, int], None],
) -> str:
    """Run all cells, in place; return the profile that they ran in."""
    # Imported here: reading and checking notebooks should not wait for it.
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    total = len(code_cells(notebook))
    number = 0
    with tempfile.TemporaryDirectory() as scratch:
        # A history and start-up files of its own: the reader's stay out of it.
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
                    raise ExecutionFailed(
                        path, number, _reason(error), str(error)
                    ) from None
                except DeadKernelError:
                    reason = "the kernel died, most often because memory ran out"
                    raise ExecutionFailed(path, number, reason) from None
            return environment.get("ROADSEG_PROFILE") or _profile_of(client)


def _client(notebook: NotebookNode):
    """Return a client whose kernel is this very Python, whatever is registered."""
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
    client = NotebookClient(
        notebook, km=manager, timeout=None, record_timing=False, allow_errors=False
    )
    client.shutdown_kernel = "immediate"
    client.extra_arguments = ["--log-level=ERROR"]  # about its own transport
    client.owns_km = True  # so that the kernel ends with the last cell
    return client


def _reason(error: "CellExecutionError") -> str:
    """Return an error in a line; one without words, as of `assert`, with its code."""
    if error.evalue:
        return _one_line(f"{error.ename}: {error.evalue}")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)
    code = re.findall(r"^-+> \d+ +(.+)$", plain, re.MULTILINE)
    return _one_line(f"{error.ename} in {code[-1]}" if code else error.ename)


def _one_line(text: str, length: int = 300) -> str:
    """Return the first line of an error, and its last if it has several."""
    lines = [x.strip() for x in text.strip().splitlines() if x.strip()]
    words = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    return words if len(words) <= length else words[: length - 3] + "..."


def _refuse_stderr(notebook: NotebookNode, path: Path) -> None:
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                reason = f"wrote to stderr: {_one_line(output.text)}"
                raise ExecutionFailed(path, number, reason, output.text)


def _profile_of(client) -> str:
    """Ask a running kernel which profile it is in; empty if roadseg cannot say."""
    question = "__import__('roadseg.runtime').runtime.profile().name"
    asked = client.kc.execute("", silent=True, user_expressions={"name": question})
    answer = client.wait_for_reply(asked)["content"]["user_expressions"]["name"]
    return ast.literal_eval(answer["data"]["text/plain"]) if "data" in answer else ""


def chapters() -> list[Path]:
    """Return the chapters' notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


# scripts and notebooks --------------------------------------------------------


def update(script: Path, path: Path) -> tuple[int, int]:
    """Bring a percent script into a notebook, which is made if it is not there.

    Cells that are in both keep their ids; code cells whose source did not change
    keep their outputs; new cells get an id that follows from their text.

    Returns:
        How many code cells kept their outputs, and how many code cells there are.
    """
    import jupytext
    from jupytext.combine import combine_inputs_with_outputs

    new = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    new.nbformat, new.nbformat_minor = 4, 5
    old_sources: dict[str, str] = {}
    if path.exists():
        old = read(path)
        old_sources = {cell.id: cell.source for cell in old.cells}
        stored = old.metadata.get("roadseg")
        new = combine_inputs_with_outputs(new, old, fmt="py:percent")
        if stored:
            new.metadata.roadseg = stored
    _name_new_cells(new, set(old_sources))
    kept = 0
    for cell in code_cells(new):
        if old_sources.get(cell.id) != cell.source:
            cell.outputs, cell.execution_count = [], None
        kept += bool(cell.execution_count)
    clean(new)
    nbformat.validate(new)
    write(new, path)
    return kept, len(code_cells(new))


def _name_new_cells(notebook: NotebookNode, known: set[str]) -> None:
    """Replace the random ids of new cells by ids that follow from their text."""
    taken = {cell.get("id") for cell in notebook.cells} & known
    for cell in notebook.cells:
        if cell.get("id") in known:
            continue
        text, n = f"{cell.cell_type}\0{cell.source}", 0
        while (
            name := hashlib.sha256(f"{text}\0{n}".encode()).hexdigest()[:8]
        ) in taken:
            n += 1
        cell["id"] = name
        taken.add(name)


def to_script(path: Path, script: Path) -> None:
    """Write a notebook's cells, without outputs, as a percent script."""
    import jupytext

    notebook = read(path)
    notebook.metadata = NotebookNode(
        jupytext=NotebookNode(notebook_metadata_filter="-all")
    )
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(jupytext.writes(notebook, fmt="py:percent"), encoding="utf-8")


# the command line -------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "execute":
            return _execute_all(options)
        if options.command == "update":
            kept, total = update(options.script, options.notebook)
            print(f"{options.notebook}: {kept} of {total} code cells keep their output")
        else:
            to_script(options.notebook, options.script)
            print(f"{options.script}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped: nothing that was there has changed.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("execute", help="run all cells and store the outputs")
    run.add_argument("notebooks", nargs="*", type=Path, help="default: all chapters")
    run.add_argument("--profile", choices=("quick", "cpu", "gpu"))
    where = run.add_mutually_exclusive_group(required=True)
    where.add_argument("--in-place", action="store_true", help="into the notebooks")
    where.add_argument("--out", type=Path, help="into this folder")
    new = commands.add_parser("update", help="bring a percent script into a notebook")
    new.add_argument("script", type=Path)
    new.add_argument("notebook", type=Path)
    back = commands.add_parser("to-script", help="write a notebook as a percent script")
    back.add_argument("notebook", type=Path)
    back.add_argument("script", type=Path)
    return parser


def _execute_all(options: argparse.Namespace) -> int:
    for path in options.notebooks or chapters():
        out = path if options.in_place else options.out / path.name
        failed = FAILED / path.name
        start = time.monotonic()

        def show(k: int, n: int, name: str = path.name, start: float = start) -> None:
            if sys.stdout.isatty():
                seconds = time.monotonic() - start
                print(
                    f"\r{name}: cell {k} of {n}, {seconds:.0f} s ", end="", flush=True
                )

        try:
            execute(path, out, options.profile, options.in_place, show, failed)
        except ExecutionFailed as error:
            print(f"\n{error.traceback}" if error.traceback else "", file=sys.stderr)
            print(f"{error}\nAs far as it came: {failed}", file=sys.stderr)
            return 1
        print(f"\r{path.name}: done in {time.monotonic() - start:.0f} s, {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
