"""ONNX graphs compute what the model computes, for every mixer, batch and length, and say where they are from."""

import dataclasses
import json
import re
import sys

import pytest
import torch

from lm import load
from lm.bench.models import make
from lm.config.options import Config
from lm.files import UserError
from lm.mixers import MIXERS
from lm.mixers.mingru import MinGRU
from tests import commands

pytest.importorskip("onnx", reason="needs the package onnx")
pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
from lm.runs import onnx as exported
from lm.runs.onnx import Session, compare, difference, errors, layers, make_graph

NAMES = "mingru minlstm attention mamba s4d gru lstm gru_reference lstm_reference".split()
CASES: list[tuple[str, dict]] = [(mixer, {}) for mixer in NAMES]
CASES += [(mixer, {"convolution": 0, "expansion": 1.0}) for mixer in ("mingru", "minlstm", "mamba")]
CASES += [
    ("mingru", {"convolution": 1}),
    ("mingru", {"convolution": 9, "gate_bias": 12.0}),
    ("gru", {"expansion": 1.0}),
]
CASES += [("minlstm", {"gate_bias": 12.0}), ("attention", {"window": 5, "heads": 1}), ("attention", {"window": 1})]
CASES += [("attention", {"positions": "learned", "window": 7})]
CASES += [("s4d", {"d_state": 2}), ("mamba", {"d_state": 3}), ("lstm", {"expansion": 0.5})]


