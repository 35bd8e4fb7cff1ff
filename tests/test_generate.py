"""generate.py: text alone on stdout, as it is made; seeds, stops, samples; one-line errors."""

import io

import pytest

import generate


@pytest.fixture
def run(run_train, capsys):
    path = run_train("a", "--trainer.max_steps", "30")
    capsys.readouterr()
    return str(path)


def write(capsys, *options):
    assert generate.main(list(options)) == 0
    return capsys.readouterr().out


def test_prompt_and_continuation_alone_go_to_stdout(run, capsys):
    text = write(capsys, run, "--prompt", "First", "--chars", "50")
    assert text.startswith("First") and len(text) == 5 + 50 + 1 and text.endswith("\n")
    assert write(capsys, run, "--prompt", "First", "--chars", "50") == text
    assert write(capsys, run, "--prompt", "First", "--chars", "50", "--seed", "1") != text


def test_prompt_from_a_file_and_from_stdin(run, capsys, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("Speak", encoding="utf-8")
    expected = write(capsys, run, "--prompt", "Speak", "--chars", "20")
    assert write(capsys, run, "--prompt", f"@{tmp_path / 'p.txt'}", "--chars", "20") == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("Speak"))
    assert write(capsys, run, "--prompt", "-", "--chars", "20") == expected


def test_an_empty_prompt_starts_a_line(run, capsys):
    empty, newline = write(capsys, run, "--prompt", ""), write(capsys, run, "--prompt", "\n")
    assert newline == "\n" + empty


def test_samples_differ_and_the_first_is_the_same_whatever_their_number(run, capsys):
    one, three = (write(capsys, run, "--chars", "30", "--samples", n, "--prompt", "A") for n in ("1", "3"))
    pieces = three.rstrip("\n").split("\n\nA")
    assert three.startswith(one.rstrip("\n")) and len(three) == 3 * 31 + 2 * 2 + 1 and len(set(pieces)) == len(pieces)


def test_stop_ends_before_the_text(run, capsys):
    text = write(capsys, run, "--prompt", "A", "--chars", "400")
    stop = text[60:63]
    stopped = write(capsys, run, "--prompt", "A", "--chars", "400", "--stop", stop)
    assert stopped == text[: text.index(stop, 1)] + "\n"


BAD = {
    ("--prompt", "caf\u00e9 \u4e2d"): "never seen: '\u00e9' '\u4e2d'",
    ("--prompt", "@/none.txt"): "/none.txt: No such file",
    ("--temperature", "-1"): "--temperature must be at least 0, not -1.0",
    ("--temperature", "nan"): "temperature",
    ("--top_p", "0"): "--top_p must be above 0 and at most 1",
    ("--top_k", "-3"): "--top_k must be at least 0",
    ("--min_p", "2"): "--min_p must be between 0 and 1",
    ("--samples", "0"): "--samples must be at least 1",
    ("--chars", "many"): "chars: expected a whole number, not many",
    ("--stop", ""): "--stop must be some text",
    ("--tempreature", "1"): "did you mean --temperature?",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(options))
def test_a_mistake_gets_one_line(run, options, capsys):
    with pytest.raises(SystemExit) as exit:
        generate.main([run, *options])
    captured = capsys.readouterr()
    assert exit.value.code == 2 and captured.out == ""
    assert captured.err.splitlines()[-1].count(BAD[options]) == 1


def test_a_missing_run_gets_one_line(tmp_path, capsys):
    for words, message in ((["nothing"], "no run nothing"), ([], "no run in")):
        with pytest.raises(SystemExit):
            generate.main([*words, "--runs", str(tmp_path)])
        assert message in capsys.readouterr().err
