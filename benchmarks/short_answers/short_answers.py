"""Short answers of a real model: questions of ARC, OpenBookQA and MMLU with their options taken away.

    python benchmarks/short_answers/short_answers.py --model ./smollm2 --data ./data --output_dir short-answers

The model writes one or two words; they are graded by exact match after normalisation. Each confidence is measured as
it is and recalibrated on the labels. DATA holds arc_easy_train.parquet, arc_easy_test.parquet,
openbookqa_train.parquet, openbookqa_test.parquet and mmlu_test_half.parquet. Answers are kept in OUTPUT_DIR: the same
command continues an interrupted run. Writes results.json; prints tables and, last, one line of JSON.
"""

import argparse
import json
import logging
import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parent))

from confidence_rows import TITLES, measure, post_hoc  # noqa: E402
from real_questions import ANSWER_FORMAT, LABELS, SETS, TEST, load_set  # noqa: E402

from hf_calib import predict_answers  # noqa: E402
from hf_calib.evaluation.tables import print_table, write_json  # noqa: E402
from hf_calib.inference.model_loading import load_model  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--num_labels", type=int, default=LABELS)
    parser.add_argument("--num_test_questions", type=int, default=TEST)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    logging.getLogger("hf_calib").setLevel(logging.ERROR)
    model, tokenizer = load_model(args.model, dtype="float32")
    rows = []
    for name in args.sets:
        found = {}
        for part, questions in load_set(name, args.data, args.num_labels, args.num_test_questions).items():
            found[part] = predict_answers(
                model,
                tokenizer,
                questions,
                confidences=tuple(TITLES),
                prompt_format=ANSWER_FORMAT,
                max_new_tokens=12,
                batch_size=40,
                output_dir=args.output_dir / name / part,
            )
            print(f"{name}, {part}: {found[part].summary()}", flush=True)
        methods = post_hoc(found["labels"].predictions, found["test"].predictions)
        stages = [{"set": name, "stage": method, **measure(each)} for method, each in methods.items()]
        print_table(stages, f"{name}, {len(found['labels'].answers)} labels")
        rows += stages
        write_json(args.output_dir / "results.json", rows)
    print(json.dumps({f"{row['set']}/{row['stage']}": round(row["ece"], 4) for row in rows}))


if __name__ == "__main__":
    main()
