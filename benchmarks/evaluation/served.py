"""Letters scored by llama.cpp's server beside transformers on the same weights.

    python benchmarks/evaluation/served.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --questions arc_easy_test.parquet mmlu_test.parquet --limit 50

The weights of the GGUF file are dequantised for transformers (float32). llama.cpp serves them twice: as they are, with
its 4-bit kernels, which round activations to 8 bits, and dequantised to float32, where every difference is one of the
requests. Needs xllamacpp and gguf. Prints a row for each file and server.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_calib import (
    OptionPredictions,
    PromptFormat,
    ServedModel,
    ServedOptions,
    calibration_report,
    load_questions,
    predict_options,
    predict_served_options,
)


def dequantise(source: Path, target: Path) -> None:
    """Write a GGUF file with all weights in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    skipped = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in skipped:
            kind, array = field.types[0], field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if array else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(tensor.shape.tolist()[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def serving(path: Path, *options: str):
    """Address of a server of this file."""
    script = Path(__file__).parent / "llama_server.py"
    command = [sys.executable, str(script), str(path), "model", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield next(f"{line.split()[-1]}/v1" for line in process.stdout if line.startswith("listening on "))
        finally:
            process.kill()


def compared(here: OptionPredictions, there: OptionPredictions) -> str:
    """Differences and measures of two predictions for the same questions, as a row of a table."""
    finite = np.isfinite(here.option_logits)
    logits = np.abs(there.option_logits[finite] - here.option_logits[finite])
    probabilities = np.abs(there.probabilities - here.probabilities)[finite]
    same = (there.probabilities.argmax(1) == here.probabilities.argmax(1)).mean()
    cells = [f"{logits.mean():.4f} / {logits.max():.4f}", f"{probabilities.mean():.4f} / {probabilities.max():.4f}"]
    cells.append(f"{same:.0%}")
    reports = [calibration_report(each.probabilities, each.labels, n_bootstrap=200) for each in (here, there)]
    for name in ("accuracy", "confidence", "ece", "nll"):
        cells.append(" / ".join(f"{report[name]:.3f}" for report in reports))
    cells.append(f"{here.option_mass.mean():.3f} / {there.option_mass.mean():.3f}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--questions", nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=50)
    args = parser.parse_args()

    torch.set_num_threads(1)
    source = {"gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(args.gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(args.gguf.parent, dtype=torch.float32, **source)
    files = {
        Path(name).stem: load_questions(name, limit=args.limit, seed=0, drop_invalid=True) for name in args.questions
    }
    # servers begin the assistant's turn themselves
    in_one_turn = {"prompt_format": PromptFormat(prompt_template="{question}\n{options}\nAnswer:"), "progress": False}
    local = {name: predict_options(model, tokenizer, each, **in_one_turn) for name, each in files.items()}
    print(
        "transformers / llama.cpp: file | weights | prompt | log-likelihood, mean / largest difference | "
        "probability | same answer | accuracy | confidence | conf-ECE | NLL | option mass"
    )
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "exact.gguf"
        dequantise(args.gguf, exact)
        for weights, path, options in (("quantised", args.gguf, ()), ("float32", exact, ("exact",))):
            with serving(path, *options) as url:
                served = ServedModel(url, "model", ServedOptions(concurrency=2))
                for name, questions in files.items():
                    for prompt, given in (("chat", None), ("token ids", tokenizer)):
                        found = predict_served_options(served, questions, given, **in_one_turn)
                        print(f"{name} | {weights} | {prompt} | {compared(local[name], found)}", flush=True)


if __name__ == "__main__":
    main()
