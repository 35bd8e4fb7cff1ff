"""Errors that a training run can hit, as one-line messages."""

from collections.abc import Iterator
from contextlib import contextmanager

from lm.files import UserError, is_out_of_memory

LOST = ("by peer", "timed out", "timeout", "connection was closed", "failed to connect", "connection refused")
"""Signs of a lost process in the messages of gloo and NCCL; errors of the store that all meet at have types: Dist..."""


class Diverged(Exception):
    """The loss is not a number, or far above that of guessing."""


class Interrupted(Exception):
    """The user, or the system, asked training to stop."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors of the machine into one line.

    Raises:
        UserError: memory is short, or another process of this training has died or cannot be reached.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise UserError(
                "out of memory: lower data.batch_size, data.context or model.width, or raise trainer.accumulate"
            ) from error
        if any(sign in str(error).lower() for sign in LOST) or type(error).__name__.startswith("Dist"):
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(f"another process of this training has died or cannot be reached: {reason}") from error
        raise
