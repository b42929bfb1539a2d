"""Recipes are found by name, and a wrong name is answered with the right ones."""

import pytest

from hf_calib.paths import recipe_path


def test_a_recipe_is_found_by_name():
    assert recipe_path("train.py").is_file()
    assert recipe_path("accelerate_configs").parent == recipe_path()


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"acelerate/ddp.yaml.*accelerate_configs/ddp\.yaml"):
        recipe_path("acelerate/ddp.yaml")
