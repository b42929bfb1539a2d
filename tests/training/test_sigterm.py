"""Long runs: SIGTERM, kills, full disks, and the checkpoint that a run goes on from."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from launching import start_launcher
from runs import assert_same
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_calib import CalibratedSFTTrainer
from hf_calib.cli.main import main
from hf_calib.paths import recipe_path
from hf_calib.trainers import last_checkpoint as checkpoints
from hf_calib.trainers.last_checkpoint import last_checkpoint
from hf_calib.training.checkpoints import checkpoint_bytes, resume_point


RECIPE = {
    "scoring": "text",
    "num_train_epochs": 40,
    "per_device_train_batch_size": 4,
    "save_strategy": "steps",
    "save_steps": 5,
    "save_total_limit": 2,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def folder(world, world_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    world.questions(40, split="train").to_parquet(folder / "questions.parquet")
    recipe = {"model_name_or_path": world_model, "dataset_name": str(folder / "questions.parquet"), **RECIPE}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def call(folder, tmp_path):
    return ["train", "--config", str(folder / "recipe.yaml"), "--output_dir", str(tmp_path / "out")]


@pytest.fixture(scope="module")
def whole(folder):
    """Weights of a run of 20 steps that nothing disturbed."""
    call = ["train", "--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "whole")]
    assert main([*call, "--max_steps", "20", "--save_strategy", "no"]) == 0
    return load_file(folder / "whole" / "model.safetensors")


def at_step(monkeypatch, number, act):
    """Do something at the end of that step of the next training."""

    class Act(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == number:
                act()

    original = CalibratedSFTTrainer.train

    def train(trainer, *args, **kwargs):
        trainer.callback_handler.callbacks.insert(0, Act())
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(CalibratedSFTTrainer, "train", train)


def steps_logged(output_dir):
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return [entry["step"] for entry in state["log_history"] if "loss" in entry]


def test_sigterm_saves_and_the_same_command_goes_on(call, whole, tmp_path, monkeypatch, capsys):
    call += ["--max_steps", "20", "--resume_from_checkpoint", "auto"]
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main(call) == 143
    out = tmp_path / "out"
    assert "Stopped by SIGTERM" in capsys.readouterr().out
    assert last_checkpoint(out) == str(out / "checkpoint-7") and not (out / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main(call) == 0
    assert f"Resuming from {out / 'checkpoint-7'}" in capsys.readouterr().out
    assert_same(load_file(out / "model.safetensors"), whole, rtol=1e-5, atol=1e-7)
    assert steps_logged(out) == list(range(1, 21))


def test_sigterm_in_the_last_step_changes_nothing(call, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main([*call, "--max_steps", "3"]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_full_disk_keeps_the_checkpoint_before(call, whole, tmp_path, monkeypatch, capsys):
    """The disk fills up in the middle of the third save; that of step 10 is still there to go on from."""
    save, saves = torch.save, []

    def full(value, file, *args, **kwargs):
        saves.append(file)
        if "checkpoint-15" in str(file):
            Path(file).write_bytes(b"PK")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return save(value, file, *args, **kwargs)

    call += ["--max_steps", "20", "--resume_from_checkpoint", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main(call) == 1
    out, error = tmp_path / "out", capsys.readouterr().err
    assert "is full: free some space" in error and "checkpoint-10" in error and "Traceback" not in error
    assert (out / "checkpoint-15").is_dir() and last_checkpoint(out) == str(out / "checkpoint-10")
    assert main(call) == 0
    assert_same(load_file(out / "model.safetensors"), whole, rtol=1e-5, atol=1e-7)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-15", "checkpoint-20"]


def test_too_small_a_disk_is_said_before_training(call, tmp_path, capsys):
    call += ["--max_steps", "1000000000", "--save_steps", "1"]
    assert main([*call, "--save_total_limit", "100000000"]) == 2
    error = capsys.readouterr().err
    assert "100000001 checkpoints of" in error and "--save_total_limit 2" in error
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("tuning", [[], ["--use_peft", "true", "--lora_target_modules", "all-linear"]])
@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor", "sgd"])
def test_a_checkpoint_is_as_large_as_estimated(folder, tmp_path, monkeypatch, tuning, optimizer):
    sizes, original = [], CalibratedSFTTrainer.train

    def train(trainer, *args, **kwargs):
        sizes.extend(checkpoint_bytes(trainer))
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(CalibratedSFTTrainer, "train", train)
    call = ["train", "--config", str(folder / "recipe.yaml"), "--output_dir", str(tmp_path), *tuning]
    assert main([*call, "--max_steps", "1", "--save_steps", "1", "--optim", optimizer]) == 0
    names = ("model.safetensors", "adapter_model.safetensors", "optimizer.pt")
    written = sum(
        (tmp_path / "checkpoint-1" / name).stat().st_size
        for name in names
        if (tmp_path / "checkpoint-1" / name).exists()
    )
    assert sizes[0] == pytest.approx(written, rel=0.1, abs=60_000)


def test_what_to_resume_from(tmp_path):
    assert resume_point("auto", tmp_path) is None and resume_point(None, tmp_path) is None
    assert resume_point("false", tmp_path) is None and resume_point("true", tmp_path) is True
    for step, content in ((5, '{"global_step": 5}'), (20, '{"global_step": 20}'), (100, '{"global_s'), (200, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if content:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    (tmp_path / "checkpoint-300-copy").mkdir()
    assert resume_point("auto", tmp_path) == last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    assert resume_point("true", tmp_path) == str(tmp_path / "checkpoint-20")
    with pytest.raises(FileNotFoundError, match="checkpoint-200.*'auto'"):
        resume_point(str(tmp_path / "checkpoint-200"), tmp_path)


def test_all_processes_resume_from_what_the_main_one_finds(tmp_path, monkeypatch):
    state = SimpleNamespace(is_main_process=False, num_processes=2)
    monkeypatch.setattr(checkpoints, "process_state", lambda: state)
    monkeypatch.setattr(checkpoints, "broadcast_object_list", lambda found: found.__setitem__(0, "main/checkpoint-7"))
    assert resume_point("auto", tmp_path) == resume_point("true", tmp_path) == "main/checkpoint-7"


# Under `accelerate launch`


def wait_for(path, process, log, seconds=240):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.1)


def workers(process):
    """The training processes that a launcher has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


