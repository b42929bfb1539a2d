"""The alignment report: every number against one pair or text at a time, files of prompts and texts, and wrong calls."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_calib.data.texts import load_prompts, load_texts
from hf_calib.evaluation import alignment
from hf_calib.evaluation.alignment import AlignmentMeter, alignment_report
from hf_calib.evaluation.alignment_report import MEASURES, AlignmentReport
from hf_calib.inference import preference_scores
from hf_calib.inference.generic_texts import INSTRUCTIONS, continue_prompts, encode_prompts
from hf_calib.measures.bootstrap import Estimate


PROMPTS = ["Ice is", "The sky is", "What is the largest planet?", "Name a gas.", "User: question"]
TEXTS = ["Ice is the solid form of water.", "The largest planet of the solar system is Jupiter", "green blue red"]
FAST = {"max_new_tokens": 12, "n_bootstrap": 50, "batch_size": 2}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizers):
    return tiny_tokenizers["qwen"]


@pytest.fixture(scope="module")
def models(tokenizer, tiny_llama):
    """A reference, an aligned model, and a repaired one between the two."""
    reference, aligned, repaired = (tiny_llama(tokenizer, seed=seed) for seed in (0, 1, 1))
    with torch.no_grad():
        for ours, theirs in zip(repaired.parameters(), reference.parameters(), strict=True):
            ours.lerp_(theirs, 0.1)
    return {"reference": reference, "aligned": aligned, "repaired": repaired}


def log_likelihood(model, tokenizer, prompt, answer):
    """Of the answer's tokens after the prompt, and of the end of the turn, one token at a time."""
    start = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    ids = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n")["input_ids"]
    assert ids[: len(start)] == start
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logs[i - 1, ids[i]].item() for i in range(len(start), len(ids)))


@pytest.fixture(scope="module")
def pairs(tokenizer, models):
    """Pairs, of which the aligned model prefers most, compared with the reference."""
    answers = ["blue", "green", "carbon dioxide", "oxygen", "Jupiter", "Mars", "cold", "hot", "A", "B", "C", "D"]
    rows = []
    for i in range(12):
        prompt, sides = PROMPTS[i % len(PROMPTS)], [answers[i % 12], answers[(7 * i + 5) % 12]]
        margins = [log_likelihood(models["aligned"], tokenizer, prompt, side) for side in sides]
        margins = [
            m - log_likelihood(models["reference"], tokenizer, prompt, s) for m, s in zip(margins, sides, strict=True)
        ]
        if (margins[0] > margins[1]) != (i % 6 > 0):
            sides.reverse()
        messages = [[{"role": "assistant", "content": side}] for side in sides]
        prompt = [{"role": "user", "content": prompt}]
        rows.append({"prompt": prompt, "chosen": messages[0], "rejected": messages[1]})
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def report(tokenizer, models, pairs):
    given = {"pairs": pairs, "prompts": PROMPTS, "texts": TEXTS}
    return alignment_report(models["aligned"], tokenizer, models["repaired"], models["reference"], **given, **FAST)


def value(report, model, measure):
    estimate = report.models[model][measure]
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.value


# Numbers


@pytest.mark.parametrize("with_reference", [True, False])
def test_preferences_pair_by_pair(report, with_reference, tokenizer, models, pairs):
    if not with_reference:
        given = {"pairs": pairs, "prompts": PROMPTS}
        report = alignment_report(models["aligned"], tokenizer, models["repaired"], **given, **FAST)
    scores = {
        name: np.array([
            [log_likelihood(model, tokenizer, row["prompt"][0]["content"], row[side][0]["content"]) for side in ("chosen", "rejected")]
            for row in pairs
        ])
        for name, model in models.items()
    }  # fmt: skip
    ratios = {name: each[:, 0] - each[:, 1] for name, each in scores.items() if with_reference or name != "reference"}
    for name, ratio in ratios.items():
        assert value(report, name, "pair_accuracy") == pytest.approx(np.mean(ratio > 0))
    margins = {name: ratios[name] - (ratios["reference"] if with_reference else 0) for name in ("aligned", "repaired")}
    for name, margin in margins.items():
        assert value(report, name, "margin") == pytest.approx(margin.mean(), rel=1e-4)
        if with_reference:
            assert value(report, name, "reward_accuracy") == pytest.approx(np.mean(margin > 0))
    retention = report.models["repaired"]["margin_retention"]
    if with_reference:
        assert retention.value == pytest.approx(margins["repaired"].mean() / margins["aligned"].mean(), rel=1e-4)
        assert 0 < retention.value < 1 and report.margin_kind == "implicit_reward"
        assert "margin" not in report.models["reference"]
    else:
        assert report.margin_kind == "log_ratio" and "reference" not in report.models
        assert np.isnan(retention.value) == (report.models["aligned"]["margin"].low <= 0)
    assert report.n_pairs == 12 and report.n_pairs_left_out == 0


