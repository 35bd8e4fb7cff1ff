"""Every benchmark at tiny sizes: it runs, prints, writes its numbers, and refuses to time what differs."""

import json
import subprocess
import sys

import pytest
import torch

from lm.bench import cell, length, measure, numerics, peers, sample, train
from lm.bench.main import COMMANDS, finite
from lm.mixers.mingru import MinGRU
from tests.commands import bench, document


@pytest.fixture
def bench(tmp_path, capsys):
    """Run a benchmark; returns its JSON and what it printed."""

    def call(command: str, *options: str):
        path = tmp_path / f"{command}.json"
        where = [] if command in ("parameters", "overhead") else ["--device", "cpu"]
        bench([command, "--quick", "--json", str(path), *where, *options])
        return json.loads(path.read_text()), capsys.readouterr().out

    return call


@pytest.fixture
def wrong_steps(monkeypatch):
    """A minGRU whose steps are not its forward pass."""
    right = MinGRU.step
    monkeypatch.setattr(MinGRU, "step", lambda self, x, state: right(self, 1.01 * x, state))


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_cell(bench):
    result, out = bench("cell")
    assert isinstance(result["warnings"], list)
    assert result["conditions"]["dtype"] == "float32" and result["conditions"]["threads"] >= 1
    mingru, minlstm = result["results"]
    rows = by_name(mingru["rows"])
    assert set(rows) == set(peers.contenders("mingru", torch.device("cpu")))
    assert {"copy", "rows", "size", "cell"} <= set(minlstm)
    for name in ("ours, portable", peers.LOOP):
        assert len(rows[name]["forward"]) == len(rows[name]["both"]) == 2
        assert rows[name]["gradient_error"] < 1e-5 and rows[name]["copies"] > 0 and rows[name]["bandwidth"] > 0
        assert name in out


def test_cell_refuses_what_differs(bench, monkeypatch):
    monkeypatch.setattr(peers, "loop", lambda a, b: 1.01 * b)
    result, out = bench("cell", "--cells", "mingru")
    assert "values off by" in by_name(result["results"][0]["rows"])[peers.LOOP]["skipped"]
    assert "values off by" in out and "ours, portable" in out


def test_cell_skips_what_is_missing_and_what_is_too_slow(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "mambapy.pscan", None)
    monkeypatch.setitem(sys.modules, "minGRU_pytorch.minGRU", None)
    result, out = bench("cell", "--cells", "mingru", "--longest_loop", "8")
    rows = by_name(result["results"][0]["rows"])
    assert 'pip install "char-lm[bench]"' in rows["mambapy pscan"]["skipped"] and "pip install" in out
    assert "too slow" in rows[peers.LOOP]["skipped"]
    assert rows["ours, portable"]["speedup"] is None


def test_candidate_first_is_undone():
    def swapped(projection):
        return peers.loop(*peers.coefficients(torch.cat(projection.chunk(2, dim=-1)[::-1], dim=-1), 2))

    projection, grad_h = cell.inputs("mingru", (2, 7, 3), torch.device("cpu"), torch.float64)
    theirs = cell.Cell(peers.Contender(lambda: swapped, candidate_first=True), projection, grad_h).results()
    for got, want in zip(theirs, cell.truth(projection, grad_h), strict=True):
        torch.testing.assert_close(got, want)


def test_train(bench):
    result, out = bench("train", "--mixers", "mingru", "gru", "attention", "--optimizer", "muon")
    rows = by_name(result["results"][0]["rows"])
    assert set(rows) == {train.YARDSTICK, "mingru, gelu", "mingru", "gru", "attention"}
    assert rows["mingru"]["parameters"] == rows["mingru, gelu"]["parameters"]
    assert rows["mingru"]["characters_per_second"] > 0 and rows["mingru"]["of_sgemm"] > 0
    assert len(rows["mingru"]["optimiser"]) == 2 and "attention" in out


