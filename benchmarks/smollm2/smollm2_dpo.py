"""DPO of SmolLM2-135M-Instruct on real questions: plain, calibrated, and the baselines, on the same labels.

    python benchmarks/smollm2/smollm2_dpo.py --seeds 0 1 2 --output_dir smollm2-dpo

    # with a local model folder and local parquet files
    python benchmarks/smollm2/smollm2_dpo.py --seeds 0 --output_dir smollm2-dpo --model ./smollm2 \\
        --train arc_easy_train.parquet arc_challenge_train.parquet openbookqa_train.parquet \\
        --test arc_easy_test.parquet

    # settings are tried on other questions of the training split; the test questions are for the figures alone
    python benchmarks/smollm2/smollm2_dpo.py --evaluate_on validation --only DPO "calibrated DPO" --output_dir tried

The recipes are those of recipes/smollm2-135m: the pairs (right answer, distractor) are made of `--num_train`
questions, and calibrated DPO has these questions and no more: a part of them is its E-step set. Other questions make
the held-out pairs. Every seed draws its own questions of each kind. All is kept: a run that was cut off goes on where
it stopped. Writes report.md and results.json; prints tables and, last, one line of JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, concatenate_datasets

from hf_calib import calibration_report, load_questions, predict_options
from hf_calib.cli.main import main as hf_calib
from hf_calib.data.preference_pairs import pairs_from_questions
from hf_calib.data.questions import PromptFormat, split_questions
from hf_calib.evaluation.tables import write_json
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.preference_scores import completion_lengths, preference_probabilities, score_pairs
from hf_calib.paths import recipe_path
from hf_calib.trainers.preference import as_two_options


BENCHMARKS = Path(__file__).parents[1]
sys.path += [str(BENCHMARKS / "headline"), str(BENCHMARKS / "rivals")]

from headline_cells import mean_and_interval  # noqa: E402
from headline_report import markdown, print_rows  # noqa: E402
from rival_trainers import register_rivals  # noqa: E402


RIVAL = {"trainer": "rival_dpo"}
# Recipe of each method, and what it changes there.
METHODS = {
    "DPO": ("dpo", {}),
    "calibrated DPO": ("dpo_calibrated", {}),
    "cDPO": ("dpo", {**RIVAL, "cdpo_smoothing": 0.1}),
    "robust DPO": ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    "IPO": ("dpo", {"loss_type": "ipo"}),
    "CATTO term": ("dpo", {**RIVAL, "catto_weight": 1.0}),
    "entropy bonus": ("dpo", {**RIVAL, "entropy_weight": 0.1}),
}
BASE = "before"
COLUMNS = ["id", "question", "choices", "answer"]
PROMPT_FORMAT = PromptFormat("text", use_chat_template=False)

MEASURES = {
    "ranking_accuracy": "ranking", "pair_accuracy": "pair accuracy", "pair_ece": "pair-ECE",
    "accuracy": "accuracy", "confidence": "confidence", "ece": "conf-ECE", "debiased_ece": "debiased", "nll": "NLL",
}  # fmt: skip


def make_data(args: argparse.Namespace, seed: int, folder: Path) -> tuple[Dataset, Dataset]:
    """Write the training questions of a seed; returns those of the held-out pairs, and those to evaluate on."""
    known = concatenate_datasets(
        [load_questions(name, split="train", drop_invalid=True).select_columns(COLUMNS) for name in args.train]
    )
    sizes = {"train": args.num_train, "calibration": args.num_pairs, "test": args.num_questions}
    parts = split_questions(known, **sizes, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts["train"].to_parquet(folder / "train.parquet")
    if args.evaluate_on == "validation":
        return parts["calibration"], parts["test"]
    test = [load_questions(name, split="test", drop_invalid=True).select_columns(COLUMNS) for name in args.test]
    test = concatenate_datasets(test).shuffle(seed=seed)
    return parts["calibration"], test.select(range(min(args.num_questions, len(test))))


def beta_of(method: str, args: argparse.Namespace) -> float:
    """That of the method's recipe, or the one asked for."""
    return args.beta or yaml.safe_load(recipe_path(f"smollm2-135m/{METHODS[method][0]}.yaml").read_text())["beta"]


