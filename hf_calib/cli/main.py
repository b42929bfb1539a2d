"""
The command line: `hf-calib <command>`. Exit status: 0 done, 1 failed while working, 2 the call was wrong, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence

import yaml

from .. import __version__
from ..training.distributed import Stopped, leave_process_group
from . import (
    average,
    calibrate,
    card,
    diagnose,
    evaluate,
    push,
    push_metric,
    push_predictions,
    quickstart,
    register,
    train,
    transfer,
    verify,
)


# Each reads its arguments and checks the call, and returns the work.
_COMMANDS = {
    "evaluate": evaluate,
    "diagnose": diagnose,
    "calibrate": calibrate,
    "transfer": transfer,
    "train": train,
    "average": average,
    "card": card,
    "push": push,
    "push-predictions": push_predictions,
    "push-metric": push_metric,
    "verify": verify,
    "quickstart": quickstart,
    "register": register,
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name; by default those of the process.

    Returns:
        `int`: exit status; 0 done, 1 failed while working, 2 the call was wrong, 143 stopped by SIGTERM with a checkpoint.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, _COMMANDS))
    parser = argparse.ArgumentParser(
        "hf-calib",
        description="Measure, explain and restore the calibration of preference-aligned language models.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {room.DESCRIPTION}" for name, room in _COMMANDS.items())
        + "\n\n`hf-calib <command> --help` explains each with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=_COMMANDS, metavar="command")
    try:
        command = parser.parse_args(argv[:1]).command
        work = _COMMANDS[command].prepare(argv[1:])
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0
    except (ValueError, TypeError, OSError, ImportError, yaml.YAMLError) as error:
        print(f"hf-calib {argv[0]}: {error}", file=sys.stderr)
        return 2
    try:
        work()
        leave_process_group()
    except KeyboardInterrupt:
        again = "the same command with --resume_from_checkpoint auto" if command == "train" else "the same command"
        print(f"hf-calib {command}: interrupted; {again} goes on from what is saved", file=sys.stderr)
        return 1
    except Stopped:
        leave_process_group()
        return 128 + signal.SIGTERM  # not 0: what follows a finished run is not to follow
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"hf-calib {command}: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
