"""scripts/check_links.py: the form of addresses, and what servers answer."""

import http.server
import threading

import pytest

import check_links


@pytest.fixture
def site(tmp_path):
    """A site of two pages."""
    (tmp_path / "api").mkdir()
    one = '<a href="b.html">b</a> <a href="https://example.org/x#y">x</a>'
    two = '<a href="https://example.org/x">x</a> <a href="http://example.org/">o</a>'
    (tmp_path / "index.html").write_text(one, "utf-8")
    (tmp_path / "api" / "b.html").write_text(two, "utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def server():
    """A server that has `there`, refuses `refused`, and knows no HEAD for `get`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = {"/there": 200, "/refused": 403, "/get": 200}
            status = known.get(self.path, 404)
            if self.command == "HEAD" and self.path == "/get":
                status = 405
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_addresses_are_listed_once_with_their_pages(site):
    assert check_links.external_links(site) == {
        "http://example.org/": ["api/b.html"],
        "https://example.org/x": ["api/b.html", "index.html"],
    }


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("https://doi.org/10.1109/CVPR.2010.5539957", ""),
        ("https://doi.org/11.1109/x", "is no address of doi.org"),
        ("https://arxiv.org/abs/1505.04597", ""),
        ("https://arxiv.org/abs/cs", "is no address of arxiv.org"),
        ("https://github.com/a", "is no address of github.com"),
        ("http://example.org/", "is not https"),
        ("https://example/", "names no host"),
        ("https://example.org/a b", "holds a character that an address cannot"),
    ],
)
def test_the_form_of_an_address(link, fault):
    assert check_links.form_fault(link) == fault


@pytest.mark.parametrize(
    ("path", "status"),
    [("there", 200), ("gone", 404), ("refused", 403), ("get", 200)],
)
def test_a_server_is_asked(server, path, status):
    assert check_links.answer(f"{server}/{path}") == status


def test_a_host_that_is_not_found_is_said_in_words(no_proxy):
    assert "tests look up no names" in check_links.answer("https://example.org/")


def test_the_report(site, capsys):
    assert check_links.main(["--list"], site) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "https://example.org/x  (api/b.html, index.html)" in lines
    assert "http://example.org/: is not https (in api/b.html)" in lines
    assert lines[-1] == "2 addresses outside the site, 1 with faults."


def test_what_is_asked_for_and_what_counts_as_a_fault(
    site, server, capsys, monkeypatch
):
    pages = [f"{server}/{name}" for name in ("there", "gone", "refused")]
    pages.append(f"{server}/OWNER/NAME")
    text = " ".join(f'<a href="{page}">x</a>' for page in pages)
    (site / "index.html").write_text(text, "utf-8")
    (site / "api" / "b.html").unlink()
    monkeypatch.setattr(check_links, "form_fault", lambda link: "")

    assert check_links.main(["--ask"], site) == 1

    out = capsys.readouterr().out
    assert f"{server}/gone: answers 404 (in index.html)" in out
    assert f"{server}/refused: 403, refused to a program" in out
    assert out.endswith("4 addresses outside the site, 1 with faults.\n")


def test_without_a_site_one_sentence_says_what_to_do(tmp_path, capsys):
    assert check_links.main([], tmp_path) == 1
    assert "build the site first" in capsys.readouterr().out
