"""Sphinx's configuration of the site; scripts/build_book.py calls Sphinx.

The sources it is given are staged copies: see scripts/build_book.py.
"""

import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]

sys.path.insert(0, str(ROOT / "notebooks"))  # for the pages about roadseg

project = "Semantic segmentation of road scenes with a U-Net"
html_title = project
html_short_title = "Road scenes with a U-Net"
author = ""
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

# Notebooks: what they store, and nothing fetched from elsewhere.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {
    "svg": {"fontCache": "global"},
    # No menu: what it offers would be fetched, and it takes the keyboard's focus.
    "options": {"enableMenu": False},
}

# roadseg's docstrings are in Google's style.
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
add_module_names = False

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}  # light or dark as the reader's system
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_provider": "github",
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "footer_content_items": ["extra-footer.html"],
    "extra_footer": "<p>Text and code: MIT licence. Pictures of road scenes: CamVid "
    "(Brostow and others, 2009), SegNet's copy, CC BY-NC 4.0.</p>",
}


def give_alternatives(app, doctree: nodes.document) -> None:
    """Give each output's picture the words that the output has in its place.

    plots.show stores a figure's text alternative as the output's text/plain.
    """
    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") != "mime_bundle":
            continue
        texts = [c.astext() for c in bundle if c.get("mime_type") == "text/plain"]
        for image in bundle.findall(nodes.image):
            if texts and "alt" not in image:
                image["alt"] = " ".join(texts[0].split())


def mark_code(app, what, name, obj, options, lines: list[str]) -> None:
    """Read what stands between single backticks in a docstring as code.

    And of a constant's docstring, nothing as its type: napoleon, which comes after
    this, would take the words before a colon in the first line for it.
    """
    single = re.compile(r"(?<!`)`([^`]+)`(?!`)(?=(\w)?)")
    for i, line in enumerate(lines):
        lines[i] = single.sub(lambda m: f"``{m[1]}``" + (m[2] and "\\ " or ""), line)
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # before a line's end, it shows as nothing


def setup(app) -> dict:
    """Connect what this file adds to Sphinx."""
    app.connect("doctree-read", give_alternatives)
    app.connect("autodoc-process-docstring", mark_code, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
