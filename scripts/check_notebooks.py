"""Check that the notebooks are complete, current, and readable, without running them.

    python scripts/check_notebooks.py                        # all chapters
    python scripts/check_notebooks.py notebooks/01_*.ipynb --report

One line for each violation: notebook, cell, what is wrong, what to do. Cells are
counted from 1, text and code together; "In [4]" is the fourth code cell. Notes are
not violations. The exit status is 1 if there are violations. --report adds a table of
each notebook's numbers: "bare" is the share of code cells that follow another without
text between, and "compared" the share of outputs that nbval compares.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import chapters
import prose_numbers
from chapters import Chapter, measure, quote, tags

# The limits ---------------------------------------------------------------------------

WORDS = {"00": (1_000, 1_800), "": (2_000, 4_200)}
"""Words of prose in the text cells, of chapter 0 and of the others."""
HOOK_WORDS = 150
"""Words of prose before the first figure."""
MEDIAN_LINES = 6
"""Median of the code cells' lines, without blank ones."""
CELL_LINES, LONG_CELL_LINES = 25, 30
"""Lines of a code cell, and filled lines of one that is tagged long-cell."""
BYTES = 3_000_000
"""Size of a notebook's file: what GitHub renders."""
COMPARED = {"01": 0.8, "02": 0.8}
"""Share of the code cells with output whose output nbval compares; elsewhere 0.5."""
GOALS = "What you will learn"
SECTIONS = (GOALS, "Setup", "What we learned", "Exercises", "References")
"""Second-level headings that every chapter has."""

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
LOCAL_PATH = re.compile(
    r"(?<![\w./~:-])/(?:work|root|home|tmp|var|opt|usr|Users|private|mnt)/[\w./-]*"
    r"|(?<!\w)[A-Z]:\\+(?:Users|Windows|Program|Temp)"
)
HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*\s*$", re.MULTILINE)
ASSERTION = re.compile(r"(?m)^\s*assert (?!True\b)|^[^#'\"\n]*\bassert_\w+\(")
SOURCE = r"<(?:img|script|iframe|video)\b[^>]*?src\s*=\s*[\"']?"

# What no cell may contain: a pattern, and what it means. The pattern's last group, or
# all of the match, takes the place of {}.
IN_ALL = ((LOCAL_PATH, "contains a local path: {}; use runtime.data_dir()"),)
IN_CODE = (
    (
        re.compile(r"%matplotlib|\bplt\.show\("),
        "bypasses plots.show with {}; call plots.show(fig, alt=...)",
    ),
    (
        re.compile(r"#\s*(?:NBVAL|PYTEST_VALIDATE)_"),
        "marks itself for nbval in a comment; use a cell tag",
    ),
)
IN_TEXT = (
    (
        re.compile(r"(?m)^\s*(?::::+|```+\{)|(?<![\w\\])\{[a-z][\w:.-]*\}`[^`]"),
        "uses MyST syntax: {}; write plain Markdown: > **Note.** ...",
    ),
    (
        re.compile(
            r"(?<!!)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]"
            r"\(\s*<?(?!https?://|#|mailto:)([^)\s>]+)"
        ),
        "has a relative link: {}; link to https://github.com/OWNER/NAME/blob/main/...",
    ),
    (
        re.compile(
            rf"!\[[^\]]*\]\((?!{re.escape(BADGE)}\)|data:)([^)\s]+)"
            rf"|{SOURCE}(?!data:)([^\"'\s>]+)"
        ),
        "shows an image from elsewhere: {}; draw it in a code cell, or link to it",
    ),
)
IN_OUTPUT = (
    (
        re.compile(rf"{LOCAL_PATH.pattern}|(?<![\w./~:-])/content/[\w./-]*"),
        "shows a local path: {}; print runtime.display_path(path)",
    ),
    (re.compile(r"\b\w*Warning\b.*"), "shows a warning: {}; fix its cause"),
    (
        re.compile(rf"{SOURCE}((?:https?:)?//[^\"'\s>]+)"),
        "loads something from another site: {}; embed it in the output",
    ),
)

