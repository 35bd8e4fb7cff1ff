"""The training clock and budget."""

import time

from lm.config.options import TrainerConfig


class Clock:
    """Seconds of training, validation and checkpoints excluded, and the share of the budget that is used up."""

    def __init__(self, budget: TrainerConfig) -> None:
        self.budget = budget
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Add the time since the last start or lap, if the clock is running."""
        if self._since is not None:
            now = time.perf_counter()
            self.seconds += now - self._since
            self._since = now

    def stop(self) -> None:
        self.lap()
        self._since = None

    def progress(self, step: int) -> float:
        """Share of the budget used up before the step of this index: 1 or more when training is over."""
        if self.budget.max_steps is not None:
            return step / self.budget.max_steps
        assert self.budget.max_minutes is not None
        return self.seconds / (60 * self.budget.max_minutes)
