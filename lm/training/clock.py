"""The training clock and budget."""

import time

from lm.config.options import TrainerConfig


class Clock:
    """Seconds of training, without validation and checkpoints, and the share of the budget that is used.

    Args:
        budget: has either `max_steps` or `max_minutes`.
        seconds: of training so far.
    """

    def __init__(self, budget: TrainerConfig, seconds: float = 0.0) -> None:
        self.budget, self.seconds = budget, seconds
        self._since: float | None = None

    def start(self) -> None:
        """Start counting."""
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Add the time since the last start or lap, if the clock is running."""
        if self._since is not None:
            now = time.perf_counter()
            self.seconds += now - self._since
            self._since = now

    def skip(self) -> None:
        """Leave out the time since the last start or lap, in which the process did not run."""
        if self._since is not None:
            self.start()

    def stop(self) -> None:
        """Stop counting."""
        self.lap()
        self._since = None

    def progress(self, step: int) -> float:
        """Share of the budget that is used before the step of this index: 1 or more at the end of training."""
        if self.budget.max_steps is not None:
            return step / self.budget.max_steps
        assert self.budget.max_minutes is not None
        return self.seconds / (60 * self.budget.max_minutes)
