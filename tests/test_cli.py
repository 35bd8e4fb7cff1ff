"""Mistakes of users: one line on stderr that names what is wrong and what would be right, exit code 2, nothing changed.

A table of commands that run in this process, and a few that run in a process of their own; the boundary itself.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from lm import cli
from lm.corpora.sources import read_text
from lm.files import DATA, UserError
from tests.commands import (
    ROOT,
    bench,
    compare,
    data,
    document,
    evaluate,
    export,
    generate,
    inspect,
    reproduction,
    sweep,
    train,
)
from tests.conftest import SMALL

PROGRAMS = {
    "train": train,
    "generate": generate,
    "compare": compare,
    "evaluate": evaluate,
    "data": data,
    "export": export,
    "inspect": inspect,
    "sweep": sweep,
    "bench": bench,
    "reproduction": reproduction,
    "document": document,
}
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
)
CONFIGS = {
    "empty": b"",
    "binary": bytes(range(1, 256)),
    "utf16": "seed: 1\n".encode("utf-16"),
    "latin1": b"name: caf\xe9\n",
    "nul": b"seed: \x001\n",
    "list": b"- seed\n",
    "broken": b"seed: [1\n",
    "twice": b"model:\n  width: 64\n  width: 32\n",
    "unknown": b"model:\n  widht: 64\n",
    "section": b"model: 64\n",
    "type": b"model:\n  width: wide\n",
    "bool": b"seed: true\n",
    "null": b"seed: null\n",
    "nan": b"optim:\n  lr: .nan\n",
    "inf": b"optim:\n  lr: .inf\n",
    "huge": b"seed: 1" + b"0" * 5000 + b"\n",
    "large": b"model:\n  width: 1000000000000000000000000\n",
    "bomb": BOMB.encode(),
    "recursive": b"model: &a\n  options: *a\n",
    "tag": b"seed: !!python/object/apply:os.system ['false']\n",
    "deep": b"[" * 100_000,
    "documents": b"seed: 1\n---\nseed: 2\n",
    "newer": b"version: 99\n",
    "future": b"version: soon\n",
    "other": b"config: /etc/passwd\n",
    "escape": b'name: "../../x"\n',
    "newline": b'name: "x\\ny"\n',
    "terminal": b'"\\e[2Jx": 1\n',
}
TEXTS = {
    "empty": b"",
    "binary": bytes(range(256)) * 10,
    "utf16": ("to be or not " * 99).encode("utf-16"),
    "latin1": b"fine until \xe9 here, " * 99,
    "cut": b"to be or not " * 99 + b"\xe2\x82",
    "nul": b"one\0two" * 99,
    "short": b"to be or not to be",
    "single": b"a" * 5000,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a run, a corpus, an export, and everything that is wrong."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    argv = [*SMALL, "--data.corpus", f"{folder}/corpus.txt", "--runs", f"{folder}/runs", "--name", "good"]
    assert train([*argv, "--trainer.max_steps", "1"]) == 0
    export([f"{folder}/runs/good", f"{folder}/exported"])
    for name, content in CONFIGS.items():
        (folder / f"{name}.yaml").write_bytes(content)
    for name, content in TEXTS.items():
        (folder / f"{name}.txt").write_bytes(content)
    (folder / "bomb.txt.xz").write_bytes(b"\xfd7zXZ\x00 and then nothing")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "hollow").mkdir()
    os.mkfifo(folder / "pipe")
    broken_runs(folder)
    return folder


def broken_runs(folder: Path) -> None:
    """Runs and exports next to good ones, each with one thing wrong."""
    good = torch.load(folder / "runs/good/checkpoints/best.ckpt", weights_only=True)
    newer = good["config"].replace("version: 1", "version: 99")
    other = yaml.safe_load(good["config"])
    other["model"]["width"] = 64
    (folder / "broken").mkdir()
    for name, changes in {
        "newer": {"config": newer},
        "swapped": {"config": yaml.safe_dump(other)},
        "alphabet": {"characters": "abc"},
        "bytes": {"characters": b"abc"},
        "nothing": {"state_dict": {}},
    }.items():
        torch.save(good | changes, folder / f"broken/{name}.ckpt")
    whole = (folder / "runs/good/checkpoints/best.ckpt").read_bytes()
    (folder / "broken/truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "broken/flipped.ckpt").write_bytes(b"\0" + whole[1:])
    (folder / "broken/empty.ckpt").write_bytes(b"")
    torch.save([1, 2], folder / "broken/list.ckpt")
    for name, file, text in (
        ("runs/newer", "config.yaml", newer),
        ("runs/torn", "config.yaml", "model: {"),
        ("runs/retold", "tokenizer.json", "{}"),
    ):
        shutil.copytree(folder / "runs/good", folder / name)
        (folder / name / file).write_text(text)
    for name, file, text in (
        ("exported-newer", "config.yaml", newer),
        ("exported-wide", "config.yaml", yaml.safe_dump(other)),
        ("exported-torn", "model.safetensors", "garbage"),
        ("exported-deep", "tokenizer.json", "[" * 100_000),
    ):
        shutil.copytree(folder / "exported", folder / name)
        (folder / name / file).write_text(text)
    alphabet = json.loads((folder / "exported/tokenizer.json").read_text())
    alphabet["model"]["vocab"] = {"a": 0, "\ufffd": 1}
    shutil.copytree(folder / "exported", folder / "exported-alphabet")
    (folder / "exported-alphabet/tokenizer.json").write_text(json.dumps(alphabet))


# A command with {w} for the world's folder, and what its one line must say.
REFUSED = [
    # train: options
    ("train", "--model.width x", "model.width: expected a whole number, not x"),
    ("train", "--model.width 1.5", "model.width: expected a whole number, not 1.5"),
    ("train", "--model.width 0", "model.width must be at least 1, not 0"),
    ("train", "--model.width -2", "model.width must be at least 1, not -2"),
    ("train", "--model.width 33", "model.width must be even, not 33"),
    ("train", "--model.width 1000000", "model.width must be at most 65,536"),
    ("train", "--model.layers 100000", "model.layers must be at most 1,000"),
    ("train", "--model.mixer mingr", "did you mean mingru?"),
    ("train", "--model.mixer []", "model.mixer names 0 layers"),
    ("train", "--model.options.expansion 0.01", "fewer than 3 channels"),
    ("train", "--model.mlp_expansion 1e-9", "fewer than 3 channels"),
    ("train", "--model.options.heads 5 --model.mixer attention", "heads"),
    ("train", "--model.dropout nan", "model.dropout: expected a number, not nan"),
    ("train", "--model.dropout .nan", "model.dropout must be a finite number"),
    ("train", "--model.dropout 1", "model.dropout must be at least 0 and below 1"),
    ("train", "--model.compile maybe", "model.compile: expected true or false, not maybe"),
    ("train", "--optim.lr 0", "optim.lr must be above 0, not 0"),
    ("train", "--optim.lr .inf", "optim.lr must be a finite number"),
    ("train", "--optim.lr 1e30", "optim.lr must be at most 1,000"),
    ("train", "--optim.clip -1", "optim.clip must be at least 0"),
    ("train", "--optim.beta1 1", "optim.beta1 must be"),
    ("train", "--optim.decay 2", "optim.decay must be between 0 and 1"),
    ("train", "--optim.schedule quadratic", "expected linear or cosine or constant, not quadratic"),
    ("train", "--trainer.max_steps 0", "trainer.max_steps must be at least 1"),
    ("train", "--trainer.max_steps 1 --trainer.max_minutes 1", "not both"),
    ("train", "--trainer.max_minutes -1", "trainer.max_minutes must be above 0"),
    ("train", "--trainer.accumulate 5", "cannot be cut into 5 equal parts"),
    ("train", "--trainer.precision 8", "expected auto or 32 or bf16-mixed or 16-mixed, not 8"),
    ("train", "--trainer.precision 16-mixed", "needs a GPU"),
    ("train", "--trainer.strategy magic", "strategy 'magic' cannot be had here"),
    ("train", "--trainer.devices 0", "trainer.devices must be at least 1"),
    ("train", "--eval.every 0", "eval.every must be at least 1"),
    ("train", "--eval.sample_chars -1", "eval.sample_chars must be at least 0"),
    ("train", "--eval.prompt \ud800", "eval.prompt has a character that no such text can have"),
    ("train", "--log.every 0", "log.every must be at least 1"),
    ("train", "--log.wandb maybe", "expected disabled or offline or online, not maybe"),
    ("train", "--seed -1", "seed must be at least 0"),
    ("train", "--seed 100000000000000000000", "seed must be at most"),
    ("train", "--seed null", "seed: expected a whole number, not None"),
    ("train", "--sede 1", "unknown option --sede; did you mean --seed?"),
    ("train", "--model {w}/bomb.yaml", "unknown option --model"),
    ("train", "--name ../../x", "name '../../x': use letters, digits"),
    ("train", "--name /tmp/x", "name '/tmp/x': use letters, digits"),
    ("train", "--name a\0b", "name has a character that no such text can have"),
    ("train", "--name a\nb", "name has a character that no such text can have"),
    ("train", "--name " + "\U00010000" * 100, "is too long"),
    ("train", "--name good", "exists already; choose another --name, or go on with --resume"),
    ("train", "--runs {w}/corpus.txt", "cannot"),
    ("train", "--runs {w}/loop", "cannot"),
    ("train", "--runs " + "a" * 300, "runs: "),
    # train: corpora
    ("train", "--data.corpus {w}/none.txt", "no such file or folder"),
    ("train", "--data.corpus tiny_shakespear", "did you mean tiny_shakespeare?"),
    ("train", "--data.corpus {w}/empty.txt", "it is empty"),
    ("train", "--data.corpus {w}/binary.txt", "position"),
    ("train", "--data.corpus {w}/utf16.txt", "this is UTF-16 text; convert it first: iconv"),
    ("train", "--data.corpus {w}/latin1.txt", "byte 0xe9 at position 11"),
    ("train", "--data.corpus {w}/cut.txt", "byte 0xe2 at position 1287"),
    ("train", "--data.corpus {w}/nul.txt", "a NUL character at position 3"),
    ("train", "--data.corpus {w}/short.txt", "18 characters are too few for data.context 32"),
    ("train", "--data.corpus {w}/single.txt", "repeats a single character"),
    ("train", "--data.corpus {w}/bomb.txt.xz", "bomb.txt.xz"),
    ("train", "--data.corpus {w}/hollow", "no file there"),
    ("train", "--data.corpus {w}/*.none", "no file there"),
    ("train", "--data.corpus {w}/loop", "no such file or folder"),
    ("train", "--data.corpus {w}/pipe", "not a plain file"),
    ("train", "--data.corpus /dev/zero", "not a plain file"),
    ("train", "--data.corpus " + "a" * 300, "data.corpus: "),
    ("train", "--data.context 2000", "too few for data.context 2000"),
    ("train", "--data.context 1000000000000", "data.context must be at most"),
    ("train", "--data.batch_size 1000000 --data.context 1000", "more than 2^28 characters in a step"),
    ("train", "--data.sampling streams --trainer.devices 2", "trainer.devices must be 1"),
    # train: configuration files
    ("train", "--config {w}/none.yaml", "none.yaml: No such file"),
    ("train", "--config {w}/hollow", "hollow: "),
    ("train", "--config {w}/loop", "loop: Too many levels of symbolic links"),
    ("train", "--config {w}/pipe", "not a plain file"),
    ("train", "--config /dev/zero", "not a plain file"),
    ("train", "--config {w}/empty.yaml", "empty.yaml: expected lines `key: value`"),
    ("train", "--config {w}/binary.yaml", "byte 0x80 at position 127"),
    ("train", "--config {w}/utf16.yaml", "UTF-16"),
    ("train", "--config {w}/latin1.yaml", "byte 0xe9 at position 9"),
    ("train", "--config {w}/nul.yaml", "a NUL character at position 6"),
    ("train", "--config {w}/list.yaml", "expected lines `key: value`, not a list of 1"),
    ("train", "--config {w}/broken.yaml", "line 2: not YAML"),
    ("train", "--config {w}/twice.yaml", "line 3: width is there twice"),
    ("train", "--config {w}/unknown.yaml", "unknown key model.widht in the file; did you mean model.width?"),
    ("train", "--config {w}/section.yaml", "model: expected a section of options, not 64"),
    ("train", "--config {w}/type.yaml", "model.width: expected a whole number, not wide"),
    ("train", "--config {w}/bool.yaml", "seed: expected a whole number, not True"),
    ("train", "--config {w}/null.yaml", "seed: expected a whole number, not None"),
    ("train", "--config {w}/nan.yaml", "optim.lr must be a finite number, not nan"),
    ("train", "--config {w}/inf.yaml", "optim.lr must be a finite number, not inf"),
    ("train", "--config {w}/huge.yaml", "huge.yaml: "),
    ("train", "--config {w}/large.yaml", "model.width must be at most 65,536, not a number of more than 18 digits"),
    ("train", "--config {w}/bomb.yaml", "line 1: anchors (&) and aliases (*) are not allowed"),
    ("train", "--config {w}/recursive.yaml", "line 1: anchors (&) and aliases (*) are not allowed"),
    ("train", "--config {w}/tag.yaml", "line 1: tags (tag:yaml.org,2002:python/object/apply:os.system)"),
    ("train", "--config {w}/deep.yaml", "line 1: nested too deeply"),
    ("train", "--config {w}/documents.yaml", "line 2: not YAML"),
    ("train", "--config {w}/newer.yaml", "version 99 is newer than this program, which knows 1: update the program"),
    ("train", "--config {w}/future.yaml", "version: expected a whole number of at least 1, not soon"),
    ("train", "--config {w}/other.yaml", "unknown key config"),
    ("train", "--config {w}/escape.yaml", "name '../../x': use letters"),
    ("train", "--config {w}/newline.yaml", "name has a character"),
    ("train", "--config {w}/terminal.yaml", "unknown key \ufffd[2Jx"),
    # train: resuming
    ("train", "--resume nothing", "no run nothing"),
    ("train", "--resume goood", "did you mean good?"),
    ("train", "--resume ../..", "no run ../.."),
    ("train", "--resume /dev/zero", "no run /dev/zero"),
    ("train", "--resume {w}/runs/newer", "newer/config.yaml: version 99 is newer than this program"),
    ("train", "--resume {w}/runs/torn", "torn/config.yaml: line 2: not YAML"),
    ("train", "--resume {w}/runs/retold --trainer.max_steps 9", "tokenizer.json is not a tokenizer file"),
    ("train", "--resume {w}/runs/good --model.width 64", "model.width is 32 in "),
    # generate
    ("generate", "{w}/none", "no run "),
    ("generate", "a" * 300, "is too long; no file or folder can have such a name"),
    ("generate", "{w}/hollow", "no run "),
    ("generate", "{w}/pipe", "no run "),
    ("generate", "{w}/loop", "no run "),
    ("generate", "{w}/broken/newer.ckpt", "newer.ckpt: version 99 is newer than this program"),
    ("generate", "{w}/broken/swapped.ckpt", "do not fit its configuration"),
    ("generate", "{w}/broken/alphabet.ckpt", "ids and the tokenizer has 4"),
    ("generate", "{w}/broken/bytes.ckpt", "not a checkpoint of this program"),
    ("generate", "{w}/broken/nothing.ckpt", "is missing"),
    ("generate", "{w}/broken/truncated.ckpt", "damaged, or not a checkpoint"),
    ("generate", "{w}/broken/flipped.ckpt", "damaged, or not a checkpoint"),
    ("generate", "{w}/broken/empty.ckpt", "damaged, or not a checkpoint"),
    ("generate", "{w}/broken/list.ckpt", "not a checkpoint of this program"),
    ("generate", "{w}/corpus.txt", "damaged, or not a checkpoint"),
    ("generate", "{w}/exported-newer", "config.yaml: version 99 is newer"),
    ("generate", "{w}/exported-wide", "do not fit its configuration"),
    ("generate", "{w}/exported-torn", "model.safetensors: damaged"),
    ("generate", "{w}/exported-deep", "tokenizer.json is not a tokenizer file"),
    ("generate", "{w}/exported-alphabet", "ids and the tokenizer has 2"),
    ("generate", "{w}/runs/good --prompt \u4e2d", "'\u4e2d'"),
    ("generate", "{w}/runs/good --prompt @{w}/none.txt", "none.txt: No such file"),
    ("generate", "{w}/runs/good --prompt @{w}/latin1.txt", "byte 0xe9 at position 11"),
    ("generate", "{w}/runs/good --prompt @{w}/pipe", "not a plain file"),
    ("generate", "{w}/runs/good --prompt @/dev/zero", "not a plain file"),
    ("generate", "{w}/runs/good --temperature -0.1", "--temperature must be at least 0"),
    ("generate", "{w}/runs/good --temperature .nan", "--temperature must be"),
    ("generate", "{w}/runs/good --temperature .inf", "--temperature must be"),
    ("generate", "{w}/runs/good --top_p 0", "--top_p must be above 0 and at most 1"),
    ("generate", "{w}/runs/good --top_p 1.01", "--top_p must be above 0 and at most 1"),
    ("generate", "{w}/runs/good --top_k -1", "--top_k must be at least 0"),
    ("generate", "{w}/runs/good --min_p 1.5", "--min_p must be between 0 and 1"),
    ("generate", "{w}/runs/good --chars -1", "--chars must be at least 0"),
    ("generate", "{w}/runs/good --chars 1.5", "chars: expected a whole number, not 1.5"),
    ("generate", "{w}/runs/good --seed -1", "--seed must be at least 0"),
    ("generate", "{w}/runs/good --tempreature 1", "did you mean --temperature?"),
    # compare
    ("compare", "{w}/none", "no run folder "),
    ("compare", "{w}/hollow", "no run in "),
    ("compare", "{w}/runs --target 0", "--target must be a number above 0"),
    ("compare", "{w}/runs --target .nan", "--target must be a finite number"),
    ("compare", "{w}/runs --metric loss", "--metric: expected val/loss or val/loss_streaming, not loss"),
    ("compare", "{w}/runs --x time", "--x: expected step or"),
    ("compare", "{w}/runs --port 65536", "--port must be between 0 and 65535"),
    ("compare", "{w}/runs --html {w}/none/a.html", "cannot write {w}/none/a.html: No such file or directory"),
    ("compare", "{w}/runs --html {w}/hollow", "cannot write {w}/hollow: Is a directory"),
    ("compare", "{w}/runs --png {w}/corpus.txt/a.png", "cannot write {w}/corpus.txt/a.png: Not a directory"),
    ("compare", "{w}/runs --json {w}/loop/a", "cannot write {w}/loop/a: Too many levels"),
    ("compare", "{w}/runs --csv {w}/" + "a" * 300, "is too long; no file or folder can have such a name"),
    ("compare", "{w}/runs --insert {w}/corpus.txt", "needs one line <!-- results: begin -->"),
    ("compare", "{w}/runs --insert {w}/latin1.txt", "byte 0xe9 at position 11"),
    ("compare", "{w}/runs --htm a", "did you mean --html?"),
    # the others
    ("evaluate", "{w}/none", "no run "),
    ("evaluate", "{w}/runs/good --contexts 0", "--contexts must be at least 1, not 0"),
    ("evaluate", "{w}/runs/good --contexts 5000", "--contexts: 5000 is not below the 1,200 characters"),
    ("evaluate", "{w}/runs/good --contexts many", "expected a whole number, not many"),
    ("evaluate", "{w}/runs/good --corpus {w}/utf16.txt", "UTF-16"),
    ("evaluate", "{w}/runs/good --corpus {w}/pipe", "not a plain file"),
    ("evaluate", "{w}/broken/truncated.ckpt", "damaged, or not a checkpoint"),
    ("data", "--clean", "did you mean --clear?"),
    ("inspect", "{w}/none", "no run "),
    ("inspect", "{w}/broken/truncated.ckpt", "damaged, or not a checkpoint"),
    ("inspect", "{w}/runs/good --which newest", "--which: expected best or last, not newest"),
    ("inspect", "{w}/runs/good --beside {w}/none", "no run "),
    ("inspect", "{w}/runs/good --text @{w}/none", "{w}/none: No such file or directory"),
    ("inspect", "{w}/runs/good --text @{w}/latin1.txt", "byte 0xe9 at position 11"),
    ("inspect", "{w}/runs/good --text @{w}/pipe", "not a plain file"),
    ("inspect", "{w}/runs/good --corpus {w}/utf16.txt", "UTF-16"),
    ("inspect", "{w}/runs/good --chars 10", "--chars must be at least 1,000, not 10"),
    ("inspect", "{w}/runs/good --html {w}/none/a.html", "cannot write {w}/none/a.html: No such file or directory"),
    ("inspect", "{w}/runs/good --png {w}/none/", "cannot write {w}/none/surprise.png: No such file or directory"),
    ("inspect", "{w}/runs/good --weights float16", "--weights: expected bfloat16 or int8, not float16"),
    ("inspect", "{w}/runs/good --insert {w}/corpus.txt", "needs one line <!-- inspect: begin -->"),
    ("export", "{w}/none {w}/out", "no run "),
    ("export", "{w}/runs/good {w}/exported", "exported exists"),
    ("export", "{w}/runs/good {w}/corpus.txt/out", "cannot write {w}/corpus.txt/out"),
    ("export", "{w}/runs/good {w}/out --weights int4", "int4"),
    ("export", "{w}/runs/good", "give either the folder or file to make, or --hub USER/NAME"),
    ("export", "{w}/runs/good --hub USER", "--hub USER: expected USER/NAME"),
    ("generate", "hub:USER", "hub:USER: expected USER/NAME"),
    ("export", "{w}/broken/swapped.ckpt {w}/out", "do not fit its configuration"),
    ("sweep", "--mixers mingr", "did you mean mingru?"),
    ("sweep", "--mixers ../../x", "model.mixer: expected mingru or"),
    ("sweep", "--mixers mingru --seeds x", "expected a whole number, not x"),
    ("sweep", "--mixers mingru gru --seeds 1 -1 --runs {w}/runs", "--seeds must be at least 0, not -1"),
    ("sweep", "--mixers mingru --html {w}/none/a.html", "cannot write {w}/none/a.html"),
    ("sweep", "--mixers mingru --runs {w}/runs -- --sede 1", "did you mean --seed?"),
    ("sweep", "--seeds 1", "mixers"),
    ("bench", "cel", "unknown benchmark cel; did you mean cell?; known are overhead, cell"),
    ("bench", "cell --repeat 0", "--repeat must be at least 1, not 0"),
    ("bench", "length --width 7", "a width must be even, not 7"),
    ("bench", "train --mixers mingr", "did you mean mingru?"),
    ("bench", "numerics --json {w}/none/a.json", "cannot write {w}/none/a.json: No such file"),
    ("reproduction", "--insert {w}/corpus.txt", "needs one line <!-- claims cell: begin -->"),
    ("document", "{w}/none.md echo a", "none.md: No such file"),
    ("document", "{w}/corpus.txt echo a", "needs one line <!-- echo a: begin -->"),
    ("document", "{w}/corpus.txt", "usage: char-lm document FILE COMMAND"),
]


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder: paths, kinds, contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "not a file"
        for path in folder.rglob("*")
    }


def argv_of(program: str, words: str, world: Path) -> list[str]:
    """The words of a case. `train` gets settings that would train for a moment, and after them those of the case."""
    given = [word.replace("{w}", str(world)) for word in words.split(" ")]
    if program != "train":
        return given
    own = {word for word in given if word.startswith("--")}
    base = {"--data.corpus": f"{world}/corpus.txt", "--runs": f"{world}/runs", "--trainer.max_steps": "1"}
    base |= dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    if own & {"--resume", "--config", "--trainer.max_minutes"}:
        base = {"--runs": base["--runs"]}
    return [word for name, value in base.items() if name not in own for word in (name, value)] + given


def error_of(program: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; returns what it says on stderr."""
    capsys.readouterr()
    code = PROGRAMS[program](argv)
    told = capsys.readouterr()
    assert code == 2, f"exit code {code}: {told.err}"
    assert told.out == ""
    return told.err


