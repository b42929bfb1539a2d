"""CollapseCallback: what it logs is what an evaluation measures, and the training does not notice it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from hf_calib.data.questions import PromptFormat
from hf_calib.data.synthetic_world import World
from hf_calib.inference.predict import PredictionOptions
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.measures.options import MeasureOptions
from hf_calib.measures.preference_collapse import MEANINGS, collapse_report
from hf_calib.trainers.callbacks import CollapseCallback
from hf_calib.training.distributed import leave_process_group


WORLD = World()
QUESTIONS = WORLD.questions(40)
PROMPT_FORMAT = PromptFormat(scoring="text", prompt_template=World.prompt_template, use_chat_template=False)
COMMON = {
    "use_cpu": True, "bf16": False, "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 3,
    "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": True, "seed": 0,
}  # fmt: skip


def dpo(folder, **options):
    config = DPOConfig(output_dir=str(folder), max_length=None, **{**COMMON, **options})
    models = {"model": WORLD.model(), "ref_model": WORLD.model()}
    return DPOTrainer(
        **models, args=config, train_dataset=WORLD.preference_pairs(40), processing_class=WORLD.tokenizer()
    )


def watch(trainer, every=2, **options):
    options["prediction_options"] = PredictionOptions(prompt_format=PROMPT_FORMAT, batch_size=64)
    options["measure_options"] = MeasureOptions(n_bootstrap=20)
    trainer.add_callback(CollapseCallback(trainer, QUESTIONS, every, **options))
    return trainer


def measured(trainer):
    return [entry for entry in trainer.state.log_history if "collapse/ece" in entry]


def test_training_is_not_touched_and_the_log_is_that_of_an_evaluation(tmp_path):
    alone, watched = dpo(tmp_path / "alone"), watch(dpo(tmp_path / "watched"))
    alone.train()
    watched.train()
    for one, other in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    plain = [entry for entry in watched.state.log_history if "collapse/ece" not in entry]
    times = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    kept = [[{k: v for k, v in e.items() if k not in times} for e in log] for log in (alone.state.log_history, plain)]
    assert kept[0] == kept[1]  # TRL's own averages are left to gather as they do

    entries = measured(watched)
    assert [entry["step"] for entry in entries] == [0, 2, 4]
    assert entries[0]["collapse/kl_to_reference"] == 0 < entries[2]["collapse/kl_to_reference"]
    stages = [OptionPredictions.load(tmp_path / "watched" / "collapse" / f"step-{step:06d}.npz") for step in (0, 4)]
    report = collapse_report(stages[1].probabilities, stages[1].labels, stages[0].probabilities, n_bootstrap=20)
    assert {name: entries[2][f"collapse/{name}"] for name in MEANINGS} == {name: report[name] for name in MEANINGS}


def test_tensorboard_gets_numbers_and_diagram(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    watch(dpo(tmp_path, report_to="tensorboard")).train()
    events = EventAccumulator(str(tmp_path / "runs"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/collapse/saturation")] == [0, 2, 4]
    images = events.Images("train/collapse/reliability")
    assert [image.step for image in images] == [0, 2, 4]
    assert images[0].width > 400 and images[0].encoded_image_string.startswith(b"\x89PNG")


def reward(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("kind", ["sft", "kto", "grpo"])
def test_other_trainers(kind, tmp_path):
    tokenizer, options = WORLD.tokenizer(), {**COMMON, "max_steps": 2}
    if kind == "sft":
        data, config = (
            WORLD.pretraining_statements(32),
            SFTConfig(output_dir=str(tmp_path), max_length=None, **options),
        )
        trainer = SFTTrainer(WORLD.model(), args=config, train_dataset=data, processing_class=tokenizer)
    elif kind == "kto":
        pairs = WORLD.preference_pairs(32)
        sides = [pairs["chosen"][k] if k % 2 else pairs["rejected"][k] for k in range(32)]
        data = Dataset.from_dict(
            {"prompt": pairs["prompt"], "completion": sides, "label": [k % 2 == 1 for k in range(32)]}
        )
        config = KTOConfig(output_dir=str(tmp_path), max_length=None, **options)
        trainer = KTOTrainer(WORLD.model(), WORLD.model(), config, train_dataset=data, processing_class=tokenizer)
    else:
        data = Dataset.from_dict({"prompt": QUESTIONS["question"]})
        config = GRPOConfig(output_dir=str(tmp_path), num_generations=4, max_completion_length=4, **options)
        trainer = GRPOTrainer(WORLD.model(), reward, args=config, train_dataset=data, processing_class=tokenizer)
    watch(trainer, every=1).train()
    assert [entry["step"] for entry in measured(trainer)] == [0, 1, 2]


def test_two_processes_measure_together(launch, tmp_path):
    """This file is the script that both of them run."""
    done = launch("ddp", __file__, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    logs = [json.loads((tmp_path / f"measured-{rank}.json").read_text()) for rank in range(2)]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [0, 2, 4]
    assert len(OptionPredictions.load(tmp_path / "collapse" / "step-000004.npz")) == 40


def test_a_resumed_run_keeps_its_reference(tmp_path):
    first = watch(dpo(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    first.train()
    base = OptionPredictions.load(tmp_path / "collapse" / "step-000000.npz")
    resumed = watch(dpo(tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [entry["step"] for entry in measured(resumed)] == [0, 2, 4]
    after = OptionPredictions.load(tmp_path / "collapse" / "step-000004.npz")
    expected = collapse_report(after.probabilities, after.labels, base.probabilities, n_bootstrap=1)["kl_to_reference"]
    assert measured(resumed)[-1]["collapse/kl_to_reference"] == pytest.approx(expected)
    np.testing.assert_array_equal(OptionPredictions.load(tmp_path / "collapse" / "step-000000.npz").ids, base.ids)


def test_a_reference_of_ones_own_and_a_run_cut_short(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    uniform = OptionPredictions(
        np.zeros((40, 4), np.float32), np.array(QUESTIONS["answer"]), np.array(QUESTIONS["id"])
    )
    trainer = dpo(tmp_path)
    trainer.add_callback(Stop())
    watch(trainer, every=100, reference=uniform).train()
    assert [entry["step"] for entry in measured(trainer)] == [0, 3]
    assert measured(trainer)[0]["collapse/kl_to_reference"] > 0


@pytest.mark.parametrize(
    ("options", "named"), [({"every": 0}, "every=0"), ({"zero_stage": 3}, "ZeRO-3"), ({"fsdp": True}, "FSDP")]
)
def test_what_cannot_be_watched_is_refused(options, named):
    plugin = SimpleNamespace(zero_stage=options.pop("zero_stage", 2))
    state = SimpleNamespace(deepspeed_plugin=plugin)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(state=state), is_fsdp_enabled=options.pop("fsdp", False))
    with pytest.raises(ValueError, match=named):
        CollapseCallback(trainer, QUESTIONS, **options)


if __name__ == "__main__":
    run = watch(dpo(sys.argv[1]))
    run.train()
    # A file each: on one pipe the lines of two processes run into each other.
    Path(sys.argv[1], f"measured-{run.args.process_index}.json").write_text(json.dumps(measured(run)))
    leave_process_group()
