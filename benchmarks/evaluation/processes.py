"""Questions per second of `evaluate` in one process and in several on one machine.

    python benchmarks/evaluation/processes.py --model ./smollm2 --dataset arc_easy_test.parquet --processes 1 2

Starts itself under `accelerate launch`, one thread a process; model and questions are loaded outside the clock. The
numbers of processes take turns. Prints a line for each run.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time


def work(args: argparse.Namespace) -> None:
    """Score the questions in this process and its siblings, and print the speed."""
    from accelerate.utils import gather_object

    from hf_calib import load_questions, predict_options
    from hf_calib.inference.model_loading import load_model, process_state

    model, tokenizer = load_model(args.model)
    questions = load_questions(args.dataset, limit=args.limit, seed=0)
    settings = {"scoring": args.scoring, "batch_size": args.batch_size, "progress": False}
    state = process_state()
    state.wait_for_everyone()
    start, cpu_start = perf_counter(), process_time()
    predictions = predict_options(model, tokenizer, questions, **settings)
    cpu = sum(gather_object([process_time() - cpu_start]))
    seconds = perf_counter() - start
    if state.is_main_process:
        print(
            f"{state.num_processes} processes: {len(predictions)} questions in {seconds:.1f} s, "
            f"{len(predictions) / seconds:.2f} a second; {cpu / len(predictions):.3f} s of CPU for each",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--scoring", default="letter")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        return work(args)
    config = Path(__file__).parents[2] / "recipes" / "accelerate_configs" / "ddp.yaml"
    for _ in range(args.repeats):
        for count in args.processes:
            launch = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "0"]
            launch += ["--num_processes", str(count)]
            command = [sys.executable, *launch, *sys.argv]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
