"""Build the course's site from the stored notebooks; nothing is executed.

    python scripts/build_book.py                # into build/site
    python scripts/build_book.py --open         # and open it in a browser
    python scripts/build_book.py --linkcheck    # request every external link
    python scripts/build_book.py --fetch        # only download the npm packages

The notebooks and the pages in book/ are copied to one folder, where Sphinx reads them.
book/conf.py passes each source to `prepare_page` or `prepare_notebook` below. The
finished site needs no network, and only its page "Try it" needs a server.
"""

import argparse
import base64
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import webbrowser
from pathlib import Path

import nbformat
from nbformat import NotebookNode

import notebooks

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = ROOT / "notebooks"
PACKAGE = NOTEBOOKS / "roadseg"
BUILD = ROOT / "build"
LOCK = BOOK / "package-lock.json"
NPM = BUILD / "npm"
"""Where the packages are installed that book/package.json lists.

MathJax is version 3, because version 4 loads glyphs from elsewhere. axe-core is for the
tests in a browser.
"""
MATHJAX = ("es5/tex-svg-full.js", "LICENSE")
RUNTIME = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""The files of onnxruntime-web for a browser without and with WebGPU."""
AGAIN = "run: python3 scripts/course.py book"
SERVE = (
    'Its page "Try it" needs a server: python3 -m http.server --directory build/site, '
    "then open http://localhost:8000/try.html"
)
TRY = re.compile(r"(?s)<!-- try -->.*<!-- /try -->")

CHAPTER_LINK = re.compile(
    r"(?<!google\.com/github/)https://github\.com/[\w.-]+/[\w.-]+"
    r"/blob/main/notebooks/(\d\d_\w+\.ipynb)"
)
REMOTE_TAG = re.compile(
    r"<link\b[^>]*\bhref\s*=\s*[\"']?(?:https?:)?//[^>]*>"
    r"|<script\b[^>]*\bsrc\s*=\s*[\"']?(?:https?:)?//[^>]*>\s*</script>",
    re.IGNORECASE,
)
BADGE = re.compile(r"(\[!\[Open in Colab\])\([^)]*\)(\]\([^)]*\))")
UNLINKABLE = re.compile(
    r"(?ms)^\s*```.*?^\s*```\s*$"  # fenced code
    r"|^\s*(?:#|<).*?$"  # headings, lines of HTML
    r"|`+[^`]*`+|\$\$.*?\$\$|\$[^$\n]+\$"  # code and formulas
    r"|!?\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\]\([^)]*\)"  # links and images
    r"|<[^>\n]+>|https?://\S+"
)
"""Parts of a text that no glossary link may be put into."""
PROMPTS = {"solution": "the solution", "setup": "the setup", "hide-cell": "the code"}
"""What the site folds, by the tag of the cell."""
ACCESSIBILITY = (
    # A screen reader takes the label of a control before the words that it shows.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'(<button class="btn search-button-field[^>]*) aria-label="[^"]*"', r"\1"),
    (r'<summary>(?=<span class="toctree-toggle")', '<summary aria-label="Its pages">'),
    (r'<input (?=id="_anim_slider)', '<input aria-label="Frame" '),
)
"""Corrections of labels that the theme and matplotlib's animations have or lack."""


class BookError(RuntimeError):
    """Why the site can't be built, in a message that says what to do."""


# Preparing the pages (called by book/conf.py) -----------------------------------


def link_sections(text: str) -> str:
    """Turn Jupyter's links to sections, #2.-A-title, into the site's, #2-a-title."""

    def slug(match: re.Match) -> str:
        return "](#" + re.sub(r"[^\w-]", "", match[1].lower()) + ")"

    return re.sub(r"\]\(#([^)\s]+)\)", slug, text)


