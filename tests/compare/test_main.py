"""`char-lm compare`: its outputs and its refusals."""

import csv
import io
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.compare import table, terminal
from lm.compare.page import encode, payload
from lm.compare.runs import MARKS, read_run
from lm.report.html import embed
from lm.runs.metrics import HEADER
from tests.commands import compare
from tests.fake_runs import empty_run, fake_run, run_of


def test_losses_that_are_not_numbers_are_reported_and_never_best(tmp_path, capsys):
    path = run_of(tmp_path, "a", {10: 2.0, 20: math.nan, 30: math.inf, 40: -math.inf})
    assert compare([str(path), "--text", "--html", str(tmp_path / "a.html"), "--png", str(tmp_path / "a.png")]) == 0
    told = capsys.readouterr()
    assert "val/loss is nan at step 20" in told.err
    assert "2.0000" in told.out


def test_a_run_without_validation_is_shown(tmp_path, capsys):
    fake_run(tmp_path, "a", validations=0, status="running")
    assert compare([str(tmp_path), "--text", "--html", str(tmp_path / "a.html"), "--png", str(tmp_path / "a.png")]) == 0
    assert "no validation yet" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["config.yaml", "summary.json", "metrics.csv", "samples.jsonl"])
def test_a_missing_file_costs_only_what_was_in_it(tmp_path, capsys, missing):
    (fake_run(tmp_path, "a") / missing).unlink()
    fake_run(tmp_path, "b", "attention")
    assert compare([str(tmp_path), "--text", "--html", str(tmp_path / "a.html")]) == 0
    assert capsys.readouterr().out.count("\na ") >= 1


def test_runs_on_different_texts_are_not_ranked(tmp_path, capsys):
    """Their tables are shown, a sentence that says who is faster is not."""
    sentences = "times fewer steps", "steps as", "of training:"
    for name, corpus in (("a", "one.txt"), ("b", "one.txt"), ("c", "other.txt")):
        fake_run(tmp_path, name, "gru" if name == "a" else "mingru", data={"corpus": corpus})
    assert compare([str(tmp_path / "[ab]"), "--csv", str(tmp_path / "ab.csv")]) == 0
    out, err = capsys.readouterr()
    assert any(sentence in out for sentence in sentences) and err == f"wrote {tmp_path / 'ab.csv'}\n"
    assert compare([str(tmp_path / "[abc]")]) == 0
    out, err = capsys.readouterr()
    assert not any(sentence in out for sentence in sentences) and "not comparable, the corpora differ" in err


def test_folders_without_a_run_are_named(tmp_path, capsys):
    fake_run(tmp_path, "a")
    (tmp_path / "empty").mkdir()
    assert compare([str(tmp_path / "*")]) == 0
    assert f"no run in {tmp_path}/empty" in capsys.readouterr().err


def test_only_twenty_notes_are_printed(tmp_path, capsys):
    for i in range(23):
        (empty_run(tmp_path, f"run-{i}", seed=i) / "metrics.csv").write_text(HEADER + "x\n")
    assert compare([str(tmp_path)]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 21 and notes[0].endswith("damaged rows of metrics.csv left out")
    assert notes[-1] == "note: and 3 more"


def test_two_hundred_runs(tmp_path, capsys):
    for i in range(200):
        fake_run(tmp_path, f"run-{i}", seed=i, rows=30, model={"width": 2 + 2 * (i // 2)})
    assert (
        compare([str(tmp_path), "--text", *(f"--{x}={tmp_path / 'out'}.{x}" for x in ("html", "png", "json", "csv"))])
        == 0
    )
    assert len(json.loads((tmp_path / "out.json").read_text())["groups"]) == 100
    assert "(66 more)" in capsys.readouterr().out


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from([b"nan,1,1\n", HEADER.encode(), b"1," * 11 + b"2\n", b"{}\n", b"[1e999]\n"]),
        ),
        max_size=8,
    )
)
def test_nothing_in_a_folder_can_break_the_comparison(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("run")
    for name in (*MARKS, "samples.jsonl", "environment.json"):
        head = HEADER.encode() if name == "metrics.csv" else b""
        (path / name).write_bytes(head + b"".join(pieces))
    runs = [read_run(path)]
    groups = table.group(runs)
    target = table.default_target(runs, "val/loss")
    everything = table.as_json(runs, groups, "val/loss", target, [])
    json.dumps(everything, allow_nan=False)
    embed(payload(runs, "val/loss", target, []) | {"runs": [encode(run, 1) for run in runs]})
    lines = [*terminal.results(groups), *terminal.curves(groups, "train/loss", "flops")]
    assert all(line.isprintable() for line in lines)


def test_names_cannot_reach_the_terminal_or_the_spreadsheet(tmp_path, capsys):
    fake_run(tmp_path, "\x1b[2J=1+1\n", rows=20)
    for sign in "=+-@":
        fake_run(tmp_path, f"{sign}cmd()", rows=20, model={"width": ord(sign)})
    assert compare([str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert compare([str(tmp_path), "--csv", "-"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows[1:]] == ["'+cmd()", "'-cmd()", "'=cmd()", "'@cmd()"]
    assert float(rows[1]["val/loss"]) > 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "no run folder nowhere; give run folders"),
        (["{folder}/empty"], "no run in {folder}/empty; make one with: char-lm train"),
        (["{folder}", "--target", "abc"], "--target: expected a number or null, not abc"),
        (["{folder}", "--target", "-1"], "--target must be a number above 0, not -1"),
        (["{folder}", "--metric", "loss"], "--metric: expected val/loss or val/loss_streaming, not loss"),
        (["{folder}", "--x", "time"], "--x: expected step or chars or train_seconds or flops, not time"),
        (["{folder}", "--port", "99999"], "--port must be between 0 and 65535, not 99999"),
        (["{folder}", "--htm", "a"], "unknown option --htm; did you mean --html?"),
        (["{folder}", "--html", "{folder}/no/a.html"], "cannot write {folder}/no/a.html: No such file or directory"),
        (["{folder}", "--png", "{folder}/no/a.png"], "cannot write {folder}/no/a.png: No such file or directory"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(tmp_path, capsys, argv, message):
    fake_run(tmp_path, "a", rows=20)
    (tmp_path / "empty").mkdir()
    assert compare([word.format(folder=tmp_path) for word in argv]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(told) == 1
    assert message.format(folder=tmp_path) in told[0]


def test_no_torch_and_quick(tmp_path):
    for i in range(20):
        fake_run(tmp_path, f"run-{i}", seed=i, rows=5000, validations=20)
    script = (
        "import sys; from lm.cli import main; assert main(['compare', *sys.argv[1:]]) == 0; "
        "assert not {'torch', 'pandas', 'matplotlib', 'plotly'} & set(sys.modules)"
    )
    # 0.7 s on a quiet machine; the bound leaves room for a crowded one
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=20, stdout=subprocess.DEVNULL)
