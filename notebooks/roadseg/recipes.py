"""Recipes: how a network is trained, and what they are built from.

A `Recipe` holds every setting of a training. The functions below turn one into the
parts of a training loop: augmentation, loss, optimizer, learning rate schedule.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from roadseg import runtime
from roadseg.classes import CAMVID, LabelSet, RoadsegError
from roadseg.scenes import pixel_counts
from roadseg.unet import STRIDE

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


class RecipeError(RoadsegError, ValueError):
    """A recipe that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Phase:
    """A number of epochs at one image size.

    Attributes:
        epochs: Passes over the training images.
        height: Height of the crops the network is trained on, in pixels, a multiple
            of 32.
        width: Their width, likewise.
    """

    epochs: int
    height: int
    width: int


@dataclass(frozen=True)
class Recipe:
    """All settings of a training, apart from data and network.

    Attributes:
        name: Its name, and that of the folder its results go to.
        phases: Training sizes in their order. Small images first and large ones last
            is progressive resizing.
        input_size: Height and width that images are resized to for prediction, or
            None for their own size. It changes nothing in the training.
        batch_size: Images per step, over all processes.
        lr_encoder: Highest learning rate of the pretrained encoder.
        lr_decoder: Highest learning rate of everything else.
        weight_decay: Of AdamW.
        pct_start: Share of the steps in which the rates rise, 0 to less than 1.
        min_crop_scale: Smallest share of an image's area that a crop keeps, above 0
            and up to 1.
        color_jitter: Strength of the changes in brightness, contrast and saturation.
        class_weight_power: See `class_weights`; 0 weights all classes alike.
        ema_decay: Decay per step of a moving average of the weights, 0 to less than
            1; 0 for no average.
        seed: Seed of shuffling and augmentation.
        precision: bf16, fp16, fp32, or auto: `runtime.amp_dtype`.

    Raises:
        RecipeError: If a setting is out of its range.
    """

    name: str
    phases: tuple[Phase, ...]
    input_size: tuple[int, int] | None
    batch_size: int = 8
    lr_encoder: float = 5e-4
    lr_decoder: float = 2e-3
    weight_decay: float = 1e-2
    pct_start: float = 0.25
    min_crop_scale: float = 0.4
    color_jitter: float = 0.3
    class_weight_power: float = 0.5
    ema_decay: float = 0.0
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        checks = {
            "phases": (self.epochs >= 1, "with at least one epoch"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "pct_start": (0 <= self.pct_start < 1, "at least 0 and less than 1"),
            "min_crop_scale": (0 < self.min_crop_scale <= 1, "above 0, at most 1"),
            "ema_decay": (0 <= self.ema_decay < 1, "at least 0 and less than 1"),
            "precision": (self.precision in PRECISIONS, f"one of {PRECISIONS}"),
        }
        for field, (ok, wanted) in checks.items():
            if not ok:
                raise RecipeError(
                    f"recipe {self.name}: {field} must be {wanted}, "
                    f"not {getattr(self, field)!r}"
                )
        for p in self.phases:
            if p.height < 1 or p.width < 1 or p.height % STRIDE or p.width % STRIDE:
                raise RecipeError(
                    f"recipe {self.name}: the size of a phase must be a multiple of "
                    f"{STRIDE}, not {p.height} x {p.width}"
                )

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(p.epochs for p in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them; `from_dict` reads them."""
        plain = asdict(self)
        plain["phases"] = [list(p.values()) for p in plain["phases"]]
        plain["input_size"] = list(self.input_size) if self.input_size else None
        return plain

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Recipe":
        """Return the recipe that `to_dict` described.

        Raises:
            RecipeError: If a setting is unknown, missing or out of its range.
        """
        if unknown := set(settings) - {f.name for f in fields(cls)}:
            raise RecipeError(f"a recipe has no setting {', '.join(sorted(unknown))}")
        try:
            size = settings["input_size"]
            changes = {
                "phases": tuple(Phase(*p) for p in settings["phases"]),
                "input_size": tuple(size) if size else None,
            }
            return cls(**{**settings, **changes})
        except (KeyError, TypeError) as error:
            raise RecipeError(
                f"these are not the settings of a recipe: {error}"
            ) from None

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the training does.

        Name and input size are not among them: both can change without retraining.
        """
        own = self.to_dict()
        del own["name"], own["input_size"]
        return own

    @classmethod
    def for_profile(cls, profile: runtime.Profile | None = None) -> "Recipe":
        """Return the recipe of a profile, or the one that ``ROADSEG_RECIPE`` names.

        Args:
            profile: The profile; by default the one in use.

        Raises:
            RecipeError: If there is no such recipe.
        """
        settings = runtime.settings()
        name = settings.recipe or (profile or settings.profile).recipe
        if name not in RECIPES:
            raise RecipeError(
                f"there is no recipe {name!r}: set ROADSEG_RECIPE to one of "
                f"{', '.join(RECIPES)}"
            )
        return RECIPES[name]


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            "quick",
            (Phase(3, 32, 64), Phase(2, 64, 96)),
            (64, 96),
            batch_size=2,
            lr_encoder=1e-3,  # its encoder is not pretrained
            lr_decoder=1e-3,
        ),
        Recipe(
            "cpu",
            (Phase(6, 96, 128), Phase(5, 160, 224)),
            (160, 224),
            batch_size=4,  # more steps for the same number of pixels
            class_weight_power=1 / 3,  # 1 / 2 costs too much accuracy in few steps
        ),
        Recipe(
            "full",
            # varied sizes at the end: a network of one size depends on its canvas
            (
                *(Phase(8, 96, 128), Phase(24, 160, 224)),
                *(Phase(1, 320, 448), Phase(1, 192, 256), Phase(1, 256, 352)) * 8,
            ),
            (256, 352),
            batch_size=4,
            class_weight_power=1 / 3,
            ema_decay=0.998,
        ),
    )
}
"""The recipes by name; a profile names the one it uses."""


