"""What was measured: kept in a file, shown in tables and a plot."""

import json
import math
import os
import statistics
from datetime import datetime
from pathlib import Path

from matplotlib.figure import Figure

from benchmarking.contestants import CONTESTANTS
from benchmarking.measuring import BenchmarkError
from roadseg import plots, runtime

KINDS = ("throughput", "cost", "accuracy")
GOALS = (
    *(("acc12", 0.86), ("acc12", 0.88), ("acc12", 0.90)),
    *(("miou", 0.50), ("miou", 0.60)),
)


class Results:
    """Finished measurements, in a file that is rewritten whole after each.

    Args:
        folder: Where ``benchmark.json`` and the others go; it is made.
        facts: What must be the same for all: machine, versions, data, weights.

    Raises:
        BenchmarkError: If the file is of other facts, or damaged.
    """

    def __init__(self, folder: Path, facts: dict) -> None:
        self.path, self.facts = folder / "benchmark.json", facts
        self.rows: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        name = runtime.short(self.path)
        advice = "choose another --output, or delete the file"
        try:
            kept = json.loads(self.path.read_text())
            old, self.rows = kept["facts"], kept["results"]
        except (ValueError, KeyError, TypeError):
            raise BenchmarkError(f"{name} is damaged: {advice}") from None
        other = [f"{k}: {old.get(k)}" for k in facts if old.get(k) != facts[k]]
        if other:
            found = "; ".join(other)
            raise BenchmarkError(f"{name} was measured with {found}. {advice}")

    def has(self, job: dict) -> bool:
        """Return whether a measurement is finished."""
        return any(row["job"] == job for row in self.rows)

    def add(self, job: dict, values: dict, took: float) -> None:
        """Keep a measurement, and write everything anew."""
        date = datetime.now().astimezone().isoformat(timespec="seconds")
        self.rows.append({"job": job, "date": date, "took": round(took, 1)} | values)
        text = json.dumps({"facts": self.facts, "results": self.rows}, indent=1)
        draft = self.path.with_suffix(".draft")
        draft.write_text(text + "\n")
        os.replace(draft, self.path)
        self.report()

    def report(self) -> None:
        """Write the tables, and the plot if there are scores."""
        self.path.with_suffix(".md").write_text(tables(self.facts, self.rows))
        runs = [row for row in self.rows if row["job"]["kind"] == "accuracy"]
        if runs:
            plots.use_style()
            curves(runs).savefig(self.path.with_suffix(".png"), facecolor="white")


def tables(facts: dict, rows: list[dict]) -> str:
    """Return all tables as Markdown."""
    by_kind = {k: [r for r in rows if r["job"]["kind"] == k] for k in KINDS}
    parts = ["# Benchmark", "\n".join(f"- {k}: {v}" for k, v in facts.items())]
    days = dict.fromkeys(row["date"][:10] for row in (rows[0], rows[-1]))
    parts.append(f"Measured {' to '.join(days)}.")
    speed = medians(by_kind["throughput"])
    if speed:
        parts += ["## Throughput", speed_table(speed)]
    if by_kind["cost"]:
        parts += ["## Cost", cost_table(by_kind["cost"][-1], speed)]
    if by_kind["accuracy"]:
        parts += ["![Scores over seconds of training](benchmark.png)"]
        parts += ["## Seconds of training to a score", goal_table(by_kind["accuracy"])]
        parts += ["## Score within a budget", budget_table(by_kind["accuracy"])]
        parts += ["## Last score of each run", last_table(by_kind["accuracy"])]
    return "\n\n".join(parts) + "\n"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def medians(rows: list[dict]) -> dict[tuple, dict]:
    """Return the median over repeats for each (height, width, contestant)."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (*row["job"]["size"], row["job"]["contestant"])
        groups.setdefault(key, []).append(row)
    found = {}
    for key, group in sorted(groups.items(), key=lambda item: item[0][:2]):
        formats = sorted({runtime.format_name(r["precision"]) for r in group})
        found[key] = {"repeats": len(group), "format": " and ".join(formats)}
        for field in ("train", "predict", "memory"):
            values = [r[field] for r in group if r[field] is not None]
            found[key][field] = statistics.median(values) if values else None
        found[key]["range"] = [f(r["train"] for r in group) for f in (min, max)]
    return found


def speed_table(speed: dict[tuple, dict]) -> str:
    """Return pictures a second and memory; beside the others, how far ours leads."""
    head = ["size", "contestant", "format", "training, pictures/s", "least to most"]
    head += ["repeats", "prediction, pictures/s", "peak memory, MiB"]
    lines = []
    for (height, width, name), row in speed.items():
        ours = speed.get((height, width, "ours"))
        gain = f"{ours['train'] / row['train']:.2f} x" if ours else ""
        line = [f"{height} x {width}", name, row["format"]]
        line += [f"{row['train']:.2f}", "{:.2f} to {:.2f}".format(*row["range"])]
        line += [str(row["repeats"]), f"{row['predict']:.2f}"]
        line += ["unknown" if row["memory"] is None else f"{row['memory']:.0f}"]
        lines.append([*line, "" if name == "ours" else gain])
    return markdown([*head, "ours trains faster by"], lines)


def cost_table(cost: dict, speed: dict[tuple, dict]) -> str:
    """Return operations, and which share of the machine's peak training reaches."""
    sizes = sorted({key[:2] for key in speed})
    head = ["contestant", "parameters", "GFLOP forward", "GFLOP training"]
    head += [f"{f} peak used at {h} x {w}" for h, w in sizes for f in cost["peak"]]
    lines = []
    for name, network in cost["networks"].items():
        line = [name, f"{network['parameters']:.1f} M"]
        line += [f"{network[k]:.1f}" for k in ("forward", "training")]
        for height, width in sizes:
            row = speed.get((height, width, name))
            work = network["training"] * height * width / 224**2
            for peak in cost["peak"].values():
                line.append(f"{row['train'] * work / peak:.0%}" if row else "")
        lines.append(line)
    peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in cost["peak"].items())
    said = "GFLOP a picture of 224 x 224, two a multiplication with addition. "
    return f"{said}Measured peak, GFLOP/s: {peaks}.\n\n{markdown(head, lines)}"


