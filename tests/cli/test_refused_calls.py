"""Calls that are refused before the work begins, in one line."""

import pytest
from safetensors.torch import load_file, save_file
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.inference import model_loading
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predict import PredictionOptions
from hf_calib.training.restore_options import RestoreOptions


@pytest.fixture
def folder(tmp_path):
    save_world_model(tmp_path / "model")
    World().questions(6).to_parquet(tmp_path / "q.parquet")
    return tmp_path


def evaluate(folder, *more):
    call = ["evaluate", "--model", str(folder / "model"), "--dataset", str(folder / "q.parquet"), "--scoring", "text"]
    return main([*call, "--output_dir", str(folder / "out"), *more])


@pytest.mark.parametrize("length", ["0", "-3"])
def test_a_length_below_one_is_not_the_default(folder, capsys, length):
    assert evaluate(folder, "--max_length", length) == 2
    assert capsys.readouterr().err.strip() == f"hf-calib evaluate: max_length must be at least 1, got {length}."
    with pytest.raises(ValueError, match=f"max_length={length}; it must be at least 1"):
        PredictionOptions(max_length=int(length))


@pytest.mark.parametrize("kept", [0, 5000])
def test_damaged_weights_are_named(folder, kept):
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(OSError, match="weights of .*model are damaged or incomplete"):
        load_model(str(folder / "model"))


def test_missing_weights_are_named_and_not_random(folder):
    weights = folder / "model" / "model.safetensors"
    tensors = load_file(weights)
    dropped = [name for name in tensors if "down_proj" in name]
    save_file({name: tensor for name, tensor in tensors.items() if name not in dropped}, weights, {"format": "pt"})
    with pytest.raises(OSError, match=rf"lack {len(dropped)} of the model's tensors, {dropped[0]} among them"):
        load_model(str(folder / "model"))


def test_an_interruption_while_the_model_is_loaded(folder, capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_loading, "load_model", interrupt)
    assert evaluate(folder) == 1
    assert capsys.readouterr().err.strip().endswith("hf-calib evaluate: interrupted before the work began.")


@pytest.mark.parametrize(
    ("name", "place"), [("model", "model"), ("reference", "adapter"), ("dataset", "data/labels.parquet")]
)
def test_a_restoration_does_not_overwrite_what_it_reads(tmp_path, name, place):
    given = {"model": "org/aligned", "dataset": "questions.parquet", name: str(tmp_path / "run" / place)}
    with pytest.raises(ValueError, match=f"{name} .*{place} is in .*which is overwritten"):
        RestoreOptions(**given, output_dir=f"{tmp_path}/run/")
    RestoreOptions(**given, output_dir=str(tmp_path / "other"))
