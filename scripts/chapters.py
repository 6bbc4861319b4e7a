"""What a chapter is: its notebook, its metadata, its hashes, and its numbers."""

import ast
import hashlib
import os
import re
import statistics
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PACKAGE = NOTEBOOKS / "roadseg"

GPU = ("04", "05", "06")
"""The chapters for which Colab and Kaggle should offer a GPU."""
KERNELSPEC = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
CELL_METADATA = ("tags", "jupyter", "cellView")
"""What a cell's metadata may hold: its tags, and whether Jupyter and Colab fold it."""
UNCOMPARED = {"nbval-ignore-output", "nbval-skip"}
"""Tags of the cells whose outputs nbval does not compare."""
REPOSITORY_URL = re.compile(
    r'(?m)^(\s*url = "https://github\.com/)[\w.-]+/[\w.-]+(?=")'
)
"""The line of the setup cell that holds the repository's address."""


# Reading and writing ------------------------------------------------------------------


def chapters() -> list[Path]:
    """Return the paths of the chapters' notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def read(path: Path) -> NotebookNode:
    """Read a notebook; cells of an old format get ids.

    Raises:
        ValueError: If the file is missing or not a valid notebook.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", nbformat.warnings.DuplicateCellId)
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except (
        *(UnicodeDecodeError, KeyError, AttributeError, FutureWarning),
        *(nbformat.reader.NotJSONError, nbformat.ValidationError),
    ) as error:
        reason = quote(str(error).splitlines()[0], 100)
        raise ValueError(f"is not a valid notebook: {reason}") from None
    if notebook.nbformat_minor < 5:
        notebook = nbformat.v4.upgrade(notebook, 4, notebook.nbformat_minor)
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in one step, so that an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.part")
    try:
        nbformat.write(notebook, draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def clean(notebook: NotebookNode, name: str) -> None:
    """Reduce metadata, in place, to what readers, Colab, Kaggle, and checks need."""
    stored = {k: v for k, v in notebook.metadata.items() if k == "roadseg"}
    notebook.metadata = nbformat.from_dict({**metadata(name), **stored})
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in CELL_METADATA and v}
        cell.metadata = NotebookNode(kept)
        cell.pop("attachments", None)


def metadata(name: str) -> dict:
    """Return the metadata of a notebook by its file name, without its hashes.

    The keys are those that Colab and Kaggle write themselves. With them, both offer a
    T4 for the chapters that want a GPU, and Kaggle lets all of them use the network.
    """
    gpu = name[:2] in GPU
    kaggle = {
        "accelerator": "nvidiaTeslaT4" if gpu else "none",
        "dataSources": [],
        "isGpuEnabled": gpu,
        "isInternetEnabled": True,
        "language": "python",
        "sourceType": "notebook",
    }
    colab = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}
    common = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    return {**common, "kaggle": kaggle, **(colab if gpu else {})}


# Hashes -------------------------------------------------------------------------------


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

    It is computed from the nodes of the syntax tree, because the text that
    `ast.unparse` and `ast.dump` return depends on the version of Python.

    Args:
        folder: The package; default: roadseg.
    """
    folder = folder or PACKAGE
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        statements = [n for n in nodes if isinstance(n, ast.Expr)]
        strings = [n for n in statements if isinstance(n.value, ast.Constant)]
        left_out = {*strings, *(n.value for n in strings)}
        for node in nodes:
            values = [value for _, value in ast.iter_fields(node)]
            leaves = [x for x in values if not isinstance(x, ast.AST | list | None)]
            if node not in left_out:
                digest.update(f"{type(node).__name__}{leaves}\0".encode())
    return digest.hexdigest()


# Parts and numbers --------------------------------------------------------------------


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that run, in order: those that are not empty."""
    cells = notebook.cells
    return [c for c in cells if c.cell_type == "code" and c.source.strip()]


def tags(cell: NotebookNode) -> set[str]:
    """Return a cell's tags."""
    return set(cell.metadata.get("tags", []))


@dataclass
class Chapter:
    """A notebook with its parts, each with the number of its cell, counted from 1."""

    path: Path
    nb: NotebookNode = field(repr=False)

    @cached_property
    def code(self) -> list[tuple[int, NotebookNode]]:
        """The code cells that run."""
        running = {id(c) for c in code_cells(self.nb)}
        return [(i, c) for i, c in enumerate(self.nb.cells, 1) if id(c) in running]

    @cached_property
    def text(self) -> list[tuple[int, str]]:
        """The source of the text cells without fenced code."""
        fence = re.compile(r"(?ms)^(\s*```+)(\S*).*?^\s*```+\s*$")
        return [
            (i, fence.sub(r"\1\2\n\1", c.source))
            for i, c in enumerate(self.nb.cells, 1)
            if c.cell_type == "markdown"
        ]

    @cached_property
    def outputs(self) -> list[tuple[int, NotebookNode]]:
        """All outputs."""
        return [(i, output) for i, cell in self.code for output in cell.outputs]

    @property
    def number(self) -> str:
        """The two digits that the file's name begins with, or nothing."""
        match = re.match(r"\d\d(?=_)", self.path.name)
        return match.group() if match else ""

    @property
    def stored(self) -> dict:
        """What scripts/notebooks.py stored in the metadata."""
        return self.nb.metadata.get("roadseg", {})


def prose(text: str) -> str:
    """Return the words of Markdown: no code, formulas, tags, or addresses."""
    text = re.sub(r"(?ms)^\s*```+.*?^\s*```+\s*$", " ", text)
    text = re.sub(r"(?s)<!--.*?-->|\$\$.*?\$\$|</?[a-zA-Z][^>]*>", " ", text)
    text = re.sub(r"\$[^$\n]+\$|https?://\S+", " ", re.sub(r"\]\([^)]*\)", "] ", text))
    return " ".join(w for w in text.split() if re.search(r"[^\W_]", w))


def quote(text: str, length: int = 60) -> str:
    """Return a text in quotes, shortened."""
    words = " ".join(text.split())
    return repr(words if len(words) <= length else words[: length - 3] + "...")


def measure(chapter: Chapter) -> dict[str, float]:
    """Return a notebook's numbers by name; we/you, ; and images are per 1,000 words."""
    shown = [cell for _, cell in chapter.code if cell.outputs]
    lines = [sum(map(bool, c.source.split("\n"))) for _, c in chapter.code]
    cells = [c for c in chapter.nb.cells if c.source.strip()]
    text = " ".join(prose(c.source) for c in cells if c.cell_type == "markdown")
    words = len(text.split())
    images = sum("image/" in " ".join(o.get("data", {})) for _, o in chapter.outputs)
    bare = sum(
        a.cell_type == b.cell_type == "code"
        for a, b in zip(cells, cells[1:], strict=False)
    )
    persons = len(re.findall(r"(?i)\b(?:we|us|our|ours|you|your|yours)\b", text))
    compared = sum(not tags(cell) & UNCOMPARED for cell in shown)
    return {
        "words": words,
        "we/you": round(1000 * persons / max(1, words), 1),
        ";": round(1000 * text.count(";") / max(1, words), 1),
        "images": round(1000 * images / max(1, words), 1),
        "cells": len(chapter.code),
        "bare": round(bare / max(1, len(chapter.code)), 2),
        "median": statistics.median(lines) if lines else 0,
        "compared": round(compared / len(shown), 2) if shown else 1,
        "MB": round(chapter.path.stat().st_size / 1e6, 2),
    }
