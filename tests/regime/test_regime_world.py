"""The regime of models really trained in the synthetic world: pre-trained, aligned, then fine-tuned into memorisation."""

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
    Of the three stages on questions never trained on and on those that the last was trained on, by
    `"<stage> on <split>"`. The recipes of the quickstart, cut down to a few seconds; the last stage overdone on purpose.
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
        trainer.save_model(folder)  # where the next stage finds it
        for split, asked in questions.items():
            found[f"{stage} on {split}"] = predict_options(
                trainer.model, tokenizer, asked, prompt_format=PROMPT_FORMAT, batch_size=256, progress=False
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


def test_the_aligned_model_is_calibratable_on_its_test_questions(predictions):
    report = regime(predictions["aligned on test"])
    assert (report.regime, report.recommended_method) == ("calibratable", "cft")
    assert report.border_distance_high < 0
    assert report.confidence > report.accuracy + 0.1  # preference collapse: there is something to calibrate
    # The corollary: it has not seen these labels, so nothing but confidence stands between it and ECE = TCE = 0.
    assert report.sum_lower_bound < 0.04 < 0.1 < min(report.ece, report.tce)
    base = predictions["base on test"]
    assert calibration_report(base.probabilities, base.labels)["ece"] < report.ece / 2


def test_a_model_that_has_memorised_is_not_calibratable_on_its_training_questions(predictions):
    predicted = predictions["memorising on train"]
    report = regime(predicted)
    assert (report.regime, report.recommended_method) == ("non-calibratable", "rcft")
    assert report.border_distance_low > 0.1
    # The bound at work: by its ECE alone it looks calibrated, and so its TCE must be large.
    assert report.ece < 0.1 and report.tce >= report.sum_lower_bound - report.ece > 0.1
    # A reference shows it as the truth does; without either nothing can.
    reference = predictions["base on train"].probabilities
    seen = classify_regime(predicted.probabilities, predicted.labels, reference_probabilities=reference)
    assert (seen.regime, seen.test) == ("non-calibratable", "reference")
    assert classify_regime(predicted.probabilities, predicted.labels).regime != "non-calibratable"


def test_and_has_lost_what_the_others_knew(predictions):
    """On questions that it was not trained on the same model is below the border, and far from calibrated."""
    memorising, aligned = regime(predictions["memorising on test"]), regime(predictions["aligned on test"])
    assert memorising.regime == "calibratable" and memorising.sum_lower_bound < 0.04
    assert memorising.accuracy < aligned.accuracy and memorising.ece > aligned.ece
