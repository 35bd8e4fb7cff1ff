"""Selective copying: the problems, training on them, and what the other programs make of such a run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lm.config.options import COPYING, Config, DataConfig
from lm.config.resolve import parse
from lm.corpora.copying import HELD_OUT, IGNORED, Copying
from lm.files import UserError
from tests.commands import compare, evaluate, generate, train
from tests.training.conftest import rows

PROBLEMS, DATA = Copying(context=40, tokens=6, vocabulary=10), DataConfig()
OPTIONS = (
    "--data.corpus selective_copying --data.copying.tokens 2 --model.mlp none --optim.schedule constant "
    "--optim.decay 0 --eval.every 3"
)


def test_a_problem_asks_for_its_data_in_order():
    (x, y), fresh = PROBLEMS.batch(DATA, seed=1, step=2, rows=range(50))
    assert fresh and x.shape == y.shape == (50, 40) and x.dtype == y.dtype == np.int64
    text = [PROBLEMS.tokenizer.decode(row) for row in x]
    assert all(line.endswith("||||||") and line.count("|") == 6 and line.count(".") == 28 for line in text)
    answers = [PROBLEMS.tokenizer.decode(row) for row in y[:, -6:]]
    assert answers == [line.strip("|").replace(".", "") for line in text]
    assert (y[:, :-6] == IGNORED).all()
    assert set("".join(answers)) == set("ABCDEFGH")
    assert len({tuple(np.flatnonzero(row)) for row in x}) == 50  # the places differ


def test_rows_are_functions_of_seed_step_and_index():
    (x, _), _ = PROBLEMS.batch(DATA, 1, 5, range(8))
    assert np.array_equal(PROBLEMS.batch(DATA, 1, 5, range(3, 6))[0][0], x[3:6])
    others = [PROBLEMS.batch(DATA, *args, range(8))[0][0] for args in ((2, 5), (1, 6))]
    assert all((other != x).any(1).all() for other in others)


def test_rows_are_cut_into_shorter_problems():
    problems = replace(PROBLEMS, shortest=12)
    steps = [problems.batch(DATA, 1, step, range(4))[0] for step in range(200)]
    counts = [len(x) // 4 for x, _ in steps]
    assert [x.shape for x, _ in steps] == [(4 * n, 40 // n) for n in counts]
    shares = [math.log((n + 1) / n, 4) for n in (1, 2, 3)]
    assert [counts.count(n) / 200 for n in (1, 2, 3)] == pytest.approx(shares, abs=0.1)
    x, y = steps[counts.index(3)]
    assert (x[:, -6:] == 9).all() and (y[:, :-6] == IGNORED).all() and len(np.unique(x, axis=0)) == 12
    part = problems.batch(DATA, 1, counts.index(3), range(2, 3))[0]
    assert np.array_equal(part[0], x[6:9]) and np.array_equal(part[1], y[6:9])
    assert problems.validation_pieces()[0][0][0].shape[1] == 40
    grown = [len(replace(problems, growth=100).batch(DATA, 1, step, range(1))[0][0]) for step in range(150)]
    assert set(grown[:37]) <= {2, 3} and grown[0] == 3 and grown[100:] == counts[100:150]
    assert str(problems).endswith("; from length 12 on")


def test_held_out_problems_are_fixed_and_not_trained_on(monkeypatch):
    monkeypatch.setattr("lm.corpora.copying.AT_ONCE", 400)
    (pieces,) = PROBLEMS.validation_pieces()
    pieces = [x for x, _ in pieces]
    assert [len(x) for x in pieces] == [10] * 51 + [2]
    whole = np.concatenate(pieces)
    assert len(whole) == HELD_OUT == len(np.unique(whole, axis=0))
    monkeypatch.undo()
    assert np.array_equal(whole, np.concatenate([x for x, _ in PROBLEMS.validation_pieces()[0]]))
    trained = np.concatenate([PROBLEMS.batch(DATA, 0, step, range(64))[0][0] for step in range(20)])
    assert not {tuple(row) for row in trained} & {tuple(row) for row in whole}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.copying.vocabulary 3", "data.copying.vocabulary must be between 4 and 54, not 3"),
        ("--data.context 31", "data.context 31 is too short for data.copying.tokens 16"),
        ("--data.copying.tokens 0", "data.copying.tokens must be at least 1, not 0"),
        ("--data.sampling streams", "data.sampling streams needs a text"),
        ("--data.copying.shortest 31", "data.copying.shortest must be between 32, twice data.copying.tokens, and"),
        ("--data.copying.shortest 129", "data.context 128, not 129"),
    ],
)
def test_impossible_problems_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Copying.from_config(parse(["--data.corpus", COPYING, *options.split()]).data)


def test_a_block_without_mlp_is_its_mixer_alone():
    from lm.model import LanguageModel
    from lm.sampling.packed import pack

    config = Config().model
    config.mlp, config.residual_init = "none", 1.0
    model = LanguageModel(9, config)
    assert not [name for name, _ in model.named_parameters() if "mlp" in name]
    block, x = model.blocks[0], torch.randn(2, 5, config.width)
    assert torch.equal(block(x)[0], x + block.mixer(block.norm_mixer(x))[0])
    assert model.flops(10) > 0
    assert pack(model) is model  # the native decoder has no such block


def test_a_run_resumes_exactly_and_the_other_programs_read_it(run_train, capsys):
    whole = run_train("whole", *OPTIONS.split(), "--trainer.max_steps", "6")
    half = run_train("half", *OPTIONS.split(), "--trainer.max_steps", "3")
    assert train(["--resume", str(half), "--trainer.max_steps", "6"]) == 0
    last, again = rows(whole)[-1], rows(half)[-1]
    assert all(last[name] == again[name] for name in ("val/loss", "val/accuracy"))
    assert "val/loss_streaming" not in last and (whole / "samples.jsonl").read_text() == ""
    assert "; accuracy " in capsys.readouterr().err

    evaluate([str(whole / "checkpoints" / "last.ckpt"), "--contexts", "32", "64"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[1:3] == ["32", f"{last['val/loss']:.4f}"] and second.startswith("context 64")
    assert f"{last['val/accuracy']:.2%} right  (answer " in first and "; whole problems: " in first
    assert compare([str(whole)]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert "accuracy" in head and "streaming" not in head
    assert generate([str(whole)]) == 2
    assert "it writes no text" in capsys.readouterr().err
