"""What holds in every test: the quick profile on the CPU, and no network."""

import os
import socket

import matplotlib
import pytest

from roadseg import runtime


@pytest.fixture(autouse=True, scope="module")
def own_style():
    """The course's figure style, where a test sets it, ends with the test file."""
    with matplotlib.rc_context():
        yield


@pytest.fixture(autouse=True)
def course_settings(monkeypatch):
    """Tests start without the settings of the person who runs them."""
    for name in list(os.environ):
        if name.startswith("ROADSEG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ROADSEG_PROFILE", "quick")
    monkeypatch.setenv("ROADSEG_DEVICE", "cpu")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    runtime.reset()
    yield
    runtime.reset()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Names of other machines are not found, as on a machine without a network."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host in (None, "", "localhost", "127.0.0.1", "::1", b"localhost"):
            return look_up(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_NONAME, f"tests look up no names: {host}")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def no_proxy(monkeypatch):
    """Undo the proxy at a closed port that keeps the tests away from the network."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
