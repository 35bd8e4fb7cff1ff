"""The commands of README.md run: shortened by options, in a folder of their own, in their order."""

import io
import re
import shlex

import pytest

from lm.config.resolve import parse
from tests.commands import ROOT, compare, evaluate, export, generate, train

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
PYTHON = [shlex.split(line, comments=True) for line in COMMANDS if "python " in line and "venv" not in line]
SHORT = (
    "--trainer.max_steps 2 --model.width 32 --data.context 64 --data.batch_size 2 --eval.sample_chars 5 "
    "--log.wandb disabled --trainer.accelerator cpu"
).split()
NEEDS_NETWORK = ("roneneldan/TinyStories",)


def test_commands_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "opening.txt").write_text("ROMEO:\nBut soft, what light through yonder window breaks?\n" * 40)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = 0
    for words in PYTHON:
        if words[1] == "train.py" and "--help" not in words and not set(words) & set(NEEDS_NETWORK):
            resumed = "--resume" in words
            options = [] if resumed else [*SHORT, *([] if "--name" in words else ["--name", f"run{done}"])]
            assert train([*words[2:], *options]) == 0, words
        elif words[1] == "generate.py":
            kept = [w.replace("2000", "20") for w in words[2:]]
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
            assert generate([*kept, "--chars", "20"]) == 0, words
        elif words[1:3] == ["-m", "lm.evaluate"]:
            evaluate(words[3:])
        elif words[1:3] == ["-m", "lm.export"]:
            export(words[3:])
        elif words[1:3] == ["-m", "lm.compare"] and "--serve" not in words:
            compare([w.replace("runs/*", "runs") for w in words[3:]])
        else:
            continue
        done += 1
    assert done >= 18


def test_python_example(run_train, monkeypatch, capsys):
    run = run_train("transformer", "--trainer.max_steps", "2")
    monkeypatch.chdir(run.parent)
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "transformer")
    capsys.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert len(capsys.readouterr().out) == 200


@pytest.mark.parametrize("words", [w for w in PYTHON if w[1] == "train.py" and "--help" not in w], ids=" ".join)
def test_every_training_command_parses(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(words[2:])


def test_the_layout_names_what_is_there():
    (layout,) = re.findall(r"## Layout\n\n```text\n(.*?)```", README, re.DOTALL)
    named = [line.split()[0] for line in layout.splitlines()]
    assert all((ROOT / name).exists() for name in named)
    modules = {f"lm/{p.name}" for p in (ROOT / "lm").glob("*.py")} - {"lm/__init__.py"}
    assert modules <= set(named)
