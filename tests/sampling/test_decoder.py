"""The filters against their definitions; generation against recomputation; samples whatever their number."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.config.options import ModelConfig
from lm.corpora.tokenizer import CharTokenizer
from lm.model import LanguageModel
from lm.sampling.decoder import ROWS, Decoder, Draws, read, score
from lm.sampling.filters import Options, choose, min_p, top_k, top_p
from lm.sampling.packed import Packed, pack
from lm.sampling.text import generate, passable, write
from lm.training.loss import streaming_loss
from tests.mixers.test_laws import every_model, make_model

P = np.array([[0.5, 0.25, 0.15, 0.1]])
LOGITS = np.log(P)
GREEDY = Options(temperature=0)
WILD = Options(temperature=1.3, top_k=20, top_p=0.95, min_p=0.001)


def kept(logits):
    return np.isfinite(logits)[0].tolist()


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


rows_of_logits = st.lists(st.floats(-50, 50), min_size=1, max_size=20)


@given(rows_of_logits, st.integers(0, 25), st.floats(0.01, 1), st.floats(0, 1))
def test_filters_keep_the_most_probable_and_change_nothing_they_keep(values, k, p, minimum):
    logits = np.array([values])
    for filtered in (top_k(logits, k), top_p(logits, p), min_p(logits, minimum)):
        mask = np.isfinite(filtered)
        assert logits[mask].max() == logits.max()
        assert np.array_equal(filtered[mask], logits[mask])
        assert logits[mask].min() >= logits[~mask].max() if (~mask).any() else True


@given(rows_of_logits, st.integers(1, 25), st.floats(0.01, 0.99), st.floats(0.01, 1))
def test_filters_keep_as_many_as_their_definitions_say(values, k, p, minimum):
    logits = np.array([values])
    ordered = np.sort(np.exp(values - np.max(values)))[::-1]
    assert np.isfinite(top_k(logits, k)).sum() == sum(
        x >= np.sort(values)[::-1][min(k, len(values)) - 1] for x in values
    )
    together = ordered.cumsum() / ordered.sum()
    if abs(together - p).min() > 1e-9:  # else rounding decides
        assert np.isfinite(top_p(logits, p)).sum() == int((together < p).sum()) + 1
    if abs(ordered - minimum).min() > 1e-9:
        assert np.isfinite(min_p(logits, minimum)).sum() == (ordered >= minimum).sum()


def frequencies(options, draws=200):
    numbers = Draws(0, range(100), [0] * 100)
    ids = np.concatenate([choose(LOGITS.repeat(100, axis=0), numbers.take()[0], options) for _ in range(draws)])
    return np.bincount(ids, minlength=4) / len(ids)


def test_draws_follow_the_distribution():
    assert np.allclose(frequencies(Options()), P[0], atol=0.012)
    assert np.allclose(frequencies(Options(temperature=0.5)), P[0] ** 2 / (P[0] ** 2).sum(), atol=0.012)
    assert np.allclose(frequencies(Options(top_p=0.6)), [2 / 3, 1 / 3, 0, 0], atol=0.012)
    assert frequencies(GREEDY, 1).tolist() == frequencies(Options(temperature=1e-320), 1).tolist() == [1, 0, 0, 0]


@given(rows_of_logits, st.floats(0, 1, exclude_max=True), st.floats(0.01, 10), st.integers(0, 3), st.floats(0.1, 1))
def test_what_is_chosen_was_kept(values, uniform, temperature, k, p):
    options = Options(temperature, k, p)
    (chosen,) = choose(np.array([values]), np.array([uniform]), options)
    shifted = np.array([values]) - max(values)  # as `choose` does, which can make equals of two that hardly differ
    assert np.isfinite(top_k(shifted, k))[0, chosen]
    (last,) = choose(np.array([values]), np.array([np.nextafter(1, 0)]), options)
    assert 0 <= chosen <= last < len(values)


def numbers(seed, samples, used, n):
    draws = Draws(seed, samples, used)
    parts, left, most = [], n, itertools.cycle([1, 30, 7])
    while left:
        parts.append(draws.take(min(left, next(most))))
        left -= len(parts[-1])
    assert draws.count == n
    return np.concatenate(parts).T


def test_a_stream_is_a_function_of_seed_sample_and_position():
    whole = numbers(7, range(5), [0] * 5, 700)
    assert np.array_equal(numbers(7, range(3, 4), [0], 700)[0], whole[3])
    used = [0, 1, 255, 256, 391]
    assert np.array_equal(
        numbers(7, range(5), used, 300), [row[n : n + 300] for row, n in zip(whole, used, strict=True)]
    )
    assert len(np.unique(np.concatenate([whole, numbers(8, range(5), [0] * 5, 700)]))) == 2 * 5 * 700


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LanguageModel(11, ModelConfig(width=16, layers=2)).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


TOKENIZER = CharTokenizer("abcdefghij")
LARGE = CharTokenizer("".join(map(chr, range(64, 64 + 29))))  # for the 30 ids of `make_model`


def every_mixer(case):
    model = make_model(case).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def texts(decoder, chars, options, **arguments):
    """What each sample becomes, and the last piece of each."""
    text, last = {}, {}
    for piece in itertools.chain.from_iterable(write(decoder, LARGE, chars, options, **arguments)):
        text[piece.sample] = text.get(piece.sample, "") + piece.text
        last[piece.sample] = piece
    return [text[i] for i in sorted(text)], [last[i] for i in sorted(last)]


@every_model
def test_greedy_text_by_the_fast_path_equals_recomputation(case):
    model = every_mixer(case)
    text = "".join(generate(pack(model), LARGE, "ABC", 60, temperature=0))
    ids = LARGE.encode("ABC").astype(np.int64).tolist()
    for _ in range(60):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0][0, -1, :-1].argmax()))
    assert text == LARGE.decode(ids[3:])


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 4, "top_p": 0.9, "min_p": 0.1}])
def test_sampling_equals_recomputation(model, options):
    text = "".join(generate(model, TOKENIZER, "abc", 60, seed=3, **options))
    uniform = numbers(3, range(1), [0], 60)[0]
    ids = TOKENIZER.encode("abc").astype(np.int64).tolist()
    for n in range(60):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0][0, -1:, :-1].numpy()
        ids.append(int(choose(logits, uniform[n : n + 1], Options(**options))[0]))
    assert text == TOKENIZER.decode(ids[3:])


@every_model
def test_a_sample_is_the_same_text_to_the_bit_whatever_their_number(case):
    for engine in {id(e): e for e in (every_mixer(case), pack(every_mixer(case)))}.values():
        position = read(engine, LARGE.encode("ABCDE"))
        many = ROWS["cpu"] + 3
        together, ends = texts(Decoder(engine, [position] * many, 5), 40, WILD, log_probabilities=True)
        assert len(set(together)) == many
        for i in (0, 2, many - 1):
            (alone,), (end,) = texts(Decoder(engine, [position], 5, first=i), 40, WILD, log_probabilities=True)
            assert alone == together[i] and end.log_probabilities == ends[i].log_probabilities
            assert np.array_equal(end.position.logits, ends[i].position.logits)
        assert "".join(generate(engine, LARGE, "ABCDE", 40, seed=5, sample=2, **vars(WILD))) == together[2]


def test_a_position_is_a_copy(model):
    first = read(model, TOKENIZER.encode("abc"))
    before = [part.clone() for layer in first.state for part in layer]
    decoder = Decoder(model, [first] * 2)
    middle = decoder.position(1)
    for _ in range(5):
        decoder.step(decoder.choose(Options()))
    assert all(torch.equal(a, b) for a, b in zip(before, itertools.chain(*first.state), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, itertools.chain(*middle.state), strict=True))
    assert decoder.position(1).drawn == 5 and middle.drawn == 0


def test_the_unknown_is_never_written(model):
    with torch.no_grad():
        model.head.weight[-1] = 100 * model.head.weight[0]
    assert "\ufffd" not in "".join(generate(model, TOKENIZER, "", 300, temperature=5.0))


def test_a_long_prompt_is_read_in_pieces(model, monkeypatch):
    prompt = np.random.default_rng(0).integers(0, 10, 300)
    whole, scores = read(model, prompt), score(model, prompt)[0]
    monkeypatch.setattr("lm.sampling.decoder.PREFILL", 7)
    assert np.allclose(read(model, prompt).logits, whole.logits, atol=1e-5)
    pieces, position = score(model, prompt)
    assert pieces.shape == (299,) and np.allclose(pieces, scores, atol=1e-5)
    assert np.allclose(position.logits, whole.logits, atol=1e-5)


@every_model
def test_scores_are_those_of_evaluate_and_of_writing(case):
    model = every_mixer(case)
    ids = np.random.default_rng(0).integers(0, 30, 200)
    assert -score(model, ids)[0].mean() == pytest.approx(streaming_loss(model, ids), rel=1e-5)
    position = read(model, LARGE.encode("ABC"))
    pieces = [piece for (piece,) in write(Decoder(model, [position], 1), LARGE, 50, WILD, log_probabilities=True)]
    written = LARGE.encode("".join(piece.text for piece in pieces))
    logs = np.concatenate([piece.log_probabilities for piece in pieces])
    assert np.allclose(score(model, written, position)[0], logs, atol=1e-4)


def test_chars_is_the_length_zero_writes_nothing_and_none_has_no_end(model):
    assert len("".join(generate(model, TOKENIZER, "a", 25))) == 25
    assert "".join(generate(model, TOKENIZER, "a", 0)) == ""
    endless = generate(model, TOKENIZER, "a", None)
    assert all(len(char) == 1 for char in itertools.islice(endless, 1200))


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop(text, stops):
    passed, held, found = "", "", False
    for char in text:
        held += char
        ready, end = passable(held, stops)
        passed, held = passed + held[:ready], held[ready:]
        if found := end > 0:
            break
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    expected = text[: min(ends)] if ends else text
    assert found == bool(ends)
    assert passed + held == expected
    assert passable(text, stops) == (len(passed), len(expected) if ends else 0)
    assert not any(stop in passed for stop in stops)
    if found:
        assert any(held.startswith(stop) for stop in stops)


def test_what_cannot_become_a_stop_is_passed_on_at_once():
    assert passable("xyz", ["ab"]) == (3, 0)
    assert passable("xya", ["ab", "yb"]) == (2, 0)
    assert passable("xyab!", ["ab"]) == (2, 4)
    assert passable("xabcd", ["abcd", "c"]) == (3, 4)


def test_samples_stop_on_their_own(model):
    position = read(model, TOKENIZER.encode("abc"))
    free, _ = texts_of(model, position, [])
    stops = [free[0][50:54], free[1][30:34]]
    stopped, ends = texts_of(model, position, stops)
    for text, end, whole in zip(stopped, ends, free, strict=True):
        places = [whole.find(stop) for stop in stops if stop in whole]
        assert text == (whole[: min(places)] if places else whole)
        assert end.finish == ("stop" if places else "length")
    assert len({len(text) for text in stopped}) > 1 and ends[0].position.drawn != ends[1].position.drawn


def texts_of(model, position, stops):
    pieces = list(itertools.chain.from_iterable(write(Decoder(model, [position] * 5), TOKENIZER, 90, Options(), stops)))
    return ["".join(p.text for p in pieces if p.sample == i) for i in range(5)], [
        next(p for p in pieces if p.sample == i and p.finish) for i in range(5)
    ]


def test_an_interrupted_text_is_whole(model):
    position = read(model, TOKENIZER.encode("abc"))
    asked = iter([False] * 20 + [True])
    arguments = (TOKENIZER, None, Options(), ["zz", "".join(generate(model, TOKENIZER, "abc", 20))[-1] + "z"])
    pieces = [p for (p,) in write(Decoder(model, [position]), *arguments, interrupted=lambda: next(asked))]
    assert "".join(p.text for p in pieces) == "".join(generate(model, TOKENIZER, "abc", 20))
    assert pieces[-1].finish == "interrupted" and pieces[-1].position.drawn == 20


class OneByOne(Packed):
    """Chooses in numpy, then steps."""

    def write(self, logits, state, uniform, temperature):
        ids = []
        for numbers in uniform.numpy():
            ids.append(torch.from_numpy(choose(logits.numpy()[:, :-1], numbers, Options(temperature))))
            logits, state = self.step(ids[-1], state)
        return torch.stack(ids), logits, state


def same(a, b):
    """Whether two positions are equal to the bit."""
    states = zip(itertools.chain(*a.state), itertools.chain(*b.state), strict=True)
    return a.drawn == b.drawn and np.array_equal(a.logits, b.logits) and all(torch.equal(x, y) for x, y in states)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("chars", [1, 300, 531])
def test_bursts_write_what_single_characters_do(temperature, stops, chars, monkeypatch):
    """Texts, and where they end, to the bit: from there either way goes on alike."""
    monkeypatch.setattr("lm.sampling.text.SOON", math.inf)
    model, options = every_mixer("mingru"), Options(temperature)
    fast, slow = Packed(model), OneByOne(model)
    start = [read(fast, LARGE.encode(prompt)) for prompt in ("ABC", "Q", "XYZ")]
    free, _ = texts(Decoder(slow, start, 6), chars, options)
    words = [free[0][100:103], free[1][217:219], free[2][40:42] + "~"] if stops and chars > 1 else []
    expected, ends = texts(Decoder(slow, start, 6), chars, options, stops=words)
    for burst in (1, 7, 256):
        monkeypatch.setattr("lm.sampling.text.BURST", burst)
        got, last = texts(Decoder(fast, start, 6), chars, options, stops=words)
        assert got == expected and [p.finish for p in last] == [p.finish for p in ends]
        assert all(same(a.position, b.position) for a, b in zip(last, ends, strict=True))
        more, _ = texts(Decoder(fast, [p.position for p in last], 6), 50, options)
        assert more == texts(Decoder(slow, [p.position for p in ends], 6), 50, options)[0]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_an_interrupted_burst_goes_on_where_it_ended(temperature):
    fast, options = Packed(every_mixer("mingru")), Options(temperature)
    start = [read(fast, LARGE.encode("ABC"))] * 3
    whole, _ = texts(Decoder(fast, start, 6), 800, options)
    asked = iter([False] * 9 + [True])
    some, ends = texts(Decoder(fast, start, 6), None, options, interrupted=lambda: next(asked))
    rest, _ = texts(Decoder(fast, [p.position for p in ends], 6), 800 - len(some[0]), options)
    assert [a + b for a, b in zip(some, rest, strict=True)] == whole and {p.finish for p in ends} == {"interrupted"}


def test_the_first_character_comes_alone_and_a_slow_model_keeps_to_it(monkeypatch):
    fast = Packed(every_mixer("mingru"))
    sizes = {}
    for sampling_soon in (math.inf, 0.0):
        monkeypatch.setattr("lm.sampling.text.SOON", sampling_soon)
        pieces = write(Decoder(fast, [read(fast, LARGE.encode("A"))]), LARGE, 700, Options())
        sizes[sampling_soon] = [len(piece.text) for (piece,) in pieces]
    assert sizes == {math.inf: [1, 2, 4, 8, 16, 32, 64, 128, 1, 256, 188], 0.0: [1] * 700}


@pytest.mark.parametrize("mixer", ["mingru", "attention"])
def test_memory_does_not_grow_with_what_is_written(mixer):
    """Counts the tensors that live, not the heap: the state after many characters is as large as after a few."""
    model = every_mixer(mixer if mixer == "mingru" else "attention window")
    decoder = Decoder(model, [read(model, LARGE.encode("A" * 80))])
    sizes = set()
    for n in range(400):
        decoder.step(decoder.choose(WILD))
        if n % 50 == 0:
            parts = [part for group in decoder._groups for layer in group for part in layer]
            sizes.add(sum(part.untyped_storage().nbytes() for part in parts))
    assert len(sizes) == 1
