"""Batches from any dataset: the same whether it is decoded now or later."""

import multiprocessing
import sys
from dataclasses import replace

import numpy as np
import pytest

from roadseg import loading, scenes, training
from test_training import ONE, Scenes, fit, same_weights, scores, small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six scenes as files."""
    folder, rng = tmp_path_factory.mktemp("roads"), np.random.default_rng(0)
    made = (
        (
            f"road_{i}.png",
            rng.integers(0, 256, (48, 64, 3), np.uint8),
            rng.integers(0, 12, (48, 64), np.uint8),
        )
        for i in range(6)
    )
    scenes.write_scenes(folder, "train", made)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_lazily_decoded_scenes_train_to_the_same_bits(folder, monkeypatch, workers):
    monkeypatch.setattr(loading, "num_workers", lambda: workers)
    ends = [
        fit(scenes=scenes.RoadScenes(folder, "train", in_memory=in_memory))
        for in_memory in (True, False)
    ]
    assert same_weights(ends[0].model, ends[1].model)
    assert scores(ends[0].history) == scores(ends[1].history)


def test_a_transform_of_the_scenes_is_left_out(folder):
    def refuse(*pair):
        raise AssertionError("called")

    loaded = scenes.RoadScenes(folder, "train", transform=refuse)
    assert len(fit(recipe=ONE, scenes=loaded).history) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are not forked")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_take_many_images(monkeypatch):
    """Sent one by one through open files, they would exceed the limit on these."""
    monkeypatch.setattr(loading, "num_workers", lambda: 1)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # Python 3.14's
    try:
        recipe = replace(ONE, batch_size=150)
        assert len(training.fit(small(), Scenes(150), recipe).history) == 1
    finally:
        multiprocessing.set_start_method(before, force=True)