def link_chapters(text: str) -> str:
    """Turn links to chapters on GitHub into links to the site's own pages."""
    known = {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    return CHAPTER_LINK.sub(lambda m: m[1] if m[1] in known else m[0], text)


def glossary_terms(text: str) -> list[str]:
    """Return the terms of a glossary page, longest first."""
    inside = re.search(r"(?ms)^```\{glossary\}\n(.*?)^```", text)
    terms = re.findall(r"(?m)^(\S.*)$", inside[1]) if inside else []
    return sorted(terms, key=len, reverse=True)


def link_terms(text: str, terms: list[str]) -> str:
    """Link the first use of each term in a text to the glossary.

    Args:
        text: Markdown. Headings, code, formulas, and links stay as they are.
        terms: Those not linked yet; those linked here are removed from the list.
    """

    def link(piece: str) -> str:
        for term in list(terms):
            words = re.escape(term).replace(r"\ ", r"\s+")
            if term[0].islower():  # "Void" is "void", but "u-net" isn't "U-Net"
                words = f"[{term[0].upper()}{term[0]}]{words[1:]}"
            if match := re.search(rf"(?<![\w`<{{-]){words}(?:e?s)?(?![\w`>-])", piece):
                terms.remove(term)
                before, after = piece[: match.start()], piece[match.end() :]
                return f"{link(before)}{{term}}`{match[0]} <{term}>`{link(after)}"
        return piece

    pieces, end = [], 0
    for match in UNLINKABLE.finditer(text):
        pieces += [link(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*pieces, link(text[end:])])


def prepare_notebook(text: str, name: str) -> str:
    """Return the source of a chapter as the site shows it.

    Links between chapters lead to pages, terms to the glossary, the badge is a local
    image, code that is tagged so is folded, nothing is loaded from elsewhere.
    """
    notebook = nbformat.reads(text, as_version=4)
    terms = glossary_terms((BOOK / "glossary.md").read_text(encoding="utf-8"))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _prepare_code(cell)
        elif cell.cell_type == "markdown":
            download = (
                f"{{download}}`Download this notebook <download/{name}>`, or "
                f"{{download}}`a copy without solutions <download/students/{name}>`"
            )
            badge = rf"\1(_static/open-in-colab.svg)\2 {download}"
            linked = link_sections(link_chapters(cell.source))
            cell.source = BADGE.sub(badge, linked)
            unlinked = r"(?m)^## (?:References|What you will learn)"
            if not re.search(unlinked, cell.source):
                cell.source = link_terms(cell.source, terms)
    return nbformat.writes(notebook)


def _prepare_code(cell: NotebookNode) -> None:
    tags = list(cell.metadata.get("tags", []))
    for tag in PROMPTS.keys() & set(tags):
        # figures stay in sight; only their code is folded
        shown = tag == "setup" or (tag == "hide-cell" and cell.outputs)
        kept = [t for t in tags if t not in ("hide-cell", "hide-input")]
        cell.metadata.tags = [*kept, "hide-input" if shown else "hide-cell"]
        cell.metadata.mystnb = {
            "code_prompt_show": f"Show {PROMPTS[tag]}",
            "code_prompt_hide": f"Hide {PROMPTS[tag]}",
        }
    for output in cell.outputs:
        if html := output.get("data", {}).get("text/html"):
            output.data["text/html"] = REMOTE_TAG.sub("", html)


def prepare_page(text: str) -> str:
    """Return the source of a page in book/ as the site shows it."""
    if "<!-- references -->" in text:
        text = text.replace("<!-- references -->", references())
    return link_chapters(text)


def references() -> str:
    """Return what the chapters cite, chapter by chapter, as Markdown."""
    parts = []
    for path in chapters():
        cells = nbformat.read(path, as_version=4).cells
        texts = [c.source for c in cells if c.cell_type == "markdown"]
        title = re.match(r"# (.+)", texts[0])[1]
        cited = "\n\n".join(texts).partition("## References\n")[2].partition("\n## ")[0]
        items = re.findall(r"(?m)^[-*] .+(?:\n(?![-*\n]).+)*", cited)
        parts += [f"## [{title}]({path.name})", "\n".join(items)]
    return "\n\n".join(parts)


def chapters() -> list[Path]:
    """Return the paths of the chapters.

    Raises:
        BookError: If there are none.
    """
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise BookError(f"There are no chapters (01_name.ipynb) in {NOTEBOOKS}.")
    return paths


# Building -----------------------------------------------------------------------


def fetch() -> Path:
    """Return the folder of the installed npm packages; install them if necessary.

    npm compares each with its checksum in book/package-lock.json.

    Raises:
        BookError: If npm is missing or can't install them.
    """
    packages, done = NPM / "node_modules", NPM / "installed.json"
    if done.exists() and done.read_bytes() == LOCK.read_bytes():
        return packages
    npm = shutil.which("npm")
    if npm is None:
        raise BookError(
            "The site needs packages from npm, and npm is not installed: install "
            f"Node.js (https://nodejs.org), then {AGAIN}."
        )
    shutil.rmtree(NPM, ignore_errors=True)
    NPM.mkdir(parents=True)
    for file in (LOCK, LOCK.with_name("package.json")):
        shutil.copy(file, NPM)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=2000"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=NPM)
    if result.returncode:
        code = re.search(r"(?m)^npm \S+ code (\w+)", result.stderr)
        reason = code[1] if code else result.stderr.strip()[:200]
        raise BookError(
            f"npm could not download the site's packages ({reason}): connect this "
            f"machine to the network once, and {AGAIN}."
        )
    shutil.copy(LOCK, done)
    return packages


def stage(folder: Path, packages: Path) -> None:
    """Copy everything that Sphinx reads into an empty folder."""
    shutil.copytree(BOOK, folder, dirs_exist_ok=True)
    for name in ("api", "download", "_static/mathjax"):
        (folder / name).mkdir()
    for file in MATHJAX:
        shutil.copy(packages / "mathjax" / file, folder / "_static" / "mathjax")
    for path in chapters():
        shutil.copy(path, folder)
        shutil.copy(path, folder / "download")
        copy = notebooks.without_solutions(notebooks.read(path))
        notebooks.write(copy, folder / "download" / "students" / path.name)
    for name in sorted(path.stem for path in PACKAGE.glob("[a-z]*.py")):
        text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: roadseg.{name}\n```\n"
        (folder / "api" / f"{name}.md").write_text(text, encoding="utf-8")
    index = folder / "index.md"
    text = index.read_text(encoding="utf-8").replace("<!-- cover -->", cover(folder))
    index.write_text(text, encoding="utf-8")
    if problem := stage_network(folder / "_static" / "try", packages):
        sentence = f"There is nothing to try on this copy of the site: {problem}."
        print(sentence, file=sys.stderr)
        page = folder / "try.md"
        text = TRY.sub(lambda _: sentence, page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")


def stage_network(folder: Path, packages: Path) -> str:
    """Write what the page "Try it" loads into a new folder.

    Returns:
        What is missing, in words; then the page is built without it.
    """
    runtime = packages / "onnxruntime-web" / "dist"
    if not all((runtime / name).exists() for name in RUNTIME):
        return "npm's package onnxruntime-web was missing when it was built"
    sys.path.insert(0, str(NOTEBOOKS))
    from PIL import Image

    from roadseg import classes, export, synthetic, weights

    folder.mkdir()
    try:
        export.export_web(weights.load_pretrained(), folder / "model.onnx")
    except classes.RoadsegError as error:
        shutil.rmtree(folder)
        return str(error)
    for name in RUNTIME:
        shutil.copy(runtime / name, folder)
    Image.fromarray(synthetic.draw_scene(1)[0]).save(folder / "example.png")
    return ""


def cover(folder: Path) -> str:
    """Write the start page's figure into a folder; return the Markdown for it.

    It is the first photo of the first chapter that predicts: chapter 0, else 5.
    """
    for path in sorted(chapters(), key=lambda p: p.name[:2] not in ("00", "05")):
        for cell in nbformat.read(path, as_version=4).cells:
            for data in (output.get("data", {}) for output in cell.get("outputs", [])):
                if content := data.get("image/jpeg"):
                    (folder / "cover.jpeg").write_bytes(base64.b64decode(content))
                    alt = " ".join(data.get("text/plain", "").split())
                    link = f"[chapter {int(path.name[:2])}]({path.name})"
                    return (
                        f"```{{figure}} cover.jpeg\n:alt: {alt}\n\n"
                        f"From {link}. Images: CamVid.\n```"
                    )
    return ""