# --- augmentation -------------------------------------------------------------


class AlignedRandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's RandomResizedCrop with image and mask on one pixel grid.

    torchvision resizes a Mask with NEAREST, which samples the upper left corner of
    each output pixel; the bilinear image is sampled at the center. The mask then
    lies up to half an output pixel below and to the right of the image. Here both
    are cropped at the same integer box, and the mask is resized with NEAREST_EXACT,
    which samples centers. It is resized as a plain tensor, because torchvision
    before 0.29 replaces NEAREST_EXACT by NEAREST for a Mask.
    """

    def transform(self, item: Any, params: dict[str, Any]) -> Any:
        """Crop and resize one input; an image (3, H, W) or a mask (H, W)."""
        if not isinstance(item, tv_tensors.Mask):
            return super().transform(item, params)
        box = (params[k] for k in ("top", "left", "height", "width"))
        mask = v2.functional.crop(item.as_subclass(Tensor)[None], *box)
        mask = v2.functional.resize(
            mask, self.size, interpolation=v2.InterpolationMode.NEAREST_EXACT
        )
        return tv_tensors.wrap(mask[0], like=item)


def train_transform(recipe: Recipe, phase: Phase) -> v2.Compose:
    """Return the augmentation of a phase: crop, horizontal flip, color jitter.

    It takes and returns an image (3, H, W) and a mask (H, W), uint8 tv_tensors.
    """
    size = (phase.height, phase.width)
    jitter = recipe.color_jitter
    return v2.Compose(
        [
            AlignedRandomResizedCrop(
                size,
                scale=(recipe.min_crop_scale, 1.0),
                ratio=(1.1, 1.6),
                antialias=True,
            ),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(jitter, jitter, jitter),
        ]
    )


# --- losses -------------------------------------------------------------------


def class_weights(
    masks: Iterable[Tensor], labels: LabelSet = CAMVID, power: float = 0.5
) -> Tensor:
    """Weight classes by a power of (median frequency / own frequency).

    Median frequency balancing is from Eigen and Fergus 2015
    (https://arxiv.org/abs/1411.4734), used for CamVid by SegNet; they count a class
    only in those images that show it, we count it in all. The square root boosts
    rare classes less, which costs less accuracy on common ones.

    Args:
        masks: (H, W) integers, class ids.
        labels: The classes.
        power: 1 takes no root, as in the paper; 0.5 is the square root; 0 gives all
            classes the same weight.

    Returns:
        (num_classes,) float32; 0 for the ignored class and for classes that don't
        occur.
    """
    counts = pixel_counts(masks, labels).double()
    if labels.ignore_index < labels.num_classes:
        counts[labels.ignore_index] = 0
    weights = torch.zeros_like(counts)
    present = counts > 0
    if present.any():
        weights[present] = (counts[present].median() / counts[present]) ** power
    return weights.float()


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with class weights, averaged over the labeled pixels.

    It equals `nn.CrossEntropyLoss` with the same weights, except that a batch without
    labeled pixels has a loss of 0 and a gradient of 0, not NaN.

    Args:
        weight: (C,) class weights; pixels of a class with weight 0 are left out.
        ignore_index: Id of the pixels that are left out, 0 to 255.
    """

    def __init__(self, weight: Tensor, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)
        of_pixel = torch.zeros(256)
        of_pixel[: len(weight)] = weight
        of_pixel[ignore_index] = 0
        self.register_buffer("_of_pixel", of_pixel)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of logits (N, C, H, W) and masks (N, H, W), int64."""
        total = F.cross_entropy(
            logits.float(),
            masks,
            self.weight,
            ignore_index=self.ignore_index,
            reduction="sum",
        )
        # without labeled pixels the total is 0, and so is its gradient
        return total / self._of_pixel[masks].sum().clamp_min(1e-9)


def build_criterion(
    recipe: Recipe, masks: Iterable[Tensor], labels: LabelSet = CAMVID
) -> WeightedCrossEntropy:
    """Return the loss: cross-entropy on labeled pixels with the recipe's class weights.

    Args:
        recipe: Its `class_weight_power` decides the weights.
        masks: The training masks, (H, W) integers, in which classes are counted.
        labels: The classes.
    """
    weight = class_weights(masks, labels, recipe.class_weight_power)
    return WeightedCrossEntropy(weight, labels.ignore_index)


def _labeled(logits: Tensor, masks: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the logits (P, C) in float32 and class ids (P,) of the labeled pixels."""
    known = masks != ignore_index
    return logits.permute(0, 2, 3, 1)[known].float(), masks[known]


def dice_loss(
    logits: Tensor, masks: Tensor, ignore_index: int = CAMVID.ignore_index
) -> Tensor:
    """Return 1 - soft Dice, averaged over the classes that occur in the batch.

    Dice as a loss is from Milletari, Navab and Ahmadi 2016
    (https://arxiv.org/abs/1606.04797).

    Args:
        logits: (N, C, H, W).
        masks: (N, H, W) int64.
        ignore_index: Id of the pixels that are left out.

    Returns:
        A scalar from 0 to 1; 0 without labeled pixels.
    """
    pixels, truth = _labeled(logits, masks, ignore_index)
    p = pixels.softmax(1)
    t = F.one_hot(truth, p.shape[1]).to(p.dtype)
    present = t.any(0)
    dice = 2 * (p * t).sum(0) / (p.sum(0) + t.sum(0)).clamp_min(1e-6)
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)


