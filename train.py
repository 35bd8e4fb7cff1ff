"""Train a model: `python train.py ...` is `char-lm train ...`."""

import sys

from lm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
