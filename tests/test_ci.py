""".ci/run: what it installs before it calls the checks, on a machine of stand-ins."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "dirname", "env")
SYSTEM = ["node", "npm"]
BROWSER = ["chromium", "chromedriver"]
INSTALL = "apt-get install -y -qq --no-install-recommends"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason=".ci/run is for Debian")


class Machine:
    """A folder of programs that only write down how they are called."""

    def __init__(self, folder):
        self.bin, self.log = folder / "bin", folder / "log"
        self.bin.mkdir()
        self.script = folder / "course" / ".ci" / "run"
        self.script.parent.mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "run", self.script)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.add("apt-get", "python3")
        self.add("sudo", then='exec "$@"')

    def add(self, *names, then=""):
        for name in names:
            text = f'#!/bin/bash\necho "{name} $*" >> "$LOG"\n{then}\n'
            (self.bin / name).write_text(text, "utf-8")
            (self.bin / name).chmod(0o755)

    def run(self, *arguments):
        done = subprocess.run(
            [str(self.script), *arguments],
            env={"PATH": str(self.bin), "LOG": str(self.log)},
            capture_output=True,
            text=True,
        )
        lines = self.log.read_text("utf-8").splitlines()
        installed = [x for x in lines if x.startswith("apt-get install")]
        return done, installed, lines[-1]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_what_is_missing_is_installed(machine):
    done, installed, last = machine.run("--all")

    assert done.returncode == 0
    assert installed == [
        f"{INSTALL} nodejs npm",
        f"{INSTALL} chromium chromium-driver fonts-dejavu-core",
    ]
    assert last == "python3 scripts/course.py test --all"
    assert ("sudo" in machine.log.read_text("utf-8")) == (os.geteuid() != 0)


def test_what_is_there_is_not_installed(machine):
    machine.add(*SYSTEM, "google-chrome", "chromedriver")
    done, installed, last = machine.run()
    assert done.returncode == 0
    assert installed == []
    assert last == "python3 scripts/course.py test"


def test_without_a_browser_the_other_checks_run(machine):
    machine.add(*SYSTEM, "chromium")
    machine.add("apt-get", then='[[ "$*" != *driver* ]]')
    done, installed, last = machine.run()
    assert done.returncode == 0
    assert installed == [f"{INSTALL} chromium-driver fonts-dejavu-core"]
    assert "No browser could be installed (chromium-driver)." in done.stderr
    assert last == "python3 scripts/course.py test"


def test_without_npm_it_stops(machine):
    machine.add("apt-get", then="exit 100")
    done, _, last = machine.run()
    assert done.returncode == 100
    assert last == "apt-get update -qq"


def test_the_checks_decide_its_exit_status(machine):
    machine.add(*SYSTEM, *BROWSER)
    machine.add("python3", then='[[ "$1" == -c ]]')
    done, _, _ = machine.run()
    assert done.returncode == 1
