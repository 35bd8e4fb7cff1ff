"""`char-lm bench start`."""

from lm.bench import start


def test_what_is_timed(bench, monkeypatch):
    calls = []
    monkeypatch.setattr(start, "first_output", lambda words, build=False: calls.append((*words, build)) or (0.25, {}))
    stages = iter({"import torch": seconds, "first step": 0.5} for seconds in (9.0, 9.0, 1.0, 1.0, 2.0, 2.0))
    monkeypatch.setattr(start, "first_step", lambda folder, wandb, build=False: (3.0 + build, next(stages)))
    result, out = bench("start", "--repeat", "2")
    names = [row["name"] for row in result["results"]]
    assert names[:3] == ["char-lm --help", "char-lm train --help", "char-lm generate --help"]
    assert [row["times"] for row in result["results"]] == [[0.25] * 2] * 3 + [[3.0] * 2, [4.0] * 2] + [[0.25] * 2] * 2
    parts = result["parts"]["first step, kernels to build"]
    assert parts[0] == {"name": "import torch", "times": [1.0, 2.0]}  # without the first round
    assert ("train", "--help", False) in calls and any(call[-1] for call in calls)
    assert "1.50 [1.00-2.00]" in out


def test_a_real_process(tmp_path):
    seconds, stages = start.first_step(tmp_path, "disabled")
    assert {"start Python", "import torch", "import Lightning", "first step"} <= set(stages)
    assert abs(sum(stages.values()) - seconds) < 1e-6 and min(stages.values()) >= 0
    assert start.first_output(["--help"])[0] < seconds
