"""Check that the notebooks are complete, current and readable without running them.

    python scripts/check_notebooks.py                        # all chapters
    python scripts/check_notebooks.py notebooks/01_*.ipynb --report

One line per fault: notebook, cell, what is wrong, what to do. Cells are counted from 1,
text and code together; "In [4]" is the fourth code cell. Notes are printed but are no
faults. Exit status 1 if there is a fault.
"""

import argparse
import ast
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat
from nbformat import NotebookNode

import notebooks
import prose_numbers
from notebooks import code_cells, tags

# The limits, all in one place. -------------------------------------------------

WORDS = (2_000, 3_500)
"""Words of prose in a chapter's text cells."""
MEDIAN_LINES = 6
"""Median of the code cells' lines, blank ones aside."""
CELL_LINES = 25
"""Lines of a code cell; one cell in a notebook may carry LONG_CELL instead."""
LONG_CELL_LINES = 30
"""Lines of that one, blank ones aside."""
LINE_LENGTH = 75
"""Characters in a line of code: what a phone shows."""
BYTES = 3_000_000
"""Size of a notebook's file."""
COMPARED = {"01": 0.8, "02": 0.8, "": 0.5}
"""Share of the code cells with output whose output nbval compares, by chapter."""

SECTIONS = (
    "What you will learn",
    "Setup",
    "Exercises",
    "What we have learnt",
    "References",
)
"""Second-level headings that a chapter has, in this order."""
LONG_CELL = "long-cell"
UNCOMPARED = ("nbval-ignore-output", "nbval-skip")
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

MACHINE_PATH = re.compile(
    r"(?<![\w./~:-])/(?:work|root|home|tmp|var|opt|usr|Users|private|mnt)/[\w./-]*"
    r"|(?<!\w)[A-Z]:\\+(?:Users|Windows|Program|Temp)"
)
COLAB_PATH = re.compile(r"(?<![\w./~:-])/content/[\w./-]*")
MYST = re.compile(
    r"^\s*(?::::+|```+\{)|(?<![\w\\])\{[a-z][\w:.-]*\}`[^`]", re.MULTILINE
)
LINK = re.compile(r"(!?)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(\s*<?([^)\s>]+)")
HTML_SOURCE = re.compile(
    r"<(?:img|script|iframe|video)\b[^>]*?src\s*=\s*[\"']?([^\"'\s>]+)"
)
HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: in which cell (from 1), what, and what to do."""

    cell: int | None
    what: str
    remedy: str


@dataclass
class Book:
    """A notebook that is being checked."""

    path: Path
    raw: dict = field(repr=False)

    @cached_property
    def nb(self) -> NotebookNode:
        """The notebook, for cell by cell checks."""
        return nbformat.from_dict(self.raw)

    @cached_property
    def code(self) -> list[tuple[int, NotebookNode]]:
        """The code cells that run, each with its number among all cells."""
        running = {id(c) for c in code_cells(self.nb)}
        return [(i, c) for i, c in enumerate(self.nb.cells, 1) if id(c) in running]

    @cached_property
    def text(self) -> list[tuple[int, str]]:
        """The source of the text cells, fenced code aside, with their numbers."""
        cells = enumerate(self.nb.cells, 1)
        return [(i, unfenced(c.source)) for i, c in cells if c.cell_type == "markdown"]

    @cached_property
    def outputs(self) -> list[tuple[int, NotebookNode]]:
        """All outputs, each with the number of its cell."""
        return [(i, output) for i, cell in self.code for output in cell.outputs]

    @property
    def chapter(self) -> str:
        """The two digits that the file's name begins with, or nothing."""
        match = re.match(r"\d\d(?=_)", self.path.name)
        return match.group() if match else ""


def unfenced(text: str) -> str:
    """Return Markdown with fenced code blocks emptied, their fences kept."""
    return re.sub(r"(?ms)^(\s*```+)(\S*).*?^\s*```+\s*$", r"\1\2\n\1", text)


