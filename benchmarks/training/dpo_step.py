"""What `lambda_pref` costs: the time of a DPO step with it over that of TRL's own, step by step in turn.

    python benchmarks/training/dpo_step.py
    python benchmarks/training/dpo_step.py --model HuggingFaceTB/SmolLM2-135M-Instruct --length 256 --batch_size 2

Both trainers hold the same model and see the same batches, one right after the other; the ratio is the median over
these pairs of steps, with a 95% bootstrap interval that says how fine a difference the run can tell. The E-step is
reported by itself. Prints one line of JSON last.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from hf_calib import CalibratedDPOConfig, CalibratedDPOTrainer
from hf_calib.data.synthetic_world import World


def clock() -> float:
    """Seconds: of this process on a CPU, where other work would blur them, of the wall on a GPU that has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def build(args: argparse.Namespace, output_dir: str) -> dict[str, DPOTrainer]:
    """TRL's trainer and the calibrated one, on random token sequences as pairs."""
    tokenizer: PreTrainedTokenizerFast = World().tokenizer()
    torch.manual_seed(0)
    if args.model:
        config = AutoConfig.from_pretrained(args.model)
    else:
        sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=16_000, max_position_embeddings=2 * args.length, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    folder = Path(output_dir) / "model"
    model.save_pretrained(folder)
    words = list(tokenizer.get_vocab())

    def sentence(length: int) -> str:
        return " ".join(words[i] for i in torch.randint(8, len(words), (length,)).tolist())

    half = args.length // 2
    rows = [
        {"prompt": sentence(half), "chosen": " " + sentence(half), "rejected": " " + sentence(half)}
        for _ in range(100)
    ]
    settings = {
        "output_dir": output_dir,
        "per_device_train_batch_size": args.batch_size,
        "max_length": args.length,
        "gradient_checkpointing": False,
        "bf16": torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    made = {}
    for name, config_class, trainer_class, more in (
        ("trl", DPOConfig, DPOTrainer, {}),
        ("calibrated", CalibratedDPOConfig, CalibratedDPOTrainer, {"em_holdout": 0.2}),
    ):
        made[name] = trainer_class(
            str(folder),
            args=config_class(**settings, **more),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="sizes of this model instead of a Llama of 11 million parameters")
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt with its completion")
    parser.add_argument("--batch_size", type=int, default=8, help="pairs of a step")
    parser.add_argument("--num_steps", type=int, default=60, help="steps of each trainer; more of them tell finer")
    args = parser.parse_args()
    times = {"trl": [], "calibrated": []}
    with tempfile.TemporaryDirectory() as output_dir:
        trainers = build(args, output_dir)
        for trainer in trainers.values():
            trainer.create_optimizer_and_scheduler(args.num_steps)
            trainer.model.train()
            trainer.current_gradient_accumulation_steps = 1
        calibrated = trainers["calibrated"]
        # Any map will do for the clock.
        calibrated.calibrators["pairs"].fit(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([1, 1]))
        batches = [batch for _, batch in zip(range(8), calibrated.get_train_dataloader(), strict=False)]
        for step in range(-3, args.num_steps):
            # Whoever is first in turn.
            for name in ("trl", "calibrated") if step % 2 else ("calibrated", "trl"):
                trainer = trainers[name]
                start = clock()
                trainer.training_step(trainer.model, dict(batches[step % len(batches)]))
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
                seconds = clock() - start
                if step >= 0:
                    times[name].append(seconds)
        start = clock()
        calibrated.e_step()
        estep = (clock() - start) / len(calibrated.estep_datasets["pairs"])
    ratios = np.array(times["calibrated"]) / np.array(times["trl"])
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    ratio, (low, high) = np.median(ratios), np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    precision = max(high - ratio, ratio - low)
    finer = (
        ""
        if precision < 0.03
        else f": too coarse to judge 3%; try --num_steps {4 * args.num_steps}, or a quieter machine"
    )
    print(f"lambda_pref costs {ratio - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}] of a step{finer}")
    step_time = statistics.median(times["trl"])
    # Time of a held-out pair in an E-step, in steps: 200 of them every 25 steps add 8 times this to each.
    figures = {
        "dpo_step_time_ratio": round(float(ratio), 4),
        "dpo_step_time_ratio_low": round(float(low), 4),
        "dpo_step_time_ratio_high": round(float(high), 4),
        "trl_step_seconds": round(step_time, 4),
        "estep_pair_in_steps": round(estep / step_time, 4),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
