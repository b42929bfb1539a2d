"""The regime of models trained in the synthetic world: pre-trained, aligned, then overfitted."""

import pytest
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, calibration_report, classify_regime, predict_options
from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.training.quickstart import PROMPT_FORMAT


SETTINGS = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "per_device_train_batch_size": 64,
    "max_length": 32,
}


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """
    Predictions of three stages on test questions and on the training questions of the last stage, by
    `"<stage> on <split>"`. The recipes are those of the quickstart, shortened; the last stage overfits on purpose.
    """
    folder = str(tmp_path_factory.mktemp("world"))
    world = World(WorldConfig(num_entities=16))
    tokenizer = world.tokenizer()
    questions = {"test": world.questions(2000, split="test"), "train": world.questions(200, split="train")}
    found = {}

    def train(stage, trainer_class, model, dataset, **settings):
        config_class = {SFTTrainer: SFTConfig, DPOTrainer: DPOConfig, CalibratedSFTTrainer: CalibratedSFTConfig}
        args = config_class[trainer_class](folder, **{**SETTINGS, **settings})
        trainer = trainer_class(model, args=args, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        trainer.save_model(folder)  # for the next stage
        for split, dataset_of_split in questions.items():
            found[f"{stage} on {split}"] = predict_options(
                trainer.model, tokenizer, dataset_of_split, prompt_format=PROMPT_FORMAT, batch_size=256, progress=False
            )

    statements, pairs = world.pretraining_statements(10_000), world.preference_pairs(800)
    train("base", SFTTrainer, world.model(), statements, num_train_epochs=1, learning_rate=3e-3)
    train("aligned", DPOTrainer, folder, pairs, num_train_epochs=1, learning_rate=5e-4, beta=0.1)
    train(
        "memorising", CalibratedSFTTrainer, folder, questions["train"], objective="cft", scoring="text",
        prompt_template=World.prompt_template, per_device_train_batch_size=32, num_train_epochs=20, learning_rate=2e-3,
    )  # fmt: skip
    return found


def regime(predicted, **options):
    return classify_regime(predicted.probabilities, predicted.labels, predicted.target_probabilities, **options)


def test_aligned_model_on_test_questions(predictions):
    report = regime(predictions["aligned on test"])
    assert (report.regime, report.recommended_method) == ("calibratable", "cft")
    assert report.border_distance_high < 0
    assert report.confidence > report.accuracy + 0.1  # preference collapse: there is something to calibrate
    # corollary: the labels are unseen, so a recalibration reaches ECE = TCE = 0
    assert report.sum_lower_bound < 0.04 < 0.1 < min(report.ece, report.tce)
    base = predictions["base on test"]
    assert calibration_report(base.probabilities, base.labels)["ece"] < report.ece / 2


def test_memorised_model_on_training_questions(predictions):
    predicted = predictions["memorising on train"]
    report = regime(predicted)
    assert (report.regime, report.recommended_method) == ("non-calibratable", "rcft")
    assert report.border_distance_low > 0.1
    # the bound: a small ECE forces a large TCE
    assert report.ece < 0.1 and report.tce >= report.sum_lower_bound - report.ece > 0.1
    # a reference shows it too; without a target or a reference nothing does
    reference = predictions["base on train"].probabilities
    seen = classify_regime(predicted.probabilities, predicted.labels, reference_probabilities=reference)
    assert (seen.regime, seen.test) == ("non-calibratable", "reference")
    assert classify_regime(predicted.probabilities, predicted.labels).regime != "non-calibratable"


def test_memorised_model_on_test_questions(predictions):
    """The same model is below the critical accuracy and miscalibrated."""
    memorising, aligned = regime(predictions["memorising on test"]), regime(predictions["aligned on test"])
    assert memorising.regime == "calibratable" and memorising.sum_lower_bound < 0.04
    assert memorising.accuracy < aligned.accuracy and memorising.ece > aligned.ece
