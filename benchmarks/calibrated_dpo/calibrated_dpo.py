"""Calibrated DPO against DPO and its relatives on the synthetic world: each at the best of as many runs.

    python benchmarks/calibrated_dpo/calibrated_dpo.py --seeds 0 1 2 --output_dir calibrated-dpo

Every method trains the pre-trained model of recipes/quickstart six times: at beta 0.1, 1 and 10, with two values of
its own knob. Of each, the run is taken that does best on validation pairs and questions (the lowest sum of pair-ECE
and option conf-ECE, among the runs whose pair accuracy is within a point of plain DPO's highest), and reported on test
pairs and questions, whose prompts the validation questions do not share. A run that was cut off goes on where it
stopped. Prints two tables and, last, one line of JSON.
"""

import argparse
import itertools
import json
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, load_dataset
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib import calibration_report, load_questions, predict_options
from hf_calib.data.preference_pairs import PREFERENCE_COLUMN
from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.evaluation.tables import write_json
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.preference_scores import preference_probabilities, score_pairs
from hf_calib.paths import recipe_path
from hf_calib.posthoc import TemperatureScaling
from hf_calib.trainers.preference import as_two_options
from hf_calib.training.quickstart import PROMPT_FORMAT, STAGES, make_world, train_stage


sys.path.append(str(Path(__file__).parents[1] / "rivals"))

from rival_trainers import RivalDPOConfig, RivalDPOTrainer  # noqa: E402


BETAS = (0.1, 1.0, 10.0)
PLAIN = {"lambda_pref": 0.0}
CALIBRATED = {"option_likelihood_weight": 0.3, "em_holdout": 0.2, "em_refresh": "15"}
# The two values of each method's knob, beside beta. Learning rates are dpo.yaml's 2e-4 where it is not the knob.
METHODS = {
    "DPO": {"lr 2e-4": PLAIN, "lr 5e-4": PLAIN | {"learning_rate": 5e-4}},
    "cDPO": {f"smoothing {v}": PLAIN | {"cdpo_smoothing": v} for v in (0.1, 0.3)},
    "robust DPO": {f"smoothing {v}": PLAIN | {"loss_type": ["robust"], "label_smoothing": v} for v in (0.1, 0.3)},
    "IPO": {f"lr {v}": PLAIN | {"loss_type": ["ipo"], "learning_rate": float(v)} for v in ("2e-4", "5e-4")},
    "CATTO term": {f"weight {v}": PLAIN | {"catto_weight": v} for v in (0.1, 1.0)},
    "entropy bonus": {f"weight {v}": PLAIN | {"entropy_weight": v} for v in (0.03, 0.3)},
    "calibrated DPO": {f"lambdas 3, {v}": CALIBRATED | {"lambda_pref": 3.0, "lambda_options": v} for v in (1.0, 3.0)},
    "calibrated DPO, votes unknown": {
        f"lambdas 1, {v}": CALIBRATED | {"lambda_pref": 1.0, "lambda_options": v} for v in (1.0, 3.0)
    },
}
NUM_VALIDATION, NUM_TEST = 2_000, 5_000
MEASURES = tuple(
    f"{kind}_{measure}"
    for kind, measures in {
        "pair": ("accuracy", "confidence", "ece", "ece_noise_floor", "tce", "nll"),
        "option": ("accuracy", "confidence", "ece", "ece_noise_floor", "cw_ece", "tce", "nll"),
    }.items()
    for measure in measures
)


class Setting:
    """One world: its training data, its pre-trained model, and what runs are judged on."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        if not (folder / "world" / "train.parquet").exists():
            make_world(folder / "world", seed, NUM_TEST)
        if not (folder / "pretrain" / "trainer_state.json").exists():
            train_stage(STAGES[0], folder, seed)
        self.pairs = load_dataset("parquet", data_files=str(folder / "world" / "pairs.parquet"), split="train")
        self.questions = load_questions(folder / "world" / "train.parquet")
        world = World(WorldConfig(seed=seed))
        asked = world.questions(3 * NUM_TEST, seed + 1000, split="test")
        prompts = np.random.default_rng(seed).permutation(sorted(set(asked["question"])))
        of_validation = set(prompts[: len(prompts) // 3])
        parts = np.array([question in of_validation for question in asked["question"]])
        self.judged = {
            "validation": (
                world.preference_pairs(NUM_VALIDATION, seed + 1000),
                asked.select(np.flatnonzero(parts)[:NUM_VALIDATION]),
            ),
            "test": (world.preference_pairs(NUM_TEST, seed + 2000), asked.select(np.flatnonzero(~parts)[:NUM_TEST])),
        }
        reference = load_model(str(folder / "pretrain"))
        self.reference_scores = {name: score_pairs(*reference, pairs, 256) for name, (pairs, _) in self.judged.items()}

    def run(self, settings: dict, votes: bool) -> dict:
        """Train once, with the annotators' agreement or without, and measure on both sets."""
        recipe = yaml.safe_load(recipe_path("quickstart/dpo.yaml").read_text())
        arguments = {name: v for name, v in recipe.items() if name in RivalDPOConfig.__dataclass_fields__}
        arguments |= {"scoring": "text", "prompt_template": World.prompt_template, "seed": self.seed, "use_cpu": True}
        pairs = self.pairs if votes else self.pairs.remove_columns(PREFERENCE_COLUMN)
        with tempfile.TemporaryDirectory() as output_dir:
            arguments |= {"output_dir": output_dir, "disable_tqdm": True, "logging_steps": 10_000, **settings}
            trainer = RivalDPOTrainer(
                str(self.folder / "pretrain"),
                args=RivalDPOConfig(**arguments),
                train_dataset=pairs,
                option_dataset=self.questions,
            )
            trainer.train()
        model, tokenizer = trainer.model.eval(), trainer.processing_class

        def options(questions: Dataset):
            return predict_options(
                model, tokenizer, questions, prompt_format=PROMPT_FORMAT, batch_size=256, progress=False
            )

        def chosen(name: str) -> np.ndarray:
            scores = score_pairs(model, tokenizer, self.judged[name][0], 256)
            return preference_probabilities(scores, self.reference_scores[name], arguments["beta"])

        results = {"settings": settings}
        predictions = {name: (chosen(name), options(questions)) for name, (_, questions) in self.judged.items()}
        for name, (probabilities, predicted) in predictions.items():
            results[name] = _measures(as_two_options(probabilities), self.judged[name][0], predicted)
        # Post hoc, with as many labels: the questions that calibrated DPO trains on, and the validation pairs.
        labelled = options(self.questions)
        temperature = TemperatureScaling().fit(labelled.option_logits, labelled.labels)
        of_pairs = TemperatureScaling().fit(*_as_logits(predictions["validation"][0]))
        probabilities, predicted = predictions["test"]
        results["test + TS"] = _measures(
            of_pairs.transform(_as_logits(probabilities)[0]),
            self.judged["test"][0],
            predicted.recalibrated(temperature),
        )
        return results


