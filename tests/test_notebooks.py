"""scripts/notebooks.py, chapters.py, and check_notebooks.py, on small notebooks."""

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
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}


def opening(number=1, name=NAME, repository="OWNER/NAME"):
    return f"""# {number}. A small notebook

[![Open in Colab]({check_notebooks.BADGE})](https://colab.research.google.com/github/\
{repository}/blob/main/notebooks/{name})

It has all that a chapter has."""


@pytest.fixture(autouse=True)
def small_package(tmp_path_factory, monkeypatch):
    """Stands in for roadseg, so that its hash takes no time."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "code.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(chapters, "PACKAGE", folder)


def image(alt="A road", kind="image/png", text=None):
    return new_output(
        "display_data",
        data={kind: "AAAA", "text/plain": alt if text is None else text},
        metadata={kind: {"alt": alt}} if alt else {},
    )


def printed(text):
    return new_output("stream", name="stdout", text=text)


def code(source, *outputs, tags=(), **metadata):
    metadata |= {"tags": list(tags)} if tags else {}
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def chapter(name=NAME):
    """A notebook without a fault; its cells can be named by their position."""
    return new_notebook(
        metadata=chapters.metadata(name),
        cells=[
            new_markdown_cell(opening(int(name[:2]), name)),  # 0
            code("import roadseg", tags=["nbval-ignore-output", "setup"], **FOLDED),
            code("draw()", image(), **FOLDED),  # 2
            new_markdown_cell("## What you will learn\n\n" + "word " * 2_100),
            new_markdown_cell("## Setup"),  # 4
            new_markdown_cell("## 1. A section\n\nSee [d](https://doi.org/1)."),
            code("x = 1\nprint(x)", printed("1\n")),  # 6
            code("print(t)", printed("2 s\n"), tags=["nbval-ignore-output"]),  # 7
            code("assert t < 9\nprint(2)", printed("2\n")),  # 8
            code("print(3)", printed("3\n")),  # 9
            new_markdown_cell("## Exercises\n\n### 1\n\n## What we learned"),
            new_markdown_cell("## References"),  # 11
        ],
    )


def store(notebook, path, rehash=True):
    """Write a notebook as if it had run, without nbformat's help or objections."""
    for k, cell in enumerate(chapters.code_cells(notebook), 1):
        cell.setdefault("execution_count", None)
        if cell.execution_count is None:
            cell.execution_count = k
    if rehash:
        notebook.metadata.roadseg = {
            "cells": chapters.cells_hash(notebook),
            "package": chapters.package_hash(),
            "profile": "cpu",
        }
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def violations_of(path):
    return check_notebooks.violations(check_notebooks.load(path))


# scripts/check_notebooks.py


@pytest.mark.parametrize("name", [NAME, "04_gpu.ipynb"])
def test_a_good_chapter_has_no_violations(name, tmp_path, capsys):
    path = store(chapter(name), tmp_path / name)

    assert violations_of(path) == []
    assert check_notebooks.main([str(path), "--report"]) == 0
    head, row, last = capsys.readouterr().out.splitlines()
    row = dict(zip(head.split(), row.split(), strict=True))
    assert (row["words"], row["cells"], row["profile"]) == ("2130", "6", "cpu")
    assert (row["bare"], row["compared"]) == ("0.67", "0.8")
    assert last == "notebooks checked: 1, violations: 0"


def _set(i, **fields):
    return lambda n: n.cells[i].update(fields)


def _add(i, text):
    return lambda n: n.cells[i].update(source=n.cells[i].source + text)


def _text(i, text):
    return _set(i, source=text)


def _out(i, *outputs):
    return _set(i, outputs=[printed(x) if isinstance(x, str) else x for x in outputs])


def _tag(i, *tags):
    return lambda n: n.cells[i].metadata.update(tags=list(tags))


def _drop(i, key):
    return lambda n: n.cells[i].metadata.pop(key)


def _all(*changes):
    return lambda n: [change(n) for change in changes]


