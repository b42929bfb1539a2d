"""`python -m hf_calib` is the command line `hf-calib`."""

import sys

from .cli.main import main


if __name__ == "__main__":
    sys.exit(main())
