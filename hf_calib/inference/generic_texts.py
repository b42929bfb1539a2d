"""
Sample texts from a model: on generic prompts, as anchors of a training, or on given ones.

[`~hf_calib.inference.text_scores`] compares two models on such texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate.utils import extract_model_from_parallel
from tqdm.auto import tqdm
from transformers import GenerationConfig

from ..data.prompts import apply_chat_template
from .model_loading import process_state
from .option_head import unwrap_causal_lm
from .predict import context_length


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Four of each kind, one kind after another. Even seeds use those at even places, odd seeds the others.
INSTRUCTIONS = (
    "Explain to a ten-year-old why the moon seems to change its shape.",
    "Explain how a refrigerator keeps food cold.",
    "What does it mean when a currency loses value?",
    "How does a vaccine prepare the body for an infection?",
    "Write a short story about a postman who finds a letter addressed to himself.",
    "Write a short story that begins with a power cut in a large city.",
    "Tell a fable in which a snail gives good advice to a hare.",
    "Invent the first paragraph of a mystery novel set on a night train.",
    "Write a Python function that counts how often each word occurs in a text.",
    "Write an SQL query that finds the three customers with the most orders.",
    "Show me how to read a CSV file in Python and print its second column.",
    "Write a JavaScript function that checks whether a string is a palindrome.",
    "List six things to check before buying a used bicycle.",
    "List seven ways to save water at home.",
    "Name five musical instruments and say how each one makes its sound.",
    "Give me eight ideas for a birthday party in a garden.",
    "My neighbour plays loud music at night. How should I talk to him about it?",
    "I sleep badly before exams. What could I try?",
    "I have two job offers and cannot decide. How should I compare them?",
    "How can I get used to running in the morning?",
    "Translate into French: The library opens at nine and closes at six.",
    "Translate into Spanish: I would like a table for two near the window.",
    "Translate into German: My sister is learning to drive this summer.",
    "Translate into Italian: We missed the last bus and walked home in the rain.",
    "Write a polite email to a landlord about a heater that does not work.",
    "Write a letter of thanks to a teacher who is retiring.",
    "Write an invitation to a meeting of a local chess club.",
    "Write a short message to my team that tomorrow's review starts an hour later.",
    "Give me a recipe for a soup with carrots and lentils.",
    "How do I bake a simple white bread without a machine?",
    "Plan vegetarian dinners for five days, with one sentence for each.",
    "What can I cook from eggs, potatoes and an onion?",
    "Describe the main causes of the First World War.",
    "Who was Marie Curie, and what is she known for?",
    "What made the printing press so important in Europe?",
    "Describe daily life in a town of the Roman Empire.",
    "A train travels 150 kilometres in two hours. How far does it get in five hours at this speed? Show the steps.",
    "A shirt costs 40 euros after a discount of 20 percent. What did it cost before? Explain.",
    "How many different pairs can be chosen from seven people? Explain your reasoning.",
    "What is the area of a circle with a diameter of ten metres? Show how you compute it.",
    "Write a poem of eight lines about the first snow of the year.",
    "Write a limerick about a cat that is afraid of mice.",
    "Write a dialogue between an old clock and a new telephone.",
    "Write a slogan and a short advertisement for an umbrella that cannot be lost.",
    "Compare cats and dogs as pets for a small flat.",
    "What speaks for and against working from home?",
    "Compare travelling by train with travelling by plane for a distance of 600 kilometres.",
    "Is it better to learn one foreign language well or three a little? Argue for one side.",
)


@dataclass(frozen=True)
class GenericText:
    """
    A text that a model wrote.

    Args:
        input_ids (`tuple[int, ...]`):
            Tokens of the prompt and of the text, without padding.
        start (`int`):
            Index of the first generated token, at least 1.
        ended (`bool`, *optional*, defaults to `False`):
            Whether the last token is an EOS token.
    """

    input_ids: tuple[int, ...]
    start: int
    ended: bool = False

    def __len__(self) -> int:
        """Number of generated tokens, the EOS token among them."""
        return len(self.input_ids) - self.start


def sample_texts(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    num_texts: int = 64,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = 16,
) -> list[GenericText]:
    """
    Sample a model's own texts on generic prompts, at temperature 1 from the whole vocabulary.

    With a chat template, three of four prompts are instructions, such as to explain or to translate something. The
    fourth is only the beginning of a user's turn, so the model writes the instruction. Without a chat template, every
    other prompt is an instruction as plain text, unless it has unknown tokens; the rest is the BOS token alone, or the
    EOS token if there is no BOS.

    Torch's random state, the training mode of the model and the tokenizer are left as they are.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, wrapped for distribution or not, but not partitioned by ZeRO-3.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        num_texts (`int`, *optional*, defaults to `64`):
            Number of texts.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Largest number of tokens of a text, which otherwise ends with an EOS token. The context length of the model
            may allow fewer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the instructions and of the sampling. An even and an odd seed share no instruction.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of texts that are sampled at the same time. Other batches give other texts.

    Returns:
        `list[GenericText]`: the texts.

    Raises:
        `ValueError`: if ZeRO-3 has partitioned the weights, if the tokenizer has neither a BOS nor an EOS token where
            one is needed, if the prompts fill the model's context, or if a count is below 1.

    Example:
    ```python
    >>> texts = sample_texts(model, tokenizer, num_texts=4)  # doctest: +SKIP
    >>> print(tokenizer.decode(texts[0].input_ids[texts[0].start :]))  # doctest: +SKIP

    ```
    """
    if num_texts < 1:
        raise ValueError(f"num_texts must be at least 1, got {num_texts}.")
    return continue_prompts(model, tokenizer, _prompts(tokenizer, num_texts, seed), max_new_tokens, seed, batch_size)


def continue_prompts(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = 16,
) -> list[GenericText]:
    """
    Sample a continuation of every prompt, at temperature 1 from the whole vocabulary.

    Args:
        model, tokenizer, max_new_tokens, batch_size:
            See [`sample_texts`].
        prompts (`Sequence[Sequence[int]]`):
            Token ids of the prompts.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.

    Returns:
        `list[GenericText]`: a text of each prompt.

    Raises:
        `ValueError`: see [`sample_texts`].
    """
    if min(max_new_tokens, batch_size) < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1.")
    model = unwrap_causal_lm(extract_model_from_parallel(model))
    check_whole(model)
    length = context_length(model)
    if length is not None:
        max_new_tokens = min(max_new_tokens, length - max(map(len, prompts)))
        if max_new_tokens < 1:
            raise ValueError(f"The context of the model, {length} tokens, has no space for a text after the prompt.")
    config = generation_config(model, tokenizer, max_new_tokens)
    texts = []
    with torch.no_grad(), evaluation_mode(model), own_config(model, config), own_random_state(model, seed):
        for batch in progress_batches(prompts, batch_size, "Sampling texts"):
            texts += _generate(model, config, batch)
    return texts


def _prompts(tokenizer: PreTrainedTokenizerBase, num_texts: int, seed: int) -> list[list[int]]:
    """Token ids of the prompts."""
    first = seed % 2
    instructions = INSTRUCTIONS[first::4] + INSTRUCTIONS[first + 2 :: 4]  # every kind once, then again
    written = encode_prompts(tokenizer, instructions)
    if getattr(tokenizer, "chat_template", None) is not None:
        period, empty = 4, _chat(tokenizer, instructions[0]).partition(instructions[0])[0]
        empty = tokenizer(empty, add_special_tokens=False)["input_ids"]
    else:
        period, empty = 2, []
        written = [ids for ids in written if tokenizer.unk_token_id not in ids]
    if not empty:
        empty = [first_token(tokenizer)]
    before = seed // 2 * (num_texts - num_texts // period)  # so many instructions have other seeds of this half used
    return [
        empty if i % period == period - 1 or not written else written[(before + i - i // period) % len(written)]
        for i in range(num_texts)
    ]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Sequence[Mapping[str, str]]]
) -> list[list[int]]:
    """
    Token ids of prompts. With a chat template, a text is a user's turn, and the assistant's turn begins after it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer. Without a chat template, a text is continued as it is.
        prompts (`Sequence`):
            Texts, or lists of messages, which need a chat template.
    """
    if getattr(tokenizer, "chat_template", None) is not None:
        written = [_chat(tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]
        return tokenizer(written, add_special_tokens=False)["input_ids"]
    encoded = tokenizer(list(prompts))["input_ids"]
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def _chat(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, str]], **options) -> str:
    """A prompt in the chat template."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return apply_chat_template(tokenizer, messages, **options)


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that begins a text without a prompt."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(
        "The tokenizer has neither a BOS nor an EOS token to begin a text with: set `tokenizer.bos_token`."
    )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """EOS tokens of a model and of its tokenizer, in order."""
    ends = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 1.0
) -> GenerationConfig:
    """Plain sampling, or greedy decoding at temperature 0, that ends with any EOS token of model or tokenizer."""
    ends = end_tokens(model, tokenizer)
    pad = next((token for token in (tokenizer.pad_token_id, *ends) if token is not None), 0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **(sampling if temperature else {"do_sample": False}),
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=True,
    )


