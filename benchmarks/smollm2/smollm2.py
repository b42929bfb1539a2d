"""SmolLM2-135M-Instruct on ARC-Easy: as it is, temperature scaling, TS-IR, CFT and RCFT on the same labels.

    python benchmarks/smollm2/smollm2.py --scoring text --output_dir smollm2-text
    python benchmarks/smollm2/smollm2.py --scoring letter --output_dir smollm2-letter

    # with a local model folder and local parquet files
    python benchmarks/smollm2/smollm2.py --scoring text --output_dir smollm2-text --model ./smollm2 \\
        --train arc_easy_train.parquet --test arc_easy_test.parquet

Everything goes through the recipes of recipes/smollm2-135m and is kept: a run that was cut off goes on where it
stopped. Writes report.md, results.json and the reliability diagrams; prints a table and, last, one line of JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

from hf_calib import load_questions, predict_options
from hf_calib.data.questions import PromptFormat
from hf_calib.evaluation.tables import evaluation_results, print_table, write_stage_report
from hf_calib.inference.model_loading import load_model
from hf_calib.paths import recipe_path
from hf_calib.posthoc import TemperatureIsotonic, TemperatureScaling


RECIPES = {"text": ("cft", "rcft"), "letter": ("letter_cft", "letter_rcft")}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scoring", choices=RECIPES, default="text")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--train", default="allenai/ai2_arc", help="training questions: file or data set (ARC-Easy)")
    parser.add_argument("--test", default="allenai/ai2_arc", help="test questions")
    parser.add_argument("--num_test_questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="draws the training questions, and seeds the training")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load(recipe_path(f"smollm2-135m/{RECIPES[args.scoring][1]}.yaml").read_text())

    def questions(name: str, split: str, limit: int, seed: int):
        config = None if Path(name).suffix else recipe["dataset_config"]
        return load_questions(name, config, split, limit=limit, seed=seed)

    test = questions(args.test, "test", args.num_test_questions, seed=0)
    train = questions(args.train, "train", recipe["limit"], args.seed)

    def predict(folder: str, asked, option_normalization: str, name: str):
        model, tokenizer = load_model(folder, dtype="float32")
        return predict_options(
            model,
            tokenizer,
            asked,
            prompt_format=PromptFormat(args.scoring, use_chat_template=recipe["use_chat_template"]),
            option_normalization=option_normalization,
            output_path=args.output_dir / f"{name}.npz",
        )

    option_normalization = recipe.get("option_normalization", "sum")
    predictions = {}
    # The baselines may ask either way; what is trained is asked as it was trained.
    for asked_by in dict.fromkeys(("sum", option_normalization)):
        note = f" ({asked_by})" if option_normalization != "sum" else ""
        as_it_is = predict(args.model, test, asked_by, f"as-it-is-{asked_by}")
        labelled = predict(args.model, train, asked_by, f"train-{asked_by}")
        predictions[f"as it is{note}"] = as_it_is
        for name, calibrator in {"TS": TemperatureScaling(), "TS-IR": TemperatureIsotonic()}.items():
            fitted = calibrator.fit(labelled.option_logits, labelled.labels)
            predictions[f"{name}{note}"] = as_it_is.recalibrated(fitted)
    for name in RECIPES[args.scoring]:
        folder = args.output_dir / name
        if not (folder / "trainer_state.json").exists():
            command = [sys.executable, "-m", "accelerate.commands.launch"]
            command += ["--config_file", str(recipe_path("accelerate_configs/cpu.yaml")), str(recipe_path("train.py"))]
            command += ["--config", str(recipe_path(f"smollm2-135m/{name}.yaml")), "--model_name_or_path", args.model]
            command += ["--dataset_name", args.train, "--seed", str(args.seed), "--output_dir", str(folder)]
            subprocess.run(command, check=True)
        row = name.removeprefix("letter_").upper()
        predictions[row] = predict(str(folder), test, option_normalization, name)

    stages = [{"stage": name, **evaluation_results(p)} for name, p in predictions.items()]
    title = f"SmolLM2-135M-Instruct on ARC-Easy, {args.scoring} mode"
    notes = (
        f"{len(test)} test questions; {len(train)} labelled training questions (seed {args.seed}) for every method: "
        f"RCFT holds {recipe['em_holdout']:.0%} of them out for its E-step."
    )
    write_stage_report(args.output_dir, stages, predictions, title, notes)
    print_table(stages, title)
    print(json.dumps({f"{stage['stage']} ece": round(stage["ece"], 4) for stage in stages}))


if __name__ == "__main__":
    main()
