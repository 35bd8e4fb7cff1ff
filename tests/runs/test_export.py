"""An exported folder: bit for bit what the run holds, whole or absent, and refused where it does not fit together."""

import json
import os
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lm import load
from lm.files import UserError
from lm.runs.checkpoint import read_checkpoint
from lm.runs.export import card, export
from lm.runs.load import FORMAT, digest_of
from tests import commands


@pytest.fixture
def run(run_train, capsys):
    path = run_train("a", "--trainer.max_steps", "20", "--eval.every", "10")
    capsys.readouterr()
    return path


@pytest.fixture
def exported(run, tmp_path):
    export(run, tmp_path / "e")
    return tmp_path / "e"


def same(a, b):
    first, second = a[0].state_dict(), b[0].state_dict()
    assert first.keys() == second.keys() and a[1].characters == b[1].characters
    return all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize("mixer", ["mingru", "[minlstm, attention]", "[mamba, s4d]", "lstm"])
def test_a_round_trip_is_exact(run_train, tmp_path, mixer):
    run = run_train("m", "--trainer.max_steps", "2", "--model.mixer", mixer)
    for source in (run, run / "checkpoints" / "last.ckpt", tmp_path / "e0"):
        folder = tmp_path / f"e{len(list(tmp_path.glob('e*')))}"
        export(source, folder)
        assert same(load(folder), load(run)) and same(load(folder / "model.safetensors"), load(run))


def test_the_commands_take_a_folder(run, exported, capsys):
    for command, words in ((commands.evaluate, []), (commands.generate, ["--chars", "30"])):
        assert command([str(run), *words]) == 0
        expected = capsys.readouterr().out
        assert command([str(exported), *words]) == 0
        assert capsys.readouterr().out == expected


def test_the_card_says_where_it_comes_from(run, exported):
    summary = json.loads((run / "summary.json").read_text())
    text = (exported / "README.md").read_text(encoding="utf-8")
    assert f"windowed loss {summary['best']['val/loss']:.4f} nats" in text
    assert f"{summary['parameters']:,} parameters" in text and re.search("trained by `(char-lm|python) ", text)
    with safe_open(exported / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["about"])
    assert metadata["format"] == FORMAT and about["run"] == "a"
    assert about["step"] == read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"]
    assert os.sep not in about["environment"]["command"][0]  # not where this machine has the program


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["__main__.py", "train", "--seed", "2"], "char-lm train --seed 2"),
        (["/usr/bin/char-lm", "train"], "char-lm train"),
        (["train.py", "--name", "a b"], "python train.py --name 'a b'"),
        ([], "python ''"),
        ("damaged", "python ''"),
    ],
)
def test_the_card_says_the_command_as_it_is_typed(words, command):
    assert f"- trained by `{command}` on 2 cores" in card({"environment": {"command": words, "cores": 2}})


def test_bfloat16_is_half_the_size(run, exported, tmp_path):
    export(exported, tmp_path / "half", weights="bfloat16")
    size, half = ((folder / "model.safetensors").stat().st_size for folder in (exported, tmp_path / "half"))
    assert half < 0.6 * size
    for name, weight in load(tmp_path / "half")[0].state_dict().items():
        assert torch.equal(weight, load(run)[0].state_dict()[name].bfloat16().float())
    assert "rounded from" in (tmp_path / "half" / "README.md").read_text()


def test_an_existing_folder_is_left_alone(run, exported, capsys):
    before = {p.name: p.read_bytes() for p in exported.iterdir()}
    assert commands.export([str(run), str(exported)]) == 2
    assert "exists; give another folder" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in exported.iterdir()} == before


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        export(run, tmp_path / "e")
    assert sorted(tmp_path.iterdir()) == before


def test_what_does_not_fit_is_refused(exported):
    path = exported / "model.safetensors"
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["about"])
    metadata["about"] = json.dumps({key: value for key, value in about.items() if key != "sha256"})

    def refuse(message, changed=weights, **changes):
        save_file(changed, path, metadata | changes)
        with pytest.raises(UserError, match=message) as error:
            load(exported)
        assert "\n" not in str(error.value)

    name = "blocks.0.mlp.up.weight"
    refuse(f"{name} is missing", {k: v for k, v in weights.items() if k != name})
    refuse("blocks.0.x is not a weight of this model", weights | {"blocks.0.x": torch.zeros(1)})
    refuse("they are of 3 layers of width 32, not 2 of 32", weights | {"blocks.9.x": torch.zeros(1)})
    refuse(f"{name} is float32 .2, 2., not float32", weights | {name: torch.zeros(2, 2)})
    refuse(f"{name} is int64", weights | {name: weights[name].long()})
    refuse("they are for 5 ids", weights | {"embedding.weight": torch.zeros(5, 32)})
    refuse("newer version", version="2")
    refuse("not exported by this program", format="pt")
    refuse("damaged", about="{")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        load(exported)


def test_the_checksum_of_the_weights(run, exported, tmp_path):
    """A flipped bit is noticed; exports without a checksum are of older versions."""
    path = exported / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["about"])
    assert about["sha256"] == digest_of(weights) and about["sha256"] in (exported / "README.md").read_text()
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="its weights do not have the checksum that was written with them") as error:
        load(exported)
    assert "model.safetensors: damaged" in str(error.value)
    assert commands.generate([str(exported)]) == 2
    del about["sha256"]
    save_file(weights, path, metadata | {"about": json.dumps(about)})
    assert same(load(exported), load(run))
    export(exported, tmp_path / "again", weights="bfloat16")
    assert load(tmp_path / "again")


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.json"])
def test_a_folder_that_is_not_whole_is_refused(exported, name):
    (exported / name).unlink()
    with pytest.raises(UserError):
        load(exported)
    if name != "model.safetensors":
        (exported / name).write_bytes(b"\xff\x00: [")
        with pytest.raises(UserError, match=name):
            load(exported)


@pytest.mark.parametrize("environment", [{"command": ["x", 2]}, {"command": 5, "packages": []}, {"packages": "s"}])
def test_the_card_bears_a_strangers_environment(environment):
    assert "0 parameters" in card({"parameters": "many", "losses": {"val/loss": "low"}})
    assert "nats per character" not in card({"losses": 5}) and "with Python" not in card({"environment": [1]})
    assert "No file here holds code" in card({"environment": environment})
