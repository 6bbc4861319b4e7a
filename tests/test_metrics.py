"""Scores against independent computations, for label sets of every kind."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, optimize
from sklearn import metrics as sklearn_metrics
from torchmetrics.classification import MulticlassCalibrationError
from torchvision import tv_tensors

from roadseg import metrics
from roadseg.classes import CAMVID, LabelError, LabelSet, RoadsegError
from roadseg.metrics import Scores, confusion_matrix

VOID = CAMVID.ignore_index
OUTSIDE = LabelSet(("road", "car", "tree"), ignore_index=255)
FIRST = LabelSet(("nothing", "road", "car", "tree"), ignore_index=0)
TWO = LabelSet(("road", "other"), ignore_index=255)
MANY = LabelSet(tuple(f"class {i}" for i in range(150)), ignore_index=255)
LABEL_SETS = pytest.mark.parametrize(
    "labels",
    [CAMVID, OUTSIDE, FIRST, TWO, MANY],
    ids=["camvid", "255", "0", "two", "150"],
)


class Scenes:
    def __init__(self, masks, labels=CAMVID):
        self.images, self.masks, self.labels = masks, masks, labels

    def __len__(self):
        return len(self.images)


def random_masks(seed, labels=CAMVID, shape=(40, 50)):
    """A truth that holds every id, and a prediction of which half is right."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(labels.ids, shape).astype(np.uint8)
    guess = rng.choice(labels.scored, shape).astype(np.uint8)
    keep = (rng.random(shape) < 0.5) & (truth != labels.ignore_index)
    return torch.tensor(truth), torch.tensor(np.where(keep, truth, guess))


def scores_of(truth, guess, labels=CAMVID):
    return Scores.from_confusion(confusion_matrix(truth, guess, labels), labels)


@LABEL_SETS
def test_scores_equal_scikit_learn(labels):
    truth, guess = random_masks(1, labels)
    scores = scores_of(truth, guess, labels)
    y, p = truth.numpy().ravel(), guess.numpy().ravel()
    known = y != labels.ignore_index
    inside = np.isin(y, range(labels.num_classes))
    matrix = sklearn_metrics.confusion_matrix(
        y[inside], p[inside], labels=range(labels.num_classes)
    )
    assert (scores.confusion.numpy() == matrix).all()
    y, p = y[known], p[known]
    assert scores.acc == pytest.approx(sklearn_metrics.accuracy_score(y, p))
    options = {"labels": labels.scored, "average": None}
    iou = sklearn_metrics.jaccard_score(y, p, **options)
    assert scores.iou.numpy() == pytest.approx(iou)
    assert scores.miou == pytest.approx(iou.mean())
    precision = sklearn_metrics.precision_score(y, p, **options)
    assert scores.precision.numpy() == pytest.approx(precision)
    recall = sklearn_metrics.recall_score(y, p, **options)
    assert scores.recall.numpy() == pytest.approx(recall)


def test_acc12_exists_for_camvid_alone():
    like_camvid = LabelSet(CAMVID.names, ignore_index=VOID)  # but for its colors
    for labels in (OUTSIDE, FIRST, like_camvid):
        scores = scores_of(*random_masks(2, labels), labels)
        assert scores.acc12 is None
        assert "acc12" not in scores.as_dict()
        assert "acc12" not in str(scores)


def test_ignored_pixels_of_the_truth_count_in_acc12_alone():
    truth = torch.tensor([[3, 3, 8, VOID]])
    for guess in (8, 3):
        scores = scores_of(truth, torch.tensor([[3, 3, 8, guess]]))
        assert (scores.acc, scores.miou, scores.acc12) == (1.0, 1.0, 0.75)
        assert scores.precision[[3, 8]].tolist() == [1, 1]


def test_predicting_the_ignored_class_is_wrong():
    scores = scores_of(torch.tensor([[3, 3]]), torch.tensor([[3, VOID]]))
    assert (scores.acc, scores.iou[3], scores.recall[3]) == (0.5, 0.5, 0.5)
    assert scores.precision[3] == 1


def test_absent_classes_have_no_iou_and_invented_ones_zero():
    scores = scores_of(torch.tensor([[3, 3]]), torch.tensor([[3, 8]]))
    assert math.isnan(scores.iou[0])
    assert scores.iou[8] == 0
    assert scores.miou == pytest.approx((0.5 + 0) / 2)
    assert math.isnan(scores.recall[8])
    assert scores.precision[8] == 0
    found = json.loads(json.dumps(scores.as_dict()))
    assert found["iou"]["Sky"] is None
    assert found["recall"]["Road"] == 0.5
    assert list(found["iou"]) == list(CAMVID.names[:11])


