"""Write text with a trained model: `python generate.py ...` is `char-lm generate ...`."""

import sys

from lm.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
