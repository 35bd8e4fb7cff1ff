"""generate.py: text alone on stdout, as it is made; seeds, stops, samples, states, scores; one-line errors."""

import io
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.corpora.sources import read_text
from lm.files import DATA
from lm.runs.load import PRETRAINED
from tests.commands import ROOT, evaluate, generate, train
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run for all tests here; none of them changes it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    options = ["--data.corpus", str(folder / "corpus.txt"), "--runs", str(folder), "--name", "a"]
    assert train([*SMALL, *options, "--trainer.max_steps", "30"]) == 0
    return str(folder / "a")


@pytest.fixture
def run(trained, capsys):
    capsys.readouterr()
    return trained


def write(capsys, *options):
    assert generate(list(options)) == 0
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


def test_several_stops(run, capsys):
    text = write(capsys, run, "--prompt", "A", "--chars", "400")
    stops = text[90:94], text[60:64]
    stopped = write(capsys, run, "--prompt", "A", "--chars", "400", "--stop", stops[0], "--stop", stops[1])
    assert stopped == text[: min(text.index(stop, 1) for stop in stops)] + "\n"


def test_samples_that_stop_early_keep_their_order(run, capsys):
    three = write(capsys, run, "--chars", "200", "--samples", "3", "--prompt", "A").rstrip("\n")
    lengths = (len(three) - 4) // 3
    pieces = [three[i * (lengths + 2) : i * (lengths + 2) + lengths] for i in range(3)]
    stop = pieces[0][150:154]
    stopped = write(capsys, run, "--chars", "200", "--samples", "3", "--prompt", "A", "--stop", stop)
    assert stopped == "\n\n".join(piece.split(stop)[0] for piece in pieces) + "\n"


def test_json_lines(run, capsys, monkeypatch):
    options = [run, "--prompt", "A", "--chars", "60", "--samples", "3"]
    texts = ["".join(piece) for piece in zip(*[iter(write(capsys, *options).rstrip("\n") + "\n\n")] * 63, strict=True)]
    lines = [json.loads(line) for line in write(capsys, *options, "--json").splitlines()]
    assert [line["sample"] for line in lines] == [0, 1, 2] and {line["finish"] for line in lines} == {"length"}
    assert [f"A{line['text']}\n\n" for line in lines] == texts
    for line in lines:
        scored = json.loads(write(capsys, run, "--prompt", "A", "--score", line["text"], "--json"))
        assert scored["nats_per_character"] == pytest.approx(-sum(line["log_probabilities"]) / 60, abs=1e-4)
    monkeypatch.setattr(generate.JsonWriter, "CHARACTERS", 25)
    pieces = [json.loads(line) for line in write(capsys, *options, "--json").splitlines()]
    assert [(p["sample"], len(p["text"]), p["finish"]) for p in pieces if p["sample"] == 1] == [
        (1, 25, None),
        (1, 25, None),
        (1, 10, "length"),
    ]
    assert "".join(p["text"] for p in pieces if p["sample"] == 2) == lines[2]["text"]


def test_out_is_what_would_go_to_stdout(run, capsys, tmp_path):
    text = write(capsys, run, "--prompt", "A", "--chars", "60")
    assert write(capsys, run, "--prompt", "A", "--chars", "60", "--out", str(tmp_path / "o")) == ""
    assert (tmp_path / "o").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("options", [["--temperature", "0.7"], ["--temperature", "0"]])
def test_saved_and_loaded_equals_one_go(run, capsys, tmp_path, options):
    state = str(tmp_path / "state")
    whole = write(capsys, run, "--prompt", "First", "--chars", "70", "--seed", "4", *options)
    first = write(capsys, run, "--prompt", "First", "--chars", "30", "--seed", "4", "--save_state", state, *options)
    rest = write(capsys, run, "--load_state", state, "--chars", "40", *options)
    assert first[:-1] + rest == whole
    assert write(capsys, run, "--prompt", "First", "--samples", "0", "--save_state", state) == ""
    assert "First" + write(capsys, run, "--load_state", state, "--seed", "4", "--chars", "70", *options) == whole


