"""Say where the repository lives: in the notebooks, the README and the site.

    python scripts/set_repository.py OWNER/NAME     # write it everywhere
    python scripts/set_repository.py                # the same, from git's origin
    python scripts/set_repository.py --check        # only say where it differs

The one place is ``Repository`` under ``[project.urls]`` in pyproject.toml, which the
site reads too. From there it goes into the notebooks (badges, links between chapters,
the setup cell; outputs stay) and into the texts that link to the repository. Only what
names the former repository changes, so that links to other repositories are safe.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat

import notebooks

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "OWNER/NAME"

SLUG = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?/[\w.-]*\w"
END = r"(?![\w-]|\.\w)"  # not within a longer name
OURS = re.compile(
    rf"(?:https://github\.com/|colab\.research\.google\.com/github/)({SLUG})"
    r"(?=/blob/main/notebooks/\d\d_)"
)
"""What names this repository, whatever it is called: a link to one of its chapters."""
SETUP_URL = re.compile(rf'(?m)^ +url = "https://github\.com/({SLUG})"$')


class RepositoryError(ValueError):
    """What is wrong with the repository's name, and what to do."""


def stored(root: Path) -> str:
    """Return OWNER/NAME as pyproject.toml has it.

    Raises:
        RepositoryError: If it has none.
    """
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    url = tomllib.loads(text).get("project", {}).get("urls", {}).get("Repository", "")
    match = re.fullmatch(rf"https://github\.com/({SLUG})", url)
    if not match:
        raise RepositoryError(
            "pyproject.toml names no repository: under [project.urls] it needs a line "
            f'Repository = "https://github.com/{PLACEHOLDER}"'
        )
    return match[1]


def from_git(root: Path) -> str:
    """Return OWNER/NAME of git's remote origin.

    Raises:
        RepositoryError: If there is none, or it is not on GitHub.
    """
    command = ["git", "config", "--get", "remote.origin.url"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    url = done.stdout.strip()
    pattern = rf"(?:https://(?:[^@/]+@)?|ssh://git@|git@)github\.com[/:]({SLUG})"
    match = re.fullmatch(pattern, url.removesuffix("/").removesuffix(".git"))
    if not match:
        said = f"git's origin is {url}, not on GitHub" if url else "git has no origin"
        raise RepositoryError(f"{said}: give the repository's name as OWNER/NAME.")
    return match[1]


def texts(root: Path) -> list[Path]:
    """Return the texts that may link to the repository, beside the notebooks."""
    folders = (root, root / "book", root / "data")
    return sorted(path for folder in folders for path in folder.glob("*.md"))


def chapters(root: Path) -> list[Path]:
    """Return the notebooks."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def rename(text: str, old: str, new: str) -> str:
    """Put another repository's name into the addresses in a text.

    Args:
        text: Any text.
        old: OWNER/NAME so far. Links to chapters are ours under whatever name.
        new: OWNER/NAME from now on.
    """
    text = OURS.sub(lambda m: m[0][: -len(m[1])] + new, text)
    hosts = r"(?:github\.com|colab\.research\.google\.com/github)/"
    text = re.sub(rf"({hosts}){re.escape(old)}{END}", rf"\g<1>{new}", text)
    (old_owner, old_name), (owner, name) = old.split("/"), new.split("/")
    pages = rf"\b{re.escape(old_owner)}\.github\.io/{re.escape(old_name)}{END}"
    return re.sub(pages, f"{owner}.github.io/{name}", text, flags=re.IGNORECASE)


def rename_in_notebook(path: Path, old: str, new: str) -> bool:
    """Do that in a notebook's cells; return whether it changed.

    Outputs stay. The stored hash of the code cells is taken anew only if it was
    right before: a notebook that had changed since it ran remains one that had.
    """
    notebook = notebooks.read(path)
    record = notebook.metadata.get("roadseg", {})
    current = record.get("cells") == notebooks.cells_hash(notebook)
    changed = False
    for cell in notebook.cells:
        source = rename(cell.source, old, new)
        if cell.cell_type == "code":
            source = SETUP_URL.sub(lambda m: m[0].replace(m[1], new), source)
        changed |= source != cell.source
        cell.source = source
    if not changed:
        return False
    if current:
        record["cells"] = notebooks.cells_hash(notebook)
    notebooks.write(notebook, path)
    return True


def write(root: Path, new: str) -> list[Path]:
    """Write a repository's name everywhere; return the files that changed."""
    old = stored(root)
    changed = [p for p in chapters(root) if rename_in_notebook(p, old, new)]
    for path in (*texts(root), root / "pyproject.toml"):  # the one place comes last
        before = path.read_bytes().decode("utf-8")
        after = rename(before, old, new)
        if after != before:
            path.write_bytes(after.encode("utf-8"))
            changed.append(path)
    return changed


def differences(root: Path) -> list[str]:
    """Return where another repository is named than in pyproject.toml."""
    wanted, found = stored(root), []
    for path in (*chapters(root), *texts(root)):
        pieces = [("", path.read_text(encoding="utf-8"))]
        if path.suffix == ".ipynb":
            cells = nbformat.read(path, as_version=4).cells
            pieces = [(f" cell {i}:", c.source) for i, c in enumerate(cells, 1)]
        for where, text in pieces:
            names = OURS.findall(text) + SETUP_URL.findall(text)
            names += re.findall(rf"github\.com/({PLACEHOLDER}){END}", text)
            for name in sorted(set(names) - {wanted}):
                shown = path.relative_to(root).as_posix()
                found.append(f"{shown}:{where} names {name}, pyproject.toml {wanted}")
    return found


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="OWNER/NAME")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            return _check(root, options.name)
        name = options.name or from_git(root)
        if not re.fullmatch(SLUG, name):
            raise RepositoryError(f"{name!r} is not of the form OWNER/NAME.")
        for path in write(root, name):
            print(path.relative_to(root).as_posix())
        print(f"The repository is {name}.")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _check(root: Path, name: str | None) -> int:
    found = differences(root)
    if name and name != stored(root):
        found.insert(0, f"pyproject.toml: names {stored(root)}, not {name}")
    for line in found:
        print(line)
    if not found:
        print(f"Everywhere the repository is {stored(root)}.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