Found = Iterator[tuple[int | None, str]]
"""Violations: of which cell (from 1), and what is wrong, with what to do."""


# The checks ---------------------------------------------------------------------------


def check_contents(chapter: Chapter) -> Found:
    """No local paths, remote images, tracebacks, warnings, or unwanted syntax."""
    everything = [(i, c.source) for i, c in enumerate(chapter.nb.cells, 1)]
    yield from _search(IN_ALL, everything)
    yield from _search(IN_CODE, [(i, cell.source) for i, cell in chapter.code])
    yield from _search(IN_TEXT, chapter.text)
    yield from ((i, "is empty; remove it") for i, x in everything if not x.strip())
    for i, output in chapter.outputs:
        data = output.get("data", {})
        shown = output.get("text") or "\n".join(
            data[kind] for kind in ("text/plain", "text/html") if kind in data
        )
        yield from _search(IN_OUTPUT, [(i, shown)])
        if output.output_type == "error":
            yield i, f"stores a traceback ({output.ename}); catch it and print it"
        if output.get("name") == "stderr":
            yield i, f"writes to stderr: {quote(shown)}; print to stdout"
        for kind in [m for m in data if m.startswith("image/")]:
            alt = str(output.metadata.get(kind, {}).get("alt", "")).strip()
            text = data.get("text/plain", "").strip()
            if not alt or not text or text.startswith("<Figure"):
                yield i, "has an image without alt text; call plots.show(fig, alt=...)"


def _search(rules: Iterable, texts: Iterable[tuple[int, str]]) -> Found:
    for i, text in texts:
        for pattern, what in rules:
            if match := pattern.search(text):
                yield i, what.format(quote(match[match.lastindex or 0]))


def check_metadata(chapter: Chapter) -> Found:
    """Format 4.5, and the metadata that Colab and Kaggle read."""
    redo = "execute it with scripts/notebooks.py, which corrects them"
    nb = chapter.nb
    wanted = chapters.metadata(chapter.path.name)
    found = {k: v for k, v in nb.metadata.items() if k != "roadseg"}
    wrong = {k for k in wanted | found if wanted.get(k) != found.get(k)}
    if wrong:
        yield None, f"has other metadata than its chapter: {sorted(wrong)}; {redo}"
    for i, cell in enumerate(nb.cells, 1):
        if extra := set(cell.metadata) - set(chapters.CELL_METADATA):
            yield i, f"has unwanted metadata: {sorted(extra)}; {redo}"
    if chapter.path.stat().st_size >= BYTES:
        size = f"{chapter.path.stat().st_size / 1e6:.1f} MB"
        yield None, f"has {size}; show photos with plots.show(..., jpeg=True)"


def check_current(chapter: Chapter) -> Found:
    """The code cells are those that ran, from first to last, on real data."""
    redo = "run scripts/notebooks.py execute --in-place"
    if not chapter.stored.get("cells"):
        yield None, f"stores no hash of its code cells; {redo}"
    elif chapter.stored["cells"] != chapters.cells_hash(chapter.nb):
        yield None, f"a code cell changed after the notebook ran; {redo}"
    if chapter.stored.get("profile") == "quick":
        yield None, f"stores the outputs of the quick profile; {redo}"
    for k, (i, cell) in enumerate(chapter.code, 1):
        if cell.execution_count != k:
            yield i, f"has execution count {cell.execution_count}, not {k}; {redo}"
            break


