"""Letters of a chat model: the prompt, an alignment that makes it overconfident, and the repair.

    python benchmarks/letters/letters.py --model ./qwen2.5-coder-1.5b --pairs pairs.parquet --labels labels.parquet \\
        --test test.parquet --output_dir letters

The questions of the three files must differ. The model is evaluated on the test questions with three prompts. Then
LoRA DPO prefers the right letter of `--pairs` to a wrong one, and `hf-calib restore` repairs the result from
`--labels`. What is there is kept, so the same command goes on where it stopped. Prints a table, which is in
results.json as well.
"""

import argparse
import json
import re
from pathlib import Path

import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from hf_calib import load_questions
from hf_calib.cli.main import main as hf_calib
from hf_calib.data.preference_pairs import pairs_from_questions
from hf_calib.evaluation.tables import print_table, write_json


PROMPTS = {
    "chat, Answer: begins the answer": [],
    "chat, Answer: in the user's turn": ["--prompt_template", "{question}\n{options}\nAnswer:"],
    "no chat template": ["--use_chat_template", "false"],
}


def align(model: str, pairs: Path, args: argparse.Namespace, output_dir: Path) -> None:
    """LoRA DPO of right over wrong letters, one epoch; the adapter is merged."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = pairs_from_questions(load_questions(pairs, limit=args.num_pairs, seed=0), tokenizer, seed=0)
    config = DPOConfig(
        str(output_dir.with_name("dpo")), per_device_train_batch_size=4, gradient_accumulation_steps=2,
        num_train_epochs=1, learning_rate=2e-4, lr_scheduler_type="constant_with_warmup", warmup_steps=2, beta=0.1,
        max_length=None, gradient_checkpointing=False, bf16=False, use_cpu=not torch.cuda.is_available(),
        logging_steps=1, save_strategy="no", report_to="none",
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(model, dtype=args.dtype)
    trainer = DPOTrainer(model, None, config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--num_pairs", type=int, default=96)
    parser.add_argument("--num_labels", type=int, default=120)
    parser.add_argument("--num_test", type=int, default=150, help="in restore; the prompts are tried on all")
    parser.add_argument("--closing_steps", type=float, default=2.0, help="steps of the closing step by those of RCFT")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    rows, asked = [], ["--scoring", "letter", "--dtype", args.dtype]
    for name, options in PROMPTS.items():
        folder = args.output_dir / re.sub(r"\W+", "-", name.lower())
        call = ["evaluate", "--model", args.model, "--dataset", str(args.test), *asked, "--output_dir", str(folder)]
        if not (folder / "results.json").is_file() and hf_calib([*call, *options]):
            raise SystemExit(f"evaluate failed: {name}")
        rows.append({"stage": name, **json.loads((folder / "results.json").read_text())})

    aligned, restored = args.output_dir / "aligned", args.output_dir / "restored"
    if not (aligned / "tokenizer_config.json").is_file():
        align(args.model, args.pairs, args, aligned)
    recipe = args.output_dir / "recipe.yaml"
    closing = {"steps": args.closing_steps, "num_texts": 16, "num_continuations": 16}
    recipe.write_text(
        yaml.safe_dump({"num_train_epochs": 1, "closing_step": closing, "gradient_checkpointing": False})
    )
    call = ["restore", "--model", aligned, "--dataset", args.labels, "--limit", args.num_labels, "--test", args.test]
    call += ["--test_limit", args.num_test, *asked, "--config", recipe, "--output_dir", restored]
    if hf_calib([str(argument) for argument in call]):
        raise SystemExit("restore failed")
    rows += json.loads((restored / "results.json").read_text())
    print_table(rows, f"Letters of {Path(args.model).name}")
    write_json(args.output_dir / "results.json", rows)
    shown = ("stage", "n", "accuracy", "confidence", "ece", "debiased_ece", "ece_noise_floor", "nll", "option_mass")
    print(json.dumps([{key: row[key] for key in shown if key in row} for row in rows]))


if __name__ == "__main__":
    main()