def focal_loss(
    logits: Tensor,
    masks: Tensor,
    ignore_index: int = CAMVID.ignore_index,
    gamma: float = 2.0,
) -> Tensor:
    """Return the focal loss, averaged over the labeled pixels.

    It is cross-entropy in which a pixel of probability p counts (1 - p) ** gamma
    times: easy pixels count little (Lin et al. 2017,
    https://arxiv.org/abs/1708.02002).

    Args:
        logits: (N, C, H, W).
        masks: (N, H, W) int64.
        ignore_index: Id of the pixels that are left out.
        gamma: 0 is plain cross-entropy.

    Returns:
        A scalar, 0 without labeled pixels.
    """
    pixels, truth = _labeled(logits, masks, ignore_index)
    nll = F.cross_entropy(pixels, truth, reduction="none")
    return ((1 - (-nll).exp()) ** gamma * nll).sum() / max(1, len(truth))


def lovasz_softmax(
    logits: Tensor, masks: Tensor, ignore_index: int = CAMVID.ignore_index
) -> Tensor:
    """Return the Lovász-softmax loss, averaged over the classes in the batch.

    It is a convex surrogate of 1 - IoU (Berman, Rannen Triki and Blaschko 2018,
    https://arxiv.org/abs/1705.08790): errors, sorted from the largest, are weighted
    with what each adds to the Jaccard loss.

    Args:
        logits: (N, C, H, W).
        masks: (N, H, W) int64.
        ignore_index: Id of the pixels that are left out.

    Returns:
        A scalar from 0 to 1; 0 without labeled pixels.
    """
    pixels, truth = _labeled(logits, masks, ignore_index)
    p = pixels.softmax(1)
    losses = []
    for k in truth.unique().tolist():
        t = (truth == k).float()
        errors, order = (t - p[:, k]).abs().sort(descending=True)
        t = t[order]
        intersection = t.sum() - t.cumsum(0)
        union = t.sum() + (1 - t).cumsum(0)
        jaccard = 1 - intersection / union  # if the first 1, 2, ... were wrong
        losses.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean() if losses else logits.float().sum() * 0


# --- optimizer and schedule ---------------------------------------------------


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    The parameters of ``model.encoder``, if the model has one, have a lower learning
    rate than the others. Frozen parameters are left out.
    """
    encoder = getattr(model, "encoder", None)
    inside = set(map(id, encoder.parameters())) if encoder is not None else set()
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if id(p) in inside],
            "lr": recipe.lr_encoder,
        },
        {
            "params": [p for p in parameters if id(p) not in inside],
            "lr": recipe.lr_decoder,
        },
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        weight_decay=recipe.weight_decay,
        fused=runtime.device().type in ("cpu", "cuda"),
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, total_steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return a one-cycle schedule up to the optimizer's learning rates.

    See Smith and Topin 2019 (https://arxiv.org/abs/1708.07120).

    Args:
        optimizer: The rates of its groups are the highest ones.
        recipe: Its `pct_start` is the share of the steps in which rates rise.
        total_steps: Steps of the whole training.
    """
    total_steps = max(2, total_steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        # torch divides by zero where the rise ends on the first step
        pct_start=max(recipe.pct_start, 1.5 / total_steps),
        cycle_momentum=bool({"momentum", "betas"} & set(optimizer.defaults)),
    )
