"""`hf-calib average`: average the models of a cross-fit and collect their held-out predictions."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parser import CommandParser


if TYPE_CHECKING:
    from ..inference.predictions import OptionPredictions

_EXAMPLES = """\
examples:
  # five trainings, each without another fifth of the labelled questions; then the mean of the models, and a calibrator
  # fitted on every label
  for fold in 0 1 2 3 4; do
      accelerate launch recipes/train.py --config recipes/smollm2-135m/rcft.yaml --em_holdout 0.2 --em_fold $fold \\
          --output_dir fold-$fold
  done
  hf-calib average --models fold-0 fold-1 fold-2 fold-3 fold-4 --output_dir averaged
  hf-calib calibrate --predictions averaged/held_out --output_dir averaged/calibration

writes to OUTPUT_DIR:
  the mean of the models with the tokenizer; for LoRA adapters an adapter whose rank is the sum of theirs
  training.json          the record of the trainings, for the card
  held_out/              predictions for each question by the model that was trained without it
See docs/research/cross-fitting.md.
"""


@dataclass
class AverageArguments:
    """Arguments of `hf-calib average`."""

    models: list[str] = field(metadata={"help": "Two or more output folders of `hf-calib train`, models or adapters."})
    output_dir: str = field(default="averaged", metadata={"help": "Folder of the averaged model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the models' folders."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check that the models belong together; the result averages and writes."""
    (args,) = CommandParser("average", AverageArguments, "--models MODEL MODEL [...]", _EXAMPLES).parse(argv)
    from ..evaluation.tables import check_output_dir
    from ..training.averaging import average_models, check_models

    models = [Path(model) for model in args.models]
    check_models(models)
    if Path(args.output_dir).resolve() in [model.resolve() for model in models]:
        raise ValueError(f"--output_dir {args.output_dir} is one of the models: choose another.")
    output_dir = check_output_dir(args.output_dir)
    held_out = _held_out(models)
    record = _record(models, None if held_out is None else len(held_out))

    def average() -> None:
        from ..evaluation.tables import write_json
        from ..hub.publish import PREDICTIONS, TRAINING_RECORD
        from ..hub.recipe import published_record

        # Files of an earlier average are of other models.
        for name in ("adapter_config.json", "adapter_model.safetensors", TRAINING_RECORD):
            (output_dir / name).unlink(missing_ok=True)
        shutil.rmtree(output_dir / "held_out", ignore_errors=True)
        average_models(models, output_dir, args.trust_remote_code)
        if record is not None:
            write_json(output_dir / TRAINING_RECORD, published_record(record))
        print(f"mean of {len(models)} models: {output_dir}")
        path = output_dir / "held_out" / PREDICTIONS
        if held_out is None:
            print("no held-out predictions: the trainings held nothing out, or ran with ZeRO-3 or FSDP")
            return
        held_out.save(path)
        print(
            f"held-out predictions for {len(held_out)} questions: {path.parent}\n"
            f"next: hf-calib calibrate --predictions {path.parent} --output_dir {output_dir / 'calibration'}"
        )

    return average


def _held_out(models: Sequence[Path]) -> OptionPredictions | None:
    """Join the held-out predictions of the models; `None` if no model has any."""
    from ..hub.publish import PREDICTIONS
    from ..inference.predictions import OptionPredictions

    paths = [model / "held_out" / PREDICTIONS for model in models]
    if not any(path.is_file() for path in paths):
        return None
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(
            f"{missing[0]} is missing, but other models have one: the training is not finished, or held nothing out."
        )
    parts = [OptionPredictions.load(path) for path in paths]
    scored = [(part.metadata.get("prompt_format"), part.metadata.get("option_normalization")) for part in parts]
    for model, one in zip(models, scored, strict=True):
        if one != scored[0]:
            raise ValueError(f"{model} and {models[0]} differ in prompt or scoring: train all with the same recipe.")
    try:
        return OptionPredictions.join(parts)
    except ValueError as error:
        raise ValueError(f"{error}: train each model with another --em_fold, and all with the same --seed.") from None


def _record(models: Sequence[Path], held_out: int | None) -> dict[str, Any] | None:
    """Make one training record of those of the models; `None` if there are none."""
    from ..hub.publish import TRAINING_RECORD

    records = [json.loads(path.read_text()) for model in models if (path := model / TRAINING_RECORD).is_file()]
    if not records:
        return None
    # The recipe is of one training alone; the commands are of all.
    first = {name: value for name, value in records[0].items() if name != "recipe"}
    settings = dict(first["settings"])
    if "LoRA rank" in settings:  # the scale is part of the matrices
        settings["LoRA rank"] = settings["LoRA alpha"] = len(models) * settings["LoRA rank"]
    lines = [line for line in first["budget"] if "were held out for the E-step" not in line]
    fitted = (
        f"Cross-fitted: the mean of {len(models)} models, each trained without another part of the labelled questions"
    )
    fitted += f"; {held_out:,} were held out from one of them each." if held_out else "."
    average = shlex.join(["hf-calib", "average", "--models", *map(str, models)])
    commands = [record["command"] for record in records if "command" in record]
    return {
        **first,
        "settings": settings,
        "budget": [*lines, fitted],
        "command": "\n".join([*commands, average]),
    }
