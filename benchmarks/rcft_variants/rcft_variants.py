"""One change at a time to RCFT, on the aligned models of synthetic_world.py.

    python benchmarks/synthetic_world/synthetic_world.py --seeds 0 1 2 --output_dir synthetic-world
    python benchmarks/rcft_variants/rcft_variants.py synthetic-world/seed-*

Prints a table (mean over seeds) and, last, one line of JSON: conf-ECE of each variant.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import yaml
from rcft_candidates import ClasswiseTargets, DualWeight, Mixup, MovingWindow, StopOnRefinement, VennAbers
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, calibration_report, load_questions, predict_options
from hf_calib.paths import recipe_path
from hf_calib.training.quickstart import PROMPT_FORMAT


sys.path.append(str(Path(__file__).parents[1] / "rivals"))

from rival_trainers import RivalSFTConfig, RivalSFTTrainer  # noqa: E402


VARIANTS = {
    "rcft (the recipe)": {},
    "cft": {"objective": "cft"},
    "cft, memorising": {"objective": "cft", "learning_rate": 1e-3, "num_train_epochs": 12},
    "rcft, memorising": {"learning_rate": 1e-3, "num_train_epochs": 12},
    "paper preset": {"em_preset": "paper"},
    "E-step on the training questions": {"em_holdout": 0},
    "E-step every 50 steps": {"em_refresh": 50},
    "E-step once": {"em_refresh": "once"},
    "bins": {"em_estimator": "bins"},
    "squared error": {"em_loss": "brier"},
    "squared error, lambda 5": {"em_loss": "brier", "lambda_ece": 5.0},
    "lambda 0.5": {"lambda_ece": 0.5},
    "lambda 2": {"lambda_ece": 2.0},
    "likelihood of the question too": {"trainer": RivalSFTTrainer, "likelihood": "sequence"},
    "option cross-entropy added": {"option_loss_weight": 1.0},
    "label smoothing .1 beside it": {
        "trainer": RivalSFTTrainer,
        "option_loss_weight": 1.0,
        "likelihood_weight": 0.0,
        "option_label_smoothing": 0.1,
    },
    "Venn-Abers": {"trainer": VennAbers},
    "targets for every option": {"trainer": ClasswiseTargets},
    "E-step on a moving window": {"trainer": MovingWindow, "em_holdout": 0},
    "weight by dual ascent": {"trainer": DualWeight},
    "mixup over options beside it": {"trainer": Mixup},
    "stopped on refinement": {"trainer": StopOnRefinement},
    "stopped on refinement, memorising": {"trainer": StopOnRefinement, "learning_rate": 1e-3, "num_train_epochs": 12},
}
MEASURES = ("accuracy", "confidence", "ece", "cw_ece", "tce", "nll", "brier", "auroc")


def run(folder: Path, seed: int, changes: dict) -> dict[str, float]:
    trainer_class = (changes := dict(changes)).pop("trainer", CalibratedSFTTrainer)
    recipe = yaml.safe_load(recipe_path("quickstart/rcft.yaml").read_text())
    settings = {name: value for name, value in recipe.items() if name in CalibratedSFTConfig.__dataclass_fields__}
    config_class = RivalSFTConfig if trainer_class is RivalSFTTrainer else CalibratedSFTConfig
    with tempfile.TemporaryDirectory() as output_dir:
        settings |= {"output_dir": output_dir, "seed": seed, "use_cpu": True, "disable_tqdm": True}
        settings |= {"closing_step": False, **changes}  # the variants are of the training alone
        trainer = trainer_class(
            str(folder / "dpo"),
            config_class(**settings),
            train_dataset=load_questions(folder / "world" / "train.parquet"),
        )
        trainer.train()
    test = load_questions(folder / "world" / "test.parquet")
    settings = {"prompt_format": PROMPT_FORMAT, "batch_size": 256, "progress": False}
    predictions = predict_options(trainer.model, trainer.processing_class, test, **settings)
    return calibration_report(
        predictions.probabilities, predictions.labels, predictions.target_probabilities, n_bootstrap=10
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", type=Path, nargs="+", help="seed-N folders of benchmarks/synthetic_world/synthetic_world.py"
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    table = Table(box=box.SIMPLE_HEAD, title=f"mean over {len(args.folders)} seeds", title_justify="left")
    for heading in ("variant", *MEASURES):
        table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    figures = {}
    for name in args.only:
        reports = [run(folder, int(folder.name.split("-")[-1]), VARIANTS[name]) for folder in args.folders]
        means = {measure: sum(report[measure] for report in reports) / len(reports) for measure in MEASURES}
        table.add_row(name, *(f"{value:.3f}" for value in means.values()))
        figures[name] = round(means["ece"], 4)
    Console(width=140).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
