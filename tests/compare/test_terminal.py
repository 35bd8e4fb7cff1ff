"""The tables and curves in the terminal."""

from lm.compare.runs import Reader
from lm.compare.table import group
from lm.compare.terminal import curves
from tests.commands import compare
from tests.fake_runs import change_summary, fake_run, run_of


def test_both_tables_and_the_answer(tmp_path, capsys):
    for seed, losses in ((1, {100: 2.0, 200: 1.5}), (2, {100: 2.0, 300: 1.7})):
        path = run_of(tmp_path, f"gru-s{seed}", losses, seed=seed, mixer="gru")
        change_summary(path, parameters=1_234_567, chars_per_second=999_600.0, peak_memory_mb=80.0)
    path = run_of(tmp_path, "wide", {1000: 1.55}, model={"width": 256})
    change_summary(path, parameters=99_000, chars_per_second=1000.0, peak_memory_mb=1500.0, status="running")
    assert compare([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run     mixer   params        val loss       bits/char    at step    after s  chars/s     MB    status",
        "------------------------------------------------------------------------------------------------------",
        "wide    mingru  99,000          1.5500          2.2362      1,000        500    1,000  1,500   running",
        "gru x2  gru      1.23M  1.6000 ±0.1414  2.3083 ±0.2040  250 ±70.7  125 ±35.4    1M ±0     80  finished",
        "",
        "First validation at or below val/loss 1.7, and how many times sooner than the slowest:",
        "",
        "run           steps            characters           seconds",
        "------------------------------------------------------------------",
        "gru x2    250 ±70.7  4.00x  25,000 ±7,071  4.00x  125 ±35.4  4.00x",
        "wide          1,000  1.00x           100k  1.00x        500  1.00x",
        "",
        "gru reaches 1.7 in 4 times fewer steps than wide, and in 4 times less training time.",
    ]


def test_groups_without_a_loss_come_last(tmp_path, capsys):
    run_of(tmp_path, "a", {100: {"train/loss": 1.0}})
    run_of(tmp_path, "b", {100: 1.8}, model={"width": 64})
    assert compare([str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:4]] == ["b", "a"]


def test_a_group_that_did_not_reach_the_target(tmp_path, capsys):
    for seed, loss in ((1, 1.5), (2, 1.7)):
        run_of(tmp_path, f"ab-s{seed}", {100: loss}, seed=seed)
    run_of(tmp_path, "b", {100: 1.8}, model={"width": 64})
    assert compare([str(tmp_path), "--target", "1.6"]) == 0
    table = [line.split("  ") for line in capsys.readouterr().out.partition("slowest:")[2].splitlines()[4:6]]
    rows = [[cell.strip() for cell in row if cell] for row in table]
    cells = ("100", "1.00x", "10,000", "1.00x", "50", "1.00x")
    assert rows == [["ab x2", "1 of 2 reached it", *cells], ["b", "not reached", "-", "-", "-"]]


def test_curves(tmp_path):
    run_of(tmp_path, "a", {20: 4.0, 40: 2.0, 80: 1.0})
    run_of(tmp_path, "b", {80: {"train/loss": 1.0}}, model={"width": 64})
    groups = group(Reader([str(tmp_path)]).read())
    assert curves(groups, "val/loss", "train_seconds", width=9, height=4) == [
        "val/loss",
        "  4.0000 |  o",
        "  3.0000 |   o",
        "  2.0000 |    ooo",
        "  1.0000 |      ooo",
        "         +---------",
        "          0train_seconds 40",
        "  o a",
        "  (1 more)",
    ]
    assert curves(groups, "val/accuracy", "step") == ["no val/accuracy yet"]


def test_text_has_the_curves_of_all_groups(tmp_path, capsys):
    for mixer in ("mingru", "attention"):
        for seed in (1, 2):
            fake_run(tmp_path, f"{mixer}-s{seed}", mixer, seed)
    assert compare([str(tmp_path / "*"), "--text", "--x", "train_seconds"]) == 0
    out = capsys.readouterr().out
    assert "mingru x2" in out and "±" in out and "times fewer steps than attention" in out
    assert "train_seconds 570" in out and "\n  o attention x2\n  x mingru x2\n" in out
    assert max(map(len, out.splitlines())) < 150
