"""Saved calibrators: what is loaded is what was saved, and errors name the file."""

import json

import numpy as np
import pytest
from samples import make_logits as make

from hf_calib.posthoc import (
    METHODS,
    PostHocCalibrator,
    SubjectTemperature,
    TemperatureIsotonic,
    TemperatureScaling,
    fit_calibrator,
)


@pytest.mark.parametrize("kind", METHODS.values())
def test_saved_and_loaded(kind, tmp_path):
    logits, labels = make(n=200)
    groups = np.where(np.arange(200) % 2, "law", "maths")
    calibrator = fit_calibrator(kind.method, logits, labels, logits / 2, groups)
    calibrator.save(tmp_path / "new" / "folder")
    config = json.loads((tmp_path / "new/folder/calibrator.json").read_text())
    names = {name: getattr(calibrator, name) for name in kind.names}
    assert config == {"format_version": 1, "method": kind.method, **names}
    for loader in (kind, PostHocCalibrator):
        loaded = loader.load(tmp_path / "new" / "folder")
        assert type(loaded) is kind and loaded.digest == calibrator.digest
        np.testing.assert_array_equal(
            loaded.transform(logits, groups=groups), calibrator.transform(logits, groups=groups)
        )


def test_the_digest_is_of_what_was_fitted():
    logits, labels = make(n=200)
    first, other = TemperatureScaling().fit(logits, labels), TemperatureScaling().fit(logits[:150], labels[:150])
    assert first.digest == TemperatureScaling().fit(logits, labels).digest != other.digest
    groups = np.where(np.arange(200) % 2, "law", "maths")
    by_subject = SubjectTemperature().fit(logits, labels, groups=groups)
    digest = by_subject.digest
    by_subject.subjects = by_subject.subjects[::-1]
    assert by_subject.digest != digest


def test_load_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="calibrator.json"):
        TemperatureScaling.load(tmp_path)
    TemperatureScaling().fit(*make(n=100)).save(tmp_path)
    with pytest.raises(ValueError, match="'temperature', which TemperatureIsotonic cannot load"):
        TemperatureIsotonic.load(tmp_path)
    config = tmp_path / "calibrator.json"
    config.write_text(json.dumps({"format_version": 2, "method": "temperature"}))
    with pytest.raises(ValueError, match="newer hf_calib"):
        PostHocCalibrator.load(tmp_path)
    config.write_text(json.dumps({"format_version": 1, "method": "subject_temperature"}))
    with pytest.raises(ValueError, match=r"safetensors lacks spread, support, temperatures, weights"):
        PostHocCalibrator.load(tmp_path)
    config.write_text(json.dumps({"format_version": 1, "method": "beta"}))
    with pytest.raises(ValueError, match="lacks coefficients"):
        PostHocCalibrator.load(tmp_path)
