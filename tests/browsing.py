"""The built site in headless Chromium: fixtures and helpers for the tests of its pages.

Used as a plugin, ``pytest_plugins = ("browsing",)``, so that several files of tests
share one site. PYTEST_DONT_REWRITE: the files also import helpers from here.
"""

import functools
import http.server
import importlib.util
import json
import os
import shutil
import sys
import threading
import time

import pytest

import build_book

WIDTHS = (1280, 390)
PATIENCE = 240
"""Seconds that a page may take where other work has the machine."""
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


def unavailable(reason):
    """Skip, but not where the checks count: there nothing may be left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (under CI=true this is a failure)")
    pytest.skip(reason)


def packages(what=""):
    """The packages from npm that were installed before; tests download nothing."""
    if (build_book.NPM / "installed.json").exists():
        return build_book.fetch()
    if what:
        unavailable(f"no {what}: python scripts/build_book.py --fetch")
    return None


def stand_in(folder):
    """A folder that stands in for npm's packages: MathJax alone, which does nothing."""
    for file in build_book.MATHJAX:
        (folder / "mathjax" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mathjax" / file).write_text("// stands in", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, from the chapters as they are; npm's packages only if installed."""
    for package in ("sphinx", "myst_nb", "sphinx_book_theme"):
        if not importlib.util.find_spec(package):
            unavailable(f"no {package}: pip install -r book/requirements.txt")
    folder = tmp_path_factory.mktemp("book")
    build_book.build(folder / "site", packages() or stand_in(folder / "npm"))
    return folder / "site"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):
    """The site, served to this machine alone."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


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


def show(browser, url, width, theme="light"):
    """Open a page at a width, wait for its formulas, return what went wrong."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1}
    metrics["mobile"] = width < 500
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    prefers = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", prefers)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)
    browser.execute_async_script(
        "const done = arguments[0];"
        "const ready = window.MathJax?.startup?.promise ?? Promise.resolve();"
        "ready.then(() => setTimeout(() => done(true), 50), () => done(false));"
    )
    return complaints(browser)


def complaints(browser):
    """Errors on the console and requests that failed since the last look."""
    wrong = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.loadingFailed":
            wrong.append(f"failed request: {message['params']}")
    return wrong


def looks(browser):
    """What is wrong with the look of the page that is open, by kind."""
    found = browser.execute_script(
        """
        const wide = document.documentElement.scrollWidth - window.innerWidth;
        const all = css => [...document.querySelectorAll(css)];
        const silent = all('img').filter(i => !i.alt.trim() || !i.naturalWidth);
        const plain = all('.math').filter(m => !m.querySelector('mjx-container svg'));
        const broken = all('mjx-container [data-mml-node="merror"]').length;
        return {wide: wide > 1 ? wide : 0, silent: silent.map(i => i.src), broken,
                plain: plain.map(m => m.textContent.slice(0, 80))};
        """
    )
    return {kind: value for kind, value in found.items() if value}


def serious(browser, theme):
    """What axe calls serious or critical on the page that is open."""
    axe = packages("axe-core") / "axe-core" / "axe.min.js"
    shown = browser.execute_script("return document.documentElement.dataset.theme")
    assert shown == theme
    browser.execute_script(axe.read_text(encoding="utf-8"))
    violations = browser.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document, {resultTypes: ['violations']}).then("
        "r => done(r.violations), e => done([{id: String(e), impact: 'critical',"
        " nodes: []}]));"
    )
    return {
        v["id"]: [node["html"][:150] for node in v["nodes"][:3]]
        for v in violations
        if v["impact"] in ("serious", "critical")
    }


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
