"""Which process of a training on several devices this one is."""

import os
import sys

RUN_NAME = "CHAR_LM_RUN_NAME"
"""Environment variable that passes a run's name, if it is made from the time, to the processes of other devices."""
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
"""Variables that torchrun or Lightning sets in the processes that they start."""


def is_first_process() -> bool:
    """Whether this process has the global rank 0; only that one makes the run folder and prints."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def print_status(text: str, end: str = "\n") -> None:
    """Print on stderr, in the first process only."""
    if is_first_process():
        print(text, end=end, file=sys.stderr, flush=True)
