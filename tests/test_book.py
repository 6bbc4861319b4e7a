"""The site: how chapters are prepared, what was built, and how a browser shows it."""

import os
import re
import shutil
import subprocess
import time
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import build_book
from browsing import WIDTHS, looks, packages, press, serious, show, stand_in, until

pytest_plugins = ("browsing",)

ROOT = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/OWNER/NAME/blob/main/notebooks"
FIRST = "01_transposed_convolution.ipynb"


# Preparing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        (f"[a]({GITHUB}/{FIRST}#b)", f"[a]({FIRST}#b)"),
        (f"[a]({GITHUB}/99_gone.ipynb)", None),
        (f"https://colab.research.google.com/github/O/N/blob/main/{FIRST}", None),
    ],
)
def test_links_between_chapters_stay_on_the_site(text, linked):
    """But not links to Colab, or to a chapter that isn't there."""
    assert build_book.link_chapters(text) == (linked or text)


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("A kernel, a kernel.", "A {term}`kernel <kernel>`, a kernel."),
        ("Kernels move.", "{term}`Kernels <kernel>` move."),
        ("**Void** is void.", "**{term}`Void <void>`** is void."),
        ("avoid `void` $void$ [void](x)", "avoid `void` $void$ [void](x)"),
        ("## void\n<p>void\n```\nvoid\n```", "## void\n<p>void\n```\nvoid\n```"),
        ("a U-Net, u-net", "a {term}`U-Net <U-Net>`, u-net"),
        (
            "transposed\nconvolution",
            "{term}`transposed\nconvolution <transposed convolution>`",
        ),
    ],
)
def test_first_uses_link_to_the_glossary(text, linked):
    terms = ["transposed convolution", "kernel", "U-Net", "void"]
    assert build_book.link_terms(text, terms) == linked


def test_terms_come_from_the_glossary_page():
    terms = build_book.glossary_terms((ROOT / "book/glossary.md").read_text("utf-8"))
    assert {"void", "U-Net", "receptive field", "mIoU"} <= set(terms)
    assert len(terms) >= 30
    assert terms == sorted(terms, key=len, reverse=True)


def test_a_chapter_is_prepared_for_the_site():
    badge = "[![Open in Colab](https://x.org/a.svg)](https://colab/02_b.ipynb)"
    html = '<link rel="stylesheet" href="https://cdn.org/a.css"><b>bold</b>'
    solution = new_code_cell("1", metadata={"tags": ["solution"]})
    output = new_output("display_data", {"text/html": html})
    cells = [new_markdown_cell(f"# 2. B\n\n{badge}"), solution]
    cells += [new_code_cell("2", outputs=[output]), new_markdown_cell("Is void.")]
    text = nbformat.writes(new_notebook(cells=cells))

    prepared = nbformat.reads(build_book.prepare_notebook(text, "02_b.ipynb"), 4)

    first, second, third, fourth = prepared.cells
    assert "(_static/open-in-colab.svg)](https://colab/02_b.ipynb)" in first.source
    assert "<download/02_b.ipynb>" in first.source
    assert second.metadata.tags == ["solution", "hide-cell"]
    assert third.outputs[0].data["text/html"] == "<b>bold</b>"
    assert fourth.source == "Is {term}`void <void>`."


def test_references_are_those_of_the_chapters(tmp_path, monkeypatch):
    monkeypatch.setattr(build_book, "NOTEBOOKS", tmp_path)
    items = "- A. Abel (2015). [d](https://doi.org/10.1/a).\n  Shows it.\n* B. Bee."
    end = "\n\n[next](x)\n\n## More\n\n- not this"
    text = f"# 1. One\n\n- nor this\n\n## References\n\n{items}{end}"
    nbformat.write(
        new_notebook(cells=[new_markdown_cell(text)]), tmp_path / "01_a.ipynb"
    )
    assert build_book.references() == f"## [1. One](01_a.ipynb)\n\n{items}"


def test_without_npm_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(build_book, "NPM", tmp_path / "npm")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build_book.BookError, match=r"install Node\.js"):
        build_book.fetch()


def test_packages_are_installed_once_and_never_half(tmp_path, monkeypatch):
    commands, answers = [], [1, 0]
    said = "npm warn old\nnpm error code ENOTFOUND\nnpm error A log is in /x\n"

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, answers.pop(0), "", said)

    monkeypatch.setattr(build_book, "NPM", tmp_path / "npm")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/npm")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        build_book.BookError, match=r"could not download.*\(ENOTFOUND\)"
    ):
        build_book.fetch()
    for _ in range(2):
        assert build_book.fetch() == tmp_path / "npm" / "node_modules"
    assert len(commands) == 2
    assert all(c[1:3] == ["ci", "--ignore-scripts"] for c in commands)


