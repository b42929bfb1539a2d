"""benchmarks/evaluation/evaluation.py: the peer is asked what we ask, and agreement and ratios on scores made by hand."""

import pytest
import yaml
from datasets import Dataset
from evaluation import agreement, compare, write_task

from hf_calib.data.questions import PromptFormat
from hf_calib.inference.encoding import OptionEncoder


QUESTIONS = [
    {"question": "Ice is {{water}} that is", "choices": ["hot", "very cold"], "answer": 1},
    {"question": "The sky is", "choices": ["blue", "red", "green"], "answer": 0},
]


@pytest.mark.parametrize("scoring", ["letter", "text"])
@pytest.mark.parametrize("chat_template", [True, False])
def test_the_task_asks_what_we_ask(tiny_tokenizers, tmp_path, scoring, chat_template):
    tokenizer, prompt_format = tiny_tokenizers["qwen"], PromptFormat(scoring, use_chat_template=chat_template)
    path = write_task(Dataset.from_list(QUESTIONS), tokenizer, prompt_format, tmp_path, "asked")
    task = yaml.safe_load(path.read_text())
    rows = Dataset.from_parquet(task["dataset_kwargs"]["data_files"]["test"], cache_dir=str(tmp_path))
    assert task["target_delimiter"] == "" and task["output_type"] == "multiple_choice"
    for row, question in zip(rows, QUESTIONS, strict=True):
        assert row[task["doc_to_target"]] == question["answer"]
        features = OptionEncoder(tokenizer, prompt_format).encode(question)
        context = features["input_ids"][: min(features["option_positions"]) + 1]
        for k, candidate in enumerate(row[task["doc_to_choice"]]):
            pairs = zip(features["option_tokens"], features["option_index"], strict=True)
            option = [token for token, index in pairs if index == k]
            text = row[task["doc_to_text"]] + candidate
            assert tokenizer(text, add_special_tokens=not chat_template)["input_ids"] == context + option


def test_agreement_is_up_to_a_constant_and_tells_noise_from_difference():
    # shifted as a whole; a tie up to noise; another prediction
    ours = [[-1.0, -2.0], [-3.0, -3.0001, -9.0], [-1.0, -2.0], [-4.0, -1.0]]
    theirs = [[-6.0, -7.0], [-3.0001, -3.0, -9.0], [-2.0, -1.0], [-4.0, -1.0]]
    figures = agreement(ours, theirs, [0, 0, 0, 0])
    assert figures["agreement"] == 0.5 and figures["differ_beyond_noise"] == 1
    assert figures["accuracy"] == 0.75 and figures["peer_accuracy"] == 0.25
    assert figures["largest_difference"] == pytest.approx(1)


def test_ratios_are_of_pairs_of_chunks():
    def run(seconds):
        return {"seconds": seconds, "cpu_seconds": seconds / 2, "scores": [[-1.0, -2.0]] * 2, "answers": [0, 1]}

    figures = compare({"ours": [run(1), run(2), run(4)], "theirs": [run(3), run(4), run(12)]}, num_questions=2)
    assert figures["speed_ratio"] == 3 and figures["speed_ratio_of_totals"] == pytest.approx(19 / 7)
    assert 2 <= figures["speed_ratio_low"] <= figures["speed_ratio_high"] <= 3
    assert figures["questions_per_second"] == pytest.approx(6 / 7)
    assert figures["accuracy"] == 0.5 and figures["agreement"] == 1
