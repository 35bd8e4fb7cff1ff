"""Reading, scoring and decoding against recomputation by full forward passes; samples whatever their number."""

import itertools

import numpy as np
import pytest
import torch

from lm.sampling.decoder import Decoder, RandomStreams, read, score
from lm.sampling.filters import SamplingOptions, choose
from lm.sampling.packed import Packed, pack
from tests.sampling.helpers import GREEDY, TOKENIZER, WILD, every_model, make, philox, recompute, same, texts

IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def engines(case: str) -> list:
    """The model, and a packed copy where there is one."""
    return list({id(engine): engine for engine in (make(case), pack(make(case)))}.values())


# ---- random numbers


def numbers(streams: RandomStreams, n: int) -> np.ndarray:
    """The next n numbers of each stream, drawn in pieces of several sizes."""
    parts, left, most = [], n, itertools.cycle([1, 30, 7, 1000])
    while left:
        size = min(left, next(most))
        parts.append(streams.draw(size))
        assert 1 <= len(parts[-1]) <= size
        left -= len(parts[-1])
    assert streams.count == n
    return np.concatenate(parts).T


def test_numbers_are_a_function_of_seed_sample_and_position():
    whole = numbers(RandomStreams(7, range(5), [0] * 5), 700)
    assert np.array_equal(whole, [philox(7, sample, 700) for sample in range(5)])
    used = [0, 1, 255, 256, 391]
    later = numbers(RandomStreams(7, range(3, 8), used), 300)
    assert np.array_equal(later, [philox(7, i, 700)[n : n + 300] for i, n in zip(range(3, 8), used, strict=True)])
    assert len(np.unique(np.concatenate([whole, numbers(RandomStreams(8, range(5), [0] * 5), 700)]))) == 2 * 5 * 700


def test_numbers_are_uniform():
    drawn = numbers(RandomStreams(2**64 - 1, range(20), [0] * 20), 1000)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert np.allclose(np.histogram(drawn, bins=10, range=(0, 1))[0] / drawn.size, 0.1, atol=0.01)


# ---- reading and scoring


@every_model
def test_reading_gives_the_state_and_logits_of_a_forward_pass(case):
    for engine in engines(case):
        with torch.no_grad():
            logits, state = make(case)(torch.from_numpy(IDS)[None])
        position = read(engine, IDS)
        assert np.allclose(position.logits, logits[0, -1].numpy(), atol=1e-5) and position.logits.dtype == np.float32
        assert position.drawn == 0
        for mine, whole in zip(itertools.chain(*position.state), itertools.chain(*state), strict=True):
            assert torch.allclose(mine.float(), whole.float(), atol=1e-5)
        later = read(engine, IDS[3:], read(engine, IDS[:3])._replace(drawn=17))
        assert np.allclose(later.logits, position.logits, atol=1e-4) and later.drawn == 17


@every_model
def test_scores_are_log_probabilities_of_a_forward_pass(case):
    model = make(case)
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS)[None])[0][0].log_softmax(-1)[range(7), IDS[1:]].numpy()
    scores, end = score(model, IDS)
    assert scores.dtype == np.float64 and np.allclose(scores, expected, atol=1e-5)
    assert np.allclose(end.logits, read(model, IDS).logits, atol=1e-6)
    later, after = score(model, IDS[3:], read(model, IDS[:3])._replace(drawn=5))
    assert np.allclose(later, expected[2:], atol=1e-4) and after.drawn == 5
    assert score(model, IDS[:1])[0].shape == (0,)


def test_a_text_of_many_thousand_characters_is_read_and_scored_in_pieces():
    model, ids = make("mingru"), np.random.default_rng(0).integers(0, 29, 9000)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None])[0][0]
    expected = logits.log_softmax(-1)[range(8999), ids[1:]].numpy()
    sizes = []
    model.embedding.register_forward_hook(lambda _, inputs, output: sizes.append(inputs[0].shape[1]))
    scores, position = score(model, ids)
    assert np.allclose(scores, expected, atol=1e-4) and np.allclose(position.logits, logits[-1], atol=1e-4)
    assert np.allclose(read(model, ids).logits, position.logits, atol=1e-6)
    assert max(sizes) <= 4096 and sum(sizes) == 2 * 9000  # memory is bounded


