"""Timing, equivalence, tables."""

import torch

from lm.bench import measure


def test_timing_takes_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    measure.FLOOR, floor = 0.0, measure.FLOOR
    try:
        times = measure.in_turns(calls, 3, torch.device("cpu"))
    finally:
        measure.FLOOR = floor
    assert "".join(order).endswith("abbaab") and [len(t) for t in times.values()] == [3, 3]


def test_starvation_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(measure, "WARNINGS", [])
    measure._warn_if_starved(wall=1.0, busy=0.95)
    assert measure.WARNINGS == []
    measure._warn_if_starved(wall=1.0, busy=0.03)
    assert "3% of the time" in measure.WARNINGS[0] and "WARNING" in capsys.readouterr().err
