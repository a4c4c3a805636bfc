"""Methods that need data first are not on the Merge form yet, and a recipe of one is refused in words."""

from __future__ import annotations

import pytest

from mergelab.dashboard.lab import Lab
from mergelab.dashboard.settings import Settings
from mergelab.errors import MergeLabError
from mergelab.methods import registry
from mergelab.recipe import Recipe


def test_the_form_lists_methods_that_need_models_only() -> None:
    listed = Lab(Settings()).methods()
    assert listed.keys() == {method.name for method in registry().values() if method.kind == "tensor"}
    assert {"ties", "linear"} <= listed.keys() and "mats" not in listed


@pytest.mark.parametrize(
    ("method", "needs"), [("mats", "MaTS needs statistics"), ("adamerging", "AdaMerging needs training")]
)
def test_a_recipe_of_one_is_refused_in_words(method: str, needs: str) -> None:
    with pytest.raises(MergeLabError, match=needs):
        Lab(Settings()).check_sources(Recipe(method, ("zoo:starter/mnist", "zoo:starter/emoji")))
