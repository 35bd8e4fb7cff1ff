"""`char-lm evaluate --text`: figures of texts that are counted by hand."""

import pytest

from lm.analysis.text import Figures, longest_copy, measure
from tests.commands import evaluate

TRAINING = "ROMEO:\nO, speak again, bright angel!\n\nJULIET:\nAy me!\n'Tis I.\n\nROMEO:\nWho's there?\n"


def test_figures_by_hand():
    """Words: ay me who's there angels (unknown). Speeches: Juliet's of two lines, Paris's of one."""
    text = "JULIET:\nAy me!\nWho's there?\n\nPARIS:\nAngels\n"
    assert measure(text, TRAINING) == Figures(43, 5 / 7, len("\n\nJULIET:\nAy me!\n") - 2, 1.5, 0.5)


def test_a_text_without_speeches_or_words():
    assert measure("123 456", TRAINING) == Figures(7, None, 1, None, None)
    assert measure("123 456", TRAINING).cells() == ("7", "-", "1", "-", "-")


@pytest.mark.parametrize(("text", "longest"), [("", 0), ("xyz", 0), ("xbanax", 4), ("anana", 5), ("bananab", 6)])
def test_longest_copy(text, longest):
    assert longest_copy(text, "banana") == longest


def test_the_table_has_the_real_text_once(capsys):
    assert evaluate(["pretrained", "pretrained", "--text", "--chars", "400"]) == 0
    head, rule, real, ours = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "text" and set(rule) == {"-"}
    assert real.startswith("tiny_shakespeare, validation split") and ours.startswith("pretrained")
    assert real.split()[-5] == ours.split()[-5] == "400"


def test_copying_has_no_text(run_train, capsys):
    run = run_train("a", "--data.corpus", "selective_copying", "--data.context", "40", "--trainer.max_steps", "2")
    capsys.readouterr()
    assert evaluate([str(run), "--text"]) == 2
    assert "not on text" in capsys.readouterr().err
