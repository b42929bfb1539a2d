"""
Run scripts, one after the other, in the processes of one `accelerate launch`: starting the processes costs more than most scripts.

    accelerate launch --config_file CONFIG launch_worker.py FOLDER OWNER

Each process takes FOLDER/0.json, FOLDER/1.json, ... as they come, runs the script of each with its arguments, as
`accelerate launch` would under the configuration named there, and writes its status and output beside it. It ends when FOLDER/ended
is there, or with the process OWNER.
"""

import contextlib
import gc
import importlib.util
import io
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_calib.training.distributed import leave_process_group


def launch_environment(config: str) -> dict[str, str]:
    """What `accelerate launch` adds to the environment of the processes it starts with a configuration."""
    added = {}
    arguments = ["--config_file", config, "--main_process_port", "0", "script.py"]
    with mock.patch("torch.distributed.run.run", lambda args: added.update(os.environ)):
        launch_command(launch_command_parser().parse_args(arguments))
    return {name: value for name, value in added.items() if name.startswith("ACCELERATE_")}


def run(script: str, arguments: list[str], module: bool) -> int:
    """Run a script, or a module by its name, as the main program; its exit status."""
    sys.argv = [script, *arguments]
    try:
        (runpy.run_module if module else runpy.run_path)(script, run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def run_job(job: dict) -> dict:
    """Run one script and leave the process as it was before."""
    environment = dict(os.environ)
    for name in environment:
        if name.startswith("ACCELERATE_"):
            del os.environ[name]
    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), contextlib.chdir(job["cwd"]):
            os.environ.update(launch_environment(job["config"]))
            status = run(job["script"], job["arguments"], job["module"])
    finally:
        os.environ.clear()
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.collect()
    return {"status": status, "stdout": output.getvalue(), "stderr": errors.getvalue()}


def wait_for(path: Path, owner: int) -> bool:
    """Wait until the file is there; false if there will be none."""
    while not path.exists():
        if path.with_name("ended").exists():
            return False
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def main() -> None:
    folder, owner, number = Path(sys.argv[1]), int(sys.argv[2]), 0
    if importlib.util.find_spec("deepspeed") is not None:
        import deepspeed

        # It would be compiled, which takes a minute and is of no use to a training.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # The end of a script leaves the process group, which cannot be joined a second time.
    with mock.patch("torch.distributed.destroy_process_group", lambda group=None: None):
        while wait_for(folder / f"{number}.json", owner):
            done = run_job(json.loads((folder / f"{number}.json").read_text()))
            unfinished = folder / f"{number}.{os.environ['RANK']}.unfinished"
            unfinished.write_text(json.dumps(done))
            unfinished.rename(folder / f"{number}.{os.environ['RANK']}.done")
            number += 1
    leave_process_group()


if __name__ == "__main__":
    main()
