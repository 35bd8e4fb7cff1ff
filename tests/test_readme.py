"""The commands of README.md run: shortened by options, in a folder of their own, in their order."""

import io
import re
import shlex
from importlib.util import find_spec

import pytest

from lm import cli
from lm.config.resolve import parse
from lm.corpora.sources import read_text
from lm.files import DATA
from tests.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
OURS = [shlex.split(line, comments=True)[1:] for line in COMMANDS if re.match(r"(\.venv/bin/)?char-lm ", line)]
SHORT = (
    "--trainer.max_steps 2 --model.width 32 --data.context 64 --data.batch_size 2 --eval.sample_chars 5 "
    "--log.wandb disabled --trainer.accelerator cpu"
).split()
NOT_HERE = {"roneneldan/TinyStories", "--serve", "--help", "--hub", "sweep"}
NOT_HERE |= {name for name in ["onnx"] if find_spec(name) is None}
"""What needs a network, does not end by itself, or has a test of its own."""


def shortened(words: list[str], number: int) -> list[str]:
    """A command of README.md with options that make it end in a moment."""
    name, *rest = words
    if name == "train" and "--resume" not in rest:
        small = [] if {"--data.corpus", "--config"} & set(rest) else ["--data.corpus", "opening.txt"]
        return [*words, *SHORT, *small, *([] if "--name" in rest else ["--name", f"r{number}"])]
    if name == "generate":
        return [*words, "--chars", "20"]
    if name == "inspect":
        return [*words, "--chars", "1000"]
    return [word.replace("runs/*", "runs") for word in words]


def test_commands_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = read_text(DATA / "tiny_shakespeare.txt.xz")
    (tmp_path / "opening.txt").write_text(text[:12_000] + "".join(sorted(set(text))))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert cli.main(shortened(["train"], 0)) == 0  # stands for `make train`
    for number, words in enumerate(words for words in OURS if not NOT_HERE & set(words)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
        assert cli.main(shortened(words, number + 1)) == 0, words
    assert number + 1 >= 18 and (tmp_path / "report.html").is_file() and (tmp_path / "curves.png").is_file()


def test_every_command_is_written_in_one_way():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        assert not re.findall(r"python -m lm\.\w+", path.read_text(encoding="utf-8")), path


def test_python_example(run_train, monkeypatch, capsys):
    run = run_train("transformer", "--trainer.max_steps", "2")
    monkeypatch.chdir(run.parent)
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "transformer")
    capsys.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert len(capsys.readouterr().out) == 200


@pytest.mark.parametrize(
    "words", [words for words in OURS if words[0] == "train" and "--help" not in words], ids=" ".join
)
def test_every_training_command_parses(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(words[1:])


def test_links_and_pictures_are_there():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (document.parent / target).exists(), (document.name, target)


def test_the_first_screen_has_eight_lines_of_sample():
    (sample,) = re.findall(r"<!-- sample: begin -->\n```text\n(.*?)```", README, re.DOTALL)
    lines = [line for line in sample.splitlines() if line and not line.startswith("$ ")]
    assert 8 <= len(lines) <= 12
