"""Code cells of a chapter, to be run alone or with a slip put in."""

from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def code_cells(name: str) -> list[str]:
    """Return the source of a notebook's code cells, in order."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(cells: list[str], text: str) -> str:
    """Return the only cell that holds a text."""
    found = [cell for cell in cells if text in cell]
    assert len(found) == 1, f"{len(found)} cells hold {text!r}"
    return found[0]


def run(sources: list[str]) -> dict:
    """Run cells one after the other in one fresh namespace; return it."""
    names: dict = {}
    for source in sources:
        exec(compile(source, "cell", "exec"), names)
    return names


def with_slip(sources: list[str], right: str, wrong: str) -> list[str]:
    """Return cells with a slip in place of the one text that is right."""
    assert sum(source.count(right) for source in sources) == 1, right
    return [source.replace(right, wrong) for source in sources]
