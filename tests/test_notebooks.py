"""scripts/notebooks.py and scripts/check_notebooks.py, on small notebooks."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import chapters
import check_notebooks
import notebooks

NAME = "01_small.ipynb"
OPENING = f"""# 1. A small notebook

[![Open in Colab]({check_notebooks.BADGE})](https://colab.research.google.com/github/\
OWNER/NAME/blob/main/notebooks/{NAME})

It has all that a chapter has."""


@pytest.fixture(autouse=True)
def small_package(tmp_path_factory, monkeypatch):
    """Stands in for roadseg, so that its hash takes no time."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "code.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(notebooks, "PACKAGE", folder)


def image(alt="A road", kind="image/png", text=None):
    return new_output(
        "display_data",
        data={kind: "AAAA", "text/plain": alt if text is None else text},
        metadata={kind: {"alt": alt}} if alt else {},
    )


def printed(text):
    return new_output("stream", name="stdout", text=text)


def code(source, *outputs, tags=()):
    metadata = {"tags": list(tags)} if tags else {}
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def chapter():
    """A notebook without a fault; its cells can be named by their position."""
    return new_notebook(
        cells=[
            new_markdown_cell(OPENING),  # 0
            new_markdown_cell("## What you will learn\n\n" + "word " * 2_100),
            new_markdown_cell("## Setup"),
            code("import roadseg", tags=["nbval-ignore-output"]),  # 3
            new_markdown_cell("## 1. A section\n\nSee [d](https://doi.org/1)."),  # 4
            code("draw()", image()),  # 5
            code("x = 1\nprint(x)", printed("1\n")),  # 6
            code("print(t)", printed("2 s\n"), tags=["nbval-ignore-output"]),  # 7
            code("assert t < 9\nprint(2)", printed("2\n")),  # 8
            code("print(3)", printed("3\n")),  # 9
            new_markdown_cell("## Exercises\n\n### 1\n\n## What we learned"),
            new_markdown_cell("## References"),  # 11
        ]
    )


def store(notebook, path, rehash=True):
    """Write a notebook as if it had run, without nbformat's help or objections."""
    for k, cell in enumerate(notebooks.code_cells(notebook), 1):
        cell.setdefault("execution_count", None)
        if cell.execution_count is None:
            cell.execution_count = k
    if rehash:
        notebook.metadata.roadseg = {
            "cells": notebooks.cells_hash(notebook),
            "package": notebooks.package_hash(),
            "profile": "cpu",
        }
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def violations_of(path):
    return check_notebooks.violations(chapters.load(path))


def test_a_good_chapter_has_no_violations(tmp_path, capsys):
    path = store(chapter(), tmp_path / NAME)

    assert violations_of(path) == []
    assert check_notebooks.main([str(path), "--report"]) == 0
    printed_lines = capsys.readouterr().out.splitlines()
    assert printed_lines[0].split()[0] == "notebook"
    row = dict(zip(printed_lines[0].split(), printed_lines[1].split(), strict=True))
    assert row["words"] == "2,130"
    assert row["cells"] == "6"
    assert row["bare"] == "67%"
    assert row["compared"] == "80%"
    assert row["profile"] == "cpu"
    assert printed_lines[2] == "1 notebook checked, no violations"


def _set(i, **fields):
    def change(notebook):
        notebook.cells[i].update(fields)

    return change


def _append(i, text):
    def change(notebook):
        notebook.cells[i].source += text

    return change


def _outputs(i, *outputs):
    return _set(i, outputs=list(outputs))


def _tag(i, *tags):
    def change(notebook):
        notebook.cells[i].metadata["tags"] = list(tags)

    return change


def _insert(i, cell):
    def change(notebook):
        notebook.cells.insert(i, cell)

    return change


def _all_text(text):
    def change(notebook):
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = text

    return change


def _html(text):
    return new_output("display_data", data={"text/plain": "x", "text/html": text})


def _old_format(notebook):
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        del cell["id"]


