"""What a step and an E-step hold in memory: never the vocabulary over the sequence, never the head a second time."""

import pytest
import torch
from runs import SFT_RUN
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer
from hf_calib.data.questions import load_questions


VOCABULARY = 5000


class Sizes(TorchDispatchMode):
    """Shapes of all dense tensors that any operation, of the backward pass too, makes."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            # Neither a view nor an operation in place takes memory of its own.
            shares = function.is_view or function._schema.is_mutable
            if isinstance(value, torch.Tensor) and value.layout == torch.strided and not shares:
                self.shapes.append(tuple(value.shape))
        return result


@pytest.fixture
def make_trainer(tiny_tokenizers, tiny_llama, shared_data, tmp_path):
    """Function from an objective and a scoring to a trainer of a model with a vocabulary far larger than all else."""
    tokenizer = tiny_tokenizers["qwen"]
    tiny_llama(tokenizer, vocab_size=VOCABULARY).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    questions = load_questions(shared_data / "arc_easy_train.parquet", limit=24, seed=0)

    def make(**settings):
        args = CalibratedSFTConfig(str(tmp_path / "out"), **{**SFT_RUN, **settings})
        trainer = CalibratedSFTTrainer(str(tmp_path / "model"), args, train_dataset=questions)
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    return make


@pytest.mark.parametrize("scoring", ["letter", "text"])
def test_an_e_step_never_sees_the_vocabulary_over_the_sequence(make_trainer, scoring):
    trainer = make_trainer(scoring=scoring)
    rows = [trainer.estep_dataset[i] for i in range(4)]
    batch = trainer.data_collator(rows)
    with Sizes() as sizes, torch.no_grad():
        trainer._score_rows("options", dict(batch))
    asked = (batch["option_positions"] >= 0).sum().item()
    heights = [shape[-2] if len(shape) > 1 else 1 for shape in sizes.shapes if shape and shape[-1] == VOCABULARY]
    if scoring == "letter":
        assert not heights  # a few rows of the head are all that is read
    else:
        assert 0 < max(heights) <= asked < batch["input_ids"].numel() / 1.5
    assert max(map(torch.Size.numel, map(torch.Size, sizes.shapes))) < batch["input_ids"].numel() * VOCABULARY / 1.5


def test_a_step_of_rcft_makes_no_second_head(make_trainer):
    """The gradient of the letters' rows goes into the one that the likelihood makes of the whole head."""
    made = {}
    for objective in ("cft", "rcft"):
        trainer = make_trainer(objective=objective, scoring="letter")
        if objective == "rcft":
            trainer.e_step()
        (inputs,), count = trainer.get_batch_samples(
            iter([trainer.data_collator([trainer.train_dataset[i] for i in range(4)])]), 1, trainer.args.device
        )
        trainer.model.train()
        # Not under a dispatch mode, which holds on to gradients that autograd would else add to in place.
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count).backward()
        head = trainer.model.get_output_embeddings().weight
        assert head.grad.layout == torch.strided
        events = profiled.profiler.kineto_results.events()
        made[objective] = sum(e.nbytes() >= head.nbytes for e in events if e.name() == "[memory]")
    assert 0 < made["rcft"] <= made["cft"]


def test_the_gradient_of_the_letters_rows_is_that_of_plain_indexing(make_trainer, monkeypatch):
    from hf_calib.inference import option_head

    gradients, sparse = [], option_head._rows
    for rows in (sparse, lambda parameter, index, *_: None if parameter is None else parameter[index]):
        monkeypatch.setattr(option_head, "_rows", rows)
        trainer = make_trainer(objective="rcft", scoring="letter", lambda_ece=5.0)
        trainer.e_step()
        (inputs,), count = trainer.get_batch_samples(
            iter([trainer.data_collator([trainer.train_dataset[i] for i in range(4)])]), 1, trainer.args.device
        )
        trainer.model.train()
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count).backward()
        gradients.append(trainer.model.get_output_embeddings().weight.grad)
    torch.testing.assert_close(*gradients)
