"""Fixtures of the trainers' tests."""

import pytest
from runs import DPO_RUN
from samples import save_world_model

from hf_calib import CalibratedDPOConfig, CalibratedDPOTrainer
from hf_calib.data.synthetic_world import World


DATA = (
    "ref_model",
    "eval_dataset",
    "option_dataset",
    "eval_option_dataset",
    "estep_dataset",
    "callbacks",
    "peft_config",
)


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def world_model(tmp_path_factory) -> str:
    """Folder of the world's untrained model."""
    folder = tmp_path_factory.mktemp("world") / "model"
    save_world_model(folder)
    return str(folder)


@pytest.fixture(scope="session")
def rated(world):
    return world.preference_pairs(64)


@pytest.fixture(scope="session")
def pairs(rated):
    return rated.remove_columns("preference_probability")


@pytest.fixture(scope="session")
def questions(world):
    return world.questions(40, seed=0, split="train")


@pytest.fixture
def make_dpo_trainer(world_model, tmp_path):
    def make(dataset, model=world_model, output_dir=tmp_path, **settings):
        asked = {"scoring": "text", "prompt_template": "{question}"}
        data = {name: settings.pop(name) for name in DATA if name in settings}
        args = CalibratedDPOConfig(str(output_dir), **{**DPO_RUN, **asked, **settings})
        return CalibratedDPOTrainer(model, args=args, train_dataset=dataset, **data)

    return make
