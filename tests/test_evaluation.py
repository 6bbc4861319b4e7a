"""Scores against independent computations, and the rules about void."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from roadseg import evaluation
from roadseg.classes import NAMES, VOID
from roadseg.evaluation import Scores
from roadseg.recipes import RECIPES


class Scenes:
    def __init__(self, images, masks):
        self.images, self.masks = images, masks

    def __len__(self):
        return len(self.images)


class Paint(nn.Module):
    """A network that says of each pixel the class its red channel holds."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x):
        from roadseg.unet import denormalise

        labels = (denormalise(x)[:, 0] * 255).round().long()
        return 9.0 * nn.functional.one_hot(labels, 12).movedim(-1, 1) + self.bias


def random_masks(seed, classes=12, shape=(40, 50)):
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, shape, generator=g)
    guess = torch.where(
        torch.rand(shape, generator=g) < 0.6,
        truth,
        torch.randint(0, 11, shape, generator=g),
    )
    return truth, guess.where(guess != VOID, torch.tensor(0))


def scores_of(truth, guess):
    return Scores.from_confusion(evaluation.confusion(truth, guess))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("void", [True, False])
def test_scores_equal_scikit_learn(seed, void):
    truth, guess = random_masks(seed, 12 if void else 11)
    scores = scores_of(truth, guess)
    truth, guess = truth.numpy(), guess.numpy()
    matrix = confusion_matrix(truth.ravel(), guess.ravel(), labels=range(12))
    assert (scores.confusion.numpy() == matrix).all()
    keep = truth != VOID
    assert scores.acc == pytest.approx(accuracy_score(truth[keep], guess[keep]))
    assert scores.acc12 == pytest.approx(accuracy_score(truth.ravel(), guess.ravel()))
    iou = jaccard_score(truth[keep], guess[keep], labels=range(11), average=None)
    assert scores.iou.numpy() == pytest.approx(iou)
    assert scores.miou == pytest.approx(iou.mean())


def test_scores_equal_torchmetrics():
    truth, guess = random_masks(7)
    metric = MulticlassJaccardIndex(12, average="none", ignore_index=VOID)
    assert scores_of(truth, guess).iou.float().numpy() == pytest.approx(
        metric(guess, truth)[:11].numpy()
    )


def test_void_truth_counts_in_acc12_alone():
    truth = torch.tensor([[3, 3, 8, VOID]])
    a = scores_of(truth, torch.tensor([[3, 3, 8, 8]]))
    b = scores_of(truth, torch.tensor([[3, 3, 8, 3]]))
    assert (a.acc, a.miou, a.acc12) == (1.0, 1.0, 0.75)
    assert (b.acc, b.miou, b.acc12) == (1.0, 1.0, 0.75)


def test_void_prediction_is_wrong():
    scores = scores_of(torch.tensor([[3, 3]]), torch.tensor([[3, VOID]]))
    assert scores.acc == 0.5
    assert scores.iou[3] == 0.5


def test_absent_classes_have_no_iou_and_invented_ones_zero():
    scores = scores_of(torch.tensor([[3, 3]]), torch.tensor([[3, 8]]))
    assert math.isnan(scores.iou[0])
    assert scores.iou[8] == 0
    assert scores.miou == pytest.approx((0.5 + 0) / 2)
    assert scores.as_dict()["iou"]["Sky"] is None
    assert list(scores.as_dict()["iou"]) == list(NAMES[:11])


def test_nothing_labelled_and_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match="nothing to score"):
        Scores.from_confusion(torch.zeros(12, 12))
    with pytest.raises(ValueError, match="12 x 12"):
        Scores.from_confusion(torch.ones(11, 11))
    with pytest.raises(ValueError, match="one shape"):
        evaluation.confusion(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        evaluation.score([torch.zeros(2, 2)], [])


def test_score_adds_pictures_before_dividing():
    truths = [torch.tensor([[3, 3, 3]]), torch.tensor([[8]])]
    scores = evaluation.score(truths, [torch.tensor([[3, 3, 3]]), torch.tensor([[3]])])
    assert scores.acc == 0.75


def test_predictions_have_native_size_and_never_void():
    labels = torch.full((1, 45, 70), VOID)
    labels[:, :20] = 4
    images = torch.stack([labels, labels, labels], 1).byte()  # (1, 3, 45, 70)
    predicted = evaluation.predict(Paint(), images)
    assert predicted.shape == (1, 45, 70)
    assert predicted.dtype == torch.uint8
    assert (predicted[:, :20] == 4).all()
    assert (predicted != VOID).all()


def test_logits_are_resized_not_labels():
    # between a 0 and a 2 resized labels would invent a 1
    left, right = torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 2 / 255)
    images = (torch.cat([left, right], -1) * 255).round().byte()
    big = images.repeat_interleave(3, -1).repeat_interleave(3, -2)
    predicted = evaluation.predict(Paint(), big, size=(32, 64))
    assert predicted.shape == big.shape[:1] + big.shape[2:]
    assert set(predicted.unique().tolist()) == {0, 2}


