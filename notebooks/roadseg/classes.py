"""Label sets: the names, ids and colors of classes, and the id that is ignored.

`CAMVID` is the default everywhere. Another one comes with a dataset, in a file
``labels.json`` in its folder, and with a saved network, in its metadata.
"""

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Color = tuple[int, int, int]


class RoadsegError(Exception):
    """What a user can fix: the message says what is wrong, where, and what to do.

    All errors that `roadseg` itself defines derive from this class. Any other
    exception is a programming error, or comes from Python or a library.
    """


class LabelError(RoadsegError, ValueError):
    """A label set, a class name or an id in a mask is not valid."""


@dataclass(frozen=True)
class LabelSet:
    """The classes of a dataset, immutable and hashable.

    Attributes:
        names: Name of each class, 1 to 255 of them. The position is the id in a
            mask and the channel in a network's output.
        colors: Red, green and blue of each class, 0 to 255. Left empty, distinct
            colors are generated, the same ones every time.
        ignore_index: The id of pixels without a label, 0 to 255. They are left out
            of the loss and of every score. Either one of the classes (11 in CamVid,
            "Unlabelled") or an id beyond them (often 255).

    Raises:
        LabelError: If an attribute is out of range, names repeat, or fewer than two
            classes are left to learn.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()
    ignore_index: int = 255

    def __post_init__(self) -> None:
        names, ignored = _checked_names(self.names), self.ignore_index
        if not _is_byte(ignored):
            raise LabelError(f"ignore_index is a whole number, 0 to 255: {ignored!r}")
        if len(names) - (ignored < len(names)) < 2:
            raise LabelError(
                f"at least two classes must be learned and scored; of {list(names)}, "
                f"ignore_index={ignored} leaves fewer"
            )
        colors = self.colors or _generated_colors(len(names), ignored)
        colors = _checked_colors(colors, names)
        valid = {"names": names, "colors": colors, "ignore_index": int(ignored)}
        self.__dict__.update(valid)  # the class is frozen

    @property
    def num_classes(self) -> int:
        """Number of classes, an ignored one included: a network's output channels."""
        return len(self.names)

    @property
    def scored(self) -> tuple[int, ...]:
        """Ids that are learned and scored: all but the ignored one."""
        return tuple(i for i in range(len(self.names)) if i != self.ignore_index)

    @property
    def num_scored(self) -> int:
        """Number of classes that are learned and scored."""
        return len(self.scored)

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id that a mask may hold, in ascending order."""
        return tuple(sorted({*range(len(self.names)), self.ignore_index}))

    @property
    def ignored_name(self) -> str:
        """What legends call ignored pixels."""
        inside = self.ignore_index < len(self.names)
        return self.names[self.ignore_index] if inside else "ignored"

    def class_id(self, name: str) -> int:
        """Return the id of a class.

        Args:
            name: One of `names`, in any case: ``CAMVID.class_id("car")`` is 8.

        Raises:
            LabelError: If there is no such class.
        """
        for i, known in enumerate(self.names):
            if known.casefold() == name.casefold():
                return i
        raise LabelError(
            f"there is no class {name!r}; the classes are {', '.join(self.names)}"
        )

    def palette(self) -> np.ndarray:
        """Return the color of every id, (256, 3) uint8.

        Ids that are no class are black, and so is an ignored id beyond the classes.
        """
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.colors)] = self.colors
        return palette

    def to_dict(self) -> dict[str, Any]:
        """Return the label set as what JSON can hold."""
        names, colors = list(self.names), [list(color) for color in self.colors]
        return {"names": names, "colors": colors, "ignore_index": self.ignore_index}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LabelSet":
        """Return the label set that `to_dict` has described.

        Args:
            values: ``names``, and optionally ``colors`` and ``ignore_index``.

        Raises:
            LabelError: If the description is incomplete or not valid.
        """
        if not isinstance(values, Mapping) or "names" not in values:
            raise LabelError(
                'a label set is described as {"names": [...], "colors": [[r, g, b], '
                '...], "ignore_index": 255}; "names" is missing'
            )
        known = ("names", "colors", "ignore_index")
        if unknown := set(values) - set(known):
            raise LabelError(
                f"a label set has no {', '.join(map(repr, sorted(unknown)))}; "
                f"it has {', '.join(known)}"
            )
        # A null in JSON means the default.
        return cls(**{key: value for key, value in values.items() if value is not None})

    @classmethod
    def load(cls, path: Path) -> "LabelSet":
        """Read a label set from a JSON file such as a dataset's ``labels.json``.

        Raises:
            LabelError: If the file can't be read or its content is not valid.
        """
        path = Path(path)
        where = f"{path.parent.name}/{path.name}"
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8-sig")))
        except LabelError as error:
            raise LabelError(f"{where}: {error}") from None
        except OSError as error:
            reason = error.strerror or error
            raise LabelError(f"{where} can't be read: {reason}") from None
        except (ValueError, RecursionError) as error:
            raise LabelError(f"{where} isn't valid JSON: {error}") from None

    def save(self, path: Path) -> None:
        """Write the label set to a JSON file, which `load` reads."""
        text = json.dumps(self.to_dict(), ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def _is_byte(value: object) -> bool:
    """Return whether a value is an integer from 0 to 255 (True is not)."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and 0 <= value <= 255


