"""Details of lighteval."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_calib.prediction_files.options import ReadOptions
from hf_calib.prediction_files.read import read_predictions


SUMS = [[-1.0, -2.0, -4.0], [-3.0, -2.5, -5.0]]
CHOICES = [[" Rome", " Oslo", " Lima"], [" a b", " cc", " d"]]
TOKENS = [[[1], [2], [3, 4]], [[5, 6], [7], [8]]]


def write(folder, golds=(0, 2), **response):
    rows = [
        {
            "doc": {
                "id": str(row),
                "query": "?",
                "choices": CHOICES[row],
                "gold_index": golds[row],
                "task_name": "arc|0",
            },
            "model_response": {
                "input": "?",
                "logprobs": SUMS[row],
                "output_tokens": TOKENS[row],
                "unconditioned_logprobs": None,
                **{name: values[row] for name, values in response.items()},
            },
            "metric": {"acc": 1},
        }
        for row in range(2)
    ]
    path = folder / "details_arc|0_2026-01-31T00-00-00.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("normalization", "divisors"),
    [("sum", 1), ("characters", [[5, 5, 5], [4, 3, 2]]), ("mean", [[1, 1, 2], [2, 1, 1]])],
)
def test_scores_and_labels(tmp_path, normalization, divisors):
    predictions = read_predictions(write(tmp_path), ReadOptions(option_normalization=normalization))
    np.testing.assert_allclose(predictions.option_logits, np.array(SUMS) / np.array(divisors))
    assert predictions.labels.tolist() == [0, 2] and predictions.ids.tolist() == ["0", "1"]
    assert predictions.metadata["task"] == "arc|0" and predictions.metadata["format"] == "lighteval"


def test_unconditional_log_likelihoods(tmp_path):
    prior = [[-1.0, -1.5, -1.0], [-2.0, -1.0, -1.0]]
    options = ReadOptions(option_normalization="mutual_information")
    for response in (
        {"unconditioned_logprobs": prior},
        {"logprobs": [[*sums, *rest] for sums, rest in zip(SUMS, prior, strict=True)]},
    ):
        predictions = read_predictions(write(tmp_path, **response), options)
        np.testing.assert_allclose(predictions.option_logits, np.array(SUMS) - prior)


def test_several_right_options_and_generated_texts(tmp_path):
    predictions = read_predictions(write(tmp_path, golds=([1, 2], [0])))
    assert predictions.labels.tolist() == [1, 0]
    assert "1 questions have several right options" in predictions.metadata["notes"][0]
    with pytest.raises(ValueError, match="row 1: 0 log-likelihoods for 3 options: only multiple-choice"):
        read_predictions(write(tmp_path, logprobs=[[], []]))


@pytest.mark.parametrize("as_text", [True, False])
def test_details_of_older_versions(tmp_path, as_text):
    rows = []
    for row in range(2):
        pairs = [(value, False) for value in SUMS[row]] if as_text else SUMS[row]
        values = {"choices": CHOICES[row], "gold_index": [row], "predictions": pairs, "cont_tokens": TOKENS[row]}
        rows.append({"full_prompt": "?", **{name: str(each) if as_text else each for name, each in values.items()}})
    path = tmp_path / "details_harness|arc|0_2024-01-31T00-00-00.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    predictions = read_predictions(path, ReadOptions(option_normalization="mean"))
    np.testing.assert_allclose(predictions.option_logits, np.array(SUMS) / np.array([[1, 1, 2], [2, 1, 1]]))
    assert predictions.labels.tolist() == [0, 1] and predictions.ids.tolist() == ["0", "1"]


def test_rows_without_a_right_option_or_a_log_likelihood(tmp_path):
    path = write(tmp_path, golds=([-1], [2]))
    with pytest.raises(ValueError, match="1 of 2 questions have no right option, the first of them '0'"):
        read_predictions(path)
    assert read_predictions(path, ReadOptions(drop_invalid=True)).labels.tolist() == [2]
    with pytest.raises(ValueError, match="row 2: the log-likelihood of an option is missing"):
        read_predictions(write(tmp_path, logprobs=[SUMS[0], [-1.0, None, -2.0]]))


def test_older_details_with_lists_as_numpy_writes_them(tmp_path):
    row = {
        "full_prompt": "?",
        "choices": "[' Rome' ' Oslo']",
        "gold_index": "[1]",
        "predictions": "[(-0.5, True), (-1.5, False)]",
    }
    path = tmp_path / "details_old.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    predictions = read_predictions(path)
    np.testing.assert_allclose(predictions.option_logits, [[-0.5, -1.5]])
    assert predictions.labels.tolist() == [1] and predictions.ids.tolist() == ["0"]
