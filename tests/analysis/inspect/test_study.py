"""What is found about a model: the clearest channels of made-up figures, and of the pretrained model."""

import numpy as np
import pytest
import torch

from lm.analysis.inspect.channels import Channels
from lm.analysis.inspect.study import Match, Study, Subject, untrained
from lm.config.options import Config, ModelConfig
from lm.corpora.tokenizer import CharTokenizer
from lm.model import LanguageModel
from tests.commands import ROOT, inspect


def channels(correlation) -> Channels:
    """Channels with these correlations (F, C); NaN stands for a feature that is constant."""
    r = np.array(correlation)
    C = r.shape[1]
    return Channels([C], np.ones(C), np.zeros(C), np.ones(C), r, np.zeros((3, C)), np.zeros((3, C)))


def test_the_clearest_exceed_the_best_untrained_channel_most():
    """Of the first feature 0.6 is random, so that 0.7 is less clear than 0.3 of the second, and 0.5 is nothing."""
    trained = channels([[0.7, 0.5, -0.1, 0.1], [0.0, 0.1, -0.3, 0.1], [np.nan] * 4])
    random = channels([[0.1, -0.6], [0.1, 0.0], [np.nan] * 2])
    study = Study("", "", trained, random)
    found = study.clearest()
    assert [(match.channel, match.feature) for match in found] == [(2, 1), (0, 0)]
    assert [match.gain for match in found] == pytest.approx([0.2, 0.1])
    assert study.clearest(1) == found[:1] and isinstance(found[0], Match)


def test_the_untrained_model_is_a_function_of_its_seed():
    config = Config(model=ModelConfig(width=16, layers=2))
    tokenizer = CharTokenizer("abc")
    subject = Subject("a", LanguageModel(len(tokenizer), config.model), tokenizer, config)
    torch.manual_seed(5)
    first, number = untrained(subject), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), number)  # other random numbers are what they were
    for a, b in zip(first.parameters(), untrained(subject).parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.blocks[0].mlp.down.weight.any()  # its blocks write, unlike those at the start of a training


@pytest.mark.slow
def test_what_the_document_says_of_the_pretrained_model(capsys):
    """docs/inside.md has the figures of today's command, and its three channels are the clearest."""
    assert inspect(["pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split(" ")[0] for line in lines].index("feature") + 2
    document = (ROOT / "docs/inside.md").read_text(encoding="utf-8")
    assert [line.split("  ")[0] for line in lines[first : first + 3]] == [
        "in a question",
        "column in the line",
        "in a speaker's name",
    ]
    for line in lines[first : first + 3]:
        words = line.split()
        channel, r = words[-4], float(words[-3])
        assert f"## Channel {channel} " in document and line in document
        assert r >= 0.6 and r > float(words[-2]) + 0.4
