"""Adapters of small models. A test that wants one is skipped where peft, of the extra `train`, is not installed."""

import pytest


def with_lora(model, **options):
    """The model with a LoRA adapter; by default on `q_proj`, with random weights."""
    peft = pytest.importorskip("peft")
    options = {"target_modules": ["q_proj"], "init_lora_weights": False, **options}
    return peft.get_peft_model(model, peft.LoraConfig(**options))
