"""Run folders as data: damaged, half-written and strange ones included."""

import json
import math
import os

import pytest

from lm.compare.runs import Reader, Sample, read_run
from lm.files import acquire_lock
from lm.runs.metrics import AXES, VALUES
from tests.fake_runs import append_row, empty_run, fake_run, run_of


def test_a_row_being_written_is_left_for_later(tmp_path):
    path = fake_run(tmp_path, "a", rows=20)
    whole = read_run(path)
    with (path / "metrics.csv").open("a") as file:
        file.write("210,860160,3")
    torn = read_run(path)
    assert torn.rows == whole.rows
    assert torn.problems == []


def test_damaged_rows_are_left_out_and_counted(tmp_path):
    path = fake_run(tmp_path, "a", rows=20, validations=0)
    lines = (path / "metrics.csv").read_text().splitlines()
    lines[5:5] = ["\0\0\0", "what,is,this", ",".join(["x"] * len(AXES + VALUES)), "," * (len(AXES + VALUES) - 1)]
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")
    run = read_run(path)
    assert [row["step"] for row in run.rows] == [10.0 * i for i in range(1, 21)]
    assert run.problems == ["3 damaged rows of metrics.csv left out"]


def test_numbers_that_no_plot_can_show_are_left_out(tmp_path):
    path = run_of(tmp_path, "a", {10: 2.0, 20: 1e35, 30: -1e35, 40: math.nan, 50: {"train/loss": 1.0}})
    run = read_run(path)
    assert run.points("val/loss") == [(10, 2.0)] == run.points("val/loss", "step")
    assert [row["step"] for row in run.validations("val/loss")] == [10]
    assert run.points("train/loss", "train_seconds") == [(25, 1.0)]


def test_samples_are_by_step_begin_with_their_prompt_and_are_bounded(tmp_path):
    path = empty_run(tmp_path, "a")
    lines = [
        {"step": 20, "prompt": "To ", "text": "be"},
        {"step": 10, "text": "x" * 5000},
        {"step": 20, "text": "or"},
        {"step": 30, "text": ""},
    ]
    strange = [{"step": True, "text": "a"}, {"step": 1.5, "text": "a"}, {"step": 5, "text": 5}, {"step": 5}, [1], "a"]
    (path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *strange]) + "{")
    assert read_run(path).samples == [Sample(10, "x" * 4000), Sample(20, "or"), Sample(30, "")]
    (path / "samples.jsonl").write_text(json.dumps(lines[0]))
    assert read_run(path).samples == [Sample(20, "To be")]


def test_a_run_whose_process_has_ended_is_stopped(tmp_path):
    path = empty_run(tmp_path, "a", status="running")
    assert read_run(path).status == "running"  # no lock: made by another program
    with acquire_lock(path / ".lock"):
        assert read_run(path).status == "running"
    assert read_run(path).status == "stopped"


def test_what_a_run_says_of_itself(tmp_path):
    path = empty_run(tmp_path, "a", "lstm", seed=3, model={"width": 64}, data={"split": " x"})
    (path / "environment.json").write_text('{"processor": "EPYC"}')
    run = read_run(path)
    assert (run.mixer, run.status, run.processor) == ("lstm", "finished", "cpu EPYC")
    assert (run.config["model.width"], run.config["data.split"], run.config["data.revision"]) == ("64", "' x'", "none")
    assert run.number("nothing", "status", "parameters") == 704_000 and math.isnan(run.number("nothing"))
    config = dict(run.experiment)
    assert "model.width" in config and not {"seed", "name", "runs", "version", "log.every"} & {*config}


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        fake_run(tmp_path / folder, "a", rows=5)
    assert [run.name for run in Reader([str(tmp_path / "*")]).read()] == ["x/a", "y/a"]


def test_a_run_matched_twice_is_read_once(tmp_path):
    path = fake_run(tmp_path, "a", rows=5)
    assert len(Reader([str(tmp_path), str(path), str(tmp_path / "a*")]).read()) == 1


def test_only_changed_folders_are_read_again(tmp_path):
    for name in "ab":
        fake_run(tmp_path, name, rows=5)
    reader = Reader([str(tmp_path)])
    first = reader.read()
    append_row(tmp_path / "b", 60, **{"val/loss": 1.0})
    second = reader.read()
    assert second[0] is first[0]
    assert second[1].rows[-1]["step"] == 60


@pytest.mark.parametrize(
    "config",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: {d: [*b, *b]}\n",
        "model: {mixer: [a, {b: c}]}\n",
        "[" * 2000,
        "- 1\n",
        "1: {2: 3}\n",
    ],
)
def test_strange_configurations(tmp_path, config):
    (tmp_path / "config.yaml").write_text(config)
    assert all(isinstance(x, str) and len(x) < 2000 for item in read_run(tmp_path).config.items() for x in item)


def test_a_pipe_in_a_run_folder_is_not_waited_for(tmp_path):
    path = fake_run(tmp_path, "a", rows=5)
    (path / "samples.jsonl").unlink()
    os.mkfifo(path / "samples.jsonl")
    assert read_run(path).samples == []