def sessions(model):
    """The graphs of a step and of a sequence in onnxruntime."""
    return [Session(make_graph(model.eval(), sequence, {})) for sequence in (False, True)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps whose layers are of different kinds."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "corpus.txt").write_text("to be or not to be, that is the question\n" * 300)
    words = "--model.width 16 --model.layers 2 --data.context 16 --data.batch_size 2 --trainer.max_steps 3".split()
    words += "--log.wandb disabled --trainer.accelerator cpu --trainer.precision 32 --eval.sample_chars 0".split()
    words += ["--data.corpus", str(folder / "corpus.txt"), "--runs", str(folder), "--name", "a"]
    assert commands.train([*words, "--model.mixer", "[mingru, attention]"]) == 0
    return folder / "a"


@pytest.mark.parametrize(("mixer", "given"), CASES)
def test_the_graphs_equal_the_model(mixer, given):
    model = make(mixer, 16, 2, 11, **given)
    step, sequence = sessions(model)
    for batch, length in ((1, 2), (3, 63)):
        ids = torch.randint(11, (batch, length))
        found = errors(model, step, sequence, ids)
        assert max(found.values()) < exported.TOLERANCE / 5, found


@torch.no_grad()
@pytest.mark.parametrize("mixer", NAMES)
def test_a_thousand_characters(mixer):
    """Logits and the state, from a state that is not the first."""
    model = make(mixer, 16, 1, 11)
    _, sequence = sessions(model)
    _, state = model(torch.randint(11, (1, 70)), model.init_state(1))
    ids = torch.randint(11, (1, 1000))
    (got, got_state), (want, want_state) = sequence(ids, state), model(ids, state)
    assert difference(got, want) < exported.TOLERANCE
    for a, b in zip(got_state[0], want_state[0], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and difference(a, b) < exported.TOLERANCE


@pytest.mark.parametrize("mlp", ["relu2", "gelu", "swiglu", "none"])
def test_every_mlp(mlp):
    model = make("mingru", 16, 1, 11, mlp)
    assert max(errors(model, *sessions(model), torch.randint(11, (2, 9))).values()) < exported.TOLERANCE / 5


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["mingru", "minlstm"])
def test_slow_gates_keep_their_digits(mixer):
    """Against float64: a memory of 100,000 characters must not drift within 1,000."""
    model = make(mixer, 16, 1, 11, gate_bias=11.5)
    _, sequence = sessions(model)
    _, state = model(torch.randint(11, (2, 50)), model.init_state(2))
    ids = torch.randint(11, (2, 1000))
    _, got = sequence(ids, state)
    exact = make(mixer, 16, 1, 11, gate_bias=11.5).double().eval()
    _, want = exact(ids, tuple(tuple(part.double() for part in parts) for parts in state))
    assert difference(got[0][0], want[0][0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_attention_after_a_million_characters(positions):
    """Angles are float64: float32 would be off by 0.06."""
    model = make("attention", 16, 1, 11, window=8, positions=positions)
    _, sequence = sessions(model)
    _, ((keys, values, position),) = model(torch.randint(11, (1, 20)), model.init_state(1))
    state = ((keys, values, position + 10**6),)
    ids = torch.randint(11, (1, 30))
    assert difference(sequence(ids, state)[0], model(ids, state)[0]) < exported.TOLERANCE / 5


def test_every_function_is_tested():
    assert set(layers.MIXERS) == {MIXERS[name] for name in NAMES}


def test_the_files(run, tmp_path, capsys):
    import onnx
    import onnxruntime

    folder = tmp_path / "e"
    assert commands.export([str(run), str(folder), "--format", "onnx", "--which", "last"]) == 0
    message = capsys.readouterr().err
    assert re.fullmatch(rf"wrote {folder}; its logits are the model's to \de-0[6-9] in onnxruntime [\d.]+\n", message)
    names = ["README.md", "config.yaml", "sequence.onnx", "step.onnx", "tokenizer.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    model, tokenizer = load(run / "checkpoints" / "last.ckpt")
    for name, axes in (("step", ["batch"]), ("sequence", ["batch", "length"])):
        graph = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        assert graph.get_inputs()[0].shape == axes and graph.get_outputs()[0].shape == [*axes, len(tokenizer)]
        states = [f"{i}.{j}" for i, parts in enumerate(model.init_state(1)) for j in range(len(parts))]
        assert [x.name for x in graph.get_inputs()] == ["ids", *(f"state.{part}" for part in states)]
        assert [x.name for x in graph.get_outputs()] == ["logits", *(f"next.{part}" for part in states)]
        metadata = graph.get_modelmeta().custom_metadata_map
        assert list(json.loads(metadata["tokenizer"])["model"]["vocab"])[:-1] == list(tokenizer.characters)
        assert metadata["config"] == (folder / "config.yaml").read_text()
        about = json.loads(metadata["about"])
        assert about["run"] == "a" and about["checkpoint"] == "last.ckpt" and about["losses"] and about["environment"]
        weights = {x.name for x in onnx.load(folder / f"{name}.onnx").graph.initializer}
        assert set(model.state_dict()) - weights == set()  # under their own names


def test_the_example_of_the_readme(run, tmp_path, monkeypatch):
    assert commands.export([str(run), str(tmp_path / "e"), "--format", "onnx"]) == 0
    text = (tmp_path / "e" / "README.md").read_text()
    code = "\n".join(line.removeprefix("    ") for line in text.splitlines() if line.startswith("    "))
    monkeypatch.chdir(tmp_path / "e")
    got: dict = {}
    exec(f"{code}\nlogits, *_ = session.run(None, {{'ids': np.array([1]), **state}})", got)
    model, _ = load(run)
    assert difference(torch.tensor(got["logits"]), model(torch.tensor([[0, 1]]))[0][:, 1]) < exported.TOLERANCE


def test_a_graph_that_differs_is_not_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layers, "EPSILON", 0.1)
    assert commands.export([str(run), str(tmp_path / "e"), "--format", "onnx"]) == 2
    assert re.search(
        r"logits of the graphs are off by [\d.]+e-0\d \(\w+\); nothing was written", capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_mixer_that_has_no_function(run, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(layers.MIXERS, MinGRU)
    assert commands.export([str(run), str(tmp_path / "e"), "--format", "onnx"]) == 2
    assert "the mixer MinGRU has no function in lm/runs/onnx/layers.py" in capsys.readouterr().err


def test_mistakes_get_one_line(run, tmp_path, capsys):
    (tmp_path / "there").write_text("")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "config.yaml").write_text((run / "config.yaml").read_text())
    for model, words, message in (
        (run, ["there", "--weights", "bfloat16"], "--weights of --format onnx must be float32"),
        (run, ["there"], "there exists; give another folder"),
        (run, ["there/out"], "cannot write "),
        (tmp_path / "empty", ["out"], "empty: no checkpoint there yet"),
        (tmp_path / "none", ["out"], "no run "),
    ):
        folder, *rest = words
        assert commands.export([str(model), "--format", "onnx", str(tmp_path / folder), *rest]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "there"]


def test_a_run_of_the_copying_task_into_a_new_folder(tmp_path):
    words = "--data.corpus selective_copying --data.context 64 --data.copying.tokens 4 --trainer.max_steps 2".split()
    words += "--model.width 16 --model.layers 1 --trainer.accelerator cpu --log.wandb disabled --name c".split()
    assert commands.train([*words, "--runs", str(tmp_path)]) == 0
    assert commands.export([str(tmp_path / "c"), str(tmp_path / "new" / "e"), "--format", "onnx"]) == 0
    assert (tmp_path / "new" / "e" / "step.onnx").stat().st_size > 1000


def test_weights_that_do_not_fit_into_a_file(monkeypatch):
    monkeypatch.setattr(exported, "LARGEST", 1000)
    with pytest.raises(UserError, match="weights are too many for a file of 2 GB"):
        make_graph(make("mingru", 16, 1, 11), False, {})


def test_without_onnxruntime_nothing_is_compared(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in compare(make("mingru", 16, 1, 11), {})


def test_a_nan_is_a_difference():
    x = torch.ones(3)
    assert difference(x, x) == 0 and difference(x / 0 - x / 0, x) == float("inf")


def test_dropout_is_left_out(run, tmp_path):
    """A model that was trained with dropout is exported as it is in use."""
    config = dataclasses.replace(Config().model, width=16, layers=1, dropout=0.5)
    from lm.model import LanguageModel

    model = LanguageModel(11, config).eval()
    torch.nn.init.normal_(model.head.weight)
    assert max(errors(model, *sessions(model), torch.randint(11, (1, 20))).values()) < exported.TOLERANCE