def prose_words(text: str) -> int:
    """Count the words a reader reads: no code blocks, formulas, tags or addresses."""
    text = re.sub(r"(?ms)^\s*```+.*?^\s*```+\s*$", " ", text)
    text = re.sub(r"(?s)<!--.*?-->|\$\$.*?\$\$|</?[a-zA-Z][^>]*>", " ", text)
    text = re.sub(r"\$[^$\n]+\$", " ", text)
    text = re.sub(r"\]\([^)]*\)", "] ", text)
    text = re.sub(r"https?://\S+", " ", text)
    return len([w for w in text.split() if re.search(r"[^\W_]", w)])


def plain_text(output: NotebookNode) -> str:
    """Return what an output says in words: a stream, or text and HTML of a display."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return "\n".join(data[m] for m in ("text/plain", "text/html") if m in data)


# The checks. ---------------------------------------------------------------------


def check_format(book: Book) -> Iterator[Fault]:
    """Format 4.5 with an id of its own for every cell, and no stray metadata."""
    version = (book.raw.get("nbformat"), book.raw.get("nbformat_minor"))
    if version != (4, 5):
        todo = "write it with scripts/notebooks.py execute --in-place"
        yield Fault(None, f"format {version[0]}.{version[1]}, not 4.5", todo)
        return
    seen: dict[str, int] = {}
    for i, cell in enumerate(book.nb.cells, 1):
        if (name := cell.get("id", "")) in seen:
            what = f"has the id {name!r} of cell {seen[name]}"
            yield Fault(i, what, "give it another id")
        seen[name] = i
        if extra := set(cell.metadata) - {"tags"}:
            what = f"has metadata beside tags: {', '.join(sorted(extra))}"
            yield Fault(i, what, "execute it with scripts/notebooks.py, which cleans")


def check_current(book: Book) -> Iterator[Fault]:
    """The code cells are those that ran, from first to last, on real data."""
    redo = "run scripts/notebooks.py execute --in-place --profile cpu"
    stored = book.nb.metadata.get("roadseg", {})
    if not stored.get("cells"):
        yield Fault(None, "stores no hash of its code cells", redo)
    elif stored["cells"] != notebooks.cells_hash(book.nb):
        yield Fault(None, "a code cell changed since the notebook ran", redo)
    if stored.get("profile") == "quick":
        yield Fault(None, "stores the outputs of the quick profile", redo)
    for k, (i, cell) in enumerate(book.code, 1):
        if cell.execution_count != k:
            what = f"ran as number {cell.execution_count}, should be {k}"
            yield Fault(i, what, redo)
            break


def check_outputs(book: Book) -> Iterator[Fault]:
    """No tracebacks, no stderr, no warnings, no paths of the machine."""
    for i, output in book.outputs:
        if output.output_type == "error":
            what = f"stores a traceback ({output.ename})"
            yield Fault(i, what, "catch the exception and print its message")
            continue
        text = plain_text(output)
        if output.output_type == "stream" and output.name == "stderr":
            what = f"writes to stderr: {_quote(text)}"
            yield Fault(i, what, "print to stdout or remove the cause")
        elif match := re.search(r"\b\w*Warning\b.*", text):
            yield Fault(i, f"shows a warning: {_quote(match[0])}", "remove its cause")
        if match := MACHINE_PATH.search(text) or COLAB_PATH.search(text):
            what = f"shows a path of one machine: {_quote(match[0])}"
            yield Fault(i, what, "print runtime.short(path)")


def check_sources(book: Book) -> Iterator[Fault]:
    """No paths of the machine, pyplot windows or hidden markers; nothing empty."""
    for i, cell in enumerate(book.nb.cells, 1):
        if match := MACHINE_PATH.search(cell.source):
            what = f"names a path of one machine: {_quote(match[0])}"
            yield Fault(i, what, "use runtime.data_dir() or runtime.output_dir()")
        if not cell.source.strip():
            yield Fault(i, "is empty", "remove it")
    for i, cell in book.code:
        if re.search(r"%matplotlib|\bplt\.show\(", cell.source):
            yield Fault(i, "shows figures its own way", "call plots.show(fig, alt=...)")
        if re.search(r"#\s*(?:NBVAL|PYTEST_VALIDATE)_", cell.source):
            yield Fault(i, "marks itself for nbval in a comment", "use a cell tag")


def check_size(book: Book) -> Iterator[Fault]:
    """The file is small enough for GitHub to show it."""
    size = book.path.stat().st_size
    if size >= BYTES:
        what = f"has {size / 1e6:.1f} MB, at most {BYTES / 1e6:.0f} are allowed"
        yield Fault(None, what, "show photos with plots.show(..., photo=True)")


def check_pictures(book: Book) -> Iterator[Fault]:
    """Every picture says in words what it shows, and comes with the notebook."""
    for i, output in book.outputs:
        data = output.get("data", {})
        for kind in [m for m in data if m.startswith("image/")]:
            alt = output.metadata.get(kind, {}).get("alt", "")
            text = data.get("text/plain", "")
            if not str(alt).strip() or not text.strip() or text.startswith("<Figure"):
                what = "has a picture without a text alternative"
                yield Fault(i, what, "call plots.show(fig, alt=...)")
        for address in HTML_SOURCE.findall(data.get("text/html", "")):
            if re.match(r"https?:|//", address):
                what = f"needs another site to be seen: {_quote(address)}"
                yield Fault(i, what, "put it into the output itself")
    for i, text in book.text:
        pictures = [where for mark, where in LINK.findall(text) if mark]
        pictures += re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text)
        pictures += HTML_SOURCE.findall(text)
        for address in dict.fromkeys(pictures):
            if address != BADGE and not address.startswith("data:"):
                what = f"shows a picture from elsewhere: {_quote(address)}"
                yield Fault(i, what, "draw it in a code cell, or link to its page")


def check_headings(book: Book) -> Iterator[Fault]:
    """One title, first; no level left out; the sections every chapter has."""
    found = [(i, len(m[1]), m[2]) for i, t in book.text for m in HEADING.finditer(t)]
    if not found:
        yield Fault(None, "has no headings", "begin with '# 1. Title'")
        return
    if found[0][1] != 1 or found[0][0] != 1:
        what = "the first cell does not begin with the title"
        yield Fault(found[0][0], what, "begin with '# 1. Title'")
    number = f"{int(book.chapter)}. " if book.chapter else ""
    if found[0][1] == 1 and not found[0][2].startswith(number):
        what = f"the title is {found[0][2]!r}"
        yield Fault(found[0][0], what, f"begin it with '{number.strip()}'")
    for (_, before, _), (i, level, title) in zip(found, found[1:], strict=False):
        if level == 1:
            yield Fault(i, f"second title {title!r}", "make it a section: ##")
        elif level > before + 1:
            what = f"{title!r} jumps from level {before} to {level}"
            yield Fault(i, what, f"use {'#' * (before + 1)}")
    yield from _check_sections([title for _, level, title in found if level == 2])


def _check_sections(titles: list[str]) -> Iterator[Fault]:
    missing = [s for s in SECTIONS if s not in titles]
    for section in missing:
        yield Fault(None, f"has no section {section!r}", f"add '## {section}'")
    order = [s for s in titles if s in SECTIONS]
    if not missing and order != list(SECTIONS):
        what = f"its sections stand in the order {', '.join(order)}"
        yield Fault(None, what, f"put them as: {', '.join(SECTIONS)}")


def check_badge(book: Book) -> Iterator[Fault]:
    """The first cell opens this very notebook in Colab."""
    first = book.nb.cells[0].source if book.nb.cells else ""
    where = "https://colab.research.google.com/github/"
    pattern = rf"\({re.escape(where)}[\w.-]+/[\w.-]+/blob/main/notebooks/([^)]+)\)"
    match = re.search(pattern, first)
    todo = f"link it to {where}OWNER/NAME/blob/main/notebooks/{book.path.name}"
    if not match or BADGE not in first:
        yield Fault(1, "has no Colab badge", todo)
    elif match[1] != book.path.name:
        yield Fault(1, f"its Colab badge opens {match[1]}", todo)


def check_setup(book: Book) -> Iterator[Fault]:
    """The setup cell, the first one of code, is the same in all notebooks."""
    if not book.code:
        yield Fault(None, "has no code cells", "add the setup cell")
        return
    siblings = sorted(book.path.resolve().parent.glob("[0-9][0-9]_*.ipynb"))
    if not siblings or siblings[0] == book.path.resolve():
        return
    try:
        reference = code_cells(notebooks.read(siblings[0]))
    except ValueError:
        return  # that notebook's own fault
    if reference and reference[0].source != book.code[0][1].source:
        what = f"the setup cell differs from that of {siblings[0].name}"
        yield Fault(book.code[0][0], what, "make the two identical")


def check_prose(book: Book) -> Iterator[Fault]:
    """Long enough to explain, short enough to be read."""
    words = measure(book)["words"]
    if not WORDS[0] <= words <= WORDS[1]:
        what = f"has {words:,} words of prose, not {WORDS[0]:,} to {WORDS[1]:,}"
        todo = "explain more" if words < WORDS[0] else "cut or move text"
        yield Fault(None, what, todo)


def check_numbers(book: Book) -> Iterator[Fault]:
    """Yield numbers of the text that no output or code beside them shows."""
    for i, number, around in prose_numbers.strays(book.nb, book.chapter):
        what = f"says {number}, and nothing in its section does: {_quote(around)}"
        yield Fault(i, what, "correct it, or source it in scripts/known_numbers.toml")


def check_markdown(book: Book) -> Iterator[Fault]:
    """Markdown that Colab and GitHub understand, links that work there."""
    for i, text in book.text:
        if match := MYST.search(text):
            what = f"uses MyST syntax: {_quote(match[0])}"
            yield Fault(i, what, "write plain Markdown: > **Note.** ...")
        for mark, address in LINK.findall(text):
            if not mark and not re.match(r"https?://|#|mailto:", address):
                what = f"has a relative link: {_quote(address)}"
                yield Fault(i, what, "link to https://github.com/OWNER/NAME/blob/main/")
            chapter = re.search(r"/blob/main/notebooks/([^/#]+\.ipynb)", address)
            if chapter and not (book.path.resolve().parent / chapter[1]).exists():
                what = f"links to a notebook that is not there: {chapter[1]}"
                yield Fault(i, what, "correct the name")


def check_cells(book: Book) -> Iterator[Fault]:
    """Small code cells with lines that a phone shows."""
    median = measure(book)["median"]
    if median > MEDIAN_LINES:
        what = f"its code cells have a median of {median:g} lines"
        yield Fault(None, what, f"split cells until it is {MEDIAN_LINES} or fewer")
    long_cells = [i for i, cell in book.code if LONG_CELL in tags(cell)]
    for i in long_cells[1:]:
        what = f"is the second one tagged {LONG_CELL}"
        yield Fault(i, what, "split it and remove the tag")
    for i, cell in book.code:
        lines = cell.source.splitlines()
        filled = _filled(cell)
        if i in long_cells and filled > LONG_CELL_LINES:
            what = f"has {filled} lines, the most is {LONG_CELL_LINES}"
            yield Fault(i, what, "split it or move plumbing into roadseg")
        elif i not in long_cells and len(lines) > CELL_LINES:
            what = f"has {len(lines)} lines, the most is {CELL_LINES}"
            yield Fault(i, what, "split it or move plumbing into roadseg")
        if wide := [x for x in lines if len(x) > LINE_LENGTH]:
            what = f"has {_count(len(wide), 'line')} over {LINE_LENGTH} characters"
            yield Fault(i, f"{what}: {_quote(wide[0])}", "wrap")


def check_compared(book: Book) -> Iterator[Fault]:
    """Enough outputs that nbval compares, and an assertion where it does not."""
    share = measure(book)["compared"]
    least = COMPARED.get(book.chapter, COMPARED[""])
    if share is not None and share < least:
        what = f"nbval compares {share:.0%} of the outputs, at least {least:.0%} wanted"
        yield Fault(None, what, "print what must hold everywhere, remove tags")
    for k, (i, cell) in enumerate(book.code):
        if k == 0 or "setup" in tags(cell) or not set(tags(cell)) & set(UNCOMPARED):
            continue
        near = [c for _, c in book.code[k : k + 3] if "nbval-skip" not in tags(c)]
        if not any(asserts(c.source) for c in near):
            what = "is not compared, and no assertion stands in it or the next two"
            yield Fault(i, what, "assert below it what must hold anyway")


def asserts(source: str) -> bool:
    """Return whether a cell asserts something that could be false."""
    lines = ["" if re.match(r"\s*[%!]", x) else x for x in source.splitlines()]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name.startswith("assert_"):
                return True
    return False


CHECKS = (
    check_format,
    check_current,
    check_outputs,
    check_sources,
    check_size,
    check_pictures,
    check_headings,
    check_badge,
    check_setup,
    check_prose,
    check_numbers,
    check_markdown,
    check_cells,
    check_compared,
)


# Measuring and reporting. ----------------------------------------------------------


def measure(book: Book) -> dict:
    """Return a notebook's numbers: words, code cells, median lines, share compared."""
    shown = [cell for _, cell in book.code if cell.outputs]
    compared = [cell for cell in shown if not set(tags(cell)) & set(UNCOMPARED)]
    lines = [_filled(cell) for _, cell in book.code]
    markdown = [c.source for c in book.nb.cells if c.cell_type == "markdown"]
    return {
        "words": sum(map(prose_words, markdown)),
        "cells": len(book.code),
        "median": statistics.median(lines) if lines else 0,
        "compared": len(compared) / len(shown) if shown else None,
        "bytes": book.path.stat().st_size,
        "profile": book.nb.metadata.get("roadseg", {}).get("profile", "-"),
    }


