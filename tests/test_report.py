"""roadseg.report: findings as text and as a page."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from roadseg.classes import LabelSet
from roadseg.report import Figure, Report, Table

LABELS = LabelSet(("road", "<other>"), ((1, 2, 3), (4, 5, 6)))


def full_report():
    report = Report("Check of <roads> & more", LABELS)
    names = [f"a/{n}.png" for n in range(9)]
    image = np.full((40, 900, 3), 90, np.uint8)
    draw = lambda: [Figure(image, 'The worst, "a/0.png"')]  # noqa: E731
    report.add("note", "sizes", "all are equal")
    report.add("error", "files", "9 files: broken <b>", names, draw)
    report.add("warning", "classes", "in no mask: road")
    report.tables.append(Table("Shares", ("class", "train %"), (("<other>", "1.5"),)))
    return report


def test_errors_come_first_and_files_are_counted():
    text = str(full_report())
    first = text.splitlines()[0]
    assert first.startswith("error    files")
    assert first.endswith("a/4.png and 4 more)")
    assert text.splitlines()[-1].endswith("1 error, 1 warning, 1 note")
    assert "class    train %\n<other>      1.5" in text


def test_the_severities_decide():
    report = Report("x")
    assert report.summary == "no errors, no warnings, no notes"
    report.add("note", "a", "b")
    assert not report.failed(strict=True)
    report.add("warning", "a", "b")
    assert report.failed(strict=True)
    assert not report.failed()
    report.add("error", "a", "b")
    assert report.failed()


class Reader(HTMLParser):
    """Checks that what is opened is closed, and keeps tags and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    full_report().save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert dict(reader.tags)["html"] == {"lang": "en"}
    assert "http" not in page
    assert "script" not in dict(reader.tags)
    for words in ("Check of <roads> & more", "broken <b>", "Error: files", "a/8.png"):
        assert words in reader.text
    (image,) = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert image["alt"] == 'The worst, "a/0.png"'
    data = base64.b64decode(
        re.fullmatch("data:image/jpeg;base64,(.+)", image["src"])[1]
    )
    with Image.open(io.BytesIO(data)) as decoded:
        assert decoded.format == "JPEG"
        assert decoded.size == (int(image["width"]), int(image["height"]))
        assert max(decoded.size) < 900
    fills = [attrs["fill"] for tag, attrs in reader.tags if tag == "rect"]
    assert fills == ["rgb(1, 2, 3)", "rgb(4, 5, 6)", "rgb(0, 0, 0)"]


def test_figures_are_drawn_for_the_page_only():
    report = Report("x")
    report.add("note", "a", "b", draw=lambda: pytest.fail("drawn"))
    assert "b" in str(report)
