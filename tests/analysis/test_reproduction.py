"""The table of the paper's claims, from run folders and numbers made up here."""

import json

import pytest

from lm.analysis import reproduction
from tests import commands
from tests.fake_runs import change_summary, run_of

FOLDERS = "language", "full", "full_speed", "copying", "full_copying", "length", "parameters"


@pytest.fixture
def table(tmp_path, capsys):
    """The rows of the table, by their claim."""

    def call(*options: str) -> dict[str, list[str]]:
        folders = [f"--{name}={tmp_path / name}" for name in FOLDERS]
        assert commands.reproduction([*folders, *options]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("| claim |", "|---"))]
        return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (x.split("|") for x in lines)}

    return call


def test_what_is_not_measured_says_so(table):
    rows = table()
    assert len(rows) >= 13 and all(row[1] == reproduction.MISSING and row[2] == "-" for row in rows.values())


def test_steps_to_the_transformers_best(table, tmp_path):
    for system, losses in {"mingru": [2.0, 1.6, 1.5], "transformer": [2.2, 1.9, 1.6]}.items():
        for seed in (1, 2):
            run_of(tmp_path / "language", f"{system}-seed{seed}", dict(enumerate(losses, start=1)))
    rows = table()
    (key,) = (key for key in rows if key.startswith("Shakespeare, scaled, mingru: steps"))
    assert key.endswith("1.6000") and "1.5 x fewer" in rows[key][1] and rows[key][2] == "fewer, but less so"
    assert rows["Shakespeare, scaled, mingru: best loss"][1] == "1.500 +- 0.000 at step 3 (2 seeds)"
    assert rows["Shakespeare, scaled, mingru: best loss"][2].startswith("0.100 better than the Transformer")


def test_a_second_transformer_is_a_second_yardstick(table, tmp_path):
    learned = {"mingru": [2.0, 1.6], "transformer": [1.9, 1.5], "transformer_learned": [2.2, 2.0, 1.6]}
    for system, losses in learned.items():
        run_of(tmp_path / "language", f"{system}-seed1", dict(enumerate(losses, start=1)))
    rows = table()
    own = rows["Shakespeare, scaled, transformer_learned: best loss"]
    assert own[1] == "1.600 at step 3 (1 seed)" and own[2] == "0.100 worse than with rotary positions"
    steps = rows["Shakespeare, scaled, mingru: steps to the best loss of transformer_learned, 1.6000"]
    assert steps[1].startswith("2 against 3 steps: 1.5 x fewer")
    assert rows["Shakespeare, scaled, mingru: steps to the best loss of transformer, 1.5000"][2] == "disagrees"


def test_more_steps_than_the_transformer(table, tmp_path):
    for system, losses in {"mingru": [2.0, 1.9, 1.6], "transformer": [1.9, 1.6]}.items():
        run_of(tmp_path / "language", f"{system}-seed1", dict(enumerate(losses, start=1)))
    row = table()["Shakespeare, scaled, mingru: steps to the best loss of transformer, 1.6000"]
    assert row[1:3] == ["3 against 2 steps: 1.5 x more; 1.5 x more time", "disagrees"]


def test_full_size_runs_have_rows_of_their_own(table, tmp_path):
    run_of(tmp_path / "full", "mamba-seed1", {50: 1.75, 100: 1.5, 150: 1.6})
    rows = table(f"--full={tmp_path / 'full'}")
    expected = ["1.575 at step 400", "1.500 at step 100 (1 seed)"]
    assert rows["Shakespeare, full size, mamba: best loss"][:2] == expected
    assert rows["Shakespeare, scaled, mamba: best loss"][1] == reproduction.MISSING


def test_seconds_at_full_size_are_those_of_steps_measured_side_by_side(table, tmp_path):
    """Where both were; a run's own clock also counts what other programs took."""
    for system, losses in {"mingru": [2.0, 1.6], "minlstm": [2.0, 1.6], "transformer": [1.9, 1.8, 1.6]}.items():
        run_of(tmp_path / "full", f"{system}-seed1", dict(enumerate(losses, start=1)))
    (tmp_path / "full_speed").mkdir()
    for name, seconds in {"mingru": 0.2, "transformer": 0.8}.items():
        rows = [{"name": "forward", "times": [9.0]}, {"name": "whole step", "times": [5.0, seconds, 0.1]}]
        (tmp_path / "full_speed" / f"{name}.json").write_text(json.dumps({"results": rows}))
    rows, claim = table(), "Shakespeare, full size, {}: steps to the best loss of transformer, 1.6000"
    assert rows[claim.format("mingru")][1] == "2 against 3 steps: 1.5 x fewer; 6.0 x less time"
    assert rows[claim.format("minlstm")][1] == "2 against 3 steps: 1.5 x fewer; 1.5 x less time"


def test_only_finished_runs_count(table, tmp_path):
    run_of(tmp_path / "language", "mingru-seed1", {1: 1.5})
    run_of(tmp_path / "language", "mingru-seed2", {1: 1.25}, seed=2, status="stopped")
    assert table()["Shakespeare, scaled, mingru: best loss"][1] == "1.500 at step 1 (1 seed)"


