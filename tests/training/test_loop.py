"""The algorithm without Lightning: equal to `char-lm train`, and each of its parts by hand."""

import numpy as np
import pytest
import torch

from lm import load
from lm.config.options import Config, DataConfig, ModelConfig
from lm.corpora import corpus as corpora
from lm.model import LanguageModel
from lm.runs.folder import Run
from lm.training.loop import Batch, make_batch, seed_part, train, training_loss
from tests.training.conftest import rows

STREAMS = "--data.sampling streams --trainer.accumulate 2"
COPYING = (
    "--data.corpus selective_copying --data.copying.tokens 4 --model.mixer [mamba,attention] --trainer.accumulate 4"
)


@pytest.mark.parametrize("options", ["--optim.name adamw --optim.clip 0.1", STREAMS, COPYING])
def test_lightnings_run_equals_it_to_the_bit(run_train, options):
    """With dropout and accumulated gradients, on windows, streams and a synthetic task."""
    words = "--trainer.max_steps 24 --model.dropout 0.1 --log.every 1 --trainer.precision 32"
    run = run_train("a", *words.split(), *options.split())
    config = Run(run).config()
    corpus = corpora.load(config.data)
    torch.manual_seed(config.seed)
    model = LanguageModel(len(corpus.tokenizer), config.model)
    losses = list(train(model, corpus, config))
    trained, _ = load(run / "checkpoints" / "last.ckpt")
    for (name, expected), weight in zip(model.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(expected, weight), name
    assert [row["train/loss"] for row in rows(run) if "train/loss" in row] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.05


def test_the_random_numbers_of_a_part_depend_on_seed_step_part_and_rank():
    drawn = set()
    for key in ((1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (1, 2, 3)):
        seed_part(*key)
        drawn.add(first := torch.rand(()).item())
        seed_part(*key)
        assert torch.rand(()).item() == first
    assert len(drawn) == 6


def test_parts_and_devices_share_a_batch_without_overlap(tmp_path):
    """Eight rows, two parts, two devices: each of the four has two rows of its own, and the parts come first."""
    (tmp_path / "t.txt").write_text("".join(chr(0x4E00 + i) for i in range(1000)), encoding="utf-8")
    config = Config(seed=3, data=DataConfig(corpus=str(tmp_path / "t.txt"), context=5, batch_size=8))
    corpus = corpora.load(config.data)
    (whole, targets), _ = corpus.batch(config.data, 3, 9, range(8))
    config.trainer.accumulate = 2
    shares = [make_batch(corpus, config, 9, part, rank, 2) for part in range(2) for rank in range(2)]
    assert np.array_equal(torch.cat([share.x for share in shares]), whole)
    assert np.array_equal(torch.cat([share.y for share in shares]), targets)
    assert [share.part for share in shares] == [0, 0, 1, 1] and all(share.fresh for share in shares)
    alone = [make_batch(corpus, config, 9, part) for part in range(2)]
    assert [share.x.shape for share in alone] == [(4, 5)] * 2 and np.array_equal(alone[1].x, whole[4:])


def test_a_state_is_carried_within_its_part_and_dropped_for_a_fresh_batch():
    torch.manual_seed(0)
    model = LanguageModel(11, ModelConfig(width=16, layers=2, residual_init=1.0))
    torch.nn.init.normal_(model.head.weight)
    ids = torch.randint(0, 11, (2, 21))

    def loss(first: int, last: int, part: int, fresh: bool) -> float:
        batch = Batch(ids[:, first:last], ids[:, first + 1 : last + 1], part, fresh)
        return training_loss(model, batch, states, Config()).item()

    def expected(first: int, last: int, start: int) -> float:
        """Of the positions from `first`, when reading begins at `start`."""
        logits, _ = model(ids[:, start:last])
        scored, targets = logits[:, first - start :], ids[:, first + 1 : last + 1]
        return torch.nn.functional.cross_entropy(scored.flatten(0, 1), targets.flatten()).item()

    states = {}
    assert loss(0, 10, 0, True) == pytest.approx(expected(0, 10, 0), rel=1e-5)
    assert loss(10, 20, 0, False) == pytest.approx(expected(10, 20, 0), rel=1e-5)
    assert loss(10, 20, 1, False) == pytest.approx(expected(10, 20, 10), rel=1e-5)  # this part has no state yet
    assert loss(0, 20, 0, True) == pytest.approx(expected(0, 20, 0), rel=1e-5)
    assert sorted(states) == [0, 1] and not any(tensor.requires_grad for layer in states[0] for tensor in layer)
