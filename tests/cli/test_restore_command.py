"""`hf-calib restore` called wrongly."""

import pytest
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizers, tiny_llama):
    folder = tmp_path_factory.mktemp("restore_command")
    save_world_model(folder / "model")
    tiny_llama(tiny_tokenizers["qwen"]).save_pretrained(folder / "other")
    tiny_tokenizers["qwen"].save_pretrained(folder / "other")
    world = World()
    world.questions(100, split="train").to_parquet(folder / "labels.parquet")
    world.questions(30, split="train").to_parquet(folder / "few.parquet")
    world.questions(30, split="train").remove_columns("choices").to_parquet(folder / "column.parquet")
    (folder / "typo.yaml").write_text("lamda_ece: 1.0\n")
    (folder / "wrong.yaml").write_text("learning_rate: fast\n")
    (folder / "dpo.yaml").write_text("trainer: dpo\n")
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"--dataset": "{folder}/few.parquet"}, "few.parquet has 30 different labelled questions; at least 60 are needed"),
        ({"--dataset": "{folder}/few.parquet", "--test": "{folder}/labels.parquet"}, "at least 40 are needed"),
        ({"--test": "{folder}/labels.parquet", "--test_limit": "5"}, "the test needs at least 20"),
        ({"--dataset": "{folder}/column.parquet"}, "choices"),
        ({"--dataset": "{folder}/nowhere.parquet"}, "nowhere.parquet"),
        ({"--model": "{folder}/nowhere"}, "no folder"),
        ({"--reference": "{folder}/other"}, "another vocabulary"),
        ({"--scoring": "letter"}, "letter"),
        ({"--budget": "0.01"}, "Give --budget"),
        ({"--budget": "-1"}, "budget must be above 0"),
        ({"--unlabelled_limit": "5"}, "unlabelled_limit needs unlabelled"),
        ({"--config": "{folder}/typo.yaml"}, "typo.yaml: unknown argument 'lamda_ece'"),
        ({"--config": "{folder}/wrong.yaml"}, "wrong.yaml"),
        ({"--config": "{folder}/dpo.yaml"}, "trainer dpo"),
        ({"--config": "{folder}/no.yaml"}, "no.yaml"),
        ({"--output_dir": "/proc/out"}, "/proc/out"),
        ({"--refrence": "x"}, "--reference"),
    ],
)  # fmt: skip
def test_wrong_calls_are_named_and_leave_with_two(folder, tmp_path, capsys, changes, named):
    given = {"--model": "{folder}/model", "--dataset": "{folder}/labels.parquet", "--scoring": "text"}
    given |= {"--output_dir": str(tmp_path), **changes}
    assert main(["restore", *(part.format(folder=folder) for pair in given.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error


def test_weights_divided_among_processes_are_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    call = ["restore", "--model", str(folder / "model"), "--dataset", str(folder / "labels.parquet")]
    assert main([*call, "--output_dir", str(tmp_path)]) == 2
    assert "Use ZeRO-2" in capsys.readouterr().err


def test_help_teaches_by_example(capsys):
    assert main(["restore", "--help"]) == 0
    out = capsys.readouterr().out
    assert "hf-calib restore --model org/aligned" in out and "accelerate launch -m hf_calib restore" in out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.partition("commands:\n")[2].split()[0] == "restore"