@pytest.mark.parametrize(
    ("first", "text", "verdict"),
    [((2, 6), "33.3", "agrees"), ((34, 100), "34.0", "agrees to rounding"), ((35, 100), "35.0", "disagrees")],
)
def test_parameters(table, tmp_path, first, text, verdict):
    counts = {"mingru": [first, (22, 100), (17, 100), (13, 100)], "minlstm": [(38, 100)]}
    results = [{"name": name, "counts": {"weights": pair}} for name, pairs in counts.items() for pair in pairs]
    (tmp_path / "parameters").write_text(json.dumps({"results": results}))
    rows = [row for claim, row in table().items() if "parameters of the cell" in claim]
    assert rows[0][:3] == ["33 / 22 / 17 / 13 %", f"{text} / 22.0 / 17.0 / 13.0 %", verdict]
    assert rows[1][1:3] == ["38.0 %", "disagrees"]  # not at all expansions


def test_speed_and_memory(table, tmp_path):
    times = {"mingru": [0.001], "gru_reference": [0.2], "gru": [0.005]}
    results = [{"name": name, "T": 512, "times": t, "bytes": len(name)} for name, t in times.items()]
    numbers = {"results": results, "conditions": {"machine": "this", "options": {"batch": 8}}}
    (tmp_path / "length").write_text(json.dumps(numbers))
    rows = table()
    speed = rows["mingru trains so many times as fast as the step-by-step gru, batch 8, length 512"]
    assert speed[1:3] == ["200.0 x gru_reference, 5.0 x gru", "agrees"]
    assert rows["mingru takes more memory than gru_reference"][1] == "-54 %"


@pytest.mark.parametrize(
    ("reference", "ours", "verdict"),
    [
        (0.15, "150.0 x gru_reference", "agrees"),
        (0.02, "20.0 x gru_reference", "faster, but not by hundreds: this"),
        (0.0005, "0.5 x gru_reference", "disagrees: slower"),
        (None, "not measured yet", "-"),
    ],
)
def test_the_verdict_follows_the_ratio(table, tmp_path, reference, ours, verdict):
    times = {"mingru": [0.001]} | ({"gru_reference": [reference]} if reference else {})
    results = [{"name": name, "T": 512, "times": t, "bytes": 1} for name, t in times.items()]
    conditions = {"machine": "this", "options": {"batch": 8}}
    (tmp_path / "length").write_text(json.dumps({"results": results, "conditions": conditions}))
    row = table()["mingru trains so many times as fast as the step-by-step gru, batch 8, length 512"]
    assert row[1:3] == [ours, verdict]


def test_a_target_that_is_not_reached_is_no_number(table, tmp_path):
    run_of(tmp_path / "language", "mingru-seed1", dict(enumerate([2.0, 1.9], start=1)))
    run_of(tmp_path / "language", "transformer-seed1", dict(enumerate([2.2, 1.6], start=1)))
    rows = table()
    (key,) = (key for key in rows if key.startswith("Shakespeare, scaled, mingru: steps"))
    assert rows[key][1:3] == ["not reached", "disagrees"]
    assert "nan" not in str(rows)


def test_runs_without_metrics_have_no_time_to_the_target(table, tmp_path):
    for name in ("mingru-seed1", "transformer-seed1"):
        path = run_of(tmp_path / "language", name, {1: 1.6})
        (path / "metrics.csv").unlink()
        change_summary(path, best={"val/loss": 1.6})
    rows = table()
    (key,) = (key for key in rows if key.startswith("Shakespeare, scaled, mingru: steps"))
    assert rows[key][1:3] == ["not measured yet", "-"] and "nan" not in str(rows)


@pytest.mark.parametrize(
    ("name", "accuracy", "verdict"),
    [
        ("mingru", 0.991, "solves it, as in the paper"),
        ("mingru", 0.5, "does not solve it, unlike the paper"),
        ("s4d", 0.99, "solves it, unlike the paper"),
        ("s4d", 0.20, "does not solve it, as in the paper"),
        ("s4d", 0.775, "does not solve it, but 59.2 points above the paper"),
        ("s4d", 0.05, "does not solve it, but 13.3 points below the paper"),
    ],
)
def test_accuracies_are_compared_as_numbers(table, tmp_path, name, accuracy, verdict):
    run_of(tmp_path / "copying", f"copying_{name}-layers3-seed1", {10: {"val/accuracy": accuracy}})
    row = table()[f"selective copying, scaled, {name}: accuracy by layers"]
    assert row[1:3] == [f"3: {100 * accuracy:.1f} %", verdict]


def test_copying_at_full_length_has_rows_of_its_own(table, tmp_path):
    rows = {10: {"val/loss": 0.5, "val/accuracy": 0.9}, 20: {"val/loss": 0.1, "val/accuracy": 0.9876}}
    run_of(tmp_path / "full_copying", "copying_minlstm-seed1", rows)
    name = "selective copying at length 4,096, {}: accuracy".format
    expected = ["96.0 % after 400,000 steps", "98.8 % after 20 steps", "solves it, as in the paper"]
    assert table()[name("minlstm")][:3] == expected
    assert table()[name("mingru")][1] == reproduction.MISSING


def test_numbers_that_are_none(tmp_path, capsys):
    (tmp_path / "length").write_text("{")
    assert commands.reproduction([f"--length={tmp_path / 'length'}"]) == 2
    assert "not a benchmark's numbers" in capsys.readouterr().err
