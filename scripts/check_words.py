"""Check the spelling and the wording of everything that people read.

    python scripts/check_words.py             # the whole repository
    python scripts/check_words.py README.md notebooks/01_*.ipynb

codespell looks for misspellings, for British spellings (the course is written in
American English), and for the words in scripts/words.txt; a few phrases are banned
below. Notebooks are checked by their sources, cell by cell, because their outputs
hold encoded images. Add the comment ``codespell:ignore WORD`` to a line to allow a
word there, such as one in the title of a cited article.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
WORDS = Path(__file__).with_name("words.txt")
PATTERNS = (
    "*.md",
    "*.toml",
    "*.cff",
    ".ci/*",
    ".github/**/*.yml",
    "*.yaml",
    "book/**/*.md",
    "book/*.py",
    "data/*.md",
    "benchmark/**/*.py",
    "benchmark/**/*.md",
    "scripts/*.py",
    "scripts/*.toml",
    "tests/*.py",
    "notebooks/roadseg/*.py",
    "notebooks/roadseg/*.html",
    "notebooks/roadseg/**/*.md",
    "notebooks/[0-9][0-9]_*.ipynb",
)
ALLOWED = ("unlabelled",)
"""CamVid's own name of a class."""
PHRASES = {
    r"\bif need be\b": "if necessary",
    r"\bin the stored run\b": "say once where the numbers come from",
    r"\b(?:is|are|was) to be had\b": "is available",
    r"\blearn(?:s|ed|t)? by heart\b": "memorize, overfit",
    r"\bput in words\b|\bin words what\b": "explain",
    r"\bevery(?:thing|one) save\b": "except",
}


def find_files() -> list[Path]:
    """Return the files of the repository that people read."""
    found = (path for pattern in PATTERNS for path in ROOT.glob(pattern))
    return sorted({path for path in found if path.is_file()})


def extract(paths: list[Path], folder: Path) -> None:
    """Copy the text of files into a folder, notebooks as one file per cell."""
    for path in paths:
        absolute = path.resolve()
        inside = absolute.is_relative_to(ROOT)
        name = absolute.relative_to(ROOT).as_posix() if inside else path.name
        if path.suffix == ".ipynb":
            cells = nbformat.read(path, as_version=4).cells
            texts = {f"{name} cell {i}": c.source for i, c in enumerate(cells, 1)}
        else:
            texts = {name: path.read_text(encoding="utf-8")}
        for name, text in texts.items():
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text + "\n", encoding="utf-8")


def find_words(folder: Path) -> list[str]:
    """Return what codespell finds in a folder, one line for each finding."""
    command = [sys.executable, "-m", "codespell_lib", "--check-hidden"]
    command += ["--builtin", "clear,en-GB_to_en-US", "-D", "-", "-D", str(WORDS)]
    command += ["--ignore-words-list", ",".join(ALLOWED), "."]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode not in (0, 65):  # 65: it found something
        raise RuntimeError(f"codespell failed: {done.stderr.strip()}")
    return [line.removeprefix("./") for line in done.stdout.splitlines() if line]


def find_phrases(folder: Path) -> list[str]:
    """Return the banned phrases in a folder, one line for each finding."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        text = path.read_text(encoding="utf-8")
        for pattern, better in PHRASES.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                number = text.count("\n", 0, match.start()) + 1
                name = path.relative_to(folder).as_posix()
                found.append(f"{name}:{number}: {match[0]} ==> {better}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Check the files that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="default: all")
    options = parser.parse_args(arguments)
    own = {Path(__file__).resolve()}  # it has to name what it bans
    paths = [p for p in options.files or find_files() if p.resolve() not in own]
    with tempfile.TemporaryDirectory() as scratch:
        extract(paths, Path(scratch))
        found = find_words(Path(scratch)) + find_phrases(Path(scratch))
    for line in found:
        print(line)
    print(f"{len(paths)} files checked, {len(found) or 'no'} words to replace")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
