"""Shared fixtures: real questions, a real small model, and tokenizers and models made on the spot."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from launching import Launch
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


# These need the extra `train` or the Space's page.
NEED_MORE = [
    *("benchmarks", "recipes", "trainers", "training", "test_docs.py", "test_examples.py", "test_package.py"),
    *("cli/test_average.py", "cli/test_main.py", "cli/test_restore_command.py", "hub/test_circle.py"),
    *("inference/test_smollm2.py", "metrics/test_app.py", "regime/test_regime_world.py"),
]
collect_ignore = [] if find_spec("trl") else NEED_MORE

# A slow machine fails no test.
settings.register_profile("hf_calib", deadline=None)
settings.load_profile("hf_calib")

SHARED = Path(__file__).resolve().parents[2] / "shared"

CORPUS = [
    "Which of the following gases do plants take from the air?\nA. oxygen\nB. carbon dioxide\nC. helium\nAnswer: B",
    "What colour is the sky on a clear day?\nA. green\nB. blue\nC. red\nD. black\nAnswer: B",
    "The largest planet of the solar system is\nA. Mars\nB. Earth\nC. Jupiter\nAnswer: C",
    "Ice is the solid form of water, and steam is the gas. The answer is cold, the answer is hot.",
    "User: question and answer. Assistant: A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    " ".join(f"{letter}." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real multiple-choice questions (parquet)."""
    folder = Path(os.environ.get("HF_CALIB_SHARED", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real questions in {folder}; set HF_CALIB_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Function that runs a script in so many processes under `accelerate launch`; they are started once a session."""
    if Version(version("accelerate")) < Version("1.15"):
        pytest.skip("the launcher of these tests needs accelerate 1.15")
    folder, owner = tmp_path_factory.getbasetemp(), os.getpid()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder, owner = folder.parent, os.getppid()
    launches = {processes: Launch(folder / f"{processes}-processes", processes, owner) for processes in (1, 2)}

    def run(config, script, *arguments, processes=2, **options):
        return launches[processes](config, script, *arguments, **options)

    yield run
    for each in launches.values():
        each.stop()


@pytest.fixture(scope="session")
def evaluate_cache(tmp_path_factory):
    """Folders of evaluate's own for this session: its modules, imported once, stay where they were first found."""
    import evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path_factory.mktemp("metrics"))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path_factory.mktemp("modules"))
        yield


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the real SmolLM2-135M-Instruct, made once and kept under `~/.cache/hf_calib`."""
    if given := os.environ.get("HF_CALIB_SMOLLM2"):
        return Path(given)
    folder = Path.home() / ".cache" / "hf_calib" / "smollm2-135m-instruct"
    if folder.is_dir():
        return folder
    script = SHARED / "tools" / "smollm2.py"
    if not script.is_file():
        pytest.skip("no SmolLM2; set HF_CALIB_SMOLLM2 to a folder of HuggingFaceTB/SmolLM2-135M-Instruct")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One test process makes it, the others wait; beside its place and renamed, so that an interrupted run leaves nothing that
    # looks complete.
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
            command = [sys.executable, str(script), str(unfinished)]
            made = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if made.returncode != 0:
                pytest.skip(f"SmolLM2 cannot be had: {(made.stderr.strip() or made.stdout.strip()).splitlines()[-1]}")
            unfinished.rename(folder)
    return folder


def _train(tokenizer: Tokenizer, special_tokens: list[str], **options) -> None:
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special_tokens, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)


def _llama(add_eos: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece-style: metaspace, a space before the first word, BOS first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(tokenizer, ["<unk>", "<s>", "</s>"], initial_alphabet=["▁"])
    tokenizer.add_tokens(byte_tokens)
    special = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    single = "<s> $A </s>" if add_eos else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def _byte_level(
    eos_token: str, special_tokens: list[str], add_eos: bool = False, **options
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    if add_eos:
        special = [(eos_token, tokenizer.token_to_id(eos_token))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {eos_token}", special_tokens=special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token, **options)
    fast.pad_token = fast.pad_token or eos_token
    return fast


def _word_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special_tokens = ["<unk>", "<pad>", "<eos>"]
    trainer = trainers.WordLevelTrainer(special_tokens=special_tokens, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Tokenizers of the kinds in use, trained on a few sentences; treat them as read-only."""
    qwen_specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {
        "llama": _llama(),
        "llama_eos": _llama(add_eos=True),
        "gpt2": _byte_level("<|endoftext|>", ["<|endoftext|>"]),
        "gpt2_eos": _byte_level("<|endoftext|>", ["<|endoftext|>"], add_eos=True),
        "qwen": _byte_level("<|im_end|>", qwen_specials, pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE),
        "word_level": _word_level(),
    }


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def shallow_smollm2(smollm2, smollm2_tokenizer, tmp_path_factory) -> Path:
    """Folder of a model of SmolLM2's first layers, for what does not depend on how good its answers are."""
    folder = tmp_path_factory.mktemp("smollm2") / "shallow"
    AutoModelForCausalLM.from_pretrained(smollm2, num_hidden_layers=4).save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama():
    """Function from a tokenizer to a random Llama of some 20,000 parameters, the same for the same `seed`."""

    def build(tokenizer, seed: int = 0, **config) -> LlamaForCausalLM:
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            # Wide enough that the predictions of a random model differ.
            "initializer_range": 0.3,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**{**settings, **config})).eval()

    return build
