"""Write the results in benchmark/results/ into README.md as tables.

    python benchmark/table.py      # after run.py or ablate.py

A table goes between the lines ``<!-- scores -->`` and ``<!-- end -->``, likewise for
``ablation``. Every number is a mean, followed in parentheses by the values of the seeds
that it is the mean of.
"""

import argparse
import statistics
from pathlib import Path

import common
import run

README = Path(__file__).with_name("README.md")

TABLES = {
    "scores": (("budget", "method", "rate"), ("acc", "miou", "images", "seconds")),
    "throughput": (
        ("size", "method", "precision"),
        ("train_images_per_s", "predict_images_per_s", "share_of_peak"),
    ),
    "ablation": (("row",), ("acc", "miou", "cpu_seconds")),
}
"""For each CSV file what identifies a line, and what is averaged over the seeds."""


def mean_and_each(rows: list[dict[str, str]], column: str) -> str:
    """Return the mean of a column, and in parentheses the values if there are more."""
    digits = 0 if column in ("seconds", "cpu_seconds", "images") else 3
    values = [float(row[column]) for row in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def table(name: str, rows: list[dict[str, str]]) -> str:
    """Return the Markdown table of a CSV file's rows, and their conditions."""
    keys, columns = TABLES[name]
    if name == "scores":  # the rates that were tried and not chosen are left out
        rows = [r for r in rows if r["rate"] == run.best_rate(r["method"], rows)]
    lines = [[*keys, *columns], ["---"] * (len(keys) + len(columns))]
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        group = [row for row in rows if tuple(row[k] for k in keys) == key]
        group.sort(key=lambda row: int(row.get("seed", 0)))
        lines.append([*key, *(mean_and_each(group, c) for c in columns)])
    known = [
        ", ".join(sorted({row[c] for row in rows}))
        for c in common.CONDITIONS
        if c in rows[0]
    ]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\nMeasured with: {'; '.join(known)}."


def fill(text: str, results: Path) -> str:
    """Return a Markdown text with the tables of the CSV files in a folder."""
    for name in TABLES:
        begin, end = f"<!-- {name} -->", "<!-- end -->"
        if begin not in text:
            continue
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        rows = common.read_rows(results / f"{name}.csv")
        found = table(name, rows) if rows else "Not measured yet."
        text = f"{before}{begin}\n\n{found}\n\n{end}{after}"
    return text


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args(arguments)
    text = options.readme.read_text(encoding="utf-8")
    options.readme.write_text(fill(text, options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
