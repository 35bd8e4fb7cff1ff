"""The training clock: it counts while it runs, and the budget is in steps or minutes."""

from types import SimpleNamespace

import pytest

from lm.config.options import TrainerConfig
from lm.training import clock
from lm.training.clock import Clock


def test_it_counts_while_it_runs(monkeypatch):
    times = iter([10.0, 12.0, 15.0, 100.0, 150.0, 151.0])
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    watch = Clock(TrainerConfig(max_steps=4), seconds=0.5)
    watch.lap()
    assert watch.seconds == 0.5  # it does not run yet
    watch.start()  # at 10
    watch.lap()  # at 12
    assert watch.seconds == 2.5
    watch.stop()  # at 15
    assert watch.seconds == 5.5
    watch.lap()
    watch.skip()  # it does not run
    watch.start()  # at 100
    watch.skip()  # at 150
    watch.stop()  # at 151
    assert watch.seconds == 6.5


def test_the_share_of_the_budget():
    assert [Clock(TrainerConfig(max_steps=4)).progress(step) for step in (0, 1, 4, 6)] == [0, 0.25, 1, 1.5]
    for seconds, share in ((0.0, 0.0), (45.0, 0.25), (180.0, 1.0), (360.0, 2.0)):
        assert Clock(TrainerConfig(max_minutes=3), seconds).progress(7) == pytest.approx(share)