def _as_logits(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.log(as_two_options(chosen).clip(1e-30)), np.arange(len(chosen)) % 2


def _measures(of_pairs: np.ndarray, pairs: Dataset, options) -> dict[str, float]:
    """Measures of the pairs, as questions of two options, and of the option questions."""
    votes = as_two_options(np.array(pairs[PREFERENCE_COLUMN]))
    reports = {
        "pair": calibration_report(of_pairs, np.arange(len(pairs)) % 2, votes),
        "option": calibration_report(options.probabilities, options.labels, options.target_probabilities),
    }
    return {f"{kind}_{name}": float(value) for kind, report in reports.items() for name, value in report.items()}


def select(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """The run of each method that does best on the validation set."""
    least_accuracy = max(run["validation"]["pair_accuracy"] for run in runs["DPO"]) - 0.01

    def merit(run: dict) -> tuple[float, float]:
        validation = run["validation"]
        behind = max(0.0, least_accuracy - validation["pair_accuracy"])
        return behind, validation["pair_ece"] + validation["option_ece"]

    return {method: min(of_method, key=merit) for method, of_method in runs.items()}


def print_table(title: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """Mean over seeds, and the extremes where there are several."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("", *(measure.replace("_", " ") for measure in MEASURES)):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for name, seeds in rows.items():
        values = [[measures[measure] for measures in seeds] for measure in MEASURES]
        cells = [f"{np.mean(v):.3f}" + (f" ({min(v):.3f}-{max(v):.3f})" if len(v) > 1 else "") for v in values]
        table.add_row(name, *(cell.replace("0.", ".") for cell in cells))
    Console(width=300).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("calibrated-dpo"))
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    setting, grid, runs = None, {}, {}
    for seed, (method, knobs), beta in itertools.product(args.seeds, METHODS.items(), BETAS):
        for knob, settings in knobs.items():
            name = f"{method}, beta {beta}, {knob}"
            path = args.output_dir.resolve() / f"seed-{seed}" / f"{name.replace(', ', '_').replace(' ', '-')}.json"
            if not path.exists():
                if setting is None or setting.seed != seed:
                    setting = Setting(path.parent, seed)
                write_json(path, setting.run({"beta": beta, **settings}, votes="unknown" not in method))
            result = {"name": name, **json.loads(path.read_text())}
            grid.setdefault(name, []).append(result["test"])
            runs.setdefault(seed, {}).setdefault(method, []).append(result)
            print(seed, name, *(f"{m} {result['test'][m]:.3f}" for m in ("pair_accuracy", "pair_ece", "option_ece")))

    best = {seed: select(of_seed) for seed, of_seed in runs.items()}
    first = [of_seed["DPO"][0] for of_seed in runs.values()]  # recipes/quickstart/dpo.yaml
    rows = {
        "DPO, its recipe": [run["test"] for run in first],
        "DPO, its recipe, + TS": [run["test + TS"] for run in first],
    }
    for method in METHODS:
        rows[method] = [of_seed[method]["test"] for of_seed in best.values()]
        if method == "DPO":
            rows["DPO + TS"] = [of_seed[method]["test + TS"] for of_seed in best.values()]
    for seed, of_seed in best.items():
        print(f"seed {seed}, taken:", "; ".join(run["name"] for run in of_seed.values()))
    print_table(f"every run: mean over {len(args.seeds)} seeds", grid)
    print_table(f"the best of six runs: mean over {len(args.seeds)} seeds (least-most)", rows)

    mean = {
        name: {m: float(np.mean([of_seed[m] for of_seed in seeds])) for m in MEASURES} for name, seeds in rows.items()
    }
    ours = mean["calibrated DPO"]
    figures = {"pair_accuracy_over_dpo_recipe": ours["pair_accuracy"] - mean["DPO, its recipe"]["pair_accuracy"]}
    for name, other in mean.items():
        if not name.startswith("calibrated DPO"):
            for kind in ("pair", "option"):
                figures[f"{kind}_ece_ratio_to {name}"] = ours[f"{kind}_ece"] / other[f"{kind}_ece"]
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
