"""The explorer of chapter 1: one page of HTML and JavaScript, nothing fetched."""

from importlib.resources import files


def page() -> str:
    """Return the HTML in which a reader steps through a transposed convolution.

    A placeholder with a sentence for where scripts are dropped, and a script that
    builds the explorer in it, in a shadow root so that neither the host page's
    styles nor the explorer's reach the other.
    """
    return files("roadseg").joinpath("explorer.html").read_text(encoding="utf-8")
