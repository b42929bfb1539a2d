import copy
import os
from functools import partial

import numpy as np
import pytest
import torch
from adapters import with_lora
from datasets import Dataset
from samples import Counter, make_questions
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from hf_calib.data.questions import PromptFormat, load_questions
from hf_calib.inference.encoding import OptionEncoder, QuestionTooLongError
from hf_calib.inference.predict import predict_options
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.inference.resumable import make_batches


TOKENIZERS = ["llama", "llama_eos", "gpt2", "gpt2_eos", "qwen"]


def reference(model, tokenizer, row, prompt_format, option_normalization="sum"):
    """Log-likelihood of each option after the prompt, from the full logits of one sequence at a time."""
    prompt, candidates, _ = prompt_format.render(tokenizer, row["question"], row["choices"])
    special = prompt_format.add_special_tokens(tokenizer)

    def tokenize(text):
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids[:-1] if special and ids[-1] == tokenizer.eos_token_id else ids

    sequences = [tokenize(prompt + candidate) for candidate in candidates]
    shared = len(os.path.commonprefix([tokenize(prompt), *sequences]))
    scores = []
    for ids in sequences:
        with torch.no_grad():
            log_probs = model(torch.tensor([ids], device=model.device)).logits[0].float().log_softmax(-1)
        values = [log_probs[t - 1, ids[t]].item() for t in range(shared, len(ids))]
        scores.append(sum(values) if option_normalization == "sum" else sum(values) / len(values))
    return np.array(scores)


def assert_matches(
    predictions, model, tokenizer, questions, prompt_format, option_normalization="sum", tolerance=1e-4
):
    for logits, row in zip(predictions.option_logits, questions, strict=True):
        k = len(row["choices"])
        expected = reference(model, tokenizer, row, prompt_format, option_normalization)
        np.testing.assert_allclose(logits[:k], expected, atol=tolerance)
        assert np.isneginf(logits[k:]).all()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_letters_equal_the_full_logits(tiny_tokenizers, tiny_llama, name):
    tokenizer, questions = tiny_tokenizers[name], make_questions()
    model = tiny_llama(tokenizer)
    counter = Counter(model)
    predictions = predict_options(model, tokenizer, questions, batch_size=3, progress=False)
    # Five passes more find out whether what all prompts begin with can be read once.
    assert counter.questions in (len(questions), len(questions) + 5)
    assert_matches(predictions, model, tokenizer, questions, PromptFormat())
    assert predictions.ids.tolist() == questions["id"][:] and predictions.labels.tolist() == questions["answer"][:]
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(predictions.option_mass, np.exp(predictions.option_logits).sum(1), atol=1e-6)
    assert (predictions.option_mass < 1).all()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("option_normalization", ["sum", "mean"])
def test_texts_equal_one_by_one_log_likelihoods(tiny_tokenizers, tiny_llama, name, option_normalization):
    tokenizer, questions = tiny_tokenizers[name], make_questions()
    model = tiny_llama(tokenizer)
    predictions = predict_options(
        model,
        tokenizer,
        questions,
        scoring="text",
        option_normalization=option_normalization,
        batch_size=3,
        progress=False,
    )
    assert_matches(predictions, model, tokenizer, questions, PromptFormat("text"), option_normalization)
    assert np.isnan(predictions.option_mass).all() == (option_normalization == "mean")


@pytest.mark.parametrize("option_normalization", ["sum", "mean"])
def test_votes_equal_the_best_options_of_both_scores(tiny_tokenizers, tiny_llama, tmp_path, option_normalization):
    tokenizer, questions = tiny_tokenizers["llama"], make_questions()
    model, prompt_format = tiny_llama(tokenizer), PromptFormat("text")
    path = tmp_path / "predictions.npz"
    options = {"prompt_format": prompt_format, "option_normalization": option_normalization, "progress": False}
    predictions = predict_options(model, tokenizer, questions, votes=True, output_path=path, **options)
    assert predictions.metadata["votes"] == ["sum", "pmi"]
    for votes, row in zip(predictions.votes, questions, strict=True):
        sums = reference(model, tokenizer, row, prompt_format)
        unasked = reference(model, tokenizer, {**row, "question": "N/A"}, prompt_format)
        assert votes.tolist() == [sums.argmax(), (sums - unasked).argmax()]
    plain = predict_options(model, tokenizer, questions, **options)
    np.testing.assert_allclose(predictions.option_logits, plain.option_logits, atol=1e-5)
    assert plain.votes is None
    again = OptionPredictions.load(path).select(predictions.ids[::-1])
    np.testing.assert_array_equal(again.votes, predictions.votes[::-1])


