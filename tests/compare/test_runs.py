"""Run folders as data: damaged, half-written and strange ones included."""

import os

import pytest

from lm.compare.runs import Reader, read_run
from lm.runs.metrics import AXES, VALUES
from tests.fake_runs import append_row, fake_run


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
