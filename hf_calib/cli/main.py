"""The entry point of `hf-calib <command>`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from ..extras import with_advice
from ..training.distributed import Stopped, leave_process_group
from . import COMMANDS, MORE_COMMANDS
from .suggestions import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name. Defaults to those of the process.

    Returns:
        `int`: exit status. 0: done, 1: failed while working, 2: wrong call, 143: stopped by SIGTERM with a checkpoint.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _command(argv)
        # `prepare` parses and checks the call. The function it returns does the work.
        work = importlib.import_module(f"{__package__}.{command}").prepare(argv[1:])
    except SystemExit as stop:  # argparse has printed the reason
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0
    except KeyboardInterrupt:
        print(f"hf-calib {argv[0]}: interrupted before the work began.", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        reason = with_advice(error) if isinstance(error, ImportError) else error
        print(f"hf-calib {argv[0]}: {reason}", file=sys.stderr)
        return 2
    try:
        work()
        leave_process_group()
    except KeyboardInterrupt:
        again = "the same command with --resume_from_checkpoint auto" if command == "train" else "the same command"
        print(f"hf-calib {command}: interrupted. To resume, run {again}.", file=sys.stderr)
        return 1
    except Stopped:
        leave_process_group()
        return 128 + signal.SIGTERM  # not 0: a job that depends on this one must not start
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"hf-calib {command}: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _command(argv: Sequence[str]) -> str:
    """Name of the command. Where there is none, print the help or an error, and exit."""
    known = COMMANDS | MORE_COMMANDS
    if argv and argv[0] in known:
        return argv[0]
    shown = known if "--help-all" in argv else COMMANDS
    parser = argparse.ArgumentParser(
        "hf-calib",
        usage="hf-calib command [arguments]",
        description="Measure, explain and restore the calibration of preference-aligned language models.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<10}  {description}" for name, description in shown.items())
        + "\n\n`hf-calib command --help` explains a command and shows examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--help-all", action="help", help="show the rarely used commands, too")
    if argv and not argv[0].startswith("-"):
        parser.error(f"unknown command {argv[0]!r}{did_you_mean(argv[0], known)}")
    parser.parse_args(argv[:1])
    parser.error("name a command")


if __name__ == "__main__":
    sys.exit(main())
