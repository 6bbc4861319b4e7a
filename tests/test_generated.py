"""How many cases the tests try, as the table in CONTRIBUTING.md states it."""

from pathlib import Path

import test_convert
import test_files
import test_images
import test_scenes
import test_video
import test_weights
from mutations import FAULTS

KINDS = {
    "images": test_images,
    "images with masks": test_scenes,
    "masks to convert": test_convert,
    "archives": test_files,
    "weights": test_weights,
    "videos": test_video,
}


def counts() -> dict[str, int]:
    """Return how many cases `test --all` generates of each kind."""
    return {
        kind: sum(count for *_, count in module.CHECKS.values())
        for kind, module in KINDS.items()
    }


def test_contributing_states_how_many_cases_there_are():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if ", generated:" in line]
    stated = {row[0].strip("| ").split(", generated:")[0]: int(row[1]) for row in rows}
    assert stated == counts()
    assert sum(stated.values()) >= 2500
    assert f"generates {sum(stated.values()):,} cases" in text
    assert f"| faults inserted into `roadseg` | {len(FAULTS)} |" in text
    for kind, cases in (
        ("hostile web servers", test_files.HOSTILE),
        ("unsafe and damaged archives", test_files.BAD_ARCHIVES),
    ):
        assert f"| {kind} | {len(cases)} kinds |" in text