def check_headings(chapter: Chapter) -> Found:
    """One title, first; no level left out; the sections every chapter has."""
    found = [(i, len(m[1]), m[2]) for i, t in chapter.text for m in HEADING.finditer(t)]
    number = f"{int(chapter.number)}. " if chapter.number else ""
    if not found or found[0][:2] != (1, 1) or not found[0][2].startswith(number):
        yield 1, f"does not begin with the title; begin with '# {number}Title'"
    for (_, before, _), (i, level, title) in zip(found, found[1:], strict=False):
        if level == 1:
            yield i, f"has a second title {title!r}; make it a section: ##"
        elif level > before + 1:
            yield i, f"{title!r} jumps from level {before} to {level}"
    titles = [title for _, level, title in found if level == 2]
    for name in SECTIONS:
        if name not in titles:
            yield None, f"has no section {name!r}; add it"


def check_hook(chapter: Chapter) -> Found:
    """A figure comes before the goals, with all code folded, and few words before it.

    Title, badge, and lead; the setup cell and what the figure needs; the figure and its
    caption; the goals.
    """
    words, image = 0, False
    for i, cell in enumerate(chapter.nb.cells, 1):
        if cell.cell_type == "markdown":
            if f"## {GOALS}" in cell.source:
                break
            words += 0 if image else len(chapters.prose(cell.source).split())
        elif not cell.metadata.get("jupyter", {}).get("source_hidden") or (
            cell.metadata.get("cellView") != "form"
        ):
            yield i, f"isn't folded, but before {GOALS!r}; fold it in Jupyter and Colab"
        else:
            kinds = [k for output in cell.outputs for k in output.get("data", {})]
            image |= any(kind.startswith("image/") for kind in kinds)
    if not image:
        yield None, f"has no figure before {GOALS!r}; show where the chapter leads"
    elif words > HOOK_WORDS:
        yield 1, f"has {words} words before its first figure; {HOOK_WORDS} are enough"


