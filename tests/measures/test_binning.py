"""The bin of a confidence does not depend on how the number is stored."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_calib import EMCalibrator, confidence_report, expected_calibration_error
from hf_calib.measures.binning import assign_bins, bin_edges, reliability_bins
from hf_calib.measures.noise_floor import group_cells
from hf_calib.measures.streaming import StreamingCalibration
from hf_calib.measures.validation import as_numbers


FORMS = {
    "list": list,
    "strings": lambda values: [str(value) for value in values],
    "float64": np.array,
    "float32": np.float32,
    "float16": np.float16,
    "list of float32": lambda values: np.float32(values).tolist(),
    "tensor": torch.tensor,
    "tensor with gradient": lambda values: torch.tensor(values, requires_grad=True),
    "tensor of bfloat16": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "tensor of float16": lambda values: torch.tensor(values, dtype=torch.float16),
    "list of tensors": lambda values: [torch.tensor(value) for value in values],
    "after a softmax": lambda values: torch.tensor([[v, 1 - v] for v in values]).log().softmax(-1)[:, 0],
}


def rows(form, confidences):
    """Probabilities of two options, stored in this form."""
    pairs = [[c, round(1 - c, 6)] for c in confidences]
    if form == "after a softmax":
        return torch.tensor(pairs).log().softmax(-1)
    return [FORMS[form](pair) for pair in pairs]


@pytest.mark.parametrize("form", FORMS)
def test_confidences_at_an_edge(form):
    """50 confidences of .7 (right 15 times) share a bin with 50 of .75 (right every time)."""
    confidences, correct = [0.7] * 50 + [0.75] * 50, [1] * 15 + [0] * 35 + [1] * 50
    assert confidence_report(FORMS[form](confidences), correct)["ece"] == pytest.approx(0.075, abs=1e-6)
    labels = [1 - right for right in correct]
    assert expected_calibration_error(rows(form, confidences), labels) == pytest.approx(0.075, abs=1e-6)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(1, 25), st.sampled_from(sorted(FORMS)))
def test_bins_are_those_of_exact_arithmetic(hundredths, n_bins, form):
    values = FORMS[form]([h / 100 for h in hundredths])
    expected = [min(int(Fraction(h, 100) * n_bins), n_bins - 1) for h in hundredths]
    counts = np.bincount(expected, minlength=n_bins).tolist()
    correct = [0] * len(hundredths)
    assert assign_bins(as_numbers(values).astype(np.float64), bin_edges(np.empty(0), n_bins)).tolist() == expected
    assert reliability_bins(values, correct, n_bins).counts.tolist() == counts
    assert StreamingCalibration(n_bins).update_confidences(values, correct).bins().counts.tolist() == counts
    cells = group_cells(values, correct, n_bins, "equal_width")
    filled = np.add.reduceat(cells.counts.sum(axis=1), cells.starts).tolist()
    assert filled == [count for count in counts if count]


@settings(max_examples=40)
@given(st.lists(st.integers(50, 100), min_size=1, max_size=20), st.integers(1, 25), st.integers(0, 2**20))
def test_the_calibration_map_looks_up_the_bin_of_the_fit(hundredths, n_bins, seed):
    confidences = [h / 100 for h in hundredths]
    labels = np.random.default_rng(seed).integers(0, 2, len(hundredths))
    probabilities = [[c, 1 - c] for c in confidences]
    calibrator = EMCalibrator("bins", n_bins, pseudo_count=0).fit(probabilities, labels)
    expected = calibrator.accuracy(np.array(confidences))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        other = EMCalibrator("bins", n_bins, pseudo_count=0).fit(torch.tensor(probabilities, dtype=dtype), labels)
        for map_ in (calibrator, other):
            found = map_.accuracy(torch.tensor(confidences, dtype=dtype))
            np.testing.assert_allclose(found.double().numpy(), expected, atol=4e-3)


@given(st.lists(st.floats(-100, 100, width=16), min_size=1))
def test_16_bit_numbers_become_their_shortest_decimal(values):
    half = np.array(values, np.float16)
    decimals = as_numbers(half)
    assert np.array_equal(decimals.astype(np.float16), half)
    normal = np.abs(half) > 1e-4  # smaller ones have fewer significant bits
    assert [float(str(value)) for value in half[normal]] == pytest.approx(decimals[normal].tolist(), rel=1e-12)
    brain = torch.tensor(values).bfloat16()
    assert torch.equal(torch.tensor(as_numbers(brain)).bfloat16(), brain)


def test_equal_mass_bins_compare_confidences_exactly():
    confidences = 1 - np.array([4e-9, 3e-9, 2e-9, 1e-9])
    assert reliability_bins(confidences, [0, 1, 1, 1], 4, "equal_mass").counts.tolist() == [1, 1, 1, 1]