@every_model
def test_scores_are_those_of_writing(case):
    model = make(case)
    position = read(model, IDS)
    (text,), (end,) = texts(Decoder(model, [position], 1), 50, WILD, log_probabilities=True)
    scores, after = score(model, TOKENIZER.encode(text), position)
    logs = []
    decoder = Decoder(model, [position], 1)
    for letter in TOKENIZER.encode(text):
        exact = torch.from_numpy(decoder.logits[0]).double().log_softmax(-1)
        logs.append(float(exact[int(letter)]))
        decoder.step(np.array([letter]))
    assert np.allclose(scores, logs, atol=1e-4) and end.log_probabilities == pytest.approx(logs[-1:], abs=1e-6)
    assert np.allclose(after.logits, end.position.logits, atol=1e-4)


# ---- decoding


@every_model
@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 0.7}, vars(WILD)], ids=["greedy", "0.7", "wild"]
)
def test_decoding_equals_recomputation(case, options):
    expected = recompute(make(case), IDS, 40, seed=3, **options)
    for engine in engines(case):
        decoder, ids = Decoder(engine, [read(engine, IDS)], seed=3), []
        while len(ids) < 40:
            ids += decoder.write(SamplingOptions(**options), 40 - len(ids))[:, 0].tolist()
        assert ids == expected


@every_model
def test_a_sample_is_the_same_to_the_bit_whatever_their_number(case):
    for engine in engines(case):
        position = read(engine, IDS)
        together, ends = texts(Decoder(engine, [position] * 7, 5), 40, WILD, log_probabilities=True)
        assert len(set(together)) == 7
        for i in (0, 2, 3, 4, 6):
            (alone,), (end,) = texts(Decoder(engine, [position], 5, first=i), 40, WILD, log_probabilities=True)
            assert alone == together[i] and end.log_probabilities == ends[i].log_probabilities
            assert same(end.position, ends[i].position)
        some, _ = texts(Decoder(engine, [position] * 3, 5, first=3), 40, WILD)
        assert some == together[3:6]


@pytest.mark.parametrize("case", ["mingru", "gru"])
def test_each_text_continues_from_its_own_position(case):
    for engine in engines(case):
        starts = [IDS, IDS[:2], IDS[::-1]]
        positions = [read(engine, ids)._replace(drawn=n) for ids, n in zip(starts, (0, 3, 300), strict=True)]
        decoder = Decoder(engine, positions, seed=4)
        written = np.concatenate([decoder.write(SamplingOptions(0.9), 1) for _ in range(20)])
        for row, ids in enumerate(starts):
            uniform = philox(4, row, 400)[positions[row].drawn :]
            text = list(ids)
            for n in range(20):
                with torch.no_grad():
                    logits = make(case)(torch.tensor([text]))[0][0, -1:, :-1].numpy()
                text.append(int(choose(logits, uniform[n : n + 1], SamplingOptions(0.9))[0]))
            assert written[:, row].tolist() == text[len(ids) :]
            assert decoder.position(row).drawn == positions[row].drawn + 20


@pytest.mark.parametrize("case", ["mingru", "attention"])
def test_a_position_is_a_copy(case):
    for engine in engines(case):
        first = read(engine, IDS)
        before = [part.clone() for layer in first.state for part in layer]
        decoder = Decoder(engine, [first] * 2)
        middle = decoder.position(1)
        kept = middle.logits.copy()
        for _ in range(5):
            decoder.write(SamplingOptions())
        assert all(torch.equal(a, b) for a, b in zip(before, itertools.chain(*first.state), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, itertools.chain(*middle.state), strict=True))
        assert np.array_equal(middle.logits, kept) and middle.drawn == 0
        assert decoder.position(1).drawn == 5
        decoder.write(GREEDY)
        assert decoder.position(0).drawn == 5  # temperature 0 draws none


