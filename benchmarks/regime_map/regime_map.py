"""The regime map: accuracy and ECE along a long fine-tuning run, on the questions trained on and on others.

    # the quickstart's world, where the truth is known: CFT and RCFT, trained far too hard
    python benchmarks/regime_map/regime_map.py world --output_dir regime-world

    # SmolLM2 on ARC-Easy (a GPU, or several hours); then smaller, with local files and another weight of EM-ECE
    python benchmarks/regime_map/regime_map.py smollm2 --output_dir regime-smollm2
    python benchmarks/regime_map/regime_map.py smollm2 --output_dir regime-smollm2 \\
        --num_questions 120 300 --lambda_ece 10 --model ./smollm2 \\
        --train arc_easy_train.parquet --test arc_easy_test.parquet

Every few steps the model is asked the training questions and the test questions. A run that was cut off begins again,
one that is done is kept. The training questions are those with a gradient: what RCFT holds out for its E-step is not
measured. Writes map.md, points.json and map.png / .svg; prints, last, one line of JSON: the test ECE of RCFT over that
of CFT at the same accuracy on the training questions.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import yaml
from datasets import concatenate_datasets

from hf_calib import calibration_report, classify_regime, load_questions
from hf_calib.evaluation.tables import write_json
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.paths import recipe_path
from hf_calib.plots.style import BLUE, GREY, STYLE, VERMILLION, add_legend, new_figure, save_figure
from hf_calib.training import quickstart


sys.path.append(str(Path(__file__).parents[1] / "headline"))  # shared with the headline

from headline_stages import train  # noqa: E402


RUNS = ("cft", "rcft")
PARTS = ("train", "test")
MEASURES = ("accuracy", "confidence", "ece", "ece_noise_floor", "tce", "sum_lower_bound", "nll", "regime")
# What makes the recipes of a folder train far too hard, how many questions of each part, and how many measurements.
FAR = {
    "world": ("quickstart", {"learning_rate": 1e-3, "num_train_epochs": 12}, (2000, 4000), 12),
    "smollm2": ("smollm2-135m", {"num_train_epochs": 4, "save_strategy": "no"}, (1000, 2000), 8),
}


def train_far(what: str, name: str, model: str, folder: Path, seed: int, sizes: tuple[int, int], **settings) -> None:
    """Train one recipe, under other settings, on the folder's questions, measuring on the way."""
    out = folder / name
    if (out / "trainer_state.json").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    recipes, far, _, measurements = FAR[what]
    recipe = yaml.safe_load(recipe_path(f"{recipes}/{name}.yaml").read_text())
    for key in ("dataset_config", "limit"):
        recipe.pop(key, None)
    recipe |= {
        **far,
        **settings,
        **({"closing_step": False} if name == "rcft" else {}),
        "model_name_or_path": model,
        "dataset_name": str(folder / "train.parquet"),
        "seed": seed,
    }
    trained = sizes[0] * (1 - recipe.get("em_holdout", 0))
    steps = trained * recipe["num_train_epochs"] / recipe["per_device_train_batch_size"]
    recipe |= {"collapse_dataset_name": str(folder / "asked.parquet"), "collapse_limit": sum(sizes)}
    train({**recipe, "collapse_steps": round(steps / measurements)}, out)


def measure(name: str, folder: Path) -> list[dict]:
    """The points of a run: at each step one on the training questions and one on the test questions."""
    points, held_out = [], folder / name / "held_out" / "predictions.npz"
    unseen = set(OptionPredictions.load(held_out).ids.tolist()) if held_out.exists() else set()
    for file in sorted((folder / name / "collapse").glob("step-*.npz")):
        predictions = OptionPredictions.load(file)
        for part in PARTS:
            asked = [row for row in predictions.ids.tolist() if row.startswith(part) and row not in unseen]
            rows = predictions.select(asked)
            known = {"run": name, "step": int(file.stem.partition("-")[2]), "questions": part}
            regime = classify_regime(*rows.unpadded()).to_dict()
            points.append({**regime, **calibration_report(*rows.unpadded(), n_bootstrap=300), **known})
    return points


def track(points: list[dict], run: str, part: str, measure: str) -> np.ndarray:
    return np.array([point[measure] for point in points if (point["run"], point["questions"]) == (run, part)], float)


