"""Which of several training processes this is."""

import os
import sys

RUN_NAME = "CHAR_LM_RUN_NAME"
"""Hands a name made from the time on to the processes of the other devices."""


def is_helper() -> bool:
    """Whether this is one of the further processes of a training on several devices."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 or int(os.environ.get("NODE_RANK", 0)) > 0


def say(text: str, end: str = "\n") -> None:
    """Messages go to stderr, from the first process only."""
    if not is_helper():
        print(text, end=end, file=sys.stderr, flush=True)