def test_texts_token_by_token(report, tokenizer, models):
    prompts = encode_prompts(tokenizer, PROMPTS)
    written = {name: continue_prompts(model, tokenizer, prompts, 12, 0, 8) for name, model in models.items()}
    logs = {}
    for name, model in models.items():
        with torch.no_grad():
            logs[name] = torch.cat([
                model(torch.tensor([text.input_ids])).logits[0, text.start - 1 : -1].log_softmax(-1)
                for text in written["aligned"]
            ])  # fmt: skip
    assert report.n_tokens == len(logs["aligned"]) and report.n_prompts == len(PROMPTS)
    for name in ("reference", "repaired"):
        p, q = logs["aligned"], logs[name]
        assert value(report, name, "kl_per_token") == pytest.approx(
            (p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4
        )
        agreement = (p.argmax(-1) == q.argmax(-1)).float().mean().item()
        assert value(report, name, "top1_agreement") == pytest.approx(agreement)
    for name, texts in written.items():
        assert value(report, name, "length") == pytest.approx(np.mean([len(t.input_ids) - t.start for t in texts]))
        ends = [t.input_ids[-1] == tokenizer.eos_token_id for t in texts]
        assert value(report, name, "end_rate") == pytest.approx(np.mean(ends))
    assert not {"kl_per_token", "top1_agreement", "perplexity_ratio", "margin_retention"} & set(
        report.models["aligned"]
    )


def test_perplexity_of_given_and_of_generated_texts(report, tokenizer, models):
    def perplexity(model, rows, starts):
        losses = []
        for ids, start in zip(rows, starts, strict=True):
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            losses += [-logs[i - 1, ids[i]].item() for i in range(start, len(ids))]
        return np.exp(np.mean(losses))

    rows = tokenizer(TEXTS)["input_ids"]
    given = {name: perplexity(model, rows, [1] * 3) for name, model in models.items()}
    assert report.perplexity_texts == "given" and report.n_texts == 3
    generated = alignment_report(models["aligned"], tokenizer, models["repaired"], prompts=PROMPTS, **FAST)
    assert generated.perplexity_texts == "generated" and generated.n_pairs == 0
    texts = continue_prompts(models["aligned"], tokenizer, encode_prompts(tokenizer, PROMPTS), 12, 0, 8)
    rows, starts = [list(text.input_ids) for text in texts], [text.start for text in texts]
    for found, expected in (
        (report, given),
        (generated, {name: perplexity(models[name], rows, starts) for name in ("aligned", "repaired")}),
    ):
        for name, number in expected.items():
            assert value(found, name, "perplexity") == pytest.approx(number, rel=1e-4)
        ratio = expected["repaired"] / expected["aligned"]
        assert value(found, "repaired", "perplexity_ratio") == pytest.approx(ratio, rel=1e-4)


def test_intervals_cover_the_value_of_all_pairs(tokenizer, models, pairs):
    """Of two halves of the pairs, the margin of one is mostly in the interval of the other; more pairs narrow it."""
    meter = AlignmentMeter(tokenizer, pairs, PROMPTS, **FAST)
    meter.measure("aligned", models["aligned"])
    few = meter.report().models["aligned"]["margin"]
    behaviour = meter.behaviours["aligned"]
    ratio = behaviour.pair_scores @ [1.0, -1.0]
    standard_error = ratio.std() / np.sqrt(len(ratio))
    assert few.high - few.low == pytest.approx(2 * 1.96 * standard_error, rel=0.4)


def test_the_same_model_is_unchanged(tokenizer, models, pairs):
    report = alignment_report(
        models["aligned"], tokenizer, {"copy": models["aligned"]}, pairs=pairs, prompts=PROMPTS, **FAST
    )
    found = report.models["copy"]
    assert found["kl_per_token"] == (0, 0, 0) and found["top1_agreement"] == found["perplexity_ratio"] == (1, 1, 1)
    assert report.text_unchanged("copy") and "Text: as before." in report.lines()[0]
    for measure in ("pair_accuracy", "margin", "length", "end_rate"):
        assert found[measure] == report.models["aligned"][measure]


# Report


def test_report_survives_its_file(report):
    flat = json.loads(json.dumps(report.to_dict()))
    assert AlignmentReport.from_dict(flat) == report
    rows = report.rows()
    assert [row[0] for row in rows] == list(MEASURES) and all(len(row) == 5 for row in rows)
    assert report.markdown().count("\n") == len(rows) + 1 and "repaired [95%]" in report.markdown()
    assert "implicit reward against the reference" in report.method() and "3 given texts" in report.method()
    missing = report.to_dict() | {"repaired/margin_retention": None}
    assert np.isnan(AlignmentReport.from_dict(missing).models["repaired"]["margin_retention"].value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"repaired/kl_per_token": "<b>"}, "repaired/kl_per_token is"),
        ({"n_pairs": "many"}, "n_pairs is 'many', not int"),
        ({"margin_kind": "x"}, "margin_kind is 'x'"),
    ],
)
def test_a_file_that_is_no_report(report, change, named):
    with pytest.raises(ValueError, match=named):
        AlignmentReport.from_dict(report.to_dict() | change)
    with pytest.raises(ValueError, match="no measure of any model"):
        AlignmentReport.from_dict({"n_pairs": 3})


