"""Reports of batches equal the report of all rows, in constant memory."""

import pickle

import numpy as np
import pytest
from samples import make

from hf_calib.measures.calibration_error import (
    StreamingCalibration,
    calibration_report,
    confidence_report,
    reliability_bins,
    top_label,
)


# tolerance of the measures that depend on the order of all rows, from 20,000 rows on
RESOLUTION = {"ece_equal_mass": 1e-3, "ece_sweep": 1e-3}
RESOLUTION |= {f"{name}{end}": 2e-5 for name in ("auroc", "aurc") for end in ("", "_low", "_high")}
RESOLUTION |= {"e_aurc": 2e-5, "augrc": 2e-5}


def assert_same(streamed, whole):
    assert list(streamed) == list(whole)
    for key, value in whole.items():
        assert streamed[key] == pytest.approx(value, abs=RESOLUTION.get(key, 1e-9), nan_ok=True), key


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sharpness", [0.6, 1.0, 1.8, 12.0])  # the last: most confidences above .99
def test_batches_and_merged_streams_equal_one_report(sharpness, weighted):
    probabilities, labels, _ = make(n=20_000, sharpness=sharpness)
    weights = np.random.default_rng(1).exponential(size=20_000) if weighted else None
    if weighted:
        weights[:500] = 0  # a batch without weight
    whole = calibration_report(probabilities, labels, n_bootstrap=100, seed=3, sample_weight=weights)
    streams = StreamingCalibration(), StreamingCalibration()
    borders = [0, 500, 501, 1777, 4000, 20_000]
    for batch, (start, end) in enumerate(zip(borders, borders[1:], strict=False)):
        part = slice(start, end)
        streams[batch % 2].update(probabilities[part], labels[part], weights[part] if weighted else None)
    merged = streams[0].merge(pickle.loads(pickle.dumps(streams[1])))
    assert_same(merged.report(n_bootstrap=100, seed=3), whole)
    bins = reliability_bins(*top_label(probabilities, labels), sample_weight=weights)
    for mine, theirs in zip(merged.bins(), bins, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("order", [(2, 4, 3), (4, 2, 3)])
def test_batches_may_differ_in_options(order):
    batches = [make(n=50, k=k, seed=k)[:2] for k in order]
    stream = StreamingCalibration(n_bins=5)
    for probabilities, labels in batches:
        stream.update(probabilities, labels)
    padded = np.concatenate([np.pad(p, ((0, 0), (0, 4 - p.shape[1]))) for p, _ in batches])
    whole = calibration_report(padded, np.concatenate([labels for _, labels in batches]), n_bins=5)
    streamed = stream.report()
    assert {key: streamed[key] for key in ("cw_ece", "brier", "brier_calibration", "nll", "ece")} == pytest.approx(
        {key: whole[key] for key in ("cw_ece", "brier", "brier_calibration", "nll", "ece")}, abs=1e-9
    )


def test_confidences():
    confidences, correct = top_label(*make(n=20_000)[:2])
    stream = StreamingCalibration().update_confidences(confidences[:99], correct[:99])
    stream.update_confidences(confidences[99:], correct[99:] == 1)
    assert_same(stream.report(n_bootstrap=50), confidence_report(confidences, correct, n_bootstrap=50))
    # measures that need the options are left out
    assert "cw_ece" not in StreamingCalibration().update([[0.4, 0.6]], [0]).merge(stream).report(n_bootstrap=50)


def test_extreme_confidences():
    confidences = np.array([0.0, 1e-300, 0.5, np.nextafter(1, 0), 1.0, 1.0])
    correct = np.array([0, 0, 1, 1, 1, 0])
    streamed = StreamingCalibration().update_confidences(confidences, correct).report(n_bootstrap=10)
    whole = confidence_report(confidences, correct, n_bootstrap=10)
    unordered = dict.fromkeys(("auroc", "aurc", "e_aurc", "augrc"), 0)
    assert {**streamed, **unordered} == pytest.approx({**whole, **unordered}, abs=1e-9)


def test_memory_does_not_grow():
    stream = StreamingCalibration()
    sizes = []
    for seed in range(3):
        stream.update(*make(n=20_000, seed=seed)[:2])
        sizes.append(len(pickle.dumps(stream)))
    assert len(set(sizes)) == 1 and sizes[0] < 7.3e6


def test_bad_batch_is_not_counted():
    probabilities, labels, _ = make(n=100_000)
    stream = StreamingCalibration().update(probabilities[:100], labels[:100])
    before = stream.report(n_bootstrap=10)
    probabilities[90_000] = [3.0, 1.0, 0.0, -1.0]  # after the first chunk
    with pytest.raises(ValueError, match="row 90000, option 3"):
        stream.update(probabilities, labels)
    with pytest.raises(ValueError, match="`labels`"):
        stream.update([[0.5, 0.5]] * 2, [0])
    with pytest.raises(ValueError, match="`correct`"):
        stream.update_confidences([0.5], [0.2])
    assert stream.report(n_bootstrap=10) == before


def test_empty_stream_and_bad_bins():
    with pytest.raises(ValueError, match="examples"):
        StreamingCalibration().update([[0.5, 0.5]], [0], sample_weight=[0]).report()
    with pytest.raises(ValueError, match="bins"):
        StreamingCalibration(10).merge(StreamingCalibration(15))
    with pytest.raises(ValueError, match="`n_bins`"):
        StreamingCalibration(0)
