"""Check the links of the built site that lead elsewhere.

    python scripts/check_links.py              # their form; needs no network
    python scripts/check_links.py --list       # and print them, with their pages
    python scripts/check_links.py --ask        # and ask whether they are there

Links within the site are checked when the tests build it. An address is asked for only
once, and what a site refuses to programs (401, 403, 429) is reported, not counted as a
fault. Links to the course's own repository are asked for once it has an address.
"""

import argparse
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
PLACEHOLDER = "OWNER/NAME"
REFUSALS = (401, 403, 405, 429)
FORMS = {
    "doi.org": r"10\.\d{4,9}/\S+",
    "arxiv.org": r"(?:abs|pdf)/\d{4}\.\d{4,5}(?:v\d+)?",
    "github.com": r"[\w.-]+/[\w.-]+(?:/.+)?",
}
"""How the path of an address of these hosts looks."""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag == "a" and (href := dict(attributes).get("href")):
            self.found.append(href)


def external_links(folder: Path) -> dict[str, list[str]]:
    """Return the addresses that a site links to, each with the pages that do.

    Args:
        folder: The built site. Anchors are cut off the addresses.
    """
    links: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.html")):
        parser = _Links()
        parser.feed(path.read_text(encoding="utf-8"))
        page = path.relative_to(folder).as_posix()
        for link in parser.found:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                pages = links.setdefault(parts._replace(fragment="").geturl(), [])
                pages += [] if page in pages else [page]
    return dict(sorted(links.items()))


def form_fault(link: str) -> str:
    """Return what is wrong with the form of an address, or nothing."""
    parts: SplitResult = urlsplit(link)
    if parts.scheme != "https":
        return "is not https"
    if not re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", parts.netloc):
        return "names no host"
    if re.search(r"[\s<>\"{}|\\^`]", link):
        return "holds a character that an address cannot"
    if not re.fullmatch(FORMS.get(parts.netloc, r".*"), parts.path.strip("/")):
        return f"is no address of {parts.netloc}"
    return ""


def answer(link: str, seconds: float = 20) -> int | str:
    """Ask for an address; return the status, or in words why there is none."""
    agent = {"User-Agent": "Mozilla/5.0 (a course's check of its links)"}
    opener = urllib.request.build_opener()  # urlopen keeps the proxies it saw first
    for method in ("HEAD", "GET"):  # some servers know only the second
        request = urllib.request.Request(link, headers=agent, method=method)
        try:
            with opener.open(request, timeout=seconds) as response:
                return response.status
        except urllib.error.HTTPError as error:
            status: int | str = error.code
        except (OSError, ValueError) as error:
            return str(getattr(error, "reason", error))
    return status


def main(arguments: list[str] | None = None, site: Path = SITE) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print all addresses")
    parser.add_argument("--ask", action="store_true", help="ask for each")
    options = parser.parse_args(arguments)
    links = external_links(site)
    if not links:
        print(f"There are no pages with links in {site}: build the site first.")
        return 1
    faults = {link: fault for link in links if (fault := form_fault(link))}
    if options.list:
        for link, pages in links.items():
            print(f"{link}  ({', '.join(pages)})")
    if options.ask:
        faults |= _ask([x for x in links if PLACEHOLDER not in x and x not in faults])
    for link, fault in faults.items():
        print(f"{link}: {fault} (in {', '.join(links[link])})")
    print(f"{len(links)} addresses outside the site, {len(faults)} with faults.")
    return int(bool(faults))


def _ask(links: list[str]) -> dict[str, str]:
    """Ask for addresses, a few at a time; return those that are not there."""
    faults = {}
    with ThreadPoolExecutor(4) as pool:
        for link, status in zip(links, pool.map(answer, links), strict=True):
            if status in REFUSALS:
                print(f"{link}: {status}, refused to a program; look yourself")
            elif status != 200:
                faults[link] = f"answers {status}"
    return faults


if __name__ == "__main__":
    sys.exit(main())
