"""scripts/check_words.py: spelling and wording."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import check_words

# Written backwards, because this file is checked too.
REVERSED = ("ruoloc", "esilamron", "tsenommoc", "dednem", "eveicer")
ENGLISH = [word[::-1] for word in REVERSED]


@pytest.mark.parametrize("word", [*ENGLISH, "if need" + " be"])
def test_a_banned_word_is_found_with_its_line(word, tmp_path, capsys):
    path = tmp_path / "a.md"
    path.write_text(f"# A title\n\nHere is {word}.\n", "utf-8")

    assert check_words.main([str(path)]) == 1
    assert f"a.md:3: {word} ==> " in capsys.readouterr().out


def test_docstrings_comments_and_messages_of_code_are_checked(tmp_path, capsys):
    path = tmp_path / "a.py"
    text = f'"""A {ENGLISH[0]}."""\n\nprint("{ENGLISH[1]}")  # {ENGLISH[2]}\n'
    path.write_text(text, "utf-8")

    assert check_words.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert all(word in out for word in ENGLISH[:3])


def test_a_notebook_is_checked_by_its_sources_alone(tmp_path, capsys):
    output = new_output("stream", text=ENGLISH[0])
    cells = [new_markdown_cell("Fine."), new_code_cell("x = 1", outputs=[output])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert check_words.main([str(tmp_path / "a.ipynb")]) == 0

    cells.append(new_code_cell(f"# {ENGLISH[1]}"))
    nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert check_words.main([str(tmp_path / "a.ipynb")]) == 1
    assert f"a.ipynb cell 3:1: {ENGLISH[1]} ==> " in capsys.readouterr().out


def test_american_words_names_and_marked_lines_pass(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "Normalize the color of Unlabelled pixels.\n"
        f"Tom {ENGLISH[0]} # codespell:ignore {ENGLISH[0]}\n",
        "utf-8",
    )
    assert check_words.main([str(path)]) == 0
