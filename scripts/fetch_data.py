"""Download and verify the course's data and encoder weights; print what was found.

    python scripts/fetch_data.py [SUMMARY.json]

`course.py run` calls this first, in a process of its own, so that the memory that
PyTorch takes is free again when the notebooks run.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

from roadseg import dataset1, runtime, weights

SYNTHETIC = (
    "The images of this run are SYNTHETIC scenes, not those of dataset1: don't compare "
    "its scores and figures with any for dataset1."
)


def main(arguments: list[str]) -> int:
    """Fetch everything, write a summary into the file given; return the exit status."""
    try:
        profile = runtime.profile()
        print(f"profile   {profile.name}")
        print(f"hardware  {runtime.hardware_info()}")
        train, test = dataset1.load()
        print(f"data      {train.description}")
        print(f"          {test.description}")
        if train.is_real and runtime.settings().camvid_test:
            print(f"          {dataset1.load_official_test().description}")
        print(f"weights   {weights.load_encoder_weights().source}", flush=True)
    except (runtime.RoadsegError, OSError) as error:
        print(f"Cannot start: {error}", file=sys.stderr)
        return 1
    for path in map(Path, arguments):
        summary = {
            "profile": profile.name,
            "output": str(runtime.output_dir()),
            "banner": "" if train.is_real else runtime.banner(SYNTHETIC),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