def _checked_names(names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise LabelError(f"names is a list of class names, not {names!r}")
    if not 1 <= len(names) <= 255:
        raise LabelError(f"a label set has 1 to 255 classes, not {len(names)}")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise LabelError(f"a class name is a text that isn't empty, not {name!r}")
        if name.casefold() in seen:
            raise LabelError(
                f"two classes are named {name!r}; case makes no difference"
            )
        seen.add(name.casefold())
    return tuple(names)


def _checked_colors(colors: object, names: tuple[str, ...]) -> tuple[Color, ...]:
    if not isinstance(colors, (list, tuple)) or len(colors) != len(names):
        count = len(colors) if isinstance(colors, (list, tuple)) else colors
        raise LabelError(f"colors: {len(names)} are needed, one per class, not {count}")
    for name, color in zip(names, colors, strict=True):
        triple = isinstance(color, (list, tuple)) and len(color) == 3
        if not triple or not all(map(_is_byte, color)):
            raise LabelError(
                f"a color is three whole numbers, 0 to 255; {name} has {color!r}"
            )
    return tuple(tuple(map(int, color)) for color in colors)


def _generated_colors(count: int, ignored: int) -> tuple[Color, ...]:
    """Return distinct colors, none of them black except that of an ignored class."""
    colors: list[Color] = []
    i = 0
    while len(colors) < count:
        # Steps of the golden ratio around the color wheel keep neighbors apart.
        hue, level = i * 0.618034 % 1, i // 12 % 3
        rgb = colorsys.hsv_to_rgb(
            hue, (0.75, 0.45, 0.9)[level], (0.9, 0.95, 0.6)[level]
        )
        color = tuple(round(255 * part) for part in rgb)
        i += 1
        if color not in colors:
            colors.append(color)
    if ignored < count:
        colors[ignored] = (0, 0, 0)
    return tuple(colors)


CAMVID = LabelSet(
    names=(
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
    ),
    colors=(
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
    ),
    ignore_index=11,
)
"""CamVid as prepared for SegNet (Badrinarayanan, Kendall and Cipolla 2017,
https://doi.org/10.1109/TPAMI.2016.2644615). Lists found elsewhere sometimes insert a
class "Road_marking" at id 3, which shifts the color of every later class."""


def is_camvid(labels: LabelSet) -> bool:
    """Return whether these are CamVid's classes: the score acc12 exists only there."""
    return labels == CAMVID


def colorize(mask, labels: LabelSet = CAMVID) -> np.ndarray:
    """Paint a mask in the colors of its classes.

    Args:
        mask: (..., H, W) integers: a NumPy array or a CPU tensor.
        labels: The classes; ignored pixels beyond them are painted black.

    Returns:
        (..., H, W, 3) uint8, red, green and blue, 0 to 255.

    Raises:
        LabelError: If the mask holds an id that is not in the label set.
    """
    ids = np.asarray(mask)
    if ids.dtype.kind not in "biu":
        raise LabelError(f"a mask holds integer ids, this one {ids.dtype}")
    known = np.isin(ids, labels.ids)
    if not known.all():
        found = ", ".join(map(str, np.unique(ids[~known])[:5]))
        last, ignored = len(labels.names) - 1, labels.ignore_index
        beyond = f", and {ignored} for ignored pixels" if ignored > last else ""
        raise LabelError(
            f"this mask holds {found}, but the label set has ids 0 to {last}{beyond}"
        )
    return labels.palette()[ids.astype(np.uint8)]