def test_scores_can_be_compared_and_printed():
    scores = scores_of(*random_masks(3))
    assert scores == scores
    assert scores != scores_of(*random_masks(3))
    text = f"acc {scores.acc:.3f}   acc12 {scores.acc12:.3f}   mIoU {scores.miou:.3f}"
    assert str(scores) == text


def test_nothing_labeled_wrong_shapes_and_unknown_ids_are_errors():
    with pytest.raises(metrics.ScoreError, match=r"nothing to score.*'Unlabelled'"):
        Scores.from_confusion(torch.zeros(12, 12))
    assert issubclass(metrics.ScoreError, RoadsegError)
    with pytest.raises(ValueError, match=r"\(12, 12\), not \(11, 11\)"):
        Scores.from_confusion(torch.ones(11, 11))
    with pytest.raises(ValueError, match="upsample the logits"):
        confusion_matrix(torch.zeros(2, 3).long(), torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match=r"shorter|longer"):
        metrics.compute_scores([torch.zeros(2, 2).long()], [])
    good, bad = torch.tensor([0, 1]), torch.tensor([0, 255])
    with pytest.raises(LabelError, match="prediction holds ids from 0 to 255"):
        confusion_matrix(good, bad, OUTSIDE)
    with pytest.raises(LabelError, match="truth holds ids from 0 to 3"):
        confusion_matrix(torch.tensor([0, 3]), good, OUTSIDE)


def test_pixels_are_added_over_images_before_dividing():
    truths = [torch.tensor([[3, 3, 3]]), tv_tensors.Mask(torch.tensor([[8]]))]
    guesses = [torch.tensor([[3, 3, 3]]), torch.tensor([[3]])]
    assert metrics.compute_scores(truths, guesses).acc == 0.75


# boundaries


def boundary_by_distance(region, distance):
    """Pixels of a region whose chessboard distance to its outside is small enough."""
    padded = np.pad(region, 1)  # beyond the image is outside
    far = ndimage.distance_transform_cdt(padded, "chessboard")[1:-1, 1:-1]
    return region & (far <= distance)


@LABEL_SETS
@pytest.mark.parametrize("distance", [1, 3, 6])
def test_boundary_iou_equals_one_by_distance_transform(labels, distance):
    truths, guesses = [], []
    both, either = np.zeros((2, labels.num_scored))
    for seed in range(2):
        masks = (m.numpy() for m in random_masks(seed, labels, (5, 6)))
        truth, guess = (np.kron(m, np.ones((7, 9), np.uint8)) for m in masks)
        truths.append(torch.tensor(truth))
        guesses.append(torch.tensor(guess))
        ignored = truth == labels.ignore_index
        for k, i in enumerate(labels.scored):
            a = boundary_by_distance(truth == i, distance)
            b = boundary_by_distance((guess == i) & ~ignored, distance)
            both[k] += (a & b).sum()
            either[k] += (a | b).sum()
    found = metrics.boundary_iou(truths, guesses, labels, distance).numpy()
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found, both / either)


def test_boundary_iou_sees_a_coarse_outline_that_iou_hides():
    truth = torch.zeros(200, 300, dtype=torch.uint8)
    truth[20:180, 20:280] = 3
    guess = torch.zeros_like(truth)
    guess[24:176, 24:276] = 3
    assert metrics.compute_scores([truth], [guess]).iou[3] > 0.9
    assert metrics.boundary_iou([truth], [guess])[3] < 0.5
    assert metrics.boundary_iou([truth], [truth])[3] == 1
    # 2% of the diagonal of 361 pixels are 7 pixels
    chosen = metrics.boundary_iou([truth], [guess], distance=7)
    assert chosen[3] == metrics.boundary_iou([truth], [guess])[3]


# baselines


def test_baselines_by_hand():
    train = Scenes([torch.tensor([[0, 3, 3]]), torch.tensor([[0, 3, 1]])])
    test = Scenes([torch.tensor([[0, 3, VOID]])])
    assert metrics.baseline_majority(train, test).acc == 0.5  # all Road
    assert metrics.spatial_prior_baseline(train, test).acc == 1.0
    assert metrics.spatial_prior(train)[3].tolist() == [[0, 1, 0.5]]


