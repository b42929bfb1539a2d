"""Preference collapse as it happens: its measures and the reliability diagram, every N steps of any training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..data.questions import PromptFormat, adapt_questions
from ..inference.predict import predict_options
from ..inference.predictions import OptionPredictions
from ..measures.preference_collapse import MEANINGS, collapse_report
from ..plots import reliability_grid


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class CollapseCallback(TrainerCallback):
    """
    Measures preference collapse on a small question set before training, every few steps, and at the end.

    It works with every trainer of a causal language model, TRL's SFT, DPO, KTO and GRPO trainers among them, with PEFT, and
    in several processes as long as each holds the whole model. The measures are those of [`collapse_report`], which says
    what they mean (`hf_calib.measures.preference_collapse.MEANINGS`): they are logged as `collapse/<measure>` to the trainer's log history and
    its trackers, and reliability diagrams of the reference and the model go to TensorBoard, Weights & Biases or Trackio as
    an image. The predictions stay in `<output_dir>/collapse/step-<step>.npz`, so that any two of them can be compared with
    `hf-calib diagnose --reference_predictions ... --predictions ...`. Training itself is not touched: it ends at the same weights
    as without the callback.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer to which the callback is added.
        questions (`Dataset`):
            Questions in any layout that [`~hf_calib.data.questions.adapt_questions`] knows; none that the training sees. Some 500
            tell an ECE of .05 from none.
        every (`int`, *optional*, defaults to `100`):
            Optimizer steps from one measurement to the next.
        reference ([`OptionPredictions`], *optional*):
            Predictions of the model that all are compared with. By default the model as it is before its first step.
        prompt_format ([`~hf_calib.data.questions.PromptFormat`], *optional*):
            How a question is asked; by default letters are scored.
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            Log-likelihood of an option: sum over its tokens, or mean.
        batch_size (`int`, *optional*, defaults to `8`):
            Questions of the longest kind in a forward pass.
        max_length (`int`, *optional*):
            Most tokens of a question with one option.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of ECE and diagram.
        n_bootstrap (`int`, *optional*, defaults to `200`):
            Draws behind intervals and noise floors.
        seed (`int`, *optional*, defaults to `0`):
            Seed of these.

    Raises:
        `ValueError`: if the weights are divided among the processes (DeepSpeed ZeRO-3, FSDP), `every` is below 1, or a
            question is malformed.

    Example:

    ```python
    trainer = DPOTrainer(model, args=config, train_dataset=pairs, processing_class=tokenizer)
    trainer.add_callback(CollapseCallback(trainer, load_questions("questions.parquet", limit=500, seed=0), every=50))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        questions: Dataset,
        every: int = 100,
        reference: OptionPredictions | None = None,
        prompt_format: PromptFormat | None = None,
        option_normalization: str = "sum",
        batch_size: int = 8,
        max_length: int | None = None,
        n_bins: int = 10,
        n_bootstrap: int = 200,
        seed: int = 0,
    ):
        if every < 1:
            raise ValueError(f"every={every}; at least 1 step is wanted")
        if divides_weights(trainer):
            raise ValueError(
                "CollapseCallback wants the whole model in every process, but its weights are divided among them (ZeRO-3 or "
                "FSDP). Train with ZeRO-2, or compare saved checkpoints with `hf-calib diagnose`."
            )
        self.trainer = trainer
        self.questions = adapt_questions(questions)
        self.every = every
        self.reference = reference
        self.asking = {
            "prompt_format": prompt_format,
            "option_normalization": option_normalization,
            "batch_size": batch_size,
            "max_length": max_length,
        }
        self.measuring = {"n_bins": n_bins, "n_bootstrap": n_bootstrap, "seed": seed}

    def on_train_begin(self, args, state, control, **kwargs):
        before = self._path(0)
        if self.reference is None and state.global_step > 0 and before.exists():  # resumed
            self.reference = OptionPredictions.load(before)
        elif self.reference is None and state.global_step > 0:
            logger.warning(
                f"{before} is not there: the training was begun without this callback, and its measures are compared with "
                f"the model at step {state.global_step}"
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
            output_path=self._path(step),
            resume=False,
            progress=False,
            **self.asking,
        )
        if self.reference is None:
            self.reference = predictions
        reference = self.reference.select(predictions.ids)
        report = collapse_report(
            predictions.probabilities,
            predictions.labels,
            reference.probabilities,
            num_options=np.isfinite(predictions.option_logits).sum(axis=1),
            **self.measuring,
        )
        names = [*MEANINGS, "ece_noise_floor"]
        # Not the trainer's own `log`: TRL's averages what has come together since the last one, and begins anew.
        Trainer.log(self.trainer, {f"collapse/{name}": report[name] for name in names})
        if self.trainer.is_world_process_zero():
            stages = {"reference": reference, f"step {step}": predictions}
            outcomes = {name: (stage.probabilities, stage.labels) for name, stage in stages.items()}
            self._log_figure(lambda: reliability_grid(outcomes, **self.measuring), step)

    def _log_figure(self, draw, step: int) -> None:
        """Give the diagram to the trackers that show images, each through the module that its own callback has imported."""
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
    """Whether the weights are divided among the processes (ZeRO-3, FSDP), so that none of them can ask the model alone."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def _pixels(figure: Figure) -> np.ndarray:
    """A figure as an image `(height, width, 3)` of uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
