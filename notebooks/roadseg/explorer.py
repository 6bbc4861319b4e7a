"""Chapter 1's explorer and animation: pages of HTML and JavaScript, no downloads."""

from importlib.resources import files


def page() -> str:
    """Return the HTML with which a reader steps through a transposed convolution.

    It holds a worked step, shown where scripts are not allowed, and a script that
    replaces it with the explorer, in a shadow root so that the styles of the page and
    of the explorer don't affect each other.
    """
    return files("roadseg").joinpath("explorer.html").read_text(encoding="utf-8")


def two_views() -> str:
    """Return the HTML that steps through stamping and sliding, side by side.

    Both views compute the same output cell in each step. Like `page`, it holds one
    worked step, which is all that is shown where scripts are not allowed.
    """
    return files("roadseg").joinpath("two_views.html").read_text(encoding="utf-8")