def case_name(value: object) -> str:
    return value.encode("ascii", "backslashreplace").decode()[:60] if isinstance(value, str) else str(value)


@pytest.mark.parametrize(("program", "words", "message"), REFUSED, ids=case_name)
def test_refused(program, words, message, world, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = tree(world)
    error = error_of(program, argv_of(program, words, world), capsys)
    assert message.replace("{w}", str(world)) in error
    assert error.endswith("\n") and error.count("\n") == 1 and "Traceback" not in error
    assert all(c.isprintable() for c in error[:-1]) and len(error) < 900
    assert tree(world) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts]


def test_the_table_covers_every_command():
    assert {program for program, _, _ in REFUSED} == set(PROGRAMS) == set(cli.COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--modle.width", "3"],
        ["train.py", "--config", "/dev/zero"],
        ["generate.py", "--temperature", "-1"],
        ["-m", "lm", "compare", "nowhere"],
        ["-m", "lm", "nothing"],
        ["-m", "lm", "export", "nowhere", "out"],
        ["-m", "lm", "sweep", "--mixers", "x"],
    ],
    ids=" ".join,
)
def test_refused_as_a_process(command):
    ran = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr


def test_a_folder_that_cannot_be_written(world, tmp_path):
    """As a user who may read it only: root may write everywhere."""
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("needs setpriv, or a user other than root")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    words = [sys.executable, "-m", "lm", "compare", "runs", "--html", str(folder / "a.html")]
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.getuid() == 0 else []
    ran = subprocess.run([*drop, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and "Permission denied" in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a\nb"), 2, "char-lm x: error: a b\n"),
        (OSError(28, "No space left on device", "a.txt"), 2, "char-lm x: error: a.txt: No space left on device\n"),
        (OSError("odd"), 2, "char-lm x: error: odd\n"),
        (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte"), 2, "0xff: invalid start byte"),
        (MemoryError(), 2, "char-lm x: error: out of memory\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "char-lm x: error: out of memory\n"),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "char-lm x: error: out of memory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (SystemExit(0), 0, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_boundary_makes_a_line_and_a_code_of_an_error(error, code, message, capfd):
    def fail() -> int:
        raise error

    stdout = os.dup(1)
    try:
        assert cli.boundary("char-lm x", fail) == code
    finally:
        os.dup2(stdout, 1)  # an error of the output leaves it on /dev/null
        os.close(stdout)
    told = capfd.readouterr().err
    assert message in told and told.count("\n") == bool(message)


def test_the_boundary_passes_exit_codes_and_bugs_on():
    assert cli.boundary("char-lm x", lambda: 7) == 7
    for bug in (ZeroDivisionError, RuntimeError("shapes do not fit"), SystemExit(3)):
        with pytest.raises(bug if isinstance(bug, type) else type(bug)):
            cli.boundary("char-lm x", mock.Mock(side_effect=bug))


def test_waiting_threads_sleep_soon_unless_the_user_has_chosen(monkeypatch, capsys):
    """What GCC's OpenMP reads when torch is loaded."""
    for given, expected in (({}, cli.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["--help"]) == 0 and os.environ.get("GOMP_SPINCOUNT") == expected


def test_the_command_itself(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in cli.COMMANDS)
    assert cli.main(["trian"]) == 2
    assert "unknown command trian; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"usage: char-lm {name}") and not told.err
    assert len(told.out.splitlines()) < 100


@pytest.mark.parametrize("words", [["compare", "{w}/runs/good"], ["train", "--help"]], ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_line(words, world):
    command = [sys.executable, "-m", "lm", *(word.format(w=world) for word in words)]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1) and "No space left on device" in ran.stderr


@pytest.mark.parametrize("words", ["compare {w}/runs/good", "train --help"])
def test_a_reader_that_leaves_is_no_error(words, world):
    words = f"{sys.executable} -m lm {words.format(w=world)} | true"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


def write(world: Path, *options: str) -> None:
    """Generate text with the good run."""
    assert generate([f"{world}/runs/good", *options]) == 0


def test_accepted_an_empty_prompt_is_the_start_of_a_line(world, capsys):
    write(world, "--prompt", "", "--chars", "30")
    empty = capsys.readouterr().out
    write(world, "--prompt", "\n", "--chars", "30")
    assert capsys.readouterr().out == "\n" + empty


def test_accepted_temperature_0_always_takes_the_likeliest(world, capsys):
    texts = set()
    for seed in "12":
        write(world, "--temperature", "0", "--seed", seed, "--chars", "30")
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_accepted_a_byte_order_mark_is_dropped_and_line_ends_are_kept(world, tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfmodel:\r\n  width: 64\r\n")
    from lm.config.resolve import parse

    assert parse(["--config", str(tmp_path / "c.yaml")]).model.width == 64
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r")
    assert read_text(tmp_path / "t.txt") == "one\r\ntwo\r"


@pytest.mark.slow
def test_accepted_one_line_of_a_gigabyte(tmp_path):
    """Read, encoded, cached and mapped again in a process of its own, which says what it took."""
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(1000):
            file.write(b"to be or not to be, that is the " * 31_250)
    code = (
        "import resource, sys, time\n"
        "from lm.config.options import DataConfig; from lm.corpora.corpus import load_corpus\n"
        "for attempt in (1, 2):\n"
        "    start = time.perf_counter(); corpus = load_corpus(DataConfig(corpus=sys.argv[1]))\n"
        "    assert len(corpus.ids) == 10**9 and corpus.tokenizer.decode(corpus.ids[-32:]).startswith('to be')\n"
        "    print(f'{time.perf_counter() - start:.1f} s,',"
        " f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB')\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = [sys.executable, "-c", code, str(path)]
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout)
