"""Preference collapse during training: its measures and reliability diagrams, every N steps of any trainer."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..data.questions import adapt_questions
from ..inference.predict import PredictionOptions, predict_options
from ..inference.predictions import OptionPredictions
from ..measures.options import MeasureOptions
from ..measures.preference_collapse import MEANINGS, collapse_report
from ..plots import reliability_grid


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class CollapseCallback(TrainerCallback):
    """
    Measures preference collapse on a small question set before training, every few steps, and at the end.

    It works with every trainer of a causal language model (such as TRL's SFT, DPO, KTO and GRPO trainers), with PEFT,
    and in several processes as long as each has the whole model. The measures of [`collapse_report`] are logged as
    `collapse/<measure>`; `hf_calib.measures.preference_collapse.MEANINGS` explains them. Reliability diagrams of the
    reference and the model are logged to TensorBoard, Weights & Biases or Trackio. The predictions are saved as
    `<output_dir>/collapse/step-<step>.npz`, for `hf-calib diagnose`. The training itself does not change.

    Args:
        trainer ([`~transformers.Trainer`]):
            Trainer to which the callback is added.
        questions ([`~datasets.Dataset`]):
            Questions in any layout of [`~hf_calib.data.questions.adapt_questions`], none of which is trained on. About
            500 distinguish an ECE of 0.05 from 0.
        every (`int`, *optional*, defaults to `100`):
            Optimizer steps between two measurements.
        reference ([`OptionPredictions`], *optional*):
            Predictions that all others are compared with; by default those of the model before its first step.
        prediction_options ([`~hf_calib.inference.predict.PredictionOptions`], *optional*):
            How questions are scored; by default by their letters.
        measure_options ([`~hf_calib.measures.options.MeasureOptions`], *optional*):
            Options of the measures and the diagram; by default 200 draws.

    Raises:
        `ValueError`: if the weights are partitioned among the processes (DeepSpeed ZeRO-3, FSDP), `every` is below 1,
        or a
            question is malformed.

    Example:

    ```python
    trainer = DPOTrainer(model, args=config, train_dataset=pairs, processing_class=tokenizer)
    trainer.add_callback(CollapseCallback(trainer, load_questions("questions.parquet", limit=500, seed=0), every=50))
    trainer.train()
    ```
    """

    only_training = True  # the closing step counts its steps anew

    def __init__(
        self,
        trainer: Trainer,
        questions: Dataset,
        every: int = 100,
        reference: OptionPredictions | None = None,
        prediction_options: PredictionOptions | None = None,
        measure_options: MeasureOptions | None = None,
    ):
        if every < 1:
            raise ValueError(f"every={every}; it must be at least 1")
        if divides_weights(trainer):
            raise ValueError(
                "CollapseCallback needs the whole model in every process, but its weights are partitioned (ZeRO-3 "
                "or FSDP). Train with ZeRO-2, or compare saved checkpoints with `hf-calib diagnose`."
            )
        self.trainer = trainer
        self.questions = adapt_questions(questions)
        self.every = every
        self.reference = reference
        self.prediction_options = prediction_options or PredictionOptions()
        self.measure_options = asdict(measure_options or MeasureOptions(n_bootstrap=200))

    def on_train_begin(self, args, state, control, **kwargs):
        before = self._path(0)
        if self.reference is None and state.global_step > 0 and before.exists():  # a resumed run
            self.reference = OptionPredictions.load(before)
        elif self.reference is None and state.global_step > 0:
            logger.warning(
                f"{before} does not exist: the training began without this callback. The reference is the model at "
                f"step {state.global_step}."
            )
        if state.global_step == 0 or self.reference is None:
            self._measure(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or state.global_step % self.every == 0:
            self._measure(state.global_step)

    def _path(self, step: int) -> Path:
        return Path(self.trainer.args.output_dir) / "collapse" / f"step-{step:06d}.npz"

    def _measure(self, step: int) -> None:
        tokenizer = getattr(self.trainer.processing_class, "tokenizer", self.trainer.processing_class)
        predictions = predict_options(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            tokenizer,
            self.questions,
            options=replace(self.prediction_options, output_path=self._path(step), resume=False, progress=False),
        )
        if self.reference is None:
            self.reference = predictions
        reference = self.reference.select(predictions.ids)
        report = collapse_report(
            predictions.probabilities,
            predictions.labels,
            reference.probabilities,
            num_options=np.isfinite(predictions.option_logits).sum(axis=1),
            **self.measure_options,
        )
        names = [*MEANINGS, "ece_noise_floor"]
        # Not `trainer.log`: TRL's would average and reset its own metrics.
        Trainer.log(self.trainer, {f"collapse/{name}": report[name] for name in names})
        if self.trainer.is_world_process_zero():
            stages = {"reference": reference, f"step {step}": predictions}
            outcomes = {name: (stage.probabilities, stage.labels) for name, stage in stages.items()}
            self._log_figure(lambda: reliability_grid(outcomes, **self.measure_options), step)

    def _log_figure(self, draw, step: int) -> None:
        """Log the diagram to the trackers that show images, through the modules that their callbacks imported."""
        name, image = "collapse/reliability", None
        for callback in self.trainer.callback_handler.callbacks:
            if not isinstance(callback, (TensorBoardCallback, WandbCallback, TrackioCallback)):
                continue
            image = _pixels(draw()) if image is None else image
            if isinstance(callback, TensorBoardCallback):
                if callback.tb_writer is not None:
                    callback.tb_writer.add_image(f"train/{name}", image, step, dataformats="HWC")
            elif isinstance(callback, WandbCallback):
                wandb = callback._wandb
                if wandb.run is not None:
                    wandb.log({f"train/{name}": wandb.Image(image), "train/global_step": step})
            else:
                trackio = callback._trackio
                trackio.log({f"train/{name}": trackio.Image(image), "train/global_step": step})


def divides_weights(trainer: Trainer) -> bool:
    """Whether the weights are partitioned among the processes (ZeRO-3, FSDP)."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def _pixels(figure: Figure) -> np.ndarray:
    """Render a figure as an image `(height, width, 3)` of uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