def train(method: str, args: argparse.Namespace, seed: int, folder: Path) -> None:
    recipe, changes = METHODS[method]
    data, count = str(folder.parent / "train.parquet"), str(args.num_train)
    call = ["train", "--config", str(recipe_path(f"smollm2-135m/{recipe}.yaml")), "--model_name_or_path", args.model]
    call += ["--dataset_name", data, "--limit", count, "--seed", str(seed), "--output_dir", str(folder)]
    call += ["--beta", str(beta_of(method, args))]
    if recipe == "dpo_calibrated":
        call += ["--option_dataset_name", data, "--option_limit", count]
    for name, value in changes.items():
        call += [f"--{name}", str(value)]
    if status := hf_calib([*call, *args.change]):
        raise SystemExit(status)


def measure(
    model: str,
    folder: Path,
    pairs: Dataset,
    questions: Dataset,
    reference: np.ndarray | None = None,
    beta: float = 1.0,
    loss: dict | None = None,
) -> dict:
    """
    Measure a model: `pair_...` are the measures of the pairs, with the link of its training's `loss` (its `loss_type`
    and `label_smoothing`), and `scores` the log-likelihoods of both completions of each pair.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loaded, tokenizer = load_model(model, dtype="float32")
    predictions = predict_options(
        loaded,
        tokenizer,
        questions,
        prompt_format=PROMPT_FORMAT,
        option_normalization="mean",
        output_path=folder / "predictions.npz",
    )
    scores = score_pairs(loaded, tokenizer, pairs)
    report = calibration_report(predictions.probabilities, predictions.labels)
    # How often the model itself, beside no reference, gives the chosen completion the higher likelihood.
    report["ranking_accuracy"] = float((scores[:, 0] > scores[:, 1]).mean())
    if reference is not None:
        lengths = completion_lengths(tokenizer, pairs)
        chosen = preference_probabilities(scores, reference, beta, **(loss or {}), lengths=lengths)
        paired = calibration_report(as_two_options(chosen), np.arange(len(chosen)) % 2)
        report |= {f"pair_{name}": value for name, value in paired.items()}
    return {**report, "scores": scores.tolist()}


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, dict]:
    """All methods of a seed, by name."""
    folder = args.output_dir / f"seed-{seed}"
    held_out, questions = make_data(args, seed, folder)
    results = {}
    for method in (BASE, *args.only):
        place = folder / method.replace(" ", "-")
        done = place / "measured.json"
        if not done.exists():
            start = time.perf_counter()
            if method == BASE:
                pairs = pairs_from_questions(held_out, load_model(args.model)[1], PROMPT_FORMAT, seed)
                pairs.to_parquet(folder / "pairs.parquet")
            elif not (place / "trainer_state.json").exists():
                train(method, args, seed, place)
            seconds = time.perf_counter() - start
            pairs = Dataset.from_parquet(str(folder / "pairs.parquet"))
            if method == BASE:
                measured = measure(args.model, place, pairs, questions)
            else:
                changes = METHODS[method][1]
                loss = {name: changes[name] for name in ("loss_type", "label_smoothing") if name in changes}
                if smoothing := changes.get("cdpo_smoothing"):
                    loss = {"loss_type": "cdpo", "label_smoothing": smoothing}
                reference = np.array(results[BASE]["scores"])
                measured = measure(str(place), place, pairs, questions, reference, beta_of(method, args), loss)
            write_json(
                done, {**measured, "train_seconds": round(seconds), "seconds": round(time.perf_counter() - start)}
            )
        results[method] = json.loads(done.read_text())
    return results


def cell(values: list[float], sign: str = "") -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}.3f}" + (f" ± {half:.3f}" if np.isfinite(half) else "")


def tables(runs: dict[int, dict]) -> dict[str, list[list[str]]]:
    """The tables of the report by title, each with its heading row first."""
    methods = list(next(iter(runs.values())))
    means = [["method", *MEASURES.values()]]
    changes = [["less plain DPO", *MEASURES.values()]]
    seeds = [["method", "seed", "pair-ECE [95%]", "noise floor", "conf-ECE [95%]", "noise floor", "training"]]
    for method in methods:
        values = {name: [run[method].get(name, np.nan) for run in runs.values()] for name in MEASURES}
        means.append([method, *(cell(v) for v in values.values())])
        if method not in (BASE, "DPO") and "DPO" in methods:
            gaps = [np.subtract(v, [run["DPO"][name] for run in runs.values()]) for name, v in values.items()]
            changes.append([method, *(cell(gap, "+") for gap in gaps)])
        for seed, run in runs.items():
            row = [method, str(seed)]
            for kind in ("pair_", ""):
                figures = [
                    run[method].get(kind + name, np.nan) for name in ("ece", "ece_low", "ece_high", "ece_noise_floor")
                ]
                row += ["{:.3f} [{:.3f}, {:.3f}]".format(*figures), f"{figures[3]:.3f}"]
            seeds.append([*row, f"{run[method]['train_seconds']} s"])
    found = {"Mean over the seeds": means, "Paired differences": changes, "Each seed": seeds}
    return {title: rows for title, rows in found.items() if len(rows) > 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument(
        "--train",
        nargs="+",
        default=["allenai/ai2_arc:ARC-Easy", "allenai/ai2_arc:ARC-Challenge", "allenai/openbookqa:main"],
        help="questions for the training and held-out pairs: files or data sets",
    )
    parser.add_argument("--test", nargs="+", default=["allenai/ai2_arc:ARC-Easy"], help="test questions")
    parser.add_argument("--beta", type=float, help="for all methods (default: the recipe's)")
    parser.add_argument("--num_train", type=int, default=160, help="training questions")
    parser.add_argument("--num_pairs", type=int, default=150, help="held-out pairs")
    parser.add_argument("--num_questions", type=int, default=200, help="questions to evaluate on")
    parser.add_argument("--evaluate_on", choices=["test", "validation"], default="test")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--output_dir", type=Path, required=True)
    register_rivals()
    args, args.change = parser.parse_known_args()  # what is left goes to every recipe

    # What is there already goes into the report as it is: it must have been made in the same way.
    settings = {name: value for name, value in vars(args).items() if name not in ("seeds", "only", "output_dir")}
    made_by = args.output_dir / "settings.json"
    if made_by.exists() and (other := json.loads(made_by.read_text())) != settings:
        changed = ", ".join(f"{name}: {other.get(name)}" for name in settings if other.get(name) != settings[name])
        parser.error(f"{args.output_dir} holds a run with {changed}; name another --output_dir")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(made_by, settings)

    runs = {seed: run_seed(args, seed) for seed in args.seeds}
    found = tables(runs)
    notes = (
        f"SmolLM2-135M-Instruct; {args.num_train} training questions, {args.num_pairs} held-out pairs and "
        f"{args.num_questions} {args.evaluate_on} questions for each of {len(runs)} seeds. ± is half a 95% t interval "
        "over the seeds; the intervals of single seeds are those of their questions. "
        "A preference is read from the margin by the link of the method's loss."
    )
    lines = ["# DPO and its calibration on real questions", notes]
    for title, rows in found.items():
        print_rows(title, rows)
        lines += [f"## {title}", markdown(rows)]
    (args.output_dir / "report.md").write_text("\n\n".join(lines) + "\n")
    figures = {}
    for method in (BASE, *args.only):
        names = [name for name in MEASURES if method != BASE or not name.startswith("pair_")]
        figures[method] = {name: [round(run[method][name], 4) for run in runs.values()] for name in names}
    write_json(args.output_dir / "results.json", {"seeds": args.seeds, **figures})
    means = {
        f"{method} {name}": round(float(np.mean(v)), 4) for method, row in figures.items() for name, v in row.items()
    }
    print(json.dumps(means))


if __name__ == "__main__":
    main()