def test_no_margin_to_keep():
    measures = {"margin_retention": Estimate(*[float("nan")] * 3), "kl_per_token": Estimate(0.2, 0.1, 0.3)}
    measures |= {"top1_agreement": Estimate(0.9, 0.8, 1.0), "perplexity_ratio": Estimate(1.0, 1.0, 1.0)}
    (line,) = AlignmentReport(models={"aligned": {}, "repaired": measures}).lines()
    assert "no preference margin above zero" in line and "Text: changed." in line


# Measuring


def test_a_second_call_takes_what_the_folder_holds(tokenizer, models, pairs, tmp_path, monkeypatch):
    def measured(**changes):
        meter = AlignmentMeter(tokenizer, pairs, PROMPTS, TEXTS, **{**FAST, **changes})
        for name in ("aligned", "reference", "repaired"):
            meter.measure(name, models[name], tmp_path / name)
        return meter.report()

    first = measured()
    with monkeypatch.context() as patch:
        for name in ("continue_prompts", "compare_texts", "score_pairs"):
            patch.setattr(f"hf_calib.evaluation.alignment.{name}", lambda *_, **__: pytest.fail("measured again"))
        assert measured() == first
    monkeypatch.setattr(preference_scores.OptionScorer, "__call__", lambda *_: pytest.fail("scored again"))
    assert measured(max_new_tokens=6).n_tokens < first.n_tokens  # other texts, the same pairs


def test_the_main_process_decides_what_is_taken(tokenizer, models, tmp_path, monkeypatch):
    meter = AlignmentMeter(tokenizer, prompts=PROMPTS, **FAST)
    meter.measure("aligned", models["aligned"], tmp_path / "main")
    saved, sent = meter.behaviours["aligned"], []

    def broadcast(found):
        sent.append(found[0])
        found[0] = saved

    monkeypatch.setattr(
        alignment, "process_state", lambda: SimpleNamespace(is_main_process=False, num_processes=2, process_index=1)
    )
    monkeypatch.setattr(alignment, "broadcast_object_list", broadcast)
    for folder in ("main", "without"):  # whether or not this process sees the file
        other = AlignmentMeter(tokenizer, prompts=PROMPTS, **FAST)
        other.measure("aligned", models["aligned"], tmp_path / folder)
        assert other.behaviours["aligned"] is saved
    assert sent == [None, None]


def test_the_aligned_model_comes_first(tokenizer, models):
    with pytest.raises(ValueError, match="measure the model 'aligned' first, then 'repaired'"):
        AlignmentMeter(tokenizer).measure("repaired", models["repaired"])


