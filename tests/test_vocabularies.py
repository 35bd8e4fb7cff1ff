"""A run that reads bytes and one that reads characters, of one text: together in every command."""

import json
import math
import random

import numpy as np
import pytest

from lm.corpora.sources import read_pieces
from lm.runs.folder import Run
from lm.runs.load import load
from lm.sampling.decoder import score
from tests.commands import compare, evaluate, export, generate, train
from tests.conftest import SMALL

WORDS = ["to ", "be ", "é ", "жар ", "語 ", "😀\n"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of two runs, `bytes` and `characters`, and of their text, which has 1.6 bytes in a character."""
    folder = tmp_path_factory.mktemp("runs")
    text = "".join(random.Random(0).choices(WORDS, k=5000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    for kind in ("bytes", "characters"):
        options = ["--data.vocabulary", kind, "--data.corpus", str(folder / "text.txt"), "--runs", str(folder)]
        assert train([*SMALL, *options, "--name", kind, "--trainer.max_steps", "40", "--eval.every", "20"]) == 0
    return folder


def test_comparison_is_per_character_and_per_byte(runs, capsys):
    capsys.readouterr()
    assert compare([str(runs), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = {run["name"]: run for run in json.loads(out)["runs"]}
    saved = {name: Run(runs / name).summary() for name in found}
    text = (runs / "text.txt").read_text(encoding="utf-8")
    scored = text[int(0.9 * len(text)) + 1 :]
    size = len(scored.encode()) / len(scored)
    assert {name: s["bytes_per_character"] for name, s in saved.items()} == dict.fromkeys(saved, round(size, 6))
    per_id = {name: s["best"]["val/loss"] for name, s in saved.items()}
    assert found["bytes"]["val/loss"] == pytest.approx(per_id["bytes"] * size, rel=1e-4)
    assert found["bytes"]["loss_per_byte"] == pytest.approx(per_id["bytes"], rel=1e-4)
    assert found["characters"]["val/loss"] == pytest.approx(per_id["characters"], rel=1e-4)
    assert found["characters"]["loss_per_byte"] == pytest.approx(per_id["characters"] / size, rel=1e-4)
    speeds = [saved["bytes"]["chars_per_second"] / size, saved["characters"]["chars_per_second"]]
    assert [found[name]["chars_per_second"] for name in found] == pytest.approx(speeds, rel=1e-4)
    assert "bytes reads bytes: losses, characters and characters/s are converted" in err and "not comparable" not in err
    compare([str(runs)])
    head = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("run "))
    assert "val loss/char  val loss/byte  streaming/char  bits/char" in head
    compare([str(runs / "characters")])
    head = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("run "))
    assert "val loss  streaming  bits/char" in head


def test_evaluation_is_per_character_and_per_byte(runs, capsys):
    """The streaming loss of bytes is that of `score` on the same text, in either unit."""
    capsys.readouterr()
    assert evaluate([str(runs / "bytes"), str(runs / "characters")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("streaming")]
    text = (runs / "text.txt").read_text(encoding="utf-8")
    text = text[int(0.9 * len(text)) :]
    for kind, line in zip(("bytes", "characters"), lines, strict=True):
        model, tokenizer = load(runs / kind)
        logs, _ = score(model, tokenizer.encode(text))
        per_char, per_byte = -logs.sum() / len(text[1:]), -logs.sum() / len(text[1:].encode())
        assert line[2::2] == ["nats/char", "bits/char", "nats/byte"]
        assert [float(x) for x in line[1::2]] == pytest.approx([per_char, per_char / math.log(2), per_byte], abs=1e-3)
    assert evaluate([str(runs / "characters")]) == 0 and "nats/byte" not in capsys.readouterr().out
    words = [str(runs / "bytes"), "--corpus", str(runs / "text.txt")]
    assert evaluate([*words, "--text", "--chars", "100"]) == 0 and " 100 " in capsys.readouterr().out
    (runs / "any").write_bytes(b"\x80\x81" * 700)  # not one character of UTF-8
    assert evaluate([str(runs / "bytes"), "--corpus", str(runs / "any")]) == 0


def test_mixed_vocabularies_are_refused_in_one_line(runs, capsys):
    both = [str(runs / "bytes"), str(runs / "characters")]
    new = [*SMALL, "--runs", str(runs), "--name", "new", "--data.corpus", str(runs / "text.txt")]
    for command, words, message in (
        (evaluate, [*both, "--ensemble"], "texts with the same characters, or all on bytes"),
        (train, [*new, "--init", both[0]], "it reads bytes"),
        (train, [*new, "--distill.teachers", both[0]], "has another vocabulary"),
        (train, ["--resume", both[0], "--data.vocabulary", "characters"], "data.vocabulary is bytes"),
        (train, ["--resume", both[1], "--data.vocabulary", "bytes", "--allow_changes"], "data.vocabulary is char"),
        (train, ["--data.corpus", "selective_copying", "--data.vocabulary", "bytes"], "data.vocabulary bytes needs a"),
    ):
        capsys.readouterr()
        assert command(words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (runs / "new").exists() and Run(runs / "bytes").summary()["status"] == "finished"


def test_bytes_are_generated_from_runs_and_exports(runs, tmp_path, capsys):
    """The same text from both, in two parts with a state between them, and as JSON; any file can be scored."""
    assert export([str(runs / "bytes"), str(tmp_path / "exported")]) == 0
    assert "nats per byte" in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    state = ["--save_state", str(tmp_path / "a.state")]
    texts = []
    for words in ([str(runs / "bytes")], [str(tmp_path / "exported")], [str(runs / "bytes"), "--json"]):
        capsys.readouterr()
        assert generate([*words, "--prompt", "語 жа", "--chars", "60"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0]) in range(65, 69) and json.loads(texts[2])["text"] == texts[0][4:-1]
    assert generate([str(runs / "bytes"), "--prompt", "語 жа", "--chars", "17", *state]) == 0
    assert generate([str(tmp_path / "exported"), "--chars", "50", "--load_state", state[1]]) == 0
    assert "".join(capsys.readouterr().out.split("\n")).startswith(texts[0].replace("\n", "")[:50])
    (tmp_path / "any").write_bytes(bytes(range(256)))
    assert generate([str(runs / "bytes"), "--score", f"@{tmp_path / 'any'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["characters"] == 255 - 64 and found["unknown"] == 0  # 64 bytes continue a character
    model, tokenizer = load(runs / "bytes")
    logs, _ = score(model, np.arange(256))
    assert found["nats_per_byte"] == pytest.approx(-logs.mean(), rel=1e-5)
    assert tokenizer.encode("".join(read_pieces(tmp_path / "any", 7, raw=True))).tolist() == list(range(256))


def test_a_text_with_5000_distinct_characters(tmp_path, capsys):
    letters = [chr(0x4E00 + i) for i in range(5000)]
    text = "".join(letters + random.Random(0).choices(letters, k=5000))
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    options = ["--data.corpus", str(tmp_path / "t.txt"), "--runs", str(tmp_path), "--name", "a"]
    assert train([*SMALL, *options, "--trainer.max_steps", "3"]) == 0
    assert "10,000 characters, 5000 distinct" in capsys.readouterr().err
    assert generate([str(tmp_path / "a"), "--prompt", letters[77], "--chars", "20", "--weights", "int8"]) == 0
    written = capsys.readouterr().out
    assert len(written) == 22 and set(written[:-1]) <= set(letters)