def _html(text):
    return new_output("display_data", data={"text/plain": "x", "text/html": text})


ERROR = new_output("error", ename="ValueError", evalue="no", traceback=["..."])
STDERR = new_output("stream", name="stderr", text="oh\n")
FIGURE = image(kind="image/jpeg", text="<Figure size 1x1>")
LINES = {n: "\nx = 1" * n for n in (6, 26, 31)}
WORDS = "## What you will learn\n"
CHAPTER = "https://github.com/O/N/blob/main/notebooks/"
OPENING, MINE = opening(), 'x = 1\nurl = "https://github.com/me/mine"'

BROKEN = [
    (lambda n: n.cells[6].metadata.update(a=1), 7, "unwanted metadata: ['a']"),
    (lambda n: n.metadata.pop("kaggle"), None, "other metadata than its"),
    (lambda n: n.metadata.update(w={}), None, "other metadata than its"),
    (_set(6, execution_count=7), 7, "execution count 7, not 3"),
    (_out(6, ERROR), 7, "stores a traceback (ValueError)"),
    (_out(6, STDERR), 7, "writes to stderr: 'oh'"),
    (_out(6, "x: UserWarning: no\n"), 7, "UserWarning: no"),
    (_out(6, "in /home/ann/x\n"), 7, "'/home/ann/x'"),
    (_out(6, r"C:\Users\ann"), 7, "shows a local path"),
    (_out(6, "/content/x"), 7, "shows a local path"),
    (_out(6, _html("<b>/tmp/x</b>")), 7, "'/tmp/x'"),
    (_add(6, "\nopen('/root/x')"), 7, "contains a local path"),
    (_add(5, " In `/work/x`."), 6, "contains a local path"),
    (_add(6, "\nplt.show()"), 7, "bypasses plots.show"),
    (_add(6, "\n%matplotlib inline"), 7, "bypasses plots.show"),
    (_add(6, "\n# NBVAL_SKIP"), 7, "marks itself for nbval"),
    (lambda n: n.cells.insert(6, code("")), 7, "is empty"),
    (_out(6, "x" * 3_000_000), None, "has 3.0 MB"),
    (_out(2, image(alt="", text="x")), 3, "without alt text"),
    (_out(2, image(alt=" ")), 3, "without alt text"),
    (_out(2, FIGURE), 3, "without alt text"),
    (_out(6, _html("<img src='https://a.b/c.png'>")), 7, "a.b/c"),
    (_add(5, "\n![x](https://a.b/c.png)"), 6, "an image from elsewhere"),
    (_add(5, '\n<img src="//a.b/c">'), 6, "an image from elsewhere"),
    (_add(5, "\n![x](img/c.png)"), 6, "from elsewhere: 'img/c"),
    (_text(0, OPENING.replace("# 1.", "## 1.")), 1, "begin with the title"),
    (_text(0, OPENING.replace("# 1.", "# 2.")), 1, "begin with '# 1. "),
    (_text(0, "Words."), 1, "does not begin with the title"),
    (_add(5, "\n\n# Again"), 6, "second title 'Again'"),
    (_add(5, "\n\n#### Deep"), 6, "'Deep' jumps from level 2 to 4"),
    (_text(11, "## Refs"), None, "no section 'References'"),
    (_out(2, "x"), None, "has no figure before"),
    (lambda n: n.cells.insert(3, n.cells.pop(2)), None, "has no figure before"),
    (_drop(2, "cellView"), 3, "isn't folded"),
    (_drop(2, "jupyter"), 3, "isn't folded"),
    (_add(0, " word" * 150), 1, "words before its first figure"),
    (_text(0, "# 1. A"), 1, "has no Colab badge"),
    (_text(0, OPENING.replace(NAME, "02_b.ipynb")), 1, "has no Colab badge"),
    (_text(0, opening(repository="me/mine")), 1, "has no Colab badge"),
    (_text(1, MINE), 2, "clones another repository"),
    (_text(3, WORDS), None, "has 30 words"),
    (_text(3, f"{WORDS}```\n{'word ' * 2_100}\n```"), None, "has 30 words"),
    (_add(5, " word" * 2_100), None, "has 4,230 words"),
    (_add(5, "\n\n:::{note}\nx\n:::"), 6, "uses MyST syntax: ':::'"),
    (_add(5, "\n\n```{note}\nx\n```"), 6, "uses MyST syntax: '```{'"),
    (_add(5, " See {doc}`x`."), 6, "uses MyST syntax"),
    (_add(5, " [n](02_x.ipynb)"), 6, "relative link: '02_x.ipynb'"),
    (_add(5, f" [n]({CHAPTER}02_x.ipynb)"), 6, "does not exist: 02_x.ipynb"),
    (_add(6, LINES[26]), 7, "has 28 lines, not 25"),
    (_all(_add(6, LINES[31]), _tag(6, "long-cell")), 7, "has 33 lines, not 30"),
    (_all(*(_add(i, LINES[6]) for i in (1, 2, 6, 7))), None, "a median of 7 lines"),
    (lambda n: [n.cells.pop(i) for i in (9, 8, 7, 6, 2, 1)], None, "no code cells"),
    (_text(8, "print(2)"), 8, "neither it nor the next"),
    (_text(8, "assert True"), 8, "neither it nor the next"),
    (_text(8, "# assert x\nprint('assert x')  # assert_close(x)"), 8, "neither it"),
    (_tag(8, "nbval-skip"), {8, 9}, "neither it nor the next"),
    (_tag(9, "nbval-ignore-output"), None, "compares 60% of the"),
]