def test_no_chapters_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(build_book, "NOTEBOOKS", tmp_path)
    with pytest.raises(build_book.BookError, match=re.escape(str(tmp_path))):
        build_book.chapters()


def test_a_problem_that_sphinx_reports_keeps_the_old_site(tmp_path, monkeypatch):
    """A link that leads nowhere is one."""
    monkeypatch.setattr(build_book, "PACKAGE", tmp_path / "package")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "classes.py").touch()
    monkeypatch.setattr(build_book, "BOOK", tmp_path / "book")
    shutil.copytree(ROOT / "book", tmp_path / "book")
    (tmp_path / "book" / "conf.py").write_text(
        (ROOT / "book" / "conf.py")
        .read_text("utf-8")
        .replace("Path(__file__).resolve().parents[1]", f"Path({str(ROOT)!r})"),
        "utf-8",
    )
    with (tmp_path / "book" / "running.md").open("a", encoding="utf-8") as page:
        page.write("\n[lost](nowhere.md)\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.html").touch()

    with pytest.raises(build_book.BookError, match=r"running\.md.*nowhere\.md"):
        build_book.build(tmp_path / "out", stand_in(tmp_path / "npm"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old.html"]


# What was built -----------------------------------------------------------------


@pytest.fixture(scope="session")
def chapters():
    """The paths of the chapters."""
    return build_book.chapters()


class Page(HTMLParser):
    """What a page links to, loads, shows and can be jumped to."""

    LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
    FETCHED = {"stylesheet", "icon", "preload", "prefetch", "modulepreload"}

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.pictures = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids |= {a[key] for key in ("id", "name") if a.get(key)}
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag in self.LOADED and a.get(self.LOADED[tag]):
            self.loads.append(a[self.LOADED[tag]])
        if tag == "link" and self.FETCHED & set(a.get("rel", "").split()):
            self.loads.append(a["href"])
        if tag == "img":
            self.pictures.append((a.get("src", ""), a.get("alt")))


def pages(folder):
    found = {p.relative_to(folder).as_posix(): Page(p) for p in folder.rglob("*.html")}
    return {name: p for name, p in found.items() if not name.startswith("_static/")}


def faults(folder):
    """All that is wrong with a built site's links, files and pictures."""
    found, all_pages = [], pages(folder)
    for name, page in all_pages.items():
        for link in page.links:
            if fault := _link_fault(folder, all_pages, name, link):
                found.append(f"{name}: {link}: {fault}")
        for load in page.loads:
            if load.startswith("data:"):
                continue
            if urlsplit(load).netloc or urlsplit(load).scheme:
                found.append(f"{name}: loads {load} from elsewhere")
            elif not _target(folder, name, load).is_file():
                found.append(f"{name}: there is no {load}")
        for source, alt in page.pictures:
            if not (alt or "").strip() or alt == source:
                found.append(f"{name}: {source} has no text alternative")
    for style in folder.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        if match := re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", text):
            found.append(f"{style.name}: loads {match[0]} from elsewhere")
    return found


FORMS = {
    "doi.org": r"10\.\d{4,9}/\S+",
    "arxiv.org": r"(?:abs|pdf)/\d{4}\.\d{4,5}(?:v\d+)?",
}


def _form_fault(link):
    parts = urlsplit(link)
    if parts.scheme != "https":
        return "not https"
    if not re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", parts.netloc):
        return "names no host"
    if not re.fullmatch(FORMS.get(parts.netloc, ".*"), parts.path.strip("/")):
        return f"no address of {parts.netloc}"
    return ""


def _target(folder, name, address):
    path = unquote(urlsplit(address).path)
    return (folder / name).parent.joinpath(path) if path else folder / name


def _link_fault(folder, all_pages, name, link):
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return _form_fault(link)
    target = _target(folder, name, link).resolve()
    if not target.is_file():
        return "leads nowhere"
    anchor = unquote(parts.fragment)
    page = all_pages.get(target.relative_to(folder.resolve()).as_posix())
    if anchor and (page is None or anchor not in page.ids):
        return "there is no such anchor"
    return ""


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    assert faults(site) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('<a href="b.html">', "leads nowhere"),
        ('<a href="#b">', "no such anchor"),
        ('<a href="https://doi.org/11.1/x">', "no address of doi.org"),
        ('<a href="https://arxiv.org/abs/cs">', "no address of arxiv.org"),
        ('<a href="http://example.org/">', "not https"),
        ('<a href="https://example/">', "names no host"),
        ('<script src="https://cdn.org/x.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="//cdn.org/x.css">', "from elsewhere"),
        ('<img alt="a" src="a.png">', "there is no a.png"),
        ('<img src="data:image/png;base64,AA">', "no text alternative"),
        ("@font-face { src: url('https://fonts.org/a.woff2') }", "from elsewhere"),
    ],
)
def test_the_check_of_links_sees(line, fault, tmp_path):
    if line.startswith("@"):
        (tmp_path / "a.css").write_text(line, "utf-8")
        line = ""
    (tmp_path / "a.html").write_text(f'<p id="a">{line}<a href="#a">', "utf-8")
    (found,) = faults(tmp_path)
    assert fault in found


