"""The recipes of the course, and what no recipe can be."""

import pytest

from roadseg import runtime
from roadseg.recipes import RECIPES, Recipe, Stage


def test_recipe_refuses_what_cannot_be_trained():
    with pytest.raises(ValueError, match="at least one epoch"):
        Recipe("none", (), None)
    with pytest.raises(ValueError, match="multiple of 32, not 100 x 128"):
        Recipe("odd", (Stage(1, 100, 128),), None)
    with pytest.raises(ValueError, match="warmup .* less than 1, not 1.0"):
        Recipe("all warm", (Stage(1, 32, 32),), None, warmup=1.0)


def test_recipe_by_profile_and_by_name(monkeypatch):
    assert Recipe.for_profile().name == "quick"
    assert Recipe.for_profile(runtime.PROFILES["gpu"]).name == "gpu"
    monkeypatch.setenv("ROADSEG_RECIPE", "cpu-long")
    assert Recipe.for_profile().name == "cpu-long"
    monkeypatch.setenv("ROADSEG_RECIPE", "fast")
    with pytest.raises(ValueError, match="'fast'.*cpu-long"):
        Recipe.for_profile()


def test_every_profile_has_a_recipe():
    assert set(runtime.PROFILES) <= set(RECIPES)
