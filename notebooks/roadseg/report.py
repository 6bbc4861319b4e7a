"""Findings about a dataset, as text and as one HTML page with images."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from roadseg import files
from roadseg.classes import LabelSet

SEVERITIES = ("error", "warning", "note")
"""An error makes training or scores wrong, a warning may, a note is information."""

MAX_FILES = 5
"""Files that a finding names in text; the page names `MAX_LISTED`."""

MAX_LISTED = 50
MAX_SIDE = 560  # pixels of an image on the page


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: 1 mask, 2 masks."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


@dataclass(frozen=True)
class Figure:
    """An image on the page: (H, W, 3) uint8, its caption, what it shows in words."""

    image: np.ndarray
    caption: str
    alt: str


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        severity: One of `SEVERITIES`.
        check: The check's name, one or two words.
        message: What is wrong or known, and what to do about it.
        files: The files concerned, worst first.
        draw: Called for the page only, returns figures of the worst.
    """

    severity: str
    check: str
    message: str
    files: tuple[str, ...] = ()
    draw: Callable[[], Sequence[Figure]] | None = field(default=None, compare=False)

    def named(self, most: int) -> str:
        """Return the files, no more than `most` by name."""
        shown = ", ".join(self.files[:most])
        more = len(self.files) - most
        return f"{shown} and {more} more" if more > 0 else shown


@dataclass(frozen=True)
class Table:
    """Numbers by class or by split: the first column heads its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """Return the table as lines with aligned columns."""
        grid = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines = []
        for first, *rest in grid:
            cells = [cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join([f"{self.title}:", *lines])


@dataclass
class Report:
    """What `roadseg check` and `roadseg prepare` have found.

    Attributes:
        title: What was done, and with what.
        labels: The classes, for the legend; None if they are unknown.
        findings: In the order of the checks.
        tables: Shown after the findings.
    """

    title: str
    labels: LabelSet | None = None
    findings: list[Finding] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def add(
        self,
        severity: str,
        check: str,
        message: str,
        files: Sequence[str] = (),
        draw: Callable[[], Sequence[Figure]] | None = None,
    ) -> None:
        """Add a finding; see `Finding` for the arguments."""
        if severity not in SEVERITIES:
            raise ValueError(f"a severity is one of {SEVERITIES}, not {severity!r}")
        self.findings.append(Finding(severity, check, message, tuple(files), draw))

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def failed(self, strict: bool = False) -> bool:
        """Return whether there are errors, or with `strict` warnings."""
        return bool(self.count("error") or (strict and self.count("warning")))

    def ordered(self) -> list[Finding]:
        """Return the findings, errors first."""
        return sorted(self.findings, key=lambda f: SEVERITIES.index(f.severity))

    @property
    def summary(self) -> str:
        """The number of errors, warnings and notes, in words."""
        numbers = [(self.count(severity), severity) for severity in SEVERITIES]
        return ", ".join(f"{n or 'no'} {word}{'s' * (n != 1)}" for n, word in numbers)

    def __str__(self) -> str:
        """Return a line for each finding, the tables, and the summary."""
        lines = []
        for finding in self.ordered():
            named = f" ({finding.named(MAX_FILES)})" if finding.files else ""
            start = f"{finding.severity:<8} {finding.check:<11} "
            lines.append(f"{start}{finding.message}{named}")
        blocks = ["\n".join(lines), *map(str, self.tables)]
        text = "\n\n".join(filter(None, blocks))
        return f"{text}\n\n{self.title}: {self.summary}"

    def save_html(self, path: Path) -> None:
        """Write everything, with images of the worst, to one self-contained page.

        Raises:
            OSError: If the file can't be written.
        """
        with files.atomic_write(Path(path)) as draft:
            text = _page(self)
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")


# ---- The page ---------------------------------------------------------------------

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b2733; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 0; }
section.finding { border-left: 5px solid #0072b2; margin: 1rem 0;
  padding: .1rem 0 .1rem .9rem; }
section.error { border-color: #b3261e; } section.warning { border-color: #e69f00; }
p { margin: .3rem 0; }
.files { color: #55606b; font-size: .9rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .6rem 0; }
figure { margin: 0; max-width: 27rem; } img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #55606b; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #d9dfe5; text-align: right; }
th:first-child { text-align: left; font-weight: normal; }
thead th, thead th:first-child { font-weight: bold; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem;
  padding: 0; }
.legend svg { width: 1em; height: 1em; vertical-align: -.12em; margin-right: .35em; }
"""


def _page(report: Report) -> str:
    text = html.escape
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{text(report.title)}</h1>\n<p>{report.summary}</p>",
        "<h2>Findings</h2>" if report.findings else "",
        *map(_section, report.ordered()),
        _legend(report.labels) if report.labels else "",
        *map(_table, report.tables),
    ]
    return "\n".join([*filter(None, parts), "</main>\n</body>\n</html>\n"])


def _section(finding: Finding) -> str:
    lines = [
        f'<section class="finding {finding.severity}">',
        f"<h3>{finding.severity.title()}: {html.escape(finding.check)}</h3>",
        f"<p>{html.escape(finding.message)}</p>",
    ]
    if finding.files:
        listed = html.escape(finding.named(MAX_LISTED))
        lines.append(f'<p class="files">{listed}</p>')
    figures = finding.draw() if finding.draw else ()
    if figures:
        lines += ['<div class="figures">', *map(_figure, figures), "</div>"]
    return "\n".join([*lines, "</section>"])


def _figure(figure: Figure) -> str:
    image = Image.fromarray(figure.image)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width="{image.width}" '
        f'height="{image.height}" alt="{html.escape(figure.alt)}">'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
    )


def _legend(labels: LabelSet) -> str:
    entries = dict(zip(labels.names, labels.colors, strict=True))
    entries.setdefault(labels.ignored_name, (0, 0, 0))
    items = [
        f'<li><svg viewBox="0 0 9 9" aria-hidden="true"><rect width="9" height="9" '
        f'fill="rgb{color}" stroke="#66727e"/></svg>{html.escape(name)}</li>'
        for name, color in entries.items()
    ]
    return "\n".join(['<h2>Colors</h2>\n<ul class="legend">', *items, "</ul>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in table.columns)
    rows = []
    for first, *rest in table.rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        rows.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return "\n".join(
        [
            f'<h2>{html.escape(table.title)}</h2>\n<div class="wide" tabindex="0" '
            f'role="region" aria-label="{html.escape(table.title)}">',
            f"<table><thead><tr>{head}</tr></thead>\n<tbody>",
            *rows,
            "</tbody></table></div>",
        ]
    )
