"""The site: how chapters are prepared, what was built, and how a browser shows it."""

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import build_book

ROOT = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/OWNER/NAME/blob/main/notebooks"


def unavailable(reason):
    """Skip, but not where the checks count: there nothing may be left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (under CI=true this is a failure)")
    pytest.skip(reason)


# Preparing ----------------------------------------------------------------------


def test_links_between_chapters_stay_on_the_site():
    here, gone = "01_transposed_convolution.ipynb", "99_gone.ipynb"
    text = f"[one]({GITHUB}/{here}#setup) [other]({GITHUB}/{gone})"
    linked = build_book.link_chapters(text)
    assert linked == f"[one]({here}#setup) [other]({GITHUB}/{gone})"


def test_the_colab_link_stays_outside():
    text = "https://colab.research.google.com/github/O/N/blob/main/notebooks/"
    text += "01_transposed_convolution.ipynb"
    assert build_book.link_chapters(text) == text


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
    monkeypatch.setattr(build_book, "CACHE", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build_book.BookError, match=r"install Node\.js"):
        build_book.fetch(build_book.MATHJAX)


def test_without_a_network_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    def fail(command, **options):
        said = "npm warn old\nnpm error code ENOTFOUND\nnpm error A log is in /x\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(build_book, "CACHE", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/npm")
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(
        build_book.BookError, match=r"could not download mathjax 3\S+ \(ENOTFOUND\): "
    ):
        build_book.fetch(build_book.MATHJAX)
    assert list(tmp_path.iterdir()) == []


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
        build_book.build(tmp_path / "out", stand_in(tmp_path / "mathjax"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old.html"]


# What was built -----------------------------------------------------------------


@pytest.fixture(scope="session")
def chapters():
    """The paths of the chapters."""
    return build_book.chapters()


def stand_in(folder):
    """A folder that stands in for the one with MathJax."""
    folder.mkdir()
    (folder / "tex-svg-full.js").write_text("// stands in", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, from the chapters as they are; MathJax only if it was fetched."""
    for package in ("sphinx", "myst_nb", "sphinx_book_theme"):
        if not importlib.util.find_spec(package):
            unavailable(f"no {package}: pip install -r book/requirements.txt")
    folder = tmp_path_factory.mktemp("book")
    try:
        mathjax = fetched(build_book.MATHJAX)
    except FileNotFoundError:
        mathjax = stand_in(folder / "mathjax")
    build_book.build(folder / "site", mathjax)
    return folder / "site"


def fetched(package):
    """The folder of a package from npm that was fetched before; tests fetch nothing."""
    name, version, files = package
    folder = build_book.CACHE / f"{name}-{version}"
    if not all((folder / Path(file).name).exists() for file in files):
        raise FileNotFoundError(folder)
    return folder


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
    ],
)
def test_the_check_of_links_sees(line, fault, tmp_path):
    (tmp_path / "a.html").write_text(f'<p id="a">{line}<a href="#a">', "utf-8")
    (found,) = faults(tmp_path)
    assert fault in found


def test_the_check_of_styles_sees_fonts_from_elsewhere(tmp_path):
    text = "@font-face { src: url('https://fonts.org/a.woff2') }"
    (tmp_path / "a.css").write_text(text, "utf-8")
    assert len(faults(tmp_path)) == 1


def test_each_chapter_can_be_opened_downloaded_and_left(site, chapters):
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "urls"
    ]
    where = urls["Repository"].removeprefix("https://github.com/")
    for path in chapters:
        page = Page(site / path.with_suffix(".html").name)
        colab = "https://colab.research.google.com/github/"
        assert f"{colab}{where}/blob/main/notebooks/{path.name}" in page.links
        (copy,) = {
            x for x in page.links if x.endswith(f"/{path.name}") and ":" not in x
        }
        assert (site / copy).read_bytes() == path.read_bytes()
        text = (site / path.with_suffix(".html").name).read_text("utf-8")
        assert "left-prev" in text
        assert "right-next" in text


def test_figures_carry_the_alt_texts_of_the_notebooks(site, chapters):
    for path in chapters:
        cells = nbformat.read(path, as_version=4).cells
        data = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
        stored = [
            " ".join(d["text/plain"].split())
            for d in data
            if any(kind.startswith("image/") for kind in d)
        ]
        page = Page(site / path.with_suffix(".html").name)
        # an animation's image has no source before its script runs
        shown = [alt for x, alt in page.pictures if x and not x.endswith(".svg")]
        assert shown == stored


def test_solutions_are_folded(site, chapters):
    for path in chapters:
        cells = nbformat.read(path, as_version=4).cells
        count = sum("solution" in c.metadata.get("tags", []) for c in cells)
        text = (site / path.with_suffix(".html").name).read_text("utf-8")
        assert text.count("Show the solution") == count


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


def test_other_projects_can_link_to_the_site(site):
    assert (site / "objects.inv").stat().st_size > 1000


