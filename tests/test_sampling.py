"""The filters against known distributions; generation against recomputation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.config import ModelConfig
from lm.model import LanguageModel
from lm.sampling import Chooser, decode, generate, min_p, top_k, top_p, until
from lm.tokenizer import CharTokenizer

P = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
LOGITS = P.log()


def kept(logits):
    return logits.isfinite()[0].tolist()


def test_top_k():
    assert kept(top_k(LOGITS, 2)) == [True, True, False, False]
    assert kept(top_k(LOGITS, 0)) == kept(top_k(LOGITS, 9)) == [True] * 4


def test_top_p_keeps_the_fewest_that_reach_p():
    assert kept(top_p(LOGITS, 0.4)) == [True, False, False, False]
    assert kept(top_p(LOGITS, 0.6)) == [True, True, False, False]
    assert kept(top_p(LOGITS[:, [3, 1, 0, 2]], 0.6)) == [False, True, True, False]
    assert kept(top_p(LOGITS, 1.0)) == [True] * 4


def test_min_p():
    assert kept(min_p(LOGITS, 0.29)) == [True, True, True, False]
    assert kept(min_p(LOGITS, 1.0)) == [True, False, False, False]
    assert kept(min_p(LOGITS, 0.0)) == [True] * 4


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.integers(0, 25), st.floats(0.01, 1), st.floats(0, 1))
def test_filters_keep_the_most_probable_and_change_nothing_they_keep(values, k, p, minimum):
    logits = torch.tensor([values], dtype=torch.float64)
    for filtered in (top_k(logits, k), top_p(logits, p), min_p(logits, minimum)):
        mask = filtered.isfinite()
        assert logits[mask].max() == logits.max()
        assert torch.equal(filtered[mask], logits[mask])
        assert logits[mask].min() >= logits[~mask].max() if (~mask).any() else True


def frequencies(choose, draws=20_000):
    n = len(choose.streams)
    ids = torch.cat([choose(LOGITS.expand(n, -1)) for _ in range(draws // n)])
    return torch.bincount(ids, minlength=4) / len(ids)


def test_draws_follow_the_distribution():
    assert torch.allclose(frequencies(Chooser(range(100))), P[0], atol=0.012)
    sharp = (P[0] ** 2) / (P[0] ** 2).sum()
    assert torch.allclose(frequencies(Chooser(range(100), temperature=0.5)), sharp, atol=0.012)
    nucleus = torch.tensor([2 / 3, 1 / 3, 0, 0])
    assert torch.allclose(frequencies(Chooser(range(100), p=0.6)), nucleus, atol=0.012)
    assert frequencies(Chooser(range(100), temperature=0)).tolist() == [1, 0, 0, 0]


def test_a_sample_is_the_same_whatever_others_there_are():
    logits = LOGITS.expand(5, -1)
    together, alone = Chooser(range(5), seed=7), Chooser(range(3, 4), seed=7)
    assert [together(logits)[3].item() for _ in range(50)] == [alone(LOGITS)[0].item() for _ in range(50)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LanguageModel(11, ModelConfig(width=16, layers=2)).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


TOKENIZER = CharTokenizer("abcdefghij")


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"seed": 3}, {"seed": 3, "top_k": 4, "top_p": 0.9, "min_p": 0.1}]
)
def test_generation_equals_recomputation(model, options):
    text = "".join(generate(model, TOKENIZER, "abc", 60, **options))
    names = {"top_k": "k", "top_p": "p", "min_p": "minimum"}
    choose = Chooser(**{names.get(name, name): value for name, value in options.items()})
    ids = TOKENIZER.encode("abc").astype(np.int64).tolist()
    for _ in range(60):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0][:, -1]
        logits[:, -1] = -torch.inf
        ids.append(int(choose(logits)))
    assert text == TOKENIZER.decode(ids[3:])


def test_the_unknown_is_never_written(model):
    with torch.no_grad():
        model.head.weight[-1] = 100 * model.head.weight[0]
    assert "\ufffd" not in "".join(generate(model, TOKENIZER, "", 300, temperature=5.0))


def test_a_long_prompt_is_read_in_pieces(model, monkeypatch):
    prompt = np.random.default_rng(0).integers(0, 10, 300)
    first = next(decode(model, prompt, Chooser(temperature=0)))
    monkeypatch.setattr("lm.sampling.PREFILL", 7)
    assert next(decode(model, prompt, Chooser(temperature=0))) == first


def test_chars_is_the_length_and_zero_writes_nothing(model):
    assert len("".join(generate(model, TOKENIZER, "a", 25))) == 25
    assert "".join(generate(model, TOKENIZER, "a", 0)) == ""


@given(st.text("ab", max_size=30), st.text("ab", min_size=1, max_size=4))
def test_until_is_the_text_before_the_stop(text, stop):
    assert "".join(until(iter(text), stop)) == text.split(stop)[0]


def test_until_passes_on_what_cannot_become_the_stop():
    pieces = until(iter("xyz"), "ab")
    assert [next(pieces) for _ in range(3)] == ["x", "y", "z"]