def spread(values: list[float], digits: int) -> str:
    """Return mean and, of several, standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def by_seed(runs: list[dict]) -> dict[str, dict[int, list[dict]]]:
    """Return each contestant's runs under their seeds."""
    found: dict[str, dict[int, list[dict]]] = {}
    for run in runs:
        job = run["job"]
        found.setdefault(job["contestant"], {}).setdefault(job["seed"], []).append(run)
    return found


def goal_table(runs: list[dict]) -> str:
    """Return seconds to each goal, mean over the seeds that reached it."""
    lines = []
    for name, seeds in by_seed(runs).items():
        line = [name]
        for measure_, goal in GOALS:
            times = [_first(group, measure_, goal) for group in seeds.values()]
            reached = [t for t in times if t is not None]
            longest = max(r["points"][-1]["seconds"] for g in seeds.values() for r in g)
            cell = spread(reached, 0) if reached else f"not in {longest:.0f}"
            if reached and len(times) > 1:
                cell += f" ({len(reached)} of {len(times)} seeds)"
            line.append(cell)
        lines.append(line)
    names = {"miou": "mIoU"}
    return markdown(
        ["contestant", *(f"{names.get(m, m)} {g:.2f}" for m, g in GOALS)], lines
    )


def _first(group: list[dict], measure_: str, goal: float) -> float | None:
    """Return the least seconds at which any of the runs scores a goal."""
    points = [p for run in group for p in run["points"]]
    return min((p["seconds"] for p in points if p[measure_] >= goal), default=None)


def budget_table(runs: list[dict]) -> str:
    """Return the last scores within each budget, and within what ours takes whole.

    The latter is rounded up to full hundreds of seconds.
    """
    budgets = {r["job"]["budget"] for r in runs if r["job"]["budget"]}
    for run in runs:
        if run["job"]["contestant"] == "ours" and not run["job"]["budget"]:
            budgets.add(100.0 * math.ceil(run["points"][-1]["seconds"] / 100))
    lines = []
    for budget in sorted(budgets):
        for name, seeds in by_seed(runs).items():
            last = [_within(group, budget) for group in seeds.values()]
            last = [p for p in last if p]
            cells = [
                spread([p[k] for p in last], 3) if last else "unknown"
                for k in ("acc", "acc12", "miou")
            ]
            lines.append([f"{budget:g} s", name, *cells, str(len(last))])
    return markdown(["budget", "contestant", "acc", "acc12", "mIoU", "seeds"], lines)


def _within(group: list[dict], budget: float) -> dict | None:
    """Return the last point in a budget, of the run planned for it if there is one.

    None if no epoch was done by then, or the run was stopped before.
    """
    planned = [r for r in group if r["job"]["budget"] == budget] or group[:1]
    points = planned[0]["points"]
    if points[-1]["seconds"] < budget and not planned[0]["whole"]:
        return None
    return next((p for p in reversed(points) if p["seconds"] <= budget), None)


def last_table(runs: list[dict]) -> str:
    """Return the last point of each run."""
    lines = []
    for run in runs:
        job, last = run["job"], run["points"][-1]
        what = "whole" if run["whole"] else "stopped"
        what = f"within {job['budget']:g} s" if job["budget"] else what
        line = [job["contestant"], what, str(job["seed"]), str(last["epoch"])]
        line += [f"{last['seconds']:.0f}"]
        lines.append(line + [f"{last[k]:.3f}" for k in ("acc", "acc12", "miou")])
    head = ["contestant", "run", "seed", "epochs", "seconds", "acc", "acc12", "mIoU"]
    return markdown(head, lines)


def curves(runs: list[dict]) -> Figure:
    """Draw acc12 and mIoU over seconds of training; a line a run, a dot its end."""
    fig = Figure(figsize=(plots.WIDTH, 3.6), layout="constrained")
    colours = dict(
        zip(CONTESTANTS, (plots.CONTRAST, plots.LINES[2], plots.ACCENT), strict=True)
    )
    for ax, field, name in zip(
        fig.subplots(1, 2), ("acc12", "miou"), ("acc12", "mIoU"), strict=True
    ):
        for run in runs:
            who = run["job"]["contestant"]
            x = [p["seconds"] for p in run["points"]]
            y = [p[field] for p in run["points"]]
            style = "--" if run["job"]["budget"] else "-"
            ax.plot(x, y, style, color=colours[who], linewidth=1.5)
            ax.plot(x[-1:], y[-1:], "o", color=colours[who], label=who)
        ax.set(title=name, xlabel="Seconds of training")
        ax.grid(axis="y")
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    place = {"loc": "outside lower center", "ncols": len(handles)}
    fig.legend(handles.values(), handles.keys(), **place)
    return fig
