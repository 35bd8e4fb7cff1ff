"""`char-lm bench busy` at tiny sizes."""

import contextlib
import subprocess

import pytest

from lm.bench import busy, measure, options, trainings
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


def test_trainings_beside_none_one_and_two_processes(bench, monkeypatch):
    """Each way of waiting in turn; the speed is that of the run's own metrics."""
    calls, others = [], []

    @contextlib.contextmanager
    def busy_cores(count=1):
        others.append(count)
        yield
        others.pop()

    def train_at(tree, words, **environment):
        name = words[words.index("--name") + 1]
        calls.append((others[-1], environment.get("GOMP_SPINCOUNT"), words[words.index("--trainer.max_steps") + 1]))
        times[name] = 0.1 * (1 + others[-1]) * (20 if environment else 1)

    times: dict[str, float] = {}
    monkeypatch.setattr(busy, "busy_cores", busy_cores)
    monkeypatch.setattr(trainings, "train_at", train_at)
    monkeypatch.setattr(trainings, "seconds_per_step", lambda run: times[run.name])
    result, out = bench("busy", "--cells", "mingru", "--steps", "7", "--repeat", "1")
    assert calls == [(count, spins, "7") for count in (0, 1, 2) for spins in (None, "300000")]
    ours, slow = result["trainings"]
    assert ours["alone"] == [15360] and slow["beside two"] == pytest.approx([256])
    table = out.rstrip().splitlines()
    assert table[-2].split() == "ours 15,360 [15,360-15,360] 7,680 [7,680-7,680] 5,120 [5,120-5,120]".split()


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