def check_address(chapter: Chapter) -> Found:
    """The badge opens this notebook, at the address that pyproject.toml has."""
    text = (chapters.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    url = tomllib.loads(text)["project"]["urls"]["Repository"]
    name = url.removeprefix("https://github.com/")
    first = chapter.nb.cells[0].source if chapter.nb.cells else ""
    where = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/"
    if BADGE not in first or f"({where}{chapter.path.name})" not in first:
        where += chapter.path.name
        yield 1, f"has no Colab badge that opens this notebook; link it to {where}"
    for i, cell in chapter.code[:1]:
        match = chapters.REPOSITORY_URL.search(cell.source)
        if match and f'"{url}"' not in cell.source:
            yield i, f"clones another repository than {url}; see CONTRIBUTING.md"
    for i, text in chapter.text:
        for name in re.findall(r"/blob/main/notebooks/([^/#)]+\.ipynb)", text):
            if not (chapter.path.resolve().parent / name).exists():
                yield i, f"links to a notebook that does not exist: {name}"


def check_setup(chapter: Chapter) -> Found:
    """The first code cell sets up the course, the same way in all notebooks."""
    siblings = sorted(chapter.path.resolve().parent.glob("[0-9][0-9]_*.ipynb"))
    sources = [cell.source for _, cell in chapter.code[:1]]
    if not sources:
        yield None, "has no code cells; add the setup cell"
    elif siblings and siblings[0] != chapter.path.resolve():
        try:
            sources += [c.source for c in chapters.code_cells(load(siblings[0]).nb)[:1]]
        except ValueError:
            return  # a violation of that notebook
        own = {re.sub(r"(?s)    wanted = .*?(?=\n    new = )", "", x) for x in sources}
        if len(own) > 1:
            what = f"the setup cell differs from that of {siblings[0].name}"
            yield chapter.code[0][0], f"{what}; only the wanted packages may"


def check_prose(chapter: Chapter) -> Found:
    """Long enough to explain, short enough to read; with the numbers of the outputs."""
    words = measure(chapter)["words"]
    least, most = WORDS.get(chapter.number, WORDS[""])
    if not least <= words <= most:
        yield None, f"has {words:,} words of prose, not {least:,} to {most:,}"
    for i, number, around in prose_numbers.strays(chapter.nb, chapter.number):
        what = f"says {number}, and nothing in its section does: {quote(around)}"
        yield i, f"{what}; correct it, or add its source to scripts/known_numbers.toml"


def check_cells(chapter: Chapter) -> Found:
    """Small code cells; notebooks/ruff.toml limits the length of their lines."""
    median = measure(chapter)["median"]
    if median > MEDIAN_LINES:
        what = f"its code cells have a median of {median:g} lines"
        yield None, f"{what}; split cells until it is {MEDIAN_LINES} or fewer"
    for i, cell in chapter.code:
        lines = cell.source.splitlines()
        count, limit = len(lines), CELL_LINES
        if "long-cell" in tags(cell):
            count, limit = sum(bool(x.strip()) for x in lines), LONG_CELL_LINES
        if count > limit:
            yield i, f"has {count} lines, not {limit}; split it or move plumbing away"


def check_compared(chapter: Chapter) -> Found:
    """Enough outputs that nbval compares, and an assertion where it does not."""
    share, least = measure(chapter)["compared"], COMPARED.get(chapter.number, 0.5)
    if share < least:
        yield None, f"nbval compares {share:.0%} of the outputs, not {least:.0%}"
    for k, (i, cell) in enumerate(chapter.code):
        if "setup" in tags(cell) or not tags(cell) & chapters.UNCOMPARED:
            continue
        near = [c for _, c in chapter.code[k : k + 3] if "nbval-skip" not in tags(c)]
        if not any(ASSERTION.search(c.source) for c in near):
            what = "is not compared, and neither it nor the next two cells assert"
            yield i, f"{what}; assert below it what must hold anyway"


CHECKS = (
    check_contents,
    check_metadata,
    check_current,
    check_headings,
    check_hook,
    check_address,
    check_setup,
    check_prose,
    check_cells,
    check_compared,
)


# Reporting ----------------------------------------------------------------------------


def load(path: Path) -> Chapter:
    """Read a notebook of format 4.5.

    Raises:
        ValueError: If the file is not one.
    """
    notebook = chapters.read(path)
    if '"nbformat_minor": 5' not in path.read_text(encoding="utf-8"):
        raise ValueError("is not in format 4.5; execute it, which converts it")
    return Chapter(path, notebook)


def violations(chapter: Chapter) -> list[tuple[int | None, str]]:
    """Return all that is wrong with a notebook, from its first cell on."""
    found = [violation for check in CHECKS for violation in check(chapter)]
    return sorted(found, key=lambda violation: violation[0] or 0)


def report(found: list[Chapter]) -> str:
    """Return a table of the notebooks' numbers."""
    rows = [["notebook", *measure(found[0]), "profile"]]
    for chapter in found:
        numbers = map(str, measure(chapter).values())
        rows.append([chapter.path.name, *numbers, chapter.stored.get("profile", "-")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
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
    loaded, lines = [], []
    for path in options.notebooks or chapters.chapters():
        root = chapters.ROOT
        name = path.relative_to(root) if path.is_relative_to(root) else path
        try:
            chapter = load(path)
        except ValueError as error:
            lines.append(f"{name}: {error}")
            continue
        loaded.append(chapter)
        running = [i for i, _ in chapter.code]
        for cell, what in violations(chapter):
            code = f" (In [{running.index(cell) + 1}])" if cell in running else ""
            lines.append(f"{name}:{f' cell {cell}{code}:' if cell else ''} {what}")
        if chapter.stored.get("package", "") not in ("", chapters.package_hash()):
            print(f"{name}: note: roadseg changed after it ran; execute it again soon")
    print("\n".join(lines), end="\n" * bool(lines))
    if options.report and loaded:
        print(report(loaded))
    print(f"notebooks checked: {len(loaded)}, violations: {len(lines)}")
    return 1 if lines or not loaded else 0


if __name__ == "__main__":
    sys.exit(main())
