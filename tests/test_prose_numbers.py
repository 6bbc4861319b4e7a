"""The numbers of a chapter's text must be those of the outputs beside them."""

import nbformat
import pytest
from nbformat import v4

import chapters
import prose_numbers


def chapter(*parts):
    """A notebook: text as str, a code cell with its output as (source, text)."""
    nb = v4.new_notebook()
    for part in parts:
        if isinstance(part, str):
            nb.cells.append(v4.new_markdown_cell(part))
        else:
            output = v4.new_output("stream", text=part[1])
            nb.cells.append(v4.new_code_cell(part[0], outputs=[output]))
    return nb


def strays(*parts):
    return [number for _, number, _ in prose_numbers.strays(chapter(*parts), "99")]


@pytest.mark.parametrize(
    ("text", "output", "stray"),
    [
        ("The mIoU is .633.", "mIoU 0.6334", []),
        ("The mIoU is .634.", "mIoU 0.6334", [".634"]),
        ("It is .63 and 0.6.", "mIoU 0.6334", []),
        ("So 63 % are right.", "0.6334", []),
        ("So 64 % are right.", "0.6334", ["64 %"]),
        ("It gains 3 points.", "0.3 and 4", ["3 points"]),
        ("The last 3 are alike.", "nothing", []),
        ("It has 31 million.", "29.3", ["31"]),
        ("It has 1 234 567 of them.", "1,234,567", []),
        ("Smith (2019) says so.", "", []),
        ("It is old (Smith 1819; Reddy 2020, chapter 9).", "", ["1819"]),
        ("Here $x = 77$ and `77`.", "", []),
        ("Leaf [77](https://x.org/88).", "", ["77"]),
        ("**Figure 1.25.** As in figure 1.14, 7.7.", "", ["7.7"]),
    ],
)
def test_a_number_is_compared_with_its_section(text, output, stray):
    assert strays("## 1. One\n\n" + text, ("print(x)", output)) == stray


def test_numbers_of_the_code_may_be_named_exactly():
    assert strays("## 1. One\n\n224 wide, rate 0.02.", ("f(224, 0.0201)", "")) == [
        "0.02"
    ]


def test_another_section_counts_only_where_it_is_cited():
    one = "## 1. One\n\nNothing.", ("x", "0.358")
    assert strays(*one, "## 2. Two\n\nIt was 0.358.", ("y", "")) == ["0.358"]
    assert strays(*one, "## 2. Two\n\nIt was 0.358 in section 1.", ("y", "")) == []
    assert strays(*one, "## What we learned\n\nIt was 0.358.") == []


def test_the_list_of_known_numbers_names_a_source_for_each():
    for numbers in prose_numbers.known_numbers().values():
        assert all(len(source) > 5 for source in numbers.values())


def test_known_numbers_are_still_used():
    """One that no text needs any more should leave the list."""
    texts = {}
    for path in chapters.chapters():
        nb = nbformat.read(path, 4)
        sections = prose_numbers.sections(nb)
        words = " ".join(text for s in sections for _, text in s.texts)
        texts[path.name[:2]] = prose_numbers.numbers(words)
    texts["all"] = set().union(*texts.values())
    for key, numbers in prose_numbers.known_numbers().items():
        for number in numbers:
            assert prose_numbers.numbers(number) <= texts[key], (key, number)
