"""The logits processor that applies a calibrator in `generate`."""

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from hf_calib.posthoc import MatrixScaling, TemperatureIsotonic, TemperatureScaling
from hf_calib.posthoc.logits_processor import OptionCalibrationProcessor


OPTIONS = [11, 5, 7]


def fitted(kind):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 3)) * 3
    return kind().fit(logits, np.where(rng.random(200) < 0.6, logits.argmax(axis=1), rng.integers(0, 3, 200)))


@pytest.mark.parametrize("kind", [TemperatureScaling, TemperatureIsotonic, MatrixScaling])
def test_only_options_are_calibrated(tiny_tokenizers, tiny_llama, kind):
    model, calibrator = tiny_llama(tiny_tokenizers["gpt2"]), fitted(kind)
    tokens = torch.arange(20).reshape(2, 10)
    processor = OptionCalibrationProcessor(calibrator, OPTIONS, prompt_length=10)
    options = {"max_new_tokens": 3, "do_sample": False, "output_scores": True, "output_logits": True}
    out = model.generate(
        tokens, logits_processor=LogitsProcessorList([processor]), return_dict_in_generate=True, **options
    )
    before, after = out.logits[0].softmax(-1), out.scores[0].softmax(-1)
    expected = calibrator.transform(out.logits[0][:, OPTIONS])
    np.testing.assert_allclose(after[:, OPTIONS] / after[:, OPTIONS].sum(-1, keepdim=True), expected, atol=1e-5)
    torch.testing.assert_close(after[:, OPTIONS].sum(-1), before[:, OPTIONS].sum(-1))
    others = [token for token in range(before.shape[1]) if token not in OPTIONS]
    torch.testing.assert_close(after[:, others], before[:, others])
    for step in (1, 2):
        torch.testing.assert_close(out.scores[step], out.logits[step])


@pytest.mark.parametrize("tokens", [[3, 3], [3]])
def test_invalid_option_tokens_raise(tokens):
    with pytest.raises(ValueError, match="two or more different tokens"):
        OptionCalibrationProcessor(fitted(TemperatureScaling), tokens, 5)
