"""Build the course's site from the stored notebooks; nothing is executed.

    python scripts/build_book.py            # into build/site
    python scripts/build_book.py --open     # and show it
    python scripts/build_book.py --fetch    # only fetch what comes from npm

The chapters, with the outputs that they store, and the pages in book/ are copied to
build/book and prepared there: links between chapters lead to the site's own pages, the
Colab badge is a local picture, the code of solutions is folded, the first use of a term
links to the glossary, nothing is loaded from elsewhere. Sphinx makes the pages of that;
its warnings are errors. The finished site needs no network and no server.
"""

import argparse
import base64
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = ROOT / "notebooks"
PACKAGE = NOTEBOOKS / "roadseg"
BUILD = ROOT / "build"
CACHE = BUILD / "npm"

# MathJax with all of TeX in one file. Version 3: version 4 fetches its glyphs.
MATHJAX = ("mathjax", "3.2.2", ("es5/tex-svg-full.js", "LICENSE"))
AXE = ("axe-core", "4.14.1", ("axe.min.js",))  # for the test in a browser
PATIENCE = ["--fetch-retries=1", "--fetch-retry-mintimeout=2000"]
PATIENCE += ["--fetch-timeout=60000"]  # milliseconds; npm's own are minutes

AGAIN = "call: python3 scripts/course.py book"

COVER = "Four frames of the clip"
"""How the text alternative of the start page's figure begins, where it is there."""

CHAPTER_LINK = re.compile(
    r"https://github\.com/[\w.-]+/[\w.-]+/blob/main/notebooks/(\d\d_\w+\.ipynb)"
)
REMOTE_TAG = re.compile(
    r"<link\b[^>]*\bhref\s*=\s*[\"']?(?:https?:)?//[^>]*>"
    r"|<script\b[^>]*\bsrc\s*=\s*[\"']?(?:https?:)?//[^>]*>\s*</script>",
    re.IGNORECASE,
)
BADGE = re.compile(r"(\[!\[Open in Colab\])\([^)]*\)(\]\([^)]*\))")
UNTOUCHED = re.compile(
    r"(?ms)^\s*```.*?^\s*```\s*$"  # fenced code
    r"|^\s*(?:#|<).*?$"  # headings, lines of HTML
    r"|`+[^`]*`+|\$\$.*?\$\$|\$[^$\n]+\$"  # code and formulas
    r"|!?\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\]\([^)]*\)"  # links and pictures
    r"|<[^>\n]+>|https?://\S+"
)
"""What of a text no glossary link may be put into."""

CONTROLS = (
    # A control that shows words is called by these words, one without needs a name.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'(<button class="btn search-button-field[^>]*) aria-label="[^"]*"', r"\1"),
    (r'<summary>(?=<span class="toctree-toggle")', '<summary aria-label="Its pages">'),
    (r'<input (?=id="_anim_slider)', '<input aria-label="Frame" '),
)
"""What a screen reader would misread in pages of the theme and in matplotlib's film."""


class BookError(RuntimeError):
    """The site cannot be built, and why, in a sentence that says what to do."""


