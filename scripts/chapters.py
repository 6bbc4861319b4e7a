"""A chapter's notebook, read without repairing anything, and its numbers."""

import json
import re
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from notebooks import code_cells, tags

UNCOMPARED = ("nbval-ignore-output", "nbval-skip")
"""Tags of the cells whose outputs nbval does not compare."""


@dataclass
class Chapter:
    """A notebook that is being checked."""

    path: Path
    nb: NotebookNode = field(repr=False)

    @cached_property
    def code(self) -> list[tuple[int, NotebookNode]]:
        """The code cells that run, each with its number among all cells."""
        running = {id(c) for c in code_cells(self.nb)}
        return [(i, c) for i, c in enumerate(self.nb.cells, 1) if id(c) in running]

    @cached_property
    def text(self) -> list[tuple[int, str]]:
        """The source of the text cells without fenced code, with their numbers."""
        fence = re.compile(r"(?ms)^(\s*```+)(\S*).*?^\s*```+\s*$")
        cells = enumerate(self.nb.cells, 1)
        return [
            (i, fence.sub(r"\1\2\n\1", c.source))
            for i, c in cells
            if c.cell_type == "markdown"
        ]

    @cached_property
    def outputs(self) -> list[tuple[int, NotebookNode]]:
        """All outputs, each with the number of its cell."""
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


def output_text(output: NotebookNode) -> str:
    """Return the text of an output: a stream, or text and HTML of a display."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return "\n".join(data[m] for m in ("text/plain", "text/html") if m in data)


def quote(text: str, length: int = 60) -> str:
    """Return a text in quotes, shortened."""
    words = " ".join(text.split())
    return repr(words if len(words) <= length else words[: length - 3] + "...")


def load(path: Path) -> Chapter:
    """Read a notebook without repairing anything.

    Raises:
        ValueError: If the file does not exist or is not a valid notebook.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
        raw["cells"]
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"is not a notebook of format 4 ({error})") from None
    for error in nbformat.validator.iter_validate(raw):
        raise ValueError(f"is not a valid notebook: {quote(error.message, 100)}")
    return Chapter(path, nbformat.v4.reads_json(text))


def measure(chapter: Chapter) -> dict:
    """Return a notebook's numbers, by name; see the docstring of this file."""
    shown = [cell for _, cell in chapter.code if cell.outputs]
    compared = [cell for cell in shown if not set(tags(cell)) & set(UNCOMPARED)]
    lines = [
        sum(bool(x.strip()) for x in c.source.splitlines()) for _, c in chapter.code
    ]
    cells = [c for c in chapter.nb.cells if c.source.strip()]
    text = " ".join(prose(c.source) for c in cells if c.cell_type == "markdown")
    words = len(text.split())
    images = sum("image/" in " ".join(o.get("data", {})) for _, o in chapter.outputs)
    pairs = zip(cells, cells[1:], strict=False)
    bare = sum(a.cell_type == b.cell_type == "code" for a, b in pairs)
    persons = len(re.findall(r"(?i)\b(?:we|us|our|ours|you|your|yours)\b", text))
    per_1000 = 1000 / max(1, words)
    return {
        "words": words,
        "we/you": persons * per_1000,
        "semicolons": text.count(";") * per_1000,
        "images": images * per_1000,
        "cells": len(chapter.code),
        "bare": bare / max(1, len(chapter.code)),
        "median": statistics.median(lines) if lines else 0,
        "compared": len(compared) / len(shown) if shown else None,
        "MB": chapter.path.stat().st_size / 1e6,
        "profile": chapter.stored.get("profile", "-"),
    }


FORMATS = {
    "words": "{:,}",
    "we/you": "{:.1f}",
    "semicolons": "{:.1f}",
    "images": "{:.1f}",
    "bare": "{:.0%}",
    "median": "{:g}",
    "compared": "{:.0%}",
    "MB": "{:.2f}",
}


def report(chapters: list[Chapter]) -> str:
    """Return a table of the notebooks' numbers."""
    rows = []
    for chapter in chapters:
        numbers = measure(chapter)
        if not rows:
            rows.append(["notebook", *numbers])
        cells = [
            "-" if value is None else FORMATS.get(name, "{}").format(value)
            for name, value in numbers.items()
        ]
        rows.append([chapter.path.name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    )