def test_each_chapter_can_be_opened_downloaded_and_left(site, chapters):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    where = project["urls"]["Repository"].removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{where}/blob/main/notebooks"
    start = (site / "index.html").read_text("utf-8")
    for path in chapters:
        name = path.with_suffix(".html").name
        page, text = Page(site / name), (site / name).read_text("utf-8")
        assert f'href="{name}"' in start
        assert f"{colab}/{path.name}" in page.links
        links = [x for x in dict.fromkeys(page.links) if x.endswith(f"/{path.name}")]
        own, students = (site / x for x in links if ":" not in x)
        assert own.read_bytes() == path.read_bytes()
        assert "# Your solution" in students.read_text("utf-8")
        assert '"solution"' not in students.read_text("utf-8")
        assert "left-prev" in text
        assert "right-next" in text


def test_figures_have_alt_texts_and_solutions_are_folded(site, chapters):
    for path in chapters:
        cells = nbformat.read(path, as_version=4).cells
        data = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
        stored = [
            " ".join(d["text/plain"].split())
            for d in data
            if any(kind.startswith("image/") for kind in d)
        ]
        page = site / path.with_suffix(".html").name
        # an animation's image has no source before its script runs
        pictures = Page(page).pictures
        assert [alt for x, alt in pictures if x and not x.endswith(".svg")] == stored
        count = sum("solution" in c.metadata.get("tags", []) for c in cells)
        assert page.read_text("utf-8").count("Show the solution") == count


def test_pages_have_an_author_and_buttons_to_edit_and_to_report(site):
    for page, source in (
        ("running.html", "book/running.md"),
        ("04_training.html", "notebooks/04_training.ipynb"),
    ):
        text = (site / page).read_text("utf-8")
        assert f"/edit/main/{source}" in text
        assert (ROOT / source).exists()
        assert "/issues/new" in text
        assert "By The roadseg authors" in text
    assert "/edit/main/" not in (site / "api" / "classes.html").read_text("utf-8")


def test_the_package_is_described(site):
    modules = {p.stem for p in build_book.PACKAGE.glob("*.py")} - {"__init__"}
    assert {p.stem for p in (site / "api").iterdir()} == modules - {"__main__"}
    assert (site / "objects.inv").stat().st_size > 1000  # for links from elsewhere
    settings = (site / "api" / "runtime.html").read_text("utf-8")
    assert "from_env" in settings
    assert os.environ["PATH"] not in settings  # a default, but of this machine
    text = (site / "api" / "unet.html").read_text("utf-8")
    assert 'id="roadseg.unet.UNet"' in text
    assert "Returns" in text
    assert "``" not in text
    constant = text.partition('id="roadseg.unet.STRIDE"')[2].partition("</dl>")[0]
    assert "Type" not in constant  # words before a colon are no type


def test_no_command_builds_into_a_folder_that_git_keeps():
    assert build_book.BUILD == ROOT / "build"
    assert "/build/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


# In a browser -------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_whole_in_a_browser(site, address, browser, width):
    packages("MathJax")
    found = {}
    for name in sorted(pages(site)):
        problems = show(browser, f"{address}/{name}", width)
        problems += [f"{kind}: {value}" for kind, value in looks(browser).items()]
        if problems:
            found[name] = problems
    assert found == {}


def test_the_look_at_pages_sees_what_is_wrong(site, address, browser):
    bad = site / "_static" / "bad.html"  # not among the pages
    bad.write_text(
        '<!doctype html><link rel="icon" href="favicon.svg"><p style="width:2000px">'
        '<img src="favicon.svg"><span class="math">\\(x\\)</span>'
        '<script src="https://cdn.example.org/x.js"></script>'
        '<script>console.error("wrong")</script>',
        encoding="utf-8",
    )
    wrong = show(browser, f"{address}/_static/bad.html", 1280)
    assert any('"wrong"' in message for message in wrong)
    assert any("failed request" in message for message in wrong)
    found = looks(browser)
    assert found["wide"] > 700
    assert len(found["silent"]) == 1
    assert len(found["plain"]) == 1