def at_same_accuracy(points: list[dict]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Test ECE of each run where its accuracy on the training questions first reaches five values, from the border
    (without a truth, the first measurement) to the most that both runs reach."""
    reached = {run: np.maximum.accumulate(track(points, run, "train", "accuracy")) for run in RUNS}
    border = points[0]["critical_accuracy"] or max(accuracies[0] for accuracies in reached.values())
    accuracies = np.linspace(border, min(accuracies[-1] for accuracies in reached.values()), 6)[1:]
    return accuracies, {run: np.interp(accuracies, reached[run], track(points, run, "test", "ece")) for run in RUNS}


def write_map(folder: Path, title: str, points: list[dict]) -> dict[str, float]:
    """map.md and map.png; returns the ratio of the ECEs by training accuracy."""

    def row(cells) -> str:
        return "| " + " | ".join("–" if c is None else c if isinstance(c, str) else f"{c:.3f}" for c in cells) + " |"

    lines = [f"# {title}", "", row(["run", "step", "questions", "N", *MEASURES]), row(["---"] * (4 + len(MEASURES)))]
    for point in points:
        place = [point["run"], str(point["step"]), point["questions"], f"{point['n']:,.0f}"]
        lines.append(row([*place, *(point.get(measure) for measure in MEASURES)]))
    accuracies, errors = at_same_accuracy(points)
    ratios = errors["rcft"] / errors["cft"]
    lines += [
        "",
        "Test ECE at the same accuracy on the training questions:",
        "",
        row(["training accuracy", *accuracies]),
    ]
    lines += [row(["---"] * 6), *(row([run, *errors[run]]) for run in RUNS), row(["rcft / cft", *ratios])]
    (folder / "map.md").write_text("\n".join(lines) + "\n")
    save_figure(draw(points), folder / "map.png")
    return {f"{accuracy:.3f}": round(float(ratio), 3) for accuracy, ratio in zip(accuracies, ratios, strict=True)}


def draw(points: list[dict]):
    """Accuracy and conf-ECE by step; full lines are the questions trained on."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = new_figure(8, 4)
        left, right = figure.subplots(1, 2)
        for run, colour in zip(RUNS, (VERMILLION, BLUE), strict=True):
            for part, style in zip(PARTS, ("-", "--"), strict=True):
                steps, label = track(points, run, part, "step"), f"{run.upper()}, {part} questions"
                for axes, measure in ((left, "accuracy"), (right, "ece")):
                    axes.plot(
                        steps, track(points, run, part, measure), style, color=colour, marker="o", ms=3, label=label
                    )
        border = points[0]["critical_accuracy"]
        if border is not None:
            left.axhline(border, color=GREY, linewidth=1, label="ACC*, train questions")
            bound = track(points, "cft", "train", "sum_lower_bound")
            label = "least ECE + TCE, CFT, train questions"
            right.plot(track(points, "cft", "train", "step"), bound, ":", color=VERMILLION, label=label)
        left.set(xlabel="optimizer step", ylabel="accuracy")
        right.set(xlabel="optimizer step", ylabel="conf-ECE", ylim=(0, None))
        add_legend(figure, columns=3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=FAR)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--train", default="allenai/ai2_arc:ARC-Easy", help="questions to train on: file or data set")
    parser.add_argument("--test", default="allenai/ai2_arc:ARC-Easy", help="test questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--num_questions", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="2000 4000 (world), 1000 2000 (smollm2)"
    )
    parser.add_argument("--lambda_ece", type=float, help="weight of EM-ECE; by default the recipe's")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    sizes = tuple(args.num_questions or FAR[args.what][2])
    folder, sources = args.output_dir.resolve(), {"train": args.train, "test": args.test}
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Fine-tuning {args.model} far, {args.train}"
    if args.what == "world":
        title = "Fine-tuning the aligned model of the quickstart far"
        if not (folder / "world" / "test.parquet").exists():
            quickstart.make_world(folder / "world", args.seed, sizes[1])
        for stage in quickstart.STAGES[:2]:
            if not (folder / stage.name / "trainer_state.json").exists():
                quickstart.train_stage(stage, folder, args.seed)
        args.model, sources = str(folder / "dpo"), {part: str(folder / "world" / f"{part}.parquet") for part in PARTS}
    if not (folder / "asked.parquet").exists():
        parts = []
        for part, size in zip(PARTS, sizes, strict=True):
            questions = load_questions(sources[part], split=part, limit=size, seed=args.seed, drop_invalid=True)
            ids = [f"{part}-{number}" for number in range(len(questions))]
            parts.append(questions.remove_columns("id").add_column("id", ids))
        parts[0].to_parquet(folder / "train.parquet")
        concatenate_datasets(parts).to_parquet(folder / "asked.parquet")
    points = []
    for name in RUNS:
        settings = {"lambda_ece": args.lambda_ece} if name == "rcft" and args.lambda_ece is not None else {}
        train_far(args.what, name, args.model, folder, args.seed, sizes, **settings)
        points += measure(name, folder)
    write_json(folder / "points.json", points)
    print(json.dumps({"test ECE, RCFT / CFT, by training accuracy": write_map(folder, title, points)}))


if __name__ == "__main__":
    main()
