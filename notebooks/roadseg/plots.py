"""The figures that notebooks share, in one style.

The functions return a Matplotlib figure or draw on given axes. `show` displays a
figure with its alternative text, in a small output:

    plots.show(plots.image_grid(images, masks), alt="Four road scenes ...", jpeg=True)

Images and masks are those of `roadseg.paint`. All functions that take `labels` take
CamVid's classes without it, and all raise a ValueError for a wrong shape or value.
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, NoNorm
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image

from roadseg.charts import (  # noqa: F401 (notebooks get them from here)
    ACCENT,
    CONTRAST,
    DPI,
    FAINT,
    INK,
    LINES,
    MUTED,
    WIDTH,
    draw_matrices,
    draw_matrix,
    plot_class_iou,
    plot_confusion_matrix,
    use_style,
)
from roadseg.classes import CAMVID, LabelSet, colorize
from roadseg.paint import (  # noqa: F401
    OUTCOMES,
    RIGHT,
    WRONG,
    as_array,
    as_ids,
    as_rgb,
    center,
    connected_components,
    error_map,
    overlay,
    tp_fp_fn,
)


def show(
    fig: Figure,
    alt: str,
    jpeg: bool = False,
    display_id: str | None = None,
    update: bool = False,
) -> None:
    """Display a figure once, and close it; outside IPython, print its alternative text.

    Args:
        fig: The figure.
        alt: What the figure shows, in words.
        jpeg: Whether to store JPEG (photos) instead of PNG (line art).
        display_id: A name, for a figure that is updated while a cell runs.
        update: Whether to replace the figure that was shown under `display_id`.
    """
    plt.close(fig)
    if not alt.strip():
        raise ValueError("a figure needs alternative text: say in alt what it shows")
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:  # optional: a script has no need of it
        print(alt)
        return
    if get_ipython() is None:
        print(alt)
        return
    mime = "image/jpeg" if jpeg else "image/png"
    data = {mime: base64.b64encode(_encode(fig, jpeg)).decode(), "text/plain": alt}
    kwargs = {"display_id": display_id, "update": update} if display_id else {}
    display(data, metadata={mime: {"alt": alt}}, raw=True, **kwargs)


def _encode(fig: Figure, jpeg: bool) -> bytes:
    drawn, stored = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    image = Image.open(drawn).convert("RGB")
    if jpeg:
        image.save(stored, "JPEG", quality=85, optimize=True)
    else:
        image = image.quantize(256, dither=Image.Dither.NONE)
        image.save(stored, "PNG", optimize=True)
    return stored.getvalue()


# ---- Images and masks -------------------------------------------------------------


def panel(ax: Axes, image, title: str | None = None, labels: LabelSet = CAMVID) -> None:
    """Draw an image or a mask, told apart by the number of dimensions.

    Args:
        ax: The axes to draw on.
        image: An image, or a mask, which `legend` will know of.
        title: The title.
        labels: The classes, for a mask.
    """
    if as_array(image).ndim == 2:
        colors = ListedColormap(labels.palette() / 255)
        # Where pixels must be merged, "rgba" merges their colors, not their ids.
        exact = {"norm": NoNorm(), "interpolation_stage": "rgba"}
        drawn = ax.imshow(as_ids(image, labels), cmap=colors, **exact)
        drawn.roadseg_labels = labels
    else:
        ax.imshow(as_rgb(image))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=FAINT, linewidth=0.8)
    if title:
        ax.set_title(title)


def label_mask(
    ax: Axes, mask, labels: LabelSet = CAMVID, min_share: float = 0.002
) -> None:
    """Write the name of each class on its largest connected component.

    With names, readers need not tell similar colors apart. Draw the mask or the image
    first, with `panel`. Names of small components move up until they are free, with a
    line to the component.

    Args:
        ax: Where the mask, or its image, is drawn.
        mask: The mask. Ignored pixels get no name.
        labels: The classes.
        min_share: Components below this share of the pixels get no name.
    """
    mask = as_ids(mask, labels)
    components = connected_components(mask)
    present = [i for i in labels.scored if (mask == i).any()]
    sizes = {i: np.bincount(components[mask == i]) for i in present}
    ax.figure.draw_without_rendering()  # lays the axes out, which decides their size
    # lengths in pixels of the mask: of a point, of half a name, of a line
    point = mask.shape[1] / ax.get_window_extent().width * ax.figure.dpi / 72
    placed: list[tuple[float, float, float]] = []
    for i in sorted(present, key=lambda i: -sizes[i].max()):
        region = components == sizes[i].argmax()
        if region.sum() < min_share * mask.size:
            continue
        row, column = center(region)
        half, tall = point * (2 + 3.6 * len(labels.names[i])), 12 * point
        x, y = np.clip(column, half, max(half, mask.shape[1] - half)), float(row)
        while y > tall and any(
            abs(y - b) < tall and abs(x - a) < half + c for a, b, c in placed
        ):
            y -= tall / 4
        placed.append((x, y, half))
        outside = not region[int(y), min(int(x), mask.shape[1] - 1)]
        line = {"arrowstyle": "-", "color": "white", "shrinkB": 0} if outside else None
        text = ax.annotate(labels.names[i], (column, row), (x, y), arrowprops=line)
        text.set(ha="center", va="center", size=9, weight="bold", color="white")
        text.set_path_effects([withStroke(linewidth=2.5, foreground=INK)])


def legend(
    target: Figure | Axes,
    classes: Sequence[int] | Mapping[str, tuple[Sequence[int], str]] | None = None,
    labels: LabelSet | None = None,
) -> Legend:
    """Explain the colors of the classes: below a figure, or on the right of axes.

    Args:
        target: The figure or the axes.
        classes: Ids of the classes (a mask will do). None takes those in the masks
            that `panel` drew on the target. A mapping of names to colors and hatching,
            such as `OUTCOMES`, is explained instead of classes.
        labels: The classes; None takes those of the masks that were drawn, or CamVid's.
    """
    if isinstance(classes, Mapping):
        patches = [_patch(name, *look) for name, look in classes.items()]
        return _legend(target, patches)
    axes = target.axes if isinstance(target, Figure) else [target]
    drawn = [i for ax in axes for i in ax.images if hasattr(i, "roadseg_labels")]
    if labels is None:
        labels = drawn[0].roadseg_labels if drawn else CAMVID
    if classes is None:
        if not drawn:
            raise ValueError("no mask is drawn here: give the ids of the classes")
        classes = np.concatenate([i.get_array().ravel() for i in drawn])
    return _legend(target, _class_patches(classes, labels))


def _class_patches(ids: Sequence[int], labels: LabelSet) -> list[Patch]:
    """Return a patch for each class, by id; ignored pixels come last."""
    present = np.unique(as_array(ids)).tolist()
    present.sort(key=lambda i: (i == labels.ignore_index, i))
    patches = []
    for i, rgb in zip(present, colorize(np.array(present), labels), strict=True):
        name = labels.ignored_name if i == labels.ignore_index else labels.names[i]
        inside = i == labels.ignore_index < labels.num_classes
        patches.append(_patch(f"{name} (void)" if inside else name, rgb))
    return patches


def _patch(label: str, rgb: Sequence[int], hatch: str = "") -> Patch:
    look = {"ec": "white", "lw": 0, "hatch": hatch} if hatch else {"ec": MUTED}
    return Patch(**{"fc": np.array(rgb) / 255, "lw": 0.5, "label": label} | look)


def _legend(target: Figure | Axes, patches: Sequence[Patch]) -> Legend:
    if isinstance(target, Figure):
        place = {"loc": "outside lower center", "ncols": min(len(patches), 5)}
    else:
        place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    return target.legend(
        handles=patches, handlelength=1, handleheight=1, columnspacing=1.2, **place
    )


def image_grid(
    images: Sequence,
    masks: Sequence | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    overlay: bool = False,
    labels: LabelSet = CAMVID,
) -> Figure:
    """Draw images in a grid, with their masks and a legend if there are masks.

    Args:
        images: Images.
        masks: As many masks, each drawn on the right of its image.
        titles: As many titles, for the images.
        columns: Panels side by side; an image with its mask makes two.
        overlay: Whether to blend the masks with their images instead.
        labels: The classes.
    """
    titles = _as_many(titles, images, "titles")
    masks = _as_many(masks, images, "masks")
    cells: list[tuple[str | None, object]] = []
    for image, mask, title in zip(images, masks, titles, strict=True):
        if mask is None:
            cells.append((title, image))
        elif overlay:
            cells.append((title, _blend(image, mask, labels=labels)))
        else:
            mask = as_ids(mask, labels, as_rgb(image).shape[:2])
            cells += [(title, image), (None, mask)]
    ids = [np.unique(as_array(mask)) for mask in masks if mask is not None]
    patches = _class_patches(np.concatenate(ids), labels) if ids else []
    return _mosaic(cells, columns, patches, labels=labels)


_blend = overlay  # `image_grid` has a parameter of that name


def _as_many(items: Sequence | None, images: Sequence, what: str) -> Sequence:
    if items is None:
        return [None] * len(images)
    if len(items) != len(images):
        raise ValueError(f"{len(images)} images, but {len(items)} {what}")
    return items


def predictions(
    images: Sequence,
    truths: Sequence,
    predicted: Sequence,
    titles: Sequence[str] | None = None,
    labels: LabelSet = CAMVID,
) -> Figure:
    """Draw images, their true masks, the predicted ones and the errors, a row each.

    Args:
        images: Images.
        truths: As many masks.
        predicted: As many predicted masks.
        titles: As many names, written beside the rows.
        labels: The classes.
    """
    rows = () if titles is None else _as_many(titles, images, "titles")
    truths = _as_many(truths, images, "masks")
    predicted = _as_many(predicted, images, "predictions")
    cells: list[tuple[str | None, object]] = []
    for image, truth, guess in zip(images, truths, predicted, strict=True):
        truth = as_ids(truth, labels, as_rgb(image).shape[:2])
        names = [None] * 4 if cells else ["Image", "Truth", "Prediction", "Errors"]
        guess = as_ids(guess, labels, truth.shape)
        drawn = [image, truth, guess, error_map(truth, guess, labels)]
        cells += zip(names, drawn, strict=True)
    ids = [np.unique(x) for _, x in cells if as_array(x).ndim == 2]
    patches = _class_patches(np.concatenate(ids), labels) if ids else []
    patches += [_patch("Right", RIGHT), _patch("Wrong", WRONG)]
    return _mosaic(cells, 4, patches, rows, labels)


def _mosaic(
    cells: Sequence[tuple[str | None, object]],
    columns: int,
    patches: Sequence[Patch] = (),
    rows: Sequence[str] = (),
    labels: LabelSet = CAMVID,
) -> Figure:
    """Draw titled panels in rows, in a figure of just the right height (inches)."""
    if not cells:
        raise ValueError("there is no image to draw")
    columns = min(columns, len(cells))
    count = math.ceil(len(cells) / columns)
    across = (WIDTH - (0.3 if rows else 0)) / columns - 0.1
    titles = [textwrap.fill(title or "", int(across / 0.09)) for title, _ in cells]
    lines = sum(
        max(1 + t.count("\n") if t else 0 for t in titles[r * columns :][:columns])
        for r in range(count)
    )
    shapes = [np.shape(x) if np.ndim(x) == 2 else as_rgb(x).shape for _, x in cells]
    tall = across * max(shape[0] / shape[1] for shape in shapes)
    height = count * (tall + 0.1) + 0.24 * lines + 0.26 * math.ceil(len(patches) / 5)
    fig = Figure(figsize=(WIDTH, height), layout="compressed")
    axes = fig.subplots(count, columns, squeeze=False)
    for ax in axes.flat[len(cells) :]:
        ax.remove()
    for ax, title, (_, image) in zip(axes.flat, titles, cells, strict=False):
        panel(ax, image, title, labels)
    for ax, row in zip(axes[:, 0], rows, strict=False):
        ax.set_ylabel(row)
    if patches:
        _legend(fig, patches)
    return fig