ERROR = new_output("error", ename="ValueError", evalue="no", traceback=["..."])
STDERR = new_output("stream", name="stderr", text="oh\n")
TWENTY_SIX = "\n".join(f"x{i} = {i}" for i in range(26))
THIRTY_ONE = "\n".join(f"x{i} = {i}" for i in range(31))

BROKEN = {
    "duplicate id": (lambda n: n.cells[6].update(id=n.cells[5].id), 7, "has the id"),
    "metadata": (lambda n: n.cells[6].metadata.update(a=1), 7, "unwanted metadata: a"),
    "old format": (_old_format, None, "format 4.4"),
    "order": (_set(6, execution_count=7), 7, "execution count 7, should be 3"),
    "traceback": (_outputs(6, ERROR), 7, "stores a traceback (ValueError)"),
    "stderr": (_outputs(6, STDERR), 7, "writes to stderr: 'oh'"),
    "warning": (_outputs(6, printed("x: UserWarning: no\n")), 7, "UserWarning: no"),
    "path shown": (_outputs(6, printed("in /home/ann/x\n")), 7, "'/home/ann/x'"),
    "Windows path": (_outputs(6, printed(r"C:\Users\ann")), 7, "shows a local path"),
    "Colab path": (_outputs(6, printed("/content/x")), 7, "shows a local path"),
    "path in html": (_outputs(6, _html("<b>/tmp/x</b>")), 7, "'/tmp/x'"),
    "path named": (_append(6, "\nopen('/root/x')"), 7, "contains a local path"),
    "path in text": (_append(4, " In `/work/x`."), 5, "contains a local path"),
    "pyplot": (_append(6, "\nplt.show()"), 7, "bypasses plots.show"),
    "magic": (_append(6, "\n%matplotlib inline"), 7, "bypasses plots.show"),
    "marker": (_append(6, "\n# NBVAL_SKIP"), 7, "marks itself for nbval"),
    "empty cell": (_insert(6, code("")), 7, "is empty"),
    "size": (_outputs(6, printed("x" * 3_000_000)), None, "has 3.0 MB"),
    "no alt": (_outputs(5, image(alt="", text="x")), 6, "without alt text"),
    "blank alt": (_outputs(5, image(alt=" ")), 6, "without alt text"),
    "figure text": (
        _outputs(5, image(kind="image/jpeg", text="<Figure size 1x1>")),
        6,
        "without alt text",
    ),
    "remote output": (_outputs(6, _html("<img src='https://a.b/c.png'>")), 7, "a.b/c"),
    "hot link": (
        _append(4, "\n![x](https://a.b/c.png)"),
        5,
        "an image from elsewhere",
    ),
    "html hot link": (_append(4, '\n<img src="//a.b/c">'), 5, "an image from else"),
    "relative picture": (_append(4, "\n![x](img/c.png)"), 5, "from elsewhere: 'img/c"),
    "no title": (_set(0, source=OPENING.replace("# 1.", "## 1.")), 1, "begin with the"),
    "number": (_set(0, source=OPENING.replace("# 1.", "# 2.")), 1, "the title is '2."),
    "second title": (_append(4, "\n\n# Again"), 5, "second title 'Again'"),
    "jump": (_append(4, "\n\n#### Deep"), 5, "'Deep' jumps from level 2 to 4"),
    "section": (_set(11, source="## Refs"), None, "no section 'References'"),
    "no badge": (_set(0, source="# 1. A"), 1, "has no Colab badge"),
    "wrong badge": (
        _set(0, source=OPENING.replace(NAME, "02_other.ipynb")),
        1,
        "has no Colab badge that opens this notebook",
    ),
    "few words": (lambda n: n.cells.pop(1), None, "has 26 words"),
    "many words": (_append(4, " word" * 3_000), None, "has 5,130 words"),
    "words in code": (
        _set(1, source="## What you will learn\n```\n" + "word " * 2_100 + "\n```"),
        None,
        "has 30 words",
    ),
    "directive": (_append(4, "\n\n:::{note}\nx\n:::"), 5, "uses MyST syntax: ':::'"),
    "fence": (_append(4, "\n\n```{note}\nx\n```"), 5, "uses MyST syntax: '```{'"),
    "role": (_append(4, " See {doc}`x`."), 5, "uses MyST syntax"),
    "relative link": (_append(4, " [n](02_x.ipynb)"), 5, "relative link: '02_x.ipynb'"),
    "dead chapter": (
        _append(4, " [n](https://github.com/O/N/blob/main/notebooks/02_x.ipynb)"),
        5,
        "does not exist: 02_x.ipynb",
    ),
    "long line": (_append(6, "\n# " + "x" * 74), 7, "has 1 line over 75 characters"),
    "long cell": (_append(6, "\n" + TWENTY_SIX), 7, "has 28 lines"),
    "longer cell": (
        lambda n: (_append(6, "\n" + THIRTY_ONE)(n), _tag(6, "long-cell")(n)),
        7,
        "has 33 lines, at most 30",
    ),
    "two long cells": (
        lambda n: (_tag(6, "long-cell")(n), _tag(8, "long-cell")(n)),
        9,
        "is the second one tagged long-cell",
    ),
    "median": (
        lambda n: [_append(i, "\nx = 1" * 6)(n) for i in (3, 5, 6, 7)],
        None,
        "a median of 7 lines",
    ),
    "no code": (
        lambda n: [n.cells.pop(i) for i in (9, 8, 7, 6, 5, 3)],
        None,
        "no code",
    ),
    "no headings": (_all_text("Some words."), None, "has no headings"),
    "no assertion": (_set(8, source="print(2)"), 8, "neither it nor the next"),
    "empty assertion": (_set(8, source="assert True"), 8, "neither it nor the next"),
    "skipped assertion": (_tag(8, "nbval-skip"), {8, 9}, "neither it nor the next"),
    "too few compared": (_tag(9, "nbval-ignore-output"), None, "compares 60% of the"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_check_sees_what_it_is_for(name, tmp_path, capsys):
    change, cell, what = BROKEN[name]
    notebook = chapter()
    change(notebook)
    path = store(notebook, tmp_path / NAME)

    found = [f for f in violations_of(path) if what in f.what]

    assert found, violations_of(path)
    assert {f.cell for f in found} == (cell if isinstance(cell, set) else {cell})
    assert check_notebooks.main([str(path)]) == 1
    assert what in capsys.readouterr().out


def test_code_that_changed_since_it_ran_is_a_fault(tmp_path):
    path = store(chapter(), tmp_path / NAME)
    notebook = notebooks.read(path)
    notebook.cells[6].source += " # more"
    store(notebook, path, rehash=False)

    assert [f.what for f in violations_of(path)] == [
        "a code cell changed after the notebook ran"
    ]


def test_text_may_change_after_the_run(tmp_path):
    path = store(chapter(), tmp_path / NAME)
    notebook = notebooks.read(path)
    notebook.cells[4].source += " More."
    store(notebook, path, rehash=False)

    assert violations_of(path) == []


def test_a_notebook_that_never_ran_is_a_fault(tmp_path):
    path = tmp_path / NAME
    path.write_text(json.dumps(chapter()), encoding="utf-8")

    found = [f.what for f in violations_of(path)]

    assert "stores no hash of its code cells" in found
    assert "has execution count None, should be 1" in found


def test_outputs_of_the_quick_profile_are_a_fault(tmp_path):
    notebook = chapter()
    store(notebook, tmp_path / NAME)
    notebook.metadata.roadseg["profile"] = "quick"
    path = store(notebook, tmp_path / NAME, rehash=False)

    assert [f.what for f in violations_of(path)] == [
        "stores the outputs of the quick profile"
    ]


def test_a_changed_package_is_a_note_and_no_fault(tmp_path, capsys):
    notebook = chapter()
    store(notebook, tmp_path / NAME)
    notebook.metadata.roadseg["package"] = "0"
    path = store(notebook, tmp_path / NAME, rehash=False)

    assert check_notebooks.main([str(path)]) == 0
    assert "note: roadseg changed" in capsys.readouterr().out


def test_the_setup_cell_is_that_of_the_first_chapter(tmp_path):
    store(chapter(), tmp_path / NAME)
    second = chapter()
    second.cells[3].source = "import roadseg  # mine"
    second.cells[0].source = OPENING.replace("# 1.", "# 2.").replace(NAME, "02_b.ipynb")
    path = store(second, tmp_path / "02_b.ipynb")

    assert [(f.cell, f.what) for f in violations_of(path)] == [
        (4, f"the setup cell differs from that of {NAME}")
    ]


def test_later_chapters_may_compare_less(tmp_path):
    notebook = chapter()
    _tag(9, "nbval-ignore-output")(notebook)
    notebook.cells[9].source += "\nassert t < 9"
    notebook.cells[0].source = OPENING.replace("# 1.", "# 4.").replace(
        NAME, "04_b.ipynb"
    )
    path = store(notebook, tmp_path / "04_b.ipynb")

    assert violations_of(path) == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "does not exist"),
        ("{", "is not a notebook"),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "is not a notebook"),
        (
            '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}',
            "is not a valid notebook",
        ),
    ],
)
def test_a_file_that_is_no_notebook_is_one_line(content, what, tmp_path, capsys):
    if content is not None:
        (tmp_path / NAME).write_text(content, encoding="utf-8")

    assert check_notebooks.main([str(tmp_path / NAME)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert what in lines[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("One *two* three.", 3),
        ("one\n```python\ntwo three\n```\nfour", 2),
        ("one $a + b$ two $$\nc\n$$ three", 3),
        ("[one two](https://x.y/z) https://a.b <details>three</details> | - 4", 4),
    ],
)
def test_words_are_those_of_prose(text, words):
    assert len(chapters.prose(text).split()) == words


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("assert x == 1", True),
        ("torch.testing.assert_close(a, b)", True),
        ("if x:\n    assert y, 'no'", True),
        ("%timeit x\nassert x", True),
        ("assert True", False),
        ("# assert x\nprint('assert x')", False),
        ("not python", False),
    ],
)
def test_an_assertion_is_one_that_can_fail(source, answer):
    assert check_notebooks.asserts(source) is answer