@pytest.mark.parametrize("options", [SamplingOptions(5.0), SamplingOptions(5.0, top_k=25), GREEDY], ids=str)
def test_the_unknown_is_never_chosen(options):
    model = make("mingru")
    with torch.no_grad():
        model.head.weight[-1] = 10 * model.head.weight[0]
    for engine in (model, pack(model)):
        decoder = Decoder(engine, [read(engine, IDS)] * 20)
        assert max(decoder.write(options).max() for _ in range(50)) < 29


@pytest.mark.parametrize("case", ["mingru", "window"])
def test_the_state_does_not_grow_with_what_is_written(case):
    model = make(case)
    decoder = Decoder(model, [read(model, IDS)])
    sizes = set()
    for _ in range(200):
        decoder.write(WILD)
        sizes.add(sum(part.nbytes for layer in decoder.position(0).state for part in layer))
    assert len(sizes) == 1


# ---- several characters in one native call


class OneByOne(Packed):
    """Chooses in numpy, then steps."""

    def write(self, logits, state, uniform, temperature):
        ids = []
        for numbers in uniform.numpy():
            ids.append(torch.from_numpy(choose(logits.numpy()[:, :-1], numbers, SamplingOptions(temperature))))
            logits, state = self.step(ids[-1], state)
        return torch.stack(ids), logits, state


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("most", [1, 7, 256, 1000])
def test_several_characters_at_once_are_those_of_single_calls(temperature, most, compiler):
    fast, slow, options = Packed(make()), OneByOne(make()), SamplingOptions(temperature)
    start = [read(fast, TOKENIZER.encode(prompt)) for prompt in ("ABC", "Q", "XYZ")]
    at_once, single = Decoder(fast, start, 6), Decoder(slow, start, 6)
    ids = []
    while len(ids) < 300:
        written = at_once.write(options, min(most, 300 - len(ids)))
        assert 1 <= len(written) <= most
        ids += written.tolist()
        back = len(written) // 2
        for row in range(3):
            before = at_once.position(row, back)
            other = Decoder(slow, [before], 6, first=row)
            again = [int(other.write(options)[0, 0]) for _ in range(back)]
            assert again == written[len(written) - back :, row].tolist()
            assert same(other.position(0), at_once.position(row))
    assert ids == [single.write(options)[0].tolist() for _ in range(300)]
    assert all(same(at_once.position(row), single.position(row)) for row in range(3))


def test_filters_and_other_models_write_one_character_a_call(compiler):
    fast, slow = Packed(make()), make("gru")
    for options in (SamplingOptions(top_k=3), SamplingOptions(top_p=0.5), SamplingOptions(min_p=0.1)):
        assert Decoder(fast, [read(fast, IDS)]).write(options, 100).shape == (1, 1)
    assert Decoder(slow, [read(slow, IDS)]).write(SamplingOptions(), 100).shape == (1, 1)
    assert Decoder(fast, [read(fast, IDS)]).write(SamplingOptions(), 100).shape == (100, 1)


# ---- defaults of PyTorch


@pytest.fixture
def other_defaults():
    """A default type and device that nothing here may use."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("options", [GREEDY, SamplingOptions(0.8), WILD], ids=str)
@pytest.mark.parametrize("weights", [None, "float32", "int8"])
def test_default_type_and_device_of_pytorch_do_not_matter(weights, options, request, compiler):
    model = make()
    engine = model if weights is None else Packed(model, weights)
    expected, ends = texts(Decoder(engine, [read(engine, IDS)] * 2), 30, options)
    request.getfixturevalue("other_defaults")
    engine = model if weights is None else Packed(model, weights)
    got, last = texts(Decoder(engine, [read(engine, IDS)] * 2), 30, options)
    assert got == expected and all(same(a.position, b.position) for a, b in zip(last, ends, strict=True))