@LABEL_SETS
def test_baselines_predict_scored_classes_of_any_label_set(labels):
    last = labels.scored[-1]
    mask = torch.full((4, 5), labels.ignore_index, dtype=torch.uint8)
    mask[0, 0] = last  # the ignored id is more frequent
    scenes = Scenes([mask], labels)
    assert metrics.baseline_majority(scenes, scenes).acc == 1
    assert metrics.spatial_prior_baseline(scenes, scenes).acc == 1
    prior = metrics.spatial_prior(scenes)
    assert prior.shape == (labels.num_scored, 4, 5)
    assert prior.sum() == prior[-1, 0, 0] == 1


def test_the_spatial_prior_needs_masks_of_one_size():
    masks = [torch.zeros(2, 2).byte(), torch.zeros(2, 3).byte()]
    for wrong in (masks, []):
        with pytest.raises(ValueError, match="one size"):
            metrics.spatial_prior(Scenes(wrong))


# calibration


def softmax_images(labels, seed=0, scale=2.0):
    """Logits, probabilities and truths of two images; the truths follow the logits."""
    g = torch.Generator().manual_seed(seed)
    logits, truths = [], []
    for _ in range(2):
        z = torch.randn(labels.num_scored, 20, 25, generator=g)
        drawn = z.flatten(1).T.softmax(1).multinomial(1, generator=g).view(20, 25)
        truth = torch.tensor(labels.scored, dtype=torch.uint8)[drawn]
        truth[:3] = labels.ignore_index
        logits.append(scale * z)
        truths.append(truth)
    return logits, [z.softmax(0) for z in logits], truths


def labeled_pixels(values, truths, labels):
    rows = [v.flatten(1).T[t.flatten() != labels.ignore_index]
            for v, t in zip(values, truths, strict=True)]  # fmt: skip
    ids = torch.cat([t[t != labels.ignore_index] for t in truths]).tolist()
    return torch.cat(rows), torch.tensor([labels.scored.index(i) for i in ids])


@LABEL_SETS
def test_calibration_error_equals_torchmetrics(labels):
    _, probabilities, truths = softmax_images(labels)
    rows, targets = labeled_pixels(probabilities, truths, labels)
    theirs = MulticlassCalibrationError(labels.num_scored, n_bins=15)(rows, targets)
    ours = metrics.reliability(probabilities, truths, labels)
    assert ours.ece == pytest.approx(theirs.item(), abs=1e-6)


def test_reliability_by_hand():
    p = torch.tensor([[[0.95, 0.95, 0.58, 0.55]], [[0.05, 0.05, 0.42, 0.45]]])
    truth = torch.tensor([[0, 1, 0, 255]])
    found = metrics.reliability(iter([p]), iter([truth]), TWO, bins=10)
    assert found.share.nonzero().flatten().tolist() == [5, 9]
    assert found.accuracy[[5, 9]].tolist() == [1, 0.5]
    assert found.confidence[[5, 9]].tolist() == pytest.approx([0.58, 0.95])
    assert found.ece == pytest.approx((0.42 + 2 * 0.45) / 3)
    assert found.accuracy[0].isnan()
    with pytest.raises(metrics.ScoreError, match="no pixel is labeled"):
        metrics.reliability([p], [torch.full((1, 4), 255)], TWO)


@LABEL_SETS
def test_temperature_equals_the_optimum_that_scipy_finds(labels):
    logits, probabilities, truths = softmax_images(labels, scale=2.0)
    rows, targets = labeled_pixels(logits, truths, labels)

    def loss(temperature):
        return torch.nn.functional.cross_entropy(rows / temperature, targets).item()

    best = optimize.minimize_scalar(loss, bounds=(0.1, 20), method="bounded").x
    found = metrics.fit_temperature(logits, truths, labels)
    assert found == pytest.approx(best, rel=1e-2)
    assert 1.5 < found < 2.6  # the truths were drawn at the temperature of 2
    logs = [p.log() for p in probabilities]
    assert metrics.fit_temperature(logs, truths, labels) == pytest.approx(found, 1e-3)
    scaled = [(z / found).softmax(0) for z in logits]
    after, before = (
        metrics.reliability(p, truths, labels).ece for p in (scaled, probabilities)
    )
    assert after < before


