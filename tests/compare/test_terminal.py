"""The tables and curves in the terminal."""

from tests.commands import compare
from tests.fake_runs import fake_run


def test_terminal_shows_both_tables_the_answer_and_curves(tmp_path, capsys):
    for mixer in ("mingru", "attention"):
        for seed in (1, 2):
            fake_run(tmp_path, f"{mixer}-s{seed}", mixer, seed)
    assert compare([str(tmp_path / "*"), "--text", "--x", "train_seconds"]) == 0
    out = capsys.readouterr().out
    assert "mingru x2" in out and "±" in out
    assert "times fewer steps than attention" in out
    assert "train_seconds" in out and "o attention x2" in out
    assert max(map(len, out.splitlines())) < 150
