"""Check that the notebooks are complete, current, and readable, without running them.

    python scripts/check_notebooks.py                        # all chapters
    python scripts/check_notebooks.py notebooks/01_*.ipynb --report

One line for each violation: notebook, cell, what is wrong, what to do. Cells are
counted from 1, text and code together; "In [4]" is the fourth code cell. Notes are
not violations. The exit status is 1 if there are violations. --report adds a table
of each notebook's size and style: we/you, semicolons, and images are per 1,000 words,
and "bare" is the share of code cells that follow another without text between.
"""

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import notebooks
import prose_numbers
from chapters import (
    UNCOMPARED,
    Chapter,
    load,
    measure,
    output_text,
    quote,
    report,
)
from notebooks import code_cells, tags

# The limits, all in one place. -------------------------------------------------

WORDS = (2_000, 5_100)
"""Words of prose in a chapter's text cells."""
MEDIAN_LINES = 6
"""Median of the code cells' lines, without blank ones."""
CELL_LINES = 25
"""Lines of a code cell; one cell in a notebook may be tagged LONG_CELL instead."""
LONG_CELL_LINES = 30
"""Lines of that one, without blank ones."""
LINE_LENGTH = 75
"""Characters in a line of code: what a phone shows."""
BYTES = 3_000_000
"""Size of a notebook's file."""
COMPARED = {"01": 0.8, "02": 0.8, "": 0.5}
"""Share of the code cells with output whose output nbval compares, by chapter."""

SECTIONS = (
    ("What you will learn",),
    ("Setup",),
    ("What we learned", "What we have learned", "Summary"),
    ("Exercises",),
    ("References",),
)
"""Second-level headings, with alternatives, that every chapter has, in any order."""
LONG_CELL = "long-cell"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

