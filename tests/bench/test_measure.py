"""Timing, equivalence, tables."""

import math

import pytest
import torch

from lm.bench import measure, options


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


def test_relative_error():
    assert measure.relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert measure.relative_error(torch.tensor([math.nan]), torch.tensor([1.0])) == math.inf
    with pytest.raises(measure.RefusedError, match=r"values off by 2\.0e-01"):
        measure.require_equal("values", torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]), 0.1)


def test_two_zeros_are_equal():
    assert measure.relative_error(torch.zeros(3), torch.zeros(3)) == 0


@pytest.mark.parametrize(("dtype", "result"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)])
def test_half_precision_is_autocast(dtype, result):
    with measure.precision(torch.device("cpu"), dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == result


def test_seconds_are_those_of_one_call(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure.seconds(lambda: None, torch.device("cpu"), times=3) == 2


def test_spread():
    assert measure.spread([0.1, 0.0123, 0.02]) == "20.0 [12.3-100.0]"
    assert measure.spread([0.0012345]) == "1.234 [1.234-1.234]" and measure.spread([2.0]) == "2,000.0 [2,000.0-2,000.0]"


def test_contenders_that_cannot_be_made_say_why():
    def refuse():
        raise measure.RefusedError("not here")

    def fail():
        raise RuntimeError("a\nb")

    made, rows = measure.prepare({"a": lambda: (1, {"x": 2}), "b": refuse, "c": fail}, size=3)
    assert made == {"a": 1}
    assert rows == [
        {"name": "a", "size": 3, "x": 2},
        {"name": "b", "size": 3, "skipped": "not here"},
        {"name": "c", "size": 3, "skipped": "fails: a b"},
    ]


def test_what_the_numbers_depend_on(capsys, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    about = measure.heading("Title", options.Cell(device="cpu", dtype="bfloat16", repeat=3))
    assert about["device"] == "cpu" and about["dtype"] == "bfloat16" and about["options"]["repeat"] == 3
    assert about["torch"] == torch.__version__ and about["threads"] == torch.get_num_threads()
    assert about["environment"]["MALLOC_TRIM_THRESHOLD_"] == "1" and {*about["peers"]} == {"minGRU-pytorch", "mambapy"}
    assert capsys.readouterr().out.startswith(f"Title\n{about['machine']}, {about['threads']} threads, bfloat16, torch")
