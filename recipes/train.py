"""Train from a recipe: `accelerate launch recipes/train.py --config recipes/<model>/<stage>.yaml`."""

import sys

from hf_calib.cli.main import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
