"""`char-lm generate`: each option against an independent value, what is read and written, one-line errors."""

import io
import json
import math
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lm.corpora.sources import read_pieces
from lm.runs.load import PRETRAINED, load, locate
from lm.sampling.main import check
from lm.sampling.options import GenerateOptions
from lm.sampling.session import Session
from tests.commands import ROOT, evaluate, export, generate
from tests.sampling.helpers import recompute


def write(capsys, *options: str) -> str:
    """What a command writes to stdout."""
    capsys.readouterr()
    assert generate(list(options)) == 0
    return capsys.readouterr().out


def refused(capsys, *options: str) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert generate(list(options)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("char-lm generate: error: ")
    return captured.err


def expected(run: str, prompt: str, n: int, weights: str = "float32", **options) -> str:
    """A continuation by full forward passes over rounded weights and plain Python choices."""
    model, tokenizer = load(run)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            exact = module.weight.data
            if weights == "bfloat16":
                module.weight.data = exact.bfloat16().float()
            if weights == "int8":
                scale = exact.abs().max(dim=1, keepdim=True).values / 127
                module.weight.data = (exact / scale).round() * scale
    return tokenizer.decode(recompute(model, tokenizer.encode(prompt), n, **{"temperature": 0.8} | options))


def start(*options: str, **settings) -> subprocess.Popen:
    """The command in a process of its own."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen([sys.executable, "generate.py", *options], cwd=ROOT, text=True, encoding="utf-8", **streams)


# ---- options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 1.7},
        {"top_k": 2},
        {"top_p": 0.2},
        {"min_p": 0.5},
        {"seed": 2**64 - 1},
        {"weights": "bfloat16"},
        {"weights": "int8"},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "seed": 3},
    ],
    ids=str,
)
def test_options_of_choosing_equal_recomputation(run, capsys, options, compiler):
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    text = write(capsys, run, "--prompt", "First", "--chars", "50", *words)
    assert text == "First" + expected(run, "First", 50, **options) + "\n"


def test_the_default_is_a_thousand_characters_after_the_start_of_a_line(run, capsys):
    text = write(capsys, run)
    assert len(text) == 1001 and text[:50] == expected(run, "\n", 50)
    assert write(capsys, run, "--prompt", "") == text and write(capsys, run, "--prompt", "\n") == "\n" + text
    assert write(capsys, run, "--chars", "1") == text[0] + "\n"


def test_prompts_from_files_and_from_stdin(run, capsys, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfSpeak\nA")
    whole = write(capsys, run, "--prompt", "Speak\nA", "--chars", "20")
    assert whole.startswith("Speak\nA") and len(whole) == 7 + 20 + 1
    assert write(capsys, run, "--prompt", f"@{tmp_path / 'p.txt'}", "--chars", "20") == whole
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Speak\nA")))
    assert write(capsys, run, "--prompt", "-", "--chars", "20") == whole
    assert "'@'" in refused(capsys, run, "--prompt", "@")  # the character, which the corpus does not have


def test_the_run_may_be_a_folder_a_name_a_checkpoint_an_export_or_left_out(run, capsys, tmp_path):
    folder = Path(run)
    text = write(capsys, run, "--chars", "30")
    assert export([run, str(tmp_path / "exported")]) == 0
    for words in (
        ["a", "--runs", str(folder.parent)],
        ["--runs", str(folder.parent)],
        [str(folder / "checkpoints" / "best.ckpt")],
        [str(tmp_path / "exported")],
        [str(tmp_path / "exported" / "model.safetensors")],
    ):
        assert write(capsys, *words, "--chars", "30") == text


def test_without_a_run_the_pretrained_model_writes(capsys, tmp_path):
    text = write(capsys, "--runs", str(tmp_path), "--chars", "30")
    assert text == expected("pretrained", "\n", 30) + "\n"
    assert write(capsys, "pretrained", "--chars", "30") == text
    generate(["--runs", str(tmp_path), "--chars", "1"])
    assert f"no run in {tmp_path}/ yet: using the pretrained model" in capsys.readouterr().err
    assert PRETRAINED.is_dir()


def test_stderr_says_what_is_used(run, capsys):
    generate([run, "--chars", "1", "--temperature", "0.50", "--seed", "7"])
    assert capsys.readouterr().err == f"{run}/checkpoints/best.ckpt, temperature 0.5, seed 7\n"


# ---- samples and stops


def test_samples_follow_each_other_after_the_prompt(run, capsys):
    samples = ["A" + expected(run, "A", 30, sample=i, seed=2) for i in range(3)]
    text = write(capsys, run, "--chars", "30", "--samples", "3", "--prompt", "A", "--seed", "2")
    assert text == "\n\n".join(samples) + "\n"
    assert write(capsys, run, "--chars", "30", "--samples", "1", "--prompt", "A", "--seed", "2") == samples[0] + "\n"


def test_samples_of_one_character_and_samples_that_stop_at_once(run, capsys):
    """Each has its separator and its prompt."""
    firsts = [expected(run, "A", 1, sample=i) for i in range(3)]
    options = [run, "--samples", "3", "--prompt", "A"]
    assert write(capsys, *options, "--chars", "1") == "\n\n".join("A" + first for first in firsts) + "\n"
    stops = [word for first in set(firsts) for word in ("--stop", first)]
    assert write(capsys, *options, "--chars", "50", *stops) == "A\n\nA\n\nA\n"


def test_stop_ends_before_the_first_of_several(run, capsys):
    text = write(capsys, run, "--prompt", "A", "--chars", "400")
    stops = text[90:94], text[60:64]
    one = write(capsys, run, "--prompt", "A", "--chars", "400", "--stop", stops[0])
    assert one == text[: text.index(stops[0], 1)] + "\n"
    both = write(capsys, run, "--prompt", "A", "--chars", "400", "--stop", stops[0], "--stop", stops[1])
    assert both == text[: min(text.index(stop, 1) for stop in stops)] + "\n"


def test_samples_that_stop_early_keep_their_order(run, capsys):
    options = [run, "--chars", "200", "--samples", "3", "--prompt", "A"]
    samples = ["A" + json.loads(line)["text"] for line in write(capsys, *options, "--json").splitlines()]
    stop = samples[0][150:154]
    stopped = write(capsys, *options, "--stop", stop)
    assert stopped == "\n\n".join(sample.split(stop)[0] for sample in samples) + "\n"


# ---- JSON lines and files


def test_json_lines(run, capsys):
    options = [run, "--prompt", "A", "--chars", "60", "--samples", "3", "--json"]
    lines = [json.loads(line) for line in write(capsys, *options).splitlines()]
    assert [list(line) for line in lines] == [["sample", "text", "log_probabilities", "finish"]] * 3
    assert [line["sample"] for line in lines] == [0, 1, 2] and {line["finish"] for line in lines} == {"length"}
    model, tokenizer = load(run)
    for line in lines:
        assert line["text"] == expected(run, "A", 60, sample=line["sample"])
        ids = torch.tensor(tokenizer.encode("A" + line["text"]).tolist())
        with torch.no_grad():
            logs = model(ids[None, :-1])[0][0].log_softmax(-1)[range(60), ids[1:]]
        assert line["log_probabilities"] == pytest.approx(logs.tolist(), abs=2e-4)
    stop = lines[1]["text"][20:24]
    stopped = [json.loads(line) for line in write(capsys, *options, "--stop", stop).splitlines()]
    found = next(line for line in stopped if line["sample"] == 1)
    assert found["finish"] == "stop" and found["text"] == lines[1]["text"].split(stop)[0]


def test_out_is_what_would_go_to_stdout(run, capsys, tmp_path):
    for options in (["--chars", "60"], ["--chars", "60", "--json"], ["--score", "First"]):
        text = write(capsys, run, "--prompt", "A", *options)
        assert write(capsys, run, "--prompt", "A", *options, "--out", str(tmp_path / "o")) == ""
        assert (tmp_path / "o").read_text(encoding="utf-8") == text


# ---- states


@pytest.mark.parametrize("options", [["--temperature", "0.7"], ["--temperature", "0"], ["--top_k", "5"]], ids=" ".join)
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
    then = write(capsys, run, "--load_state", state, "--prompt", "B", "--temperature", "0", "--chars", "9", "--json")
    lines = [json.loads(line) for line in then.splitlines()]
    assert [line["text"] for line in lines] == [expected(run, f"A{text}B", 9, temperature=0) for text in before]
    more = write(capsys, run, "--load_state", state, "--samples", "3", "--chars", "9")
    assert more.count("\n\n") >= 2


def test_a_state_of_several_samples_is_not_for_everything(run, capsys, tmp_path):
    state = str(tmp_path / "s")
    write(capsys, run, "--prompt", "First", "--samples", "3", "--chars", "5", "--save_state", state)
    for options, message in (
        (("--chars", "0"), "the state holds 3 samples: --chars must then be above 0"),
        (("--samples", "2"), "the state holds 3 samples: --samples cannot be 2"),
        (("--score", "hello"), "--score needs a state of one sample, this one holds 3"),
    ):
        assert message in refused(capsys, run, "--load_state", state, *options)


def test_a_foreign_state_gets_one_line(run, capsys, tmp_path):
    write(capsys, run, "--chars", "5", "--save_state", str(tmp_path / "state"))
    message = refused(capsys, "pretrained", "--load_state", str(tmp_path / "state"))
    assert "the state of another model; load it with the model that saved it" in message


# ---- scores


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_score_is_the_loss_of_a_forward_pass(run, capsys, tmp_path, monkeypatch, weights, compiler):
    model, tokenizer = load(run)
    if weights == "int8":
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                scale = module.weight.data.abs().max(dim=1, keepdim=True).values / 127
                module.weight.data = (module.weight.data / scale).round() * scale
    ids = torch.tensor(tokenizer.encode("First Citizen:\nSpeak").tolist())
    with torch.no_grad():
        losses = -model(ids[None, :-1])[0][0].log_softmax(-1)[range(len(ids) - 1), ids[1:]].double()
    loss = losses.mean().item()
    plain = (
        f"{len(ids) - 1} characters  {loss:.4f} nats/char  {loss / math.log(2):.4f} bits/char  "
        f"perplexity {math.exp(loss):.4f}\n"
    )
    words = [run, "--weights", weights, "--score"]
    assert write(capsys, *words, "First Citizen:\nSpeak") == plain
    (tmp_path / "t.txt").write_text("First Citizen:\nSpeak")
    assert write(capsys, *words, f"@{tmp_path / 't.txt'}") == plain
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"First Citizen:\nSpeak")))
    assert write(capsys, *words, "-") == plain
    result = json.loads(write(capsys, *words, "Citizen:\nSpeak", "--prompt", "First ", "--json"))
    assert list(result) == ["characters", "nats_per_character", "bits_per_character", "perplexity", "unknown"]
    rest = losses[5:].mean().item()
    assert list(result.values()) == pytest.approx([14, rest, rest / math.log(2), math.exp(rest), 0], rel=1e-4)


def test_score_is_the_streaming_loss_of_evaluate(run, capsys, tmp_path):
    text = (Path(run).parent / "corpus.txt").read_text(encoding="utf-8")
    (tmp_path / "validation.txt").write_text("\ufeff" + text[int(0.9 * len(text)) :], encoding="utf-8")
    score = json.loads(write(capsys, run, "--score", f"@{tmp_path / 'validation.txt'}", "--json"))
    assert score["characters"] == len(text) - int(0.9 * len(text)) - 1
    assert evaluate([run]) == 0
    assert f"{score['nats_per_character']:.4f}" in capsys.readouterr().out


def test_score_saves_the_state_and_counts_what_the_model_has_never_seen(run, capsys, tmp_path):
    generate([run, "--score", "First Citizen caf\u00e9", "--json", "--save_state", str(tmp_path / "s")])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["unknown"] == 1 and json.loads(captured.out)["characters"] == 17
    assert captured.err == "1 of these characters the model has never seen; scored as the unknown\n"
    after = write(capsys, run, "--load_state", str(tmp_path / "s"), "--chars", "20")
    assert after == expected(run, "First Citizen caf\ufffd", 20) + "\n"
    assert "nothing to predict" in refused(capsys, run, "--score", "F")
    assert (
        refused(capsys, run, "--score", "F", "--save_state", str(tmp_path / "none"))
        and not (tmp_path / "none").exists()
    )


def test_score_takes_constant_memory(run, capsys, tmp_path):
    """Of 3 million characters, which would be 3 MB as text and 6 as ids; what PyTorch allocates is not counted."""
    (tmp_path / "t").write_bytes((b"a" * 99 + b"\n") * 30_000)
    session = Session.open(locate(run), GenerateOptions())
    session.engine = SimpleNamespace(
        init_state=lambda batch: ((torch.zeros(batch, 1),),),
        forward=lambda ids, state=None: (torch.zeros(*ids.shape, len(session.tokenizer)), ((torch.zeros(1, 1),),)),
    )
    session.score(["a"])
    tracemalloc.start()
    count, _, _, unknown = session.score(read_pieces(tmp_path / "t", 1 << 18))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, unknown) == (3_000_000, 0) and peak < 2_500_000


# ---- what ends a command


def test_ctrl_c_leaves_whole_output_and_the_state(run, capsys, tmp_path):
    out, state = tmp_path / "out", tmp_path / "state"
    options = ["--prompt", "A", "--temperature", "1", "--chars", "0"]
    process = start(run, *options, "--out", str(out), "--save_state", str(state))
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size > 200) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.count("\n") == 1
    text = out.read_text(encoding="utf-8")
    assert text == write(capsys, run, "--prompt", "A", "--temperature", "1", "--chars", str(len(text) - 2))
    assert require_continues(capsys, run, state) == len(text) - 2 > 198


def require_continues(capsys, run: str, state: Path, prompt: str = "A") -> int:
    """A state is where a text ends: what follows it is what follows in one go. Returns how long the text is."""
    written = int(load_file(state)["drawn"][0])
    more = write(capsys, run, "--load_state", str(state), "--temperature", "1", "--chars", "12")
    whole = write(capsys, run, "--prompt", prompt, "--temperature", "1", "--chars", str(written + 12))
    assert whole[-13:] == more
    return written


def test_head_is_no_error_and_the_state_is_saved(run, capsys, tmp_path):
    words = [sys.executable, "generate.py", run, "--prompt", "A", "--temperature", "1", "--chars", "0"]
    pipe = f"{shlex.join([*words, '--save_state', str(tmp_path / 's')])} | head -c 50"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and ended.stderr.count("\n") == 1
    assert require_continues(capsys, run, tmp_path / "s") >= 49
    assert ended.stdout == write(capsys, run, "--prompt", "A", "--temperature", "1", "--chars", "60")[:50]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("where", ["stdout", "out"])
@pytest.mark.parametrize("what", ["write", "score"])
def test_a_full_disk_is_one_line_and_the_state_is_saved(run, capsys, tmp_path, monkeypatch, where, what):
    options = [run, "--prompt", "A", "--temperature", "1", "--chars", "0", "--save_state", str(tmp_path / "s")]
    options += ["--score", "B"] if what == "score" else []
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        if where == "stdout":
            patched.setattr("sys.stdout", full)
        assert generate([*options, *(["--out", "/dev/full"] if where == "out" else [])]) == 2
    errors = capsys.readouterr().err.splitlines()
    name = "stdout" if where == "stdout" else "/dev/full"
    assert errors[what == "write" :] == [f"char-lm generate: error: {name}: No space left on device"]
    require_continues(capsys, run, tmp_path / "s", "AB" if what == "score" else "A")


def test_a_disk_that_fills_up_leaves_a_state_that_continues(run, capsys, tmp_path):
    """Files may have 4,096 bytes: the state is where the text ended, a little further on."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    options = [run, "--prompt", "A", "--temperature", "1", "--chars", "0", "--out", str(tmp_path / "o")]
    process = start(*options, "--save_state", str(tmp_path / "s"), preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.splitlines()[1].endswith(f"{tmp_path / 'o'}: File too large")
    assert (tmp_path / "o").stat().st_size == 4096 <= require_continues(capsys, run, tmp_path / "s")


# ---- mistakes


def test_stdin_that_is_no_text_gets_one_line(run, capsys, monkeypatch):
    for option in ("--prompt", "--score"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc\xff")))
        assert "error: stdin: not UTF-8 text (byte 0xff at position 3" in refused(capsys, run, option, "-")


@pytest.mark.parametrize("content", [b"abc\xff", b"abc\xc3"])
def test_a_file_that_is_no_text_gets_one_line(run, capsys, tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    for option in ("--prompt", "--score"):
        assert "bad: not UTF-8 text" in refused(capsys, run, option, f"@{tmp_path / 'bad'}")


@pytest.mark.parametrize("option", ["--out", "--save_state"])
def test_a_missing_folder_is_found_before_stdin_and_the_model_are_read(capsys, tmp_path, monkeypatch, option):
    class Unread:
        @property
        def buffer(self):
            raise AssertionError("stdin was read")

    monkeypatch.setattr("sys.stdin", Unread())
    path = tmp_path / "none" / "x"
    message = refused(capsys, str(tmp_path / "no run"), "--prompt", "-", option, str(path))
    assert message == f"char-lm generate: error: cannot write {path}: No such file or directory\n"


BAD = {
    ("--prompt", "caf\u00e9 \u4e2d"): "characters never seen: '\u00e9' '\u4e2d'",
    ("--prompt", "@/none.txt"): "/none.txt: No such file",
    ("--temperature", "-1"): "--temperature must be at least 0, not -1",
    ("--temperature", "nan"): "--temperature: expected a number, not nan",
    ("--top_p", "0"): "--top_p must be above 0 and at most 1, not 0",
    ("--top_p", "1.01"): "--top_p must be above 0 and at most 1, not 1.01",
    ("--top_k", "-3"): "--top_k must be at least 0",
    ("--min_p", "2"): "--min_p must be between 0 and 1",
    ("--min_p", "-0.1"): "--min_p must be between 0 and 1",
    ("--chars", "-1"): "--chars must be at least 0",
    ("--chars", "many"): "--chars: expected a whole number, not many",
    ("--samples", "0"): "--samples must be at least 1 without --save_state, not 0",
    ("--samples", "-2"): "--samples must be at least 0",
    ("--samples", "999999999999"): "--samples must be at most 1,000,000",
    ("--samples", "2", "--chars", "0"): "--chars must be above 0 for several samples without --json, not 0",
    ("--samples", "2", "--interactive"): "--samples must be 1 with --interactive or --score, not 2",
    ("--samples", "2", "--score", "A"): "--samples must be 1 with --interactive or --score, not 2",
    ("--seed", "-1"): "--seed must be at least 0 and below 2^64",
    ("--seed", str(2**64)): "--seed must be at least 0 and below 2^64",
    ("--stop", ""): "--stop must be some text, not ['']",
    ("--score", ""): "--score must be some text, not ''",
    ("--score", "A", "--interactive"): "--score must be left out with --interactive",
    ("--out", "x", "--interactive"): "--out must be left out with --interactive",
    ("--json", "--interactive"): "--json must be left out with --interactive",
    ("--prompt", "-", "--score", "-"): "--prompt and --score cannot both be -: stdin is read once",
    ("--out", "/"): "cannot write /: Is a directory",
    ("--out", ""): "cannot write ''",
    ("--save_state", "/"): "cannot write /: Is a directory",
    ("--save_state", ""): "cannot write ''",
    ("--load_state", "/none/x"): "no state file /none/x",
    ("--load_state", ""): "--load_state must be the name of a file, not ''",
    ("--weights", "int3"): "--weights: expected float32 or bfloat16 or int8, not int3",
    ("--tempreature", "1"): "unknown option --tempreature; did you mean --temperature?",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(options))
def test_a_mistake_gets_one_line(run, options, capsys):
    assert BAD[options] in refused(capsys, run, *options)


def test_what_goes_together(run, capsys, tmp_path, monkeypatch):
    """The other side of the bounds and rules above."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for options in (
        ["--samples", "2", "--chars", "1"],
        ["--samples", "1", "--score", "AA"],
        ["--samples", "1", "--interactive"],
        ["--top_p", "1", "--min_p", "1", "--top_k", "0", "--chars", "1"],
        ["--samples", "0", "--save_state", str(tmp_path / "s")],
    ):
        assert generate([run, *options]) == 0


def test_several_samples_without_an_end_are_json_lines_or_one_after_another(run, capsys):
    check(GenerateOptions(samples=2, chars=0, json=True))
    check(GenerateOptions(samples=1, chars=0))
    lines = [
        json.loads(line) for line in write(capsys, run, "--samples", "2", "--chars", "5000", "--json").splitlines()
    ]
    assert [(line["sample"], len(line["text"]), line["finish"]) for line in lines] == [
        *((0, 4096, None), (1, 4096, None), (0, 904, "length"), (1, 904, "length"))
    ]


def test_a_missing_run_gets_one_line(tmp_path, capsys):
    assert "no run nothing" in refused(capsys, "nothing", "--runs", str(tmp_path))


def test_the_help_is_short_and_needs_no_torch():
    code = "import sys; from lm.cli import main; main(['generate', '--help']); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--load_state" in result.stdout and result.stdout.count("\n") < 48