def test_temperature_stays_finite_and_can_be_fitted_on_a_sample():
    logits, _, truths = softmax_images(OUTSIDE)
    whole = metrics.fit_temperature(logits, truths, OUTSIDE)
    part = metrics.fit_temperature(logits, truths, OUTSIDE, max_pixels=500)
    assert part != whole
    assert part == pytest.approx(whole, rel=0.3)
    sure = torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]])  # all right
    found = metrics.fit_temperature([sure], [torch.tensor([[0, 1]])], TWO)
    assert found == pytest.approx(1, 1e-3)  # nothing to gain
    nearly = [z.clamp(min=-1) for z in (sure,)]
    assert metrics.fit_temperature(nearly, [torch.tensor([[0, 1]])], TWO) < 0.1
    with pytest.raises(metrics.ScoreError, match="no pixel is labeled"):
        metrics.fit_temperature([sure], [torch.tensor([[255, 255]])], TWO)


# bootstrap


def frames_of(seed, labels, frames=12, spread=0.0):
    g = torch.Generator().manual_seed(seed)
    shape = (frames, labels.num_classes, labels.num_classes)
    counts = torch.randint(1, 9, shape, generator=g)
    counts += 60 * torch.eye(labels.num_classes).long()
    easier = 1 + spread * torch.arange(frames).view(-1, 1, 1)
    return (counts * easier).long()


def test_the_bootstrap_resamples_blocks_of_neighbors():
    labels = TWO
    confusions = torch.zeros(10, 2, 2, dtype=torch.long)
    confusions[:, 0, 0] = 10 ** torch.arange(10)  # frame i is digit i of the sum
    sums = []

    def record(scores):
        sums.append(f"{int(scores.confusion[0, 0]):010d}"[::-1])
        return scores.acc

    confusions[:, 1, 1] = 1
    metrics.block_bootstrap(confusions, 5, 50, labels, statistic=record)
    starts = set()
    for digits in sums:  # two blocks of 5 neighbors, which may wrap around
        counts = np.array([int(d) for d in digits])
        assert counts.sum() == 10
        fits = [
            (a, b)
            for a in range(10)
            for b in range(10)
            if (
                counts == [((i - a) % 10 < 5) + ((i - b) % 10 < 5) for i in range(10)]
            ).all()  # fmt: skip
        ]
        assert fits
        starts.add(fits[0])
    assert len(starts) > 20


def test_the_bootstrap_equals_a_loop_over_frames():
    confusions = frames_of(0, CAMVID)
    found = metrics.block_bootstrap(confusions, 1, samples=400, seed=1)
    rng = np.random.default_rng(0)
    slow = [
        Scores.from_confusion(confusions[rng.integers(0, 12, 12)].sum(0)).miou
        for _ in range(400)
    ]
    assert found.shape == (400,)
    assert found.mean() == pytest.approx(np.mean(slow), abs=0.2 * np.std(slow))
    assert found.std() == pytest.approx(np.std(slow), rel=0.15)
    again = metrics.block_bootstrap(confusions, 1, samples=400, seed=1)
    assert (found == again).all()
    assert (found != metrics.block_bootstrap(confusions, 1, samples=400, seed=2)).any()


def test_longer_blocks_of_alike_frames_show_more_uncertainty():
    counts = torch.tensor([[[9, 1], [1, 9]]] * 30 + [[[6, 4], [4, 6]]] * 30)
    single = metrics.block_bootstrap(counts, 1, labels=TWO)
    blocks = metrics.block_bootstrap(counts, 20, labels=TWO)
    assert blocks.std() > 2 * single.std()
    # one block of the whole length is the sequence itself
    whole = metrics.block_bootstrap(counts, 60, labels=TWO)
    assert whole == pytest.approx(Scores.from_confusion(counts.sum(0), TWO).miou)
    for length in (0, 61):
        with pytest.raises(ValueError, match=f"block_length is {length}"):
            metrics.block_bootstrap(counts, length, labels=TWO)


def test_the_paired_bootstrap_draws_the_same_frames_for_both():
    a = frames_of(0, OUTSIDE, spread=1.0)
    b = a.clone()
    b[:, 0, 0] -= 1  # a little worse on every frame
    difference = metrics.paired_bootstrap(a, b, 3, labels=OUTSIDE)
    assert (difference > 0).all()
    unpaired = metrics.block_bootstrap(a, 3, labels=OUTSIDE, seed=1)
    assert difference.std() < 0.1 * unpaired.std()
    assert (metrics.paired_bootstrap(a, a, 3, labels=OUTSIDE) == 0).all()
    precise = metrics.paired_bootstrap(
        a, b, 3, labels=OUTSIDE, statistic=lambda s: s.recall[0].item()
    )
    assert (precise > 0).all()
    with pytest.raises(ValueError, match="same frames"):
        metrics.paired_bootstrap(a, b[:5], 3, labels=OUTSIDE)
