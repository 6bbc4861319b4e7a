"""Compare the numbers in a chapter's text with the outputs and the code beside them.

A number in a text cell must appear in an output of the same section, rounded as in the
text, or in the section's code. A number that was not measured there (a published
score, the size of a file) is listed in known_numbers.toml with its source. Whole
numbers up to 12, years in citations, formulas, and quoted code are ignored.

A section is everything under one second-level heading. A text that refers to another
section ("section 3") is compared with that one too, and the summary at the end with
the whole chapter, as are the recall questions.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from nbformat import NotebookNode

KNOWN = Path(__file__).with_name("known_numbers.toml")
NOT_COMPARED = ("What you will learn", "Setup", "References")
SUMMARIES = ("What we learned", "Recall questions")
SMALL = 12
"""Whole numbers up to this one are counts that read like words."""

NUMBER = re.compile(
    r"(?<![\w.])(\d{1,3}(?:[ ,]\d{3})+(?![\d.])|\d+\.\d+|\.\d+|\d+)(?:e-?\d+)?"
    r"(\s*%|\s+points?\b)?"
)
LEFT_OUT = re.compile(
    r"\]\([^)]*\)"  # where a link leads
    r"|```.*?```|`[^`]*`"  # quoted code
    r"|\$\$.*?\$\$|\$[^$]*\$"  # formulas
    r"|<[^>]*>"  # HTML
    r"|\(?\b(?:19|20)\d\d\)|\b[A-Z]\w+ (?:19|20)\d\d\b"  # the year of a citation
    r"|\b[Ff]igures? \d+\.\d+"  # numbers of figures
    r"|(?m:^#+ [^\n]*$)",  # headings carry section numbers
    re.DOTALL,
)


@dataclass
class Section:
    """What stands under one heading.

    Attributes:
        title: Of the heading, without its number.
        number: The digits before the title, if any.
        texts: Number of the cell, counted from 1, and its text, for each text cell.
        measured: Numbers in the outputs.
        written: Numbers in the code.
    """

    title: str
    number: str = ""
    texts: list[tuple[int, str]] = field(default_factory=list)
    measured: set[float] = field(default_factory=set)
    written: set[float] = field(default_factory=set)


def strays(nb: NotebookNode, chapter: str) -> Iterator[tuple[int, str, str]]:
    """Yield the numbers of a notebook's text that nothing beside them shows.

    Args:
        nb: The notebook, executed.
        chapter: Its two digits, which choose the part of known_numbers.toml.

    Yields:
        The number of the cell, counted from 1, the number, and the words around it.
    """
    tables = known_numbers()
    known = {_value(x) for key in ("all", chapter) for x in tables.get(key, {})}
    parts = sections(nb)
    for part in parts:
        if part.title in NOT_COMPARED:
            continue
        whole = part.title in SUMMARIES
        for cell, text in part.texts:
            cited = re.findall(r"\bsection (\d+)", text)
            beside = [p for p in parts if p is part or whole or p.number in cited]
            measured = set().union(*(p.measured for p in beside))
            written = known.union(*(p.written for p in beside))
            for match in NUMBER.finditer(text):
                if not _agrees(match, measured, written):
                    around = text[max(0, match.start() - 30) : match.end() + 20]
                    yield cell, match[0].strip(), " ".join(around.split())


@cache
def known_numbers() -> dict[str, dict[str, str]]:
    """Return the numbers that are not measured here: chapter -> number -> source."""
    return tomllib.loads(KNOWN.read_text(encoding="utf-8"))


def sections(nb: NotebookNode) -> list[Section]:
    """Return the sections of a notebook; the first one is what comes before them."""
    found = [Section("")]
    for i, cell in enumerate(nb.cells, 1):
        if cell.cell_type == "markdown":
            before, *parts = re.split(r"(?m)^## ", cell.source)
            found[-1].texts.append((i, LEFT_OUT.sub(" ", before)))
            for part in parts:
                title, _, text = part.partition("\n")
                number, name = re.match(r"(?:(\d+)\.)?\s*(.*)", title).groups("")
                body = [(i, LEFT_OUT.sub(" ", text))]
                found.append(Section(name.strip(), number, body))
        elif cell.cell_type == "code":
            found[-1].written |= numbers(cell.source)
            for output in cell.outputs:
                text = output.get("text") or output.get("data", {}).get("text/plain")
                found[-1].measured |= numbers(text or "")
    return found


def numbers(text: str) -> set[float]:
    """Return the numbers in a text, without their signs."""
    return {_value(match[1]) for match in NUMBER.finditer(text)}


def _value(number: str) -> float:
    return float(number.replace(" ", "").replace(",", ""))


def _agrees(match: re.Match, measured: set[float], written: set[float]) -> bool:
    value, unit = _value(match[1]), match[2]
    decimals = len(match[1].partition(".")[2])
    if not unit and not decimals and value <= SMALL:
        return True
    near = 0.5 * 10**-decimals + 1e-9
    scales = (1, 100) if unit else (1,)  # 0.72 may be read as 72 %
    return value in written or any(
        abs(scale * x - value) <= near for x in measured for scale in scales
    )
