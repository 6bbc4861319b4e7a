"""Code cells of a chapter, to run alone or with a bug inserted."""

import contextlib
import io
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from roadseg import plots, runtime

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def code_cells(name: str) -> list[str]:
    """Return the source of a notebook's code cells, in order."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(cells: list[str], text: str) -> str:
    """Return the only cell that contains a text."""
    found = [cell for cell in cells if text in cell]
    assert len(found) == 1, f"{len(found)} cells contain {text!r}"
    return found[0]


def run(sources: list[str]) -> dict:
    """Run cells one after the other in a new namespace; return it."""
    names: dict = {}
    for source in sources:
        exec(compile(source, "cell", "exec"), names)
    return names


def with_slip(sources: list[str], right: str, wrong: str) -> list[str]:
    """Return cells with the only occurrence of a text replaced by a bug."""
    assert sum(source.count(right) for source in sources) == 1, right
    return [source.replace(right, wrong) for source in sources]


def names_before_each_cell(sources: list[str], data_dir: Path) -> list[dict]:
    """Run cells on synthetic scenes; return the names that each of them found."""
    runtime.configure(profile="quick", device="cpu", data_dir=data_dir)
    names: dict = {"__name__": "__main__"}
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "show", lambda fig, alt, **_: plt.close(fig))
        for source in sources:
            states.append(dict(names))
            _run_silently(source, names=names)
    return states


def assert_noticed(
    sources: list[str], states: list[dict], right: str, wrong: str, within: int = 5
) -> None:
    """Insert a bug into the only cell with a text; some cell below it must notice."""
    first = sources.index(cell_with(sources, right))
    names = dict(states[first])
    bugged = [sources[first].replace(right, wrong), *sources[first + 1 :]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "show", lambda fig, alt, **_: plt.close(fig))
        with pytest.raises(AssertionError):
            _run_silently(*bugged[:within], names=names)


def _run_silently(*sources: str, names: dict) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        for source in sources:
            exec(compile(source, "cell", "exec"), names)
