"""Selective copying: the problems, training on them, and what the other programs make of such a run."""

import csv

import numpy as np
import pytest
import torch

from lm.config.options import COPYING, Config
from lm.config.resolve import parse
from lm.corpora.copying import HELD_OUT, IGNORED, Copying
from lm.files import UserError
from tests.commands import compare, train

PROBLEMS = Copying(context=40, tokens=6, vocabulary=10)
OPTIONS = (
    "--data.corpus selective_copying --data.copying.tokens 2 --model.mlp none --optim.schedule constant "
    "--optim.decay 0 --eval.every 3"
)


def test_a_problem_asks_for_its_data_in_order():
    x, y = PROBLEMS.batch(seed=1, step=2, rows=range(50))
    assert x.shape == y.shape == (50, 40) and x.dtype == y.dtype == np.int64
    text = [PROBLEMS.tokenizer.decode(row) for row in x]
    assert all(line.endswith("||||||") and line.count("|") == 6 and line.count(".") == 28 for line in text)
    answers = [PROBLEMS.tokenizer.decode(row) for row in y[:, -6:]]
    assert answers == [line.strip("|").replace(".", "") for line in text]
    assert (y[:, :-6] == IGNORED).all()
    assert set("".join(answers)) == set("ABCDEFGH")
    assert len({tuple(np.flatnonzero(row)) for row in x}) == 50  # the places differ


def test_rows_are_functions_of_seed_step_and_index():
    x, _ = PROBLEMS.batch(1, 5, range(8))
    assert np.array_equal(PROBLEMS.batch(1, 5, range(3, 6))[0], x[3:6])
    others = [PROBLEMS.batch(*args, range(8))[0] for args in ((2, 5), (1, 6))]
    assert all((other != x).any(1).all() for other in others)


def test_held_out_problems_are_fixed_and_not_trained_on():
    pieces = [x for x, _ in PROBLEMS.validation(characters=400)]
    assert len(pieces) > 1
    whole = np.concatenate(pieces)
    assert len(whole) == HELD_OUT == len(np.unique(whole, axis=0))
    assert np.array_equal(whole, np.concatenate([x for x, _ in PROBLEMS.validation()]))
    trained = np.concatenate([PROBLEMS.batch(0, step, range(64))[0] for step in range(20)])
    assert not {tuple(row) for row in trained} & {tuple(row) for row in whole}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.copying.vocabulary 3", "data.copying.vocabulary must be between 4 and 54, not 3"),
        ("--data.context 31", "data.context 31 is too short for data.copying.tokens 16"),
        ("--data.copying.tokens 0", "data.copying.tokens must be at least 1, not 0"),
        ("--data.sampling streams", "data.sampling streams needs a text"),
    ],
)
def test_impossible_problems_are_refused(options, message, capsys):
    with pytest.raises((UserError, SystemExit)) as caught:
        Copying.from_config(parse(["--data.corpus", COPYING, *options.split()])[0].data)
    assert message in str(caught.value) + capsys.readouterr().err


def test_a_block_without_mlp_is_its_mixer_alone():
    from lm.model import LanguageModel
    from lm.sampling.packed import pack

    config = Config().model
    config.mlp = "none"
    model = LanguageModel(9, config)
    assert not [name for name, _ in model.named_parameters() if "mlp" in name]
    block, x = model.blocks[0], torch.randn(2, 5, config.width)
    assert torch.equal(block(x)[0], x + block.mixer(block.norm_mixer(x))[0])
    assert model.flops(10) > 0
    assert pack(model) is model  # the native decoder has no such block


def test_a_run_resumes_exactly_and_the_other_programs_read_it(run_train, capsys):
    from lm.analysis.evaluate import main as evaluate
    from lm.sampling.main import main as generate

    whole = run_train("whole", *OPTIONS.split(), "--trainer.max_steps", "6")
    half = run_train("half", *OPTIONS.split(), "--trainer.max_steps", "3")
    assert train(["--resume", str(half), "--trainer.max_steps", "6"]) == 0
    losses = [[(row["val/loss"], row["val/accuracy"]) for row in rows(run)] for run in (whole, half)]
    assert losses[0][-1] == losses[1][-1]
    last = rows(whole)[-1]
    assert last["val/loss_streaming"] == "" and (whole / "samples.jsonl").read_text() == ""
    assert "; accuracy " in capsys.readouterr().err

    evaluate([str(whole / "checkpoints" / "last.ckpt"), "--contexts", "32", "64"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[1:3] == ["32", f"{float(last['val/loss']):.4f}"] and second.startswith("context 64")
    assert first.endswith(f"{float(last['val/accuracy']):.2%} right")
    assert compare([str(whole)]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert "accuracy" in head and "streaming" not in head
    with pytest.raises(SystemExit):
        generate([str(whole)])
    assert "it writes no text" in capsys.readouterr().err


def rows(run):
    """The validations of a run."""
    return [row for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()) if row["val/loss"]]
