"""Grouping, statistics, time to target, warnings."""

import json
import math
import statistics
from pathlib import Path

import pytest

from lm.compare import table
from lm.compare.runs import Reader
from tests.commands import compare
from tests.fake_runs import change_summary, empty_run, fake_run, run_of


def compare_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert compare([*argv, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_measures_of_a_run(tmp_path, capsys):
    """Each at the lowest windowed loss, but for the streaming loss and the accuracy, which have a best of their own."""
    validations = {
        10: {"val/loss": 2.0, "val/loss_streaming": 1.7, "val/accuracy": 0.6},
        20: {"train/loss": 0.5},
        30: {"val/loss": 1.5, "val/loss_streaming": 1.8, "val/accuracy": 0.5},
        40: {"val/loss": 1.6, "val/loss_streaming": 1.9, "val/accuracy": 0.4},
    }
    path = run_of(tmp_path, "a", validations)
    change_summary(path, parameters=12_345, chars_per_second=678.5, peak_memory_mb=90.5)
    (run,) = compare_json(capsys, str(tmp_path))["runs"]
    assert {name: run[name] for name in table.MEASURES} == {
        "parameters": 12_345,
        "val/loss": 1.5,
        "loss_per_byte": None,
        "val/loss_streaming": 1.7,
        "val/accuracy": 0.6,
        "bits_per_char": pytest.approx(1.5 / 0.693147, rel=1e-6),
        "best_step": 30,
        "best_seconds": 15,
        "chars_per_second": 678.5,
        "memory_mb": 90.5,
    }
    assert (run["name"], run["path"], run["group"]) == ("a", str(path), "a")
    assert (run["mixer"], run["status"]) == ("mingru", "finished")
    change_summary(path, chars_per_second=None, peak_gpu_memory_mb=7.5, status="diverged")
    (run,) = compare_json(capsys, str(tmp_path))["runs"]
    assert (run["chars_per_second"], run["memory_mb"], run["status"]) == (200, 7.5, "diverged")


def test_a_group_has_mean_and_deviation_of_its_seeds(tmp_path, capsys):
    speeds, memory = (100.0, 220.0, 130.0), (1.0, 2.0, 6.0)
    for seed, loss in enumerate((1.6, 1.8, 1.75), start=1):
        path = run_of(tmp_path, f"gru-s{seed}", {10 * seed: loss}, seed=seed)
        change_summary(path, chars_per_second=speeds[seed - 1], peak_memory_mb=memory[seed - 1])
    run_of(tmp_path, "wide", {10: 1.5}, model={"width": 256})
    first, second = compare_json(capsys, str(tmp_path))["groups"]
    assert (first["label"], first["runs"], first["mixer"]) == ("gru", ["gru-s1", "gru-s2", "gru-s3"], "mingru")
    for name, values in {"val/loss": (1.6, 1.8, 1.75), "chars_per_second": speeds, "memory_mb": memory}.items():
        mean = sum(values) / 3
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        assert first[name] == {"mean": pytest.approx(mean), "spread": pytest.approx(spread)}
    assert first["val/accuracy"] == {"mean": None, "spread": None}
    assert second["label"] == "wide" and second["val/loss"] == {"mean": 1.5, "spread": None}


def test_a_statistic_leaves_out_what_is_not_finite():
    found = table.Stat.of([1.0, math.nan, 4.0, math.inf])
    assert (found.mean, found.spread) == (2.5, statistics.stdev([1, 4]))
    assert found.text(str) == f"2.5 ±{found.spread}" and found.text(str, spread=False) == "2.5"
    assert math.isnan(table.Stat.of([math.nan]).mean) and math.isnan(table.Stat.of([3.0]).spread)


def test_time_to_target_is_the_first_validation_at_or_below_it(tmp_path, capsys):
    run_of(tmp_path, "fast", {100: 2.0, 200: 1.5, 300: 1.4})
    run_of(tmp_path, "slow", {100: 3.0, 200: 2.5, 300: 2.0, 500: 1.5}, model={"width": 64})
    found = compare_json(capsys, str(tmp_path))
    assert found["target"] == 1.5  # the worst run's best
    fast, slow = found["groups"]
    assert fast["to_target"]["step"] == {"mean": 200, "spread": None, "times_faster": 2.5}
    assert slow["to_target"]["step"]["times_faster"] == 1
    assert found["runs"][1]["to_target"] == {"step": 500, "chars": 50_000, "train_seconds": 250, "flops": 5e11}
    later = compare_json(capsys, str(tmp_path), "--target", "1.45")
    assert later["runs"][1]["to_target"] is None
    assert later["groups"][1]["to_target"]["reached"] == 0


def test_time_to_target_of_a_group_counts_the_seeds_that_reached_it(tmp_path, capsys):
    for seed, losses in enumerate(({100: 1.5}, {100: 2.0, 300: 1.5}, {100: 1.9}), start=1):
        run_of(tmp_path, f"a-s{seed}", losses, seed=seed)
    run_of(tmp_path, "b", {800: 1.0}, model={"width": 64})
    first, second = compare_json(capsys, str(tmp_path), "--target", "1.5")["groups"]
    assert first["to_target"]["reached"] == 2 and second["to_target"]["reached"] == 1
    step = {"mean": 200, "spread": pytest.approx(100 * math.sqrt(2)), "times_faster": 4}
    assert first["to_target"]["step"] == step
    assert first["to_target"]["chars"]["mean"] == 20_000 and first["to_target"]["train_seconds"]["mean"] == 100


def data(name: str, *rows: dict[str, float]) -> table.RunData:
    return table.RunData(Path(name), name, rows=list(rows))


def row(step: float, **values: float) -> dict[str, float]:
    """A row at this step: ten characters a step, and fewer seconds and FLOPs the more steps."""
    return {
        "step": step,
        "chars": 10 * step,
        "train_seconds": 1000 / step,
        "flops": 1000 / step,
        "val/loss": 1.0,
    } | values


def test_arrivals_are_sorted_by_steps_and_those_without_any_come_last():
    never = data("never", row(1, **{"val/loss": 9.0}))
    groups = [table.Group(run.name, [run]) for run in (never, data("late", row(50)), data("soon", row(5)))]
    assert [arrival.group.label for arrival in table.arrivals(groups, "val/loss", 1.0)] == ["soon", "late", "never"]


def test_the_headline_needs_all_seeds_at_the_target():
    never = data("never", row(1, **{"val/loss": 9.0}))
    groups = [table.Group("a", [data("a", row(5)), never]), table.Group("b", [data("b", row(10))])]
    assert table.headline(table.arrivals(groups, "val/loss", 1.0), 1.0) == ""
    groups.append(table.Group("c", [data("c", row(40))]))
    assert table.headline(table.arrivals(groups, "val/loss", 1.0), 1.0).startswith("b reaches 1 in 4 times fewer steps")


def test_speed_without_a_summary_is_that_of_the_whole_run():
    run = data("a", row(10), row(20, train_seconds=4.0), {"step": 30, "chars": 300})
    assert table.speed(run) == 50


def test_the_streaming_loss_can_be_the_metric(tmp_path, capsys):
    rows = {10: {"val/loss": 2.0, "val/loss_streaming": 1.5}, 20: {"val/loss": 1.0, "val/loss_streaming": 1.4}}
    run_of(tmp_path, "a", rows)
    found = compare_json(capsys, str(tmp_path), "--metric", "val/loss_streaming", "--target", "1.5")
    assert found["metric"] == "val/loss_streaming" and found["runs"][0]["to_target"]["step"] == 10
    assert compare_json(capsys, str(tmp_path), "--metric", "val/loss_streaming")["target"] == 1.4


def test_the_default_target_is_rounded_up_and_leaves_out_runs_that_diverged(tmp_path, capsys):
    run_of(tmp_path, "good", {10: 2.0, 20: 1.50001})
    run_of(tmp_path, "better", {10: 1.4}, model={"width": 32})
    bad = run_of(tmp_path, "bad", {10: 4.0}, model={"width": 64}, status="diverged")
    assert compare_json(capsys, str(tmp_path))["target"] == 1.5001
    assert compare_json(capsys, str(bad))["target"] == 4


def test_losses_at_equal_seconds(tmp_path):
    """Half a second a step: all runs have had 100 s; what comes later than 102 s does not count."""
    minutes = {"max_minutes": 2.0}
    for seed, losses in ((1, {100: 2.0, 200: 1.5}), (2, {100: 1.9, 201: 1.7, 210: 1.0})):
        run_of(tmp_path, f"gru-s{seed}", losses, seed=seed, mixer="gru", trainer=minutes)
    run_of(tmp_path, "wide", {150: 1.55, 200: 1.58, 400: 1.1}, model={"width": 256}, trainer=minutes)
    groups = table.group(Reader([str(tmp_path)]).read())
    assert table.at_equal_budget(groups, "val/loss") == "val/loss after 100 s of training: wide 1.5500, gru 1.6000"
    assert table.at_equal_budget(groups[:1], "val/loss") == ""
    run_of(tmp_path, "late", {500: 1.0}, model={"width": 512}, trainer=minutes)
    assert table.at_equal_budget(table.group(Reader([str(tmp_path)]).read()), "val/loss") == ""


def test_losses_at_equal_characters(tmp_path):
    """Where the budgets are steps; of budgets of both kinds nothing is said, as their schedules differ."""
    run_of(tmp_path, "gru", {100: 2.0, 200: 1.5}, mixer="gru", trainer={"max_steps": 200})
    run_of(tmp_path, "wide", {150: 1.55, 400: 1.1}, model={"width": 256}, trainer={"max_steps": 400})
    groups = table.group(Reader([str(tmp_path)]).read())
    assert table.at_equal_budget(groups, "val/loss") == "val/loss after 20,000 characters: gru 1.5000, wide 1.5500"
    run_of(tmp_path, "timed", {200: 1.0}, model={"width": 64}, trainer={"max_minutes": 2.0})
    assert table.at_equal_budget(table.group(Reader([str(tmp_path)]).read()), "val/loss") == ""


def test_the_headline_compares_the_first_with_the_last(tmp_path):
    def sentence(seconds: float, steps: int = 300) -> str:
        at = [{"step": 120, "train_seconds": 10.0}, {"step": steps, "train_seconds": seconds}]
        found = [
            table.Arrival(
                table.Group(name, [None]),  # type: ignore[list-item]
                1,
                {},
                {axis: at[1][axis] / place[axis] for axis in place},
            )
            for name, place in zip("ab", at, strict=True)
        ]
        return table.headline(found, 1.5)

    assert sentence(10.2) == "a reaches 1.5 in 2.5 times fewer steps than b."
    assert sentence(12.34) == "a reaches 1.5 in 2.5 times fewer steps than b, and in 1.2 times less training time."
    assert sentence(5.0) == "a reaches 1.5 in 2.5 times fewer steps than b, but takes 2 times its training time."
    assert sentence(10.0, steps=121) == "a reaches 1.5 in as many steps as b."


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
        empty_run(tmp_path, name, seed=seed)
    assert [item.label for item in table.group(Reader([str(tmp_path)]).read())] == [label]


def test_groups_of_one_label_are_told_apart(tmp_path):
    for name, seed, width in (("gru-1", 1, 32), ("gru-2", 2, 32), ("gru-3", 1, 64), ("gru-4", 2, 64)):
        empty_run(tmp_path, name, seed=seed, model={"width": width})
    assert [item.label for item in table.group(Reader([str(tmp_path)]).read())] == ["gru (gru-1)", "gru (gru-3)"]


def test_options_that_differ(tmp_path, capsys):
    empty_run(tmp_path, "a", seed=1, log={"every": 5})
    empty_run(tmp_path, "b", seed=2, model={"width": 64})
    assert compare_json(capsys, str(tmp_path))["differences"] == {
        "model.width": {"a": "128", "b": "64"},
        "seed": {"a": "1", "b": "2"},
    }


def test_without_metrics_the_summary_has_the_best_loss(tmp_path, capsys):
    path = fake_run(tmp_path, "a")
    (path / "metrics.csv").unlink()
    change_summary(path, best={"val/loss": 1.625})
    run = compare_json(capsys, str(tmp_path))["runs"][0]
    assert run["val/loss"] == 1.625 and run["best_step"] is None and run["to_target"] is None


COPYING = {"data": {"corpus": "selective_copying"}}
CORPORA = "not comparable, the corpora differ: data."


@pytest.mark.parametrize(
    ("a", "b", "warning"),
    [
        ({}, {"data": {"corpus": "bible"}}, f"{CORPORA}corpus is tiny_shakespeare, bible"),
        ({}, {"data": {"column": "title"}}, f"{CORPORA}column is text, title"),
        ({}, {"data": {"split": "test"}}, f"{CORPORA}split is none, test"),
        (
            *({}, {"data": {"context": 64}}),
            "windowed losses are not comparable (compare the streaming ones): data.context is 128, 64",
        ),
        (
            *(COPYING, {"data": COPYING["data"] | {"copying": {"tokens": 4, "vocabulary": 16}}}),
            "not comparable, the problems differ: data.copying.tokens is 16, 4",
        ),
        ({}, {"data": {"copying": {"tokens": 4, "vocabulary": 16}}}, None),
    ],
)
def test_runs_that_are_not_comparable_get_a_warning(tmp_path, capsys, a, b, warning):
    fake_run(tmp_path, "a", **a)
    fake_run(tmp_path, "b", **b)
    assert compare([str(tmp_path)]) == 0
    assert capsys.readouterr().err == (f"note: {warning}\n" if warning else "")


def test_other_alphabets_and_machines_get_a_warning(tmp_path, capsys):
    for name in "ab":
        path = fake_run(tmp_path, name)
        (path / "tokenizer.json").write_text(f'"{name}"')
        (path / "environment.json").write_text(json.dumps({"processor": f"processor {name}"}))
    compare([str(tmp_path)])
    told = capsys.readouterr().err
    assert "their alphabets do" in told
    assert "different machines (cpu processor a, cpu processor b)" in told


def test_a_run_that_has_not_said_its_device_yet_is_on_no_other_machine(tmp_path, capsys):
    for name in "ab":
        path = fake_run(tmp_path, name)
        (path / "environment.json").write_text(json.dumps({"processor": "EPYC"}))
    (path / "summary.json").write_text("{}")
    compare([str(tmp_path)])
    assert "different machines" not in capsys.readouterr().err


def test_a_run_of_bytes_without_their_number_says_so(tmp_path, capsys):
    """Its losses stay those per byte; with the number they and the counts are those per character."""
    path = run_of(
        tmp_path, "a", {10: {"val/loss": 1.0, "val/bpc": 2.0, "val/perplexity": 4.0}}, data={"vocabulary": "bytes"}
    )
    found = compare_json(capsys, str(tmp_path))
    assert found["runs"][0]["val/loss"] == 1.0 and "a: its numbers are per byte" in found["warnings"][0]
    change_summary(path, bytes_per_character=1.5, chars_per_second=300.0, parameters=7)
    found = compare_json(capsys, str(tmp_path))
    run = found["runs"][0]
    assert (run["val/loss"], run["loss_per_byte"], run["chars_per_second"], run["parameters"]) == (1.5, 1.0, 200.0, 7)
    row = Reader([str(path)]).read()[0].rows[0]
    assert (row["val/bpc"], row["val/perplexity"], row["step"]) == (3.0, 8.0, 10)