def test_a_boundary_lies_where_the_logits_between_two_pixels_cross():
    class Ramp(Paint):
        def forward(self, x):
            logits = torch.zeros(len(x), 12, *x.shape[-2:])
            logits[:, 3] = torch.arange(x.shape[-1])
            logits[:, 8] = 10.1
            return logits + self.bias

    predicted = evaluation.predict(Ramp(), torch.zeros(1, 3, 32, 128).byte(), (32, 64))
    # column j lies at (j + 1/2) / 2 - 1/2 of the smaller one: past 10.1 from 21 on,
    # where doubled labels would change at an even column
    assert (predicted == 3).flatten(0, 1).all(0).nonzero()[0] == 21
    assert (predicted[..., :21] == 8).all()


def test_probabilities_sum_to_one_and_flip_mirrors():
    images = torch.randint(0, 11, (2, 3, 32, 64), dtype=torch.uint8)
    p = evaluation.predict_probabilities(Paint(), images)
    assert p.shape == (2, 11, 32, 64)
    torch.testing.assert_close(p.sum(1), torch.ones(2, 32, 64))
    # Paint sees one pixel at a time, so mirroring must change nothing
    torch.testing.assert_close(
        evaluation.predict_probabilities(Paint(), images, flip=True), p
    )


def test_predict_leaves_the_mode_of_the_network():
    model = Paint().train()
    evaluation.predict(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert model.training


def test_evaluate_takes_pictures_of_several_sizes():
    masks = [torch.randint(0, 11, s, dtype=torch.uint8) for s in [(32, 40), (50, 33)]]
    images = [m.expand(3, -1, -1) for m in masks]
    scores = evaluation.evaluate(Paint(), Scenes(images, masks))
    assert scores.acc == 1.0
    assert str(scores) == "acc 1.000   acc12 1.000   mIoU 1.000"


def test_each_picture_is_fed_at_the_size_that_its_own_asks_for():
    class Spy(Paint):
        fed = []

        def forward(self, x):
            self.fed.append(tuple(x.shape[-2:]))
            return super().forward(x)

    masks = [torch.full(s, 4).byte() for s in [(64, 96), (64, 96), (128, 32)]]
    scenes = Scenes([m.expand(3, -1, -1) for m in masks], masks)
    sizes = {(64, 96): (32, 64), (128, 32): (96, 32)}
    assert evaluation.evaluate(Spy(), scenes, sizes.__getitem__).acc == 1.0
    assert Spy.fed == [(32, 64), (96, 32)]


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"quick"}))
def test_dataset1_is_fed_at_the_size_of_the_recipe(name):
    feed = RECIPES[name].feed
    assert evaluation.feed_size((360, 480), feed) == (feed or (360, 480))


def test_baselines_by_hand():
    train = [torch.tensor([[0, 3, 3]]), torch.tensor([[0, 3, 1]])]
    test = [torch.tensor([[0, 3, VOID]])]
    scenes = [Scenes(m, m) for m in (train, test)]
    assert evaluation.pixel_counts(train)[:4].tolist() == [2, 1, 0, 3]
    assert evaluation.baseline_majority(*scenes).acc == 0.5  # all Road
    assert evaluation.baseline_layout(*scenes).acc == 1.0
    assert evaluation.mean_layout(scenes[0])[3].tolist() == [[0, 1, 0.5]]


def test_majority_is_never_void():
    masks = [torch.tensor([[VOID, VOID, 5]])]
    assert (
        evaluation.baseline_majority(Scenes(masks, masks), Scenes(masks, masks)).acc
        == 1
    )


def test_layout_needs_one_size():
    masks = [torch.zeros(2, 2).byte(), torch.zeros(2, 3).byte()]
    with pytest.raises(ValueError, match="one size"):
        evaluation.mean_layout(Scenes(masks, masks))


def test_pictures_of_any_mode_are_read_right(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :3] = 200
    for mode in ("L", "P", "RGB", "RGBA", "CMYK", "1", "LA"):
        path = tmp_path / f"Bild ä {mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(rgb).convert(mode).save(path)
        picture = evaluation.read_picture(path)
        assert picture.shape == (3, 4, 6)
        assert picture.dtype == torch.uint8
        if mode != "1":
            # the palette that Pillow converts to has 204, not 200
            assert (picture[:, :, :3].int() - 200).abs().max() <= 4, mode
            assert picture[:, :, 3:].max() <= 1, mode


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = np.array([[0, 32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture = evaluation.read_picture(tmp_path / "deep.png")
    assert picture[0, 0].tolist() == [0, 128, 255]


def test_a_lying_picture_is_turned(tmp_path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    picture = evaluation.read_picture(tmp_path / "lying.png")
    assert torch.equal(picture[0], torch.arange(24).reshape(4, 6).byte())


def test_what_is_no_picture_gets_a_sentence(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"notes.jpg cannot be read .*no picture"):
        evaluation.read_picture(tmp_path / "notes.jpg")
    with pytest.raises(ValueError, match="there is no file gone.png"):
        evaluation.read_picture(tmp_path / "gone.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"cut.png cannot be read"):
        evaluation.read_picture(tmp_path / "cut.png")