@pytest.mark.parametrize(("change", "cell", "what"), BROKEN)
def test_each_check_sees_what_it_is_for(change, cell, what, tmp_path, capsys):
    notebook = chapter()
    change(notebook)
    path = store(notebook, tmp_path / NAME)

    found = [f for f in violations_of(path) if what in f[1]]

    assert found, violations_of(path)
    assert {i for i, _ in found} == (cell if isinstance(cell, set) else {cell})
    assert check_notebooks.main([str(path)]) == 1
    assert what in capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    [
        "assert t == 1",
        "torch.testing.assert_close(a, b)",
        "if x:\n    assert y, 'no'",
        "%timeit x\nassert x",
    ],
)
def test_every_kind_of_assertion_counts(source, tmp_path):
    notebook = chapter()
    notebook.cells[8].source = source

    assert violations_of(store(notebook, tmp_path / NAME)) == []


STALE = ["a code cell changed after the notebook ran"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_add(6, " # more"), STALE),
        (_add(5, " More."), []),  # text
        (_tag(6, "a-tag"), []),  # metadata of a cell
        (lambda n: n.metadata.pop("roadseg"), ["stores no hash of its code cells"]),
        (
            lambda n: n.metadata.roadseg.update(profile="quick"),
            ["stores the outputs of the quick profile"],
        ),
    ],
)
def test_outputs_are_those_of_the_code_cells(change, expected, tmp_path):
    path = store(chapter(), tmp_path / NAME)
    notebook = chapters.read(path)
    change(notebook)
    store(notebook, path, rehash=False)

    assert [what.partition(";")[0] for _, what in violations_of(path)] == expected


def test_other_metadata_of_the_notebook_leaves_its_outputs_current(tmp_path):
    path = store(chapter(), tmp_path / NAME)
    notebook = chapters.read(path)
    notebook.metadata.pop("kaggle")
    store(notebook, path, rehash=False)
    assert len(violations_of(path)) == 1

    notebooks.clean(notebook, NAME)
    store(notebook, path, rehash=False)
    assert violations_of(path) == []


