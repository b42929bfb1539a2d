"""Fixtures of the trainers' tests."""

import pytest

from hf_calib.data.world import World


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def world_model(world, tmp_path_factory) -> str:
    """Folder of the world's untrained model."""
    folder = tmp_path_factory.mktemp("world") / "model"
    world.model().save_pretrained(folder)
    world.tokenizer().save_pretrained(folder)
    return str(folder)