@pytest.mark.skipif(shutil.which("ps") is None, reason="finds the processes with ps")
@pytest.mark.parametrize("config", ["cpu", "ddp"])
def test_sigterm_to_the_launcher(config, call, tmp_path):
    """The launcher of one process hands no signal on; that of several does, and waits."""
    out, log = tmp_path / "out", tmp_path / "log"
    process = start_launcher(config, recipe_path("train.py"), *call[1:], "--max_steps", "5000", log=log)
    wait_for(out / "checkpoint-5" / "trainer_state.json", process, log)
    assert len(workers(process)) == {"cpu": 1, "ddp": 2}[config]
    (worker, *_) = workers(process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:  # an orphan, with one process
        time.sleep(0.1)
    assert "Stopped by SIGTERM" in log.read_text(), log.read_text()[-4000:]
    step = int(last_checkpoint(out).rpartition("-")[2])
    assert f"checkpoint-{step}" in log.read_text() and 5 <= step < 5000
    assert not (out / "model.safetensors").exists()


@pytest.mark.skipif(shutil.which("ps") is None, reason="finds the processes with ps")
def test_a_killed_rank_ends_the_run_and_its_last_checkpoint_is_gone_on_from(call, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    call += ["--per_device_train_batch_size", "2"]
    process = start_launcher("ddp", recipe_path("train.py"), *call[1:], "--max_steps", "5000", log=log)
    wait_for(out / "checkpoint-5" / "trainer_state.json", process, log)
    os.kill(workers(process)[1], signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    step = int(last_checkpoint(out).rpartition("-")[2])
    # In one process, with as many rows a step.
    assert main([*call, "--max_steps", str(step + 3), "--resume_from_checkpoint", "auto"]) == 0
    assert steps_logged(out) == list(range(1, step + 4))
