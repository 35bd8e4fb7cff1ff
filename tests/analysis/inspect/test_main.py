"""`char-lm inspect`: what it prints and writes, and what users get wrong."""

import json
import re

import pytest

from lm.analysis.inspect import pictures
from lm.analysis.inspect.main import MOST_CHARS, beginning
from tests.commands import inspect

PICTURES = ["surprise", "times", "clearest", "memory"]


def data_of(path) -> dict:
    """The data in a page."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text()).group(1))


@pytest.mark.parametrize("name", ["mingru", "minlstm", "mixed"])
def test_tables_and_page(runs, tmp_path, capsys, name):
    page = tmp_path / "page.html"
    assert inspect([name, "--runs", str(runs), "--html", str(page), "--text", "ROMEO:\nAy", "--chars", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Time constants in characters")
    assert [line.split()[:2] for line in lines[4:6]] == [["1", "64"], ["2", "64"]]
    assert any("correlation of the state over 1,000 of 1,208 held-out characters" in line for line in lines)
    assert any(re.match(r"\S.*  [12]\.\d+ +[+-]0\.\d\d  +0\.\d\d +\d", line) for line in lines)
    data = data_of(page)
    assert (data["text"], data["notes"], len(data["study"]["text"])) == ("ROMEO:\nAy", [], 1000)
    assert [model["name"] for model in data["models"]] == [name] and data["study"]["hidden"] == [64, 64]


def test_a_mixer_without_native_step_has_surprise_only(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert inspect(["attention", "--runs", str(runs), "--html", str(page), "--beside", "mingru"]) == 0
    assert "attention: the mixer Attention has no native step; its channels are not studied" in capsys.readouterr().out
    data = data_of(page)
    assert data["study"] is None and data["models"][0]["block"] is None and data["models"][1]["block"]
    assert "leaves out what channels do" in data["notes"][0] and len(data["notes"]) == 1


def test_pictures(runs, tmp_path, monkeypatch):
    for size in ("STRETCH", "LONGEST", "SQUARE"):
        monkeypatch.setattr(pictures, size, 10)
    words = [
        "mingru",
        "--runs",
        str(runs),
        "--chars",
        "1000",
        "--text",
        "a$b_c\t\u4e16\n" * 30,
        "--png",
        f"{tmp_path}/a-",
    ]
    assert inspect([*words, "--channels", "2.64"]) == 0
    names = [*PICTURES, "channel-2.64", "sources-2.64"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"a-{name}.png" for name in names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_figures_go_into_a_document(runs, tmp_path, capsys):
    document = tmp_path / "a.md"
    document.write_text("<!-- inspect: begin -->\n<!-- inspect: end -->\n")
    words = ["mingru", "--runs", str(runs), "--chars", "1000", "--insert", str(document)]
    assert inspect(words) == 0
    assert f"$ char-lm inspect mingru --chars 1000 --runs {runs}\nTime constants" in document.read_text()


@pytest.mark.parametrize("size", [MOST_CHARS - 1, MOST_CHARS])
def test_a_text_is_shown_whole(size):
    assert beginning("x" * size) == ("x" * size, "")


def test_ten_megabytes_of_text(runs, tmp_path, capsys):
    """Only its beginning is read, and the page says so."""
    text, page = tmp_path / "long.txt", tmp_path / "page.html"
    text.write_text("To be, or not to be.\n" * 500_000)
    assert inspect(["attention", "--runs", str(runs), "--text", f"@{text}", "--html", str(page)]) == 0
    data = data_of(page)
    assert len(data["text"]) == MOST_CHARS and "its first 10,000 characters" in data["notes"][0]


@pytest.mark.parametrize("name", ["mingru", "attention"])
def test_an_empty_text(runs, tmp_path, capsys, name):
    page = tmp_path / "page.html"
    assert inspect([name, "--runs", str(runs), "--text", "", "--html", str(page), "--chars", "1000"]) == 0
    assert data_of(page)["text"] == ""
    assert inspect([name, "--runs", str(runs), "--text", "", "--png", f"{tmp_path}/a"]) == 2
    assert "the text is empty" in capsys.readouterr().err


def test_two_checkpoints_of_a_run_and_one_twice(runs, tmp_path, capsys):
    page, good = (
        tmp_path / "page.html",
        ["attention", "--runs", str(runs), "--text", "Ay", "--html", str(tmp_path / "page.html")],
    )
    assert inspect([*good, "--beside", str(runs / "attention/checkpoints/last.ckpt")]) == 0
    assert [model["name"] for model in data_of(page)["models"]] == ["attention", "attention last"]
    assert inspect([*good, "--beside", "attention"]) == 0
    assert [model["name"] for model in data_of(page)["models"]] == ["attention"] * 2


def test_best_and_last(runs, tmp_path, capsys):
    (runs / "mingru/checkpoints/last.ckpt").rename(tmp_path / "kept")
    try:
        assert inspect(["mingru", "--runs", str(runs), "--chars", "1000"]) == 0
        assert inspect(["mingru", "--runs", str(runs), "--which", "last"]) == 2
        assert "last.ckpt" in capsys.readouterr().err
    finally:
        (tmp_path / "kept").rename(runs / "mingru/checkpoints/last.ckpt")


def test_last_words_before_any_work(runs, capsys):
    """Mistakes in what is to be written are said before anything is read."""
    good = ["mingru", "--runs", str(runs)]
    for words, says in (
        (["--channels", "1.1"], "give --png too"),
        (["--png", "x", "--channels", "3.1"], "no channel 3.1; there are 1.1 to 1.64, 2.1 to 2.64"),
        (["--beside", "nothing"], "nothing"),
    ):
        assert inspect([*good, *words]) == 2
        out, err = capsys.readouterr()
        assert says in err and err.count("\n") == 1 and out == ""
    assert inspect(["attention", *good[1:], "--png", "x", "--channels", "1.1"]) == 2
    assert "no channel 1.1; there are none" in capsys.readouterr().err


def test_a_model_of_bytes(run_train, capsys):
    run = run_train("a", "--data.vocabulary", "bytes", "--trainer.max_steps", "1")
    assert inspect([str(run)]) == 2
    assert "it reads bytes; char-lm inspect needs a model of characters" in capsys.readouterr().err


def test_a_model_of_the_copying_task(run_train, capsys):
    run = run_train("a", "--data.corpus", "selective_copying", "--data.context", "40", "--trainer.max_steps", "1")
    assert inspect([str(run)]) == 2
    assert "not on text" in capsys.readouterr().err