def build(out: Path, packages: Path | None = None, builder: str = "html") -> None:
    """Build the site, replacing an old one only at the end.

    Args:
        out: Where the site goes.
        packages: A folder with npm's packages; default: those that `fetch` installs.
        builder: Sphinx's builder; html or linkcheck.

    Raises:
        BookError: If something is missing, or Sphinx reports an error or a warning.
    """
    missing = [m for m in ("sphinx", "myst_nb") if not importlib.util.find_spec(m)]
    if missing:
        raise BookError(
            f"This Python ({sys.executable}) lacks {', '.join(missing)}: "
            "pip install -r book/requirements.txt"
        )
    packages = packages or fetch()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".book-") as scratch:
        source, result = Path(scratch) / "source", Path(scratch) / builder
        stage(source, packages)
        command = [sys.executable, "-m", "sphinx", "-b", builder, "-q", "-W"]
        command += ["-c", str(BOOK), "-d", f"{scratch}/doctrees"]
        command += ["-D", f"html_static_path={source / '_static'}"]
        environment = {**os.environ, "ROADSEG_PROFILE": "quick", "PYTHONUTF8": "1"}
        done = subprocess.run(
            [*command, str(source), str(result)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        if done.returncode:
            text = done.stdout.replace(f"{source}{os.sep}", "").strip()
            raise BookError(f"Sphinx reported problems:\n{text}")
        for page in result.rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            for pattern, replacement in ACCESSIBILITY:
                text = re.sub(pattern, replacement, text)
            page.write_text(text, encoding="utf-8", newline="\n")
        (result / ".buildinfo").unlink(missing_ok=True)
        shutil.rmtree(result / "_sources", ignore_errors=True)
        (result / ".nojekyll").touch()  # GitHub Pages keeps folders with a _
        shutil.rmtree(out, ignore_errors=True)
        os.replace(result, out)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--open", action="store_true", help="open it in a browser")
    what.add_argument(
        "--linkcheck", action="store_true", help="request every external link"
    )
    what.add_argument("--fetch", action="store_true", help="only download npm packages")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        if options.fetch:
            print(f"Downloaded: {fetch()}")
        elif options.linkcheck:
            build(BUILD / "linkcheck", builder="linkcheck")
            print("Every external link works.")
        else:
            build(BUILD / "site")
            seconds = time.monotonic() - start
            print(f"built in {seconds:.0f} s: build/site/index.html")
            print(SERVE)
            if options.open:
                webbrowser.open((BUILD / "site" / "index.html").as_uri())
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
