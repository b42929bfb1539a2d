"""Two small models of the synthetic world, in place of models from the Hub. They are trained once, in ten seconds."""

from pathlib import Path

from trl import SFTConfig, SFTTrainer

from hf_calib import PromptFormat, calibration_report, fold_temperature, predict_options
from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.inference.model_loading import load_model


WORLD = World(WorldConfig(num_entities=24))
PROMPT = {
    "scoring": "text",
    "prompt_template": WORLD.prompt_template,
}  # "the colour of bavo is", with options " red", ...
CPU = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "max_length": 32,
    "disable_tqdm": True,
}


def make_models() -> tuple[str, str]:
    """Return the folders of a calibrated model and of an overconfident one, which stands for an aligned model."""
    base, overconfident = "outputs/base", "outputs/overconfident"
    if not Path(overconfident).exists():
        tokenizer = WORLD.tokenizer()
        args = SFTConfig(base, per_device_train_batch_size=64, learning_rate=3e-3, num_train_epochs=1, **CPU)
        statements = WORLD.pretraining_statements(12_000)
        trainer = SFTTrainer(WORLD.model(), args, train_dataset=statements, processing_class=tokenizer)
        trainer.train()
        trainer.save_model()
        fold_temperature(trainer.model, 0.4)
        trainer.save_model(overconfident)
    return base, overconfident


def measure(name, model, questions):
    """Print the calibration of a model (a folder, or a name on the Hub)."""
    predictions = predict_options(*load_model(model), questions, prompt_format=PromptFormat(**PROMPT), batch_size=256)
    report = calibration_report(*predictions.unpadded())
    print(name, {key: round(report[key], 3) for key in ("n", "accuracy", "confidence", "ece", "ece_noise_floor")})
