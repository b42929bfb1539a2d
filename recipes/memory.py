"""Estimate the GPU memory of the recipes' models: `python recipes/memory.py [--num_gpus 8]`.

The table has weights, gradients and optimizer states, in GiB on each GPU, with AdamW and bf16. The models are built
on the meta device. The figures for ZeRO-2 and ZeRO-3 are those of DeepSpeed's estimators
(`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`). Activations are additional: with
gradient checkpointing 2sbh bytes for each layer and 34sbh for the current one, with s tokens, b rows and hidden size h
(Korthikanti et al., https://huggingface.co/papers/2205.05198).
"""

import argparse

import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


# The sizes in the config.json of each model.
SEVEN_B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
MODELS = {
    "smollm2-135m": ("llama", {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                               "num_hidden_layers": 30, "num_attention_heads": 9,
                               "num_key_value_heads": 3, "tie_word_embeddings": True}),
    "qwen2.5-0.5b": ("qwen2", {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
                               "num_hidden_layers": 24, "num_attention_heads": 14,
                               "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "vicuna-7b": ("llama", {**SEVEN_B, "vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32}),
    "mistral-7b": ("mistral", {**SEVEN_B, "vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8}),
    "olmo2-7b": ("olmo2", {**SEVEN_B, "vocab_size": 100352, "intermediate_size": 11008, "num_key_value_heads": 32}),
    "tulu3-8b": ("llama", {**SEVEN_B, "vocab_size": 128264, "intermediate_size": 14336, "num_key_value_heads": 8}),
}  # fmt: skip
CONFIGS = ("single_gpu, ddp", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2")
GIB = 2**30
# Bytes per trained weight: bf16 weight and gradient, and float32 weight and two moments of AdamW; the latter alone.
TRAINED, OPTIMIZER = 16, 12


def build(name: str, lora_r: int | None) -> PreTrainedModel:
    """Build the model on the meta device, with an adapter on all linear layers if `lora_r` is given."""
    model_type, numbers = MODELS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **numbers), dtype=torch.bfloat16)
        model.tie_weights()
        if lora_r is not None:
            model = get_peft_model(model, LoraConfig(r=lora_r, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model


def on_gpu(config: str, trained: int, frozen_bytes: float, largest_layer: int, num_gpus: int) -> float:
    """Estimate the bytes on each GPU."""
    gpus = {"num_gpus_per_node": num_gpus, "num_nodes": 1}
    if config == "zero1":
        return frozen_bytes + trained * (TRAINED - OPTIMIZER + OPTIMIZER / num_gpus)
    if config == "zero1_offload":
        return frozen_bytes + trained * (TRAINED - OPTIMIZER)
    if config.startswith("zero2"):
        return (
            frozen_bytes + estimate_zero2_model_states_mem_needs(trained, cpu_offload="offload" in config, **gpus)[1]
        )
    if config.startswith("zero3"):
        offload = "offload" in config
        frozen = 0 if offload else frozen_bytes / num_gpus
        needs = estimate_zero3_model_states_mem_needs(
            trained, largest_layer, cpu_offload=offload, cpu_offload_params=offload, zero_init=True, **gpus
        )
        return frozen + needs[1]
    if config == "fsdp2":
        return (frozen_bytes + trained * TRAINED) / num_gpus + 4 * largest_layer
    return frozen_bytes + trained * TRAINED


def estimate(name: str, tuning: str, num_gpus: int, lora_r: int) -> dict[str, float]:
    """
    Estimate the GiB on each GPU, by configuration.

    Args:
        name (`str`):
            One of `MODELS`.
        tuning (`str`):
            `"full"`, `"lora"` (frozen weights in bf16) or `"qlora"` (frozen weights of linear layers in 4 bits; with
            DDP alone).
        num_gpus (`int`):
            Number of GPUs.
        lora_r (`int`):
            Rank of the adapter.
    """
    model = build(name, None if tuning == "full" else lora_r)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = {n: p.numel() for n, p in model.named_parameters() if not p.requires_grad}
    quantized = sum(count for n, count in frozen.items() if tuning == "qlora" and "base_layer" in n)
    # 4 bits, and 0.127 for the constants, which are quantized too (Dettmers et al., arXiv 2305.14314).
    frozen_bytes = 2 * (sum(frozen.values()) - quantized) + quantized * 4.127 / 8
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    configs = CONFIGS[:1] if tuning == "qlora" else CONFIGS
    return {config: on_gpu(config, trained, frozen_bytes, largest, num_gpus) / GIB for config in configs}


def activations(name: str, batch_size: int, length: int) -> float:
    """Estimate the GiB of the activations of a step, with gradient checkpointing."""
    _, numbers = MODELS[name]
    return (2 * numbers["num_hidden_layers"] + 34) * batch_size * length * numbers["hidden_size"] / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_gpus", type=int, default=8, help="number of GPUs")
    parser.add_argument("--lora_r", type=int, default=128, help="rank of the adapters")
    parser.add_argument("--batch_size", type=int, default=8, help="rows of a micro-batch, for the activations")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row, for the activations")
    args = parser.parse_args()
    table = Table("model", "tuning", *CONFIGS, "activations", title=f"GiB on each of {args.num_gpus} GPUs")
    for name in MODELS:
        extra = activations(name, args.batch_size, args.length)
        for tuning in ("full", "lora", "qlora"):
            needs = estimate(name, tuning, args.num_gpus, args.lora_r)
            cells = [f"{needs[config]:.1f}" if config in needs else "" for config in CONFIGS]
            table.add_row(name, tuning, *cells, f"{extra:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
