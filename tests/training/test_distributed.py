"""The accelerate configurations start processes that know of each other, also where there is no GPU."""

import warnings

import pytest
import torch

from hf_calib.training.distributed import leave_process_group
from hf_calib.training.library_warnings import ignore_library_warnings


REPORT = """
import os, sys
from transformers import HfArgumentParser, TrainingArguments
from hf_calib.training.distributed import cpu_training_arguments, leave_process_group

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(cpu_training_arguments())
with open(f"{sys.argv[1]}/rank-{os.environ.get('RANK', 0)}", "w") as file:
    file.write(f"{args.world_size} by {args.distributed_state.distributed_type.value}")
leave_process_group()
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="CPU processes are for machines without an accelerator")
@pytest.mark.parametrize(
    ("config", "expected"),
    [("ddp", "2 by MULTI_CPU"), ("deepspeed_zero2", "2 by DEEPSPEED"), ("deepspeed_zero3", "2 by DEEPSPEED")],
)
def test_cpu_processes_find_each_other(launch, tmp_path, config, expected):
    if config != "ddp":
        pytest.importorskip("deepspeed")
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    done = launch(config, script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in tmp_path.glob("rank-*")] == [expected] * 2


def test_a_process_leaves_its_group_once(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    leave_process_group()
    assert not torch.distributed.is_initialized()
    leave_process_group()


def test_only_the_named_warnings_of_libraries_are_ignored(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        ignore_library_warnings()
        for message in ("`gradient_checkpointing` is deprecated and", "`logging_dir` is deprecated and"):
            warnings.warn_explicit(message, FutureWarning, "training_args.py", 1, "transformers.training_args")
        warnings.warn_explicit("`gradient_checkpointing` is deprecated and", FutureWarning, "mine.py", 1, "mine")
    assert [str(warning.message)[:10] for warning in shown] == ["`logging_d", "`gradient_"]