@dataclass
class Chapter:
    """A notebook that becomes a page.

    Attributes:
        path: The notebook.
        notebook: What is in it.
        can: What one can do after reading it, from the README's table.
    """

    path: Path
    notebook: NotebookNode = field(repr=False)
    can: str = ""

    @property
    def texts(self) -> list[str]:
        """The sources of its text cells."""
        return [c.source for c in self.notebook.cells if c.cell_type == "markdown"]

    @property
    def title(self) -> str:
        """The title, with its number."""
        for text in self.texts:
            if match := re.search(r"(?m)^# +(.+?) *$", text):
                return match[1]
        return self.path.stem

    @property
    def number(self) -> int:
        """The number that the file's name begins with."""
        return int(self.path.name[:2])

    @property
    def time(self) -> str:
        """Its own sentences about the time it takes; empty if it has none."""
        for text in self.texts:
            if "## What you will learn" not in text:
                continue
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*_`]", r"\1", text)
            plain = re.sub(r"(?m)^\s*(?:[-|#]|\d+\.).*$", " ", plain)
            plain = re.sub(r"\b(?:Time|Prerequisites|Before this):\s*", "", plain)
            found = [
                " ".join(sentence.split())
                for sentence in re.split(r"(?<=[.!?])\s+|\n\n", plain)
                if re.search(r"\b(?:minutes?|hours?|seconds?)\b", sentence)
            ]
            words = " ".join(found)
            return words[:1].upper() + words[1:]
        return ""

    @property
    def references(self) -> list[str]:
        """The entries of its list of references, one line each, up to their links."""
        text = next((t for t in self.texts if "## References" in t), "")
        text = text.partition("## References")[2]
        items = re.split(r"(?m)^[-*] +", text)[1:]
        lines = [" ".join(item.partition("\n\n")[0].split()) for item in items]
        return [re.sub(r"(\]\([^()]*\)\.?)(?!.*\]\().*", r"\1", line) for line in lines]

    def pictures(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield its pictures: text alternative, kind (png or jpeg), bytes."""
        for cell in self.notebook.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                for kind in ("jpeg", "png"):
                    if content := data.get(f"image/{kind}"):
                        alt = " ".join(data.get("text/plain", "").split())
                        yield alt, kind, base64.b64decode(content)
                        break


# What comes from npm ------------------------------------------------------------


def fetch(package: tuple[str, str, tuple[str, ...]]) -> Path:
    """Return a folder with files of an npm package, fetched unless it is there.

    Args:
        package: Name, version, and the files wanted.

    Raises:
        BookError: If the package is not there and npm cannot fetch it.
    """
    name, version, files = package
    folder = CACHE / f"{name}-{version}"
    if all((folder / Path(file).name).exists() for file in files):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise BookError(
            f"The site needs the npm package {name} {version}, and npm is not "
            f"installed: install Node.js (https://nodejs.org), then {AGAIN}."
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [npm, "pack", f"{name}@{version}", "--pack-destination", scratch]
        command += PATIENCE
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise BookError(
                f"npm could not fetch {name} {version} ({_reason(done.stderr)}): "
                f"connect this machine to the network, once, and {AGAIN}."
            )
        _unpack(archives[0], files, Path(scratch) / "files")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(Path(scratch) / "files", folder)
    return folder


def _reason(said: str) -> str:
    """Return the kind of npm's error, such as ENOTFOUND, or the first line it said."""
    if match := re.search(r"(?m)^npm \S+ code (\w+)", said):
        return match[1]
    return (said.strip() or "npm said nothing").splitlines()[0]


def _unpack(archive: Path, files: tuple[str, ...], folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for file in files:
            content = tar.extractfile(f"package/{file}")
            (folder / Path(file).name).write_bytes(content.read())


# Preparing the pages ------------------------------------------------------------


def read_chapters(notebooks: Path, readme: Path) -> list[Chapter]:
    """Read the chapters in a folder, in order, and what the README says of them.

    Raises:
        BookError: If there are none, or one is no notebook.
    """
    paths = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise BookError(f"There are no chapters (01_name.ipynb) in {notebooks}.")
    row = re.compile(r"(?m)^\| *\[[^\]]*\]\(notebooks/([^)]+)\) *\| *(.*?) *\|")
    can = dict(row.findall(readme.read_text(encoding="utf-8")))
    chapters = []
    for path in paths:
        try:
            notebook = nbformat.read(path, as_version=4)
        except (ValueError, KeyError, nbformat.ValidationError) as error:
            said = str(error).splitlines()[0][:80]
            raise BookError(f"{path} is not a notebook: {said}") from None
        chapters.append(Chapter(path, notebook, can.get(path.name, "")))
    return chapters


def link_chapters(text: str, there: set[str]) -> str:
    """Turn links to chapters on GitHub into links to the site's own pages."""
    badge = "https://colab.research.google.com/github/"
    return CHAPTER_LINK.sub(
        lambda m: m[1] if m[1] in there else m[0], text.replace(badge, "\0")
    ).replace("\0", badge)


def glossary_terms(text: str) -> list[str]:
    """Return the terms of a glossary page, longest first."""
    inside = re.search(r"(?ms)^```\{glossary\}\n(.*?)^```", text)
    terms = re.findall(r"(?m)^(\S.*)$", inside[1]) if inside else []
    return sorted(terms, key=len, reverse=True)


def link_terms(text: str, terms: list[str]) -> str:
    """Link the first use of each term in a text to the glossary.

    Args:
        text: Markdown. Headings, code, formulas and links are left alone.
        terms: Those not yet linked; what is linked here is taken out.
    """

    def link(piece: str) -> str:
        for term in list(terms):
            # A capital U in U-Net matters; the first letter of "void" does not.
            pattern = rf"(?<![\w`<{{-]){_pattern(term)}(?:e?s)?(?![\w`>-])"
            if match := re.search(pattern, piece):
                terms.remove(term)
                role = f"{{term}}`{match[0]} <{term}>`"
                before, after = piece[: match.start()], piece[match.end() :]
                return link(before) + role + link(after)
        return piece

    pieces, end = [], 0
    for match in UNTOUCHED.finditer(text):
        pieces += [link(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*pieces, link(text[end:])])


def _pattern(term: str) -> str:
    words = re.escape(term).replace(r"\ ", r"\s+")
    first = term[0]
    return f"[{first.upper()}{first}]{words[1:]}" if first.islower() else words


def prepare(chapter: Chapter, there: set[str], terms: list[str]) -> NotebookNode:
    """Return a chapter as the site shows it; the chapter itself stays as it is."""
    notebook = nbformat.from_dict(chapter.notebook)
    notebook = NotebookNode(
        {**notebook, "cells": [nbformat.from_dict(dict(c)) for c in notebook.cells]}
    )
    left = list(terms)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _prepare_code(cell)
            continue
        download = (
            f"{{download}}`Download this notebook <download/{chapter.path.name}>`"
        )
        badge = rf"\1(_static/open-in-colab.svg)\2 {download}"
        cell.source = BADGE.sub(badge, link_chapters(cell.source, there))
        if not re.search(r"(?m)^## (?:References|What you will learn)", cell.source):
            cell.source = link_terms(cell.source, left)
    return notebook


def _prepare_code(cell: NotebookNode) -> None:
    tags = list(cell.metadata.get("tags", []))
    prompts = {"solution": "Show the code of the solution", "setup": "Show the setup"}
    for tag, prompt in prompts.items():
        if tag in tags:
            tags.append("hide-cell" if tag == "solution" else "hide-input")
            hide = prompt.replace("Show", "Hide")
            shown = {"code_prompt_show": prompt, "code_prompt_hide": hide}
            cell.metadata = NotebookNode(tags=tags, mystnb=shown)
            break
    cell.outputs = [nbformat.from_dict(dict(output)) for output in cell.outputs]
    for output in cell.outputs:
        if "text/html" in output.get("data", {}):
            output.data = {**output.data}
            output.data["text/html"] = REMOTE_TAG.sub("", output.data["text/html"])


def cover(chapters: list[Chapter], folder: Path) -> str:
    """Write the start page's figure into a folder; return the Markdown for it.

    It is the one that COVER names; without it the last chapter's first photo.
    """
    found = [(c, *picture) for c in chapters for picture in c.pictures()]
    best = [x for x in found if x[1].startswith(COVER)]
    photos = [x for x in found if x[2] == "jpeg"]
    last = [x for x in photos if x[0] is photos[-1][0]]
    if not (best or last):
        return ""
    chapter, alt, kind, content = (best or last)[0]
    (folder / f"cover.{kind}").write_bytes(content)
    link = f"[chapter {chapter.number}]({chapter.path.name})"
    return (
        f"```{{figure}} cover.{kind}\n:alt: {alt}\n\n{alt.rstrip('.')}. From {link}; "
        "pictures: CamVid.\n```"
    )


def cards(chapters: list[Chapter]) -> str:
    """Return the start page's list of chapters, as Markdown."""
    blocks = [":::::{grid} 1 1 2 2\n:gutter: 3\n"]
    for chapter in chapters:
        can = f"You will be able to {chapter.can}." if chapter.can else ""
        foot = f":::{{card-footer}}\n{chapter.time}\n:::\n" if chapter.time else ""
        blocks.append(
            f"::::{{grid-item-card}} {chapter.title}\n:link: {chapter.path.stem}\n"
            f":link-type: doc\n\n{can}\n\n{foot}::::\n"
        )
    return "\n".join([*blocks, ":::::"])


def references(chapters: list[Chapter]) -> str:
    """Return all that the chapters cite, once each, sorted by author, as Markdown."""
    works: list[tuple[list[str], list[Chapter]]] = []
    for chapter in chapters:
        for item in chapter.references:
            for items, cited in works:
                if any(_same_work(item, other) for other in items):
                    items.append(item)
                    cited += [] if chapter is cited[-1] else [chapter]
                    break
            else:
                works.append(([item], [chapter]))
    lines = []
    for items, cited in sorted(works, key=lambda work: _author(work[0][0])):
        best = max(items, key=lambda x: ("//doi.org/" in x, len(x)))
        pages = ", ".join(f"[{c.number}]({c.path.name})" for c in cited)
        noun = "Chapter" if len(cited) == 1 else "Chapters"
        lines.append(f"- {best} *{noun} {pages}.*")
    return "\n".join(lines) or "The chapters cite nothing yet."


def _same_work(one: str, other: str) -> bool:
    """Tell whether two entries, written by different hands, are of one work.

    They are if they link to the same address, or if author and year are the same and
    one has most of the other's words.
    """
    links = [re.search(r"\]\((\S+?)/?\)", x) for x in (one, other)]
    if all(links) and links[0][1].lower() == links[1][1].lower():
        return True
    plain = [re.sub(r"\[[^\]]*\]\([^)]*\)", "", x).lower() for x in (one, other)]
    years = [re.findall(r"\b(?:19|20)\d\d\b", x)[:1] for x in plain]
    if not years[0] or years[0] != years[1] or _author(one) != _author(other):
        return False
    words = [set(re.findall(r"[^\W\d]{4,}", x)) for x in plain]
    return len(words[0] & words[1]) > 0.6 * min(map(len, words))


def _author(item: str) -> str:
    """Return what an entry is sorted by: the first author's last name."""
    name = re.match(r"(?:[A-Z]\.[- ]?)*([^\W\d_][\w'-]*)", item)
    return (name[1] if name else item).lower()


def stage(folder: Path, notebooks: Path, mathjax: Path) -> int:
    """Put all that Sphinx reads into an empty folder; return the number of chapters.

    Args:
        folder: Where it goes: ``source`` and ``static``.
        notebooks: The folder of the chapters.
        mathjax: The folder with MathJax's file, or any file of that name.
    """
    source, static = folder / "source", folder / "static" / "mathjax"
    (source / "download").mkdir(parents=True)
    (source / "api").mkdir()
    static.mkdir(parents=True)
    shutil.copy(mathjax / "tex-svg-full.js", static / "tex-svg.js")
    if (mathjax / "LICENSE").exists():
        shutil.copy(mathjax / "LICENSE", static / "LICENSE.txt")
    shutil.copytree(BOOK / "_static", source / "_static")

    chapters = read_chapters(notebooks, ROOT / "README.md")
    there = {chapter.path.name for chapter in chapters}
    fill = {
        "<!-- cover -->": cover(chapters, source),
        "<!-- chapters -->": cards(chapters),
        "<!-- references -->": references(chapters),
    }
    for page in sorted(BOOK.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for mark, content in fill.items():
            text = text.replace(mark, content)
        text = link_chapters(text, there)
        (source / page.name).write_text(text, encoding="utf-8")
    terms = glossary_terms((BOOK / "glossary.md").read_text(encoding="utf-8"))
    for chapter in chapters:
        shutil.copy(chapter.path, source / "download")
        prepared = prepare(chapter, there, terms)
        nbformat.write(prepared, source / chapter.path.name)
    for name in sorted(path.stem for path in PACKAGE.glob("[a-z]*.py")):
        text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: roadseg.{name}\n```\n"
        (source / "api" / f"{name}.md").write_text(text, encoding="utf-8")
    return len(chapters)


# Building -----------------------------------------------------------------------


def build(
    out: Path = BUILD / "site",
    notebooks: Path = NOTEBOOKS,
    mathjax: Path | None = None,
) -> int:
    """Build the site; return the number of chapters. An old site goes at the end.

    Args:
        out: Where the site goes.
        notebooks: The folder of the chapters.
        mathjax: A folder with MathJax's file; without it, npm's package.

    Raises:
        BookError: If something is missing, or Sphinx has an error or a warning.
    """
    missing = [m for m in ("sphinx", "myst_nb") if not importlib.util.find_spec(m)]
    if missing:
        raise BookError(
            f"This Python ({sys.executable}) lacks {', '.join(missing)}: "
            "pip install -r book/requirements.txt"
        )
    mathjax = mathjax or fetch(MATHJAX)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".book-") as scratch:
        folder = Path(scratch)
        chapters = stage(folder, notebooks, mathjax)
        _run_sphinx(folder)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(folder / "html", out)
    return chapters


def _run_sphinx(folder: Path) -> None:
    static = f"{BOOK / '_static'},{folder / 'static'}"
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W"]
    command += ["-c", str(BOOK), "-d", str(folder / "doctrees")]
    command += ["-D", f"html_static_path={static}"]
    command += [str(folder / "source"), str(folder / "html")]
    environment = {**os.environ, "ROADSEG_PROFILE": "quick", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        said = (done.stderr + done.stdout).replace(f"{folder}{os.sep}", "").strip()
        raise BookError(f"Sphinx found faults, so the site was not built:\n{said}")
    for left in (".buildinfo", "objects.inv"):
        (folder / "html" / left).unlink(missing_ok=True)
    shutil.rmtree(folder / "html" / "_sources", ignore_errors=True)
    for page in (folder / "html").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for pattern, replacement in CONTROLS:
            text = re.sub(pattern, replacement, text)
        page.write_text(text, encoding="utf-8", newline="\n")
    (folder / "html" / ".nojekyll").touch()  # GitHub Pages keeps folders with a _


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--open", action="store_true", help="show it in a browser")
    what.add_argument("--fetch", action="store_true", help="only fetch npm's packages")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        if options.fetch:
            print(f"Fetched: {fetch(MATHJAX)}, {fetch(AXE)}")
            return 0
        chapters = build()
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    index = BUILD / "site" / "index.html"
    seconds = time.monotonic() - start
    print(f"{chapters} chapters in {seconds:.0f} s: {index.relative_to(ROOT)}")
    if options.open:
        webbrowser.open(index.as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
