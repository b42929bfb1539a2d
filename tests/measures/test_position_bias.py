"""Position bias of models with known results."""

import numpy as np
import pytest
from samples import make

from hf_calib.measures.position_bias import order_report


def rotated(probabilities):
    """Predictions of a model without position bias."""
    return np.stack([np.roll(probabilities, shift, axis=1) for shift in range(probabilities.shape[1])])


def test_unbiased_model():
    stated, labels, _ = make(300)
    report = order_report(rotated(stated), labels)
    accuracy = (stated.argmax(1) == labels).mean()
    assert report["flip_rate"] == report["position_shift"] == 0
    assert report["accuracy"] == report["averaged_accuracy"] == pytest.approx(accuracy)
    assert [report[f"accuracy_at/{place}"] for place in range(4)] == pytest.approx([accuracy] * 4)
    assert [report[f"letter_prior/{place}"] for place in range(4)] == pytest.approx([0.25] * 4)
    assert report["flip_rate_high"] > 0 and report["agreement"] == 1


def test_model_with_a_preferred_letter():
    stated, labels, _ = make(300)
    prior = np.array([0.55, 0.25, 0.1, 0.1])
    biased = rotated(stated) * prior
    biased /= biased.sum(axis=2, keepdims=True)
    report = order_report(biased, labels, rotated(stated))
    assert [report[f"letter_prior/{place}"] for place in range(4)] == pytest.approx(prior)
    assert report["accuracy_at/0"] > report["reference/accuracy_at/0"] > report["accuracy_at/3"]
    assert report["predicted_at/0"] - 0.25 == pytest.approx(report["position_shift"], abs=0.05)
    assert report["change/flip_rate_low"] > 0 and report["change/position_shift_low"] > 0
    # the mean over the orders prefers no place
    assert report["averaged_accuracy"] == pytest.approx(report["reference/accuracy"], abs=0.05)


def test_agreement():
    stated, labels, _ = make(50)
    always_a = np.tile([0.7, 0.1, 0.1, 0.1], (4, 50, 1))
    assert order_report(always_a, labels)["agreement"] == 0
    three_of_four = rotated(stated)
    three_of_four[3] = np.roll(three_of_four[3], 1, axis=1)
    assert order_report(three_of_four, labels)["agreement"] == pytest.approx(0.5)  # 3 of 6 pairs of orders


def test_bad_input_is_named():
    stated, labels, _ = make(20)
    with pytest.raises(ValueError, match="`probabilities`"):
        order_report(rotated(stated)[:3], labels)
    with pytest.raises(ValueError, match="reference_probabilities"):
        order_report(rotated(stated), labels, rotated(stated[:10]))
