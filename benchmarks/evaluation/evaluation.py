"""Speed of the evaluation beside lm-evaluation-harness, and whether the two agree.

    python benchmarks/evaluation/evaluation.py --arc arc_easy_test.parquet --mmlu mmlu_test.parquet
    python benchmarks/evaluation/evaluation.py --model ./smollm2 \\
        --arc arc_easy_test.parquet --mmlu mmlu_test.parquet --peer_python ~/lm-eval/bin/python

lm-evaluation-harness runs in a virtual environment of its own, made on the first call (or given by `--peer_python`),
with the same torch and transformers. It gets the very prompts and options that `predict_options` writes, as a task of
the kind `multiple_choice`. Both load the model once, outside the clock, in float32 on the CPU with the same number of
threads, and both take the batch size at which they were fastest on a few of the questions. Then they take turns on
chunks of the questions, whoever is first changing each time; the ratio is the median over chunks, with a 95% bootstrap
interval. Prints a table and, last, one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
import yaml
from datasets import Dataset
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from hf_calib import load_questions, predict_options
from hf_calib.data.questions import PromptFormat
from hf_calib.inference.model_loading import load_model


LM_EVAL = "lm_eval[hf]==0.4.13"
VENV = Path(__file__).parents[2] / ".venv-lm-eval"

# A difference of two float32 forward passes that batch and pad differently, in nats of an option's log-likelihood.
NOISE = 2e-3


def write_task(
    questions: Dataset, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, folder: Path, name: str
) -> Path:
    """The questions as a task of lm-evaluation-harness: prompts and options letter by letter as we write them."""
    rows = []
    for row in questions:
        prompt, candidates, _ = prompt_format.render(tokenizer, row["question"], row["choices"], row.get("subject"))
        rows.append({"prompt": prompt, "candidates": candidates, "answer": row["answer"]})
    data = folder / f"{name}.parquet"
    Dataset.from_list(rows).to_parquet(data)
    task = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        # Names of columns, which are taken as they stand: nothing is rendered, nothing put in between.
        "doc_to_text": "prompt",
        "doc_to_choice": "candidates",
        "doc_to_target": "answer",
        "target_delimiter": "",
        # The sum of an option's token log-likelihoods decides.
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task, sort_keys=False))
    return path


def make_venv(folder: Path) -> Path:
    """Python of an environment that holds lm-evaluation-harness, made on the first call."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making {folder} with {LM_EVAL}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        # torch goes in first and alone, so that no other requirement fetches another build.
        for packages in ([f"torch=={version('torch')}"], [LM_EVAL, f"transformers=={version('transformers')}"]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "ready").touch()
    return python


