"""One synthetic world: its data, its pre-trained model, training runs, and what they are measured on."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, load_dataset

from hf_calib import calibration_report, load_questions, predict_options
from hf_calib.data.preference_pairs import PREFERENCE_COLUMN
from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.inference.preference_scores import preference_probabilities, score_pairs
from hf_calib.paths import recipe_path
from hf_calib.posthoc import TemperatureScaling
from hf_calib.trainers.preference import as_two_options
from hf_calib.training.quickstart import PROMPT_FORMAT, STAGES, make_world, train_stage


sys.path.append(str(Path(__file__).parents[1] / "rivals"))

from rival_trainers import RivalDPOConfig, RivalDPOTrainer  # noqa: E402


NUM_JUDGED = 5_000  # validation pairs, test pairs, validation questions, test questions
COMPLETION_TOKENS = 2  # the word and the end of the text


class Scores:
    """
    Log-likelihoods of every completion of the world, from which those of pairs and options are taken.

    The world has 512 prompts with 10 completions each. They are scored by the package's own functions, once.
    """

    def __init__(self, world: World, model, tokenizer):
        prompts, values = zip(*_prompts(world), strict=True)
        self._row = {prompt: number for number, prompt in enumerate(prompts)}
        self._column = [{value: number for number, value in enumerate(row)} for row in values]
        questions = Dataset.from_dict(
            {
                "id": [str(number) for number in range(len(prompts))],
                "question": prompts,
                "choices": values,
                "answer": [0] * len(prompts),
            }
        )
        settings = {"prompt_format": PROMPT_FORMAT, "batch_size": 256, "progress": False}
        self._options = predict_options(model, tokenizer, questions, **settings).option_logits
        rows = [
            {"prompt": prompt, "chosen": f" {a}", "rejected": f" {b}"}
            for prompt, row in zip(prompts, values, strict=True)
            for a, b in zip(row[::2], row[1::2], strict=True)
        ]
        self._completions = score_pairs(model, tokenizer, Dataset.from_list(rows), 256).reshape(len(prompts), -1)

    def pairs(self, pairs: Dataset) -> np.ndarray:
        """Log-likelihoods of chosen and rejected, with the end of the text, `(N, 2)`."""
        rows = [self._row[prompt] for prompt in pairs["prompt"]]
        sides = [
            [self._column[row][value.strip()] for row, value in zip(rows, pairs[side], strict=True)]
            for side in ("chosen", "rejected")
        ]
        return self._completions[rows, np.array(sides)].T

    def questions(self, questions: Dataset) -> OptionPredictions:
        """Predictions of option questions."""
        rows = [self._row[question] for question in questions["question"]]
        columns = [
            [self._column[row][value] for value in choices]
            for row, choices in zip(rows, questions["choices"], strict=True)
        ]
        logits = self._options[np.array(rows)[:, None], np.array(columns)]
        truth = np.array(questions["target_probabilities"])
        return OptionPredictions(
            logits, np.array(questions["answer"]), np.array(questions["id"]), target_probabilities=truth
        )


def _prompts(world: World):
    for relation, values in enumerate(world.values):
        for entity in range(len(world.entities)):
            yield world._prompt(relation, entity), values


class Trainer(RivalDPOTrainer):
    """Tokenizes the same pairs once for all runs."""

    prepared: dict[str, Dataset] = {}

    def _prepare_dataset(self, dataset, *args):
        key = dataset._fingerprint
        if key not in self.prepared:
            self.prepared[key] = super()._prepare_dataset(dataset, *args)
        return self.prepared[key]


class Setting:
    """One world, its pre-trained model, and the pairs and questions that runs are judged on."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        if not (folder / "world" / "train.parquet").exists():
            make_world(folder / "world", seed, NUM_JUDGED)
        if not (folder / "pretrain" / "trainer_state.json").exists():
            train_stage(STAGES[0], folder, seed)
        pairs = load_dataset("parquet", data_files=str(folder / "world" / "pairs.parquet"), split="train")
        self.pairs = {"agreement": pairs, "votes": pairs.remove_columns(PREFERENCE_COLUMN)}
        self.option_questions = load_questions(folder / "world" / "train.parquet")
        self.world = world = World(WorldConfig(seed=seed))
        asked = world.questions(3 * NUM_JUDGED, seed + 1000, split="test")
        # Half of the prompts are for the choice of settings, the other half for the figures.
        prompts = np.random.default_rng(seed).permutation(sorted(set(asked["question"])))
        chosen = set(prompts[: len(prompts) // 2])
        parts = np.array([question in chosen for question in asked["question"]])
        self.judged = {
            name: (
                world.preference_pairs(NUM_JUDGED, seed + number),
                asked.select(np.flatnonzero(part)[:NUM_JUDGED]),
            )
            for name, number, part in (("validation", 1000, parts), ("test", 2000, ~parts))
        }
        self.reference = Scores(world, *load_model(str(folder / "pretrain")))

    def before(self) -> dict:
        """Measures of the option questions before alignment."""
        return {name: _option_measures(self.reference.questions(part)) for name, (_, part) in self.judged.items()}

    def run(self, settings: dict, labels: str) -> dict:
        """Train once, on the annotators' `"agreement"` or on `"votes"`, and measure on both sets."""
        recipe = yaml.safe_load(recipe_path("quickstart/dpo.yaml").read_text())
        arguments = {name: v for name, v in recipe.items() if name in RivalDPOConfig.__dataclass_fields__}
        arguments |= {"scoring": "text", "prompt_template": World.prompt_template, "seed": self.seed, "use_cpu": True}
        with tempfile.TemporaryDirectory() as output_dir:
            arguments |= {"output_dir": output_dir, "disable_tqdm": True, "logging_steps": 10_000}
            arguments |= {"precompute_ref_log_probs": True, **settings}
            trainer = Trainer(
                str(self.folder / "pretrain"),
                args=RivalDPOConfig(**arguments),
                train_dataset=self.pairs[labels],
                option_dataset=self.option_questions if arguments.get("lambda_options") else None,
            )
            trainer.train()
        scores = Scores(self.world, trainer.model.eval(), trainer.processing_class)
        loss = "cdpo" if settings.get("cdpo_smoothing") else trainer.args.loss_type
        smoothing = settings.get("cdpo_smoothing", trainer.args.label_smoothing)

        def preferences(pairs: Dataset) -> np.ndarray:
            lengths = np.full((len(pairs), 2), COMPLETION_TOKENS)
            both = scores.pairs(pairs), self.reference.pairs(pairs)
            return preference_probabilities(*both, trainer.args.beta, loss, smoothing, lengths)

        results = {"settings": settings}
        for name, (pairs, questions) in self.judged.items():
            results[name] = _pair_measures(as_two_options(preferences(pairs)), pairs)
            results[name] |= _option_measures(scores.questions(questions))
        # Post hoc, with as many labels: the option questions of calibrated DPO, and as many validation pairs.
        labelled = scores.questions(self.option_questions)
        temperature = TemperatureScaling().fit(labelled.option_logits, labelled.labels)
        few = self.judged["validation"][0].select(range(len(self.option_questions)))
        of_pairs = TemperatureScaling().fit(*_as_logits(preferences(few)))
        pairs, questions = self.judged["test"]
        results["test + TS"] = _pair_measures(of_pairs.transform(_as_logits(preferences(pairs))[0]), pairs)
        results["test + TS"] |= _option_measures(scores.questions(questions).recalibrated(temperature))
        return results


def _as_logits(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.log(as_two_options(chosen).clip(1e-6)), np.arange(len(chosen)) % 2


def _pair_measures(probabilities: np.ndarray, pairs: Dataset) -> dict[str, float]:
    """Measures of pairs, as questions of two options."""
    agreement = as_two_options(np.array(pairs[PREFERENCE_COLUMN]))
    report = calibration_report(probabilities, np.arange(len(pairs)) % 2, agreement)
    return {f"pair_{name}": float(value) for name, value in report.items()}


def _option_measures(predictions: OptionPredictions) -> dict[str, float]:
    report = calibration_report(predictions.probabilities, predictions.labels, predictions.target_probabilities)
    return {f"option_{name}": float(value) for name, value in report.items()}
