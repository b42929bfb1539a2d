"""Preference pairs: their checks, and pairs made of questions."""

import logging
from collections import Counter

import pytest
from datasets import Dataset

from hf_calib.data.preference_pairs import check_pairs, load_pairs, pair_fault, pairs_from_questions, split_prompt
from hf_calib.data.questions import PromptFormat, load_questions, shuffle_options
from hf_calib.inference.encoding import OptionEncoder


QUESTIONS = Dataset.from_list(
    [
        {"id": "sky", "question": "What colour is the sky?", "choices": ["green", "blue", "red"], "answer": 1},
        {"id": "ice", "question": "Ice is the solid form of", "choices": ["steam", "helium"], "answer": 0},
        {"id": "big", "question": "The largest planet is", "choices": ["Mars", "Earth", "Jupiter", "X"], "answer": 2},
    ]
)
MANY = Dataset.from_list(
    [{"id": str(n), "question": f"{n}?", "choices": ["a", "b", "c", "d"], "answer": 0} for n in range(400)]
)


def conversation(text, role="assistant"):
    return [{"role": role, "content": text}]


GOOD = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
CHAT = {"prompt": conversation("2 + 2 =", "user"), "chosen": conversation("4"), "rejected": conversation("5")}
IMPLICIT = {"chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"}
IMPLICIT_CHAT = {side: CHAT["prompt"] + CHAT[side] for side in ("chosen", "rejected")}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (GOOD, None),
        ({**GOOD, "preference_probability": 0.0}, None),
        (IMPLICIT, None),
        (CHAT, None),
        (IMPLICIT_CHAT, None),
        ({**GOOD, "rejected": " 4"}, "the same text, ' 4'"),
        ({**IMPLICIT, "rejected": "2 + 2 = 4"}, "the same text, '2 [+] 2 = 4'"),
        ({**GOOD, "chosen": " \n"}, "'chosen' is empty"),
        ({**GOOD, "chosen": None}, "'chosen' is empty"),
        ({**IMPLICIT, "chosen": "2 + 2 ="}, "'chosen' is empty"),
        ({**GOOD, "rejected": conversation("")}, "'rejected' is empty"),
        ({**GOOD, "preference_probability": 1.2}, r"1.2 is not in \[0, 1\]"),
        ({**GOOD, "preference_probability": float("nan")}, "nan is not"),
        ({**GOOD, "preference_probability": None}, "None is not"),
    ],
)
def test_faults_are_named(row, fault):
    found = pair_fault(row)
    if fault is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=f"my pairs, row 0: .*{fault}.*drop_invalid"):
            check_pairs(Dataset.from_list([row]), "my pairs")


@pytest.mark.parametrize("row", [GOOD, CHAT, IMPLICIT, IMPLICIT_CHAT, {**IMPLICIT_CHAT, "prompt": "2 + 2 ="}])
def test_prompts_are_extracted_as_by_trl(row):
    trl = pytest.importorskip("trl")
    assert split_prompt(row) == trl.maybe_extract_prompt(dict(row))


def test_invalid_pairs_are_dropped_on_request(tmp_path, caplog):
    rows = [GOOD] * 3 + [{**GOOD, "rejected": " 4"}] + [GOOD] * 2
    path = tmp_path / "pairs.jsonl"
    Dataset.from_list([{"id": n, **row} for n, row in enumerate(rows)]).to_json(path)
    with pytest.raises(ValueError, match="pairs.jsonl, row 3: 'chosen' and 'rejected' are the same"):
        load_pairs(path, limit=2)
    with caplog.at_level(logging.WARNING):
        assert load_pairs(path, drop_invalid=True).to_list() == [GOOD] * 5
    assert "pairs.jsonl: left out 1 of 6 rows" in caplog.text
    assert len(load_pairs(path, limit=2, drop_invalid=True)) == 2
    Dataset.from_list([{"chosen": "4"}]).to_json(path)
    for drop in (False, True):
        with pytest.raises(ValueError, match="pairs.jsonl: no column 'rejected' among chosen"):
            load_pairs(path, drop_invalid=drop)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen", "word_level"])
@pytest.mark.parametrize("scoring", ["text", "letter"])
def test_dpo_tokenises_pairs_to_the_scored_tokens(kind, scoring, tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer = tiny_tokenizers[kind]
    prompt_format = PromptFormat(scoring, system_prompt="Be right." if kind == "qwen" else None)
    pairs = pairs_from_questions(QUESTIONS, tokenizer, prompt_format, seed=3)
    assert isinstance(pairs[0]["prompt"], list) == (kind == "qwen")
    trl = pytest.importorskip("trl")
    config = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    model = tiny_llama(tokenizer)
    trainer = trl.DPOTrainer(model, tiny_llama(tokenizer), config, train_dataset=pairs, processing_class=tokenizer)

    encoder = OptionEncoder(tokenizer, prompt_format)
    for row, read in zip(shuffle_options(QUESTIONS, seed=3), trainer.train_dataset, strict=True):
        _, candidates, suffix = prompt_format.render(tokenizer, row["question"], row["choices"])
        ending = tokenizer(suffix, add_special_tokens=False)["input_ids"]
        scored = encoder.encode(row)
        options = [[] for _ in candidates]
        for token, k in zip(scored["option_tokens"], scored["option_index"], strict=True):
            options[k].append(token)
        context = scored["input_ids"][: scored["option_positions"][0] + 1]
        _, begun = prompt_format.turns(row["question"], row["choices"])
        begins = tokenizer(begun, add_special_tokens=False)["input_ids"] if kind == "qwen" else []
        assert bool(begins) == (kind == "qwen" and scoring == "letter")  # of the assistant's turn
        assert read["prompt_ids"] == context[: len(context) - len(begins)]
        assert context[len(context) - len(begins) :] == begins
        answers = [begins + option + ending for option in options]
        assert read["chosen_ids"] == answers.pop(row["answer"])
        assert read["rejected_ids"] in answers


def test_chosen_letters_are_balanced(tiny_tokenizers):
    pairs = pairs_from_questions(MANY, tiny_tokenizers["gpt2"], PromptFormat("letter", use_chat_template=False))
    for side in ("chosen", "rejected"):
        counts = Counter(pairs[side])
        assert counts.keys() == {" A", " B", " C", " D"} and min(counts.values()) > 70


def test_rejected_options_vary_and_ignore_other_rows(tiny_tokenizers):
    make = {"tokenizer": tiny_tokenizers["gpt2"], "prompt_format": PromptFormat("text", use_chat_template=False)}
    pairs = pairs_from_questions(MANY, **make)
    assert set(pairs["chosen"]) == {" a"} and set(pairs["rejected"]) == {" b", " c", " d"}
    assert pairs_from_questions(MANY.select([7, 3]), **make).to_list() == pairs.select([7, 3]).to_list()
    other = pairs_from_questions(MANY, **make, seed=1)["rejected"]
    assert 0.2 < sum(one == two for one, two in zip(pairs["rejected"], other, strict=True)) / len(MANY) < 0.5


def test_real_questions_with_the_real_chat_template(smollm2_tokenizer, shared_data):
    questions = load_questions(shared_data / "arc_challenge_train.parquet", limit=20)
    pairs = pairs_from_questions(questions, smollm2_tokenizer, PromptFormat("text"))
    for row, pair in zip(questions, pairs, strict=True):
        assert pair["prompt"] == [{"role": "user", "content": row["question"]}]
        chosen, rejected = (pair[side][0]["content"] for side in ("chosen", "rejected"))
        assert chosen == row["choices"][row["answer"]] != rejected in row["choices"]