def test_the_start_page_shows_all_chapters(site, chapters):
    text = (site / "index.html").read_text("utf-8")
    for path in chapters:
        assert f'href="{path.with_suffix(".html").name}"' in text


def test_the_package_is_described(site):
    modules = {p.stem for p in build_book.PACKAGE.glob("*.py")} - {"__init__"}
    assert {p.stem for p in (site / "api").iterdir()} == modules - {"__main__"}
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

CHROMIUM = ("google-chrome", "chromium", "chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
WIDTHS = (1280, 390)
PATIENCE = 240
"""Seconds that a page may take where other work has the machine."""


@pytest.fixture(scope="session")
def address(site):
    """The site, served to this machine alone."""
    handler = functools.partial(
        type(
            "Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": _nothing}
        ),
        directory=str(site),
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _nothing(*_):
    pass


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium without a window and without a network."""
    if not importlib.util.find_spec("selenium"):
        unavailable("no selenium: pip install -r tests/requirements.txt")
    from selenium import webdriver

    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")  # on GitHub's machines a variable tells
    driver = driver or shutil.which("chromedriver", path=os.getenv("CHROMEWEBDRIVER"))
    on_path_only = sys.platform not in ("darwin", "win32")  # there the driver knows
    if not driver or (on_path_only and not found):
        unavailable("no Chromium with its driver: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(executable_path=driver)
    chromium = webdriver.Chrome(options=options, service=service)
    chromium.command_executor.client_config.timeout = PATIENCE + 60
    chromium.set_page_load_timeout(PATIENCE)
    chromium.set_script_timeout(PATIENCE)
    yield chromium
    chromium.quit()


def show(browser, url, width):
    """Open a page at a width, wait for its formulas, return what went wrong."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1}
    metrics["mobile"] = width < 500
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)
    browser.execute_async_script(
        "const done = arguments[0];"
        "const ready = window.MathJax?.startup?.promise ?? Promise.resolve();"
        "ready.then(() => setTimeout(() => done(true), 50), () => done(false));"
    )
    wrong = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.loadingFailed":
            wrong.append(f"failed request: {message['params']}")
    return wrong


LOOK = """
const wide = document.documentElement.scrollWidth - window.innerWidth;
const silent = [...document.images].filter(i => !i.alt.trim() || !i.naturalWidth);
const math = [...document.querySelectorAll('.math')];
const plain = math.filter(m => !m.querySelector('mjx-container svg'));
const broken = [...document.querySelectorAll('mjx-container [data-mml-node="merror"]')];
return {wide: wide > 1 ? wide : 0, silent: silent.map(i => i.src),
        plain: plain.map(m => m.textContent.slice(0, 80)), broken: broken.length};
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_whole_in_a_browser(site, address, browser, width):
    if not _has(build_book.MATHJAX):
        unavailable("MathJax is not fetched: python scripts/build_book.py --fetch")
    found = {}
    for name in sorted(pages(site)):
        wrong = show(browser, f"{address}/{name}", width)
        looks = browser.execute_script(LOOK)
        problems = wrong + [f"{k}: {v}" for k, v in looks.items() if v]
        if problems:
            found[name] = problems
    assert found == {}


def _has(package):
    with contextlib.suppress(FileNotFoundError):
        return fetched(package)
    return None


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
    looks = browser.execute_script(LOOK)
    assert looks["wide"] > 700
    assert len(looks["silent"]) == 1
    assert len(looks["plain"]) == 1


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


def until(found, seconds=20):
    """Ask again and again until there is an answer; return it."""
    end = time.monotonic() + seconds
    while not (answer := found()) and time.monotonic() < end:
        time.sleep(0.05)
    assert answer
    return answer


def press(browser, *keys):
    """Press keys where the focus is."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


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
    ("theme", "names"),
    [
        ("light", KINDS),
        ("dark", KINDS),
        pytest.param("light", None, marks=pytest.mark.slow),
        pytest.param("dark", None, marks=pytest.mark.slow),
    ],
    ids=["light", "dark", "light-all", "dark-all"],
)
def test_axe_finds_no_serious_fault(site, address, browser, theme, names):
    folder = _has(build_book.AXE)
    if folder is None:
        unavailable("axe-core is not fetched: python scripts/build_book.py --fetch")
    axe = (folder / "axe.min.js").read_text(encoding="utf-8")
    prefers = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", prefers)
    found = {}
    for name in names or sorted(pages(site)):
        show(browser, f"{address}/{name}", 1280)
        shown = browser.execute_script("return document.documentElement.dataset.theme")
        assert shown == theme
        browser.execute_script(axe)
        violations = browser.execute_async_script(
            "const done = arguments[0];"
            "axe.run(document, {resultTypes: ['violations']}).then("
            "r => done(r.violations), e => done([{id: String(e), impact: 'critical',"
            " nodes: []}]));"
        )
        serious = {
            v["id"]: [node["html"][:150] for node in v["nodes"][:3]]
            for v in violations
            if v["impact"] in ("serious", "critical")
        }
        if serious:
            found[name] = serious
    assert found == {}