def test_votes_on_letters(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["llama"]
    predictions = predict_options(tiny_llama(tokenizer), tokenizer, make_questions(), votes=True, progress=False)
    assert predictions.metadata["single_tokens"] and predictions.votes.shape == (len(predictions), 2)
    np.testing.assert_array_equal(predictions.votes[:, 0], predictions.option_logits.argmax(1))


def test_unlabelled_questions_need_no_answers(tiny_tokenizers, tiny_llama):
    tokenizer, questions = tiny_tokenizers["llama"], make_questions()
    model = tiny_llama(tokenizer)
    unlabelled = questions.remove_columns("answer")
    predictions = predict_options(model, tokenizer, unlabelled, labelled=False, progress=False)
    assert (predictions.labels == -100).all()
    labelled = predict_options(model, tokenizer, questions, progress=False)
    np.testing.assert_allclose(predictions.option_logits, labelled.option_logits, atol=1e-6)


def test_texts_of_single_tokens_take_one_pass_each(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["word_level"]
    rows = [
        {"question": "The answer is", "choices": ["cold,", "hot."], "answer": 0, "target_probabilities": [0.3, 0.7]}
    ]
    rows.append(
        {"question": "Ice", "choices": ["is", "the", "water,"], "answer": 2, "target_probabilities": [0, 0, 1]}
    )
    model, questions = tiny_llama(tokenizer), Dataset.from_list(rows)
    counter = Counter(model)
    predictions = predict_options(model, tokenizer, questions, scoring="text", progress=False)
    assert counter.questions == 2
    assert_matches(predictions, model, tokenizer, questions, PromptFormat("text"))
    np.testing.assert_allclose(predictions.target_probabilities, [[0.3, 0.7, 0], [0, 0, 1]], atol=1e-7)


@pytest.mark.parametrize("scoring", ["letter", "text"])
def test_padding_side_and_batch_size_do_not_matter(tiny_tokenizers, tiny_llama, scoring):
    tokenizer, questions = tiny_tokenizers["llama"], make_questions()
    model = tiny_llama(tokenizer)
    results = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        for batch_size in (1, 5):
            settings = {"scoring": scoring, "batch_size": batch_size, "progress": False}
            results.append(predict_options(model, tokenizer, questions, **settings).option_logits)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)


def test_adapters_change_predictions(tiny_tokenizers, tiny_llama):
    tokenizer, questions = tiny_tokenizers["gpt2"], make_questions()
    model = tiny_llama(tokenizer)
    plain = predict_options(model, tokenizer, questions, scoring="text", progress=False)
    adapted = with_lora(model, target_modules="all-linear")
    predictions = predict_options(adapted, tokenizer, questions, scoring="text", progress=False)
    assert not np.allclose(predictions.probabilities, plain.probabilities, atol=1e-3)
    assert_matches(predictions, adapted.eval(), tokenizer, questions, PromptFormat("text"))


def test_training_mode_is_restored_and_dropout_is_off(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["gpt2"]
    model = tiny_llama(tokenizer, attention_dropout=0.5).train()
    first, second = (predict_options(model, tokenizer, make_questions(), progress=False) for _ in range(2))
    np.testing.assert_array_equal(first.option_logits, second.option_logits)
    assert model.training


@pytest.mark.parametrize("kind", ["recurrent", "sliding window"])
def test_architectures_without_branch_masks_score_one_by_one(tiny_tokenizers, tiny_llama, kind, caplog):
    tokenizer, questions = tiny_tokenizers["gpt2"], make_questions(5)
    torch.manual_seed(0)
    if kind == "recurrent":
        config = MambaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.3
        )
        model = MambaForCausalLM(config).eval()
    else:
        # The branch mask would take the place of the window.
        config = MistralConfig(**{**tiny_llama(tokenizer).config.to_diff_dict(), "sliding_window": 8})
        model = MistralForCausalLM(config).eval()
    predictions = predict_options(model, tokenizer, questions, scoring="text", batch_size=2, progress=False)
    assert "does not follow a branch attention mask" in caplog.text
    assert_matches(predictions, model, tokenizer, questions, PromptFormat("text"), tolerance=1e-3)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_tf32_rounding_is_within_the_tolerance(tiny_tokenizers, tiny_llama, precision, request, caplog):
    model, matmul = tiny_llama(tiny_tokenizers["gpt2"]), torch.backends.cuda.matmul
    request.addfinalizer(partial(setattr, matmul, "fp32_precision", matmul.fp32_precision))
    matmul.fp32_precision = precision
    generator = torch.Generator().manual_seed(0)

    def noisy(_, inputs, output):  # another error in every pass, beyond what float32 makes
        return output + 0.5 * torch.randn(output.shape, generator=generator)

    model.model.norm.register_forward_hook(noisy)
    predict_options(model, tiny_tokenizers["gpt2"], make_questions(5), scoring="text", progress=False)
    assert ("does not follow a branch attention mask" in caplog.text) == (precision == "ieee")


def test_nan_names_the_question_and_keeps_the_rest(tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer = tiny_tokenizers["word_level"]
    model = tiny_llama(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("helium")] = torch.nan
    rows = [{"id": f"q{i}", "question": "Ice is water", "choices": ["x", "y"], "answer": 0} for i in range(3)]
    rows.append({"id": "the culprit", "question": "helium", "choices": ["x", "y"], "answer": 0})
    template = PromptFormat(prompt_template="{question} {options} Answer:")
    with pytest.raises(ValueError, match="question 'the culprit' has option logits .nan"):
        predict_options(
            model, tokenizer, Dataset.from_list(rows), prompt_format=template, batch_size=1,
            output_path=tmp_path / "predictions.npz", progress=False,
        )  # fmt: skip
    assert list((tmp_path / "predictions.npz.partial").glob("*.npz"))


def test_long_questions_raise_or_are_dropped(tiny_tokenizers, tiny_llama, caplog):
    tokenizer, questions = tiny_tokenizers["gpt2"], make_questions(6)
    long = {"id": "endless", "question": "water " * 600, "choices": ["a", "b"], "answer": 0}
    questions = Dataset.from_list([long, *questions])
    model = tiny_llama(tokenizer)
    with pytest.raises(QuestionTooLongError, match="'endless' needs .* max_length is 512.*drop_too_long=True"):
        predict_options(model, tokenizer, questions, progress=False)
    predictions = predict_options(model, tokenizer, questions, drop_too_long=True, progress=False)
    assert predictions.ids.tolist() == questions["id"][1:] and predictions.metadata["too_long"] == 1
    assert "left out 1 of 7 questions longer than 512 tokens" in caplog.text
    with pytest.raises(QuestionTooLongError, match="none of 7 questions fits in max_length=3"):
        predict_options(model, tokenizer, questions, max_length=3, drop_too_long=True, progress=False)


def test_invalid_calls_raise_before_the_model_runs(tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer, questions = tiny_tokenizers["gpt2"], make_questions(2)
    model = tiny_llama(tokenizer)
    (tmp_path / "file").touch()
    for settings, message in [
        ({"scoring": "text", "prompt_format": PromptFormat("letter")}, "contradicts"),
        ({"option_normalization": "median"}, "choose 'sum' or 'mean'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"output_path": tmp_path / "predictions.csv"}, "are .npz files"),
        ({"output_path": tmp_path / "file" / "predictions.npz"}, "choose another output_path"),
    ]:
        counter = Counter(model)
        with pytest.raises((ValueError, OSError), match=message):
            predict_options(model, tokenizer, questions, **settings)
        assert counter.questions == 0
    with pytest.raises(ValueError, match="the columns id, query, choices, answer are of no known layout"):
        predict_options(model, tokenizer, questions.rename_column("question", "query"))


def test_a_tokenizer_that_is_larger_than_the_embeddings(tiny_tokenizers, tiny_llama):
    tokenizer, questions = copy.deepcopy(tiny_tokenizers["gpt2"]), make_questions(4)
    model = tiny_llama(tokenizer)
    expected = predict_options(model, tokenizer, questions, scoring="text", batch_size=4, progress=False)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # padding is masked, so another token can pad
    found = predict_options(model, tokenizer, questions, scoring="text", batch_size=4, progress=False)
    np.testing.assert_array_equal(found.option_logits, expected.option_logits)
    tokenizer.add_tokens(["carbon dioxide"])
    rows = Dataset.from_list([{"question": "Air", "choices": ["carbon dioxide", "ice"], "answer": 0}])
    counter = Counter(model)
    with pytest.raises(ValueError, match="401 of the questions, 'carbon dioxide', .* 402 tokens, the model 400"):
        predict_options(model, tokenizer, rows, scoring="text", progress=False)
    assert counter.questions == 0


def test_batches_hold_every_question_once_and_about_as_many_tokens():
    features = [{"input_ids": [0] * length} for length in [5, 40, 10, 10, 3, 20, 7, 7, 7]]
    batches = make_batches(features, [0, 1, 2, 3, 5, 6, 7, 8], batch_size=1)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert batches[0] == [1]
    assert all(len(batch) * len(features[batch[0]]["input_ids"]) <= 40 for batch in batches)


def test_padding_is_at_most_an_eighth():
    lengths = [100, 98, 50, 49, 48, 10, 10, 10, 9]
    batches = make_batches([{"input_ids": [0] * n} for n in lengths], range(len(lengths)), batch_size=16)
    assert batches == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]
    for batch in batches:
        padded = len(batch) * lengths[batch[0]]
        assert 8 * (padded - sum(lengths[index] for index in batch)) <= padded


def test_real_model(smollm2, smollm2_tokenizer, shared_data):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    questions = load_questions(shared_data / "arc_easy_test.parquet", limit=3, seed=0)
    for scoring, least_mass in (("letter", 0.1), ("text", 0)):
        asked = {"scoring": scoring, "batch_size": 2, "progress": False}
        predictions = predict_options(model, smollm2_tokenizer, questions, **asked)
        assert_matches(predictions, model, smollm2_tokenizer, questions, PromptFormat(scoring), tolerance=2e-3)
        assert (predictions.option_mass > least_mass).all()


@pytest.mark.parametrize("scoring", ["letter", "text"])
def test_shared_prefix_is_read_once(scoring, tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["qwen"]
    model, questions = tiny_llama(tokenizer), make_questions(17)
    prompt_format = PromptFormat(scoring, system_prompt="The answer is cold, the answer is hot.")
    lengths = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].size(1)), with_kwargs=True
    )
    predictions = predict_options(
        model, tokenizer, questions, prompt_format=prompt_format, batch_size=4, progress=False
    )
    hook.remove()
    assert_matches(predictions, model, tokenizer, questions, prompt_format)
    prompt, _, _ = prompt_format.render(tokenizer, "Question", ["ice", "water"])
    shared = len(tokenizer(prompt.partition("Question")[0])["input_ids"])
    alone = predict_options(
        model, tokenizer, questions.select([0]), prompt_format=prompt_format, progress=False
    ).option_logits[0]
    np.testing.assert_allclose(predictions.option_logits[0, : len(alone)], alone, rtol=1e-4)
    prefix = min(lengths)  # by itself; then two questions in both ways, then all of them
    encoder = OptionEncoder(tokenizer, prompt_format)
    longest = max(len(encoder.encode(row)["input_ids"]) for row in questions)
    assert prefix >= shared and max(lengths[lengths.index(prefix) + 5 :]) == longest - prefix