# scripts/notebooks.py


def small(path, *sources):
    """Write a notebook of code cells that never ran."""
    notebooks.write(new_notebook(cells=[new_code_cell(s) for s in sources]), path)
    return path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\n", "a\nb\n"),
        ("1 of 2\r2 of 2\r      \rdone\n", "done\n"),
        ("10 %\r100 %\n", "100 %\n"),
        ("a\r\nb\n", "a\nb\n"),
        ("  5 %\r     \r", ""),
        ("\x1b[A\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
    ],
)
def test_text_that_a_progress_bar_overwrote_is_dropped(text, shown):
    assert notebooks.overwrite(text) == shown


def test_clean_keeps_tags_and_folding_and_joins_streams():
    notebook = chapter()
    cell = notebook.cells[6]
    cell.metadata = nbformat.from_dict(
        {"tags": ["a"], "cellView": "form", "execution": {}}
    )
    cell.outputs = [printed("a"), printed("\rb\n"), image(), printed("  \r")]
    notebook.metadata.update(widgets={}, accelerator="GPU", roadseg={"cells": "1"})

    notebooks.clean(notebook)

    assert cell.metadata == {"tags": ["a"], "cellView": "form"}
    assert [o.get("text", "image") for o in cell.outputs] == ["b\n", "image"]
    assert set(notebook.metadata) == {
        "accelerator",
        "kernelspec",
        "language_info",
        "roadseg",
    }


