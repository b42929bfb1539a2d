"""
Trains several runs one after the other in the processes of one launch, which costs more than the runs do.

    accelerate launch --config_file CONFIG worker.py RUNS.json

`RUNS.json` is a list of calls of `hf-calib train`, each a list of arguments. Stops at the first that fails, with its status.
"""

import gc
import json
import sys
import traceback
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_calib.cli import train
from hf_calib.training.distributed import leave_process_group


def main() -> int:
    # The end of a run destroys the process group, which cannot be made a second time.
    Accelerator.end_training = lambda self: None
    for call in json.loads(Path(sys.argv[1]).read_text()):
        try:
            train.prepare(call)()
        except Exception:
            traceback.print_exc()
            return 1
        # A second accelerator may not bring a plugin of its own while the first one's stands.
        AcceleratorState._reset_state()
        gc.collect()
    leave_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