def _filled(cell: NotebookNode) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _quote(text: str, length: int = 60) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= length else words[: length - 3] + "...")


def load(path: Path) -> Book:
    """Read a notebook as it lies on the disk, repairing nothing.

    Raises:
        ValueError: If the file is not there or is no valid notebook.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        cells = raw["cells"]
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"is not a notebook of format 4 ({error})") from None
    for error in nbformat.validator.iter_validate(raw):
        raise ValueError(f"is not a valid notebook: {_quote(error.message, 100)}")
    for cell in cells:
        _join_lines(cell)
    return Book(path, raw)


def _join_lines(cell: dict) -> None:
    """Join the lists of lines that the file format stores texts as."""
    cell["source"] = "".join(cell.get("source", ""))
    for output in cell.get("outputs", []):
        if "text" in output:
            output["text"] = "".join(output["text"])
        for kind, value in output.get("data", {}).items():
            if isinstance(value, list) and all(isinstance(x, str) for x in value):
                output["data"][kind] = "".join(value)


def faults(book: Book) -> list[Fault]:
    """Return all that is wrong with a notebook, from its first cell on."""
    found = [fault for check in CHECKS for fault in check(book)]
    return sorted(found, key=lambda fault: fault.cell or 0)


def notes(book: Book) -> list[str]:
    """Return what is worth knowing but no fault."""
    stored = book.nb.metadata.get("roadseg", {}).get("package")
    if stored and stored != notebooks.package_hash():
        return ["roadseg's code changed since the notebook ran; execute it again soon"]
    return []


def _where(book: Book, cell: int | None) -> str:
    if cell is None:
        return ""
    numbers = [i for i, _ in book.code]
    code = f" (In [{numbers.index(cell) + 1}])" if cell in numbers else ""
    return f" cell {cell}{code}:"


def _shown_path(path: Path) -> str:
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def report(books: Iterable[Book]) -> str:
    """Return a table of the notebooks' numbers."""
    rows = [("notebook", "words", "cells", "lines", "compared", "MB", "profile")]
    for book in books:
        n = measure(book)
        share = "-" if n["compared"] is None else f"{n['compared']:.0%}"
        numbers = (f"{n['words']:,}", str(n["cells"]), f"{n['median']:g}", share)
        size = f"{n['bytes'] / 1e6:.2f}"
        rows.append((book.path.name, *numbers, size, n["profile"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if k else cell.ljust(w)
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    """Check the notebooks that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all chapters")
    parser.add_argument("--report", action="store_true", help="print their numbers too")
    options = parser.parse_args(arguments)
    paths = options.notebooks or notebooks.chapters()
    if not paths:
        print("there are no notebooks in notebooks/")
        return 1
    books, count = [], 0
    for path in paths:
        try:
            book = load(path)
        except ValueError as error:
            print(f"{_shown_path(path)}: {error}")
            count += 1
            continue
        books.append(book)
        found = faults(book)
        count += len(found)
        for fault in found:
            where = _where(book, fault.cell)
            print(f"{_shown_path(path)}:{where} {fault.what}; {fault.remedy}")
        for note in notes(book):
            print(f"{_shown_path(path)}: note: {note}")
    if options.report:
        print(report(books))
    print(f"{_count(len(paths), 'notebook')} checked, {_count(count, 'fault')}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