def test_execute_stores_outputs_hashes_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROADSEG_DATASET1", "mine.zip")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = small(
        tmp_path / "a.ipynb",
        "import os\nprint(os.environ['ROADSEG_PROFILE'], 'MPLBACKEND' in os.environ)",
        "print(os.environ['ROADSEG_DATASET1'], os.path.basename(os.getcwd()))",
        "",
        "print('1 of 2', end='\\r')\nprint('2 of 2')\nprint('!')\n3",
    )
    seen = []

    notebooks.execute(
        path, path, "cpu", strict=True, on_cell=lambda k, n: seen.append((k, n))
    )

    done = notebooks.read(path)
    cells = notebooks.code_cells(done)
    assert [c.execution_count for c in cells] == [1, 2, 3]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    # ipykernel sets MPLBACKEND itself, to inline
    assert cells[0].outputs[0].text == "cpu True\n"
    assert cells[1].outputs[0].text == f"{tmp_path / 'mine.zip'} notebooks\n"
    assert cells[2].outputs[0].text == "2 of 2\n!\n"
    assert cells[2].outputs[1].data == {"text/plain": "3"}
    assert done.metadata.roadseg == {
        "cells": notebooks.cells_hash(done),
        "package": notebooks.package_hash(),
        "profile": "cpu",
    }
    assert all(c.metadata == {} for c in done.cells)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1\nassert x == 2", "AssertionError in assert x == 2"),
        ("import sys\nprint('oh', file=sys.stderr)", "wrote to stderr: oh"),
        (
            "import os\nos._exit(1)",
            "the kernel died, most often because memory ran out",
        ),
    ],
)
def test_a_cell_that_fails_leaves_the_notebook_as_it_was(
    source, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(notebooks, "FAILED", tmp_path / "failed")
    path = small(tmp_path / "a.ipynb", "print(1)", source)
    before = path.read_bytes()

    assert notebooks.main(["execute", str(path), "--in-place"]) == 1

    assert f"a.ipynb, code cell 2: {reason}" in capsys.readouterr().err
    assert path.read_bytes() == before
    partly = notebooks.read(tmp_path / "failed" / "a.ipynb")
    assert partly.cells[0].outputs[0].text == "1\n"
    assert "roadseg" not in partly.metadata


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = small(tmp_path / "a.ipynb", "1")
    before = path.read_bytes()

    def fail(notebook, file):
        file.write("{half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nbformat, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        notebooks.write(new_notebook(), path)

    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ipynb"]


def test_package_hash_is_of_code_alone(tmp_path):
    def hash_of(text, name="a.py"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
        return notebooks.package_hash(folder)

    first = hash_of('"""Doc."""\ndef f(x):\n    """Doc."""\n    return "a" + x\n')

    assert hash_of('def f(x):  # why\n    "New."\n    return ("a"\n    + x)') == first
    assert hash_of('def f(x):\n    return "b" + x\n') != first
    assert hash_of('def f(x):\n    return "a" - x\n') != first
    assert hash_of('def f(x, y):\n    return "a" + x\n') != first
    assert hash_of('def f(x):\n    return "a" + x\n', "b.py") != first


def test_the_hash_ignores_the_address_of_the_repository_alone():
    def hash_of(source):
        return notebooks.cells_hash(new_notebook(cells=[new_code_cell(source)]))

    setup = 'if new:\n    url = "https://github.com/OWNER/NAME"\n    clone(url)'

    assert hash_of(setup.replace("OWNER/NAME", "me/my.course")) == hash_of(setup)
    assert hash_of(setup.replace("clone", "fetch")) != hash_of(setup)
    assert hash_of(setup.replace("github.com", "gitlab.com")) != hash_of(setup)
    assert hash_of(setup + '\nx = "https://github.com/me/x"') != hash_of(
        setup + '\nx = "https://github.com/me/y"'
    )


def test_another_address_than_that_of_the_project_is_a_violation(tmp_path):
    notebook = chapter()
    notebook.cells[0].source = OPENING.replace("OWNER/NAME", "me/mine")
    notebook.cells[3].source = 'x = 1\nurl = "https://github.com/me/mine"'
    path = store(notebook, tmp_path / NAME)

    assert [v.cell for v in violations_of(path)] == [1, 4]


def test_the_wanted_packages_may_differ_between_setup_cells(tmp_path):
    setup = "if new:\n    wanted = 'a'\n    wanted = [*wanted, 'b']\n    new = 1"
    first, second = chapter(), chapter()
    first.cells[3].source = setup
    second.cells[3].source = setup.replace("'b'", "'c'")
    second.cells[0].source = OPENING.replace("# 1.", "# 2.").replace(NAME, "02_b.ipynb")
    store(first, tmp_path / NAME)
    assert violations_of(store(second, tmp_path / "02_b.ipynb")) == []

    second.cells[3].source += "\n    new = 2"
    found = violations_of(store(second, tmp_path / "02_b.ipynb"))
    assert [(v.cell, v.what) for v in found] == [
        (4, f"the setup cell differs from that of {NAME}")
    ]


def test_copies_for_students_hold_no_solutions(tmp_path):
    folded = "<details><summary>{}</summary>\n\nIt is 42.\n\n</details>"
    cells = [
        new_markdown_cell("**1.** Why?\n\n" + folded.format("Solution") + "\n\nEnd."),
        code("x = 42", printed("42"), tags=["solution"]),
        new_markdown_cell(folded.format("More on this")),
        code("y = 1", printed("1")),
    ]
    path = store(new_notebook(cells=cells), tmp_path / NAME)
    before = path.read_bytes()

    assert notebooks.main(["students", str(path), "--out", str(tmp_path / "c")]) == 0

    assert path.read_bytes() == before
    copy = notebooks.read(tmp_path / "c" / NAME)
    assert copy.cells[0].source == "**1.** Why?\n\n*Your answer:*\n\nEnd."
    assert copy.cells[1].source == "# Your solution"
    assert copy.cells[1].outputs == []
    assert "42" in copy.cells[2].source  # folded, but no solution
    assert copy.cells[3].outputs[0].text == "1"


def test_jupytext_keeps_ids_outputs_and_what_was_stored(tmp_path):
    """The two commands that CONTRIBUTING.md gives for editing."""
    path, script = tmp_path / NAME, tmp_path / "draft.py"
    store(chapter(), path)
    before = notebooks.read(path)
    jupytext = [sys.executable, "-m", "jupytext"]
    out = {"check": True, "capture_output": True}
    subprocess.run(
        [*jupytext, "--to", "py:percent", "-o", str(script), str(path)], **out
    )
    text = script.read_text(encoding="utf-8").replace("print(3)", "print(4)")
    script.write_text(text + "\n# %%\nprint(5)\n", encoding="utf-8")
    subprocess.run(
        [*jupytext, "--update", "--to", "ipynb", "-o", str(path), str(script)], **out
    )

    after = notebooks.read(path)
    assert [c.id for c in after.cells[:-1]] == [c.id for c in before.cells]
    assert after.cells[5].outputs == before.cells[5].outputs
    assert after.cells[3].metadata == before.cells[3].metadata
    assert after.metadata.roadseg == before.metadata.roadseg
    assert "a code cell changed after the notebook ran" in [
        v.what for v in violations_of(path)
    ]


def test_read_gives_the_cells_of_an_old_notebook_ids(tmp_path):
    notebook = chapter()
    _old_format(notebook)
    path = store(notebook, tmp_path / NAME)

    new = notebooks.read(path)

    assert (new.nbformat, new.nbformat_minor) == (4, 5)
    assert len({c.id for c in new.cells}) == len(new.cells)


def test_bad_input_is_one_sentence(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text("{", encoding="utf-8")

    assert notebooks.main(["execute", str(tmp_path / "a.ipynb"), "--in-place"]) == 1
    assert "a.ipynb is not a notebook" in capsys.readouterr().err