def test_long_prompts_and_pairs_are_left_out_and_counted(tokenizer, models, pairs):
    long = "water " * 200
    rows = [{**pairs[0], "chosen": [{"role": "assistant", "content": long}]}, *pairs.select(range(1, 4))]
    given = {"pairs": Dataset.from_list(rows), "prompts": [*PROMPTS, long], "max_length": 100}
    report = alignment_report(models["aligned"], tokenizer, models["repaired"], **given, **FAST)
    assert (report.n_pairs, report.n_pairs_left_out) == (3, 1)
    assert (report.n_prompts, report.n_prompts_left_out) == (5, 1)
    assert "1 pairs were left out" in report.method() and "1 prompts were left out" in report.method()


def test_prompts_of_the_package(tokenizer, tiny_tokenizers, tiny_llama):
    assert len(load_prompts()) == len(set(load_prompts()) - set(INSTRUCTIONS)) == 64  # others than in training
    meter = AlignmentMeter(tokenizer)
    assert len(meter.prompts) == 64 and tokenizer.decode(meter.prompts[0]).startswith(
        "<|im_start|>user\nExplain in two"
    )
    words = tiny_tokenizers["word_level"]  # knows none of them
    report = alignment_report(tiny_llama(words), words, **FAST, prompts_limit=8)
    assert report.n_prompts == 8 and "sampled on 8 empty prompts" in report.method()


# Files and errors


def test_files_of_prompts_and_texts(tmp_path):
    (tmp_path / "prompts.txt").write_text("One?\n\nTwo?\n")
    assert load_prompts(tmp_path / "prompts.txt") == ["One?", "Two?"]
    (tmp_path / "texts.txt").write_text("a b\nc\n\n\n\nd\n")
    assert load_texts(str(tmp_path / "texts.txt")) == ["a b\nc", "d"]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    Dataset.from_list([{"messages": chat}] * 2).to_json(tmp_path / "chat.jsonl")
    assert load_prompts(tmp_path / "chat.jsonl") == [chat[:1]] * 2
    Dataset.from_list([{"prompt": f"{i}?"} for i in range(9)]).to_parquet(tmp_path / "many.parquet")
    drawn = load_prompts(tmp_path / "many.parquet", limit=4, seed=1)
    assert len(set(drawn)) == 4 and drawn == load_prompts(tmp_path / "many.parquet", limit=4, seed=1)
    assert load_texts(Dataset.from_dict({"text": ["x", "", None, "y"]})) == ["x", "y"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"prompts": []}, "the given prompts: there are no prompts"),
        ({"prompts": "{folder}/empty.txt"}, "empty.txt: there are no prompts"),
        ({"prompts": "{folder}/no.txt"}, "no.txt: no such file"),
        ({"prompts": "{folder}/pairs.parquet"}, "no column `prompt` or `messages` among a"),
        ({"prompts": [["a"]]}, "prompt 0 is neither a text nor a list of messages"),
        ({"prompts": [[{"role": "assistant", "content": "a"}]]}, "no message of a user"),
        ({"texts": "{folder}/pairs.parquet"}, "no column `text` among a"),
        ({"texts": [3]}, "'3' is not a text"),
        ({"pairs": "{folder}/pairs.parquet"}, "no column 'chosen', 'rejected' among a"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_calls_are_named(given, named, tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "pairs.parquet")
    given = {name: each.format(folder=tmp_path) if isinstance(each, str) else each for name, each in given.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        AlignmentMeter(tokenizer, **given)


def test_tokenizers_without_what_is_needed(tiny_tokenizers, tiny_llama, models, pairs, tokenizer):
    import copy

    plain = tiny_tokenizers["gpt2"]
    with pytest.raises(ValueError, match="pairs are messages, but the tokenizer of .* has no chat template"):
        AlignmentMeter(plain, pairs=pairs)
    with pytest.raises(ValueError, match="prompts are messages, but the tokenizer of .* has no chat template"):
        AlignmentMeter(plain, prompts=[[{"role": "user", "content": "a"}]])
    endless = copy.deepcopy(plain)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        AlignmentMeter(endless)
    with pytest.raises(ValueError, match="vocabularies differ"):
        alignment_report(models["aligned"], tokenizer, tiny_llama(plain, vocab_size=300), prompts=PROMPTS, **FAST)
    with pytest.raises(ValueError, match="every prompt is longer than"):
        alignment_report(models["aligned"], tokenizer, prompts=PROMPTS, max_length=8, **FAST)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        alignment_report(models["aligned"], tokenizer, prompts=PROMPTS, texts=["a"], **FAST)