LOCAL_PATH = re.compile(
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
class Violation:
    """One thing that is wrong: in which cell (from 1), what, and what to do."""

    cell: int | None
    what: str
    remedy: str


# The checks. ---------------------------------------------------------------------


def check_format(chapter: Chapter) -> Iterator[Violation]:
    """Format 4.5 with a different id for every cell, and no stray metadata."""
    nb = chapter.nb
    if (nb.nbformat, nb.nbformat_minor) != (4, 5):
        todo = "write it with scripts/notebooks.py execute --in-place"
        what = f"is in format {nb.nbformat}.{nb.nbformat_minor}, not 4.5"
        yield Violation(None, what, todo)
        return
    seen: dict[str, int] = {}
    for i, cell in enumerate(nb.cells, 1):
        if (name := cell.get("id", "")) in seen:
            what = f"has the id {name!r} of cell {seen[name]}"
            yield Violation(i, what, "give it another id")
        seen[name] = i
        if extra := set(cell.metadata) - set(notebooks.CELL_METADATA):
            what = f"has unwanted metadata: {', '.join(sorted(extra))}"
            todo = "execute it with scripts/notebooks.py, which removes them"
            yield Violation(i, what, todo)


def check_current(chapter: Chapter) -> Iterator[Violation]:
    """The code cells are those that ran, from first to last, on real data."""
    redo = "run scripts/notebooks.py execute --in-place --profile cpu"
    if not chapter.stored.get("cells"):
        yield Violation(None, "stores no hash of its code cells", redo)
    elif chapter.stored["cells"] != notebooks.cells_hash(chapter.nb):
        yield Violation(None, "a code cell changed after the notebook ran", redo)
    if chapter.stored.get("profile") == "quick":
        yield Violation(None, "stores the outputs of the quick profile", redo)
    for k, (i, cell) in enumerate(chapter.code, 1):
        if cell.execution_count != k:
            what = f"has execution count {cell.execution_count}, should be {k}"
            yield Violation(i, what, redo)
            break


def check_outputs(chapter: Chapter) -> Iterator[Violation]:
    """No tracebacks, no stderr, no warnings, no local paths."""
    for i, output in chapter.outputs:
        if output.output_type == "error":
            what = f"stores a traceback ({output.ename})"
            yield Violation(i, what, "catch the exception and print its message")
            continue
        text = output_text(output)
        if output.get("name") == "stderr":
            what = f"writes to stderr: {quote(text)}"
            yield Violation(i, what, "print to stdout or remove the cause")
        elif match := re.search(r"\b\w*Warning\b.*", text):
            yield Violation(i, f"shows a warning: {quote(match[0])}", "fix its cause")
        if match := LOCAL_PATH.search(text) or COLAB_PATH.search(text):
            what = f"shows a local path: {quote(match[0])}"
            yield Violation(i, what, "print runtime.display_path(path)")


def check_sources(chapter: Chapter) -> Iterator[Violation]:
    """No local paths, pyplot windows, or hidden markers; nothing empty."""
    for i, cell in enumerate(chapter.nb.cells, 1):
        if match := LOCAL_PATH.search(cell.source):
            what = f"contains a local path: {quote(match[0])}"
            yield Violation(i, what, "use runtime.data_dir() or runtime.output_dir()")
        if not cell.source.strip():
            yield Violation(i, "is empty", "remove it")
    for i, cell in chapter.code:
        if re.search(r"%matplotlib|\bplt\.show\(", cell.source):
            todo = "call plots.show(fig, alt=...)"
            yield Violation(i, "bypasses plots.show", todo)
        if re.search(r"#\s*(?:NBVAL|PYTEST_VALIDATE)_", cell.source):
            yield Violation(i, "marks itself for nbval in a comment", "use a cell tag")


def check_size(chapter: Chapter) -> Iterator[Violation]:
    """The file is small enough for GitHub to render it."""
    size = chapter.path.stat().st_size
    if size >= BYTES:
        what = f"has {size / 1e6:.1f} MB, at most {BYTES / 1e6:.0f} are allowed"
        yield Violation(None, what, "show photos with plots.show(..., jpeg=True)")


def check_images(chapter: Chapter) -> Iterator[Violation]:
    """Every image has alt text and comes with the notebook."""
    for i, output in chapter.outputs:
        data = output.get("data", {})
        for kind in [m for m in data if m.startswith("image/")]:
            alt = output.metadata.get(kind, {}).get("alt", "")
            text = data.get("text/plain", "")
            if not str(alt).strip() or not text.strip() or text.startswith("<Figure"):
                what = "has an image without alt text"
                yield Violation(i, what, "call plots.show(fig, alt=...)")
        for address in HTML_SOURCE.findall(data.get("text/html", "")):
            if re.match(r"https?:|//", address):
                what = f"loads something from another site: {quote(address)}"
                yield Violation(i, what, "embed it in the output")
    for i, text in chapter.text:
        images = [where for mark, where in LINK.findall(text) if mark]
        images += re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text)
        images += HTML_SOURCE.findall(text)
        for address in dict.fromkeys(images):
            if address != BADGE and not address.startswith("data:"):
                what = f"shows an image from elsewhere: {quote(address)}"
                yield Violation(i, what, "draw it in a code cell, or link to its page")


def check_headings(chapter: Chapter) -> Iterator[Violation]:
    """One title, first; no level left out; the sections every chapter has."""
    found = [(i, len(m[1]), m[2]) for i, t in chapter.text for m in HEADING.finditer(t)]
    if not found:
        yield Violation(None, "has no headings", "begin with '# 1. Title'")
        return
    if found[0][1] != 1 or found[0][0] != 1:
        what = "the first cell does not begin with the title"
        yield Violation(found[0][0], what, "begin with '# 1. Title'")
    number = f"{int(chapter.number)}. " if chapter.number else ""
    if found[0][1] == 1 and not found[0][2].startswith(number):
        what = f"the title is {found[0][2]!r}"
        yield Violation(found[0][0], what, f"begin it with '{number.strip()}'")
    for (_, before, _), (i, level, title) in zip(found, found[1:], strict=False):
        if level == 1:
            yield Violation(i, f"second title {title!r}", "make it a section: ##")
        elif level > before + 1:
            what = f"{title!r} jumps from level {before} to {level}"
            yield Violation(i, what, f"use {'#' * (before + 1)}")
    titles = [title for _, level, title in found if level == 2]
    for names in SECTIONS:
        if not set(names) & set(titles):
            what = f"has no section {names[0]!r}"
            yield Violation(None, what, f"add '## {names[0]}'")


