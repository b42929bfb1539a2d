"""Time and memory of `hf-calib measure` on large files of each format.

    python benchmarks/measure/measure.py
    python benchmarks/measure/measure.py --rows 1000000 --formats csv lm_eval

Writes files of overconfident predictions with four options to a temporary folder, and measures each in a process of
its own, with results, predictions and diagram. Prints a table and, last, one line of JSON: seconds, processor seconds
and peak megabytes of each format.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table


TEXTS = ["the first of them", "the second", "neither of the two", "both"]


def make(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with six digits, and labels that softer ones draw."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(rows, 4))
    target, stated = (np.exp(scale * logits) for scale in (1, 1.5))
    target, stated = (each / each.sum(axis=1, keepdims=True) for each in (target, stated))
    return stated.round(6), (target.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)


def write_csv(path: Path, probabilities: np.ndarray, labels: np.ndarray) -> None:
    with open(path, "w") as file:
        file.write("id,p_0,p_1,p_2,p_3,label\n")
        for row, (options, label) in enumerate(zip(probabilities.tolist(), labels.tolist(), strict=True)):
            file.write(f"q{row},{','.join(map(str, options))},{label}\n")


def write_confidences(path: Path, probabilities: np.ndarray, labels: np.ndarray) -> None:
    correct = probabilities.argmax(axis=1) == labels
    with open(path, "w") as file:
        file.write("id,confidence,correct\n")
        for row, (confidence, right) in enumerate(zip(probabilities.max(axis=1).tolist(), correct, strict=True)):
            file.write(f"q{row},{confidence},{int(right)}\n")


def write_parquet(path: Path, probabilities: np.ndarray, labels: np.ndarray) -> None:
    ids = [f"q{row}" for row in range(len(labels))]
    pq.write_table(pa.table({"id": ids, "probabilities": probabilities.tolist(), "label": labels}), path)


def write_lines(path: Path, rows: Iterator[dict]) -> None:
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def json_rows(probabilities: np.ndarray, labels: np.ndarray) -> Iterator[dict]:
    for row, (options, label) in enumerate(zip(probabilities.tolist(), labels.tolist(), strict=True)):
        yield {"id": f"q{row}", "probabilities": options, "label": label}


def lm_eval_rows(probabilities: np.ndarray, labels: np.ndarray) -> Iterator[dict]:
    """Samples with prompts of about 100 characters, 1.4 kB each."""
    for row, label in enumerate(labels.tolist()):
        question = f"Question number {row}: which of these is right, and why would anybody say so?\nAnswer:"
        responses = [[str(value), "False"] for value in np.log(probabilities[row] + 1e-6).tolist()]
        yield {
            "doc_id": row,
            "doc": {"question": question, "choices": TEXTS, "answer": label},
            "target": str(label),
            "arguments": {f"gen_args_{k}": {"arg_0": question, "arg_1": f" {TEXTS[k]}"} for k in range(4)},
            "resps": [[response] for response in responses],
            "filtered_resps": responses,
            "filter": "none",
            "metrics": ["acc"],
            "acc": float(probabilities[row].argmax() == label),
        }


def chat_rows(probabilities: np.ndarray, labels: np.ndarray) -> Iterator[dict]:
    """Batch output with the five likeliest tokens; the right option is in each line."""
    logprobs = np.log(0.99 * probabilities + 1e-6)
    for row, options in enumerate(logprobs.tolist()):
        top = [
            {"token": letter, "logprob": value, "bytes": [65]} for letter, value in zip("ABCD", options, strict=True)
        ]
        top = [*sorted(top, key=lambda each: -each["logprob"]), {"token": " The", "logprob": -7.0, "bytes": [32]}]
        choice = {
            "index": 0,
            "message": {"role": "assistant"},
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        body = {"object": "chat.completion", "model": "m", "choices": [choice]}
        response = {"status_code": 200, "body": body}
        yield {"custom_id": f"q{row}", "response": response, "error": None, "label": "ABCD"[labels[row]]}


def _lines(rows: Callable) -> Callable[[Path, np.ndarray, np.ndarray], None]:
    return lambda path, probabilities, labels: write_lines(path, rows(probabilities, labels))


# Writer, ending and further arguments of each format.
FORMATS = {
    "csv": (write_csv, ".csv", []),
    "confidences": (write_confidences, ".csv", []),
    "parquet": (write_parquet, ".parquet", []),
    "jsonl": (_lines(json_rows), ".jsonl", []),
    "lm_eval": (_lines(lm_eval_rows), ".jsonl", []),
    "chat_completions": (_lines(chat_rows), ".jsonl", ["--num_options", "4"]),
}


# The peak is that of the process's own memory; resource usage would count that of this one before the start.
_CODE = """
import re, sys, time
from hf_calib.cli.main import main
status = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(status, time.process_time(), int(peak) / 1024)
"""


def run(path: Path, arguments: list[str]) -> dict[str, float]:
    """Measure a file in a process of its own."""
    command = [sys.executable, "-c", _CODE, "measure", str(path), "--output_dir", f"{path}.out", *arguments]
    start = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = perf_counter() - start
    status, processor_seconds, peak = done.stdout.split()[-3:]
    if status != "0":
        raise SystemExit(f"{path.name}: {done.stderr}")
    return {"seconds": seconds, "processor_seconds": float(processor_seconds), "peak_mb": float(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each file")
    parser.add_argument(
        "--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS), help="formats to measure"
    )
    args = parser.parse_args()
    probabilities, labels = make(args.rows)
    table = Table("format", "rows", "file, MB", "seconds", "processor seconds", "peak, MB", box=box.SIMPLE_HEAD)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.formats:
            write, ending, arguments = FORMATS[name]
            path = Path(folder) / f"{name}{ending}"
            write(path, probabilities, labels)
            figures[name] = found = run(path, arguments)
            size = path.stat().st_size / 1e6
            path.unlink()
            shown = (f"{found[key]:.1f}" for key in ("seconds", "processor_seconds"))
            table.add_row(name, f"{args.rows:,}", f"{size:,.0f}", *shown, f"{found['peak_mb']:.0f}")
    Console(width=110).print(table)
    rounded = {name: {key: round(value, 1) for key, value in each.items()} for name, each in figures.items()}
    print(json.dumps({"rows": args.rows, **rounded}))


if __name__ == "__main__":
    main()