class Peer:
    """lm-evaluation-harness in its own process, with the model loaded; it sleeps while it is not asked."""

    def __init__(self, python: Path, model: str, num_threads: int, folder: Path):
        self.log = folder / "peer.log"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(num_threads),
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "TQDM_DISABLE": "1",
        }
        command = [python, Path(__file__).with_name("evaluation_peer.py"), model, str(num_threads)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self._answer()

    def __call__(self, task: Path, batch_size: int) -> dict:
        print(json.dumps({"task": str(task), "batch_size": batch_size}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"lm-evaluation-harness ended with status {self.process.wait()}:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Contest:
    """One way of asking one set of questions, by both."""

    def __init__(self, name, loaded: tuple, peer: Peer, questions: Dataset, prompt_format: PromptFormat, folder):
        self.name, (self.model, self.tokenizer), self.peer = name, loaded, peer
        self.questions, self.folder = questions, folder
        self.prompt_format = prompt_format

    def ours(self, questions: Dataset, batch_size: int) -> dict:
        wall, cpu = perf_counter(), process_time()
        predictions = predict_options(
            self.model,
            self.tokenizer,
            questions,
            prompt_format=self.prompt_format,
            batch_size=batch_size,
            progress=False,
        )
        seconds, cpu_seconds = perf_counter() - wall, process_time() - cpu
        scores = [row[np.isfinite(row)].tolist() for row in predictions.option_logits]
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "scores": scores}

    def theirs(self, questions: Dataset, batch_size: int, name: str) -> dict:
        task = write_task(questions, self.tokenizer, self.prompt_format, self.folder, f"{self.name}_{name}")
        return self.peer(task, batch_size)

    def tune(self, num_questions: int, batch_sizes: list[int]) -> dict[str, int]:
        """The fastest batch size of each, on some of the questions, in turns."""
        sample = self.questions.select(range(min(num_questions, len(self.questions))))
        # Whatever is done once in a process is done before.
        warm = self.questions.select(range(4))
        self.ours(warm, 4), self.theirs(warm, 4, "warm")
        times = {"ours": {}, "theirs": {}}
        for size in batch_sizes:
            times["ours"][size] = self.ours(sample, size)["seconds"]
            times["theirs"][size] = self.theirs(sample, size, "tune")["seconds"]
        for side, seconds in times.items():
            rates = ", ".join(f"{size}: {len(sample) / s:.2f}" for size, s in seconds.items())
            print(f"{self.name}, {side}, questions a second by batch size: {rates}")
        return {side: min(seconds, key=seconds.get) for side, seconds in times.items()}

    def race(self, batch_sizes: dict[str, int], chunk: int, repeats: int) -> dict[str, list[dict]]:
        """What each did on every chunk, in turns."""
        runs = {"ours": [], "theirs": []}
        starts = list(range(0, len(self.questions), chunk)) * repeats
        for turn, start in enumerate(starts):
            part = self.questions.select(range(start, min(start + chunk, len(self.questions))))
            for side in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
                if side == "ours":
                    run = self.ours(part, batch_sizes["ours"])
                else:
                    run = self.theirs(part, batch_sizes["theirs"], str(start))
                runs[side].append({**run, "answers": part["answer"][:]})
            print(
                f"{self.name} {turn + 1}/{len(starts)}: ours {runs['ours'][-1]['seconds']:.1f} s, "
                f"theirs {runs['theirs'][-1]['seconds']:.1f} s",
                file=sys.stderr,
            )
        return runs


def compare(runs: dict[str, list[dict]], num_questions: int) -> dict[str, float]:
    """Speed of both, the ratio with its interval, and how far they agree."""
    ours, theirs = (np.array([run["seconds"] for run in runs[side]]) for side in ("ours", "theirs"))
    cpu_ours, cpu_theirs = (np.array([run["cpu_seconds"] for run in runs[side]]) for side in ("ours", "theirs"))
    count = sum(len(run["scores"]) for run in runs["ours"])
    ratios = theirs / ours
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    figures = {
        "speed_ratio": np.median(ratios),
        "speed_ratio_low": low,
        "speed_ratio_high": high,
        "speed_ratio_of_totals": theirs.sum() / ours.sum(),
        "cpu_ratio": np.median(cpu_theirs / cpu_ours),
        "questions_per_second": count / ours.sum(),
        "peer_questions_per_second": count / theirs.sum(),
    }
    scores = {side: [row for run in runs[side] for row in run["scores"]][:num_questions] for side in runs}
    answers = [answer for run in runs["ours"] for answer in run["answers"]][:num_questions]
    return figures | agreement(scores["ours"], scores["theirs"], answers)


def agreement(ours: list[list[float]], theirs: list[list[float]], answers: list[int]) -> dict[str, float]:
    """
    Predictions of both, question by question. Scores count up to a constant of the question: what all options share,
    such as the white space before them, may be counted in or out. Predictions that differ although the two options lie
    further apart than noise are counted.
    """
    same, beyond, largest, right = 0, 0, 0.0, {"ours": 0, "theirs": 0}
    for left, right_scores, answer in zip(ours, theirs, answers, strict=True):
        a, b = np.array(left) - np.mean(left), np.array(right_scores) - np.mean(right_scores)
        largest = max(largest, np.abs(a - b).max())
        same += a.argmax() == b.argmax()
        beyond += max(a.max() - a[b.argmax()], b.max() - b[a.argmax()]) > NOISE
        right["ours"] += a.argmax() == answer
        right["theirs"] += b.argmax() == answer
    count = len(answers)
    return {
        "agreement": same / count,
        "differ_beyond_noise": beyond,
        "largest_difference": largest,
        "accuracy": right["ours"] / count,
        "peer_accuracy": right["theirs"] / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--arc", default="allenai/ai2_arc:ARC-Easy", help="ARC-Easy questions: file or data set")
    parser.add_argument("--mmlu", default="cais/mmlu:all", help="MMLU questions: file or data set")
    parser.add_argument("--num_arc", type=int, default=500)
    parser.add_argument("--num_mmlu", type=int, default=300)
    parser.add_argument("--contests", nargs="+", choices=("text", "mmlu_text", "letter"), default=None)
    parser.add_argument(
        "--plain", action="store_true", help="questions without the chat template (default: with it, if there is one)"
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--num_tuning", type=int, default=50, help="questions on which batch sizes are tried")
    parser.add_argument("--chunk", type=int, default=100, help="questions a turn")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--peer_python", type=Path, help="Python that has lm_eval 0.4.13 (default: one is made)")
    args = parser.parse_args()

    torch.set_num_threads(args.num_threads)
    python = args.peer_python or make_venv(VENV)
    arc = load_questions(args.arc, split="test", limit=args.num_arc, seed=0, drop_invalid=True)
    mmlu = load_questions(args.mmlu, split="test", limit=args.num_mmlu, seed=0, drop_invalid=True)
    loaded = load_model(args.model, dtype="float32")
    asked = {"text": (arc, "text"), "mmlu_text": (mmlu, "text"), "letter": (arc, "letter")}
    table = Table(
        "", "N", "batch size", "questions / s", "theirs", "ratio [95%]", "CPU time", "same prediction", "beyond noise",
        "accuracy", "theirs", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    line: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(python, args.model, args.num_threads, Path(folder))
        for name in args.contests or asked:
            questions, scoring = asked[name]
            prompt_format = PromptFormat(scoring, use_chat_template=False if args.plain else None)
            contest = Contest(name, loaded, peer, questions, prompt_format, Path(folder))
            sizes = contest.tune(args.num_tuning, args.batch_sizes)
            figures = compare(contest.race(sizes, args.chunk, args.repeats), len(questions))
            table.add_row(
                name,
                str(len(questions)),
                f"{sizes['ours']} / {sizes['theirs']}",
                f"{figures['questions_per_second']:.2f}",
                f"{figures['peer_questions_per_second']:.2f}",
                f"{figures['speed_ratio']:.2f} [{figures['speed_ratio_low']:.2f}, {figures['speed_ratio_high']:.2f}]",
                f"{figures['cpu_ratio']:.2f}",
                f"{figures['agreement']:.1%}",
                str(figures["differ_beyond_noise"]),
                f"{figures['accuracy']:.3f}",
                f"{figures['peer_accuracy']:.3f}",
            )
            line |= {f"{name}_{key}": round(float(value), 4) for key, value in figures.items()}
        peer.close()
    Console(width=160).print(table)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