def test_several_samples_are_saved_and_prompted_on(run, capsys, tmp_path):
    state, options = str(tmp_path / "state"), ["--json", "--seed", "2"]
    first = write(capsys, run, "--prompt", "A", "--samples", "3", "--chars", "20", "--save_state", state, *options)
    before = [json.loads(line)["text"] for line in first.splitlines()]
    then = write(capsys, run, "--load_state", state, "--prompt", "B", "--chars", "30", "--json").splitlines()
    assert len(then) == 3
    for i, line in enumerate(then):
        alone = write(capsys, run, "--prompt", f"A{before[i]}B", "--temperature", "0", "--chars", "1", "--json")
        greedy = write(
            capsys, run, "--load_state", state, "--prompt", "B", "--temperature", "0", "--chars", "1", "--json"
        )
        assert json.loads(greedy.splitlines()[i])["text"] == json.loads(alone)["text"]
        assert json.loads(line)["finish"] == "length"
    with pytest.raises(SystemExit):
        generate([run, "--load_state", state, "--samples", "2"])
    assert "the state holds 3 samples" in capsys.readouterr().err


def test_a_foreign_state_gets_one_line(run, run_train, capsys, tmp_path):
    write(capsys, run, "--chars", "5", "--save_state", str(tmp_path / "state"))
    other = run_train("b", "--trainer.max_steps", "3")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        generate([str(other), "--load_state", str(tmp_path / "state")])
    message = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(message) == 1 and "the state of another model" in message[0]


def test_score_is_the_streaming_loss_of_evaluate(run, corpus, capsys, tmp_path):
    text = corpus.read_text(encoding="utf-8")
    (tmp_path / "validation.txt").write_text("\ufeff" + text[int(0.9 * len(text)) :], encoding="utf-8")
    line = write(capsys, run, "--score", f"@{tmp_path / 'validation.txt'}")
    evaluate([run])
    streaming = capsys.readouterr().out.splitlines()[-1].split()
    assert line.split()[0] == f"{len(text) - int(0.9 * len(text)) - 1:,}"
    assert line.split()[2::2][:1] == streaming[1:2] and line.split()[4] == streaming[3]
    assert float(line.split()[-1]) == pytest.approx(math.exp(float(streaming[1])), rel=1e-3)


def test_score_counts_what_the_model_has_never_seen(run, capsys, monkeypatch):
    monkeypatch.setattr("lm.sampling.session.PIECE", 7)
    result = json.loads(write(capsys, run, "--score", "First Citizen caf\u00e9", "--json"))
    assert result["characters"] == 17 and result["unknown"] == 1
    with pytest.raises(SystemExit):
        generate([run, "--score", "F"])
    assert "nothing to predict" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"abc\xff", b"abc\xc3"])
