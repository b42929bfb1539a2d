"""What all formats share: damaged files, several files, and that neither torch nor transformers is needed."""

import gzip
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

from hf_calib.inference.predictions import OptionPredictions
from hf_calib.prediction_files import source
from hf_calib.prediction_files.options import ReadOptions
from hf_calib.prediction_files.read import read_predictions


TABLE = pd.DataFrame({"id": range(200), "p_0": 0.75, "p_1": 0.25, "label": 0})


def eval_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("header.json", json.dumps({"eval": {}}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", TABLE.to_parquet()),
        ("a.jsonl.gz", gzip.compress(TABLE.to_json(orient="records", lines=True).encode())),
        ("a.csv.gz", gzip.compress(TABLE.to_csv(index=False).encode())),
        ("a.eval", eval_file()),
    ],
)
def test_half_a_file_is_one_clear_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name}.*(damaged|incomplete)"):
        read_predictions(path)


LINE = '{{"id": "{} {}", "probabilities": [0.75, 0.25], "label": 0}}\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_lines_in_other_encodings(tmp_path, caplog, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes("".join(LINE.format("café", row) for row in range(3)).encode(encoding))
    assert read_predictions(path).ids.tolist() == ["café 0", "café 1", "café 2"]
    assert ("a.jsonl is not UTF-8; it is read as Windows-1252" in caplog.text) == (encoding == "cp1252")


def test_lines_in_an_unknown_encoding(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes((LINE.format("вопрос", 0) * 3).encode("cp1251"))
    with pytest.raises(ValueError, match=r"a.jsonl: the text is not UTF-8; save the file as UTF-8"):
        read_predictions(path)
    monkeypatch.setattr(source, "_HEAD", 20)
    path.write_bytes((LINE.format("q", 0) * 500 + LINE.format("café", 1)).encode("cp1252"))
    with pytest.raises(ValueError, match=r"a.jsonl, line 501: the text is not UTF-8"):
        read_predictions(path)


def test_several_files(tmp_path):
    for name in ("one.csv", "two.csv"):
        TABLE.to_csv(tmp_path / name, index=False)
    both = read_predictions([tmp_path / "one.csv", tmp_path / "two.csv"])
    assert len(both) == 400 and both.ids[200] == "two/0" and both.subjects[0] == "one"
    pd.DataFrame({"confidence": [0.5], "correct": [1]}).to_csv(tmp_path / "three.csv", index=False)
    with pytest.raises(ValueError, match="some files hold probabilities of all options and others confidences"):
        read_predictions([tmp_path / "one.csv", tmp_path / "three.csv"])
    confidences = read_predictions([tmp_path / "three.csv"] * 2)
    np.testing.assert_array_equal(confidences.confidences, [0.5, 0.5])


def test_labels_by_ids_that_several_files_share(tmp_path):
    (tmp_path / "gold.csv").write_text("id,label\n0,0\n1,1\n")
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("id,p_0,p_1\n0,.6,.4\n1,.4,.6\n")
    options = ReadOptions(labels=tmp_path / "gold.csv")
    assert read_predictions(tmp_path / "a.csv", options).labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="the id '[01]' is of a question in .*a.csv and of another in .*b.csv"):
        read_predictions([tmp_path / "a.csv", tmp_path / "b.csv"], options)


def test_options_that_saved_predictions_of_our_own_have_no_use_for(tmp_path):
    own = OptionPredictions(np.zeros((2, 2), np.float32), np.array([0, 1]), np.array(["a", "b"]))
    own.save(tmp_path / "own.npz")
    assert len(read_predictions(tmp_path / "own.npz")) == 2
    with pytest.raises(ValueError, match="--columns has no meaning for the format hf_calib"):
        read_predictions(tmp_path / "own.npz", ReadOptions(columns={"weight": "w"}))


def test_neither_torch_nor_transformers_is_needed(tmp_path):
    TABLE.to_csv(tmp_path / "a.csv", index=False)
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from hf_calib import load_predictions
from hf_calib.evaluation.measure import measure_predictions
print(measure_predictions(load_predictions(sys.argv[1]), n_bootstrap=10)["ece"])
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.csv"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(0.25)