def test_a_changed_package_is_a_note_and_no_fault(tmp_path, capsys):
    notebook = chapter()
    store(notebook, tmp_path / NAME)
    notebook.metadata.roadseg["package"] = "0"
    path = store(notebook, tmp_path / NAME, rehash=False)

    assert check_notebooks.main([str(path)]) == 0
    assert "note: roadseg changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "same"), [("'c'", True), ("'b'  # mine\n    new = 2", False)]
)
def test_setup_cells_differ_in_the_wanted_packages_alone(change, same, tmp_path):
    setup = "if new:\n    wanted = 'a'\n    wanted = [*wanted, 'b']\n    new = 1"
    first, second = chapter(), chapter("02_b.ipynb")
    first.cells[1].source = setup
    second.cells[1].source = setup.replace("'b'", "'c'") + "\n    new = 2" * (not same)
    store(first, tmp_path / NAME)

    found = violations_of(store(second, tmp_path / "02_b.ipynb"))
    what = f"the setup cell differs from that of {NAME}"
    assert [(i, x.partition(";")[0]) for i, x in found] == [(2, what)] * (not same)


def test_chapters_have_limits_of_their_own(tmp_path):
    later, first = chapter("04_b.ipynb"), chapter("00_b.ipynb")
    _tag(9, "nbval-ignore-output")(later)
    _add(9, "\nassert t < 9")(later)
    assert violations_of(store(later, tmp_path / "04_b.ipynb")) == []

    ((_, what),) = violations_of(store(first, tmp_path / "00_b.ipynb"))
    assert what == "has 2,130 words of prose, not 1,000 to 1,800"


def _old_format(notebook):
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        del cell["id"]
    return json.dumps(notebook)


def _twins(notebook):
    notebook.cells[6].id = notebook.cells[5].id
    return json.dumps(notebook)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda n: None, "does not exist"),
        (lambda n: "{", "is not a valid notebook"),
        (
            lambda n: '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
            "not a valid",
        ),
        (
            lambda n: (
                '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}'
            ),
            "is not a valid notebook",
        ),
        (_old_format, "is not in format 4.5"),
        (_twins, 'is not a valid notebook: "Non-unique cell id'),
    ],
)
def test_a_file_that_is_no_notebook_is_one_line(content, what, tmp_path, capsys):
    if (text := content(chapter())) is not None:
        (tmp_path / NAME).write_text(text, encoding="utf-8")

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


# scripts/notebooks.py and chapters.py


def small(path, *sources):
    """Write a notebook of code cells that never ran."""
    chapters.write(new_notebook(cells=[new_code_cell(s) for s in sources]), path)
    return path


@pytest.mark.parametrize(
    ("pieces", "joined"),
    [
        (["a\n", "b\n"], ["a\nb\n"]),
        (["1 of 2\r2 of 2\r      \rdone\n"], ["done\n"]),
        (["10 %", "\r100 %\n"], ["100 %\n"]),
        (["a\r\nb\n"], ["a\nb\n"]),
        (["  5 %\r     \r"], []),
        (["\x1b[A\x1b[31mred\x1b[0m"], ["\x1b[31mred\x1b[0m"]),
        (["a", "image", "b", "  \r"], ["a", "image"]),
    ],
)
def test_streams_are_joined_without_what_a_progress_bar_overwrote(pieces, joined):
    outputs = [image() if x == "image" else printed(x) for x in pieces]
    found = notebooks.join_streams(outputs)
    assert [o.get("text", "image") for o in found] == joined


def test_clean_keeps_tags_folding_and_hashes_and_sets_the_accelerator():
    notebook = chapter()
    cell = notebook.cells[6]
    cell.metadata = nbformat.from_dict({"tags": ["a"], **FOLDED, "execution": {}})
    notebook.metadata = nbformat.from_dict({"widgets": {}, "roadseg": {"cells": "1"}})

    chapters.clean(notebook, "05_x.ipynb")

    assert cell.metadata == {"tags": ["a"], **FOLDED}
    stored = notebook.metadata
    assert "widgets" not in stored
    assert stored.roadseg == {"cells": "1"}
    assert (stored.accelerator, stored.colab.gpuType) == ("GPU", "T4")
    assert (stored.kaggle.accelerator, stored.kaggle.isGpuEnabled) == (
        "nvidiaTeslaT4",
        True,
    )
    chapters.clean(notebook, NAME)
    assert not {"accelerator", "colab"} & set(notebook.metadata)
    kaggle = notebook.metadata.kaggle
    assert (kaggle.isGpuEnabled, kaggle.isInternetEnabled) == (False, True)