def test_a_scored_file_that_is_no_text_gets_one_line(run, capsys, tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(SystemExit):
        generate([run, "--score", f"@{tmp_path / 'bad'}"])
    assert "not UTF-8 text" in capsys.readouterr().err


PEAK = """
import resource, sys, torch
from pathlib import Path
from lm.corpus import read_pieces
from lm.interactive import Session
from lm.tokenizer import CharTokenizer

class Uniform:
    def init_state(self, batch): return ((torch.zeros(batch, 1),),)
    def forward(self, ids, state=None): return torch.zeros(*ids.shape, 3), self.init_state(len(ids))

session = Session(None, Uniform(), CharTokenizer("a\\n"), None)
print(*session.score(read_pieces(Path(sys.argv[1])))[::2], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_after_scoring(path: Path, megabytes: int) -> int:
    """Peak memory, in kB, of a process that has scored a text of so many million characters."""
    with path.open("w") as file:
        for _ in range(megabytes * 10):
            file.write(("a" * 99 + "\n") * 1000)
    result = subprocess.run([sys.executable, "-c", PEAK, path], cwd=ROOT, capture_output=True, text=True, check=True)
    count, unknown, peak = map(int, result.stdout.split())
    assert count == megabytes * 10**6 - 1 and unknown == 0
    return peak


def test_score_takes_constant_memory(tmp_path):
    """A model that costs nothing: 14 million characters more are 14 MB as text, 28 as ids; the heap's noise is 5."""
    assert peak_after_scoring(tmp_path / "t", 16) - peak_after_scoring(tmp_path / "t", 2) < 9_000


def start(*options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "generate.py", *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_ctrl_c_leaves_whole_output_and_the_state(run, tmp_path):
    out, state = tmp_path / "out", tmp_path / "state"
    process = start(run, "--prompt", "A", "--chars", "0", "--out", str(out), "--save_state", str(state))
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size > 200) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    text = out.read_text(encoding="utf-8")
    assert text.endswith("\n") and len(text) > 200
    more = start(run, "--load_state", str(state), "--chars", "20").communicate(timeout=60)[0]
    whole = start(run, "--prompt", "A", "--chars", str(len(text) - 2 + 20)).communicate(timeout=60)[0]
    assert text[:-1] + more == whole


def test_a_reader_that_leaves_is_no_error(run):
    process = start(run, "--chars", "0")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 130 and "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.stdin is not None
    process.stdin.close()


SESSION = r"""First
/chars 25
/temperature 0
B\n

/nonsense
/tempreature 2
/top_p 3
/chars
/save {0}/i

/load {0}/i

/load {0}/none
/seed 3
/stop e
caf\u00e9
/reset
First
/help
//
/quit
never"""


def test_an_interactive_session(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(SESSION.format(tmp_path).replace("\\u00e9", "\u00e9")))
    assert generate([run, "--interactive", "--chars", "40"]) == 0
    captured = capsys.readouterr()
    first = write(capsys, run, "--prompt", "First", "--chars", "40", "--save_state", str(tmp_path / "s"))[5:]
    greedy = ["--temperature", "0", "--chars", "25"]
    second = write(capsys, run, "--load_state", str(tmp_path / "s"), "--prompt", "B\n", *greedy)[2:]
    assert captured.out.startswith(first + second)
    rest = captured.out[len(first + second) :]
    assert rest[26:52] == rest[52:78]  # what follows saving, and loading what was saved
    for message in (
        "unknown command /nonsense; /help lists them",
        "did you mean /temperature?",
        "/top_p must be above 0 and at most 1, not 3",
        "/chars must be a whole number, not ''",
        "no state file",
        "never seen: '\u00e9'",
        "Ctrl-D",
    ):
        assert message in captured.err
    assert "never" not in captured.out and "Traceback" not in captured.err


def test_a_session_through_a_pipe_ends_with_its_input(run):
    output, errors = start(run, "--interactive", "--chars", "20").communicate("First\n\n", timeout=60)
    whole = start(run, "--prompt", "First", "--chars", "40").communicate(timeout=60)[0]
    assert output[:20] + output[21:41] == whole[5:-1] and "Traceback" not in errors


def test_ctrl_c_ends_a_continuation_but_not_the_session(run):
    process = start(run, "--interactive", "--chars", "0")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("First\n")
    process.stdin.flush()
    process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate("/chars 5\n/stop\n\n", timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors
    assert len(output) > 6 and output[-7] == "\n" == output[-1]


@pytest.mark.skipif(not PRETRAINED.is_dir(), reason="data/pretrained is not there")
def test_without_a_run_the_pretrained_model_writes(capsys, tmp_path):
    assert len(write(capsys, "--runs", str(tmp_path), "--chars", "30")) == 31
    assert write(capsys, "pretrained", "--chars", "30") == write(capsys, "--runs", str(tmp_path), "--chars", "30")
    generate(["--runs", str(tmp_path), "--chars", "1"])
    assert "using the pretrained model" in capsys.readouterr().err


def test_the_help_is_short_and_needs_no_torch():
    code = "import sys, generate; generate.make_parser().print_help(); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--load_state" in result.stdout and result.stdout.count("\n") < 48


BAD = {
    ("--prompt", "caf\u00e9 \u4e2d"): "never seen: '\u00e9' '\u4e2d'",
    ("--prompt", "@/none.txt"): "/none.txt: No such file",
    ("--temperature", "-1"): "--temperature must be at least 0, not -1.0",
    ("--temperature", "nan"): "temperature",
    ("--top_p", "0"): "--top_p must be above 0 and at most 1",
    ("--top_k", "-3"): "--top_k must be at least 0",
    ("--min_p", "2"): "--min_p must be between 0 and 1",
    ("--samples", "0"): "--samples must be at least 1 without --save_state",
    ("--samples", "-2"): "--samples must be at least 0",
    ("--samples", "2", "--chars", "0"): "--chars must be above 0 for several samples without --json",
    ("--samples", "2", "--interactive"): "--samples must be 1 with --interactive",
    ("--seed", "-1"): "--seed must be at least 0",
    ("--out", "/none/x"): "/none/x: No such file",
    ("--load_state", "/none/x"): "no state file /none/x",
    ("--chars", "1", "--save_state", "/none/x"): "--save_state /none/x: there is no folder /none",
    ("--score", ""): "--score must be some text",
    ("--prompt", "-", "--score", "-"): "stdin is read once",
    ("--save_state", "/"): "--save_state /: this is a folder",
    ("--save_state", ""): "--save_state needs the name of a file",
    ("--out", ""): "--out needs the name of a file",
    ("--samples", "999999999999"): "--samples must be at most 1,000,000",
    ("--weights", "int3"): "int3",
    ("--chars", "many"): "chars: expected a whole number, not many",
    ("--stop", ""): "--stop must be some text",
    ("--tempreature", "1"): "did you mean --temperature?",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(options))
def test_a_mistake_gets_one_line(run, options, capsys):
    with pytest.raises(SystemExit) as exit:
        generate([run, *options])
    captured = capsys.readouterr()
    assert exit.value.code == 2 and captured.out == ""
    assert captured.err.count(BAD[options]) == 1 and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--chars", "0"), "the state holds 3 samples: --chars must then be above 0"),
        (("--samples", "2"), "the state holds 3 samples: --samples cannot be 2"),
        (("--score", "hello"), "--score needs a state of one sample, this one holds 3"),
    ],
)
def test_a_state_of_several_samples_is_not_for_everything(run, capsys, tmp_path, options, message):
    write(capsys, run, "--prompt", "First", "--samples", "3", "--chars", "5", "--save_state", str(tmp_path / "s"))
    with pytest.raises(SystemExit):
        generate([run, "--load_state", str(tmp_path / "s"), *options])
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_session_outlives_odd_names_and_a_state_of_several_samples(run, capsys, tmp_path, monkeypatch):
    write(capsys, run, "--prompt", "First", "--samples", "3", "--chars", "5", "--save_state", str(tmp_path / "s"))
    monkeypatch.setattr("sys.stdin", io.StringIO('/save "abc\n/save ~nouser/x\n/save a\0b\n/load a b\nFirst\n'))
    assert generate([run, "--load_state", str(tmp_path / "s"), "--interactive", "--chars", "9"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("needs the name of a file") == 4 and "this is the first" in captured.err
    assert len(captured.out) == 10


def test_a_missing_run_gets_one_line(tmp_path, capsys):
    found = PRETRAINED.is_dir()
    for words, message in ((["nothing"], "no run nothing"), *([] if found else [([], "no run in")])):
        with pytest.raises(SystemExit):
            generate([*words, "--runs", str(tmp_path)])
        assert message in capsys.readouterr().err
