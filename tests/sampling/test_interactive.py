"""Interactive sessions: lines that are continued, commands, what goes to stdout and what to stderr."""

import io
import os
import pty
import select
import signal
import sys
import time

import pytest

from lm import cli
from lm.runs.load import locate
from lm.sampling.interactive import SETTABLE, interact
from lm.sampling.options import GenerateOptions
from lm.sampling.session import Session
from lm.sampling.writers import Output
from tests.commands import ROOT, generate
from tests.sampling.test_main import require_continues, start, write

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


def talk(run: str, capsys, monkeypatch, lines: str, **options) -> tuple[str, str]:
    """What a session writes to stdout and to stderr."""
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    interact(Session.open(locate(run), GenerateOptions(**options)), "", Output(None))
    return capsys.readouterr()


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
        "temperature 0.8, seed 0",
        "unknown command /nonsense; /help lists them",
        "did you mean /temperature?",
        "/top_p must be above 0 and at most 1, not 3",
        "/chars: expected a whole number, not",
        "no state file",
        "never seen: '\u00e9'",
        "Ctrl-D",
    ):
        assert captured.err.count(message) == 1
    assert "never" not in captured.out and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("/temperature 0.4", "temperature", 0.4),
        ("/top_k 3", "top_k", 3),
        ("/top_p 0.3", "top_p", 0.3),
        ("/min_p 0.3", "min_p", 0.3),
        ("/chars 31", "chars", 31),
        ("/seed 8", "seed", 8),
        ("/stop e", "stop", ["e"]),
        (r"/stop \n", "stop", ["\n"]),
    ],
)
def test_each_command_is_the_option_of_its_name(run, capsys, monkeypatch, command, option, value):
    expected, _ = talk(run, capsys, monkeypatch, "First\n", chars=60, **({} if option == "chars" else {option: value}))
    if option == "chars":
        expected = expected[:31] + "\n"
    got, _ = talk(run, capsys, monkeypatch, f"{command}\nFirst\n", chars=60)
    plain, _ = talk(run, capsys, monkeypatch, "First\n", chars=60)
    assert got == expected != plain


def test_commands_are_the_options_of_the_command_line():
    assert set(SETTABLE) <= set(vars(GenerateOptions()))


def test_stop_alone_seed_null_and_reset(run, capsys, monkeypatch):
    plain, _ = talk(run, capsys, monkeypatch, "First\n", chars=60)
    assert talk(run, capsys, monkeypatch, "/stop e\n/stop\nFirst\n", chars=60)[0] == plain
    assert talk(run, capsys, monkeypatch, "/seed 4\n/seed null\nFirst\n", chars=60)[0] == plain  # the default
    twice, _ = talk(run, capsys, monkeypatch, "First\n/reset\nFirst\n", chars=60)
    assert twice == plain * 2


def test_escapes_and_an_empty_line(run, capsys, monkeypatch):
    once, _ = talk(run, capsys, monkeypatch, "A\\nB\n", chars=40)
    assert once == write(capsys, run, "--prompt", "A\nB", "--chars", "40")[3:]
    parts, _ = talk(run, capsys, monkeypatch, "A\\nB\n\n", chars=20)
    assert parts == once[:20] + "\n" + once[20:]
    nothing, _ = talk(run, capsys, monkeypatch, "\n", chars=20)
    assert nothing == write(capsys, run, "--chars", "20")  # the start of a line


def test_a_slash_is_typed_twice(run, capsys, monkeypatch):
    _, errors = talk(run, capsys, monkeypatch, "//First\n", chars=5)
    assert "characters never seen: '/'" in errors  # the corpus has none: it is the text /First


def test_a_prompt_is_continued_first(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    text = write(capsys, run, "--interactive", "--prompt", "First", "--chars", "30")
    assert text == write(capsys, run, "--prompt", "First", "--chars", "30")


def test_the_state_is_saved_at_the_end(run, capsys, tmp_path, monkeypatch):
    state = str(tmp_path / "s")
    for lines, whole in (
        ("First\n", write(capsys, run, "--prompt", "First", "--chars", "40")[5:]),
        ("/quit\n", write(capsys, run, "--chars", "20")),  # nothing was typed: the start of a line
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        begun = write(capsys, run, "--interactive", "--chars", "20", "--save_state", state)
        assert begun[:-1] + write(capsys, run, "--load_state", state, "--chars", "20") == whole


def test_odd_names_of_files_and_a_state_of_several_samples(run, capsys, tmp_path, monkeypatch):
    state = str(tmp_path / "s")
    write(capsys, run, "--prompt", "First", "--samples", "3", "--chars", "5", "--save_state", state)
    lines = f'/save "abc\n/save ~nouser/x\n/save a\0b\n/load a b\n/save\n/save "{tmp_path}/a b"\n/load {state}\nFirst\n'
    output, errors = talk(run, capsys, monkeypatch, lines, load_state=state, chars=9)
    assert errors.count("needs the name of a file") == 5 and errors.count("this is the first") == 2
    assert "/save: done" in errors and "/load: done" in errors and (tmp_path / "a b").is_file()
    assert len(output) == 10


def test_lines_that_are_no_text_end_the_session_with_one_line(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"First\nabc\xff\n"), encoding="utf-8"))
    assert cli.main(["generate", run, "--interactive", "--chars", "5"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "stdin is not UTF-8 text (byte 0xff" in errors[1]


def test_a_reader_that_leaves_ends_the_session_and_the_state_is_saved(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("First\nFirst\n"))
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", stdout)
        options = ["--interactive", "--chars", "0", "--temperature", "1", "--save_state", str(tmp_path / "s")]
        assert generate([run, *options]) == 0
    assert capsys.readouterr().err.count("\n") == 1
    require_continues(capsys, run, tmp_path / "s", "First")


def test_ctrl_c_ends_a_continuation_but_not_the_session(run):
    process = start(run, "--interactive", "--chars", "0")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("First\n")
    process.stdin.flush()
    process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate("/chars 5\n/stop\n\n", timeout=60)
    assert process.returncode == 0 and errors.count("\n") == 1
    assert len(output) > 6 and output[-7] == "\n" == output[-1]  # it ends with its input


def test_a_terminal_has_a_prompt_line_editing_and_ctrl_d(run, capsys):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "generate.py", run, "--interactive", "--chars", "12"])
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 1000)
        assert text in seen, seen

    wait_for(b"> ")
    time.sleep(0.5)  # Python misses a Ctrl-C between the prompt and the wait for a key, where no person types
    os.write(terminal, b"typed and dropped\x03")  # Ctrl-C
    seen = b""
    wait_for(b"> ")
    os.write(terminal, b"Firss\x7ft\n")  # a backspace
    seen = b""
    wait_for(b"> ")
    os.write(terminal, b"\x04")  # Ctrl-D
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0 and b"Traceback" not in seen
    whole = write(capsys, run, "--prompt", "First", "--chars", "12")
    assert whole[5:-1].replace("\n", "\r\n").encode() in seen
