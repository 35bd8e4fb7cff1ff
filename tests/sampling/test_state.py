"""State files: going on as if never interrupted, for every mixer; what is refused."""

import hashlib
import json
import os
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lm.config.options import ModelConfig
from lm.files import UserError
from lm.sampling import state
from lm.sampling.decoder import Decoder, read
from lm.sampling.packed import pack
from tests.sampling.helpers import GREEDY, TOKENIZER, WILD, every_model, make, texts

HASH = "0" * 64


@every_model
@pytest.mark.parametrize("samples", (1, 6))
def test_going_on_from_a_file_equals_going_on(case, samples, tmp_path):
    model = make(case)
    engine = pack(model)
    start = [read(engine, TOKENIZER.encode("ABC"))] * samples
    for options in (WILD, GREEDY):
        whole, ends = texts(Decoder(engine, start, 9), 50, options)
        first, middle = texts(Decoder(engine, start, 9), 21, options)
        state.save(tmp_path / "s", [end.position for end in middle], 9, HASH)
        positions, seed = state.load(tmp_path / "s", model, HASH)
        rest, last = texts(Decoder(engine, positions, seed), 29, options)
        assert [a + b for a, b in zip(first, rest, strict=True)] == whole
        for a, b in zip(last, ends, strict=True):
            assert a.position.drawn == b.position.drawn and (a.position.logits == b.position.logits).all()


@pytest.fixture
def saved(tmp_path):
    model = make("mingru")
    state.save(tmp_path / "s", [read(model, TOKENIZER.encode("ABC"))] * 2, 2**64 - 1, HASH)
    return tmp_path / "s", model


def test_the_hash_tells_models_apart():
    model, config = make("mingru"), ModelConfig(width=32, layers=2)
    hashes = [
        state.fingerprint(model, TOKENIZER.characters, config),
        state.fingerprint(model, TOKENIZER.characters[:-1] + "\u00e9", config),
        state.fingerprint(model, TOKENIZER.characters, ModelConfig(width=32, layers=2, mlp="gelu")),
    ]
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[3, 4] += 1e-6
    hashes.append(state.fingerprint(model, TOKENIZER.characters, config))
    assert len(set(hashes)) == 4
    trained_otherwise = ModelConfig(width=32, layers=2, dropout=0.3, compile=True)
    assert state.fingerprint(model, TOKENIZER.characters, trained_otherwise) == hashes[-1]


def described(tensors):
    """Names, types, shapes and content of tensors, in the order of the names."""
    return b"".join(
        f"{name} {x.dtype} {tuple(x.shape)}".encode() + x.numpy().tobytes() for name, x in sorted(tensors.items())
    )


def test_the_hash_of_a_model_and_the_content_of_a_file(saved):
    """As version 1 defines them: other programs may read a state."""
    path, model = saved
    config = ModelConfig(width=32, layers=2)
    training = ("dropout", "compile", "residual_init")
    options = {name: value for name, value in asdict(config).items() if name not in training}
    del options["options"]["positions"]  # newer than version 1: it counts where it is given
    words = json.dumps([options, "AB"], sort_keys=True).encode()
    expected = hashlib.sha256(words + described(model.state_dict())).hexdigest()
    assert state.fingerprint(model, "AB", config) == expected
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, position = load_file(path), read(model, TOKENIZER.encode("ABC"))
    content = hashlib.sha256(str(2**64 - 1).encode() + described(tensors)).hexdigest()
    expected = {"format": "char-lm state", "version": "1", "model": HASH, "seed": str(2**64 - 1), "sha256": content}
    assert metadata == expected
    assert tensors["drawn"].tolist() == [0, 0] and tensors["logits"].shape == (2, 30)
    for layer, parts in enumerate(position.state):
        for part, tensor in enumerate(parts):
            assert torch.equal(tensors.pop(f"{layer}.{part}"), torch.cat([tensor] * 2))
    assert set(tensors) == {"drawn", "logits"}


def refused(path, model, message, model_hash=HASH):
    with pytest.raises(UserError, match=message) as error:
        state.load(path, model, model_hash)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_foreign_state_is_refused(saved):
    path, model = saved
    assert state.load(path, model, HASH)[1] == 2**64 - 1
    refused(path, model, "the state of another model", "1" * 64)
    refused(path, make("gru"), "its tensors are not those")
    refused(path.with_name("none"), model, "no state file")


@pytest.mark.parametrize("keep", (0, 5, 100, 0.5, 0.999))
def test_a_truncated_state_is_refused(saved, keep):
    path, model = saved
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(path, model, "damaged, or not a state file")


def test_a_flipped_bit_is_noticed(saved):
    path, model = saved
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    refused(path, model, "its content is not what was written")


def test_another_seed_is_noticed_and_a_pipe_refused(saved, tmp_path):
    path, model = saved
    path.write_bytes(path.read_bytes().replace(str(2**64 - 1).encode(), str(2**64 - 2).encode()))
    refused(path, model, "its content is not what was written")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", model, "not a plain file")


def test_garbage_is_refused(saved):
    path, model = saved
    tensors = load_file(path)

    def write(tensors, **changes):
        """As somebody would who knows the format."""
        described = {"format": state.FORMAT, "version": "1", "model": HASH, "seed": "1"}
        described |= changes
        digest = state._digest(hashlib.sha256(described["seed"].encode()), tensors)
        save_file(tensors, path, described | {"sha256": digest})

    for seed in (0, 1, 2**64 - 1):
        write(tensors, seed=str(seed))
        assert len(state.load(path, model, HASH)[0]) == 2 and state.load(path, model, HASH)[1] == seed
    for name, value, message in (
        ("format", "else", "not a state file"),
        ("version", "2", "newer version"),
        ("version", "x", "damaged"),
        ("seed", "-1", "damaged"),
        ("seed", str(2**64), "damaged"),
    ):
        write(tensors, **{name: value})
        refused(path, model, message)
    for name, tensor in (
        ("logits", torch.zeros(2, 31)),
        ("drawn", torch.tensor([1])),
        ("drawn", torch.tensor([1, -1])),
        ("drawn", torch.tensor(1)),
        ("0.0", torch.zeros(2, 64, dtype=torch.float64)),
        ("9.9", torch.zeros(2)),
    ):
        write(tensors | {name: tensor})
        refused(path, model, "its tensors are not those")
    write({name: tensor for name, tensor in tensors.items() if name != "1.0"})
    refused(path, model, "its tensors are not those")
    path.write_bytes(b"\xff" * 5000)
    refused(path, model, "damaged")


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    path, model = saved
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        state.save(path, [read(model, TOKENIZER.encode("A"))], 1, HASH)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
