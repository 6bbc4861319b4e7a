"""Configuration of the site for Sphinx, which scripts/build_book.py calls."""

import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "scripts")]

import build_book  # noqa: E402

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
OWNER, NAME = REPOSITORY.removeprefix("https://github.com/").split("/")

project = "Semantic segmentation of road scenes with a U-Net"
html_title = project
html_short_title = "Road scenes with a U-Net"
author = "The roadseg authors"
copyright = author
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["download"]

# Notebooks: the stored outputs, and nothing loaded from elsewhere.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {
    "svg": {"fontCache": "global"},
    # No menu: it would load its features from elsewhere, and it takes the focus.
    "options": {"enableMenu": False},
}

# The docstrings of roadseg are in Google's style.
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True  # os.environ, not what it holds on this machine
autodoc_default_options = {"members": True, "show-inheritance": False}
add_module_names = False
autodoc_mock_imports = ["av", "onnx", "onnxruntime", "onnxscript"]

# sphinx-build -b linkcheck. Publishers refuse programs, so a DOI is only resolved.
linkcheck_ignore = [r"https://github\.com/OWNER/NAME", r".*/github/OWNER/NAME/"]
linkcheck_allowed_redirects = {r"https://doi\.org/.*": r".*", r"https://.*": r".*"}
linkcheck_allow_unauthorized = True
linkcheck_anchors = False
linkcheck_report_timeouts_as_broken = False
linkcheck_timeout = 30
linkcheck_retries = 2

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "_static/favicon.svg"
html_context = {
    "default_mode": "auto",  # light or dark, as the reader's system
    "github_user": OWNER,
    "github_repo": NAME,
    "github_version": "main",
}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "repository_provider": "github",
    "path_to_docs": "book",
    "use_repository_button": True,
    "use_edit_page_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "footer_content_items": ["author.html", "extra-footer.html"],
    "extra_footer": "<p>Text and code: MIT License. Images of road scenes: CamVid "
    "(Brostow et al., 2009), SegNet's copy, CC BY-NC 4.0.</p>",
}


def prepare(app, docname: str, source: list[str]) -> None:
    """Prepare the source of a page before Sphinx parses it."""
    path = app.env.doc2path(docname)
    if path.suffix == ".ipynb":
        source[0] = build_book.prepare_notebook(source[0], path.name)
    else:
        source[0] = build_book.prepare_page(source[0])


def add_alt_texts(app, doctree: nodes.document) -> None:
    """Give the images of outputs their alt text.

    plots.show stores a figure's alt text as the output's text/plain.
    """
    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") != "mime_bundle":
            continue
        texts = [c.astext() for c in bundle if c.get("mime_type") == "text/plain"]
        for image in bundle.findall(nodes.image):
            if texts and "alt" not in image:
                image["alt"] = " ".join(texts[0].split())


def choose_edit_page(app, page: str, template: str, context: dict, doctree) -> None:
    """Let the edit button lead to the file that a page is made from."""
    suffix = context.get("page_source_suffix")
    context["doc_path"] = "notebooks" if suffix == ".ipynb" else "book"
    if page.startswith("api/"):
        context["page_source_suffix"] = ""  # generated: no button


def mark_code(app, what, name, obj, options, lines: list[str]) -> None:
    """Render text between single backticks in a docstring as code.

    For a constant, also keep napoleon, which runs later, from taking the words before
    a colon in the first line for a type.
    """
    single = re.compile(r"(?<!`)`([^`]+)`(?!`)(?=(\w)?)")
    for i, line in enumerate(lines):
        lines[i] = single.sub(lambda m: f"``{m[1]}``" + (m[2] and "\\ " or ""), line)
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # at the end of a line, a backslash renders as nothing


def setup(app) -> dict:
    """Register the functions above with Sphinx."""
    app.connect("source-read", prepare)
    app.connect("doctree-read", add_alt_texts)
    app.connect("html-page-context", choose_edit_page, priority=100)
    app.connect("autodoc-process-docstring", mark_code, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