def test_train_refuses_what_differs(bench, wrong_steps):
    result, out = bench("train", "--mixers", "mingru", "minlstm", "gru")
    rows = by_name(result["results"][0]["rows"])
    assert "forward against steps" in rows["mingru"]["skipped"] and "forward against steps" in out
    assert "both" in rows["gru"]


def test_train_refuses_a_minlm_that_differs(bench, monkeypatch):
    pytest.importorskip("minGRU_pytorch")
    monkeypatch.setattr(train, "copy_weights", lambda ours, theirs: None)
    result, _ = bench("train")
    rows = by_name(result["results"][0]["rows"])
    assert "logits off by" in rows[train.YARDSTICK]["skipped"]
    assert rows["mingru"]["speedup"] is None


def test_length(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(length, "measure_apart", length.peak_of_one_step)  # starting Python takes seconds
    picture = tmp_path / "length.png"
    options = ("--lengths", "32", "--mixers", "mingru", "gru_reference", "--plot", str(picture))
    result, out = bench("length", *options)
    rows = by_name(result["results"])
    assert set(rows) == {"mingru", "gru_reference"} and result["skipped"] == []
    assert rows["mingru"]["speedups"]["gru_reference"] > 0 and rows["mingru"]["bytes"] >= 0
    assert "peak MiB" in out and picture.read_bytes().startswith(b"\x89PNG")


def test_memory_is_measured_in_a_process_of_its_own(bench):
    result, _ = bench("length", "--lengths", "2048", "--width", "64", "--repeat", "1")
    tensor = 2 * 2048 * 64 * 4
    assert 2 * tensor < result["results"][0]["bytes"] < 40 * tensor


def test_a_process_that_dies_ends_a_mixer(bench, monkeypatch):
    monkeypatch.setattr(measure, "program", lambda *words: ["sh", "-c", "echo no memory >&2; exit 1"])
    result, _ = bench("length")
    assert result["results"] == [] and "T = 16: no memory" in result["skipped"][0]["skipped"]


def test_length_stops_at_the_limit_and_at_a_failure(bench, monkeypatch):
    def apart(name, T, arguments):
        if name == "gru":
            raise measure.RefusedError("out of memory")
        return {"seconds": 1.0 if T == 16 else 99.0, "bytes": T}

    monkeypatch.setattr(length, "measure_apart", apart)
    result, out = bench("length", "--lengths", "16", "32", "64", "--mixers", "mingru", "gru", "--limit", "50")
    assert [row["T"] for row in result["results"]] == [16, 32]
    assert result["results"][1]["times"] == [99.0]
    assert "stopped after T = 32" in out and "gru: out of memory" in out


def test_length_refuses_what_differs(bench, wrong_steps):
    result, out = bench("length", "--mixers", "mingru")
    assert result["results"] == [] and "forward against steps" in out


def test_peak_memory_sees_an_allocation():
    device = torch.device("cpu")
    before = length.reset_peak(device)
    block = torch.ones(64 << 20)  # 256 MB: too much for the allocator to have it lying about
    del block
    assert length.peak_bytes(device) - before >= 200 << 20 or sys.platform != "linux"


def test_numerics(bench, tmp_path):
    picture = tmp_path / "numerics.png"
    result, out = bench("numerics", "--plot", str(picture))
    ours = [row for row in result["results"] if row["name"] == "ours, portable"]
    assert {(row["cell"], row["T"]) for row in ours} == {(c, T) for c in ("mingru", "minlstm") for T in (64, 128)}
    assert max(row[part] for row in ours for part in numerics.PARTS) < 1e-6
    assert "log-space" in out and picture.read_bytes().startswith(b"\x89PNG")


def test_numerics_refuses_what_differs(bench, monkeypatch):
    right = numerics.reference.mingru_log_space
    monkeypatch.setattr(numerics.reference, "mingru_log_space", lambda projection, h0: 1.01 * right(projection, h0))
    result, out = bench("numerics", "--cells", "mingru")
    assert [row["name"] for row in result["skipped"]] == ["log-space"] and "values off by" in out
    assert "log-space" not in {row["name"] for row in result["results"]}


def test_sample(bench):
    result, out = bench("sample")
    names = [row["name"] for row in result["peers"]]
    assert all(len(row["speeds"]) == 2 and row["chain"] > 0 for row in result["peers"])
    assert {"ours, float32", "ours, int8", sample.PLAIN, sample.MINLM, "nanoGPT 4 x 16, context 64"} <= {*names}
    assert [row["name"] for row in result["batch"]] == ["ours, float32", "ours, bfloat16", "ours, int8"]
    assert [(row["name"], row["generated"]) for row in result["length"]] == [
        *(("mingru", 20), ("mingru", 40), ("attention", 20), ("attention", 40))
    ]
    assert "batch 5 over batch 1" in out


def test_sample_refuses_what_differs(bench, wrong_steps):
    result, _ = bench("sample", "--mixers", "mingru")
    ours = [row for part in ("peers", "batch", "length") for row in result[part] if row["name"].startswith(("o", "m"))]
    ours = [row for row in ours if row["name"] != sample.MINLM]
    assert all("forward against steps" in row["skipped"] for row in ours)


def test_a_packed_model_that_differs_is_refused(bench, monkeypatch):
    from lm.sampling.packed import Packed

    right = Packed.step
    monkeypatch.setattr(Packed, "step", lambda self, ids, state: right(self, (ids + 1) % 65, state))
    result, _ = bench("sample", "--parts", "batch")
    assert all("forward against steps" in row["skipped"] for row in result["batch"])


def test_writers_go_on_where_they_are():
    from lm.bench import models

    writer, same = (sample.Writer(models.make("mingru", 16, 1, sample.VOCABULARY), 2, 50) for _ in range(2))
    writer(120)
    same(70)
    other = same.copy()
    same()
    states = [[one.decoder.position(row).logits for row in range(2)] for one in (writer, same, other)]
    assert (states[0][0] == states[1][0]).all() and (states[0][1] == states[1][1]).all()
    assert (states[0][0] != states[2][0]).any()


def test_the_gpt_is_torchs():
    """Equal weights give the logits of torch's own pre-norm encoder with learned positions, as nanoGPT's does."""
    from torch import nn

    torch.manual_seed(0)
    model = peers.GPT(11, 2, 4, 32, 20)
    options = {"activation": "gelu", "batch_first": True, "norm_first": True, "bias": False}
    x = model.embedding.weight[torch.arange(9)][None] + model.position.weight[:9]
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, **options)
        layer.self_attn.in_proj_weight, layer.self_attn.out_proj = block.query_key_value.weight, block.output
        layer.linear1, layer.linear2 = block.up, block.down
        layer.norm1, layer.norm2 = block.norm_attention, block.norm_mlp
        x = layer(x, src_mask=mask, is_causal=True)
    torch.testing.assert_close(model(torch.arange(9)[None]), model.head(model.norm(x))[:, -1:])


