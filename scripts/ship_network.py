"""Make the network that ships: 8-bit weights, the model card, the README's figure.

    ROADSEG_RECIPE=full python scripts/ship_network.py       # trains it, if necessary
    python scripts/ship_network.py --model unet.safetensors  # a network that is trained
    python scripts/ship_network.py --card-only               # the one that ships now

A training on a CPU takes hours. It continues where it was stopped. The scores in the
card are those of the 8-bit weights, on test images that nothing was chosen by: run
this once, at the end.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))

from roadseg import (  # noqa: E402
    dataset1,
    files,
    inference,
    plots,
    runtime,
    synthetic,
    trained,
    weights,
)
from roadseg.classes import RoadsegError  # noqa: E402
from roadseg.metrics import Scores  # noqa: E402
from roadseg.scenes import RoadScenes, split_by_block, split_by_sequence  # noqa: E402

CARD = weights.PRETRAINED.with_name("README.md")
FIGURE = ROOT / "book" / "_static" / "synthetic-street.jpg"
STREET = 4
"""Which synthetic street the figure shows."""


def facts(saved: weights.SavedModel) -> str:
    """Return how a network was trained, as a Markdown table."""
    known = saved.metadata
    recipe = known["recipe"]
    epochs = Counter()
    for n, height, width in recipe["phases"]:
        epochs[height, width] += n
    phases = (f"{n} at {h} × {w}" for (h, w), n in epochs.items())
    rows = {
        "Training images": known["data"],
        "Encoder weights": known["encoder"],
        "Recipe": f"`{recipe['name']}`, seed {recipe['seed']}, one training",
        "Epochs": ", ".join(phases),
        "Duration": f"{runtime.format_duration(known['seconds'])} "
        f"on {known['hardware']}, in {known['precision']}",
        "Input size": "{} × {}".format(*saved.input_size),
    }
    lines = [f"| {k} | {v} |" for k, v in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def scores(saved: weights.SavedModel, test, known, unseen) -> str:
    """Score a network; return two Markdown tables.

    Args:
        saved: The network.
        test: The 101 images.
        known: Those of the 233 whose sequence is in the training images too.
        unseen: The others.
    """
    rows: dict[str, list[Scores]] = {}
    for name, scenes in (("101", test), ("0001TP", known), ("Seq05VD", unseen)):
        rows[f"{name} ({len(scenes)} images)"] = [
            inference.evaluate(saved.model, scenes, saved.input_size, hflip)
            for hflip in (False, True)
        ]
    names = list(rows)
    rows["233, the last two together"] = [
        Scores.from_confusion(a.confusion + b.confusion, saved.labels)
        for a, b in zip(rows[names[1]], rows[names[2]], strict=True)
    ]
    lines = [
        "| Images | Accuracy | mIoU | Accuracy, mirrored too | mIoU, mirrored too |",
        "|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        values = (f"{x:.3f}" for s in found for x in (s.acc, s.miou))
        lines.append(f"| {name} | {' | '.join(values)} |")
    chosen = {"101": rows[names[0]][0], "233": rows["233, the last two together"][0]}
    kinds = ("IoU", "Precision", "Recall")
    heads = [f"{kind}, {name}" for name in chosen for kind in kinds]
    lines += ["", f"| Class | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row, k in enumerate(saved.labels.scored):
        values = (
            f"{getattr(found, kind.lower())[row]:.2f}"
            for found in chosen.values()
            for kind in kinds
        )
        lines.append(f"| {saved.labels.names[k]} | {' | '.join(values)} |")
    return "\n".join(lines).replace("nan", "-")


def cost_of_8_bits(
    before: weights.SavedModel, after: weights.SavedModel, held_out: RoadScenes
) -> str:
    """Score a network with 32-bit and with 8-bit weights; return a Markdown table."""
    lines = ["| Weights | Accuracy | mIoU |", "|---|---|---|"]
    for name, saved in (("32 bits", before), ("8 bits", after)):
        found = inference.evaluate(saved.model, held_out, saved.input_size)
        lines.append(f"| {name} | {found.acc:.4f} | {found.miou:.4f} |")
    return "\n".join(lines)


def fill(path: Path, name: str, text: str) -> None:
    """Replace what is between two comments, <!-- name --> and <!-- /name -->.

    Raises:
        RoadsegError: If the file lacks the comments.
    """
    old = path.read_text(encoding="utf-8")
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    new, count = between.subn(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", old)
    if count != 1:
        comments = f"<!-- {name} --> and <!-- /{name} -->"
        raise RoadsegError(f"{path.name} needs {comments}, each once")
    with files.atomic_write(path) as draft:
        draft.write_text(new, encoding="utf-8")


def draw(saved: weights.SavedModel, path: Path) -> None:
    """Draw a synthetic street and what the network predicts for it."""
    plots.use_style()
    image = torch.from_numpy(synthetic.draw_scene(STREET)[0]).permute(2, 0, 1)
    mask = inference.predict(saved.model, image[None], saved.input_size)[0]
    fig, axes = plots.plt.subplots(1, 2, figsize=(plots.WIDTH, 3.4))
    plots.panel(axes[0], image, "A synthetic street")
    plots.panel(axes[1], plots.overlay(image, mask), "Its segmentation")
    plots.label_mask(axes[1], mask, min_share=0.006)
    plots.legend(fig, mask)
    with files.atomic_write(path) as draft:
        fig.savefig(draft, format="jpeg", dpi=140, pil_kwargs={"quality": 85})


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model", type=Path, help="a network that `roadseg train` saved"
    )
    which.add_argument("--card-only", action="store_true", help="keep the weights")
    options = parser.parse_args(arguments)
    try:
        train, test = dataset1.load()
        official = dataset1.load_official_test()
        if official is None or not test.is_real:
            raise RoadsegError("the card needs CamVid's 101 and 233 test images")
        if not options.card_only:
            ship(options.model, train)
        saved = weights.load_pretrained()
        saved.model.to(runtime.device())
        known, unseen = split_by_sequence(official, "Seq05VD")
        fill(CARD, "training", facts(saved))
        fill(CARD, "scores", scores(saved, test, known, unseen))
        draw(saved, FIGURE)
    except RoadsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def ship(path: Path | None, train: RoadScenes) -> None:
    """Write the 8-bit weights of a network, which is trained if no file is named.

    It learns from all training images but the held-out blocks, so that people who use
    it can still make choices on these.
    """
    kept, held_out = split_by_block(train)
    if path:
        saved = trained.load_trained(path)
    else:
        saved = trained.load_or_train(kept, weights.load_encoder_weights())
    weights.PRETRAINED.parent.mkdir(exist_ok=True)
    weights.save_model(
        saved.model, weights.PRETRAINED, saved.labels, saved.metadata, int8=True
    )
    after = weights.load_pretrained()
    after.model.to(runtime.device())
    megabytes = weights.PRETRAINED.stat().st_size / 1e6
    text = (
        f"The file has {megabytes:.1f} MB. On the {len(held_out)} held-out images:\n\n"
    )
    fill(CARD, "size", text + cost_of_8_bits(saved, after, held_out))


if __name__ == "__main__":
    sys.exit(main())
