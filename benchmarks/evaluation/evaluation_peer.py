"""lm-evaluation-harness in its own environment, driven line by line by evaluation.py.

It loads the model once. A line of JSON names a task file and a batch size; the answer, a line too, holds the seconds
that `lm_eval.evaluate` took (of the wall and of the process) and the log-likelihood of every option of every question.
"""

import json
import os
import sys
from time import perf_counter, process_time

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main() -> None:
    model, num_threads = sys.argv[1], int(sys.argv[2])
    # What the library prints goes with the errors: the answers have standard output for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(num_threads)
    lm = HFLM(pretrained=model, dtype="float32", device="cpu")
    tasks = TaskManager(include_defaults=False)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        task = tasks.load(request["task"])
        lm.batch_size_per_gpu = request["batch_size"]
        wall, cpu = perf_counter(), process_time()
        results = evaluate(lm, task, bootstrap_iters=0)
        seconds, cpu_seconds = perf_counter() - wall, process_time() - cpu
        (samples,) = results["samples"].values()
        answer = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "scores": [[score for score, _ in sample["filtered_resps"]] for sample in samples],
            "accuracy": sum(sample["acc"] for sample in samples) / len(samples),
        }
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