def pad_prompts(
    model: PreTrainedModel, pad_token_id: int, prompts: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Pad prompts on the left to `input_ids` and `attention_mask` `(batch, length)`, on the model's device."""
    width = max(map(len, prompts))
    input_ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    batch = {"input_ids": torch.tensor(input_ids), "attention_mask": torch.tensor(mask)}
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _generate(model: PreTrainedModel, config: GenerationConfig, prompts: Sequence[Sequence[int]]) -> list[GenericText]:
    """Continue a batch of prompts."""
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    batch = pad_prompts(model, config.pad_token_id, prompts)
    texts = []
    for n, row in zip(padding, model.generate(**batch, generation_config=config).tolist(), strict=True):
        written = row[width:]
        end = next((i + 1 for i, token in enumerate(written) if token in (config.eos_token_id or [])), None)
        texts.append(GenericText((*row[n:width], *written[:end]), width - n, ended=end is not None))
    return texts


def progress_batches(rows: Sequence, batch_size: int, description: str) -> Iterator[Sequence]:
    """Batches of rows, with a progress bar in the main process of every machine."""
    hidden = not process_state().is_local_main_process
    with tqdm(total=len(rows), desc=description, unit="text", disable=hidden) as bar:
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            yield batch
            bar.update(len(batch))


def check_whole(model: PreTrainedModel) -> None:
    """Raise an error if ZeRO-3 has partitioned the weights and they are not gathered."""
    if any(getattr(getattr(p, "ds_status", None), "name", "AVAILABLE") != "AVAILABLE" for p in model.parameters()):
        raise ValueError(
            "ZeRO-3 has partitioned the weights, but generic texts need the whole model in every process: use ZeRO-2, "
            "or save the model and load it without DeepSpeed."
        )


@contextmanager
def evaluation_mode(*models: PreTrainedModel) -> Iterator[None]:
    """Switch off dropout, and restore the mode of every module at the end."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def own_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replace the model's generation config, from which `generate` would take a repetition penalty and the like."""
    kept, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = kept


@contextmanager
def own_random_state(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Seed the generators of the CPU and of the model's GPUs, and restore their states at the end."""
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
