"""The twelve classes of dataset1: names, ids, colours, and which one is void.

Ids and colours are those of CamVid as prepared for SegNet (Badrinarayanan,
Kendall and Cipolla 2017, https://doi.org/10.1109/TPAMI.2016.2644615). Lists
found elsewhere sometimes insert a class "Road_marking" at id 3, which shifts
the colour of every later class.
"""

import numpy as np

NAMES: tuple[str, ...] = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
    "Unlabelled",
)
"""Name of each class; the position is the id that stands in a mask."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
    (0, 0, 0),
)
"""Colour of each class, red, green and blue, 0 to 255."""

NUM_CLASSES: int = len(NAMES)
"""Twelve: what a mask can hold, and the number of output channels."""

VOID: int = NAMES.index("Unlabelled")
"""The id of pixels nobody labelled: out of the loss, out of every score."""

NUM_SCORED: int = NUM_CLASSES - 1
"""Eleven: classes 0 to 10 are learned and scored."""


def class_id(name: str) -> int:
    """Return the id of a class, by its name.

    Args:
        name: One of `NAMES`, in any case: ``class_id("car")`` is 8.

    Raises:
        ValueError: If there is no such class.
    """
    for i, known in enumerate(NAMES):
        if known.lower() == name.lower():
            return i
    raise ValueError(f"no class is called {name!r}; there are: {', '.join(NAMES)}")


def colorize(mask) -> np.ndarray:
    """Paint a mask in the palette.

    Args:
        mask: (..., H, W) integers, 0 to 11: a NumPy array or a CPU tensor.

    Returns:
        (..., H, W, 3) uint8, red, green and blue, 0 to 255.

    Raises:
        ValueError: If a label is below 0 or above 11.
    """
    labels = np.asarray(mask)
    if labels.size and (labels.min() < 0 or labels.max() >= NUM_CLASSES):
        raise ValueError(
            f"a mask holds labels 0 to {NUM_CLASSES - 1}, "
            f"this one {labels.min()} to {labels.max()}"
        )
    return np.asarray(PALETTE, dtype=np.uint8)[labels]
