"""`accelerate launch --module hf_calib.cli` is the command line `hf-calib` on several processes."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