def test_parameters_are_the_papers(bench):
    result, out = bench("parameters")
    assert len(result["results"]) == 8 and "+ down-projection" in out
    for row in result["results"]:
        ours, theirs = row["counts"]["weights"]
        assert ours / theirs == pytest.approx(row["paper"], abs=0.0051)


def test_parameters_refuse_cells_of_different_size(bench, monkeypatch):
    from lm.bench import models

    right = models.make_mixer
    monkeypatch.setattr(models, "make_mixer", lambda name, width, **options: right(name, width + 2 * (name == "gru")))
    result, out = bench("parameters")
    assert "differs" in result["results"][0]["skipped"] and "differs" in out


@pytest.mark.slow
def test_overhead(bench):
    result, out = bench("overhead", "--steps", "4", "--repeat", "1")
    assert set(result) == {"bare", "train.py", "ratio"} and "train.py / bare loop" in out


def test_timing_takes_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    measure.FLOOR, floor = 0.0, measure.FLOOR
    try:
        times = measure.in_turns(calls, 3, torch.device("cpu"))
    finally:
        measure.FLOOR = floor
    assert "".join(order).endswith("abbaab") and [len(t) for t in times.values()] == [3, 3]


def test_starvation_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(measure, "WARNINGS", [])
    measure._warn_if_starved(wall=1.0, busy=0.95)
    assert measure.WARNINGS == []
    measure._warn_if_starved(wall=1.0, busy=0.03)
    assert "3% of the time" in measure.WARNINGS[0] and "WARNING" in capsys.readouterr().err


