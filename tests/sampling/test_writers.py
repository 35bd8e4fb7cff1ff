"""Output: text in the order of its samples, JSON lines, files; errors are kept until the state is saved."""

import contextlib
import errno
import io
import itertools
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.sampling.text import Piece
from lm.sampling.writers import JsonWriter, Output, TextWriter


def piece(sample: int, text: str, finish: str = "", logs: list[float] | None = None) -> Piece:
    return Piece(sample, text, logs or [], finish, None)


def written(capsys, prompt: str, samples: int, *pieces: Piece) -> str:
    capsys.readouterr()
    writer = TextWriter(Output(None), prompt, samples)
    for one in pieces:
        writer(one)
    return capsys.readouterr().out


def test_samples_that_end_at_once_keep_separator_and_prompt(capsys):
    ends = [piece(i, text, "length") for i, text in enumerate("xyz")]
    assert written(capsys, "A", 3, *ends) == "Ax\n\nAy\n\nAz\n"
    assert written(capsys, "", 2, *ends[:2]) == "x\n\ny\n"
    assert written(capsys, "A", 3, *(piece(i, "", "stop") for i in range(3))) == "A\n\nA\n\nA\n"
    assert written(capsys, "A", 1, ends[0]) == "Ax\n"


def test_the_first_sample_is_written_as_it_is_made_and_others_wait(capsys):
    output, expected = Output(None), ""
    writer = TextWriter(output, "A", 3)
    for one, appears in (
        (None, "A"),
        (piece(0, "a"), "a"),
        (piece(1, "b"), ""),
        (piece(2, "c", "stop"), ""),
        (piece(0, "aa", "stop"), "aa\n\nAb"),
        (piece(1, "bb"), "bb"),
        (piece(1, "bbb", "length"), "bbb\n\nAc\n"),
    ):
        if one:
            writer(one)
        output.write("", flush=True)
        assert capsys.readouterr().out == appears
        expected += appears
    assert expected == "Aaaa\n\nAbbbbbb\n\nAc\n"


@given(st.lists(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), min_size=1, max_size=4), st.randoms())
def test_any_order_of_pieces_gives_the_samples_in_their_order(samples, order):
    rest = {i: list(texts) for i, texts in enumerate(samples)}
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        writer = TextWriter(Output(None), "P", len(samples))
    while rest:
        i = order.choice(list(rest))
        text = rest[i].pop(0)
        writer(piece(i, text, "" if rest[i] else "stop"))
        if not rest[i]:
            del rest[i]
    assert stream.getvalue() == "\n\n".join("P" + "".join(texts) for texts in samples) + "\n"


def test_json_lines(capsys):
    writer = JsonWriter(Output(None))
    writer(piece(0, "a\n", logs=[-0.1234567, -2.0]))
    writer(piece(1, "\u00e9", "stop", [-1.0]))
    writer(piece(0, "", "interrupted"))
    assert capsys.readouterr().out == (
        '{"sample": 1, "text": "\u00e9", "log_probabilities": [-1.0], "finish": "stop"}\n'
        '{"sample": 0, "text": "a\\n", "log_probabilities": [-0.123457, -2.0], "finish": "interrupted"}\n'
    )


def test_a_long_sample_has_a_json_line_per_4096_characters(capsys):
    writer, letters = JsonWriter(Output(None)), itertools.cycle("abc")
    text = "".join(itertools.islice(letters, 10_000))
    for n, letter in enumerate(text):
        writer(piece(5, letter, "length" if n == 9999 else "", [float(-n)]))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(len(line["text"]), line["finish"]) for line in lines] == [(4096, None), (4096, None), (1808, "length")]
    assert "".join(line["text"] for line in lines) == text and {line["sample"] for line in lines} == {5}
    assert [x for line in lines for x in line["log_probabilities"]] == [float(-n) for n in range(10_000)]


def test_a_file_is_created_at_the_first_text_and_holds_it_exactly(tmp_path):
    path = tmp_path / "o"
    output = Output(str(path))
    output.close()
    assert not path.exists()
    path.write_text("old")
    output = Output(str(path))
    output.write("one\r\n\u00e9\n", flush=True)
    assert path.read_bytes() == b"one\r\n\xc3\xa9\n"
    output.write("two")
    output.close()
    assert path.read_bytes() == b"one\r\n\xc3\xa9\ntwo" and output.problem is None


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_terminal_gets_no_control_characters(monkeypatch):
    """Which a model of bytes may write, and which move the cursor or change colours there."""
    master, terminal = os.openpty()
    with open(terminal, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        output = Output(None)
        output.write("a\tb\x1b[31m\x00\x9b\u00e9\n", flush=True)
        assert os.read(master, 100).decode() == "a\tb\ufffd[31m\ufffd\ufffd\u00e9\r\n"
    os.close(master)


def test_text_is_flushed_when_20_milliseconds_have_passed(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    path = tmp_path / "o"
    output, seen = Output(str(path)), []
    for now, text in ((100.0, "a"), (100.019, "b"), (100.021, "c"), (100.022, "d"), (100.042, "e")):  # noqa: B007
        output.write(text)
        seen.append(path.read_text())
    assert seen == ["a", "a", "abc", "abc", "abcde"]
    output.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_remembered():
    output = Output("/dev/full")
    output.write("text")
    output.write("more", flush=True)
    first = output.problem
    assert first is not None and first.errno == errno.ENOSPC and first.filename == "/dev/full"
    output.write("later", flush=True)
    output.close()
    assert output.problem is first


def test_a_disk_that_is_full_at_the_end_and_a_folder_that_is_gone(tmp_path, monkeypatch):
    output = Output(str(tmp_path / "gone" / "o"))
    output.write("text")
    output.close()
    assert output.problem is not None and output.problem.errno == errno.ENOENT
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # nothing is flushed before the end
    output = Output("/dev/full")
    output.write("text")
    assert output.problem is None
    output.close()
    assert output.problem is not None and output.problem.errno == errno.ENOSPC


def test_a_reader_that_left_is_remembered(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", stdout)
        output = Output(None)
        output.write("text", flush=True)
        assert isinstance(output.problem, BrokenPipeError) and output.problem.filename == "stdout"
        output.close()
        with pytest.raises(BrokenPipeError):
            stdout.close()