def test_search_finds_a_word_of_a_chapter(address, browser):
    assert show(browser, f"{address}/search.html?q=receptive", 1280) == []
    links = browser.execute_async_script(
        "const done = arguments[0]; let tries = 0;"
        "const look = () => { const links = [...document.querySelectorAll("
        "'#search-results li a')].map(a => a.href);"
        "if (links.length || ++tries > 100) done(links);"
        "else setTimeout(look, 100); }; look();"
    )
    assert any("02_vgg16_bn_unet.html" in link for link in links)


@pytest.fixture
def explorer(address, browser, request):
    """The explorer of chapter 1: ``part(css)`` finds a part, ``now()`` what it says."""
    width = getattr(request, "param", WIDTHS[0])
    assert show(browser, f"{address}/01_transposed_convolution.html", width) == []

    class Explorer:
        host = browser.find_element("css selector", ".tconv-explorer")

        def part(self, css):
            return self.host.shadow_root.find_element("css selector", css)

        def click(self, css):
            script = "arguments[0].scrollIntoView({block: 'center'})"
            browser.execute_script(script, self.part(css))
            self.part(css).click()

        def now(self):
            return self.part(".now").text.partition(":")[0]

    return Explorer()


@pytest.mark.parametrize("explorer", WIDTHS, indirect=True)
def test_the_explorer_is_stepped_with_a_mouse(explorer):
    assert explorer.now() == "Output row 1, column 1"
    explorer.click("[data-step=next]")
    assert explorer.now() == "Output row 1, column 2"
    explorer.click("svg.to rect[data-r='2'][data-c='4']")
    assert explorer.now() == "Output row 3, column 5"
    explorer.click("[data-step=back]")
    assert explorer.now() == "Output row 3, column 4"
    explorer.click("input[value=stamp]")
    assert explorer.now() == "Input row 1, column 1"


def test_the_explorer_is_stepped_with_keys(explorer, browser):
    from selenium.webdriver import Keys

    explorer.click("[data-step=first]")  # the focus is here from now on
    press(browser, Keys.TAB, Keys.TAB, Keys.ENTER)  # Back, Next
    assert explorer.now() == "Output row 1, column 2"
    press(browser, Keys.TAB, Keys.TAB, Keys.TAB, Keys.ARROW_DOWN)  # Last, Play, grid
    assert explorer.now() == "Output row 2, column 2"
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert explorer.now() == "Output row 1, column 4"
    press(browser, Keys.END)
    assert explorer.now() == "Output row 6, column 6"


def test_the_explorer_plays_and_pauses(explorer):
    explorer.click("[data-step=play]")
    until(lambda: explorer.now() == "Output row 1, column 3")
    explorer.click("[data-step=play]")
    paused = explorer.now()
    time.sleep(0.8)
    assert explorer.now() == paused


def test_the_film_of_chapter_5_plays(address, browser):
    assert show(browser, f"{address}/05_evaluation.html", 1280) == []
    film = browser.find_element("css selector", ".animation")
    picture = film.find_element("css selector", "img")
    script = "arguments[0].scrollIntoView({block: 'center'})"
    browser.execute_script(script, film)
    frames = set()

    def click(name):
        film.find_element("css selector", f"button[aria-label='{name}']").click()

    def seen():
        frames.add(picture.get_attribute("src"))
        return len(frames)

    assert seen() == 1
    click("Next frame")
    assert seen() == 2
    click("Play")
    until(lambda: seen() > 4)
    click("Pause")
    still = picture.get_attribute("src")
    time.sleep(0.6)
    assert picture.get_attribute("src") == still


# One page of each kind, and those with scripts of their own; the others are slow.
KINDS = ["index.html", "01_transposed_convolution.html", "05_evaluation.html"]
KINDS += ["glossary.html", "api/unet.html"]


@pytest.mark.parametrize(
    "names", [KINDS, pytest.param(None, marks=pytest.mark.slow)], ids=["kinds", "all"]
)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(site, address, browser, theme, names):
    found = {}
    for name in names or sorted(pages(site)):
        show(browser, f"{address}/{name}", 1280, theme)
        if faults_found := serious(browser, theme):
            found[name] = faults_found
    assert found == {}
