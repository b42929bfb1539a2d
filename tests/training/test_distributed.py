"""The accelerate configurations start processes that know of each other, also where there is no GPU."""

import subprocess
import sys

import pytest
import torch

from hf_calib import recipe_path


REPORT = """
import os, sys
import torch.distributed
from transformers import HfArgumentParser, TrainingArguments
from hf_calib.training.distributed import cpu_training_arguments, leave_process_group

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(cpu_training_arguments())
with open(f"{sys.argv[1]}/rank-{os.environ.get('RANK', 0)}", "w") as file:
    file.write(f"{args.world_size} by {args.distributed_state.distributed_type.value}")
leave_process_group()
leave_process_group()  # done already
assert not torch.distributed.is_initialized()
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="CPU processes are for machines without an accelerator")
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("cpu", "1 by NO"),
        ("ddp", "2 by MULTI_CPU"),
        ("deepspeed_zero2", "2 by DEEPSPEED"),
        ("deepspeed_zero3", "2 by DEEPSPEED"),
    ],
)
def test_cpu_processes_find_each_other(tmp_path, config, expected):
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    config_file = recipe_path(f"accelerate_configs/{config}.yaml")
    # port 0: any that is free
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    run = subprocess.run([*launch, config_file, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    reports = [path.read_text() for path in tmp_path.glob("rank-*")]
    assert reports == [expected] * int(expected.split()[0])
