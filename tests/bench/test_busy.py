"""`char-lm bench busy` at tiny sizes."""

import subprocess

from lm.bench import busy, measure, options
from tests.bench.conftest import by_name


def test_busy(bench):
    result, out = bench("busy", "--cells", "mingru")
    rows = by_name(result["results"][0]["rows"])
    assert rows["ours, portable"]["ratio"] > 0 and len(rows["ours, portable"]["busy"]) == 2
    assert "one core busy" in out


def test_ratio(bench, timings):
    timings({"ours, portable": [1.0, 3.0, 2.0]})
    result, _ = bench("busy", "--cells", "mingru")
    row = by_name(result["results"][0]["rows"])["ours, portable"]
    assert row["alone"] == row["busy"] == [1.0, 3.0, 2.0] and row["ratio"] == 1


def test_the_second_half_is_timed_beside_another_process(monkeypatch):
    started, running = [], []
    start = subprocess.Popen

    def popen(*args, **kwargs):
        started.append(start(*args, **kwargs))
        return started[-1]

    def in_turns(calls, *arguments, starved=False, **options):
        running.append((starved, [process.poll() for process in started]))
        return {name: [1.0] for name in calls}

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(measure, "in_turns", in_turns)
    busy.compare("mingru", (2, 64, 16), options.Busy(device="cpu"))
    assert running == [(False, []), (True, [None])] and started[0].poll() is not None