def test_execute_stores_outputs_hashes_and_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROADSEG_DATASET1", "mine.zip")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "mine"))
    kernel = tmp_path / "mine" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)  # the user's own, which must not be used
    kernel.write_text('{"argv": ["nowhere"], "display_name": "", "language": "python"}')
    path = small(
        tmp_path / "04_a.ipynb",
        "import os\nprint(os.environ['ROADSEG_PROFILE'], os.environ['MPLBACKEND'])",
        "print(os.environ['ROADSEG_DATASET1'], os.path.basename(os.getcwd()))",
        "",
        "print('1 of 2', end='\\r')\nprint('2 of 2')\nprint('!')\n3",
        "import sys\nprint(sys.executable)",
    )
    seen = []

    notebooks.execute(path, path, "cpu", on_cell=lambda k, n: seen.append((k, n)))

    done = chapters.read(path)
    cells = chapters.code_cells(done)
    assert [c.execution_count for c in cells] == [1, 2, 3, 4]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "inline" in cells[0].outputs[0].text  # ipykernel's own setting
    assert cells[0].outputs[0].text.startswith("cpu ")
    assert cells[1].outputs[0].text == f"{tmp_path / 'mine.zip'} notebooks\n"
    assert cells[2].outputs[0].text == "2 of 2\n!\n"
    assert cells[2].outputs[1].data == {"text/plain": "3"}
    assert cells[3].outputs[0].text == f"{sys.executable}\n"
    assert done.metadata.pop("roadseg") == {
        "cells": chapters.cells_hash(done),
        "package": chapters.package_hash(),
        "profile": "cpu",
    }
    assert done.metadata == chapters.metadata("04_a.ipynb")
    assert all(c.metadata == {} for c in done.cells)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1\nassert x == 2", "AssertionError in assert x == 2"),
        ("import os\nos._exit(1)", "the kernel died"),
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
    partly = chapters.read(tmp_path / "failed" / "a.ipynb")
    assert partly.cells[0].outputs[0].text == "1\n"
    assert "roadseg" not in partly.metadata


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = small(tmp_path / "a.ipynb", "1")
    before = path.read_bytes()

    def fail(notebook, file):
        file.write_text("{half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nbformat, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        chapters.write(new_notebook(), path)

    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ipynb"]


FUNCTION = '"""Doc."""\ndef f(x):\n    """Doc."""\n    return "a" + x\n'


@pytest.mark.parametrize(
    ("text", "name", "same"),
    [
        ('def f(x):  # why\n    "New."\n    return ("a"\n    + x)', "a.py", True),
        ('def f(x):\n    return "b" + x\n', "a.py", False),
        ('def f(x):\n    return "a" - x\n', "a.py", False),
        ('def f(x):\n    return x + "a"\n', "a.py", False),
        ('def f(x, y):\n    return "a" + x\n', "a.py", False),
        ('def f(x):\n    return "a" + x\n', "b.py", False),
    ],
)
def test_package_hash_is_of_code_alone(text, name, same, tmp_path):
    def hash_of(text, name):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
        return chapters.package_hash(folder)

    assert (hash_of(text, name) == hash_of(FUNCTION, "a.py")) == same


def test_the_hash_ignores_the_address_of_the_repository_alone():
    def hash_of(source):
        return chapters.cells_hash(new_notebook(cells=[new_code_cell(source)]))

    setup = 'if new:\n    url = "https://github.com/OWNER/NAME"\n    clone(url)'

    assert hash_of(setup.replace("OWNER/NAME", "me/my.course")) == hash_of(setup)
    assert hash_of(setup.replace("clone", "fetch")) != hash_of(setup)
    assert hash_of(setup.replace("github.com", "gitlab.com")) != hash_of(setup)
    assert hash_of(setup + '\nx = "https://github.com/me/x"') != hash_of(
        setup + '\nx = "https://github.com/me/y"'
    )


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
    copy = chapters.read(tmp_path / "c" / NAME)
    assert copy.cells[0].source == "**1.** Why?\n\n*Your answer:*\n\nEnd."
    assert copy.cells[1].source == "# Your solution"
    assert copy.cells[1].outputs == []
    assert "42" in copy.cells[2].source  # folded, but no solution
    assert copy.cells[3].outputs[0].text == "1"


def test_copies_for_students_show_no_result_below_a_prediction():
    badge = "[![Open in Colab](https://colab.example/b.svg)](https://colab.example/x)"
    cells = [
        new_markdown_cell(f"# 1. A chapter\n\n{badge}\n\nText."),
        code("x = 1", printed("1")),
        new_markdown_cell("## 2\n\n> **Predict.** What comes?\n\nWe run it."),
        code("y = 2", printed("2")),
        new_markdown_cell("**Figure 1.1.** A caption."),
        code("z = 3", printed("3")),
        new_markdown_cell("## 3"),
        code("w = 4", printed("4")),
    ]
    copy = notebooks.without_solutions(new_notebook(cells=cells))
    assert copy.cells[0].source == "# 1. A chapter\n\nText."
    shown = [c.outputs[0].text for c in copy.cells if c.get("outputs")]
    assert shown == ["1", "4"]
    assert [len(c.outputs) for c in cells if c.cell_type == "code"] == [1] * 4


@pytest.mark.parametrize("solved", [False, True])
def test_a_copy_for_students_runs_as_it_is_and_with_its_solutions(solved, tmp_path):
    """Of chapter 1, which has the most solutions."""
    (path,) = chapters.NOTEBOOKS.glob("01_*.ipynb")
    original = chapters.read(path)
    copy = notebooks.without_solutions(original)
    taken = {c.id: c.source for c in original.cells if "solution" in chapters.tags(c)}
    assert len(taken) >= 3
    for cell in copy.cells:
        assert cell.id not in taken or cell.source == "# Your solution"
        cell.source = taken.get(cell.id, cell.source) if solved else cell.source
    chapters.write(copy, tmp_path / path.name)

    notebooks.execute(tmp_path / path.name, tmp_path / path.name, "quick")


def test_jupytext_keeps_ids_outputs_and_what_was_stored(tmp_path):
    """The two commands that CONTRIBUTING.md gives for editing."""
    name = "04_small.ipynb"
    path, script = tmp_path / name, tmp_path / "draft.py"
    store(chapter(name), path)
    before = chapters.read(path)

    def jupytext(*arguments):
        command = [sys.executable, "-m", "jupytext", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)

    jupytext("--to", "py:percent", "-o", script, path)
    text = script.read_text(encoding="utf-8").replace("print(3)", "print(4)")
    script.write_text(text + "\n# %%\nprint(5)\n", encoding="utf-8")
    jupytext("--update", "--to", "ipynb", "-o", path, script)

    after = chapters.read(path)
    assert [c.id for c in after.cells[:-1]] == [c.id for c in before.cells]
    assert after.cells[2].outputs == before.cells[2].outputs
    assert after.cells[1].metadata == before.cells[1].metadata
    assert after.metadata == before.metadata
    assert STALE[0] in [what.partition(";")[0] for _, what in violations_of(path)]


def test_read_gives_the_cells_of_an_old_notebook_ids(tmp_path):
    path = tmp_path / NAME
    path.write_text(_old_format(chapter()), encoding="utf-8")

    new = chapters.read(path)

    assert (new.nbformat, new.nbformat_minor) == (4, 5)
    assert len({c.id for c in new.cells}) == len(new.cells)


def test_bad_input_is_one_sentence(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text("{", encoding="utf-8")

    assert notebooks.main(["execute", str(tmp_path / "a.ipynb"), "--in-place"]) == 1
    assert "a.ipynb is not a valid notebook" in capsys.readouterr().err