def check_address(chapter: Chapter) -> Iterator[Violation]:
    """The badge opens this notebook, at the address that pyproject.toml has."""
    text = (notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    url = tomllib.loads(text)["project"]["urls"]["Repository"]
    name = url.removeprefix("https://github.com/")
    first = chapter.nb.cells[0].source if chapter.nb.cells else ""
    where = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/"
    if BADGE not in first or f"({where}{chapter.path.name})" not in first:
        todo = f"link it to {where}{chapter.path.name}"
        yield Violation(1, "has no Colab badge that opens this notebook", todo)
    for i, cell in chapter.code[:1]:
        match = notebooks.REPOSITORY_URL.search(cell.source)
        if match and f'"{url}"' not in cell.source:
            what = f"clones another repository than {url}"
            yield Violation(i, what, "set the address as CONTRIBUTING.md says")


def check_setup(chapter: Chapter) -> Iterator[Violation]:
    """The first code cell sets up the course, the same way in all notebooks."""
    if not chapter.code:
        yield Violation(None, "has no code cells", "add the setup cell")
        return
    siblings = sorted(chapter.path.resolve().parent.glob("[0-9][0-9]_*.ipynb"))
    if not siblings or siblings[0] == chapter.path.resolve():
        return
    try:
        reference = code_cells(notebooks.read(siblings[0]))
    except ValueError:
        return  # a violation of that notebook
    i, cell = chapter.code[0]
    if reference and _setup(reference[0].source) != _setup(cell.source):
        what = f"the setup cell differs from that of {siblings[0].name}"
        yield Violation(i, what, "copy it; only the wanted packages may differ")


def _setup(source: str) -> str:
    """Return a setup cell without the packages that it wants."""
    return re.sub(r"(?s)    wanted = .*?(?=\n    new = )", "", source)


def check_prose(chapter: Chapter) -> Iterator[Violation]:
    """Long enough to explain, short enough to read."""
    words = measure(chapter)["words"]
    if not WORDS[0] <= words <= WORDS[1]:
        what = f"has {words:,} words of prose, not {WORDS[0]:,} to {WORDS[1]:,}"
        todo = "explain more" if words < WORDS[0] else "cut or move text"
        yield Violation(None, what, todo)
    for i, number, around in prose_numbers.strays(chapter.nb, chapter.number):
        what = f"says {number}, and nothing in its section does: {quote(around)}"
        todo = "correct it, or add its source to scripts/known_numbers.toml"
        yield Violation(i, what, todo)


def check_markdown(chapter: Chapter) -> Iterator[Violation]:
    """Markdown that Colab and GitHub understand, links that work there."""
    for i, text in chapter.text:
        if match := MYST.search(text):
            what = f"uses MyST syntax: {quote(match[0])}"
            yield Violation(i, what, "write plain Markdown: > **Note.** ...")
        for mark, address in LINK.findall(text):
            if not mark and not re.match(r"https?://|#|mailto:", address):
                what = f"has a relative link: {quote(address)}"
                todo = "link to https://github.com/OWNER/NAME/blob/main/..."
                yield Violation(i, what, todo)
            name = re.search(r"/blob/main/notebooks/([^/#]+\.ipynb)", address)
            if name and not (chapter.path.resolve().parent / name[1]).exists():
                what = f"links to a notebook that does not exist: {name[1]}"
                yield Violation(i, what, "correct the name")


def check_cells(chapter: Chapter) -> Iterator[Violation]:
    """Small code cells with lines that a phone shows."""
    median = measure(chapter)["median"]
    if median > MEDIAN_LINES:
        what = f"its code cells have a median of {median:g} lines"
        yield Violation(None, what, f"split cells until it is {MEDIAN_LINES} or fewer")
    long_cells = [i for i, cell in chapter.code if LONG_CELL in tags(cell)]
    for i in long_cells[1:]:
        what = f"is the second one tagged {LONG_CELL}"
        yield Violation(i, what, "split it and remove the tag")
    for i, cell in chapter.code:
        lines = cell.source.splitlines()
        filled = sum(bool(line.strip()) for line in lines)
        count, limit = len(lines), CELL_LINES
        if i in long_cells:
            count, limit = filled, LONG_CELL_LINES
        if count > limit:
            what = f"has {count} lines, at most {limit} are allowed"
            yield Violation(i, what, "split it or move plumbing into roadseg")
        if wide := [x for x in lines if len(x) > LINE_LENGTH]:
            what = f"has {_count(len(wide), 'line')} over {LINE_LENGTH} characters"
            yield Violation(i, f"{what}: {quote(wide[0])}", "wrap")


def check_compared(chapter: Chapter) -> Iterator[Violation]:
    """Enough outputs that nbval compares, and an assertion where it does not."""
    share = measure(chapter)["compared"]
    least = COMPARED.get(chapter.number, COMPARED[""])
    if share is not None and share < least:
        what = f"nbval compares {share:.0%} of the outputs, at least {least:.0%} wanted"
        yield Violation(None, what, "print what must hold everywhere, remove tags")
    for k, (i, cell) in enumerate(chapter.code):
        if k == 0 or "setup" in tags(cell) or not set(tags(cell)) & set(UNCOMPARED):
            continue
        near = [c for _, c in chapter.code[k : k + 3] if "nbval-skip" not in tags(c)]
        if not any(asserts(c.source) for c in near):
            what = "is not compared, and neither it nor the next two cells assert"
            yield Violation(i, what, "assert below it what must hold anyway")


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
    check_images,
    check_headings,
    check_address,
    check_setup,
    check_prose,
    check_markdown,
    check_cells,
    check_compared,
)


