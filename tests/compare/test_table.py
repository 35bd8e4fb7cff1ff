"""Grouping, statistics, time to target, warnings."""

import json
import math
from pathlib import Path

import pytest

from lm.compare import table
from lm.compare.runs import Reader
from lm.runs.metrics import AXES, VALUES
from tests.commands import compare
from tests.fake_runs import csv_row, fake_run

HEAD = ",".join(AXES + VALUES) + "\n"


def validations(folder: Path, name: str, losses: dict[int, float], **config: object) -> Path:
    """A run with these windowed losses by step; 100 characters a step, 2 steps a second."""
    path = fake_run(folder, name, rows=0, validations=0, **config)
    rows = [csv_row((step, step * 100, step / 2, step * 1e9), {"val/loss": loss}) for step, loss in losses.items()]
    (path / "metrics.csv").write_text(HEAD + "".join(row + "\n" for row in rows))
    return path


def compare_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert compare([*argv, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_time_to_target_is_the_first_validation_at_or_below_it(tmp_path, capsys):
    validations(tmp_path, "fast", {100: 2.0, 200: 1.5, 300: 1.4})
    validations(tmp_path, "slow", {100: 3.0, 200: 2.5, 300: 2.0, 500: 1.5}, model={"width": 64})
    found = compare_json(capsys, str(tmp_path))
    assert found["target"] == 1.5  # the worst run's best
    fast, slow = found["groups"]
    assert fast["to_target"]["step"] == {"mean": 200, "spread": None, "times_faster": 2.5}
    assert slow["to_target"]["step"]["times_faster"] == 1
    assert found["runs"][1]["to_target"] == {"step": 500, "chars": 50_000, "train_seconds": 250, "flops": 5e11}
    later = compare_json(capsys, str(tmp_path), "--target", "1.45")
    assert later["runs"][1]["to_target"] is None
    assert later["groups"][1]["to_target"]["reached"] == 0


def test_seeds_are_grouped_with_mean_and_spread(tmp_path, capsys):
    validations(tmp_path, "gru-s1", {10: 1.6}, seed=1)
    validations(tmp_path, "gru-s2", {20: 1.8}, seed=2)
    validations(tmp_path, "wide", {10: 1.5}, seed=1, model={"width": 256})
    first, second = compare_json(capsys, str(tmp_path))["groups"]
    assert (first["label"], first["runs"]) == ("gru", ["gru-s1", "gru-s2"])
    assert first["val/loss"] == {"mean": pytest.approx(1.7), "spread": pytest.approx(0.2 / math.sqrt(2))}
    assert second["label"] == "wide"
    assert second["val/loss"]["spread"] is None


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("mingru-s1", "mingru-s2"), "mingru"),
        (("mingru-128-1", "mingru-128-2"), "mingru-128"),
        (("mingru-20261101-120000", "mingru-20261101-130000"), "mingru"),
        (("gpt2-seed3", "gpt2-seed4"), "gpt2"),
        (("a", "b"), "mingru"),
    ],
)
def test_a_group_is_named_by_what_its_runs_share(tmp_path, names, label):
    for seed, name in enumerate(names):
        fake_run(tmp_path, name, seed=seed, rows=0)
    assert [item.label for item in table.group(Reader([str(tmp_path)]).read())] == [label]


def test_a_diverged_run_does_not_set_the_target(tmp_path, capsys):
    validations(tmp_path, "good", {10: 2.0, 20: 1.5})
    validations(tmp_path, "bad", {10: 4.0}, model={"width": 64}, status="diverged")
    assert compare_json(capsys, str(tmp_path))["target"] == 1.5


def test_without_metrics_the_summary_has_the_best_loss(tmp_path, capsys):
    (fake_run(tmp_path, "a") / "metrics.csv").unlink()
    run = compare_json(capsys, str(tmp_path))["runs"][0]
    assert run["val/loss"] > 1 and run["best_step"] is None


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"data": {"corpus": "bible"}}, "not comparable, the corpora differ: data.corpus is tiny_shakespeare, bible"),
        (
            {"data": {"context": 64}},
            "windowed losses are not comparable (compare the streaming ones): data.context is 128, 64",
        ),
    ],
)
def test_runs_that_are_not_comparable_get_a_warning(tmp_path, capsys, change, warning):
    fake_run(tmp_path, "a")
    fake_run(tmp_path, "b", **change)
    assert compare([str(tmp_path)]) == 0
    assert warning in capsys.readouterr().err


def test_other_alphabets_and_machines_get_a_warning(tmp_path, capsys):
    for name in "ab":
        path = fake_run(tmp_path, name)
        (path / "tokenizer.json").write_text(f'"{name}"')
        (path / "environment.json").write_text(json.dumps({"processor": f"processor {name}"}))
    compare([str(tmp_path)])
    told = capsys.readouterr().err
    assert "their alphabets do" in told
    assert "different machines (cpu processor a, cpu processor b)" in told
