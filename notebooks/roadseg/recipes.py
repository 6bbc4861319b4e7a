"""Recipes: everything that decides what a training does, and the course's own."""

import os
from dataclasses import dataclass

from roadseg import runtime, unet


@dataclass(frozen=True)
class Stage:
    """A number of epochs at one picture size.

    Attributes:
        epochs: Passes over the training pictures.
        height: Of the crops that are fed, in pixels, a multiple of 32.
        width: Likewise.
    """

    epochs: int
    height: int
    width: int


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training does, apart from data and network.

    Attributes:
        name: What it is called, and the folder its results go to.
        stages: Sizes in their order; the last is the largest.
        feed: Height and width that pictures are resized to when predicting, or
            None for their own size.
        batch_size: Pictures a step, over all processes.
        lr_encoder: Highest learning rate of the pretrained encoder.
        lr_decoder: Highest learning rate of all else.
        weight_decay: Of AdamW.
        warmup: Share of the steps in which the rates rise, 0 to less than 1.
        crop: Smallest share of a picture's area that a crop keeps, 0 to 1.
        jitter: Strength of the changes in brightness, contrast and saturation.
        class_weights: Power of (median frequency / own frequency) that classes
            weigh in the loss; 0: all alike, see `training.class_weights`.
        seed: Of shuffling, augmentation and everything else.
        precision: bf16, fp16, no (float32), or auto: `runtime.precision`.

    Raises:
        ValueError: If there is no epoch or a size is not a multiple of 32.
    """

    name: str
    stages: tuple[Stage, ...]
    feed: tuple[int, int] | None
    batch_size: int = 8
    lr_encoder: float = 5e-4
    lr_decoder: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 0.25
    crop: float = 0.4
    jitter: float = 0.3
    class_weights: float = 0.5
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError("a recipe needs at least one epoch")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"warmup is the share of steps in which rates rise, from 0 to less "
                f"than 1, not {self.warmup}"
            )
        for s in self.stages:
            if s.height % unet.STRIDE or s.width % unet.STRIDE:
                raise ValueError(
                    f"a stage's size must be a multiple of {unet.STRIDE}, "
                    f"not {s.height} x {s.width}"
                )

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(s.epochs for s in self.stages)

    @classmethod
    def for_profile(cls, profile: runtime.Profile | None = None) -> "Recipe":
        """Return the recipe of a profile, or the one that ``ROADSEG_RECIPE`` names.

        Args:
            profile: The profile; without it, that of this run.

        Raises:
            ValueError: If there is no such recipe.
        """
        name = os.environ.get("ROADSEG_RECIPE") or (profile or runtime.profile()).name
        if name not in RECIPES:
            raise ValueError(
                f"there is no recipe {name!r}: set ROADSEG_RECIPE to one of "
                f"{', '.join(RECIPES)}"
            )
        return RECIPES[name]


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            "quick",
            (Stage(3, 32, 64), Stage(1, 64, 96)),
            (64, 96),
            batch_size=2,
            lr_encoder=1e-3,  # nothing in it is pretrained
            lr_decoder=1e-3,
        ),
        # fed as they were last trained: on held-out blocks larger was no better
        Recipe(
            "cpu",
            (Stage(6, 96, 128), Stage(5, 160, 224)),
            (160, 224),
            batch_size=4,  # short: more steps for the same pixels
            class_weights=1 / 3,  # likewise: rare classes would cost too much accuracy
        ),
        Recipe(
            "cpu-long",
            (Stage(6, 96, 128), Stage(12, 160, 224), Stage(7, 256, 352)),
            (256, 352),
        ),
        Recipe("gpu", (Stage(20, 192, 256), Stage(20, 352, 480)), None),
    )
}
"""The recipe of each profile, and one for a CPU and a long evening."""