# Measuring and reporting. ----------------------------------------------------------


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def violations(chapter: Chapter) -> list[Violation]:
    """Return all that is wrong with a notebook, from its first cell on."""
    found = [violation for check in CHECKS for violation in check(chapter)]
    return sorted(found, key=lambda violation: violation.cell or 0)


def display(path: Path) -> str:
    """Return a path relative to the working directory, if it is inside it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def describe(chapter: Chapter) -> list[str]:
    """Return a line for each violation."""
    lines, numbers = [], [i for i, _ in chapter.code]
    for violation in violations(chapter):
        where, cell = "", violation.cell
        if cell is not None:
            code = f" (In [{numbers.index(cell) + 1}])" if cell in numbers else ""
            where = f" cell {cell}{code}:"
        name = display(chapter.path)
        lines.append(f"{name}:{where} {violation.what}; {violation.remedy}")
    return lines


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
        print("There are no notebooks in notebooks/.")
        return 1
    chapters, lines = [], []
    for path in paths:
        try:
            chapter = load(path)
        except ValueError as error:
            lines.append(f"{display(path)}: {error}")
            continue
        chapters.append(chapter)
        lines += describe(chapter)
        if chapter.stored.get("package", "") not in ("", notebooks.package_hash()):
            note = "note: roadseg changed after it ran; execute it again soon"
            print(f"{display(path)}: {note}")
    print("\n".join(lines), end="\n" * bool(lines))
    if options.report and chapters:
        print(report(chapters))
    counts = _count(len(paths), "notebook"), _count(len(lines), "violation")
    print(f"{counts[0]} checked, {counts[1]}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
