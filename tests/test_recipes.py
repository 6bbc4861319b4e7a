"""Recipes, and the augmentation, losses, optimizer and schedule built from them."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from roadseg import recipes, runtime
from roadseg.classes import CAMVID, LabelSet
from roadseg.recipes import RECIPES, Phase, Recipe, RecipeError

RECIPE = Recipe("test", (Phase(2, 32, 32), Phase(2, 32, 64)), None, batch_size=2)
IGNORED = CAMVID.ignore_index
THREE = LabelSet(("road", "sky", "other"), ignore_index=255)


# --- settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": ()}, "at least one epoch"),
        ({"phases": (Phase(1, 100, 128),)}, "multiple of 32, not 100 x 128"),
        ({"phases": (Phase(1, 0, 128),)}, "multiple of 32, not 0 x 128"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"pct_start": 1.0}, "pct_start must be .* less than 1, not 1.0"),
        ({"min_crop_scale": 0.0}, "min_crop_scale must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay must be .* less than 1"),
        ({"precision": "half"}, "precision must be one of .*'bf16'.*, not 'half'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        replace(RECIPE, **changes)


@pytest.mark.parametrize("recipe", [*RECIPES.values(), RECIPE], ids=lambda r: r.name)
def test_a_recipe_survives_json(recipe):
    changed = replace(recipe, lr_encoder=1 / 3, seed=7, ema_decay=0.999)
    for one in (recipe, changed):
        back = Recipe.from_dict(json.loads(json.dumps(one.to_dict())))
        assert back == one
        assert back.identity() == one.identity()


def test_settings_of_no_recipe_are_refused():
    with pytest.raises(RecipeError, match="no setting warmup"):
        Recipe.from_dict(RECIPE.to_dict() | {"warmup": 0.1})
    with pytest.raises(RecipeError, match="phases"):
        Recipe.from_dict({"name": "x", "input_size": None})
    with pytest.raises(RecipeError):
        Recipe.from_dict(RECIPE.to_dict() | {"phases": [[1, 2]]})


def test_only_what_changes_the_training_is_its_identity():
    assert replace(RECIPE, name="x", input_size=(64, 64)).identity() == (
        RECIPE.identity()
    )
    for change in ({"seed": 1}, {"lr_encoder": 1.0}, {"phases": (Phase(1, 32, 32),)}):
        assert replace(RECIPE, **change).identity() != RECIPE.identity()


def test_recipe_by_profile_and_by_name():
    assert Recipe.for_profile().name == "quick"
    assert Recipe.for_profile(runtime.PROFILES["gpu"]).name == "full"
    runtime.configure(profile="cpu")
    assert Recipe.for_profile().name == "cpu"
    runtime.configure(recipe="full")
    assert Recipe.for_profile().name == "full"
    runtime.configure(recipe="fast")
    with pytest.raises(RecipeError, match="'fast'.*quick, cpu, full"):
        Recipe.for_profile()


def test_every_profile_has_a_recipe():
    assert {p.recipe for p in runtime.PROFILES.values()} <= set(RECIPES)


# --- augmentation -------------------------------------------------------------

resize = v2.functional.resize


def old_resize(item, size, interpolation=v2.InterpolationMode.BILINEAR, **more):
    """v2.functional.resize before torchvision 0.29: NEAREST for every Mask."""
    if isinstance(item, tv_tensors.Mask):
        interpolation = v2.InterpolationMode.NEAREST
    return resize(item, size, interpolation=interpolation, **more)


def ramp_offsets(transform, phase):
    """How far masks lie from their images, in pixels of the output.

    Image and mask are the same ramp along one axis: where a transform samples both
    at the same place, they agree except for rounding.
    """
    height, width = 360, 480
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    offsets = []
    for seed in range(20):
        for ramp, size, out in ((y, height, phase.height), (x, width, phase.width)):
            step = 250 / (size - 1)
            mask = tv_tensors.Mask((ramp * step).round().byte())
            image = tv_tensors.Image((ramp * step).expand(3, -1, -1).float())
            runtime.seed_everything(seed)
            image, mask = transform(image, mask)
            inner = (slice(4, -4), slice(4, -4))  # bilinear borders repeat
            difference = (mask.float() - image[0])[inner].mean()
            slope = (image[0].amax() - image[0].amin()) / (out - 1)
            offsets.append((difference / slope).item())
    return torch.tensor(offsets)


@pytest.mark.parametrize("torchvision", ["installed", "before 0.29"])
@pytest.mark.parametrize(
    "phase", {p for r in RECIPES.values() for p in r.phases}, ids=str
)
def test_image_and_mask_stay_on_one_grid(phase, torchvision, monkeypatch):
    if torchvision != "installed":
        monkeypatch.setattr(v2.functional, "resize", old_resize)
    transform = recipes.train_transform(replace(RECIPE, color_jitter=0.0), phase)
    offsets = ramp_offsets(transform, phase)
    assert offsets.mean().abs() < 0.05
    # a crop that shrinks by an even factor has no pixel at the center: up to 1 / 8
    assert offsets.abs().max() < 0.2


def test_the_ramps_show_the_half_pixel_of_torchvisions_own_crop():
    crop = v2.RandomResizedCrop((96, 128), scale=(0.4, 1.0), antialias=True)
    assert ramp_offsets(crop, Phase(1, 96, 128)).mean().abs() > 0.3


def test_augmentation_never_blends_labels():
    mask = torch.zeros(48, 64, dtype=torch.uint8)
    mask[:, ::2] = 8  # blending 0 and 8 would give 1 to 7
    mask[:, 1] = 255
    pair = tv_tensors.Image(torch.zeros(3, 48, 64).byte()), tv_tensors.Mask(mask)
    transform = recipes.train_transform(RECIPE, Phase(1, 32, 64))
    torch.manual_seed(0)
    for _ in range(20):
        image, out = transform(*pair)
        assert image.shape == (3, 32, 64)
        assert (image.dtype, out.dtype) == (torch.uint8, torch.uint8)
        assert isinstance(out, tv_tensors.Mask)
        assert set(out.unique().tolist()) <= {0, 8, 255}


def test_augmentation_moves_image_and_mask_together():
    steps = torch.arange(64).expand(48, 64) // 8  # eight upright bands
    image = tv_tensors.Image((steps * 30).byte()[None].expand(3, -1, -1))
    plain = replace(RECIPE, color_jitter=0.0)
    transform = recipes.train_transform(plain, Phase(1, 32, 64))
    torch.manual_seed(0)
    for _ in range(10):
        x, y = transform(image, tv_tensors.Mask(steps.byte()))
        apart = (x[0].float() / 30 - y.float()).abs()
        assert apart.max() <= 1  # blended edges of the image
        assert apart.mean() < 0.15


# --- cross-entropy and class weights ------------------------------------------


def test_class_weights_by_hand():
    masks = [torch.tensor([[3] * 16 + [8] * 4 + [0] * 1 + [IGNORED] * 50])]
    weights = recipes.class_weights(masks)
    assert weights[[3, 8, 0]].tolist() == [0.5, 1, 2]  # roots of 4/16, 4/4, 4/1
    assert weights.sum() == 3.5
    assert recipes.class_weights(masks, power=1)[[3, 8, 0]].tolist() == [0.25, 1, 4]
    assert recipes.class_weights(masks, power=0).tolist() == [
        float(i in (0, 3, 8)) for i in range(12)
    ]


def test_class_weights_of_other_classes():
    masks = [torch.tensor([[0] * 4 + [1] * 1 + [255] * 9])]
    # torch's median of two is the lower one: 1
    assert recipes.class_weights(masks, THREE).tolist() == [0.5, 1, 0]
    first = LabelSet(("nothing", "road", "sky"), ignore_index=0)
    masks = [torch.tensor([[0] * 9 + [1] * 4 + [2] * 4])]
    assert recipes.class_weights(masks, first).tolist() == [0, 1, 1]


@pytest.mark.parametrize("labels", [CAMVID, THREE], ids=["CamVid", "three"])
@pytest.mark.parametrize("power", [0.5, 0])
def test_the_criterion_is_weighted_cross_entropy(labels, power):
    recipe = replace(RECIPE, class_weight_power=power)
    torch.manual_seed(0)
    masks = torch.randint(0, labels.num_classes, (2, 40, 50))
    masks[:, :9] = labels.ignore_index
    logits = torch.randn(2, labels.num_classes, 40, 50)
    loss = recipes.build_criterion(recipe, masks, labels)(logits, masks)
    weight = recipes.class_weights(masks, labels, power)
    expected = functional.cross_entropy(
        logits, masks, weight, ignore_index=labels.ignore_index
    )
    torch.testing.assert_close(loss, expected)


def test_ignored_pixels_do_not_count():
    criterion = recipes.build_criterion(RECIPE, [torch.arange(12)[None]])
    logits = torch.randn(1, 12, 2, 2, requires_grad=True)
    masks = torch.tensor([[[3, IGNORED], [8, IGNORED]]])
    loss = criterion(logits, masks)
    loss.backward()
    assert (logits.grad[..., 1] == 0).all()
    assert (logits.grad[..., 0] != 0).any()
    torch.testing.assert_close(loss, criterion(logits[..., :1], masks[..., :1]))


LOSSES = {
    "cross-entropy": lambda logits, masks: recipes.build_criterion(
        RECIPE, [torch.arange(12)[None]]
    )(logits, masks),
    "dice": recipes.dice_loss,
    "focal": recipes.focal_loss,
    "lovasz": recipes.lovasz_softmax,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("scale", [1, 65536], ids=["plain", "scaled as in fp16"])
def test_a_batch_without_labels_does_no_harm(loss, scale):
    logits = torch.randn(2, 12, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), IGNORED))
    (value * scale).backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_lowest_where_the_prediction_is_right(loss):
    torch.manual_seed(0)
    masks = torch.randint(0, 11, (2, 8, 8))
    masks[0, 0] = IGNORED
    right = 20 * functional.one_hot(masks, 12).permute(0, 3, 1, 2).float()
    assert loss(right, masks) < 1e-4
    assert loss(-right, masks) > 0.5
    changed = right.clone()
    changed[0, :, 0] = torch.randn(12, 8)  # ignored pixels
    torch.testing.assert_close(loss(changed, masks), loss(right, masks))
    logits = torch.zeros_like(right, requires_grad=True)
    for _ in range(3):
        before = loss(logits, masks)
        (grad,) = torch.autograd.grad(before, logits)
        logits = (logits - grad).detach().requires_grad_()
        assert loss(logits, masks) < before


def test_dice_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log().T.reshape(1, 2, 1, 2)
    # class 0: 2 * 0.75 / (1.25 + 1); class 1: 2 * 0.5 / (0.75 + 1)
    loss = recipes.dice_loss(logits, torch.tensor([[[0, 1]]]), 255)
    torch.testing.assert_close(loss.item(), 1 - (1.5 / 2.25 + 1 / 1.75) / 2)


def test_focal_by_hand():
    logits = torch.tensor([0.75, 0.25]).log().reshape(1, 2, 1, 1)
    loss = recipes.focal_loss(logits, torch.tensor([[[0]]]), 255)
    torch.testing.assert_close(loss, -torch.tensor(0.75).log() * 0.25**2)
    plain = recipes.focal_loss(logits, torch.tensor([[[0]]]), 255, gamma=0)
    torch.testing.assert_close(plain, -torch.tensor(0.75).log())


@pytest.mark.parametrize(
    ("predicted", "iou"),
    [
        ([0, 0, 1, 1, 1, 0, 2, 2], [2 / 4, 2 / 4, 1]),
        ([0, 0, 0, 0, 0, 1, 2, 2], [3 / 5, 1 / 3, 1]),  # more false positives
    ],
)
def test_lovasz_of_hard_predictions_is_one_minus_iou(predicted, iou):
    truth = torch.tensor([[[0, 0, 0, 1, 1, 1, 2, 2]]])
    predicted = torch.tensor([[predicted]])
    logits = 100 * functional.one_hot(predicted, 3).permute(0, 3, 1, 2).float()
    loss = recipes.lovasz_softmax(logits, truth, 255)
    torch.testing.assert_close(loss.item(), 1 - sum(iou) / 3)


# --- optimizer and schedule ---------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 12, 1)


def test_the_encoder_has_a_lower_rate():
    groups = recipes.build_optimizer(Small(), RECIPE).param_groups
    assert [g["lr"] for g in groups] == [RECIPE.lr_encoder, RECIPE.lr_decoder]
    assert [len(g["params"]) for g in groups] == [4, 2]


def test_other_networks_have_one_rate():
    (group,) = recipes.build_optimizer(nn.Conv2d(3, 12, 1), RECIPE).param_groups
    assert (group["lr"], len(group["params"])) == (RECIPE.lr_decoder, 2)


def test_frozen_parameters_are_left_out():
    model = Small()
    model.encoder.requires_grad_(False)
    (group,) = recipes.build_optimizer(model, RECIPE).param_groups
    assert group["lr"] == RECIPE.lr_decoder
    assert {id(p) for p in group["params"]} == {id(p) for p in model.head.parameters()}


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("pct_start", [0.0, 0.25])
def test_one_cycle_rises_to_the_rates_and_falls(steps, pct_start):
    recipe = replace(RECIPE, pct_start=pct_start)
    optimizer = recipes.build_optimizer(Small(), recipe)
    scheduler = recipes.build_scheduler(optimizer, recipe, steps)
    rates = []
    for _ in range(steps):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    rates = torch.tensor(rates)
    assert rates.isfinite().all()
    if steps == 40:
        assert (rates.argmax(0) == (9 if pct_start else 1)).all()
        assert (rates[-1] < rates[0]).all()
        torch.testing.assert_close(
            rates.amax(0).tolist(),
            [recipe.lr_encoder, recipe.lr_decoder],
            rtol=0.1,
            atol=0,
        )