def test_backend_is_put_back(monkeypatch):
    import os

    monkeypatch.setenv("LM_BACKEND", "portable")
    with peers.backend("native"):
        assert os.environ["LM_BACKEND"] == "native"
    assert os.environ["LM_BACKEND"] == "portable"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nothing", "invalid choice: 'nothing'"),
        ("cell --sizes 3x4", "--sizes: expected BxTxD with whole numbers, not 3x4"),
        ("cell --cells gru", "--cells: gru is not one of mingru, minlstm"),
        ("cell --dtype int8", "--dtype: expected float32 or bfloat16 or float16, not int8"),
        ("train --mixers mamba3", "--mixers: mamba3 is not one of"),
        ("train --repeat 0", "--repeat must be at least 1, not 0"),
        ("length --width 5", "--width must be even, not 5"),
        ("sample --json /nowhere/at/all.json", "--json: there is no folder /nowhere/at"),
        ("length --lenghts 5", "did you mean --lengths?"),
    ],
)
def test_mistakes_get_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        bench(options.split())
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_help_needs_no_torch():
    code = "import sys; from lm.bench.__main__ import COMMANDS, make_parser, usage\n"
    code += "[make_parser(c).format_help() for c in COMMANDS]; usage().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_command_has_its_module_and_its_help(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            bench([command, "--help"])
        assert "--json" in capsys.readouterr().out


def test_json_has_no_infinities():
    assert finite({"a": [float("inf"), 1.0], "b": (float("nan"),)}) == {"a": [None, 1.0], "b": [None]}


def test_busy(bench):
    result, out = bench("busy", "--cells", "mingru")
    rows = by_name(result["results"][0]["rows"])
    assert rows["ours, portable"]["ratio"] > 0 and len(rows["ours, portable"]["busy"]) == 2
    assert "one core busy" in out


def test_what_a_command_prints_goes_into_a_document(tmp_path, capfd):
    path = tmp_path / "a.md"
    path.write_text("before\n<!-- lm.bench parameters help: begin -->\n<!-- lm.bench parameters help: end -->\nafter\n")
    assert document([str(path), *"python -m lm.bench parameters --help".split()]) == 0
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "$ python -m lm.bench parameters --help\nusage:" in text and "usage:" in capfd.readouterr().out
    for words in ([], [str(path)], [str(path), "true"], [str(tmp_path / "b.md"), "true"]):
        assert document(words) == 2 and path.read_text() == text
    for twice in ("<!-- true: begin -->\n<!-- true: end -->\nsee <!-- true: end --> above\ntail\n", text * 2):
        path.write_text(twice)
        assert document([str(path), "true"]) == 2 and path.read_text() == twice
    path.write_text("<!-- false: begin -->\nold\n<!-- false: end -->\n")
    assert document([str(path), "false"]) == 1 and "old" in path.read_text()


def test_a_table_goes_into_a_document(bench, tmp_path):
    document = tmp_path / "a.md"
    document.write_text("before\n<!-- bench parameters: begin -->\nold\n<!-- bench parameters: end -->\nafter\n")
    _, out = bench("parameters", "--insert", str(document))
    text = document.read_text()
    assert out.strip() in text and "old" not in text and "$ python -m lm.bench parameters --quick" in text
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "--insert" not in text


def test_a_document_without_marks_is_refused_before_measuring(tmp_path, capsys):
    (tmp_path / "a.md").write_text("nothing\n")
    with pytest.raises(SystemExit) as exit:
        bench(["parameters", "--insert", str(tmp_path / "a.md")])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert "needs one line <!-- bench parameters: begin -->" in err and not out
