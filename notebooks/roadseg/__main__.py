"""Run the command line: ``python -m roadseg``, or ``python notebooks/roadseg``."""

import sys
from pathlib import Path

if not __package__:  # started by its folder: our modules must not shadow others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from roadseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
