"""What calibration costs a training step: CFT and RCFT over TRL's SFTTrainer, step by step in turn, and the E-step.

    python benchmarks/training/training.py
    python benchmarks/training/training.py --model ./smollm2 --dataset arc_easy_train.parquet --num_steps 20

All trainers hold the same model and see the same rows, one right after the other: the tokens of question and answer,
of which the answer's count. A step is all that a trainer does with the rows of one: padding, counting tokens, forward
and backward pass, logging, the optimizer. Its ratio is the median over the steps, with a 95% bootstrap interval that
says how fine a difference the run can tell. Peak memory is of the tensors alive during a step, weights and optimizer
state among them, as torch's allocator counts them. The E-step of an epoch is timed whole, over the time of the epoch
with it.

With letters RCFT trains on the same tokens as SFT. With texts it needs the wrong options too, beside the right one:
more tokens, reported apart. Prints one line of JSON last.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from dpo_step import clock
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, load_questions
from hf_calib.trainers.e_step import hold_out


NUM_WORDS = 15_900
LETTERS = "ABCDEFGHIJ"


def small_model(folder: Path) -> None:
    """A random Llama of 11 million parameters, and a tokenizer of numbered words in which every letter is a token."""
    words = ["<unk>", "<pad>", "<eos>", "Answer:", *LETTERS, *(f"{letter}." for letter in LETTERS)]
    words += [f"w{number}" for number in range(NUM_WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=512, **sizes)).save_pretrained(folder)


def made_up_questions(count: int) -> Dataset:
    """Questions of random words, as long as those of ARC: 8 to 60 words, four options of 1 to 12."""
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        length = int(np.clip(np.exp(rng.normal(np.log(low * high) / 2, 0.5)), low, high))
        return " ".join(f"w{i}" for i in rng.integers(NUM_WORDS, size=length))

    rows = [{"question": text(8, 60), "choices": [text(1, 12) for _ in range(4)]} for _ in range(count)]
    return Dataset.from_list([{**row, "answer": int(rng.integers(4))} for row in rows])


def build(args: argparse.Namespace, scoring: str, output_dir: str) -> dict[str, SFTTrainer]:
    """TRL's trainer and the calibrated ones, by name; row i of each is made of the same question."""
    folder = args.model or Path(output_dir) / "model"
    if args.model is None:
        torch.manual_seed(0)
        small_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made_up = made_up_questions(args.num_rows) if not args.dataset else None
    questions = load_questions(args.dataset, limit=args.num_rows, seed=0) if args.dataset else made_up
    settings = {
        "output_dir": output_dir,
        "per_device_train_batch_size": args.batch_size,
        "gradient_checkpointing": args.gradient_checkpointing,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    lora = LoraConfig(r=128, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM") if args.lora else None

    def make(trainer_class, config, rows):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return trainer_class(model, config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)

    asking = {"scoring": scoring, "use_chat_template": False}
    config = CalibratedSFTConfig(**settings, **asking, objective="rcft")
    kept, _ = hold_out(questions, questions["question"], config, "questions")
    made = {"rcft": make(CalibratedSFTTrainer, config, questions)}
    config = CalibratedSFTConfig(**settings, **asking, objective="cft")
    made["cft"] = make(CalibratedSFTTrainer, config, kept)
    rows = made["cft"].train_dataset.select_columns(["input_ids", "labels"])
    made["sft"] = make(SFTTrainer, SFTConfig(**settings), rows)
    if scoring == "letter":
        assert all(made["rcft"].train_dataset[name] == rows[name] for name in rows.column_names)
    return made


def prepare(trainer: SFTTrainer, num_steps: int) -> Callable[[list[int]], None]:
    """Take an optimizer step on the rows of these numbers, as `Trainer.train` does."""
    trainer.create_optimizer_and_scheduler(num_steps)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = trainer._remove_unused_columns(trainer.train_dataset)

    def step(numbers: list[int]) -> None:
        batch = trainer.data_collator([rows[number] for number in numbers])
        (inputs,), num_items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.training_step(trainer.model, inputs, num_items)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()

    return step


def peak_bytes(trainer: SFTTrainer, step: Callable[[], None]) -> int:
    """Most bytes of tensors alive at one time during a step, with the weights and the optimizer's state."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before + resident_bytes(trainer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(max(alive.max(), 0)) + resident_bytes(trainer)


def resident_bytes(trainer: SFTTrainer) -> int:
    """Bytes of what outlives a step."""
    states = [v for state in trainer.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return sum(t.numel() * t.element_size() for t in [*trainer.model.parameters(), *states])


def measure(args: argparse.Namespace, scoring: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as output_dir:
        trainers = build(args, scoring, output_dir)
        step = {name: prepare(trainer, args.num_steps) for name, trainer in trainers.items()}
        rcft, size = trainers["rcft"], len(trainers["sft"].train_dataset)
        rcft.e_step()
        rng, names, seconds = np.random.default_rng(0), list(trainers), {name: [] for name in trainers}
        for number in range(-3, args.num_steps):
            rows = rng.choice(size, args.batch_size, replace=False).tolist()
            for name in np.roll(names, number):  # whoever is first in turn
                start = clock()
                step[name](rows)
                if number >= 0:
                    seconds[name].append(clock() - start)
        peaks = {name: peak_bytes(trainer, lambda name=name: step[name](rows)) for name, trainer in trainers.items()}
        esteps = []
        for _ in range(3):
            start = clock()
            rcft.e_step()
            esteps.append(clock() - start)
    figures = {"sft_step_seconds": statistics.median(seconds["sft"])}
    for name in ("cft", "rcft"):
        ratios = np.array(seconds[name]) / np.array(seconds["sft"])
        draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        figures[f"{name}_step_time_ratio"] = ratio = float(np.median(ratios))
        figures[f"{name}_step_time_ratio_low"], figures[f"{name}_step_time_ratio_high"] = low, high
        figures[f"{name}_peak_memory_ratio"] = peaks[name] / peaks["sft"]
        print(
            f"{scoring}: {name.upper()} takes {ratio - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}] of SFT's step, "
            f"quartiles of the steps {np.quantile(ratios, 0.25) - 1:+.1%} and {np.quantile(ratios, 0.75) - 1:+.1%}; "
            "peak memory "
            f"{peaks[name] / 1e6:.1f} MB of {peaks['sft'] / 1e6:.1f}"
        )
    estep = statistics.median(esteps)
    epoch = statistics.mean(seconds["rcft"]) * size / args.batch_size
    figures["estep_share"] = estep / (epoch + estep)
    print(
        f"{scoring}: E-step on {len(rcft.estep_dataset)} questions {estep:.2f} s, the steps on {size} others "
        f"{epoch:.2f} s: {figures['estep_share']:.1%} of an epoch"
    )
    return {name: round(float(value), 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or ID instead of a random Llama of 11 million parameters")
    parser.add_argument("--dataset", help="questions instead of made-up ones")
    parser.add_argument("--num_rows", type=int, default=400, help="questions, a fifth of them for the E-step")
    parser.add_argument("--batch_size", type=int, default=8, help="questions of a step")
    parser.add_argument("--num_steps", type=int, default=60, help="steps of each trainer; more of them tell finer")
    parser.add_argument(
        "--lora", action="store_true", help="train an adapter of rank 128, the paper's, not all weights"
    )
    parser.add_argument(
        "--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=True, help="on, as TRL has it"
    )
    parser.add_argument("--letters_only", action="store_true", help="leave texts out")
    args = parser.parse_args()
    figures = measure(args, "letter")
    if not args.letters_only:
        figures |= {f"text_{name}": value for name, value in measure(args, "text").items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
