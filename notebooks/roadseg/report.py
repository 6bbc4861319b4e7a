"""Findings about a dataset, as text and as one HTML page with images."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from roadseg import files
from roadseg.classes import LabelSet

SEVERITIES = ("error", "warning", "note")
"""An error makes training or scores wrong, a warning may, a note is information."""

MAX_FILES, MAX_LISTED = 5, 50
"""Files that a finding names in text, and on the page."""

MAX_SIDE = 560  # pixels of an image on the page


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: 1 mask, 2 masks."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


@dataclass(frozen=True)
class Figure:
    """An image on the page, (H, W, 3) uint8, and what it shows in words."""

    image: np.ndarray
    caption: str


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
        more = len(self.files) - most
        shown = ", ".join(self.files[:most])
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
        lines = [
            "  ".join(
                [first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]
            ).rstrip()
            for first, *rest in grid
        ]
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
        self.findings.append(Finding(severity, check, message, tuple(files), draw))

    def add_files(self, check: str, by_reason: Mapping[str, Sequence[str]]) -> None:
        """Add an error for each reason for which files can't be used."""
        for reason, names in by_reason.items():
            self.add("error", check, f"{plural(len(names), 'file')}: {reason}", names)

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
        return ", ".join(plural(n or "no", word) for n, word in numbers)

    def __str__(self) -> str:
        """Return a line for each finding, the tables, and the summary."""
        lines = []
        for f in self.ordered():
            named = f" ({f.named(MAX_FILES)})" if f.files else ""
            lines.append(f"{f.severity:<8} {f.check:<11} {f.message}{named}")
        blocks = ["\n".join(lines), *map(str, self.tables)]
        blocks.append(f"{self.title}: {self.summary}")
        return "\n\n".join(filter(None, blocks))

    def save_html(self, path: Path) -> None:
        """Write everything, with images of the worst, to one self-contained page.

        Raises:
            OSError: If the file can't be written.
        """
        with files.atomic_write(Path(path)) as draft:
            draft.write_text(_page(self), encoding="utf-8", errors="backslashreplace")


# ---- The page ---------------------------------------------------------------------

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b2733; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
section { border-left: 5px solid #0072b2; margin: 1rem 0; padding-left: .9rem; }
.error { border-color: #b3261e; } .warning { border-color: #e69f00; }
h3, p { margin: .3rem 0; font-size: 1rem; }
figure { display: inline-block; max-width: 27rem; margin: .6rem 1rem 0 0; }
img { max-width: 100%; height: auto; }
.files, figcaption { color: #55606b; font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #d9dfe5; text-align: right; }
th:first-child { text-align: left; } tbody th { font-weight: normal; }
.legend { list-style: none; padding: 0; } .legend li { display: inline-block;
  margin-right: 1.2rem; } .legend svg { width: 1em; margin-right: .35em; }
"""


def _page(report: Report) -> str:
    title = html.escape(report.title)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{title}</h1>\n<p>{report.summary}</p>",
        "<h2>Findings</h2>" if report.findings else "",
        *map(_section, report.ordered()),
        _legend(report.labels) if report.labels else "",
        *map(_table, report.tables),
    ]
    return "\n".join([*filter(None, parts), "</main>\n</body>\n</html>\n"])


def _section(finding: Finding) -> str:
    text = html.escape
    files = f'<p class="files">{text(finding.named(MAX_LISTED))}</p>\n'
    return (
        f'<section class="{finding.severity}">\n'
        f"<h3>{finding.severity.title()}: {text(finding.check)}</h3>\n"
        f"<p>{text(finding.message)}</p>\n{files if finding.files else ''}"
        f"{''.join(map(_figure, finding.draw() if finding.draw else ()))}</section>"
    )


def _figure(figure: Figure) -> str:
    image, file = Image.fromarray(figure.image), io.BytesIO()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    words = html.escape(figure.caption)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width="{image.width}" '
        f'height="{image.height}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>\n"
    )


def _legend(labels: LabelSet) -> str:
    colors = dict(zip(labels.names, labels.colors, strict=True))
    colors.setdefault(labels.ignored_name, (0, 0, 0))
    items = [
        f'<li><svg viewBox="0 0 9 9" aria-hidden="true"><rect width="9" height="9" '
        f'fill="rgb{color}" stroke="#66727e"/></svg>{html.escape(name)}</li>'
        for name, color in colors.items()
    ]
    return "\n".join(['<h2>Colors</h2>\n<ul class="legend">', *items, "</ul>"])


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str, scope: str) -> str:
        first, *rest = map(html.escape, cells)
        others = "".join(f"<{tag}>{cell}</{tag}>" for cell in rest)
        return f'<tr><th scope="{scope}">{first}</th>{others}</tr>\n'

    title, body = html.escape(table.title), [row(r, "td", "row") for r in table.rows]
    return (
        f'<h2>{title}</h2>\n<div class="wide" tabindex="0" role="region" '
        f'aria-label="{title}">\n<table><thead>{row(table.columns, "th", "col")}'
        f"</thead>\n<tbody>{''.join(body)}</tbody></table></div>"
    )
