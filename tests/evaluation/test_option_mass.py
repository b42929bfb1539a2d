"""The mean option mass of letters, and the advice where it is small."""

import json

import numpy as np
import pytest
from samples import make_questions

from hf_calib.cli.main import main
from hf_calib.evaluation.option_mass import mean_option_mass, small_mass_sentence
from hf_calib.inference.predictions import OptionPredictions


def predictions(mass, scoring="letter", **metadata):
    logits = np.log(np.array([[0.75 * mass, 0.25 * mass]] * 4, dtype=np.float32))
    stated = {"prompt_format": {"scoring": scoring}, **metadata}
    return OptionPredictions(logits, np.zeros(4, dtype=np.int64), np.array(list("abcd")), metadata=stated)


@pytest.mark.parametrize(("mass", "advice"), [(0.07, True), (0.49, True), (0.51, False), (1.0, False)])
def test_letters_with_little_mass(mass, advice):
    found = predictions(mass)
    assert mean_option_mass(found) == pytest.approx(mass, rel=1e-5)
    sentence = small_mass_sentence(found)
    assert (sentence is not None) == advice
    if advice:
        assert sentence.startswith(f"option mass {mass:.3f}: ") and "--prompt_template" in sentence


@pytest.mark.parametrize("found", [predictions(0.01, "text"), predictions(0.01, option_normalization="mean")])
def test_no_advice_where_options_are_no_letters_or_the_mass_is_not_known(found):
    assert small_mass_sentence(found) is None


def test_evaluate_advises(tmp_path, tiny_tokenizers, tiny_llama, capsys):
    tiny_llama(tiny_tokenizers["qwen"]).save_pretrained(tmp_path / "model")  # untrained: letters are as rare as others
    tiny_tokenizers["qwen"].save_pretrained(tmp_path / "model")
    make_questions(12).to_parquet(tmp_path / "questions.parquet")
    call = ["evaluate", "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "questions.parquet")]
    assert main([*call, "--n_bootstrap", "20", "--output_dir", str(tmp_path / "out")]) == 0
    mass = json.loads((tmp_path / "out" / "results.json").read_text())["option_mass"]
    saved = OptionPredictions.load(tmp_path / "out" / "predictions.npz")
    assert mass == pytest.approx(saved.option_mass.mean()) and 0 < mass < 0.1
    assert small_mass_sentence(saved) in capsys.readouterr().out
